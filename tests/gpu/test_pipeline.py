"""Answers stay right at full speed: distinct random inputs, several threads, mixed shapes, GPU and host arrays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtrun
from tests import models
from tests.gpu.conftest import TF32, memcpy_nodes, relative_error
from trtrun.cuda.event import Event
from trtrun.cuda.memory import DeviceMemory, fill_async
from trtrun.cuda.stream import create_stream
from trtrun.pipeline import Pipeline
from trtrun.route import CAPTURE_ATTEMPTS
from trtrun.session import Session
from trtrun.turns import Turns

Open = Callable[..., Session]


def inputs(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng()
    shapes = [(1, 3, 8, 8), (2, 3, 32, 32), (4, 3, 64, 64), (3, 3, 17, 40)]
    return [rng.standard_normal(shapes[int(rng.integers(4))]).astype(np.float32) for _ in range(count)]


def check(x: np.ndarray, out: dict[str, np.ndarray], reference: Callable) -> None:
    for name, wanted in reference("convolution")(x).items():
        assert relative_error(out[name], wanted) <= TF32


@pytest.mark.parametrize("depth", [1, 3, None])
def test_map(depth: int | None, open_session: Open, reference: Callable) -> None:
    batches = inputs(60)
    with Pipeline(open_session("convolution"), depth=depth) as pipeline:
        for x, out in zip(batches, pipeline.map(batches), strict=True):
            check(x, out, reference)
        assert pipeline.depth == depth or depth is None


@pytest.mark.parametrize(("depth", "copies"), [(1, 0), (2, 2)])
def test_requests_that_overlap_leave_the_cores_to_what_computes(
    depth: int, copies: int, open_session: Open, reference: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An input of 0.2 MB and an output of 0.5 MB are copied by the copy engines, and a tiny output is not."""
    captured, counts = trtrun.route.capture, []

    def counting(stream: Any, enqueue: Any, amend: Any, **options: Any) -> Any:
        return captured(stream, enqueue, lambda graph: (counts.append(memcpy_nodes(graph)), amend(graph)), **options)

    monkeypatch.setattr("trtrun.route.capture", counting)
    x = np.random.default_rng().standard_normal((4, 3, 64, 64)).astype(np.float32)
    with Pipeline(open_session("convolution"), depth=depth) as pipeline:
        for out in pipeline.map([x] * 4 * depth):
            check(x, out, reference)
    # Beside the engine alone, which is captured to see whether its kernels run in order.
    assert sorted(counts)[-depth:] == [copies] * depth
    assert set(counts) <= {0, copies}


def test_many_threads_with_host_and_gpu_arrays(open_session: Open, reference: Callable) -> None:
    torch = pytest.importorskip("torch")
    failures: list[BaseException] = []
    with Pipeline(open_session("convolution"), depth=4) as pipeline:

        def work(thread: int) -> None:
            try:
                for i, x in enumerate(inputs(20)):
                    array = torch.from_numpy(x).cuda() if (i + thread) % 2 else x
                    check(x, pipeline.submit(array).result(), reference)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def poison(session: Session) -> None:
    """Fill with NaN what the outputs are written to: page-locked memory, and device memory in the stream's order."""
    with session._device:
        for name in session.outputs:
            memory = session._buffers._host.get(name)
            if memory is not None:
                memory[:] = 0xFF
            on_gpu = session._buffers._on_gpu.get(name)
            if on_gpu is not None and on_gpu.nbytes:
                fill_async(on_gpu.address, 0xFF, on_gpu.nbytes, session._handle)


def test_full_speed_with_mixed_shapes_and_poisoned_outputs(
    open_session: Open, reference: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipeline and a session of one engine, fourteen shapes, arrays on the host and on the GPU, eight threads."""
    torch = pytest.importorskip("torch")
    poisoned = 0
    enqueue = Session.enqueue

    def enqueue_poisoned(self: Session, inputs: dict[str, object]) -> object:
        nonlocal poisoned
        if self._buffers._host.keys() & self.outputs.keys():  # a session in use: the one before was collected
            poison(self)
            poisoned += 1
        return enqueue(self, inputs)

    monkeypatch.setattr(Session, "enqueue", enqueue_poisoned)
    rng = np.random.default_rng()
    shapes = [(1, 3, 8, 8), (4, 3, 64, 64)]
    while len(shapes) < 14:
        n, h, w = rng.integers((1, 8, 8), (5, 65, 65))
        shapes = list(dict.fromkeys([*shapes, (int(n), 3, int(h), int(w))]))
    seeds = rng.integers(1 << 30, size=8)
    failures: list[BaseException] = []
    done: list[tuple[int, ...]] = []
    session = open_session("convolution")
    lock = threading.Lock()  # of the session that two threads poison and use
    with Pipeline(session, depth=4) as pipeline:

        def work(thread: int) -> None:
            own = np.random.default_rng(seeds[thread])
            try:
                for turn in range(60):
                    shape = shapes[own.integers(len(shapes))]
                    x = own.standard_normal(shape).astype(np.float32)
                    array = torch.from_numpy(x).cuda() if (turn + thread) % 2 else x
                    if thread < 6:
                        out = pipeline.submit(array).result()
                    else:
                        with lock:
                            poison(session)
                            out = session.run({"x": array}, outputs="device" if turn % 4 < 2 else "copy")
                    results = {
                        name: value if isinstance(value, np.ndarray) else value.numpy() for name, value in out.items()
                    }
                    for name, wanted in reference("convolution")(x).items():
                        assert results[name].shape == wanted.shape
                        assert relative_error(results[name], wanted) <= TF32
                    done.append(shape)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures, failures
    assert len(done) == 8 * 60
    assert set(done) == set(shapes)
    assert poisoned > 200


def test_poison_is_seen_where_nothing_is_written(open_session: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: a request whose engine does not run returns the poison."""
    session = open_session("convolution", cuda_graph=False)
    x = inputs(1)[0]
    session(x)
    monkeypatch.setattr(type(session._common), "execute", lambda self, stream: None)
    poison(session)
    assert all(np.isnan(out).all() for out in session(x).values())


def test_bad_request_fails_alone(open_session: Open, reference: Callable) -> None:
    batches = inputs(12)
    mixed = [*batches[:5], np.ones((9, 3, 8, 8), np.float32), *batches[5:9], np.ones(3), *batches[9:]]
    with Pipeline(open_session("convolution"), depth=3) as pipeline:
        results = list(pipeline.map(mixed, return_exceptions=True))
    assert isinstance(results.pop(10), trtrun.InputError)
    assert isinstance(results.pop(5), trtrun.ShapeError)
    for x, out in zip(batches, results, strict=True):
        check(x, out, reference)


def test_asyncio(open_session: Open, reference: Callable) -> None:
    batches = inputs(20)

    async def main() -> None:
        with Pipeline(open_session("convolution"), depth=3) as pipeline:
            for x, out in zip(batches, await asyncio.gather(*map(pipeline.run_async, batches)), strict=True):
                check(x, out, reference)
            results = [out async for out in pipeline.map_async(batches)]
            for x, out in zip(batches, results, strict=True):
                check(x, out, reference)

    asyncio.run(main())


def test_capture_in_one_thread_while_others_run_and_allocate(open_session: Open, reference: Callable) -> None:
    """Thread-local capture mode: a capture must not fail, nor fail others, while the process uses CUDA elsewhere.

    Synchronizing the whole device is the exception: CUDA forbids it while any stream captures.
    """
    torch = pytest.importorskip("torch")
    stop = threading.Event()
    failures: list[BaseException] = []

    def allocate() -> None:
        try:
            while not stop.is_set():
                torch.empty(1 << 20, device="cuda").fill_(1)
                torch.cuda.current_stream().synchronize()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=allocate)
    thread.start()
    try:
        for _ in range(3):
            session = open_session("convolution")
            for x in inputs(20):
                check(x, session(x), reference)
            assert session.graph_reason is None
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_a_spoiled_capture_is_tried_again(open_session: Open, reference: Callable) -> None:
    session = open_session("convolution")
    x = inputs(1)[0]
    for _ in range(2):
        session(x)
    (route,) = session._routes.values()
    route.drop_graphs()
    execute, route.execute = route.execute, lambda stream: (_ for _ in ()).throw(trtrun.ExecutionError("spoiled"))
    route._warm = True
    route.capture((1, True, ()))
    route.execute = execute
    assert not route.settled((1, True, ()))
    for _ in range(2):
        check(x, session(x), reference)
    assert route.settled((1, True, ()))
    assert session.graph_reason is None


def test_a_shape_that_cannot_be_captured_says_why(open_session: Open, reference: Callable) -> None:
    session = open_session("convolution")
    x = inputs(1)[0]
    for _ in range(2):
        session(x)
    assert session.graph_reason is None
    (route,) = session._routes.values()
    route.drop_graphs()
    execute, route.execute = route.execute, lambda stream: (_ for _ in ()).throw(trtrun.ExecutionError("spoiled"))
    route._warm = True
    for _ in range(CAPTURE_ATTEMPTS):
        route.capture((1, True, ()))
    route.execute = execute
    assert "spoiled" in (session.graph_reason or "")
    for _ in range(2):
        check(x, session(x), reference)


def test_large_requests_take_turns(tmp_path: Path) -> None:
    """Answers are right while requests wait for each other on the GPU, from one thread and from several."""
    rng = np.random.default_rng()
    batches = [rng.standard_normal((rows, 3, 256, 256)).astype(np.float32) for rows in (2, 4, 3, 4) * 5]
    path = tmp_path / "convolution.onnx"
    path.write_bytes(models.convolution())
    shapes = trtrun.ShapeRange((1, 3, 256, 256), (4, 3, 256, 256), (4, 3, 256, 256))
    reference = trtrun.OnnxRuntimeSession(path)
    expected = [reference(x) for x in batches]
    options = trtrun.BuildOptions(profiles=({"x": shapes},))
    with trtrun.load(path, build_options=options) as session, Pipeline(session) as pipeline:
        for _ in range(3):
            for out, wanted in zip(pipeline.map(batches), expected, strict=True):
                assert all(relative_error(out[name], wanted[name]) <= TF32 for name in wanted)
        (turns,) = {clone.turns for clone in pipeline._clones}
        assert turns is not None
        assert pipeline.depth == turns.width + 1
        assert len(turns._last) == turns.width
        with ThreadPoolExecutor(6) as threads:
            for future, wanted in zip([threads.submit(pipeline.submit, x) for x in batches], expected, strict=True):
                out = future.result().result()
                assert all(relative_error(out[name], wanted[name]) <= TF32 for name in wanted)


def test_turns_let_so_many_requests_compute_at_once(open_session: Open) -> None:
    """The third of three with two turns starts when the first is done, whatever its stream has to do."""
    session = open_session("convolution")
    with session._device:
        turns = Turns(2)
        streams = [create_stream(session._device) for _ in range(3)]
        memory = DeviceMemory(session._device, 1 << 28)
        target = memory.address
        begun, ended = ([Event(session._device, spin=True) for _ in range(3)] for _ in range(2))
        for stream, begin, end in zip(streams, begun, ended, strict=True):

            def launch(stream=stream, begin=begin, end=end) -> None:
                begin.record(int(stream.handle))
                for _ in range(20):
                    fill_async(target, 1, 1 << 28, int(stream.handle))
                end.record(int(stream.handle))

            turns.launch(stream, launch)
        for event in ended:
            event.synchronize()
        assert begun[1].since(begun[0]) < ended[0].since(begun[0])
        assert begun[2].since(begun[0]) >= ended[0].since(begun[0])
        memory.close()


def test_a_gpu_array_may_be_changed_as_soon_as_it_was_submitted(open_session: Open, reference: Callable) -> None:
    """One tensor for all requests, overwritten after each, on a stream that is busy; several are in flight."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng()
    arrays = [rng.standard_normal((4, 3, 64, 64)).astype(np.float32) for _ in range(24)]
    with Pipeline(open_session("convolution"), depth=3) as pipeline, torch.cuda.stream(torch.cuda.Stream()):
        turns = Turns(1)
        for clone in pipeline._clones:
            clone.turns = turns
        tensor = torch.empty((4, 3, 64, 64), device="cuda")
        pending = []
        for x in arrays:
            torch.cuda._sleep(500_000)
            tensor.copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
            pending.append(pipeline.submit({"x": tensor}))
            tensor.fill_(torch.nan)
        for x, future in zip(arrays, pending, strict=True):
            check(x, future.result(), reference)


@pytest.mark.parametrize("depth", [2, None])
def test_gpu_arrays_of_a_coroutine_follow_the_stream_of_its_thread(
    depth: int | None, open_session: Open, reference: Callable
) -> None:
    """Requests with GPU arrays are launched in another thread, where another stream is current."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng()
    arrays = [rng.standard_normal((4, 3, 64, 64)).astype(np.float32) for _ in range(12)]
    tensor = torch.empty((4, 3, 64, 64), device="cuda")
    torch.cuda.synchronize()

    def filled() -> Iterator[dict[str, object]]:
        for x in arrays:
            torch.cuda._sleep(20_000_000)  # some 10 ms
            tensor.copy_(torch.from_numpy(x).pin_memory(), non_blocking=True)
            yield {"x": tensor}
            tensor.fill_(torch.nan)

    async def main() -> None:
        with Pipeline(open_session("convolution"), depth=depth) as pipeline:
            for x, request in zip(arrays, filled(), strict=True):
                check(x, await pipeline.run_async(request), reference)
            results = [result async for result in pipeline.map_async(filled())]
            for x, result in zip(arrays, results, strict=True):
                check(x, result, reference)

    with torch.cuda.stream(torch.cuda.Stream()):
        asyncio.run(main())
