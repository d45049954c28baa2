"""GPU arrays in and out through DLPack and __cuda_array_interface__, and in the order of streams."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from cuda.bindings import driver

import trtrun
from tests.gpu.conftest import TF32, relative_error
from trtrun.cuda.check import check
from trtrun.cuda.device_array import DeviceArray, result_pool
from trtrun.cuda.memory import address_of
from trtrun.cuda.stream import create_stream
from trtrun.engine import Engine
from trtrun.session import Session

torch = pytest.importorskip("torch")
Open = Callable[..., Session]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape).astype(np.float32)


def test_torch_tensors_in_numpy_out(open_session: Open, reference: Callable) -> None:
    session = open_session("convolution")
    for shape in [(2, 3, 16, 24)] * 4 + [(1, 3, 8, 8)] * 2:
        x = random(*shape)
        out = session(torch.from_numpy(x).cuda())
        for name, wanted in reference("convolution")(x).items():
            assert relative_error(out[name], wanted) <= TF32


def test_torch_in_torch_out(open_session: Open, reference: Callable) -> None:
    session = open_session("convolution")
    kept = []
    for _ in range(6):
        x = random(2, 3, 32, 32)
        out = session.run({"x": torch.from_numpy(x).cuda()}, outputs="device")
        kept.append((x, {name: torch.from_dlpack(array) for name, array in out.items()}))
    # All results stay valid: none is overwritten by a later request.
    for x, tensors in kept:
        for name, wanted in reference("convolution")(x).items():
            assert tensors[name].is_cuda
            assert tuple(tensors[name].shape) == wanted.shape
            assert relative_error(tensors[name].cpu().numpy(), wanted) <= TF32


def test_work_is_ordered_after_the_producer(open_session: Open) -> None:
    """The input is the end of a long chain of work that is still running when the call begins."""
    session = open_session("static")
    stream = torch.cuda.Stream()
    for _ in range(10):
        with torch.cuda.stream(stream):
            big = torch.randn(4096, 4096, device="cuda")
            for _ in range(20):
                big = torch.tanh(big @ big / 64)
            x = big[:3, :12].contiguous()
            actual = session(x)["y"]
        np.testing.assert_array_equal(actual, session(x.cpu().numpy())["y"])


def test_callers_stream_is_honoured(open_session: Open, reference: Callable) -> None:
    session = open_session("static")
    stream = torch.cuda.Stream()
    x = torch.empty(3, 12, device="cuda")
    session(x)
    results, wanted = [], []
    with torch.cuda.stream(stream):
        for _ in range(50):
            host = random(3, 12)
            x.copy_(torch.from_numpy(host))  # changed in stream order right after the request before
            out = session.run({"x": x}, outputs="device", stream=stream)
            results.append(torch.from_dlpack(out["y"]) * 1)
            wanted.append(reference("static")(host)["y"])
    stream.synchronize()
    for actual, expected in zip(results, wanted, strict=True):
        assert relative_error(actual.cpu().numpy(), expected) <= 2e-3  # of 15 numbers, and the worst of 50


def test_host_and_device_requests_mixed(open_session: Open, reference: Callable) -> None:
    session = open_session("several")
    stream = torch.cuda.Stream()
    for turn in range(24):
        a, b = random(2, 4), random(2, 4)
        on_gpu = {
            "images": torch.from_numpy(a).cuda() if turn & 1 else a,
            "size": torch.from_numpy(b).cuda() if turn & 2 else b,
        }
        options = {"outputs": "device"} if turn & 4 else {}
        if turn & 8:
            options["stream"] = stream
            stream.wait_stream(torch.cuda.current_stream())
        out = session.run(on_gpu, **options)
        for name, wanted in reference("several")(a, b).items():
            actual = out[name].numpy() if turn & 4 else out[name]
            np.testing.assert_allclose(actual, wanted, rtol=1e-5)


def test_cupy_both_ways(open_session: Open) -> None:
    cupy = pytest.importorskip("cupy")
    session = open_session("static")
    x = random(3, 12)
    expected = session(x)["y"]
    for _ in range(3):
        out = session.run({"x": cupy.asarray(x)}, outputs="device")["y"]
        np.testing.assert_array_equal(cupy.asnumpy(cupy.from_dlpack(out)), expected)
        np.testing.assert_array_equal(cupy.asnumpy(cupy.asarray(out)), expected)
        np.testing.assert_array_equal(np.asarray(out), expected)


_FOREIGN = """
import sys
import numpy as np
import trtrun

library, path = sys.argv[1:]
if library == "jax":
    import jax
    import jax.numpy as jnp

    if jax.devices()[0].platform != "gpu":
        print("skip: jax sees no GPU")
        raise SystemExit

    def put(host):
        return jnp.asarray(host)

    def late(host):  # still being computed when it is passed on
        big = jnp.full((4096, 4096), 1 / 4096, jnp.float32)
        for _ in range(20):
            big = big @ big
        return jnp.asarray(host) + 0 * big[0, 0]

    def take(result):
        return np.asarray(jax.dlpack.from_dlpack(result))
else:
    from numba import cuda

    stream = cuda.stream()

    def put(host):
        return cuda.to_device(host)

    def late(host):
        return cuda.to_device(np.ascontiguousarray(host), stream=stream)

    def take(result):
        return cuda.as_cuda_array(result).copy_to_host()

rng = np.random.default_rng()
with trtrun.load(path) as session:
    for turn in range(12):
        x = rng.standard_normal((3, 12)).astype(np.float32)
        expected = session(x)["y"]
        array = (late if turn % 2 else put)(x)
        np.testing.assert_array_equal(session(array)["y"], expected)
        out = session.run({"x": array}, outputs="device")["y"]
        np.testing.assert_array_equal(take(out), expected)
        np.testing.assert_array_equal(out.numpy(), expected)
    xs = rng.standard_normal((9, 3, 12)).astype(np.float32)
    kept = [(x, session.run({"x": put(x)}, outputs="device")["y"]) for x in xs]
    for x, out in kept:
        np.testing.assert_array_equal(take(out), session(x)["y"])
    for wrong in (np.ones((3, 12)).astype(np.int32), np.ones((4, 12), np.float32)):
        try:
            session(put(wrong))
        except trtrun.InputError:
            continue
        raise AssertionError(f"{wrong.dtype} {wrong.shape} was taken")
print("right")
"""


@pytest.mark.parametrize("library", ["jax", "numba"])
def test_jax_and_numba_both_ways(library: str, plan: Callable[[str], bytes], tmp_path: Path) -> None:
    """In a process of their own: JAX takes most of the GPU's memory for itself unless it is told not to."""
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    path = tmp_path / "static.engine"
    path.write_bytes(plan("static"))
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-c", _FOREIGN, library, str(path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if done.stdout.startswith("skip"):
        pytest.skip(done.stdout)
    assert done.stdout.split()[-1] == "right"


def test_cuda_array_interface_alone(open_session: Open) -> None:
    session = open_session("static")
    tensor = torch.from_numpy(x := random(3, 12)).cuda()
    torch.cuda.synchronize()

    class Plain:
        __cuda_array_interface__ = tensor.__cuda_array_interface__

    np.testing.assert_array_equal(session(Plain())["y"], session(x)["y"])


def test_wrong_gpu_arrays_are_refused(open_session: Open) -> None:
    session = open_session("static")
    with pytest.raises(trtrun.DtypeError, match="GPU array"):
        session(torch.zeros(3, 12, device="cuda", dtype=torch.float64))
    with pytest.raises(trtrun.ShapeError):
        session(torch.zeros(4, 12, device="cuda"))
    with pytest.raises(trtrun.InputError, match="contiguous"):
        session(torch.zeros(12, 3, device="cuda").t())
    assert session(torch.zeros(3, 12))["y"].shape == (3, 5)  # a torch tensor on the host is a host array


def test_device_outputs_outlive_their_session(open_session: Open) -> None:
    session = open_session("static")
    x = random(3, 12)
    expected = session(x)["y"]
    out = session.run({"x": x}, outputs="device")["y"]
    session.close()
    np.testing.assert_array_equal(out.numpy(), expected)
    np.testing.assert_array_equal(torch.from_dlpack(out).cpu().numpy(), expected)
    out.close()
    with pytest.raises(trtrun.ClosedError):
        out.numpy()


def test_a_result_is_freed_on_no_stream_of_a_session_that_read_it(plan: Callable[[str], bytes]) -> None:
    """That session may be closed before: its stream would be gone."""

    class Watched:
        def __init__(self, buffer: object) -> None:
            self.buffer, self.streams = buffer, []

        def __getattr__(self, name: str) -> object:
            return getattr(self.buffer, name)

        def set_deallocation_stream(self, stream: object) -> None:
            self.streams.append(stream)

    with Engine(plan("static")) as engine, Session(engine) as session, Session(engine) as reader:
        x, first = random(3, 12), create_stream(engine.device)
        array = DeviceArray(engine.device, result_pool(engine.device), (3, 12), np.dtype(np.float32), first)
        check(driver.cuMemcpyHtoD(array.address, address_of(x), x.nbytes), "fill")
        array.__dlpack__(stream=-1)  # makes the view while the buffer is one
        array._buffer = watched = Watched(array._buffer)  # type: ignore[assignment]
        wanted = session(x)["y"]
        np.testing.assert_array_equal(reader.run({"x": array})["y"], wanted)
        np.testing.assert_array_equal(reader.enqueue({"x": array}).result()["y"], wanted)
        out = torch.empty(3, 5, device="cuda")
        with reader.bind({"x": array}, {"y": out}) as call:
            np.testing.assert_array_equal(call()["y"].cpu().numpy(), wanted)
        assert watched.streams == []
        torch.from_dlpack(array)  # a consumer that nobody keeps it for
        assert len(watched.streams) == 1


def test_a_request_that_fails_half_way_leaves_nothing_running(
    open_session: Open, reference: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = open_session("convolution")
    x = random(4, 3, 64, 64)
    stream = torch.cuda.Stream()
    for outputs, name in (("device", "DeviceArray"), ("copy", "copy_out")):
        for _ in range(3):
            session.run({"x": x})
        with torch.cuda.stream(stream):
            big = torch.randn(8192, 8192, device="cuda")
            for _ in range(10):
                big = torch.tanh(big @ big / 90)  # the request is enqueued behind tens of milliseconds of this
        with monkeypatch.context() as patched:
            patched.setattr(f"trtrun.session.{name}", _out_of_memory)
            with pytest.raises(MemoryError):
                session.run({"x": x}, outputs=outputs, stream=stream)
        assert stream.query()
        for key, wanted in reference("convolution")(x).items():
            assert relative_error(session.run({"x": x})[key], wanted) <= TF32


def _out_of_memory(*_: object) -> None:
    raise MemoryError("as if")


def test_streams_that_are_gone(open_session: Open, reference: Callable) -> None:
    """A caller's stream may be destroyed after its request, and another may get its number."""
    session = open_session("static")
    x = torch.from_numpy(random(3, 12)).cuda()
    wanted = reference("static")(x.cpu().numpy())["y"]
    device = session.engine.device
    for by_number in (True, False):
        for _ in range(20):
            stream = create_stream(device)
            named = int(stream.handle) if by_number else stream
            results = [session.run({"x": x}, outputs="device", stream=named) for _ in range(3)]
            tensor = torch.from_dlpack(results[2]["y"])
            torch.cuda.synchronize()
            if by_number:
                del results
                assert relative_error(tensor.cpu().numpy(), wanted) <= TF32
                with session.paused():
                    pass
                stream.close()
            else:
                del results, stream, named  # what is left of the request keeps its stream
            assert relative_error(tensor.cpu().numpy(), wanted) <= TF32
            with session.paused():
                pass
            del tensor
    assert relative_error(session.run({"x": x})["y"], wanted) <= TF32


@pytest.mark.parametrize("name", ["static", "convolution"])
@pytest.mark.parametrize("count", [3, 20])
def test_addresses_that_come_back_are_part_of_the_graph(
    name: str, count: int, open_session: Open, reference: Callable
) -> None:
    """Whatever is captured, a request reads the tensor that it was given, as it is then."""
    session = open_session(name)
    shape = (3, 12) if name == "static" else (2, 3, 32, 32)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        tensors = [torch.empty(shape, device="cuda") for _ in range(count)]
        tensors[1] = torch.empty(tensors[1].numel() + 3, device="cuda")[3:].view(shape)  # no engine reads it in place
        for turn in range(6 * count):
            x = random(*shape)
            tensor = tensors[turn % count if turn % 5 else 0]
            tensor.copy_(torch.from_numpy(x))
            options = {"outputs": "device", "stream": stream} if turn % 3 else {}
            out = session.run({"x": tensor}, **options)
            for key, wanted in reference(name)(x).items():
                actual = out[key].numpy() if turn % 3 else out[key]
                assert relative_error(actual, wanted) <= 5e-3
    (route,) = session._routes.values()
    assert 0 < sum(bool(steps[2]) for steps in route._graphs) <= 16
