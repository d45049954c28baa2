from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

import trtrun
from tests import models
from tests.conformance import RunnerConformance
from trtrun.building.onnx_check import check_model
from trtrun.cuda.device import gpu_count
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.runner import check_pairs
from trtrun.splitting import SplitRunner
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
    with pytest.raises(trtrun.OnnxError, match="cannot be parsed: it is not an ONNX model, or not all of one"):
        OnnxRuntimeSession(path)


def test_git_lfs_pointers_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "pointer.onnx"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n")
    for read in (OnnxRuntimeSession, check_model):
        with pytest.raises(trtrun.OnnxError, match=r"the Git LFS pointer to one\. Run: git lfs pull"):
            read(path)


def test_a_file_that_is_missing_is_said_with_input_shapes_too(tmp_path: Path) -> None:
    with pytest.raises(trtrun.ModelFileError, match=r"missing\.onnx.*does not exist"):
        OnnxRuntimeSession(tmp_path / "missing.onnx", input_shapes={"x": (1, 12)})


_X = np.linspace(-8, 8, 65, dtype=np.float32)
_KINDS = {"float8_e4m3fn": 448, "float8_e5m2": 57344, "int4": 7, "int8": 127, "int16": 32767}


def _rounding(kind: str, activation: str, zero_point: str) -> bytes:
    """x -> y: a Relu or Clip of -x, and behind it QuantizeLinear, which rounds to 1/4 of what ``kind`` holds."""
    dtype = np.dtype(getattr(ml_dtypes, kind)) if hasattr(ml_dtypes, kind) else np.dtype(kind)
    zero = onnx.numpy_helper.from_array(np.zeros((), dtype), "zero")
    nodes = [
        helper.make_node("Neg", ["x"], ["n"]),  # the optimizer leaves alone what reads the graph's input
        helper.make_node(activation, ["n", "low", "high"] if activation == "Clip" else ["n"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
    ]
    if zero_point == "constant":
        nodes.insert(0, helper.make_node("Constant", [], ["zero"], value=zero))
    elif zero_point == "computed":
        zero.name = "given"
        nodes.insert(0, helper.make_node("Identity", ["given"], ["zero"]))
    weights = [("scale", 0.25), ("low", 0.0), ("high", 6.0)]
    tensors = [onnx.numpy_helper.from_array(np.float32(number), name) for name, number in weights]
    opsets = [helper.make_opsetid("", 21 if kind.startswith("int") else 19)]
    functions = []
    if zero_point == "in a function":
        nodes[2:] = [helper.make_node("Rounded", ["r", "scale", "zero"], ["y"], domain="local")]
        inner = [
            helper.make_node("QuantizeLinear", ["a", "b", "c"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "b", "c"], ["d"]),
        ]
        functions.append(helper.make_function("local", "Rounded", ["a", "b", "c"], ["d"], inner, opsets[:]))
        opsets.append(helper.make_opsetid("local", 1))
    given = [] if zero_point == "constant" else [zero]
    graph = helper.make_graph(nodes, "g", [models.value("x", [65])], [models.value("y", [65])], [*tensors, *given])
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10).SerializeToString()


@pytest.mark.parametrize("zero_point", ["initializer", "constant", "computed", "in a function"])
@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("kind", _KINDS)
def test_what_stands_before_a_quantization_is_computed(kind: str, activation: str, zero_point: str) -> None:
    """ONNX Runtime's optimizer leaves the Relu out before fp8 and int4, and fails at the Clip."""
    wanted = np.clip(_X, 0, 6 if activation == "Clip" else None) / np.float32(0.25)
    wanted = np.minimum(wanted, _KINDS[kind])
    rounded = np.round(wanted) if kind.startswith("int") else wanted.astype(getattr(ml_dtypes, kind))
    found = OnnxRuntimeSession(_rounding(kind, activation, zero_point))(-_X)["y"]
    np.testing.assert_array_equal(found, rounded.astype(np.float32) * np.float32(0.25))


def test_the_name_is_found_across_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "fp8.onnx"
    path.write_bytes(_rounding("float8_e4m3fn", "Relu", "initializer"))
    monkeypatch.setattr("trtrun.plan.PIECE", 5)
    assert OnnxRuntimeSession(path)(_X)["y"].min() == 0


def test_without_onnx_runtime_the_reason_for_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if gpu_count():
        pytest.skip("the GPU runs it")
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(trtrun.MissingPackageError, match=r"on the CPU, because no .*trtrun\[onnx\]"):
        trtrun.load(path)


def test_refuses_what_only_a_gpu_has() -> None:
    session = OnnxRuntimeSession(models.affine())
    with pytest.raises(trtrun.NoGpuError, match="device outputs"):
        session.run({"x": np.ones((1, 12), np.float32)}, outputs="device")


def test_parts_that_differ_beyond_the_batch_are_not_stretched_to_fit() -> None:
    model = models._model(
        [
            helper.make_node("ReduceMax", ["x"], ["most"], axes=[0], keepdims=0),
            helper.make_node("Greater", ["most", "zero"], ["chosen"]),
            helper.make_node("Compress", ["x", "chosen"], ["y"], axis=1),
        ],
        [models.value("x", [2, 4])], [models.value("y", [2, "n"])], {"zero": np.float32(0)},
    )  # fmt: skip
    x = np.float32([[1, 2, 3, 4], [5, 6, 7, 8], [9, -1, -1, -1], [10, -1, -1, -1]])
    with SplitRunner(OnnxRuntimeSession(model)) as split:
        with pytest.raises(
            trtrun.ShapeError, match=r"'y' has shape 2×1 for the part .* row 2, where 2×4 .*: 2 to 2 rows"
        ):
            split(x)
        np.testing.assert_array_equal(split(x[[0, 1, 1, 0, 0]])["y"], x[[0, 1, 1, 0, 0]])


def test_failing_run_keeps_the_reason() -> None:
    two, three = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    session = OnnxRuntimeSession(models.several(), input_shapes={"size": (-1, 4)})  # without its name
    with pytest.raises(trtrun.ExecutionError, match="ONNX Runtime failed"):
        session(two, three)


def test_a_dimension_of_two_sizes_is_named_where_the_request_fails() -> None:
    two, three = np.ones((2, 4), np.float32), np.ones((3, 4), np.float32)
    with pytest.raises(trtrun.ShapeError, match=r"^dimension 'N' is 2 in 'images' and 3 in 'size': .*ONNX Runtime"):
        OnnxRuntimeSession(models.several())(two, three)
    # One name for what need not be equal: that runs.
    proto = onnx.load_from_string(models.several())
    del proto.graph.node[:2], proto.graph.output[:2]
    OnnxRuntimeSession(proto.SerializeToString())(two, three)


@pytest.mark.parametrize(
    ("given", "taken"), [((2, 8), (2, 4)), ((-1, 8), (-1, 4)), ((2, 8), (-1, 4)), ((2, 8, 1), (2, 8))]
)
def test_pairs_whose_shapes_never_fit_are_refused(given: tuple[int, ...], taken: tuple[int, ...]) -> None:
    inputs = TensorSpecs([TensorSpec("h", np.dtype(np.float32), taken)])
    outputs = TensorSpecs([TensorSpec("h_out", np.dtype(np.float32), given)])
    with pytest.raises(trtrun.ShapeError, match="never fit"):
        check_pairs(inputs, outputs, {"h": "h_out"})
    check_pairs(inputs, TensorSpecs([TensorSpec("h_out", np.dtype(np.float32), (-1,) * len(taken))]), {"h": "h_out"})
