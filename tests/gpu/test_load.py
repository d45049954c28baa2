"""From a file to an answer: load(), inspect() and the commands, on a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import trtrun
from tests import models
from tests.gpu.conftest import TF32, relative_error
from trtrun import bundle
from trtrun.building import cache
from trtrun.bundle import write_bundle
from trtrun.session import Session


@pytest.fixture
def onnx_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRTRUN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine())
    return path


def test_an_onnx_file_is_built_once_and_runs_on_the_gpu(
    onnx_file: Path, reference: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng().standard_normal((8, 12)).astype(np.float32)
    with trtrun.load(onnx_file) as pred:
        assert isinstance(pred, Session)
        assert relative_error(pred(x)["y"], reference("affine")(x)["y"]) <= TF32
    monkeypatch.setattr(cache, "build_plan", None)  # building again would fail
    with trtrun.load(onnx_file) as pred:
        assert relative_error(pred(x)["y"], reference("affine")(x)["y"]) <= TF32


def test_the_engine_of_an_onnx_file_has_its_metadata(onnx_file: Path) -> None:
    proto = onnx.load(onnx_file)
    onnx.helper.set_model_props(proto, {"task": "detect", "names": "{0: 'cat'}", "imgsz": "[640, 640]"})
    onnx.save(proto, onnx_file)
    expected = {"task": "detect", "names": {"0": "cat"}, "imgsz": [640, 640]}
    for model in (onnx_file, onnx_file, trtrun.build(onnx_file)):  # built, found in the cache, a file
        with trtrun.load(model) as pred:
            assert isinstance(pred, Session)
            assert pred.metadata == expected
            assert pred(np.ones((2, 12), np.float32))["y"].shape == (2, 5)


def test_a_bundle_of_two_networks_is_refused(onnx_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "several.onnx"
    other.write_bytes(models.several())
    engine, path = trtrun.build(onnx_file), tmp_path / "m.bundle"
    write_bundle(path, engines=[engine], onnx=onnx_file)
    with trtrun.load(path) as pred:
        assert isinstance(pred, Session)
    with pytest.raises(trtrun.BundleError, match=r"are not the same network: the engine has the input 'x'"):
        write_bundle(path, engines=[engine], onnx=other)
    monkeypatch.setattr(bundle, "_differences", lambda *_: [])  # as on a machine without this GPU
    write_bundle(path, engines=[engine], onnx=other)
    with pytest.raises(trtrun.BundleError, match=r"are not the same network: the engine has the input 'x'"):
        trtrun.load(path)


def test_a_damaged_runtime_cache_is_made_again(
    onnx_file: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    x = np.ones((2, 12), np.float32)
    with trtrun.load(onnx_file) as pred:
        expected = pred(x)["y"]
    (file,) = (tmp_path / "cache" / "runtime").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[: len(good) // 2])
    script = (
        "import sys, trtrun, numpy as np; print(trtrun.load(sys.argv[1])(np.ones((2, 12), np.float32))['y'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(onnx_file)], capture_output=True, text=True, check=True)
    assert "is damaged; kernels are compiled again" in done.stderr
    np.testing.assert_allclose(json.loads(done.stdout), expected, rtol=1e-3, atol=1e-5)
    assert len(file.read_bytes()) > len(good) // 2


def test_inspect_shows_what_the_engine_says(plan: Callable[[str], bytes], tmp_path: Path) -> None:
    path = tmp_path / "several.engine"
    path.write_bytes(plan("several"))
    facts = trtrun.inspect(path)
    assert [tensor["name"] for tensor in facts["inputs"]] == ["images", "size"]
    assert facts["inputs"][0]["profiles"] == [{"min": [1, 4], "opt": [2, 4], "max": [8, 4]}]
    assert facts["optimization_profiles"] == 1
    assert "engine_unavailable" not in facts
    json.dumps(facts)


def test_the_run_command(plan: Callable[[str], bytes], tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(plan("static"))
    np.save(tmp_path / "x.npy", np.ones((3, 12), np.float32))
    command = [sys.executable, "-m", "trtrun", "run", str(tmp_path / "m.engine"), "-i", str(tmp_path / "x.npy")]
    done = subprocess.run([*command, "-o", str(tmp_path / "out"), "--json"], capture_output=True, text=True, check=True)
    assert "TensorRT" in json.loads(done.stdout)["backend"]
    assert np.load(tmp_path / "out" / "y.npy").shape == (3, 5)


def test_the_parts_of_the_recipe_can_be_used_alone(plan: Callable[[str], bytes]) -> None:
    """Logger, runtime and engine, context, stream, buffers, copies: by hand, without a Session."""
    from trtrun.cuda.memory import DeviceMemory, PinnedMemory, copy_async, host_view
    from trtrun.cuda.stream import create_stream
    from trtrun.engine import Engine

    x = np.random.default_rng().standard_normal((3, 12)).astype(np.float32)
    with Engine(plan("static")) as engine, engine.device:
        engine.flavor.logger.min_severity = "WARNING"
        context = engine.create_context()
        scratch = DeviceMemory(engine.device, engine.device_memory_size)
        context.set_device_memory(scratch.address, scratch.nbytes)
        stream = create_stream(engine.device)
        handle = int(stream.handle)
        pinned, on_gpu = {}, {}
        for name, spec in {**engine.inputs, **engine.outputs}.items():
            nbytes = int(np.prod(spec.shape)) * spec.dtype.itemsize
            pinned[name] = PinnedMemory(engine.device, nbytes)
            on_gpu[name] = DeviceMemory(engine.device, nbytes)
            context.set_tensor_address(name, on_gpu[name].address)
        host_view(pinned["x"].array, np.dtype(np.float32), (3, 12))[:] = x
        copy_async(on_gpu["x"].address, pinned["x"].address, pinned["x"].nbytes, handle)
        assert context.execute_async_v3(handle)
        copy_async(pinned["y"].address, on_gpu["y"].address, pinned["y"].nbytes, handle)
        stream.sync()
        by_hand = host_view(pinned["y"].array, np.dtype(np.float32), (3, 5)).copy()
        del context
        np.testing.assert_allclose(by_hand, Session(engine)(x)["y"], rtol=1e-3, atol=1e-5)
