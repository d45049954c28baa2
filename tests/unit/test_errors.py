from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtrun
from tests import models
from trtrun import errors
from trtrun.building.builder import build_plan
from trtrun.cuda.device import Device, gpu_count
from trtrun.engine import Engine

no_gpu = pytest.mark.skipif(gpu_count() > 0, reason="speaks of a machine without a GPU")


def subclasses(kind: type) -> set[type]:
    return {kind, *(found for child in kind.__subclasses__() for found in subclasses(child))}


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    for kind in subclasses(errors.TrtrunError):
        assert kind.__name__ in trtrun.__all__
        assert kind.__name__ in (errors.__doc__ or "")


def test_the_log_is_attached_and_survives_pickling() -> None:
    error = trtrun.PlanMismatchError("no", log=["[ERROR] a", "[ERROR] b"])
    assert str(error) == "no\nTensorRT said:\n  [ERROR] a\n  [ERROR] b"
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), again.message, again.log) == (type(error), error.message, error.log)


def test_builtin_bases() -> None:
    assert issubclass(trtrun.ModelFileError, OSError)
    assert issubclass(trtrun.MissingPackageError, ImportError)
    assert issubclass(trtrun.ShapeError, ValueError)
    assert issubclass(trtrun.DtypeError, TypeError)
    assert issubclass(trtrun.OutOfMemoryError, MemoryError)


@no_gpu
def test_an_engine_without_a_gpu_is_refused_before_tensorrt_is_called(tmp_path: Path) -> None:
    path = tmp_path / "affine.engine"
    path.write_bytes(build_plan(models.affine(batch=3)))
    for load in (trtrun.load, Engine, lambda p: Engine(Path(p).read_bytes())):
        with pytest.raises(trtrun.NoGpuError, match="load the ONNX file instead"):
            load(path)
    with pytest.raises(trtrun.NoGpuError):
        Device()


def test_a_full_plan_without_full_tensorrt_names_both_versions_or_the_extra(tmp_path: Path) -> None:
    path = tmp_path / "full.engine"
    path.write_bytes(b"ftrt" + bytes(20) + bytes((10, 13, 0, 35)) + bytes(100))
    # lean and dispatch are installed for the tests, and could load such a plan; without a GPU that is what is missing
    with pytest.raises((trtrun.NoGpuError, trtrun.PlanError, trtrun.MissingPackageError)):
        trtrun.load(path)


def test_a_plan_of_another_version_names_both(tmp_path: Path) -> None:
    path = tmp_path / "old.engine"
    plan = bytearray(build_plan(models.affine(batch=3)))
    plan[24:28] = bytes((1, 2, 0, 54))
    path.write_bytes(plan)
    with pytest.raises(trtrun.PlanMismatchError, match=r"1\.2\.0\.54.*1\.6\.1\.120.*Build it again"):
        trtrun.load(path)


def test_load_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(trtrun.ModelFileError, match="does not exist"):
        trtrun.load(tmp_path / "no.engine")
    text = tmp_path / "text.engine"
    text.write_text("hello")
    with pytest.raises(trtrun.PlanError, match="not a TensorRT plan"):
        trtrun.load(text)
    broken = tmp_path / "broken.onnx"
    broken.write_text("hello")
    with pytest.raises(trtrun.OnnxError):
        trtrun.load(broken)


@no_gpu
@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"device": "cuda:0"}, trtrun.InputError, "'cuda:0' is no ordinal of a GPU. Pass a whole number"),
        ({"device": True}, trtrun.InputError, "True is no ordinal"),
        ({"devices": "gpu"}, trtrun.InputError, "devices is 'gpu'"),
        ({"devices": 1}, trtrun.InputError, "devices is 1"),
        ({"devices": ["cuda:1"]}, trtrun.InputError, "'cuda:1' is no ordinal"),
        ({"plugins": "nope.so"}, trtrun.InputError, "plugins is 'nope.so'. Pass a list"),
        ({"plugins": ["nope.so"]}, trtrun.PluginError, "'nope.so' does not exist"),
        ({"build_options": trtrun.BuildOptions(plugins=("nope.so",))}, trtrun.PluginError, "'nope.so' does not exist"),
    ],
)
def test_what_no_gpu_would_take_is_refused_without_one_too(
    options: dict[str, Any], error: type[trtrun.TrtrunError], says: str, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(models.affine())
    with pytest.raises(error, match=says):
        trtrun.load(tmp_path / "m.onnx", **options)


def test_an_onnx_file_runs_on_the_cpu_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine())
    with trtrun.load(path) as pred:
        assert pred(np.ones((2, 12), np.float32))["y"].shape == (2, 5)
    assert "runs on the CPU through ONNX Runtime, not on a GPU" in caplog.text
