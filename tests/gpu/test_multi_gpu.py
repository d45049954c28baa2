"""Several GPUs, played by one that is opened twice where there is no other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import trtrun
from tests.gpu.conftest import TF32, relative_error
from trtrun.cuda.device import gpu_count
from trtrun.errors import DeviceError
from trtrun.multi_gpu import MultiGpuRunner
from trtrun.pipeline import Pipeline
from trtrun.session import Session


@pytest.fixture
def both(plan: Callable[[str], bytes]) -> Iterator[MultiGpuRunner]:
    devices = "all" if gpu_count() > 1 else [0, 0]
    with trtrun.load(plan("convolution"), devices=devices) as runner:
        assert isinstance(runner, MultiGpuRunner)
        yield runner


def requests(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng()
    shapes = [(2, 3, 16, 16), (1, 3, 8, 8), (4, 3, 32, 32)]
    return [rng.standard_normal(shapes[index % 3]).astype(np.float32) for index in range(count)]


def test_every_answer_is_right_and_every_gpu_works(both: MultiGpuRunner, reference: Callable) -> None:
    ran: dict[int, int] = {}
    lock = threading.Lock()
    for index, gpu in enumerate(both._gpus):

        def run(inputs: object, index: int = index, known: Callable = gpu.runner.run) -> object:
            with lock:
                ran[index] = ran.get(index, 0) + 1
            return known(inputs)

        gpu.runner.run = run

    def ask() -> None:
        for x in requests(30):
            assert relative_error(both(x)["y"], reference("convolution")(x)["y"]) <= TF32

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(ran.values()) == 120
    assert min(ran.get(index, 0) for index in range(len(both._gpus))) > 120 / len(both._gpus) / 2
    with Pipeline(both) as pipeline:
        xs = requests(60)
        for x, out in zip(xs, pipeline.map(xs), strict=True):
            assert relative_error(out["y"], reference("convolution")(x)["y"]) <= TF32
        assert pipeline.depth % len(both._gpus) == 0
        engines = {id(clone._runner.engine) for clone in pipeline._clones}
        assert len(engines) == len(both._gpus)


def test_the_others_go_on_when_one_fails(
    both: MultiGpuRunner, reference: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait, broken = Session._wait, both._gpus[0].runner.engine
    countdown = iter(range(10))

    def failing(session: Session) -> None:
        wait(session)
        if session.engine is broken and next(countdown, None) is None:
            raise DeviceError("CUDA could not finish the work on the GPU: injected")

    monkeypatch.setattr(Session, "_wait", failing)
    with Pipeline(both, depth=4) as pipeline:
        xs = requests(60)
        results = list(pipeline.map(xs, return_exceptions=True))
        lost = [result for result in results if isinstance(result, Exception)]
        assert 1 <= len(lost) <= 4
        assert all(isinstance(error, DeviceError) for error in lost)
        for x, out in zip(xs, results, strict=True):
            if not isinstance(out, Exception):
                assert relative_error(out["y"], reference("convolution")(x)["y"]) <= TF32
        assert list(both.failures) == [0]
        assert all(clone._runner.engine is not broken for clone in pipeline._clones)
    x = requests(1)[0]
    assert relative_error(both(x)["y"], reference("convolution")(x)["y"]) <= TF32
