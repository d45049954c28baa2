from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import trtrun
from tests import models
from tests.conformance import RunnerConformance
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.runner import check_pairs
from trtrun.tensor_spec import TensorSpec, TensorSpecs


class TestConformance(RunnerConformance):
    @pytest.fixture
    def runner(self) -> Callable[[str], OnnxRuntimeSession]:
        return lambda name: OnnxRuntimeSession(getattr(models, name)())


def test_data_dependent_outputs() -> None:
    x = np.float32([0, 1, 0, 2])
    np.testing.assert_array_equal(OnnxRuntimeSession(models.nonzero())(x)["indices"], [[1, 3]])


def test_says_what_computes() -> None:
    assert "on the CPU (reference)" in OnnxRuntimeSession(models.affine()).backend


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(trtrun.ModelFileError, match=r"missing\.onnx.*does not exist"):
        OnnxRuntimeSession(tmp_path / "missing.onnx")


def test_not_onnx(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("hello")
    with pytest.raises(trtrun.OnnxError, match="cannot load"):
        OnnxRuntimeSession(path)


def test_refuses_what_only_a_gpu_has() -> None:
    session = OnnxRuntimeSession(models.affine())
    with pytest.raises(trtrun.NoGpuError, match="device outputs"):
        session.run({"x": np.ones((1, 12), np.float32)}, outputs="device")


def test_failing_run_keeps_the_reason() -> None:
    session = OnnxRuntimeSession(models.several())
    with pytest.raises(trtrun.ExecutionError, match="ONNX Runtime failed"):
        session(np.ones((2, 4), np.float32), np.ones((3, 4), np.float32))


@pytest.mark.parametrize(
    ("given", "taken"), [((2, 8), (2, 4)), ((-1, 8), (-1, 4)), ((2, 8), (-1, 4)), ((2, 8, 1), (2, 8))]
)
def test_pairs_whose_shapes_never_fit_are_refused(given: tuple[int, ...], taken: tuple[int, ...]) -> None:
    inputs = TensorSpecs([TensorSpec("h", np.dtype(np.float32), taken)])
    outputs = TensorSpecs([TensorSpec("h_out", np.dtype(np.float32), given)])
    with pytest.raises(trtrun.ShapeError, match="never fit"):
        check_pairs(inputs, outputs, {"h": "h_out"})
    check_pairs(inputs, TensorSpecs([TensorSpec("h_out", np.dtype(np.float32), (-1,) * len(taken))]), {"h": "h_out"})
