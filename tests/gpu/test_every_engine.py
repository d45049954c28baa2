"""What engines in the wild contain: dtypes, formats, shapes, profiles, state, refit, streaming, debug tensors."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import psutil
import pytest

import trtrun
from tests import models
from tests.gpu.conftest import TF32, memory_in_use, relative_error
from trtrun import plan_reader
from trtrun.benchmark.layers import layers_html, layers_text, profile_layers
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.bundle import write_bundle
from trtrun.cuda.device import Device, gpu_count
from trtrun.debug_tensors import debug_tensors
from trtrun.engine import Engine
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.pipeline import Pipeline
from trtrun.plan import header_of
from trtrun.route import Route
from trtrun.splitting import SplitRunner

if gpu_count() == 0:
    pytest.skip("no GPU", allow_module_level=True)

import tensorrt_rtx as trt

from tests import networks

RNG = np.random.default_rng()
DTYPES = {
    trt.float32: np.float32,
    trt.float16: np.float16,
    trt.bfloat16: ml_dtypes.bfloat16,
    trt.fp8: ml_dtypes.float8_e4m3fn,
    trt.int64: np.int64,
    trt.int32: np.int32,
    trt.int8: np.int8,
    trt.uint8: np.uint8,
    trt.bool: np.bool_,
    trt.int4: ml_dtypes.int4,
    trt.fp4: ml_dtypes.float4_e2m1fn,
}


@pytest.fixture
def load() -> Iterator[object]:
    opened: list[trtrun.Runner] = []

    def load(plan: bytes, **options: object) -> trtrun.Runner:
        opened.append(trtrun.load(plan, **options))
        return opened[-1]

    yield load
    for runner in opened:
        runner.close()


def values(dtype: type, *shape: int) -> np.ndarray:
    return RNG.integers(
        0 if np.dtype(dtype).kind in "bu" else -6, 2 if np.dtype(dtype).kind == "b" else 7, shape
    ).astype(dtype)


def same(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual.astype(np.float64), expected.astype(np.float64))


@pytest.mark.parametrize("kind", list(DTYPES), ids=lambda kind: kind.name)
def test_dtypes(kind: object, load) -> None:
    dtype = DTYPES[kind]
    session = load(networks.identity(kind, (5, 7)))
    assert session.inputs["x"].dtype == np.dtype(dtype)
    for _ in range(4):
        x = values(dtype, 5, 7)
        same(session(x)["y"], x)
        same(session.run({"x": x}, outputs="view")["y"], x)


@pytest.mark.parametrize("kind", list(DTYPES), ids=lambda kind: kind.name)
def test_torch_exchanges_the_dtypes_it_knows(kind: object, load) -> None:
    torch = pytest.importorskip("torch")
    name = np.dtype(DTYPES[kind]).name
    session = load(networks.identity(kind, (4, 8)))
    if name in ("int4", "float4_e2m1fn"):
        with pytest.raises(trtrun.InputError, match="row-major"):
            session(torch.zeros(4, 8, dtype=torch.int8, device="cuda"))
        with pytest.raises(trtrun.InputError, match="row-major"):
            session.run({"x": values(DTYPES[kind], 4, 8)}, outputs="device")
        return
    dtype = getattr(torch, name)
    x = torch.randint(0, 2, (4, 8), device="cuda").to(dtype)
    for _ in range(3):
        out = session.run({"x": x}, outputs="device")["y"]
        back = torch.from_dlpack(out)
        assert back.dtype == dtype
        assert torch.equal(back.view(torch.uint8), x.view(torch.uint8))


FORMATS = [
    (trt.float32, trt.TensorFormat.HWC, (2, 3, 4, 5)),
    (trt.float16, trt.TensorFormat.HWC8, (2, 3, 4, 5)),
    (trt.float16, trt.TensorFormat.HWC16, (2, 20, 4, 5)),
    (trt.float16, trt.TensorFormat.CHW2, (2, 5, 4, 5)),
    (trt.float16, trt.TensorFormat.CHW4, (2, 6, 4, 5)),
    (trt.int8, trt.TensorFormat.CHW4, (2, 6, 4, 5)),
    (trt.float32, trt.TensorFormat.CHW32, (2, 40, 4, 5)),
    (trt.int8, trt.TensorFormat.CHW32, (2, 40, 4, 5)),
]


def test_capsules_that_nobody_takes_and_exceptions_on_their_way(load) -> None:
    torch = pytest.importorskip("torch")
    session = load(networks.identity(trt.bfloat16))
    x = torch.ones(4, 6, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        out = session.run({"x": x}, outputs="device")["y"]

        def fail(array: object) -> None:
            capsule = array.__dlpack__()
            raise KeyError(f"while {type(capsule).__name__} is held")

        with pytest.raises(KeyError):
            fail(out)
        assert torch.equal(torch.from_dlpack(out), x)


@pytest.mark.parametrize(("kind", "form", "shape"), FORMATS, ids=lambda value: getattr(value, "name", str(value)))
def test_formats_are_converted(kind: object, form: object, shape: tuple[int, ...], load) -> None:
    session = load(networks.doubled(kind, shape, 1 << int(form)))
    assert session.inputs["x"].format
    for _ in range(4):
        x = values(DTYPES[kind], *shape)
        for name in session.outputs:
            session._buffers._host.get(name, np.empty(0, np.uint8))[:] = 0xFF
        same(session(x)["y"], x + x)
    with pytest.raises(trtrun.InputError):
        session.staging["x"]


def test_dimensions_of_size_zero_and_scalars(load) -> None:
    def define(network: object) -> None:
        x = network.add_input("x", trt.float32, (-1, 4))
        s = network.add_input("s", trt.float32, ())
        grown = network.add_shuffle(s)
        grown.reshape_dims = (1, 1)
        y = network.add_elementwise(x, grown.get_output(0), trt.ElementWiseOperation.PROD).get_output(0)
        networks.output(network, y, "y")
        double = network.add_elementwise(s, s, trt.ElementWiseOperation.SUM).get_output(0)
        networks.output(network, double, "d")

    session = load(networks.build(define, profiles=[{"x": ((0, 4), (2, 4), (8, 4))}]))
    for rows in (0, 3, 0, 0, 0, 8, 3, 3):
        x, s = RNG.standard_normal((rows, 4)).astype(np.float32), np.float32(RNG.standard_normal())
        out = session(x, s)
        np.testing.assert_allclose(out["y"], x * s, rtol=1e-6)
        assert out["d"].shape == ()
        np.testing.assert_allclose(out["d"], 2 * s, rtol=1e-6)
        device = session.run({"x": x, "s": s}, outputs="device")
        assert device["y"].shape == (rows, 4)
        np.testing.assert_allclose(device["y"].numpy(), x * s, rtol=1e-6)


def test_a_batch_beyond_the_profile_is_split_on_request(load) -> None:
    plan = build_plan(models.affine(), BuildOptions(profiles=parse_shapes(["x=2x12:4x12:8x12"])))
    reference = OnnxRuntimeSession(models.affine())
    with pytest.raises(trtrun.ShapeError, match=r"2×12 to 8×12"):
        load(plan)(np.ones((9, 12), np.float32))
    session = load(plan, split_batches=True)
    assert isinstance(session, SplitRunner)
    for batch in (1, 8, 9, 17, 64, 101, 5):
        x = RNG.standard_normal((batch, 12)).astype(np.float32)
        assert relative_error(session(x)["y"], reference(x)["y"]) <= TF32
    fixed = load(build_plan(models.affine(batch=3)), split_batches=True)
    for batch in (3, 1, 7):
        x = RNG.standard_normal((batch, 12)).astype(np.float32)
        assert relative_error(fixed(x)["y"], reference(x)["y"]) <= 2e-3


def test_profiles_are_chosen_or_pinned(load) -> None:
    plan = networks.several_profiles()
    session = load(plan)
    for rows in (1, 150, 3, 64, 150, 3, 3, 3, 100, 100, 100):
        x = RNG.standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(session(x)["y"], x + x)
    routes = {key[0][0]: route._contexts[0].active_optimization_profile for key, route in session._routes.items()}
    assert routes[3] == 0
    assert routes[100] == 2
    wide = load(plan, profile=1)
    for rows in (3, 3, 3, 64):
        x = RNG.standard_normal((rows, 4)).astype(np.float32)
        np.testing.assert_allclose(wide(x)["y"], x + x)
    assert next(iter(wide._routes.values()))._contexts[0].active_optimization_profile == 1
    with pytest.raises(trtrun.ShapeError, match="profile 1, pinned, does not hold"):
        wide(np.ones((100, 4), np.float32))
    with pytest.raises(trtrun.ShapeError, match="no optimization profile 7"):
        load(plan, profile=7)


def test_profiles_switch_under_the_pipeline(load) -> None:
    session = load(networks.several_profiles())
    xs = [RNG.standard_normal((rows, 4)).astype(np.float32) for rows in RNG.choice([1, 4, 30, 64, 100, 200], 300)]
    with Pipeline(session, depth=4) as pipeline:
        for x, out in zip(xs, pipeline.map(xs), strict=True):
            np.testing.assert_allclose(out["y"], x + x)


def test_outputs_in_memory_from_the_allocator(load, monkeypatch: pytest.MonkeyPatch) -> None:
    """No operator of TensorRT-RTX 1.6 has a data-dependent shape, so an output of a known one is treated as such.

    TensorRT asks the allocator for memory and tells it the shape all the same.
    """
    monkeypatch.setattr(Route, "_output_shape", lambda self, context, name: (-1, 4))
    session = load(networks.several_profiles())
    device = Device()
    for round_of in range(2):
        before = memory_in_use(device)
        for rows in (3, 1, 64, 2, 64, 200, 100, 3, 3, 3) * 10:
            x = RNG.standard_normal((rows, 4)).astype(np.float32)
            np.testing.assert_array_equal(session(x)["y"], x + x)
            on_gpu = session.run({"x": x}, outputs="device")["y"]
            assert on_gpu.shape == (rows, 4)
            np.testing.assert_array_equal(on_gpu.numpy(), x + x)
            del on_gpu
        if round_of:
            assert memory_in_use(device) <= before  # grown once, then reused
    assert "known only after running" in (session.graph_reason or "")


def test_shape_tensors_as_outputs(load) -> None:
    session = load(networks.shape_of())
    for shape in ((2, 3), (16, 1), (2, 3), (2, 3)):
        x = RNG.standard_normal(shape).astype(np.float32)
        out = session(x)
        np.testing.assert_array_equal(out["y"], x)
        np.testing.assert_array_equal(out["size"], shape)


# State


def test_state_that_grows(load) -> None:
    session = load(networks.growing(16))
    addresses = set()
    with session.state({"past": "present"}) as sequence:
        for _ in range(2):
            rows = np.zeros((0, 4), np.float32)
            for step in range(17):
                if step:
                    np.testing.assert_array_equal(sequence.read_state()["past"], rows)
                new = RNG.standard_normal((1, 4)).astype(np.float32)
                rows = np.concatenate([rows, new])
                np.testing.assert_allclose(sequence(new)["total"][0], rows.sum(0), rtol=1e-4, atol=1e-5)
                buffers = sequence._buffers
                addresses.add((buffers.on_gpu("past", 0), buffers.on_gpu("present", 0) if step < 16 else 0))
            assert not {"past", "present"} & buffers._host.keys()
            # The 17 rows were summed up and not fed back: the memory of past ends at 16, as the profile does.
            for use in (lambda new=new: sequence(new), sequence.read_state):
                with pytest.raises(trtrun.ShapeError):
                    use()
            sequence.reset()
    assert len({past for past, _ in addresses}) == 1
    assert len(addresses) <= 3  # present moved only for the 17th row


def test_state_whose_shape_only_the_run_decides_is_refused(load, monkeypatch: pytest.MonkeyPatch) -> None:
    session = load(networks.recurrent())
    monkeypatch.setattr(Route, "_output_shape", lambda *_: (-1, 8))  # no plan that runs here has such an output
    with session.state({"h": "h_out"}) as sequence:
        for _ in range(2):
            with pytest.raises(trtrun.ShapeError, match="known only after"):
                sequence(np.ones((2, 8), np.float32))


def test_the_engine_waits_for_who_uses_it_outside_a_session(load) -> None:
    session = load(networks.recurrent())
    engine, order = session.engine, []
    with engine._without_users():  # as refit does
        thread = threading.Thread(target=lambda: (session.clone().close(), order.append("cloned")))
        thread.start()
        time.sleep(0.2)
        order.append("changed")
    thread.join()
    with engine.occupied():  # as profile_layers does
        thread = threading.Thread(target=lambda: (engine.close(), order.append("closed")))
        thread.start()
        time.sleep(0.2)
        order.append("used")
    thread.join()
    assert order == ["changed", "cloned", "used", "closed"]
    assert session.closed


def test_cache_written_in_place(load) -> None:
    session = load(networks.kv_cache(8))
    assert session.engine.aliases == {"cache_out": "cache"}
    cache = np.zeros((1, 1, 8, 4), np.float32)
    with session.state({"cache": "cache_out"}) as sequence:
        for at in range(8):
            update = RNG.standard_normal((1, 1, 1, 4)).astype(np.float32)
            sequence.run({"update": update, "at": np.int32([at])})
            cache[0, 0, at] = update[0, 0, 0]
            np.testing.assert_array_equal(sequence.read_state()["cache"], cache)
    # Without state() the same engine is a plain function of its inputs.
    start = RNG.standard_normal(cache.shape).astype(np.float32)
    for at in (3, 5, 5, 0):
        out = session(cache=start, update=update, at=np.int32([at]))["cache_out"]
        wanted = start.copy()
        wanted[0, 0, at] = update[0, 0, 0]
        np.testing.assert_array_equal(out, wanted)


# Weights


@pytest.fixture
def refittable() -> bytes:
    """A plan that takes new weights, which TensorRT-RTX 1.6.1 compiles with PTX newer than CUDA 13.0's driver reads."""
    try:
        return networks.scaled(2.0, refit=True)
    except AssertionError as error:
        pytest.skip(f"TensorRT-RTX cannot build refittable engines with this driver: {error}")


def test_refit_replaces_all_weights_or_none(load, refittable: bytes) -> None:
    session = load(refittable)
    other = session.clone()
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    for _ in range(3):
        np.testing.assert_allclose(session(x)["y"], 2 * x, rtol=1e-6)
    other(x)
    weights = np.float32([[3, 4, 5, 6]])
    session.engine.refit({"W": weights})
    for _ in range(3):
        np.testing.assert_allclose(session(x)["y"], x * weights, rtol=1e-6)
        np.testing.assert_allclose(other(x)["y"], x * weights, rtol=1e-6)
    for wrong, said in (
        ({"V": weights}, r"\['V'\]; it has \['W'\]"),
        ({"W": weights[:, :3]}, "4 values of float32, got 3"),
        ({"W": weights.astype(np.float64)}, "got 4 of float64"),
    ):
        with pytest.raises(trtrun.RefitError, match=said):
            session.engine.refit(wrong)
        np.testing.assert_allclose(session(x)["y"], x * weights, rtol=1e-6)
    other.close()


def test_an_engine_that_takes_no_new_weights_says_so(load) -> None:
    session = load(networks.scaled(2.0, refit=False))
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    with pytest.raises(trtrun.RefitError, match="was not built to take new weights"):
        session.engine.refit({"W": np.ones((1, 4), np.float32)})
    np.testing.assert_allclose(session(x)["y"], 2 * x, rtol=1e-6)


def test_refit_from_an_onnx_file(load, tmp_path: Path, refittable: bytes) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load_from_string(models.affine(batch=3))
    session = load(build_plan(model.SerializeToString(), BuildOptions(refittable=True)))
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(-0.5), tensor.name))
    path = tmp_path / "new.onnx"
    onnx.save(model, path)
    x = RNG.standard_normal((3, 12)).astype(np.float32)
    session(x)
    session.engine.refit(path)
    expected = OnnxRuntimeSession(path)(x)["y"]
    for _ in range(3):
        np.testing.assert_allclose(session(x)["y"], expected, rtol=2e-3, atol=2e-3)
    with pytest.raises(trtrun.RefitError):
        session.engine.refit(models.convolution())
    np.testing.assert_allclose(session(x)["y"], expected, rtol=2e-3, atol=2e-3)


def test_refit_waits_for_requests_in_flight(load, refittable: bytes) -> None:
    session = load(refittable)
    session.engine.refit({"W": np.ones((1, 4), np.float32)})
    stop = threading.Event()
    wrong: list[object] = []
    x = np.ones((2, 4), np.float32)

    def work() -> None:
        with session.clone() as own:
            while not stop.is_set():
                y = own(x)["y"]
                if not (y == y[0, 0]).all():  # old and new weights in one answer
                    wrong.append(y)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for factor in range(2, 40):
        session.engine.refit({"W": np.full((1, 4), factor, np.float32)})
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    np.testing.assert_array_equal(session(x)["y"], np.full((2, 4), 39, np.float32))


def test_weight_streaming(load) -> None:
    plan = networks.large(64, streaming=True)
    x = RNG.standard_normal((1, 1024)).astype(np.float16)
    full = load(plan)
    expected = full(x)["y"]
    streamable = full.engine.handle.streamable_weights_size
    assert streamable >= 60 << 20
    budget = streamable // 4
    few = load(plan, weight_streaming_budget=budget)
    assert few.engine.handle.weight_streaming_budget_v2 <= budget
    for _ in range(3):
        np.testing.assert_allclose(few(x)["y"].astype(np.float32), expected.astype(np.float32), rtol=2e-2, atol=1e-2)
    with pytest.raises(trtrun.PlanError, match="not built with weight streaming"):
        load(networks.recurrent(), weight_streaming_budget=1)


_PEAK = """
import resource, sys
import numpy as np
import trtrun
from trtrun.cuda.device import Device

def status(key):
    with open("/proc/self/status") as file:
        return next((int(line.split()[1]) << 10 for line in file if line.startswith(key + ":")), None)

def peak():  # some sandboxes do not say VmHWM; getrusage's may be of the process that started this one
    hwm = status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10 if hwm is None else hwm

Device().synchronize()
with trtrun.load(sys.argv[2]):  # CUDA and TensorRT are there from here on
    pass
try:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak is what is in use now
except OSError:
    pass
# Where it could not be reset, what is in use is brought up to it, so that nothing hides below an earlier peak.
ballast = np.ones(max(0, peak() - status("VmRSS")), np.uint8)
before = status("VmRSS")
assert peak() - before < 16 << 20, (peak(), before)
with trtrun.load(sys.argv[1]) as runner:
    print(before, peak())
"""


@pytest.mark.parametrize(("streaming", "bundled"), [(False, False), (True, False), (False, True)])
def test_loading_a_large_plan_takes_little_more_host_memory_than_the_plan(
    streaming: bool, bundled: bool, tmp_path: Path
) -> None:
    """Counted is what is resident in the process at the peak: its own memory, and mapped pages of files. Not counted
    are the kernel's page cache, which all share, and what the driver may pin outside of the process.
    """
    large, small = tmp_path / "large.engine", tmp_path / "small.engine"
    large.write_bytes(networks.large(600, streaming=streaming))
    small.write_bytes(networks.large(2, streaming=streaming))
    size = large.stat().st_size
    if bundled:
        for path in (large, small):
            write_bundle(path, engines=[path.rename(path.with_suffix(".plan"))])
    command = [sys.executable, "-c", _PEAK, str(large), str(small)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    print(f"host memory {before >> 20} MB before, {peak >> 20} MB at the peak: {(peak - before) / size:.3f} x the plan")
    assert 0 < peak - before < 1.2 * size


def test_a_plan_that_is_read_in_small_pieces_is_the_same(load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    plan = networks.large(8, streaming=True)
    x = RNG.standard_normal((1, 1024)).astype(np.float16)
    expected = load(plan)(x)["y"]
    monkeypatch.setattr(plan_reader, "PIECE", 10_007)
    path = tmp_path / "m.engine"
    path.write_bytes(header_of({"task": "detect"}) + plan)
    np.testing.assert_array_equal(load(path)(x)["y"], expected)
    np.testing.assert_array_equal(load(plan)(x)["y"], expected)


_FAILING = """
import os, sys
import numpy as np
import trtrun
from trtrun.engine import Engine
from trtrun.plan import ModelFile

class Failing(ModelFile):
    error = None
    def __getitem__(self, part):
        if self.error is not None and part.stop > len(self) // 2:
            raise self.error
        return super().__getitem__(part)

path, whole = sys.argv[1], open(sys.argv[1], "rb").read()
for end in (200, len(whole) // 2, len(whole) * 9 // 10):
    file = ModelFile(path)
    os.truncate(path, end)
    try:
        Engine(file)
    except trtrun.ModelFileError as error:
        assert "cut short" in str(error), error
    else:
        raise AssertionError(f"{end} bytes were enough")
    with open(path, "wb") as restored:
        restored.write(whole)
for error in (OSError("poison"), KeyboardInterrupt()):
    file = Failing(path)
    file.error = error
    try:
        Engine(file)
    except type(error) as raised:
        assert raised is error
    else:
        raise AssertionError(f"{error!r} was lost")
with trtrun.load(path) as runner:
    runner(np.ones((1, 1024), np.float16))
print("done")
"""


def test_a_plan_that_cannot_be_read_to_its_end_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(networks.large(16, streaming=True))
    command = [sys.executable, "-c", _FAILING, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "done"), done.stderr


# Looking inside


def test_layers_are_shown_and_timed(tmp_path: Path) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(
        build_plan(
            models.convolution(), BuildOptions(profiles=parse_shapes(["x=1x3x8x8:2x3x32x32:4x3x64x64"]), detailed=True)
        )
    )
    facts = trtrun.inspect(path)
    assert facts["layers"]
    json.dumps(facts)
    with Engine(path) as engine:
        profile = profile_layers(engine, runs=20)
        assert profile.layers
        assert profile.total > 0
        assert abs(sum(layer.share for layer in profile.layers) - 1) < 1e-6
        assert all(layer.low <= layer.median <= layer.high for layer in profile.layers)
        assert profile.top(1)[0].name in layers_text(profile)
        assert profile.layers[0].name[:10] in layers_html(profile)


def test_debug_tensors_that_are_not_handed_over_are_an_error() -> None:
    """TensorRT-RTX 1.6.1 takes the marks and never calls the listener: no silence, and nothing made up."""
    plan = build_plan(models.affine(batch=3), BuildOptions(debug_tensors=("h", "s")))
    x = {"x": RNG.standard_normal((3, 12)).astype(np.float32)}
    with Engine(plan) as engine:
        for names in (None, ["h"]):
            with pytest.raises(trtrun.ExecutionError, match="no debug tensors"):
                debug_tensors(engine, x, names)
        with pytest.raises(trtrun.InputError, match="'y' was not marked"):
            debug_tensors(engine, x, ["y"])
        with pytest.raises(trtrun.InputNameError):
            debug_tensors(engine, {})


# Processes


def _in_child(connection: object, plan: bytes) -> None:
    try:
        with trtrun.load(plan) as session:
            connection.send(session(np.ones((2, 8), np.float32), np.zeros((2, 8), np.float32))["y"].sum())
    except trtrun.TrtrunError as error:
        connection.send(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_fork_is_refused_and_spawn_works(method: str, load) -> None:
    plan = networks.recurrent()
    load(plan)
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=_in_child, args=(theirs, plan))
    child.start()
    assert ours.poll(60)
    answer = ours.recv()
    child.join(10)
    if method == "fork":
        assert "DeviceError" in answer
        assert "spawn" in answer
    else:
        assert answer == 16


@pytest.mark.parametrize("busy", [False, True])
def test_a_session_used_in_a_forked_child_is_refused(busy: bool, load) -> None:
    session = load(networks.recurrent())
    zeros = np.zeros((2, 8), np.float32)
    session(zeros, zeros)
    read, write = os.pipe()
    if busy:  # another thread is in the middle of a request, and it is not there in the child
        session._lock.acquire()
    if (child := os.fork()) == 0:
        try:
            signal.alarm(10)
            session(zeros, zeros)
            os.write(write, b"ran")
        except trtrun.DeviceError:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    if busy:
        session._lock.release()
    os.waitpid(child, 0)
    os.write(write, b".")
    assert os.read(read, 100) == b"refused."
    session(zeros, zeros)


# Endurance


def twenty_plans() -> list[tuple[bytes, dict[str, np.ndarray], str, np.ndarray]]:
    """Plan, inputs, and one output with what it must be."""
    found = []
    for kind in (trt.float32, trt.float16, trt.bfloat16, trt.fp8, trt.int64, trt.int32, trt.int8, trt.uint8, trt.int4):
        x = values(DTYPES[kind], 4, 6)
        found.append((networks.identity(kind), {"x": x}, "y", x))
    for kind, form, shape in FORMATS:
        x = values(DTYPES[kind], *shape)
        found.append((networks.doubled(kind, shape, 1 << int(form)), {"x": x}, "y", x + x))
    x = RNG.standard_normal((2, 8)).astype(np.float32)
    found.append((networks.recurrent(), {"x": x, "h": x}, "y", x + x))
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    found.append((networks.several_profiles(), {"x": x}, "y", x + x))
    found.append((networks.shape_of(), {"x": x}, "y", x))
    return found


def test_a_thousand_loads_over_twenty_engines_grow_nothing() -> None:
    plans = twenty_plans()
    assert len(plans) == 20

    def cycle() -> None:
        for plan, inputs, name, expected in plans:
            with trtrun.load(plan) as session:
                for _ in range(3):
                    out = session.run(inputs)
                same(out[name], expected)

    device = Device()
    for _ in range(5):
        cycle()
    before = memory_in_use(device), psutil.Process().memory_info().rss
    for _ in range(50):
        cycle()
    after = memory_in_use(device), psutil.Process().memory_info().rss
    assert after[0] <= before[0]
    assert after[1] - before[1] < 16 << 20


def test_different_engines_at_once_from_eight_threads(load) -> None:
    """Twenty engines shared by all threads, and each loaded again by threads of their own meanwhile."""
    variants = [twenty_plans() for _ in range(3)]  # the same engines, with other values
    plans = [plan for plan, *_ in variants[0]]
    shared = [load(plan) for plan in plans]
    failures: list[str] = []
    done = [0] * len(plans)
    lock = threading.Lock()

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for index in rng.permutation(len(plans)):
                with trtrun.load(plans[index]) as own:
                    for turn in range(24):
                        which = int(index if turn % 2 else rng.integers(len(plans)))
                        runner = own if turn % 2 else shared[which]
                        _, inputs, name, expected = variants[rng.integers(len(variants))][which]
                        same(runner.run(inputs)[name], expected)
                        with lock:
                            done[which] += 1
        except BaseException as error:
            failures.append(f"thread {seed}: {error!r}")

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sum(done) == 8 * len(plans) * 24
    assert min(done) >= 8 * 12


def test_eight_threads_two_thousand_requests_each(load) -> None:
    session = load(networks.several_profiles())
    wrong: list[str] = []
    device = Device()
    sizes = (1, 2, 3, 4, 17, 64, 100, 137, 200)
    all_open = threading.Barrier(8)

    def work(seed: int, requests: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            with session.clone() as own:
                # An execution context takes half a megabyte for each profile that it ever had, which only the engine
                # gives back, and as many are made as are in use at once: here as many as can be, so that later rounds
                # need no more.
                for size in sizes * 3:
                    own(np.ones((size, 4), np.float32))
                all_open.wait(60)
                for _ in range(requests):
                    runner = own if rng.integers(2) else session  # a session of its own, and one that all share
                    x = rng.standard_normal((rng.choice(sizes), 4)).astype(np.float32)
                    y = runner(x)["y"]
                    if not np.array_equal(y, x + x):
                        wrong.append(f"{x.shape}")
        except Exception as error:
            all_open.abort()
            wrong.append(repr(error))

    def round_of(requests: int) -> None:
        threads = [threading.Thread(target=work, args=(seed, requests)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    held = []
    for _ in range(3):
        round_of(2000)
        held.append((memory_in_use(device), psutil.Process().memory_info().rss))
    assert not wrong
    # CUDA's smallest piece, and what eight threads' allocators keep for reuse; 16,000 requests that leak take more.
    assert held[2][0] <= held[1][0] + (2 << 20), held
    assert held[2][1] - held[1][1] < 4 << 20, held
