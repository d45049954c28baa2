"""The precision of graphs: what rounding keeps, what stays in fp32, and products without TF32."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun import flavor
from trtrun.building import precision
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.building.quantization import quantize
from trtrun.cli import app
from trtrun.onnx_runtime import OnnxRuntimeSession

RNG = np.random.default_rng()
RTX = flavor.load("tensorrt_rtx").capabilities


def _edges(opset: int = 17) -> bytes:
    """A depthwise convolution whose kernels nearly cancel, x [1, 4, 16, 16] -> y."""
    kernels = RNG.uniform(5, 15, (4, 1, 3, 3)) * np.sign(RNG.standard_normal((4, 1, 3, 3)))
    kernels[:, 0, 1, 1] -= kernels.sum((1, 2, 3)) - 1e-3
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=4)]
    io = [models.value("x", [1, 4, 16, 16])], [models.value("y", [1, 4, 14, 14])]
    proto = onnx.load_from_string(models._model(nodes, *io, {"w": kernels.astype(np.float32)}))
    proto.opset_import[0].version = opset
    return proto.SerializeToString()


@pytest.mark.parametrize(("label", "half"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)])
def test_kernels_are_rounded_so_that_their_sum_stays(label: str, half: type) -> None:
    model = _edges()
    data, changes = prepare(model, BuildOptions(**{label: True}))
    assert data is not None
    assert changes[0] == "1 convolutions: kernels whose weights nearly cancel are rounded so that their sum stays"
    wanted = numpy_helper.to_array(onnx.load_from_string(model).graph.initializer[0]).astype(np.float64)
    tensor = onnx.load_from_string(data).graph.initializer[0]
    found = np.frombuffer(tensor.raw_data, half).reshape(wanted.shape).astype(np.float64)
    spacing = float(ml_dtypes.finfo(half).eps) * np.abs(wanted)  # of numbers in half precision, at most
    assert (np.abs(found - wanted) <= spacing.max((2, 3), keepdims=True)).all()
    off, plain = (np.abs((x - wanted).sum((2, 3))).max() for x in (found, wanted.astype(half).astype(np.float64)))
    assert off <= spacing.min((2, 3)).max() / 2
    assert plain > 3 * off


def test_rounding_leaves_alone_what_stays_in_fp32_and_what_fp16_cannot_hold() -> None:
    model = _edges()
    for keep in ("Conv", "node_0"):
        data, changes = prepare(model, BuildOptions(fp16=True, keep_fp32=(keep,)))
        assert changes == ["fp16; kept in fp32: 1 Conv; inputs and outputs stay fp32"]
        assert data is not None
        kept, given = (onnx.load_from_string(m).graph.initializer[0] for m in (data, model))
        np.testing.assert_array_equal(numpy_helper.to_array(kept), numpy_helper.to_array(given))
    proto = onnx.load_from_string(model)
    large = numpy_helper.to_array(proto.graph.initializer[0]) * np.float32(1e5)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(large, "w"))
    assert "beyond fp16" in prepare(proto.SerializeToString(), BuildOptions(fp16=True))[1][-1]


def _convolutions(
    nodes: list[onnx.NodeProto], outputs: list[str], weights: dict[str, np.ndarray], opset: int = 17
) -> bytes:
    """x [1, 3, 8, 8], outputs of any shape."""
    proto = onnx.load_from_string(
        models._model(nodes, [models.value("x", [1, 3, 8, 8])], [models.value(name, [1]) for name in outputs], weights)
    )
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    proto.opset_import[0].version = opset
    return proto.SerializeToString()


def _kernels(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape or (3, 3, 3, 3)) / 4).astype(np.float32)


def _initializers(data: bytes | None) -> dict[str, onnx.TensorProto]:
    assert data is not None
    return {tensor.name: tensor for tensor in onnx.load_from_string(data).graph.initializer}


def test_kernels_that_do_not_cancel_are_rounded_one_by_one_and_zeros_stay() -> None:
    plain = np.abs(_kernels())
    cancels = _kernels()
    cancels[:, :, 2, 1:] = 0  # as masked convolutions have them
    cancels[:, :, 1, 1] -= cancels.sum((2, 3))
    nodes = [
        helper.make_node("Conv", ["x", "plain"], ["a"]),
        helper.make_node("Constant", [], ["cancels"], value=numpy_helper.from_array(cancels)),
        helper.make_node("Conv", ["a", "cancels"], ["y"]),
    ]
    data, changes = prepare(_convolutions(nodes, ["y"], {"plain": plain}), BuildOptions(fp16=True))
    assert changes[0].startswith("1 convolutions: kernels whose weights nearly cancel")
    found = {name: numpy_helper.to_array(tensor) for name, tensor in _initializers(data).items()}
    np.testing.assert_array_equal(found["plain"], plain.astype(np.float16))
    assert (found["cancels"][cancels == 0] == 0).all()
    assert (found["cancels"] != cancels.astype(np.float16)).any()
    off, rounded = (np.abs(x.astype(np.float64).sum((2, 3))).max() for x in (found["cancels"], cancels.astype("f2")))
    assert off < rounded / 2


@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_products_that_large_biases_drown_stay_in_fp32(label: str, operator: str) -> None:
    weights = {"w1": _kernels(4, 4, 3, 3), "w2": _kernels(4, 4, 3, 3)}
    if operator == "Gemm":
        weights = {name: array.reshape(12, 12) for name, array in weights.items()}
    inputs = [4, 12] if operator == "Gemm" else [1, 4, 8, 8]
    size = len(weights["w1"])
    direction = np.ones(size) / np.sqrt(size)
    for name, ratio in (("1", 17), ("2", 15)):
        weights[f"b{name}"] = (direction * ratio * np.linalg.norm(weights[f"w{name}"])).astype(np.float32)
    nodes = [
        helper.make_node(operator, ["x", "w1", "b1"], ["m"], name="drowned"),
        helper.make_node(operator, ["m", "w2", "b2"], ["y"], name="heard"),
    ]
    outputs = [models.value("y", [4, 12] if operator == "Gemm" else [1, 4, *[4 if operator == "Conv" else 12] * 2])]
    model = models._model(nodes, [models.value("x", inputs)], outputs, weights)
    data, changes = prepare(model, BuildOptions(fp16=label == "fp16", bf16=label == "bf16"))
    types = {name: tensor.data_type for name, tensor in _initializers(data).items()}
    half = onnx.TensorProto.FLOAT16 if label == "fp16" else onnx.TensorProto.BFLOAT16
    assert types == {"w1": onnx.TensorProto.FLOAT, "b1": onnx.TensorProto.FLOAT, "w2": half, "b2": half}
    assert "drowned: far larger biases than weights, kept in fp32" in changes
    assert f"{label}; kept in fp32: 1 {operator}; inputs and outputs stay fp32" in changes


def test_the_sum_of_a_drowned_product_keeps_its_bits() -> None:
    """As in U²-Netp: biases of about a thousand take away what the kernels give, and a hundredth of it is left."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((4, 4, 3, 3)).astype(np.float32)
    x = (600 * w[0] / np.linalg.norm(w[0])).clip(0)[None] * rng.uniform(0.99, 1.01, (8, 1, 1, 1)).astype(np.float32)
    b = -np.einsum("nchw,ochw->o", x, w).astype(np.float32) / 8
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="drowned")
    inputs, outputs = [models.value("x", [8, 4, 3, 3])], [models.value("y", [8, 4, 1, 1])]
    model = models._model([node], inputs, outputs, {"w": w, "b": b})
    wanted = OnnxRuntimeSession(model).run({"x": x})["y"]
    data, changes = prepare(model, BuildOptions(fp16=True))
    assert "drowned: far larger biases than weights, kept in fp32" in changes
    assert data is not None
    half = x.astype(np.float16).astype(np.float32)  # what another layer's fp16 would be
    y = OnnxRuntimeSession(data).run({"x": half})["y"]
    assert np.linalg.norm(y - OnnxRuntimeSession(model).run({"x": half})["y"]) < 1e-5 * np.linalg.norm(wanted)


@pytest.mark.parametrize("other", ["kept by name", "kept by operator", "another reader"])
def test_weights_that_others_read_too_are_theirs_in_fp32(other: str) -> None:
    kernels = _kernels()
    kernels[:, :, 1, 1] -= kernels.sum((2, 3))
    nodes = [helper.make_node("Conv", ["x", "w"], ["a"], name="first")]
    if other == "kept by name":
        nodes.append(helper.make_node("Conv", ["x", "w"], ["b"], name="second"))
    else:
        operator = "ReduceSumSquare" if other == "kept by operator" else "ReduceMax"
        nodes.append(helper.make_node(operator, ["w"], ["s"], name="second"))
        nodes.append(helper.make_node("Mul", ["a", "s"], ["b"]))
    nodes.append(helper.make_node("Conv", ["b", "v"], ["y"]))
    model = _convolutions(nodes, ["y"], {"w": kernels, "v": _kernels(3, 3, 1, 1)})
    data, _ = prepare(model, BuildOptions(fp16=True, keep_fp32=("second",) if other == "kept by name" else ()))
    tensors = _initializers(data)
    if other == "another reader":
        np.testing.assert_array_equal(numpy_helper.to_array(tensors["w"]), kernels.astype(np.float16))
    else:
        np.testing.assert_array_equal(numpy_helper.to_array(tensors["w/fp32"]), kernels)
    assert tensors["w"].data_type == onnx.TensorProto.FLOAT16
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    wanted, found = OnnxRuntimeSession(model)(x)["y"], OnnxRuntimeSession(data)(x)["y"]
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("given", ["value", "value_float", "value_floats"])
def test_constants_beyond_fp16_are_measured_and_said(given: str) -> None:
    value = {
        "value": numpy_helper.from_array(np.float32([-1e6])), "value_float": -1e6, "value_floats": [-1e6]
    }[given]  # fmt: skip
    nodes = [
        helper.make_node("Constant", [], ["k"], **{given: value}),
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Max", ["a", "k"], ["b"]) if given == "value_floats" else
        helper.make_node("Mul", ["a", "k"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]  # fmt: skip
    model = _convolutions(nodes, ["y"], {"w": _kernels()})
    data, changes = prepare(model, BuildOptions(fp16=True))
    OnnxRuntimeSession(data)  # a valid graph
    said = "1 constants hold numbers beyond fp16, up to 1e+06, which were cut to 65504"
    assert (said in changes) is (given != "value_floats")  # Max stays in fp32, and so does its constant
    data, changes = prepare(model, BuildOptions(bf16=True))
    assert "beyond" not in " ".join(changes)
    assert build_plan(data)


def test_infinities_stay_and_are_not_called_cut() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Add", ["a", "mask"], ["b"]),
        helper.make_node("Softmax", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "w"], ["y"]),
    ]
    weights = {"w": _kernels(), "mask": np.float32([0, 0, 0, 0, 0, -np.inf])}
    data, changes = prepare(_convolutions(nodes, ["y"], weights), BuildOptions(fp16=True))
    assert "beyond fp16" not in " ".join(changes)
    assert numpy_helper.to_array(_initializers(data)["mask"])[-1] == -np.inf


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
@pytest.mark.parametrize("keep", [(), ("Relu",), ("first",)])
def test_outputs_that_are_read_inside_too(label: str, keep_io: bool, keep: tuple[str, ...]) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["f"]),
        helper.make_node("Conv", ["f", "v"], ["y"]),
        helper.make_node("Constant", [], ["k"], value_float=3.0),
    ]
    model = _convolutions(nodes, ["a", "f", "y", "k"], {"w": _kernels(), "v": _kernels()})
    data, _ = prepare(model, BuildOptions(**{label: True}, keep_io=keep_io, keep_fp32=keep))
    assert data is not None
    assert build_plan(data)
    if label == "bf16":
        return
    session = OnnxRuntimeSession(data)
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    wanted, found = OnnxRuntimeSession(model)(x), session(x.astype(session.inputs["x"].dtype))
    assert list(found) == ["a", "f", "y", "k"]
    for name, value in found.items():
        assert value.dtype == (np.float32 if keep_io else np.float16)
        assert np.linalg.norm(value - wanted[name]) < 0.01 * np.linalg.norm(wanted[name])


def test_an_output_that_a_branch_reads_too() -> None:
    branches = {
        f"{side}_branch": helper.make_graph(
            [helper.make_node(operator, ["a"], [side])], side, [],
            [helper.make_tensor_value_info(side, onnx.TensorProto.FLOAT, None)],
        )
        for side, operator in (("then", "Relu"), ("else", "Neg"))
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["c"], to=onnx.TensorProto.BOOL),
        helper.make_node("If", ["c"], ["b"], **branches),
        helper.make_node("Conv", ["b", "w"], ["y"]),
    ]
    data, _ = prepare(_convolutions(nodes, ["a", "y"], {"w": _kernels()}), BuildOptions(fp16=True))
    assert set(OnnxRuntimeSession(data)(np.ones((1, 3, 8, 8), np.float32))) == {"a", "y"}


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_casts_to_fp32_inside_the_network(label: str, keep_io: bool) -> None:
    """A mask, counts that a sensitive operator and a product read, and a cast of what is in half precision by then."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Greater", ["h", "zero"], ["above"]),
        helper.make_node("Cast", ["above"], ["mask"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Cast", ["k"], ["count"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Exp", ["count"], ["e"]),
        helper.make_node("MatMul", ["count", "w"], ["c"]),
        helper.make_node("Mul", ["h", "mask"], ["masked"]),
        helper.make_node("Cast", ["masked"], ["again"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Sum", ["again", "e", "c"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    inputs = [models.value("x", [2, 4]), models.value("k", [2, 4], "int64")]
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float32), "zero": np.float32(0)}
    model = models._model(nodes, inputs, [models.value("y", [2, 4])], weights)
    options = BuildOptions(**{label: True}, keep_io=keep_io)
    build_plan(model, options)  # TensorRT takes no product of two types
    if label == "fp16":  # ONNX Runtime multiplies no bf16 on the CPU
        session = OnnxRuntimeSession(prepare(model, options)[0])
        x, k = RNG.standard_normal((2, 4)).astype(np.float32), RNG.integers(0, 3, (2, 4))
        wanted = OnnxRuntimeSession(model)(x=x, k=k)["y"]
        found = session(x=x.astype(session.inputs["x"].dtype), k=k)["y"]
        assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def _exponentials(name: str, out: str) -> list[onnx.NodeProto]:
    """exp(k) @ w, of nodes that share a name or have none."""
    return [
        helper.make_node("Cast", ["k"], [f"{out}/c"], name=name, to=onnx.TensorProto.FLOAT),
        helper.make_node("Exp", [f"{out}/c"], [f"{out}/e"], name=name),
        helper.make_node("Exp", [f"{out}/e"], [f"{out}/f"], name=name),
        helper.make_node("MatMul", [f"{out}/f", "w"], [out], name=name),
    ]


@pytest.mark.parametrize("inner", ["same", ""])
def test_nodes_that_share_a_name_or_have_none(inner: str) -> None:
    branches = {
        f"{side}_branch": helper.make_graph(
            _exponentials(inner, side), side, [], [helper.make_tensor_value_info(side, onnx.TensorProto.FLOAT, None)]
        )
        for side in ("then", "else")
    }
    nodes = [
        *_exponentials("same", "a"),
        *_exponentials("same", "b"),
        helper.make_node("ReduceMax", ["k"], ["m"], keepdims=0),
        helper.make_node("Cast", ["m"], ["some"], to=onnx.TensorProto.BOOL, name="same/1"),
        helper.make_node("If", ["some"], ["i"], **branches),
        helper.make_node("Sum", ["a", "b", "i"], ["y"]),
    ]
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float32)}
    model = models._model(nodes, [models.value("k", [2, 4], "int64")], [models.value("y", [2, 4])], weights)
    data, changes = prepare(model, BuildOptions(fp16=True))
    assert changes == ["fp16; kept in fp32: 4 Exp, 1 Sum; inputs and outputs stay fp32"]
    k = RNG.integers(0, 2, (2, 4))
    wanted = 3 * np.exp(np.exp(k)) @ weights["w"]  # ONNX Runtime takes no two nodes of one name
    assert np.linalg.norm(OnnxRuntimeSession(data)(k=k)["y"] - wanted) < 0.01 * np.linalg.norm(wanted)


def test_a_name_that_keep_fp32_gives_is_that_of_every_node_that_has_it() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="same"),
        helper.make_node("Neg", ["a"], ["b"], name="same"),
        helper.make_node("MatMul", ["b", "w"], ["c"]),
        helper.make_node("Abs", ["c"], ["d"]),  # node_3 by its position
        helper.make_node("MatMul", ["d", "w"], ["e"], name="node_3"),
        helper.make_node("MatMul", ["e", "w"], ["y"]),
    ]
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float32)}
    model = models._model(nodes, [models.value("x", [4, 4])], [models.value("y", [4, 4])], weights)
    data, changes = prepare(model, BuildOptions(fp16=True, keep_fp32=("same", "node_3")))
    assert changes == ["fp16; kept in fp32: 1 Abs, 1 MatMul, 1 Neg, 1 Relu; inputs and outputs stay fp32"]
    OnnxRuntimeSession(data)  # a valid graph


@pytest.mark.parametrize("keep_io", [True, False])
def test_outputs_behind_values_whose_type_is_not_known(keep_io: bool) -> None:
    """A plugin's: there is no tail then, and the output's Cast to fp32 is not the last node."""
    nodes = [
        helper.make_node("Unknown", ["x"], ["u"], domain="custom"),
        helper.make_node("MatMul", ["u", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=onnx.TensorProto.FLOAT),
    ]
    weights = {"w": RNG.standard_normal((4, 4)).astype(np.float32)}
    proto = onnx.load_from_string(
        models._model(nodes, [models.value("x", [4, 4])], [models.value("y", [4, 4])], weights)
    )
    proto.opset_import.append(helper.make_opsetid("custom", 1))
    data, changes = prepare(proto.SerializeToString(), BuildOptions(fp16=True, keep_io=keep_io))
    assert data is not None
    graph = onnx.load_from_string(data).graph
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert graph.output[0].type.tensor_type.elem_type == (full if keep_io else half)
    assert changes == [f"fp16; kept in fp32: none; inputs and outputs {'stay fp32' if keep_io else 'fp16'}"]
    for node in graph.node:  # the plugin becomes the identity, so that the types can be checked
        if node.op_type == "Unknown":
            node.op_type, node.domain = "Identity", ""
    x = RNG.standard_normal((4, 4)).astype(np.float32)
    session = OnnxRuntimeSession(
        helper.make_model(graph, opset_imports=[proto.opset_import[0]], ir_version=9).SerializeToString()
    )
    found = session(x.astype(session.inputs["x"].dtype))["y"]
    assert found.dtype == (np.float32 if keep_io else np.float16)
    assert np.linalg.norm(found - x @ weights["w"]) < 0.01 * np.linalg.norm(x @ weights["w"])


def _rotary(product: bool) -> bytes:
    """x [N, T, 8] turned by the angles of positions [N, T], as exporters write it: y = (x·cos + x·sin) @ w."""
    nodes = [
        helper.make_node("Unsqueeze", ["positions", "axis"], ["p1"]),
        helper.make_node("Cast", ["p1"], ["p"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Shape", ["positions"], ["sizes"], end=1),
        helper.make_node("Concat", ["sizes", "ones"], ["wide"], axis=0),
        helper.make_node("Expand", ["frequencies", "wide"], ["f"]),
        helper.make_node("MatMul" if product else "Mul", ["p", "f"], ["half"]),
        helper.make_node("Concat", ["half", "half"], ["angles"], axis=-1),
        helper.make_node("Cos", ["angles"], ["cos"]),
        helper.make_node("Sin", ["angles"], ["sin"]),
        helper.make_node("MatMul", ["x", "w"], ["q"]),
        helper.make_node("Mul", ["q", "cos"], ["left"]),
        helper.make_node("Mul", ["q", "sin"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["turned"]),
        helper.make_node("MatMul", ["turned", "w"], ["y"]),
    ]
    weights = {
        "axis": np.int64([2]),
        "ones": np.int64([1, 1]),
        "frequencies": (10000.0 ** -(np.arange(4).reshape(1, 1, 4) / 4)).astype(np.float32),
        "w": np.eye(8, dtype=np.float32),
    }
    inputs = [models.value("x", ["N", "T", 8]), models.value("positions", ["N", "T"], "int64")]
    return models._model(nodes, inputs, [models.value("y", ["N", "T", 8])], weights)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("product", [True, False])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_positions_are_computed_in_fp32(label: str, product: bool, keep_io: bool) -> None:
    model = _rotary(product)
    options = BuildOptions(**{label: True}, keep_io=keep_io, profiles=parse_shapes(["x=1x4x8", "positions=1x4"]))
    data, changes = prepare(model, options)
    operator = "MatMul" if product else "Mul"
    ends = "stay fp32" if keep_io else label
    assert changes == [
        "5 nodes that make positions or sizes of integers stay in fp32",
        f"{label}; kept in fp32: 1 Concat, 1 Cos, 1 Expand, 1 {operator}, 1 Sin; inputs and outputs {ends}",
    ]
    build_plan(model, options)
    if label == "fp16":  # by onnx, since ONNX Runtime takes away the casts that would round
        assert data is not None
        x, positions = np.ones((1, 4, 8), np.float32), np.int64([[999, 2049, 60001, 70003]])
        request = {"x": x if keep_io else x.astype(np.float16), "positions": positions}
        (found,) = ReferenceEvaluator(onnx.load_from_string(data)).run(None, request)
        assert found.dtype == request["x"].dtype
        assert np.abs(found - OnnxRuntimeSession(model)(x=x, positions=positions)["y"]).max() < 2e-3


@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_sizes_are_computed_in_fp32(label: str) -> None:
    """A Resize by a factor of sizes that only the request gives, of features that stay in half precision."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Shape", ["a"], ["shape"]),
        helper.make_node("Slice", ["shape", "two", "four"], ["sizes"]),
        helper.make_node("Cast", ["sizes"], ["c"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "factor"], ["m"]),
        helper.make_node("Floor", ["m"], ["f"]),
        helper.make_node("Cast", ["f"], ["i"], to=onnx.TensorProto.INT64),
        helper.make_node("Slice", ["shape", "zero", "two"], ["head"]),
        helper.make_node("Concat", ["head", "i"], ["all"], axis=0),
        helper.make_node("Resize", ["a", "", "", "all"], ["r"], mode="nearest"),
        helper.make_node("Conv", ["r", "w"], ["y"]),
    ]
    weights = {"w": _kernels(1, 1, 1, 1), "factor": np.float32(1.7)}
    weights |= {name: np.int64([number]) for name, number in (("zero", 0), ("two", 2), ("four", 4))}
    outputs = [models.value("y", [1, 1, "h", "v"])]
    model = models._model(nodes, [models.value("x", [1, 1, 4, "W"])], outputs, weights)
    options = BuildOptions(**{label: True}, profiles=parse_shapes(["x=1x1x4x8:1x1x4x64:1x1x4x4000"]))
    data, changes = prepare(model, options)
    assert changes == [
        "3 nodes that make positions or sizes of integers stay in fp32",
        f"{label}; kept in fp32: 1 Cast, 1 Floor, 1 Mul, 1 Resize; inputs and outputs stay fp32",
    ]
    assert build_plan(model, options)  # TensorRT takes no sizes in half precision
    if label == "fp16":
        x = RNG.standard_normal((1, 1, 4, 2049)).astype(np.float32)
        wanted, found = OnnxRuntimeSession(model)(x)["y"], OnnxRuntimeSession(data)(x)["y"]
        assert found.shape == wanted.shape
        assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def test_what_is_no_position_goes_on_in_half_precision() -> None:
    """A count that a matrix of weights takes, one that only scales features, and sines of features."""
    nodes = [
        helper.make_node("Cast", ["k"], ["c"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["c", "w"], ["m"]),
        helper.make_node("Sin", ["m"], ["s"]),
        helper.make_node("Mul", ["c", "s"], ["g"]),
        helper.make_node("MatMul", ["g", "w"], ["n"]),
        helper.make_node("Mul", ["n", "alpha"], ["o"]),
        helper.make_node("Sin", ["o"], ["t"]),
        helper.make_node("MatMul", ["t", "w"], ["y"]),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "alpha": np.float32([2, 3, 4, 5])}
    model = models._model(nodes, [models.value("k", [4, 4], "int64")], [models.value("y", [4, 4])], weights)
    _, changes = prepare(model, BuildOptions(fp16=True))
    assert changes == ["fp16; kept in fp32: none; inputs and outputs stay fp32"]


def _on_half_grid(array: np.ndarray) -> bool:
    return bool(np.array_equal(array.astype(np.float16).astype(np.float32), array))


@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_what_stands_behind_the_last_products_stays_in_fp32(label: str) -> None:
    """A detector's end: scores, and centres in pixels of which a constant is also read before the last product."""
    weights = {
        "a": RNG.standard_normal((8, 8)).astype(np.float32),
        "w": (RNG.standard_normal((8, 6)) / 200).astype(np.float32),  # scores between 0 and 1
        "stride": np.float32([32.1]),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["f"]),
        helper.make_node("Mul", ["f", "stride"], ["g"]),
        helper.make_node("Relu", ["g"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Sigmoid", ["p"], ["scores"]),
        helper.make_node("Constant", [], ["half"], value=numpy_helper.from_array(np.float32([0.5]), "half")),
        helper.make_node("Add", ["p", "half"], ["centre"]),
        helper.make_node("Mul", ["centre", "stride"], ["pixels"]),
        helper.make_node("Exp", ["scores"], ["sizes"]),
        helper.make_node("Neg", ["h"], ["features"]),  # of what the last product reads
    ]
    outputs = [models.value(name, ["N", 6]) for name in ("scores", "pixels", "sizes")]
    outputs += [models.value("p", ["N", 6]), models.value("features", ["N", 8])]
    model = models._model(nodes, [models.value("x", ["N", 8])], outputs, weights)
    data, changes = prepare(model, BuildOptions(**{label: True}))
    assert data is not None
    assert changes == [f"{label}; kept in fp32: 1 Add, 1 Exp, 1 Mul, 1 Neg, 1 Sigmoid; inputs and outputs stay fp32"]
    assert build_plan(data)
    if label == "bf16":  # ONNX Runtime computes none on the CPU
        return
    x = RNG.standard_normal((5, 8)).astype(np.float32)
    wanted, found = OnnxRuntimeSession(model)(x), OnnxRuntimeSession(data)(x)
    assert list(found) == list(wanted)
    for name in found:
        assert np.linalg.norm(found[name] - wanted[name]) < 0.01 * np.linalg.norm(wanted[name])
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.output)}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    behind = [node for node in graph.node if node.output[0] in ("scores", "centre", "pixels", "sizes")]
    assert {types[name] for node in behind for name in node.input} == {onnx.TensorProto.FLOAT}
    assert not _on_half_grid(found["scores"])
    session = OnnxRuntimeSession(prepare(model, BuildOptions(fp16=True, keep_io=False))[0])
    assert session.outputs["scores"].dtype == np.float16


def test_a_node_without_a_name_can_be_kept_by_its_position() -> None:
    with pytest.raises(trtrun.BuildError, match=r"node_9.*position"):
        prepare(models.affine(), BuildOptions(fp16=True, keep_fp32=("node_9",)))
    _, changes = prepare(models.affine(), BuildOptions(fp16=True, keep_fp32=("node_0",)))
    assert changes == ["fp16; kept in fp32: 1 Add, 1 MatMul, 1 Relu; inputs and outputs stay fp32"]


def test_the_command_reports_each_change(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "affine.onnx"
    path.write_bytes(models.affine(batch=3))
    result = CliRunner().invoke(app, ["build", str(path), "--fp16", "--keep-fp32", "MatMul"])
    assert result.exit_code == 0, result.output
    (record,) = [record for record in caplog.records if record.name == "trtrun.building"]
    assert record.levelname == "INFO"
    assert record.message.endswith("fp16; kept in fp32: 1 Add, 1 MatMul, 1 Relu; inputs and outputs stay fp32.")


def test_int8_is_converted_where_the_operator_set_has_fp16_scales() -> None:
    requests = [{"x": RNG.standard_normal((4, 12)).astype(np.float32)} for _ in range(8)]
    data = quantize(models.affine(), requests, precision="int8")
    options = BuildOptions(fp16=True, profiles=parse_shapes(["x=1x12:4x12:64x12"]))
    before, changes = prepare(data, options)
    assert changes[0] == "4 nodes of quantized convolutions and products keep their fp32 side"  # opset 17
    later = onnx.version_converter.convert_version(onnx.load_from_string(data), 21).SerializeToString()
    after, changes = prepare(later, options)
    assert changes == ["fp16; kept in fp32: 1 Add, 1 Relu; inputs and outputs stay fp32"]
    for model in (before, after):
        assert model is not None
        for request in requests[:3]:
            wanted, found = OnnxRuntimeSession(data).run(request)["y"], OnnxRuntimeSession(model).run(request)["y"]
            # fp16 may move a value over the edge between two int8 levels, each about 1 % of the largest value.
            assert np.linalg.norm(found - wanted) <= 0.04 * np.linalg.norm(wanted)
    assert build_plan(later, options)


def _products(scale: float = 1.0) -> tuple[bytes, dict[str, np.ndarray]]:
    """Every kind of product: y = Gemm(MatMul(x, v)) of rows, z of convolutions: grouped, transposed and depthwise too.

    The batch is dynamic; ``scale`` is that of x and i, and v and k, which they are multiplied with, have its inverse.
    """
    rng = np.random.default_rng(5)
    shapes = {"w": (6, 8), "k": (8, 3, 3, 3), "g": (8, 4, 1, 1), "t": (8, 4, 2, 2), "d": (4, 1, 3, 3)}
    shapes |= {"l": (5, 5), "c": (6,), "b": (8,), "h": (8,)}
    weights = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    weights["k"] /= np.float32(scale)
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["m"]),
        helper.make_node("MatMul", ["l", "m"], ["n"]),
        helper.make_node("Gemm", ["n", "w", "c"], ["y"], transB=1, alpha=0.5, beta=2.0),
        helper.make_node("Conv", ["i", "k", "b"], ["e"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["e", "g", "h"], ["f"], group=2),
        helper.make_node("ConvTranspose", ["f", "t"], ["u"], strides=[2, 2]),
        helper.make_node("Conv", ["u", "d"], ["z"], group=4),
    ]
    inputs = [models.value("x", [5, 7]), models.value("v", [7, 8]), models.value("i", ["n", 3, 8, 8])]
    outputs = [models.value("y", [5, 6]), models.value("z", ["n", 4, 14, 14])]
    sizes = {"x": (5, 7), "v": (7, 8), "i": (2, 3, 8, 8)}
    request = {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in sizes.items()}
    request["v"] /= np.float32(scale**2)
    return models._model(nodes, inputs, outputs, weights), request


@pytest.mark.parametrize(("opset", "scale"), [(9, 1.0), (17, 1.0), (17, 1e6), (17, 1e-6)])
def test_without_tf32_products_are_sums_of_what_tf32_holds(opset: int, scale: float) -> None:
    model, request = _products(scale)
    proto = onnx.load_from_string(model)
    proto.opset_import[0].version, proto.ir_version = opset, 4
    data, changes = prepare(proto.SerializeToString(), BuildOptions(tf32=False), RTX)
    assert data is not None
    assert changes == ["without TF32: 2 Conv, 1 ConvTranspose, 1 Gemm, 2 MatMul, each computed as a sum of three"]
    # Every operand of every product is cut as the GPU cuts it: the products are still those of fp32.
    cut = _with_cut_operands(onnx.load_from_string(data))
    wanted = OnnxRuntimeSession(model).run(request)
    plain = OnnxRuntimeSession(_with_cut_operands(onnx.load_from_string(model))).run(request)
    for name, value in OnnxRuntimeSession(cut).run(request).items():
        error, before = (np.linalg.norm(v - wanted[name]) / np.linalg.norm(wanted[name]) for v in (value, plain[name]))
        assert error < 4e-6  # after three products
        assert before > 100 * error
    assert build_plan(data)


def _with_cut_operands(proto: onnx.ModelProto) -> bytes:
    """A model whose products read operands rounded to TF32's 11 bits: (x · 8193) − (x · 8193 − x), by Veltkamp."""
    proto.graph.initializer.append(numpy_helper.from_array(np.float32(8193), "splitter"))
    nodes = []
    for node in proto.graph.node:
        depthwise = node.output[0] == "z"
        if node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and not depthwise:
            for index, name in enumerate(node.input[:2]):
                large, rest, cut = (f"{node.output[0]}_{index}_{part}" for part in ("large", "rest", "cut"))
                nodes.append(helper.make_node("Mul", [name, "splitter"], [large]))
                nodes.append(helper.make_node("Sub", [large, name], [rest]))
                nodes.append(helper.make_node("Sub", [large, rest], [cut]))
                node.input[index] = cut
        nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto.SerializeToString()


def test_without_tf32_infinite_weights_spoil_only_what_they_are_multiplied_into() -> None:
    weights = {"w": np.array([[1, np.inf], [1, 0]], np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = models._model(nodes, [models.value("x", [1, 2])], [models.value("y", [1, 2])], weights)
    data, _ = prepare(model, BuildOptions(tf32=False), RTX)
    assert data is not None
    y = OnnxRuntimeSession(data)(np.array([[1.5, 2]], np.float32))["y"]
    assert y[0, 0] == 3.5
    assert not np.isfinite(y[0, 1])


def test_what_multiplies_inside_keeps_tf32_and_that_is_said() -> None:
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["e"], equation="ij,jk->ik"),
        helper.make_node("Unknown", ["e"], ["u"], domain="custom"),
        helper.make_node("MatMul", ["u", "w"], ["y"]),  # that u is fp32 is told by w
    ]
    model = models._model(
        nodes, [models.value("x", [4, 4])], [models.value("y", [4, 4])], {"w": np.eye(4, dtype=np.float32)}
    )
    assert prepare(model, BuildOptions(tf32=False), RTX)[1] == [
        "without TF32: 1 MatMul, each computed as a sum of three",
        "still with TF32, which multiply inside: 1 Einsum",
    ]


def test_tf32_stays_where_it_is_wanted_or_does_not_exist() -> None:
    for options in (BuildOptions(), BuildOptions(tf32=False, compute_capabilities=("sm_75",))):
        assert prepare(models.affine(), options, RTX) == (None, [])
    assert prepare(models.affine("float16"), BuildOptions(tf32=False), RTX)[1] == []
    fp8 = quantize(models.affine(), [{"x": RNG.standard_normal((4, 12)).astype(np.float32)}])
    assert prepare(fp8, BuildOptions(tf32=False), RTX)[1] == []


def test_an_operator_set_that_cannot_be_brought_up_is_said() -> None:
    proto = onnx.load_from_string(models.affine())
    proto.opset_import[0].version = 1
    with pytest.raises(trtrun.BuildError, match="operator set 1, tf32=False needs 13"):
        precision.without_tf32(proto, "this model", [])


@pytest.mark.parametrize("constants", [False, True])
def test_branches_with_weights_of_the_same_name_keep_their_own_in_bf16(constants: bool) -> None:
    def branch(name: str, weights: list[float]) -> onnx.GraphProto:
        tensor = numpy_helper.from_array(np.array(weights, np.float32), "w")
        nodes = [helper.make_node("Mul", ["z", "w"], ["o"])]
        if constants:
            nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
        return helper.make_graph(nodes, name, [], [models.value("o", [2])], [] if constants else [tensor])

    nodes = [
        helper.make_node("Sigmoid", ["x"], ["z"]),
        helper.make_node("If", ["c"], ["v"], then_branch=branch("a", [1, 2]), else_branch=branch("b", [3, 4])),
        helper.make_node("Sigmoid", ["v"], ["y"]),
    ]
    inputs = [models.value("x", [2]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    model = models._model(nodes, inputs, [models.value("y", [2])], {})
    data, _ = prepare(model, BuildOptions(bf16=True))
    assert data is not None
    (both,) = (node for node in onnx.load_from_string(data).graph.node if node.op_type == "If")
    for attribute in both.attribute:
        ((_, tensor),) = precision._tensors(attribute.g)
        assert tensor.data_type == onnx.TensorProto.BFLOAT16
        wanted = [1, 2] if attribute.name == "then_branch" else [3, 4]
        assert numpy_helper.to_array(tensor).astype(np.float32).tolist() == wanted
    assert build_plan(data, BuildOptions())


@pytest.mark.parametrize("keep", [(), ("GRU", "LSTM")])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
@pytest.mark.parametrize(("operator", "gates"), [("GRU", 3), ("LSTM", 4)])
def test_outputs_that_are_left_out_before_others(operator: str, gates: int, label: str, keep: tuple[str, ...]) -> None:
    """The converter took them for what optional inputs, also without a name, are made of."""
    node = helper.make_node(operator, ["x", "w", "r", "", "", "h"], ["", "y"], hidden_size=5)
    weights = {
        "w": RNG.standard_normal((1, 5 * gates, 3)).astype(np.float32),
        "r": RNG.standard_normal((1, 5 * gates, 5)).astype(np.float32),
        "h": RNG.standard_normal((1, 2, 5)).astype(np.float32),
    }
    for steps in (2, 4):
        model = models._model([node], [models.value("x", [steps, 2, 3])], [models.value("y", [1, 2, 5])], weights)
        options = BuildOptions(**{label: True}, keep_fp32=tuple(name for name in keep if name == operator))
        data, _ = prepare(model, options)
        assert data is not None
        proto = onnx.load_from_string(data)
        assert not any("left_out" in name for each in proto.graph.node for name in (*each.input, *each.output))
        assert build_plan(model, options)
        if label == "fp16":
            x = RNG.standard_normal((steps, 2, 3)).astype(np.float32)
            wanted, found = (OnnxRuntimeSession(each)(x)["y"] for each in (model, data))
            np.testing.assert_allclose(found, wanted, atol=1e-2)


def _choice(then: list[onnx.NodeProto], otherwise: list[onnx.NodeProto]) -> onnx.NodeProto:
    branches = {
        name: helper.make_graph(nodes, name, [], [models.value(nodes[-1].output[0], None)])
        for name, nodes in (("then_branch", then), ("else_branch", otherwise))
    }
    return helper.make_node("If", ["c"], ["v"], **branches)


@pytest.mark.parametrize("keep_io", [True, False])
@pytest.mark.parametrize("label", ["fp16", "bf16"])
def test_inner_graphs_are_converted_with_what_they_read_outside(label: str, keep_io: bool) -> None:
    """The model's input, a value, weights, and what stays in fp32 inside, also in graphs inside those."""
    inside = _choice(
        [helper.make_node("Pow", ["e", "two"], ["p"]), helper.make_node("Add", ["p", "x"], ["q"])],
        [helper.make_node("Mul", ["e", "z"], ["q"])],
    )
    convolution = helper.make_node("Conv", ["x", "w"], ["r"], pads=[1] * 4)
    choice = _choice(
        [convolution, helper.make_node("Exp", ["r"], ["e"]), inside, helper.make_node("Exp", ["v"], ["o"])],
        [helper.make_node("Conv", ["z", "w"], ["r"], pads=[1] * 4), helper.make_node("Mul", ["r", "two"], ["o"])],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["s"], pads=[1] * 4),
        helper.make_node("Tanh", ["s"], ["z"]),
        choice,
        helper.make_node("Conv", ["v", "w"], ["y"]),
    ]
    inputs = [models.value("x", [1, 3, 8, 8]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    weights = {"w": (RNG.standard_normal((3, 3, 3, 3)) / 20).astype(np.float32), "two": np.array(2, np.float32)}
    model = models._model(nodes, inputs, [models.value("y", [1, 3, 6, 6])], weights)
    options = BuildOptions(**{label: True}, keep_io=keep_io)
    data, _ = prepare(model, options)
    assert data is not None
    assert build_plan(model, options)
    if label == "fp16":
        x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
        for condition in (True, False):
            wanted = OnnxRuntimeSession(model).run({"x": x, "c": np.array(condition)})["y"]
            given = x if keep_io else x.astype(np.float16)
            found = OnnxRuntimeSession(data).run({"x": given, "c": np.array(condition)})["y"]
            assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def test_outputs_of_branches_that_are_read_inside_too() -> None:
    """The converter does not know their types where it looks for what a node in fp32 reads."""
    outer = [helper.make_node("Conv", ["x", "w"], ["z"]), helper.make_node("Conv", ["v", "w"], ["y"])]
    then = [
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Exp", ["r"], ["e"]),
        helper.make_node("Neg", ["z"], ["n"]),
    ]
    resized = helper.make_node("Resize", ["r", "", "scales"], ["e"], mode="linear")
    choice = _choice(then, [then[0], resized, then[2]])
    for attribute in choice.attribute:
        attribute.g.output[0].name = "r"
    inputs = [models.value("x", [1, 3, 8, 8]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    weights = {"w": (RNG.standard_normal((3, 3, 3, 3)) / 9).astype(np.float32)}
    weights["scales"] = np.array([1, 1, 2, 2], np.float32)
    outputs = [models.value("y", [1, 3, 4, 4])]
    model = models._model([outer[0], choice, outer[1]], inputs, outputs, weights)
    data, _ = prepare(model, BuildOptions(fp16=True))
    assert data is not None
    x = RNG.standard_normal((1, 3, 8, 8)).astype(np.float32)
    for condition in (True, False):
        wanted, found = (
            OnnxRuntimeSession(each).run({"x": x, "c": np.array(condition)})["y"] for each in (model, data)
        )
        assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


@pytest.mark.parametrize("kept", ["Loop", "sums", "Cast"])
def test_what_cannot_be_kept_as_a_whole_is_kept_node_by_node(kept: str) -> None:
    """The converter does not look into a Loop that it keeps, and never ends with casts."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Mul", ["s", "large"], ["p"]),
            helper.make_node("Div", ["p", "large"], ["q"]),
            helper.make_node("Add", ["q", "r"], ["t"]),
        ],
        "body",
        [
            models.value("i", [], "int64"),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            models.value("s", [2, 4]),
        ],
        [helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []), models.value("t", [2, 4])],
        [numpy_helper.from_array(np.float32(60000), "large")],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Loop", ["times", "true", "r"], ["l"], body=body, name="sums"),
        helper.make_node("Cast", ["l"], ["c"], to=onnx.TensorProto.INT32),
        helper.make_node("Cast", ["c"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = {"times": np.int64(3), "true": np.array(True), "w": np.eye(4, dtype=np.float32)}
    model = models._model(nodes, [models.value("x", [2, 4])], [models.value("y", [2, 4])], weights)
    options = BuildOptions(fp16=True, keep_fp32=(kept,))
    data, changes = prepare(model, options)
    assert data is not None
    assert build_plan(model, options)
    assert any("sums: what is inside reads values from outside" in change for change in changes) == (kept != "Cast")
    if kept != "Cast":  # in half precision the products are infinite
        x = (RNG.integers(1, 9, (2, 4)) + 0.25).astype(np.float32)
        np.testing.assert_array_equal(OnnxRuntimeSession(data)(x)["y"], OnnxRuntimeSession(model)(x)["y"])


def test_a_loop_that_is_kept_whole_counts_in_fp32() -> None:
    """It reads nothing that is computed outside, so its state needs no half precision: fp16 stops at 2048."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Add", ["s", "one"], ["t"])],
        "body",
        [
            models.value("i", [], "int64"),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            models.value("s", [4]),
        ],
        [helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []), models.value("t", [4])],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Loop", ["times", "", "h"], ["l"], body=body),
        helper.make_node("Relu", ["l"], ["y"]),
    ]
    weights = {"times": np.int64(5000), "one": np.float32([1]), "w": np.eye(4, dtype=np.float32)}
    model = models._model(nodes, [models.value("x", [4])], [models.value("y", [4])], weights)
    data, changes = prepare(model, BuildOptions(fp16=True, keep_fp32=("Loop",)))
    assert data is not None
    assert not any("node by node" in change for change in changes)
    found = OnnxRuntimeSession(data)(np.zeros(4, np.float32))["y"]
    np.testing.assert_allclose(found, 5000, rtol=1e-3)


def test_a_constant_that_a_branch_gives_and_reads() -> None:
    branch = helper.make_graph(
        [helper.make_node("Exp", ["k"], ["e"]), helper.make_node("Relu", ["e"], ["used"])],
        "branch",
        [],
        [models.value("k", [4])],
        [numpy_helper.from_array(np.float32([1, 2, 3, 4]), "k")],
        value_info=[models.value("e", [4])],
    )
    nodes = [
        helper.make_node("If", ["c"], ["v"], then_branch=branch, else_branch=branch),
        helper.make_node("Mul", ["x", "v"], ["y"]),
    ]
    inputs = [models.value("x", [4]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    model = models._model(nodes, inputs, [models.value("y", [4])], {})
    data, _ = prepare(model, BuildOptions(fp16=True))
    assert data is not None
    given = {"x": np.float32([4, 3, 2, 1]), "c": np.array(True)}
    np.testing.assert_array_equal(OnnxRuntimeSession(data).run(given)["y"], [4, 6, 6, 4])


def test_positions_inside_branches_are_computed_in_fp32_too() -> None:
    positions = [
        helper.make_node("Range", ["zero", "length", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "frequency"], ["t"]),
        helper.make_node("Sin", ["t"], ["s"]),
        helper.make_node("Add", ["z", "s"], ["o"]),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["z"]),
        _choice(positions, [helper.make_node("Neg", ["z"], ["n"])]),
        helper.make_node("MatMul", ["v", "w"], ["y"]),
    ]
    inputs = [models.value("x", [4, 3000]), helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, [])]
    weights = {"w": np.eye(3000, dtype=np.float32), "frequency": np.array(0.7, np.float32)}
    weights |= {name: np.array(value) for name, value in (("zero", 0), ("length", 3000), ("one", 1))}
    model = models._model(nodes, inputs, [models.value("y", [4, 3000])], weights)
    data, changes = prepare(model, BuildOptions(fp16=True))
    assert data is not None
    assert "2 nodes that make positions or sizes of integers stay in fp32" in changes
    given = {"x": RNG.standard_normal((4, 3000)).astype(np.float32), "c": np.array(True)}
    wanted, found = (OnnxRuntimeSession(each).run(given)["y"] for each in (model, data))
    np.testing.assert_allclose(found, wanted, atol=0.01)
    assert build_plan(data, BuildOptions())
