"""Batches of requests above the Runner contract."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.fakes import FakeRunner
from trtrun.errors import (
    ClosedError,
    DeviceError,
    ExecutionError,
    InputError,
    OutOfMemoryError,
    RequestTimeoutError,
    ServerBusyError,
    ShapeError,
)
from trtrun.multi_gpu import MultiGpuRunner
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve.batcher import Batcher, BatchOptions, Outcome, _sizes, fits
from trtrun.tensor_spec import ShapeRange, TensorSpec, TensorSpecs


class Rows(FakeRunner):
    """y = 2 x for x [N, 4]; notes the rows of every run. A row that begins with -1 fails its batch."""

    def __init__(
        self, latency: float = 0.0, runs: list[int] | None = None, gate: threading.Event | None = None
    ) -> None:
        super().__init__(latency)
        self.runs = runs if runs is not None else []
        self.gate = gate
        self.broken = threading.Event()

    @property
    def inputs(self) -> TensorSpecs:
        return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, 4))])

    @property
    def outputs(self) -> TensorSpecs:
        return TensorSpecs([TensorSpec("y", np.dtype(np.float32), (-1, 4))])

    def run(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        if self.gate is not None:
            self.gate.wait(10)
        time.sleep(self.latency)
        self.runs.append(len(inputs["x"]))
        if (inputs["x"][:, 0] == -1).any():
            raise ExecutionError("bad row")
        if self.broken.is_set():
            raise DeviceError("broken")
        if (inputs["x"][:, 0] == -2).any():
            raise DeviceError("sticky")
        return {"y": 2 * inputs["x"]}

    def clone(self) -> Rows:
        clone = Rows(self.latency, self.runs, self.gate)
        clone.broken = self.broken
        return clone


def rows(*firsts: float) -> dict[str, np.ndarray]:
    return {"x": np.float32([[first, 1, 2, 3] for first in firsts])}


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def waiting(batcher: Batcher, count: int) -> None:
    for _ in range(500):
        if batcher.waiting == count:
            return
        time.sleep(0.005)
    raise AssertionError(f"{batcher.waiting} wait, not {count}")


def test_what_waits_runs_together_and_everybody_gets_his_rows(gate: threading.Event) -> None:
    runner = Rows(gate=gate)
    batcher = Batcher(runner, BatchOptions(8, instances=1))
    first = batcher.submit(rows(0))
    waiting(batcher, 0)  # it runs, and the others wait behind it
    futures = [batcher.submit(rows(*range(index, index + 1 + index % 3))) for index in range(10)]
    gate.set()
    for index, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(5)["y"], 2 * rows(*range(index, index + 1 + index % 3))["x"])
    assert first.result()["y"].shape == (1, 4)
    batcher.close()
    assert runner.runs[0] == 1
    assert max(runner.runs) <= 8
    assert len(runner.runs) <= 4  # 19 rows


def test_a_row_that_fails_fails_alone(gate: threading.Event) -> None:
    outcomes: list[Outcome] = []
    batcher = Batcher(Rows(gate=gate), BatchOptions(8, instances=1), outcomes.append)
    futures = [batcher.submit(rows(value)) for value in (0, 1, -1, 3)]
    gate.set()
    for value, future in zip((0, 1, -1, 3), futures, strict=True):
        if value == -1:
            with pytest.raises(ExecutionError, match="bad row"):
                future.result(5)
        else:
            assert future.result(5)["y"][0, 0] == 2 * value
    batcher.close()
    assert len(outcomes) == 4
    assert sum(outcome.error is not None for outcome in outcomes) == 1


def test_a_gpu_that_fails_is_not_asked_again_for_every_row(gate: threading.Event) -> None:
    runner = Rows(gate=gate)
    batcher = Batcher(runner, BatchOptions(8, instances=1))
    futures = [batcher.submit(rows(value)) for value in (0, 1, -2, 3)]
    gate.set()
    errors = [future.exception(5) for future in futures]
    assert sum(isinstance(error, DeviceError) for error in errors) >= 3
    assert len(runner.runs) <= 2
    batcher.close()


def test_a_gpu_has_failed_when_it_does_not_run_what_it_ran_before() -> None:
    runner = Rows()
    batcher = Batcher(runner, BatchOptions(8, instances=1))
    batcher.warm_up(rows(1))
    with pytest.raises(DeviceError, match="sticky"):
        batcher.submit(rows(-2)).result(5)
    assert batcher.failure is None  # it was the request's fault
    assert batcher.submit(rows(1)).result(5)["y"][0, 0] == 2
    runner.broken.set()
    with pytest.raises(DeviceError, match="broken"):
        batcher.submit(rows(1)).result(5)
    with pytest.raises(DeviceError, match="broken"):
        batcher.submit(rows(1))  # at once
    assert batcher.failure is not None
    batcher.close()


class Staged(Rows):
    """A GPU whose requests lie in its own staging buffer; ``failing`` as soon as it is set."""

    def __init__(self, runs: list[int], failing: threading.Event, gate: threading.Event) -> None:
        super().__init__(0.0, runs, gate)
        self.failing = failing
        self.staging = self
        self.buffer = np.full((8, 4), np.nan, np.float32)

    @property
    def inputs(self) -> TensorSpecs:
        profile = ShapeRange((1, 4), (4, 4), (8, 4))
        return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, 4), profiles=(profile,))])

    def view(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return self.buffer[: shape[0]]

    def run(self, inputs: Mapping[str, Any], **options: Any) -> dict[str, Any]:
        if self.failing.is_set():
            raise DeviceError("sticky")
        assert not np.isnan(inputs["x"]).any()  # nothing that no request has given
        if len(inputs["x"]) > 3:
            assert inputs["x"].base is not None  # a view, not a copy of its own
        return super().run(inputs, **options)

    def clone(self) -> Staged:
        return Staged(self.runs, self.failing, self.gate)  # type: ignore[arg-type]


def test_several_gpus_have_their_staging_and_hand_a_batch_on_when_one_fails(gate: threading.Event) -> None:
    failing = [threading.Event(), threading.Event()]
    runs: list[list[int]] = [[], []]
    gpus = MultiGpuRunner([Staged(runs[index], failing[index], gate) for index in range(2)])
    batcher = Batcher(gpus, BatchOptions(4, instances=1))
    assert all(clone.staging is not None for clone in batcher._clones)  # type: ignore[attr-defined]
    gate.set()
    for value in range(3):
        batcher.submit(rows(value)).result(5)
    failing[0].set()
    gate.clear()
    futures = [batcher.submit(rows(value)) for value in range(12)]
    gate.set()
    for value, future in enumerate(futures):
        assert future.result(5)["y"][0, 0] == 2 * value
    assert batcher.failure is None
    failing[1].set()
    with pytest.raises(DeviceError):
        batcher.submit(rows(1)).result(5)
    with pytest.raises(DeviceError):
        batcher.submit(rows(1))
    batcher.close()
    assert max(runs[1]) == 4


def test_batches_on_a_gpu_have_few_sizes(gate: threading.Event) -> None:
    runs: list[int] = []
    batcher = Batcher(Staged(runs, threading.Event(), gate), BatchOptions(8, instances=1))
    assert batcher.sizes == (1, 2, 4, 8)
    first = batcher.submit(rows(0))
    waiting(batcher, 0)
    futures = [batcher.submit(rows(value, value + 100)) for value in range(3)]
    gate.set()
    for value, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(5)["y"], 2 * rows(value, value + 100)["x"])
    first.result(5)
    batcher.submit(rows(1, 2, 3)).result(5)  # a client's own batch stays as it is
    batcher.close()
    assert runs == [1, 8, 3]
    assert Batcher(Rows(), BatchOptions(8)).sizes == ()


def test_the_sizes_that_an_engine_was_specialized_for() -> None:
    def sizes(most: int, *profiles: tuple[int, int]) -> tuple[int, ...]:
        class Engine(Staged):
            @property
            def inputs(self) -> TensorSpecs:
                ranges = tuple(ShapeRange((low, 4), (high, 4), (high, 4)) for low, high in profiles)
                return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, 4), profiles=ranges)])

        return _sizes(Engine([], threading.Event(), threading.Event()), most)

    assert sizes(32, (1, 32), (1, 1), (8, 8), (32, 32)) == (1, 8, 32)
    assert sizes(16, (1, 32), (1, 1), (8, 8), (32, 32)) == (1, 8, 16)
    assert sizes(24, (1, 24)) == (1, 2, 4, 8, 16, 24)
    assert sizes(8, (4, 8)) == (1, 2, 4, 8)  # of which those are left out that do not fit
    assert fits(OnnxRuntimeSession(models.affine()), {"x": (12,)}, 5)
    assert not fits(OnnxRuntimeSession(models.affine()), {"x": (13,)}, 5)


def test_batches_are_not_filled_beyond_what_the_profiles_of_their_shape_take(gate: threading.Event) -> None:
    class Engine(Staged):
        """At most 3 rows of these, whatever other shapes may have."""

        @property
        def inputs(self) -> TensorSpecs:
            ranges = (ShapeRange((1, 4), (3, 4), (3, 4)), ShapeRange((1, 9), (8, 9), (8, 9)))
            return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, -1), profiles=ranges)])

        def clone(self) -> Engine:
            return Engine(self.runs, self.failing, self.gate)  # type: ignore[arg-type]

    runs: list[int] = []
    batcher = Batcher(Engine(runs, threading.Event(), gate), BatchOptions(instances=1))
    assert batcher.sizes == (1, 2, 4, 8)
    first = batcher.submit(rows(0))
    waiting(batcher, 0)
    futures = [batcher.submit(rows(value)) for value in range(3)]
    gate.set()
    for value, future in enumerate([first, *futures]):
        assert future.result(5)["y"][0, 0] == 2 * max(value - 1, 0)
    batcher.close()
    assert runs == [1, 3]


def test_a_lone_request_does_not_keep_full_batches_of_other_shapes_waiting() -> None:
    class AnyWidth(Rows):
        @property
        def inputs(self) -> TensorSpecs:
            return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, -1))])

        def clone(self) -> Rows:
            return AnyWidth(self.latency, self.runs)

    def request(width: int) -> dict[str, np.ndarray]:
        return {"x": np.zeros((1, width), np.float32)}

    batcher = Batcher(AnyWidth(), BatchOptions(4, max_queue_delay=1.0, instances=1))
    start = time.perf_counter()
    alone = batcher.submit(request(3))
    for future in [batcher.submit(request(5)) for _ in range(4)]:
        future.result(5)
    assert time.perf_counter() - start < 0.5
    assert not alone.done()
    alone.result(5)
    assert 0.9 < time.perf_counter() - start < 3
    batcher.close()


def test_outcomes_count_rows_and_batches(gate: threading.Event) -> None:
    outcomes: list[Outcome] = []
    batcher = Batcher(Rows(gate=gate), BatchOptions(8, queue_size=3, instances=1), outcomes.append)
    first = batcher.submit(rows(0))
    waiting(batcher, 0)
    futures = [first, *(batcher.submit(rows(1, 2)) for _ in range(3))]
    with pytest.raises(ServerBusyError):
        batcher.submit(rows(1))
    gate.set()
    for future in futures:
        future.result(5)
    batcher.close()
    refused, *ran = outcomes
    assert isinstance(refused.error, ServerBusyError)
    assert refused.batch == 0
    assert [(one.rows, one.batch, one.first) for one in ran] == [
        (1, 1, True),
        (2, 6, True),
        (2, 6, False),
        (2, 6, False),
    ]


def test_the_delay_fills_batches_and_no_longer_than_it_says() -> None:
    runner = Rows()
    batcher = Batcher(runner, BatchOptions(4, max_queue_delay=0.2, instances=2))
    start = time.perf_counter()
    for future in [batcher.submit(rows(index)) for index in range(4)]:
        future.result(5)
    assert time.perf_counter() - start < 0.15  # full, so nobody waited
    assert runner.runs == [4]
    start = time.perf_counter()
    batcher.submit(rows(1)).result(5)
    assert 0.15 < time.perf_counter() - start < 2
    batcher.close()


class Noted(Rows):
    """Notes the threads that run it."""

    def __init__(self, latency: float, threads: list[threading.Thread]) -> None:
        super().__init__(latency)
        self.threads = threads

    def run(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
        self.threads.append(threading.current_thread())
        return super().run(inputs)

    def clone(self) -> Noted:
        return Noted(self.latency, self.threads)


def test_a_lone_request_runs_in_its_own_thread_where_it_is_known_to_be_quick() -> None:
    threads: list[threading.Thread] = []
    outcomes: list[Outcome] = []
    batcher = Batcher(Noted(0.0, threads), BatchOptions(8, instances=1), outcomes.append)
    mine = threading.current_thread()
    batcher.submit(rows(1), here=True).result(5)
    assert mine not in threads  # nobody knows yet how long it takes
    future = batcher.submit(rows(3), here=True)
    assert future.done()
    assert future.result()["y"][0, 0] == 6
    assert threads[-1] is mine
    batcher.submit(rows(1, 2), here=True).result(5)
    assert threads[-1] is not mine  # of two rows neither
    with pytest.raises(ExecutionError, match="bad row"):
        batcher.submit(rows(-1), here=True).result(0)
    assert [outcome.error is None for outcome in outcomes] == [True, True, True, False]
    batcher.submit(rows(1)).result(5)
    assert threads[-1] is not mine  # it was not allowed to
    batcher.close()
    with pytest.raises(ClosedError):
        batcher.submit(rows(1), here=True)


@pytest.mark.parametrize(
    ("latency", "options"), [(0.005, BatchOptions(8, instances=1)), (0.0, BatchOptions(8, 0.01, instances=1))]
)
def test_requests_that_take_long_or_wait_for_company_run_in_no_callers_thread(
    latency: float, options: BatchOptions
) -> None:
    threads: list[threading.Thread] = []
    batcher = Batcher(Noted(latency, threads), options)
    for _ in range(4):
        batcher.submit(rows(1), here=True).result(5)
    batcher.close()
    assert threading.current_thread() not in threads


def test_an_instance_is_not_closed_while_a_caller_runs_on_it() -> None:
    begun, gate, ended = threading.Event(), threading.Event(), threading.Event()

    class Slow(Rows):
        def run(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
            if inputs["x"][0, 0] == 7:
                begun.set()
                gate.wait(5)
                assert not self.closed
                ended.set()
            return {"y": inputs["x"]}

        def clone(self) -> Slow:
            return Slow()

    batcher = Batcher(Slow(), BatchOptions(8, instances=1))
    batcher.submit(rows(1)).result(5)
    caller = threading.Thread(target=lambda: batcher.submit(rows(7), here=True))
    caller.start()
    assert begun.wait(5)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    time.sleep(0.1)
    gate.set()
    caller.join(5)
    closing.join(5)
    assert ended.is_set()


def test_choosing_a_batch_looks_at_the_queue_once(gate: threading.Event) -> None:
    class AnyWidth(Rows):
        @property
        def inputs(self) -> TensorSpecs:
            return TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, -1))])

        def clone(self) -> Rows:
            return AnyWidth(self.latency, self.runs, self.gate)

    class Counted(list):  # type: ignore[type-arg]
        seen = 0

        def __iter__(self):  # type: ignore[no-untyped-def]
            for one in super().__iter__():
                Counted.seen += 1
                yield one

    batcher = Batcher(AnyWidth(gate=gate), BatchOptions(4, max_queue_delay=60, instances=1, queue_size=2000))
    for future in [batcher.submit({"x": np.zeros((1, 3), np.float32)}) for _ in range(4)]:
        del future  # they run until the gate opens
    waiting(batcher, 0)
    for width in range(4, 304):
        batcher.submit({"x": np.zeros((1, width), np.float32)})
    with batcher._condition:
        batcher._queue = Counted(batcher._queue)
        batch, left = batcher._fitting()
    assert len(batch) == 1
    assert batch[0].inputs["x"].shape == (1, 4)
    assert 0 < left < 60
    assert Counted.seen == 300
    gate.set()
    batcher.close()


def test_a_queue_that_is_empty_for_a_moment_is_no_room_for_a_burst() -> None:
    class Turnstile(threading.Event):
        """Lets one pass for each ``set``."""

        def __init__(self) -> None:
            super().__init__()
            self.turns = threading.Semaphore(0)

        def set(self) -> None:
            self.turns.release()

        def wait(self, timeout: float | None = None) -> bool:
            return self.turns.acquire(timeout=timeout)

    gate = Turnstile()
    batcher = Batcher(Rows(gate=gate), BatchOptions(4, instances=1))
    futures = [batcher.submit(rows(0))]
    waiting(batcher, 0)
    futures += [batcher.submit(rows(index)) for index in range(4)]  # a burst
    time.sleep(0.15)
    batcher._batch_time = 1.0
    futures.append(batcher.submit(rows(1)))
    with pytest.raises(ServerBusyError, match="more comes than can be done"):
        batcher.submit(rows(1))
    while batcher.waiting:
        gate.set()  # the instance takes all that waits, and is busy with it
        time.sleep(0.02)
    batcher._batch_time = 1.0
    futures += [batcher.submit(rows(1)) for _ in range(5)]
    with pytest.raises(ServerBusyError, match="more comes than can be done"):
        batcher.submit(rows(1))
    for _ in range(4):
        gate.set()
    for future in futures:
        future.result(5)
    time.sleep(0.02)
    batcher._batch_time = 1.0
    futures = [batcher.submit(rows(1)) for _ in range(20)]  # it had nothing to do meanwhile
    for _ in range(20):
        gate.set()
    batcher.close()
    assert all(future.done() for future in futures)


def test_priority_goes_first(gate: threading.Event) -> None:
    done: list[int] = []
    batcher = Batcher(Rows(gate=gate), BatchOptions(1, instances=1))
    batcher.submit(rows(0))
    waiting(batcher, 0)
    for value, priority in ((1, 0), (2, 5), (3, 0), (4, 1)):
        batcher.submit(rows(value), priority=priority).add_done_callback(lambda _, value=value: done.append(value))
    gate.set()
    batcher.close()
    assert done == [4, 2, 1, 3]


def test_full_queues_and_late_requests_are_turned_away(gate: threading.Event) -> None:
    batcher = Batcher(Rows(gate=gate), BatchOptions(1, queue_size=2, instances=1))
    running = batcher.submit(rows(0))
    waiting(batcher, 0)
    late, patient = batcher.submit(rows(1), timeout=0.01), batcher.submit(rows(2))
    with pytest.raises(ServerBusyError, match="2 requests wait already"):
        batcher.submit(rows(3))
    time.sleep(0.02)
    gate.set()
    with pytest.raises(RequestTimeoutError, match=r"0\.01 s"):
        late.result(5)
    assert patient.result(5)["y"][0, 0] == 4
    running.result(5)
    batcher.close()
    with pytest.raises(ClosedError):
        batcher.submit(rows(1))


def test_bursts_wait_and_a_queue_that_stands_is_kept_short() -> None:
    """A runner of 20 ms a row: fifty at once are taken; then four times what it can do, for two seconds."""
    latency = 0.02
    batcher = Batcher(Rows(latency), BatchOptions(1, instances=1))
    for future in [batcher.submit(rows(index)) for index in range(50)]:
        future.result(5)
    waited: list[float] = []
    taken, refused = [], 0
    start = time.perf_counter()
    for index in range(400):
        time.sleep(max(start + index * latency / 4 - time.perf_counter(), 0))
        sent = time.perf_counter()
        try:
            future = batcher.submit(rows(index))
        except ServerBusyError:
            refused += 1
            continue
        future.add_done_callback(lambda _, sent=sent: waited.append(time.perf_counter() - sent))
        taken.append(sent - start)
    important = batcher.submit(rows(1), priority=1)  # does not wait behind the others
    batcher.close()
    important.result(0)
    late = waited[sum(when < 1 for when in taken) : -1]
    assert refused > 150
    assert len(late) > 20
    assert max(late) < 7 * latency  # a batch that runs, one before it, its own, and room for a busy machine
    patient = Batcher(Rows(latency), BatchOptions(1, instances=1, max_queue_time=60))
    futures = [patient.submit(rows(index)) for index in range(60) if not time.sleep(latency / 4)]
    patient.close()
    assert all(future.done() for future in futures)


def test_a_client_that_has_gone_is_not_served(gate: threading.Event) -> None:
    runner = Rows(gate=gate)
    batcher = Batcher(runner, BatchOptions(1, instances=1))
    batcher.submit(rows(0))
    waiting(batcher, 0)
    gone = batcher.submit(rows(1))
    assert gone.cancel()
    gate.set()
    batcher.close()
    assert runner.runs == [1]


def test_closing_runs_what_waits(gate: threading.Event) -> None:
    batcher = Batcher(Rows(gate=gate), BatchOptions(2, instances=1))
    futures = [batcher.submit(rows(index)) for index in range(7)]
    gate.set()
    batcher.close()
    assert all(future.done() for future in futures)
    assert [future.result()["y"][0, 0] for future in futures] == [0, 2, 4, 6, 8, 10, 12]


@pytest.mark.parametrize("counts", [(0, 0), (0, 0, 3, 0), (3, 0, 0)])
def test_empty_requests_are_answered_and_end_no_worker(gate: threading.Event, counts: tuple[int, ...]) -> None:
    batcher = Batcher(Rows(gate=gate), BatchOptions(8, instances=1))
    batcher.submit(rows(1))
    waiting(batcher, 0)
    futures = [batcher.submit({"x": np.ones((count, 4), np.float32)}) for count in counts]
    gate.set()
    assert [len(future.result(5)["y"]) for future in futures] == list(counts)
    assert batcher.submit(rows(2)).result(5)["y"][0, 0] == 4
    batcher.close()


def test_instances_for_which_there_is_no_room_leave_none_behind() -> None:
    made: list[Rows] = []

    class Large(Rows):
        def clone(self) -> Rows:
            if len(made) == 2:
                raise OutOfMemoryError("no room")
            made.append(Rows())
            return made[-1]

    with pytest.raises(OutOfMemoryError):
        Batcher(Large(), BatchOptions(8, instances=3))
    assert [clone.closed for clone in made] == [True, True]


def test_wrong_inputs_never_get_into_the_queue() -> None:
    batcher = Batcher(Rows())
    with pytest.raises(ShapeError):
        batcher.submit({"x": np.zeros((1, 5), np.float32)})
    with pytest.raises(InputError):
        batcher.submit({"z": np.zeros((1, 4), np.float32)})
    batcher.close()
    with pytest.raises(InputError):
        BatchOptions(0)


@pytest.mark.parametrize(
    ("name", "wanted", "rows"), [("static", 8, 1), ("nonzero", 8, 1), ("affine", 8, 8), ("affine", None, 1)]
)
def test_models_without_a_batch_are_not_batched(name: str, wanted: int | None, rows: int) -> None:
    batcher = Batcher(OnnxRuntimeSession(getattr(models, name)()), BatchOptions(wanted))
    assert batcher.max_batch_size == rows
    batcher.close()


def test_many_threads_get_their_own_answers() -> None:
    reference = OnnxRuntimeSession(models.affine())
    batcher = Batcher(reference, BatchOptions(16, instances=2))
    wrong = []

    def ask(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(40):
            x = rng.standard_normal((int(rng.integers(1, 4)), 12)).astype(np.float32)
            actual, wanted = batcher.submit({"x": x}).result(10), reference.run({"x": x})
            for name, array in wanted.items():
                if actual[name].shape != array.shape or not np.allclose(actual[name], array, rtol=1e-4, atol=1e-5):
                    wrong.append(name)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    batcher.close()
    assert not wrong
