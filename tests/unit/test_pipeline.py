from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from tests import models
from tests.fakes import FakeRunner
from trtrun.errors import ClosedError, ExecutionError, InputError, OutOfMemoryError
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.pipeline import Pipeline


def requests(count: int) -> list[np.ndarray]:
    return [np.float32([i, i + 0.5]) for i in range(count)]


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_map_keeps_order(depth: int) -> None:
    with Pipeline(FakeRunner(0.001), depth=depth) as pipeline:
        results = list(pipeline.map(requests(30)))
    assert [r["y"][0] for r in results] == [2 * i for i in range(30)]


def test_map_keeps_depth_requests_in_flight_and_no_more() -> None:
    pulled = 0

    def source() -> Iterator[np.ndarray]:
        nonlocal pulled
        for x in requests(20):
            pulled += 1
            yield x

    with Pipeline(FakeRunner(0.001), depth=3) as pipeline:
        for done, _ in enumerate(pipeline.map(source()), 1):
            assert pulled <= done + 3
    assert pulled == 20


def test_map_works_on_clones_and_leaves_the_runner_alone() -> None:
    runner = FakeRunner()
    with Pipeline(runner, depth=2) as pipeline:
        list(pipeline.map(requests(4)))
    assert runner.requests == 0
    assert not runner.closed
    assert [clone.closed for clone in runner.made] == [False, True, True]


def test_requests_are_given_as_to_the_runner_itself() -> None:
    x = np.float32([3])
    with Pipeline(FakeRunner(), depth=1) as pipeline:
        for future in (pipeline.submit(x), pipeline.submit(x=x), pipeline.submit({"x": x})):
            assert future.result()["y"][0] == 6
        assert asyncio.run(pipeline.run_async(x=x))["y"][0] == 6
        with pytest.raises(InputError, match="twice"):
            pipeline.submit(x, x=x).result()


def test_map_raises_at_the_failing_request_and_frees_its_slots() -> None:
    bad = [*requests(3), np.float32([-7]), *requests(3)]
    with Pipeline(FakeRunner(0.001), depth=2) as pipeline:
        results = []
        with pytest.raises(ExecutionError, match="negative: -7"):
            results.extend(pipeline.map(bad))
        assert len(results) == 3
        assert len(list(pipeline.map(requests(5)))) == 5


def test_map_can_return_exceptions() -> None:
    bad = [np.float32([1]), np.float32([-7]), {"z": np.float32([1])}, np.float32([[1]]), np.float32([4])]
    with Pipeline(FakeRunner(0.001), depth=2) as pipeline:
        first, failed, unknown, rank, last = pipeline.map(bad, return_exceptions=True)
    assert first["y"][0] == 2
    assert last["y"][0] == 8
    assert isinstance(failed, ExecutionError)
    assert isinstance(unknown, InputError)
    assert isinstance(rank, InputError)


def test_map_raises_the_first_error_of_an_endless_source() -> None:
    def camera() -> Iterator[np.ndarray]:
        while True:
            yield np.float32([[1]])

    with Pipeline(FakeRunner(), depth=2) as pipeline:
        with pytest.raises(InputError):
            next(pipeline.map(camera()))
        failing = pipeline.map(camera(), return_exceptions=True)
        assert all(isinstance(next(failing), InputError) for _ in range(10))


@pytest.mark.parametrize("what", ["submit", "map", "close"])
def test_what_waits_for_the_completing_thread_is_refused_in_a_callback(what: str) -> None:
    outcome: list[BaseException] = []
    with Pipeline(FakeRunner(0.01), depth=1) as pipeline:
        calls = {
            "submit": lambda: pipeline.submit(np.float32([2])),
            "map": lambda: list(pipeline.map(requests(2))),
            "close": pipeline.close,
        }

        def again(_: object) -> None:
            try:
                calls[what]()
            except ExecutionError as error:
                outcome.append(error)

        future = pipeline.submit(np.float32([1]))
        future.add_done_callback(again)
        future.result()
        assert pipeline.submit(np.float32([3])).result()["y"][0] == 6
    assert f"{what}() was called from the callback" in str(outcome[0])


def test_a_callback_that_exits_stops_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    with Pipeline(FakeRunner(0.01), depth=2) as pipeline:
        first, second = (pipeline.submit(x) for x in requests(2))
        first.add_done_callback(lambda _: sys.exit())
        assert second.result(5)["y"][0] == 2
        assert pipeline.submit(np.float32([3])).result(5)["y"][0] == 6
    assert "SystemExit" in caplog.text


def test_an_idle_pipeline_keeps_no_arrays() -> None:
    with Pipeline(FakeRunner(), depth=1) as pipeline:
        future = pipeline.submit(np.float32([1]))
        result = weakref.ref(future.result()["y"])
        del future
        until = time.monotonic() + 5
        while result() is not None and time.monotonic() < until:
            time.sleep(0.001)
        assert result() is None


def test_no_memory_for_the_last_slot_closes_the_others() -> None:
    class Large(FakeRunner):
        def clone(self):
            if len(self.made) == 3:
                raise OutOfMemoryError("no room")
            return super().clone()

    runner = Large()
    with pytest.raises(OutOfMemoryError):
        Pipeline(runner, depth=3)
    assert [clone.closed for clone in runner.made] == [False, True, True]


def test_an_interrupt_while_a_request_is_filled_leaves_its_slot_usable() -> None:
    class Kept(FakeRunner):  # in flight until it is collected, as a session
        parallel = 2

        def enqueue(self, inputs):
            if self.in_flight:
                raise ExecutionError("a request is in flight")
            time.sleep(0.05)
            self.in_flight = True
            return Collected(self, 2 * np.array(inputs["x"]))

    class Collected:
        def __init__(self, runner: Kept, y: np.ndarray) -> None:
            self.runner, self.y = runner, y

        def result(self):
            self.runner.in_flight = False
            return {"y": self.y}

    with Pipeline(Kept(), depth=2) as pipeline:
        assert pipeline._fillers is not None

        class Interrupted:
            def __init__(self, launched: Future) -> None:
                self.launched, self.interrupted = launched, False
                self.cancel = launched.cancel

            def result(self):
                if not self.interrupted:
                    self.interrupted = True
                    raise KeyboardInterrupt
                return self.launched.result()

        submit = pipeline._fillers.submit
        pipeline._fillers.submit = lambda *args: Interrupted(submit(*args))  # type: ignore[method-assign,assignment]
        with pytest.raises(KeyboardInterrupt):
            list(pipeline.map(requests(4)))
        pipeline._fillers.submit = submit  # type: ignore[method-assign]
        assert [r["y"][0] for r in pipeline.map(requests(6))] == [2 * i for i in range(6)]


def test_map_abandoned_early_frees_its_slots() -> None:
    with Pipeline(FakeRunner(0.001), depth=2) as pipeline:
        for _ in pipeline.map(requests(10)):
            break
        assert len(list(pipeline.map(requests(5)))) == 5


def test_submit_from_many_threads() -> None:
    failures: list[str] = []
    with Pipeline(FakeRunner(0.001), depth=3) as pipeline:

        def work(base: int) -> None:
            for i in range(base, base + 20):
                y = pipeline.submit(np.float32([i])).result()["y"][0]
                if y != 2 * i:
                    failures.append(f"{i}: {y}")

        threads = [threading.Thread(target=work, args=(100 * t,)) for t in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_submit_waits_when_all_slots_are_taken() -> None:
    with Pipeline(FakeRunner(0.05), depth=2) as pipeline:
        start = time.perf_counter()
        futures = [pipeline.submit(x) for x in requests(4)]
        assert time.perf_counter() - start >= 0.05  # the third had to wait for the first
        assert [f.result()["y"][0] for f in futures] == [0, 2, 4, 6]


def test_bad_request_fails_alone() -> None:
    with Pipeline(FakeRunner(0.001), depth=2) as pipeline:
        good, bad = pipeline.submit(np.float32([1])), pipeline.submit({"x": np.float32([[1]])})
        assert good.result()["y"][0] == 2
        with pytest.raises(InputError):
            bad.result()
        assert pipeline.submit(np.float32([3])).result()["y"][0] == 6


def test_map_and_submit_share_the_slots() -> None:
    with Pipeline(FakeRunner(0.001), depth=1) as pipeline:
        stop = threading.Event()

        def other() -> None:
            while not stop.is_set():
                pipeline.submit(np.float32([5])).result()

        thread = threading.Thread(target=other)
        thread.start()
        try:
            assert [r["y"][0] for r in pipeline.map(requests(20))] == [2 * i for i in range(20)]
        finally:
            stop.set()
            thread.join()


def test_async() -> None:
    async def main() -> None:
        with Pipeline(FakeRunner(0.002), depth=2) as pipeline:
            results = await asyncio.gather(*(pipeline.run_async(x) for x in requests(9)))
            assert [r["y"][0] for r in results] == [2 * i for i in range(9)]
            assert [r["y"][0] async for r in pipeline.map_async(requests(9))] == [2 * i for i in range(9)]

            async def source() -> AsyncIterator[np.ndarray]:
                for x in requests(5):
                    await asyncio.sleep(0.001)
                    yield x

            assert [r["y"][0] async for r in pipeline.map_async(source())] == [2 * i for i in range(5)]
            with pytest.raises(ExecutionError):
                await pipeline.run_async(np.float32([-1]))

    asyncio.run(main())


@pytest.mark.parametrize("depth", [1, 2, None])
def test_async_sources_may_fill_one_array_again_and_again(depth: int | None) -> None:
    def camera() -> Iterator[np.ndarray]:
        frame = np.empty(2, np.float32)
        for i in range(30):
            frame[:] = i
            yield frame

    async def main() -> list[float]:
        with Pipeline(FakeRunner(0.002), depth=depth) as pipeline:
            return [r["y"][0] async for r in pipeline.map_async(camera())]

    assert asyncio.run(main()) == [2 * i for i in range(30)]


def test_async_requests_of_several_gpus_are_filled_at_once() -> None:
    filling, most = 0, 0
    lock = threading.Lock()

    class Several(FakeRunner):
        parallel = 4

        def enqueue(self, inputs):
            nonlocal filling, most
            with lock:
                filling, most = filling + 1, max(most, filling + 1)
            time.sleep(0.02)
            with lock:
                filling -= 1
            return super().enqueue(inputs)

    async def main() -> list[float]:
        with Pipeline(Several(), depth=8) as pipeline:
            return [r["y"][0] async for r in pipeline.map_async(requests(16))]

    assert asyncio.run(main()) == [2 * i for i in range(16)]
    assert most > 1


def test_no_request_of_several_gpus_is_read_after_map_async_has_ended() -> None:
    ended = reading_after = False

    class Several(FakeRunner):
        parallel = 4

        def enqueue(self, inputs):
            nonlocal reading_after
            time.sleep(0.05)
            reading_after |= ended
            return super().enqueue(inputs)

    async def main() -> None:
        nonlocal ended
        with Pipeline(Several(), depth=8) as pipeline:
            results = pipeline.map_async(requests(100))
            await anext(results)
            await results.aclose()
            ended = True
            await asyncio.sleep(0.2)

    asyncio.run(main())
    assert not reading_after


def test_async_results_come_before_the_error_behind_them() -> None:
    async def main() -> None:
        with Pipeline(FakeRunner(0.002), depth=4) as pipeline:
            results = pipeline.map_async([*requests(2), np.float32([[1]]), *requests(1)])
            assert [(await anext(results))["y"][0] for _ in range(2)] == [0, 2]
            with pytest.raises(InputError):
                await anext(results)
            assert len([r async for r in pipeline.map_async(requests(5))]) == 5

    asyncio.run(main())


def test_a_loop_that_ends_while_a_coroutine_waits_costs_no_slot() -> None:
    pipeline = Pipeline(FakeRunner(0.1), depth=1)
    left: list[Any] = []

    async def main() -> None:
        left.append(pipeline.submit(np.float32([1])))
        left.append(asyncio.ensure_future(pipeline.run_async(np.float32([2]))))
        await asyncio.sleep(0.01)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    left[0].result()
    time.sleep(0.05)  # the slot is given to the coroutine
    left.clear()
    gc.collect()
    with ThreadPoolExecutor(1) as threads:
        submitted = threads.submit(pipeline.submit, np.float32([3]))
        try:
            assert submitted.result(5).result(5)["y"][0] == 6
        finally:
            pipeline.close()


def test_cancelled_coroutine_gives_its_place_back() -> None:
    async def main() -> None:
        with Pipeline(FakeRunner(0.05), depth=1) as pipeline:
            first = asyncio.ensure_future(pipeline.run_async(np.float32([1])))
            await asyncio.sleep(0.01)
            second = asyncio.ensure_future(pipeline.run_async(np.float32([2])))
            await asyncio.sleep(0.01)
            second.cancel()
            with pytest.raises(asyncio.CancelledError):
                await second
            assert (await first)["y"][0] == 2
            assert (await pipeline.run_async(np.float32([3])))["y"][0] == 6

    asyncio.run(main())


def test_a_coroutine_that_is_cancelled_before_its_launch_gives_its_slot_back() -> None:
    async def main() -> None:
        loop, gate = asyncio.get_running_loop(), threading.Event()
        loop.set_default_executor(ThreadPoolExecutor(1))
        with Pipeline(FakeRunner(0.001), depth=1) as pipeline:
            await pipeline.run_async(np.float32([1]))
            busy = loop.run_in_executor(None, gate.wait)
            waiting = asyncio.ensure_future(pipeline.run_async(np.float32([2])))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            gate.set()
            await busy
            assert (await asyncio.wait_for(pipeline.run_async(np.float32([3])), 5))["y"][0] == 6

    asyncio.run(main())


def test_close_finishes_what_is_in_flight_and_refuses_more() -> None:
    pipeline = Pipeline(FakeRunner(0.03), depth=2)
    futures = [pipeline.submit(x) for x in requests(2)]
    pipeline.close()
    pipeline.close()
    assert [f.result(0)["y"][0] for f in futures] == [0, 2]
    with pytest.raises(ClosedError):
        pipeline.submit(np.float32([1]))
    with pytest.raises(ClosedError):
        list(pipeline.map(requests(1)))


def test_close_with_a_suspended_map_does_not_hang() -> None:
    pipeline = Pipeline(FakeRunner(0.001), depth=2)
    results = pipeline.map(requests(10))
    next(results)
    pipeline.close()
    with pytest.raises(ClosedError):
        list(results)


def test_close_turns_away_those_who_wait() -> None:
    pipeline = Pipeline(FakeRunner(0.2), depth=1)
    first = pipeline.submit(np.float32([1]))
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            pipeline.submit(np.float32([2]))
        except ClosedError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    pipeline.close()
    thread.join(5)
    assert len(outcome) == 1
    assert first.result(0)["y"][0] == 2


def test_a_bad_first_request_leaves_the_measuring_to_the_next() -> None:
    with Pipeline(FakeRunner(0.001)) as pipeline:
        for bad in (np.float32([[1]]), np.float32([-1])):
            with pytest.raises((InputError, ExecutionError)):
                pipeline.submit(bad).result()
            assert pipeline.depth == 0
        assert pipeline.submit(np.float32([3])).result()["y"][0] == 6
        assert pipeline.depth >= 1


def test_depth_is_measured() -> None:
    runner = FakeRunner(0.01)
    with Pipeline(runner) as pipeline:
        assert pipeline.depth == 0
        assert [r["y"][0] for r in pipeline.map(requests(8))] == [2 * i for i in range(8)]
        assert pipeline.depth >= 6  # a runner that only sleeps gains from every slot
        assert sum(not clone.closed for clone in runner.made) == 1 + pipeline.depth


@pytest.mark.parametrize(("size", "depth"), [(16, 2), (1 << 18, 3)])
def test_slow_requests_are_not_run_hundreds_of_times_first(size: int, depth: int) -> None:
    runner = FakeRunner(0.05)
    with Pipeline(runner) as pipeline:
        assert pipeline.submit(np.ones(size, np.float32)).result()["y"][0] == 2
        assert pipeline.depth == depth
        assert sum(clone.requests for clone in runner.made) <= 13


class _Uneven(FakeRunner):
    """Takes as long as ``seconds`` says of it before each request."""

    def __init__(self, seconds: Callable[[FakeRunner], float], made: list[FakeRunner] | None = None) -> None:
        super().__init__(made=made)
        self.seconds = seconds

    def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
        self.latency = self.seconds(self)
        return super().enqueue(inputs)

    def clone(self) -> FakeRunner:
        return _Uneven(self.seconds, self.made)


@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param(lambda runner: 0.05 if runner.requests == 2 else 0.001, id="one that is held up"),
        # On a GPU the second of a shape may make a context and try ways of running the batch, which takes seconds.
        pytest.param(
            lambda runner: 0.4 if runner.requests < 2 and runner is runner.made[1] else 0.001, id="the first two"
        ),
    ],
)
def test_requests_that_are_slow_once_make_no_slow_model(seconds: Callable[[FakeRunner], float]) -> None:
    runner = _Uneven(seconds)
    with Pipeline(runner) as pipeline:
        pipeline.submit(np.float32([1])).result()
    assert sum(clone.requests for clone in runner.made) > 20  # the depth was measured; which is best is the machine's


@pytest.mark.parametrize(("room", "depth"), [(1, 0), (2, 2), (3, 3)])
def test_slow_large_requests_keep_no_slot_without_memory(room: int, depth: int) -> None:
    class Bounded(FakeRunner):
        def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
            if self not in self.made[1 : 1 + room]:
                raise OutOfMemoryError("no room")
            return super().enqueue(inputs)

    with Pipeline(Bounded(0.05)) as pipeline:
        for _ in range(4):
            request = pipeline.submit(np.ones(1 << 18, np.float32))
            if depth:
                request.result()
            else:
                assert isinstance(request.exception(), OutOfMemoryError)
        assert pipeline.depth == depth


@pytest.mark.parametrize("faster", [True, False])
def test_slow_requests_have_helpers_where_filling_is_what_is_slow(faster: bool) -> None:
    class Filled(FakeRunner):
        def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
            self.latency = 0.02 if self.copy_helpers and faster else 0.05
            return super().enqueue(inputs)

    with Pipeline(Filled()) as pipeline:
        pipeline.submit(np.ones(1 << 18, np.float32)).result()
        assert [clone.copy_helpers for clone in pipeline._clones] == [faster] * 3


@pytest.mark.parametrize(("at_12", "depth"), [(0.994, 16), (0.996, 12)])
def test_the_smallest_depth_within_half_a_percent_of_the_best_is_taken(
    at_12: float, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {1: 0.2, 2: 0.4, 3: 0.6, 4: 0.7, 6: 0.8, 8: 0.9, 12: at_12, 16: 1.0}
    monkeypatch.setattr(Pipeline, "_throughput", lambda self, runners, *_, **__: rates[len(runners)])
    with Pipeline(FakeRunner()) as pipeline:
        pipeline.submit(np.float32([1])).result()
        assert pipeline.depth == depth


@pytest.mark.parametrize("depth", [1, 2, None])
def test_runners_know_whether_requests_of_others_overlap_with_theirs(depth: int | None) -> None:
    runner = FakeRunner()
    with Pipeline(runner, depth=depth) as pipeline:
        pipeline.submit(np.float32([1])).result()
        assert {clone.shares_gpu for clone in pipeline._clones} == {depth != 1}
    assert not runner.shares_gpu


def test_large_requests_take_turns_and_small_ones_do_not() -> None:
    for size, large in ((16, False), (1 << 18, True)):
        with Pipeline(FakeRunner(0.01)) as pipeline:
            pipeline.submit(np.ones(size, np.float32)).result()
            turns = {clone.turns for clone in pipeline._clones}
            assert len(turns) == 1
            (shared,) = turns
            assert (shared is not None) == large
            assert shared is None or pipeline.depth == shared.width + 1


def test_closing_before_the_depth_is_measured_leaves_nothing_open() -> None:
    runner = FakeRunner(0.01)
    pipeline = Pipeline(runner)
    outcome: list[BaseException] = []

    def submit() -> None:
        try:
            pipeline.submit(np.float32([1])).result()
        except ClosedError as error:
            outcome.append(error)

    with pipeline._tune_lock:  # the submitting thread has seen an open pipeline, and waits here
        thread = threading.Thread(target=submit)
        thread.start()
        time.sleep(0.05)
        pipeline._closed = True
    thread.join(5)
    assert len(outcome) == 1
    assert [clone.closed for clone in runner.made] == [False]  # the one that the test made


def test_a_request_that_is_launched_while_the_pipeline_closes_is_answered() -> None:
    class Slow(FakeRunner):
        def enqueue(self, inputs):
            entered.set()
            assert go_on.wait(5)
            return super().enqueue(inputs)

        def check_open(self) -> None:  # what closing the session does to a launch is not what is tested
            pass

    entered, go_on = threading.Event(), threading.Event()
    pipeline = Pipeline(Slow(), depth=1)
    go_on.set()
    assert pipeline.submit(np.float32([3])).result(5)["y"][0] == 6
    entered.clear()
    go_on.clear()
    with ThreadPoolExecutor(2) as threads:
        submitted = threads.submit(pipeline.submit, np.float32([4]))
        assert entered.wait(5)
        pipeline._completers[0].close()  # closing has passed the completers before the launch is through
        go_on.set()
        assert submitted.result(5).result(5)["y"][0] == 8
        pipeline.close()


def test_the_event_loop_goes_on_while_a_first_request_is_launched() -> None:
    class Compiling(FakeRunner):
        def enqueue(self, inputs):
            time.sleep(0.3 if self.requests == 0 else 0.0)
            return super().enqueue(inputs)

    async def main() -> float:
        longest, last = 0.0, time.perf_counter()
        with Pipeline(Compiling(), depth=1) as pipeline:
            request = asyncio.ensure_future(pipeline.run_async(np.float32([1])))
            while not request.done():
                await asyncio.sleep(0.01)
                now = time.perf_counter()
                longest, last = max(longest, now - last), now
            assert (await request)["y"][0] == 2
            for value in range(6):  # launched in the loop from the fourth on
                assert (await pipeline.run_async(np.float32([value])))["y"][0] == 2 * value
        return longest

    assert asyncio.run(main()) < 0.25


def test_lists_of_pictures_count_as_what_they_hold() -> None:
    pictures = [np.zeros((600, 600, 3), np.uint8)] * 2
    with Pipeline(FakeRunner(), depth=4) as pipeline:
        pipeline._tune({"pictures": pictures, "geometries": [None, None]})
        (turns,) = {clone.turns for clone in pipeline._clones}
        assert turns
        assert turns.width == 3


def test_a_given_depth_takes_turns_with_large_requests() -> None:
    for depth, size, width in ((4, 1 << 18, 3), (4, 16, None), (2, 1 << 18, None)):
        with Pipeline(FakeRunner(), depth=depth) as pipeline:
            pipeline.submit(np.ones(size, np.float32)).result()
            assert pipeline.depth == depth
            (turns,) = {clone.turns for clone in pipeline._clones}
            assert (turns and turns.width) == width


def test_a_path_is_no_runner() -> None:
    with pytest.raises(InputError, match=r"what load\(\) returns, got str"):
        Pipeline("model.onnx")  # type: ignore[arg-type]


def test_depth_must_be_positive() -> None:
    with pytest.raises(ValueError, match="depth"):
        Pipeline(FakeRunner(), depth=0)


def test_reference_runner_in_a_pipeline() -> None:
    session = OnnxRuntimeSession(models.affine())
    rng = np.random.default_rng()
    inputs = [rng.standard_normal((1 + i % 4, 12)).astype(np.float32) for i in range(20)]
    with Pipeline(session, depth=3) as pipeline:
        for x, result in zip(inputs, pipeline.map(inputs), strict=True):
            np.testing.assert_array_equal(result["y"], session(x)["y"])
