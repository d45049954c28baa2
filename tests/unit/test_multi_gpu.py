"""Several GPUs above the Runner contract: spread, taken out, moved."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

import trtrun
from tests import models
from tests.conformance import RunnerConformance
from tests.fakes import FakeRunner
from trtrun.errors import ClosedError, DeviceError, OutOfMemoryError
from trtrun.multi_gpu import MultiGpuRunner
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.pipeline import Pipeline


class Gpu(FakeRunner):
    """A fake on a GPU of its own, which fails from the request on that ``fail_at`` says; clones share it."""

    def __init__(self, name: str, latency: float = 0.0, fail_at: int | None = None, shared: Any = None) -> None:
        super().__init__(latency)
        self.name = name
        self.shared = shared if shared is not None else {"count": 0, "fail_at": fail_at, "error": DeviceError("sticky")}

    @property
    def backend(self) -> str:
        return self.name

    def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
        self.shared["count"] += 1
        if self.shared["fail_at"] is not None and self.shared["count"] >= self.shared["fail_at"]:
            if self.shared["count"] % 2:
                raise self.shared["error"]
            failed: Future[dict[str, Any]] = Future()
            failed.set_exception(self.shared["error"])
            return failed
        return super().enqueue(inputs)

    def clone(self) -> Gpu:
        return Gpu(self.name, self.latency, shared=self.shared)


def x(value: float) -> np.ndarray[Any, Any]:
    return np.float32([value, value])


class TestConformance(RunnerConformance):
    @pytest.fixture
    def runner(self) -> Callable[[str], MultiGpuRunner]:
        def open_both(name: str) -> MultiGpuRunner:
            model = getattr(models, name)()
            return MultiGpuRunner([OnnxRuntimeSession(model), OnnxRuntimeSession(model)])

        return open_both


def test_threads_are_spread_over_the_gpus() -> None:
    gpus = [Gpu("a", 0.02), Gpu("b", 0.02)]
    with MultiGpuRunner([*gpus]) as runner:
        threads = [threading.Thread(target=runner, args=(x(1),)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [gpu.shared["count"] for gpu in gpus] == [1, 1]


def test_idle_gpus_take_turns() -> None:
    gpus = [Gpu("a"), Gpu("b"), Gpu("c")]
    with MultiGpuRunner([*gpus]) as runner:
        for _ in range(6):
            runner(x(1))
    assert [gpu.shared["count"] for gpu in gpus] == [2, 2, 2]


def test_a_slower_gpu_of_a_pipeline_is_given_fewer_requests() -> None:
    fast, slow = Gpu("fast", 0.002), Gpu("slow", 0.02)
    with MultiGpuRunner([fast, slow]) as runner, Pipeline(runner, depth=4) as pipeline:
        futures = [pipeline.submit(x(value)) for value in range(60)]
        assert [future.result()["y"][0] for future in futures] == [2 * value for value in range(60)]
    assert fast.shared["count"] > 2 * slow.shared["count"] > 0


def test_the_depth_is_measured_for_each_gpu() -> None:
    with MultiGpuRunner([Gpu(str(index)) for index in range(3)]) as runner, Pipeline(runner) as pipeline:
        list(pipeline.map([x(1)]))
        assert pipeline.depth % 3 == 0


def test_run_repeats_its_request_when_a_gpu_fails(caplog: pytest.LogCaptureFixture) -> None:
    broken, sound = Gpu("broken", fail_at=1), Gpu("sound")
    with MultiGpuRunner([broken, sound]) as runner, caplog.at_level(logging.WARNING):
        for value in range(5):
            assert runner(x(value))["y"][0] == 2 * value
        assert broken.shared["count"] == 1
        assert "broken was taken out, 1 of 2 are left: sticky" in caplog.text
        assert len(caplog.records) == 1
        assert list(runner.failures) == [0]
        assert runner.parallel == 1
        assert runner.backend == "broken (failed), sound"


@pytest.mark.parametrize("fail_at", [5, 6])  # raised by enqueue(), and by result()
def test_a_pipeline_goes_on_without_the_gpu_that_failed(fail_at: int) -> None:
    broken, sound = Gpu("broken", 0.001, fail_at=fail_at), Gpu("sound", 0.001)
    with MultiGpuRunner([broken, sound]) as runner, Pipeline(runner, depth=4) as pipeline:
        results = list(pipeline.map([x(value) for value in range(60)], return_exceptions=True))
        lost = [result for result in results if isinstance(result, Exception)]
        assert all(isinstance(error, DeviceError) for error in lost)
        assert len(lost) <= 2  # what it had in flight
        for value, result in enumerate(results):
            assert isinstance(result, Exception) or result["y"][0] == 2 * value
        assert broken.shared["count"] <= fail_at + 2
        assert [r["y"][0] for r in pipeline.map([x(1)] * 20)] == [2] * 20
        assert pipeline.depth == 4
        runners = [clone._runner for clone in pipeline._clones]  # the new ones, too
        assert all(each.shares_gpu and not each.copy_helpers for each in runners)


def test_when_no_gpu_is_left_it_says_so() -> None:
    with MultiGpuRunner([Gpu("a", fail_at=1), Gpu("b", fail_at=1)]) as runner:
        for _ in range(2):
            with pytest.raises(DeviceError, match=r"all 2 GPUs have failed.*sticky"):
                runner(x(1))


def test_a_request_that_does_not_fit_takes_no_gpu_out() -> None:
    full = Gpu("full", fail_at=1)
    full.shared["error"] = OutOfMemoryError("no room")
    with MultiGpuRunner([full, Gpu("other")]) as runner:
        with pytest.raises(OutOfMemoryError):
            runner(x(1))
        with pytest.raises(trtrun.ExecutionError, match="negative"):
            MultiGpuRunner([Gpu("one")])(x(-1))
        assert not runner.failures


def test_streams_and_gpu_arrays_need_one_gpu() -> None:
    with MultiGpuRunner([Gpu("a"), Gpu("b")]) as runner:
        for options in ({"outputs": "device"}, {"stream": 0}):
            with pytest.raises(trtrun.InputError, match="device=N"):
                runner.run({"x": x(1)}, **options)


def test_a_coroutine_whose_slot_came_as_the_pipeline_closed_is_turned_away() -> None:
    async def main() -> list[Any]:
        pipeline = Pipeline(MultiGpuRunner([FakeRunner(0.02), FakeRunner(0.02)]), depth=2)
        waiting = [asyncio.ensure_future(pipeline.run_async(np.float32([value]))) for value in range(1, 4)]
        await asyncio.sleep(0.01)
        time.sleep(0.1)  # the last gets its slot, and the loop has had no time to tell it
        pipeline.close()
        return await asyncio.gather(*waiting, return_exceptions=True)

    late = [result for result in asyncio.run(main()) if not isinstance(result, dict)]
    assert [type(error) for error in late] == [ClosedError]


@pytest.mark.parametrize("depth", [2, 3])
def test_one_slot_for_each_gpu_shares_none(depth: int) -> None:
    with MultiGpuRunner([Gpu("a"), Gpu("b")]) as runner, Pipeline(runner, depth=depth) as pipeline:
        assert {clone._runner.shares_gpu for clone in pipeline._clones} == {depth > 2}
