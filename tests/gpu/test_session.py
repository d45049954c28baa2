"""The TensorRT session against ONNX Runtime on the CPU.

Tolerances are relative errors in the L2 norm. fp16: 2e-3, two units in the last place of fp16 (2^-10) for sums that
are rounded to fp16 more than once. fp32: 1e-3 for one layer. TensorRT computes fp32 products in TF32, which cuts both
operands to a 10-bit mantissa: 2^-11 on average for each. Two layers in sequence measured 1.2e-3, one has half of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import trtrun
from tests.conformance import RunnerConformance
from tests.gpu.conftest import TF32, relative_error
from trtrun import filling
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.session import Session

Open = Callable[..., Session]
Reference = Callable[[str], OnnxRuntimeSession]
TOLERANCE = {np.dtype(np.float16): 2e-3, np.dtype(np.float32): TF32}


def poison(session: Session) -> None:
    """Fill every output buffer with NaN patterns, so that an element nobody wrote is seen."""
    for name in session.outputs:
        memory = session._buffers._host.get(name)
        if memory is not None:
            memory[:] = 0xFF


class TestConformance(RunnerConformance):
    @pytest.fixture
    def runner(self, open_session: Open) -> Open:
        return open_session


class TestConformanceWithoutGraphs(RunnerConformance):
    @pytest.fixture
    def runner(self, open_session: Open) -> Open:
        return lambda name: open_session(name, cuda_graph=False)


@pytest.mark.parametrize("name", ["convolution", "convolution_fp16"])
def test_dynamic_shapes_agree_with_the_reference(name: str, open_session: Open, reference: Reference) -> None:
    session, expected = open_session(name), reference(name)
    rng = np.random.default_rng()
    dtype = session.inputs["x"].dtype
    for _ in range(20):
        shape = (rng.integers(1, 5), 3, rng.integers(8, 65), rng.integers(8, 65))
        # Three requests of a shape take three ways: the common context, a context of its own, its CUDA graph.
        for _ in range(3):
            x = rng.standard_normal(shape).astype(dtype)
            poison(session)
            actual, wanted = session(x), expected(x)
            for output in wanted:
                assert actual[output].shape == wanted[output].shape
                assert relative_error(actual[output], wanted[output]) <= TOLERANCE[dtype]


def test_mixed_shapes_in_turn_stay_right(open_session: Open, reference: Reference) -> None:
    session, expected = open_session("convolution"), reference("convolution")
    rng = np.random.default_rng()
    shapes = [(1, 3, 8, 8), (4, 3, 64, 64), (2, 3, 16, 40)]
    for turn in range(24):
        x = rng.standard_normal(shapes[turn % 3]).astype(np.float32)
        poison(session)
        for output, wanted in expected(x).items():
            assert relative_error(session(x)[output], wanted) <= TF32
    assert session.graph_reason is None
    assert sum(route.settled((1, True, ())) for route in session._routes.values()) == 3


def test_more_shapes_than_graphs_are_kept(open_session: Open, reference: Reference) -> None:
    session, expected = open_session("affine"), reference("affine")
    rng = np.random.default_rng()
    for _ in range(4):
        for batch in range(1, 41):
            x = rng.standard_normal((batch, 12)).astype(np.float32)
            assert relative_error(session(x)["y"], expected(x)["y"]) <= TF32
    assert len(session._routes) <= 16


def test_static_engine_is_captured_after_its_first_request(open_session: Open, reference: Reference) -> None:
    session = open_session("static")
    x = np.random.default_rng().standard_normal((3, 12)).astype(np.float32)
    for _ in range(3):
        poison(session)
        assert relative_error(session(x)["y"], reference("static")(x)["y"]) <= TF32
    assert session._common.settled((1, True, ()))


def test_graphs_can_be_turned_off(open_session: Open) -> None:
    session = open_session("static", cuda_graph=False)
    for _ in range(3):
        session(np.ones((3, 12), np.float32))
    assert not session._common._graphs
    assert "turned off" in (session.graph_reason or "")


def test_shape_tensor_on_the_host(open_session: Open) -> None:
    session = open_session("topk")
    rng = np.random.default_rng()
    for k in (1, 7, 7, 50, 3, 3, 3):
        x = rng.standard_normal((4, 100)).astype(np.float32)
        values = session(x, np.int64([k]))["values"]
        np.testing.assert_array_equal(values, -np.sort(-x, axis=1)[:, :k])
    assert "'k' is read or written on the host" in (session.graph_reason or "")


def test_shape_outside_the_profile_names_the_range(open_session: Open) -> None:
    session = open_session("affine")
    with pytest.raises(trtrun.ShapeError, match=r"65×12.*1×12 to 64×12"):
        session(np.ones((65, 12), np.float32))
    session(np.ones((64, 12), np.float32))


def test_views_share_the_buffer_and_copies_do_not(open_session: Open) -> None:
    session = open_session("static")
    rng = np.random.default_rng()
    a, b = rng.standard_normal((2, 3, 12)).astype(np.float32)
    view = session.run({"x": a}, outputs="view")["y"]
    expected = session(a)["y"]
    np.testing.assert_array_equal(view, expected)
    session(b)
    assert not np.array_equal(view, expected)


def test_staging_is_filled_directly(open_session: Open, reference: Reference) -> None:
    session = open_session("affine")
    assert session.staging["x"].shape == (64, 12)
    rng = np.random.default_rng()
    for batch in (64, 4, 4, 4, 1):
        x = rng.standard_normal((batch, 12)).astype(np.float32)
        view = session.staging.view("x", x.shape)
        np.copyto(view, x)
        assert relative_error(session(view)["y"], reference("affine")(x)["y"]) <= TF32
    np.copyto(session.staging["x"][:4], x4 := rng.standard_normal((4, 12)).astype(np.float32))
    assert relative_error(session(session.staging["x"][:4])["y"], reference("affine")(x4)["y"]) <= TF32
    # A view of the staging memory that is not its leading part is copied, overlapping or not.
    np.copyto(session.staging["x"], x := rng.standard_normal((64, 12)).astype(np.float32))
    expected = reference("affine")(x[1:])["y"]
    assert relative_error(session(session.staging["x"][1:])["y"], expected) <= TF32


def test_whatever_comes_between_requests_that_are_alike(open_session: Open, reference: Reference) -> None:
    session, expected = open_session("several"), reference("several")
    rng = np.random.default_rng()

    def arrays(batch: int = 4) -> dict[str, np.ndarray]:
        return {name: rng.standard_normal((batch, 4)).astype(np.float32) for name in ("images", "size")}

    def agree(actual: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> None:
        wanted = expected.run(given)
        assert list(actual) == list(wanted)
        for name in wanted:
            assert actual[name].shape == wanted[name].shape
            assert relative_error(actual[name], wanted[name]) <= 1e-6  # sums and products of fp32

    def alike() -> None:
        agree(session.run(given := arrays()), given)

    def in_the_other_order() -> None:
        agree(session.run(dict(reversed((given := arrays()).items()))), given)

    def parts_of_others() -> None:
        whole = arrays(8)
        given = {"images": whole["images"][4:], "size": whole["size"][::2]}
        agree(session.run(given), given)

    def staged() -> None:
        given = arrays()
        view = session.staging.view("size", (4, 4))
        np.copyto(view, given["size"])
        agree(session.run({"images": given["images"], "size": view}), given)

    def of_views() -> None:
        given = arrays()
        agree({name: view.copy() for name, view in session.run(given, outputs="view").items()}, given)

    def of_another_shape() -> None:
        agree(session.run(given := arrays(int(rng.integers(1, 9)))), given)

    def larger_memory() -> None:
        session.staging.view("images", (8, 4))[:] = np.nan

    def on_the_gpu() -> None:
        given = arrays()
        results = session.run(given, outputs="device")
        agree({name: result.numpy() for name, result in results.items()}, given)

    def in_flight() -> None:
        pending = session.enqueue(given := arrays())
        agree(pending.result(), given)

    def refused() -> None:
        given = arrays()
        for wrong in (given["size"][:3], given["size"].astype(np.float64), given["size"].ravel()):
            with pytest.raises(trtrun.InputError):
                session.run({"images": given["images"], "size": wrong})
        with pytest.raises(trtrun.InputError):
            session.run({"images": given["images"]})

    def paused() -> None:
        with session.paused():
            pass

    others = (in_the_other_order, parts_of_others, staged, of_views, of_another_shape, larger_memory, on_the_gpu)
    others += (in_flight, refused, paused)
    replayed = 0
    for turn in range(60):
        for _ in range(int(rng.integers(1, 5))):
            poison(session)
            replayed += session._replay is not None
            alike()
        others[turn % len(others)]()
    assert replayed
    results = session.run(arrays())
    kept = {name: result.copy() for name, result in results.items()}
    for _ in range(3):
        alike()
    for name, result in results.items():
        np.testing.assert_array_equal(result, kept[name])
    session.close()
    with pytest.raises(trtrun.ClosedError):
        session.run(arrays())


def test_a_failed_allocation_does_not_leave_graphs_on_freed_memory(
    open_session: Open, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, expected = open_session("affine"), reference("affine")
    rng = np.random.default_rng()
    small, large = (rng.standard_normal((batch, 12)).astype(np.float32) for batch in (2, 64))
    for _ in range(3):
        session(small)

    def refuse(*arguments: object) -> None:
        raise trtrun.OutOfMemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr("trtrun.buffers.DeviceMemory", refuse)
        for _ in range(3):
            with pytest.raises(trtrun.OutOfMemoryError):
                session(large)
    for x in (small, large, small, small):
        assert relative_error(session(x)["y"], expected(x)["y"]) <= TF32


def test_wrong_shapes_are_refused_again_and_again(open_session: Open) -> None:
    session = open_session("topk")
    x, k = np.ones((4, 100), np.float32), np.int64([3])
    for _ in range(4):
        for bad in ((x[:1], k), (x, np.int64([3, 3]))):
            with pytest.raises(trtrun.ShapeError):
                session(*bad)
    assert session(x, k)["values"].shape == (4, 3)
    assert not session._routes


def test_page_locked_arrays_of_the_caller_may_be_changed_at_once(
    open_session: Open, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr("trtrun.session.LARGE", 1 << 10)
    session, expected = open_session("convolution"), reference("convolution")
    pinned = torch.empty(4, 3, 64, 64, pin_memory=True).numpy()
    rng = np.random.default_rng()
    for _ in range(6):
        pinned[:] = x = rng.standard_normal(pinned.shape).astype(np.float32)
        pending = session.enqueue({"x": pinned})
        pinned[:] = 0
        assert relative_error(pending.result()["y"], expected(x)["y"]) <= TF32


@pytest.mark.parametrize("way", [filling.inside, filling.whole, filling.chunks, filling.driver, filling.threads])
def test_every_way_of_a_large_input(
    way: filling.Way, open_session: Open, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sizes that a test can afford."""
    monkeypatch.setattr("trtrun.session.LARGE", 1 << 10)
    monkeypatch.setattr("trtrun.arrays.CopyPool.THRESHOLD", 1 << 10)
    monkeypatch.setattr("trtrun.arrays.CopyPool.CHUNK", 1000)
    monkeypatch.setattr("trtrun.filling._CHUNK", 1000)
    session, expected = open_session("convolution"), reference("convolution")
    monkeypatch.setattr(session, "_way", lambda *_: way)
    rng = np.random.default_rng()
    x = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    for _ in range(8):
        x[:] = rng.standard_normal(x.shape)  # the same memory again: it must have been read when the call returned
        poison(session)
        actual, wanted = session(x), expected(x)
        for output in wanted:
            assert relative_error(actual[output], wanted[output]) <= TF32


def test_the_way_of_large_inputs_is_found_out_once(
    open_session: Open, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trtrun.session.LARGE", 1 << 10)
    session, expected = open_session("convolution"), reference("convolution")
    x = np.random.default_rng().standard_normal((4, 3, 64, 64)).astype(np.float32)
    pending = session.enqueue({"x": x})  # not timed
    pending.result()
    for _ in range(4 * filling._TURNS + 12):
        assert relative_error(session(x)["y"], expected(x)["y"]) <= TF32
    (choice,) = session.engine.choices.values()
    assert choice.settled
    before = {way: len(times) for way, times in choice._times.items()}
    assert set(before.values()) == {filling._TURNS}
    with session.clone() as other:
        for _ in range(5):
            assert relative_error(other(x)["y"], expected(x)["y"]) <= TF32
    assert {way: len(times) for way, times in choice._times.items()} == before


def test_used_from_another_thread_than_the_one_that_loaded(open_session: Open) -> None:
    session = open_session("static")
    x = np.random.default_rng().standard_normal((3, 12)).astype(np.float32)
    results: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: results.extend(session(x)["y"] for _ in range(3)))
    thread.start()
    thread.join()
    assert len(results) == 3
    np.testing.assert_array_equal(results[2], session(x)["y"])


def test_engine_closes_its_sessions(plan: Callable[[str], bytes]) -> None:
    engine = Engine(plan("affine"))
    session = Session(engine)
    engine.close()
    engine.close()
    assert session.closed
    with pytest.raises(trtrun.ClosedError):
        Session(engine)


def test_closing_waits_for_a_session_that_is_being_made(plan: Callable[[str], bytes]) -> None:
    engine = Engine(plan("static"))
    with ThreadPoolExecutor(2) as threads:
        with engine.compile_lock:  # for which making a context waits
            made = threads.submit(Session, engine)
            until = time.monotonic() + 5
            while not engine._sessions and time.monotonic() < until:
                time.sleep(0.001)
            closing = threads.submit(engine.close)
            time.sleep(0.1)
            assert not made.done()
            assert not closing.done()
        session = made.result(10)
        closing.result(10)
    assert engine.closed
    assert session.closed
    with pytest.raises(trtrun.ClosedError):
        session(np.zeros((3, 12), np.float32))


def test_load_closes_the_engine_with_its_last_session(plan: Callable[[str], bytes]) -> None:
    session = trtrun.load(plan("affine"))
    clone = session.clone()
    session.close()
    clone(np.ones((1, 12), np.float32))
    clone.close()
    assert clone.engine.closed


def test_metadata_in_front_of_the_plan(plan: Callable[[str], bytes]) -> None:
    text = b'{"names": {"0": "cat"}, "stride": 32, "task": "detect"}'
    with trtrun.load(len(text).to_bytes(4, "little") + text + plan("affine")) as session:
        assert session.metadata["names"] == {"0": "cat"}
        assert session(np.ones((2, 12), np.float32))["y"].shape == (2, 5)
