"""Q/DQ models: ONNX Runtime judges their exactness, the real builder takes them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import helper
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.building.quantization import quantize
from trtrun.cli import app
from trtrun.cli.quantize import _pictures
from trtrun.onnx_runtime import OnnxRuntimeSession

RNG = np.random.default_rng()
CASES = {
    "convolution": ((2, 3, 16, 16), "x=1x3x8x8:2x3x32x32:4x3x64x64"),
    "affine": ((4, 12), "x=1x12:4x12:64x12"),
}


def requests(name: str, count: int = 8) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.standard_normal(CASES[name][0]).astype(np.float32)} for _ in range(count)]


def operators(data: bytes) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load_from_string(data).graph.node)


# TensorRT-RTX computes no convolution in int8.
@pytest.mark.parametrize(("name", "precision"), [("convolution", "fp8"), ("affine", "fp8"), ("affine", "int8")])
def test_quantized_models_stay_close_and_build(name: str, precision: str) -> None:
    model = getattr(models, name)()
    calibration = requests(name)
    data = quantize(model, calibration, precision=precision)
    assert operators(data)["QuantizeLinear"] >= 1
    assert operators(data)["DequantizeLinear"] >= 2  # of the input, and of the weights
    reference = OnnxRuntimeSession(model)
    quantized = OnnxRuntimeSession(data)
    wanted, found = ([session.run(request) for request in calibration] for session in (reference, quantized))
    for output in wanted[0]:  # others than those may have larger values, which are cut off
        exact, close = (np.stack([answer[output] for answer in answers]) for answers in (wanted, found))
        assert 1e-6 < np.linalg.norm(close - exact) / np.linalg.norm(exact) < 0.1
    assert build_plan(data, BuildOptions(profiles=parse_shapes([CASES[name][1]])))


@pytest.mark.parametrize("name", ["affine", "convolution"])
def test_fp8_holds_values_far_from_zero(name: str) -> None:
    """ONNX Runtime's own scale, from the spread around the mean, would end at a third of them."""
    data = [{"x": RNG.normal(1, 0.1, CASES[name][0]).astype(np.float32)} for _ in range(8)]
    quantized = onnx.load_from_string(quantize(getattr(models, name)(), data))
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in quantized.graph.initializer if t.name.endswith("_scale")}
    assert 448 * scales["x_scale"] >= 0.999 * max(np.abs(request["x"]).max() for request in data)


def test_fp8_holds_the_largest_weights() -> None:
    """ONNX Runtime's own scale, from their spread, would cut the largest off at a sixth; and Relu stays before fp8."""
    v, w = RNG.normal(0, 0.02, (2, 64, 64)).astype(np.float32)
    v[3, 5] = 2
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    model = models._model(nodes, [models.value("x", ["N", 64])], [models.value("y", ["N", 64])], {"v": v, "w": w})
    data = [{"x": RNG.standard_normal((16, 64)).astype(np.float32)} for _ in range(4)]
    quantized = quantize(model, data)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(quantized).graph.initializer}
    held = tensors["v_quantized"].astype(np.float32) * tensors["v_scale"]
    assert np.abs(held - v).max() <= np.abs(v).max() / 16
    for request in data:
        exact, close = (OnnxRuntimeSession(of).run(request)["y"] for of in (model, quantized))
        assert np.linalg.norm(close - exact) < 0.1 * np.linalg.norm(exact)


def test_fp8_of_weights_that_a_constant_node_has() -> None:
    weights = RNG.normal(0, 0.02, (12, 64)).astype(np.float32)
    weights[3, 5] = 2
    nodes = [
        helper.make_node("Constant", [], ["w"], value=onnx.numpy_helper.from_array(weights)),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    model = models._model(nodes, [models.value("x", ["N", 12])], [models.value("y", ["N", 64])], {})
    data = requests("affine")
    quantized = quantize(model, data)
    for request in data:
        exact, close = (OnnxRuntimeSession(of).run(request)["y"] for of in (model, quantized))
        assert np.linalg.norm(close - exact) < 0.1 * np.linalg.norm(exact)


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_beta_of_a_gemm_is_in_its_bias(precision: str) -> None:
    """ONNX Runtime's quantizer sets it to 1."""
    bias = np.array([10, 20], np.float32)
    nodes = [
        helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(bias)),
        helper.make_node("Gemm", ["x", "w", "b"], ["p"], beta=2.0),
        helper.make_node("Gemm", ["p", "w", "b"], ["q"]),  # the same bias, as it is
        helper.make_node("Gemm", ["q", "w", "c"], ["y"], beta=-0.5),
    ]
    weights = {"w": np.eye(2, dtype=np.float32), "b": bias, "p/bias": np.zeros(1, np.float32)}
    model = models._model(nodes, [models.value("x", ["N", 2])], [models.value("y", ["N", 2])], weights)
    data = [{"x": RNG.uniform(0, 10, (4, 2)).astype(np.float32)} for _ in range(8)]
    quantized = quantize(model, data, precision=precision)
    for request in data:
        exact, close = (OnnxRuntimeSession(of).run(request)["y"] for of in (model, quantized))
        assert np.linalg.norm(close - exact) < 0.2 * np.linalg.norm(exact)


def test_nodes_without_a_name_get_one_of_their_own() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["p"]),
        helper.make_node("Gemm", ["p", "v"], ["y"], name="node_0"),
    ]
    weights = {"w": RNG.standard_normal((12, 12)).astype(np.float32)}
    weights["v"] = weights["w"] / 2
    model = models._model(nodes, [models.value("x", ["N", 12])], [models.value("y", ["N", 12])], weights)
    quantized = onnx.load_from_string(quantize(model, requests("affine"), keep=["node_0"]))
    inputs = {node.output[0]: node.input for node in quantized.graph.node if node.op_type == "Gemm"}
    assert [*inputs["y"]] == ["p", "v"]
    assert [*inputs["p"]] != ["x", "w"]


def test_fp8_of_nothing_but_zeros() -> None:
    """A scale of 0 made NaN of them, and no weights at all."""
    zeros = [{"x": np.zeros((4, 12), np.float32)}]
    quantized = OnnxRuntimeSession(quantize(models.affine(), zeros)).run(zeros[0])
    assert all(np.isfinite(array).all() for array in quantized.values())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")]
    weights = {"w": np.zeros((12, 3), np.float32)}
    model = models._model(nodes, [models.value("x", ["N", 12])], [models.value("y", ["N", 3])], weights)
    with pytest.raises(trtrun.BuildError, match=r"all weights of product in this model are zero.*--keep product\)"):
        quantize(model, requests("affine"))


def test_nodes_can_be_left_in_fp32() -> None:
    weights = {name: RNG.standard_normal((8, 8)).astype(np.float32) for name in ("v", "w")}
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="second"),
    ]
    model = models._model(nodes, [models.value("x", ["N", 8])], [models.value("y", ["N", 8])], weights)
    data = [{"x": RNG.standard_normal((2, 8)).astype(np.float32)} for _ in range(4)]
    assert operators(quantize(model, data))["QuantizeLinear"] == 2
    assert operators(quantize(model, data, keep=["first"]))["QuantizeLinear"] == 1
    with pytest.raises(trtrun.BuildError, match="nothing"):
        quantize(model, data, keep=["nothing"])
    with pytest.raises(trtrun.BuildError, match="none of Conv"):
        quantize(model, data, keep=["first", "second"])


def test_what_cannot_be_calibrated_with() -> None:
    with pytest.raises(trtrun.InputError, match="no request"):
        quantize(models.affine(), [])
    with pytest.raises(trtrun.InputError, match=r"\['z'\].*takes \['x'\]"):
        quantize(models.affine(), [{"z": np.zeros((1, 12), np.float32)}])
    with pytest.raises(trtrun.InputError, match="cannot be run with calibration request 1"):
        quantize(models.affine(), [{"x": np.zeros((1, 12), np.float32)}, {"x": np.zeros((1, 13), np.float32)}])
    with pytest.raises(trtrun.DtypeError, match=r"calibration request 0 has float64 for input 'x'.*takes float32"):
        quantize(models.affine(), [{"x": np.zeros((1, 12))}])
    with pytest.raises(trtrun.OnnxError):
        quantize(b"no model", [])
    once = quantize(models.affine(), requests("affine"))
    with pytest.raises(trtrun.BuildError, match="is quantized already"):
        quantize(once, requests("affine"))


def test_command(tmp_path: Path) -> None:
    model, data = tmp_path / "affine.onnx", tmp_path / "data"
    model.write_bytes(models.affine())
    data.mkdir()
    for index, request in enumerate(requests("affine")):
        np.savez(data / f"{index}.npz", **request) if index % 2 else np.save(data / f"{index}.npy", request["x"])
    result = CliRunner().invoke(app, ["quantize", str(model), "--data", str(data)])
    assert result.exit_code == 0, result.output
    assert "fp8, calibrated with 8 requests" in result.stdout
    assert operators((tmp_path / "affine.fp8.onnx").read_bytes())["QuantizeLinear"]
    for arguments, said in (
        (["--data", str(tmp_path / "none")], "does not exist"),
        (["--precision", "int4"], "fp8 or int8"),
        (["--size", "64"], "--data holds arrays"),
        (["--task", "detect"], "--data holds arrays"),
    ):
        result = CliRunner().invoke(app, ["quantize", str(model), "--data", str(data), *arguments])
        assert result.exit_code == 1
        assert said in str(result.exception)


@pytest.mark.parametrize(
    ("array", "kind", "said"),
    [
        (np.zeros((1, 12)), trtrun.DtypeError, "b.npy has float64 for input 'x', and {} takes float32. Convert it: "),
        (np.zeros((1, 13), np.float32), trtrun.InputError, "{} cannot be run with {}: "),
    ],
)
def test_the_file_that_a_model_cannot_be_calibrated_with_is_named(
    array: np.ndarray, kind: type[Exception], said: str, tmp_path: Path
) -> None:
    model, data = tmp_path / "affine.onnx", tmp_path / "data"
    model.write_bytes(models.affine())
    data.mkdir()
    np.save(data / "a.npy", np.zeros((1, 12), np.float32))
    np.save(data / "b.npy", array)
    result = CliRunner().invoke(app, ["quantize", str(model), "--data", str(data)])
    assert isinstance(result.exception, kind)
    assert said.format(model, data / "b.npy") in str(result.exception)
    assert "request" not in str(result.exception)


def test_weights_that_no_node_reads_are_not_talked_about(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = onnx.load_from_string(models.affine())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "num_batches_tracked"))
    quantize(model.SerializeToString(), requests("affine"))
    said = capfd.readouterr()
    assert (said.out, said.err) == ("", "")


def test_an_engine_is_not_told_that_there_is_nothing_to_build(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"vtrt" + bytes(60))
    np.save(tmp_path / "x.npy", np.zeros((1, 12), np.float32))
    result = CliRunner().invoke(app, ["quantize", str(tmp_path / "m.engine"), "--data", str(tmp_path / "x.npy")])
    assert isinstance(result.exception, trtrun.OnnxError)
    assert "is an engine, a TensorRT plan, and an ONNX model is needed here" in str(result.exception)


def test_calibrated_on_pictures(tmp_path: Path) -> None:
    """A classifier; what is no picture is left out, and said."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "v": rng.standard_normal((8, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("MatMul", ["f", "v"], ["scores"]),
    ]
    inputs, outputs = [models.value("images", [1, 3, 64, 64])], [models.value("scores", [1, 10])]
    model, pictures = tmp_path / "classifier.onnx", tmp_path / "pictures"
    model.write_bytes(models._model(nodes, inputs, outputs, weights))
    pictures.mkdir()
    for index in range(5):
        cv2.imwrite(str(pictures / f"{index}.png"), rng.integers(0, 256, (80 + index, 100, 3)).astype(np.uint8))
    (pictures / "broken.png").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["quantize", str(model), "--data", str(pictures)])
    assert result.exit_code == 0, result.output
    assert "calibrated with 5 requests" in result.stdout
    assert "broken.png is left out" in result.stderr
    assert operators((tmp_path / "classifier.fp8.onnx").read_bytes())["QuantizeLinear"] == 2


def test_a_detector_without_metadata_is_calibrated_for_the_task_that_is_named(tmp_path: Path) -> None:
    model, picture = tmp_path / "yolo.onnx", tmp_path / "a.png"
    model.write_bytes(models.small_yolo())
    cv2.imwrite(str(picture), np.full((80, 100, 3), 90, np.uint8))
    arguments = ["quantize", str(model), "--data", str(picture), "--head", "yolov8"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "several ways" in str(result.exception)
    result = CliRunner().invoke(app, [*arguments, "--task", "detect"])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_old_operator_sets_are_brought_to_what_the_precision_needs(precision: str) -> None:
    """As CenterFace is: operator set 9, its weights listed among the inputs."""
    proto = onnx.load_from_string(models.convolution())
    proto.opset_import[0].version, proto.ir_version = 9, 3
    for tensor in proto.graph.initializer:
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    data = quantize(proto.SerializeToString(), requests("convolution"), precision=precision)
    assert onnx.load_from_string(data).opset_import[0].version == (19 if precision == "fp8" else 13)
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    request = requests("convolution", 1)[0]
    wanted, found = OnnxRuntimeSession(models.convolution()).run(request), OnnxRuntimeSession(data).run(request)
    assert np.linalg.norm(found["y"] - wanted["y"]) < 0.1 * np.linalg.norm(wanted["y"])


def test_int8_convolutions_are_refused_where_tensorrt_rtx_has_none() -> None:
    data = quantize(models.convolution(), requests("convolution"), precision="int8")
    with pytest.raises(trtrun.BuildError, match=r"Conv of quantized integers.*--precision fp8"):
        build_plan(data, BuildOptions(profiles=parse_shapes([CASES["convolution"][1]])))


@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_requests_are_calibrated_with_one_at_a_time(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxruntime.quantization import calibrate

    seen = []
    real = calibrate.HistogramCollector.collect

    def collect(self: object, arrays: dict[str, list]) -> object:
        seen.append({len(values) for values in arrays.values()})
        return real(self, arrays)

    monkeypatch.setattr(calibrate.HistogramCollector, "collect", collect)
    shapes = [(1, 3, 8, 8), (2, 3, 16, 16), (1, 3, 12, 20)]  # of which none fits another
    data = quantize(models.convolution(), [{"x": np.ones(shape, np.float32)} for shape in shapes], precision=precision)
    assert operators(data)["QuantizeLinear"]
    assert seen == [{1}] * 3


def test_a_network_of_a_fixed_batch_is_calibrated_on_full_ones(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((10, 3, 8, 8)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["images", "w"], ["c"]), helper.make_node("Flatten", ["c"], ["scores"])]
    inputs, outputs = [models.value("images", [2, 3, 8, 8])], [models.value("scores", [2, 10])]
    model, pictures = tmp_path / "classifier.onnx", tmp_path / "pictures"
    model.write_bytes(models._model(nodes, inputs, outputs, weights))
    pictures.mkdir()
    for index in range(3):
        cv2.imwrite(str(pictures / f"{index}.png"), np.full((16, 16, 3), 250, np.uint8))
    found = list(_pictures(model, pictures, "classifier", None, None))
    assert len(found) == 2
    assert all(request["images"].shape[0] == 2 for request in found)
    assert all(np.array_equal(*request["images"]) for request in found)  # no row is empty


@pytest.mark.parametrize("name", ["convolution", "affine"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_quantized_models_in_half_precision_keep_their_scales(name: str, precision: str) -> None:
    data = quantize(getattr(models, name)(), requests(name), precision="fp8")
    options = BuildOptions(profiles=parse_shapes([CASES[name][1]]), **{precision: True})
    prepared, changes = prepare(data, options)
    assert prepared is not None
    assert "4 nodes of quantized convolutions and products keep their fp32 side" in changes
    assert build_plan(data, options)
    if precision == "fp16":  # ONNX Runtime computes no bf16 on the CPU
        for request in requests(name, 3):
            wanted, actual = OnnxRuntimeSession(data).run(request), OnnxRuntimeSession(prepared).run(request)
            for output in wanted:
                assert np.linalg.norm(actual[output] - wanted[output]) <= 0.01 * np.linalg.norm(wanted[output])


def test_fp8_convolutions_get_a_scale_per_channel_which_changes_no_number(tmp_path: Path) -> None:
    """TensorRT-RTX 1.6.1 computes them wrongly with one scale for all channels."""
    data = quantize(models.convolution(), requests("convolution"), precision="fp8")
    prepared, changes = prepare(data, BuildOptions())
    assert prepared is not None
    assert changes == ["1 fp8 convolutions: the scale of the weights is written once per channel"]
    dequantized = next(n for n in onnx.load_from_string(prepared).graph.node if n.input[0] == "W_quantized")
    shapes = {tensor.name: list(tensor.dims) for tensor in onnx.load_from_string(prepared).graph.initializer}
    assert [shapes[name] for name in dequantized.input] == [[8, 3, 3, 3], [8], [8]]
    assert prepare(prepared, BuildOptions()) == (None, [])
    for request in requests("convolution", 3):
        before, after = OnnxRuntimeSession(data).run(request), OnnxRuntimeSession(prepared).run(request)
        assert all(np.array_equal(before[name], after[name]) for name in before)
    path = tmp_path / "outside.onnx"
    onnx.save(onnx.load_from_string(data), path, save_as_external_data=True, size_threshold=0, location="w.bin")
    from_file, _ = prepare(path, BuildOptions())
    assert from_file is not None
    request = requests("convolution", 1)[0]
    before, after = OnnxRuntimeSession(data).run(request), OnnxRuntimeSession(from_file).run(request)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert build_plan(path, BuildOptions(profiles=parse_shapes([CASES["convolution"][1]])))
