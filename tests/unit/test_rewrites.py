"""What is written another way: the same numbers by ONNX Runtime or ONNX's reference, and the real builder takes it."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import trtrun
from trtrun import flavor
from trtrun.building import rewrites
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.onnx_runtime import OnnxRuntimeSession

RNG = np.random.default_rng()
FLOAT, HALF, INT64, BOOL = (getattr(onnx.TensorProto, name) for name in ("FLOAT", "FLOAT16", "INT64", "BOOL"))
# ONNX's node tests that TensorRT-RTX 1.6.1 failed as they are
MENDED = [
    "averagepool_2d_ceil_last_window_starts_on_pad",
    "gru_batchwise",
    "gru_bidirectional",
    "gru_reverse",
    "lstm_batchwise",
    "maxpool_2d_ceil_output_size_reduce_by_one",
    "simple_rnn_batchwise",
    "spacetodepth_crd_mode_example",
    *(f"triu{name}" for name in ("", "_neg", "_one_row", "_out_neg_out", "_out_pos", "_pos", "_square", "_square_neg")),
]
REFUSED = [
    "attention_4d_gqa_causal_nonpad_decode",
    "attention_4d_gqa_causal_nonpad_decode_fp16",
    "roialign_aligned_false",
    "roialign_aligned_true",
    "roialign_mode_max",
]
# ... and neighbours that it passed
RIGHT = [
    "averagepool_2d_ceil",
    "depthtospace_crd_mode_example",
    "gru_defaults",
    "gru_seq_length",
    "lstm_bidirectional",
    "maxpool_2d_ceil",
    "maxpool_2d_precomputed_same_upper",
    "simple_rnn_reverse",
    "spacetodepth",
    "spacetodepth_dcr_mode_example",
    "tril",
    "tril_pos",
    "triu_zero",
]


@cache
def node_tests() -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    return {case.name.removeprefix("test_"): case for case in load_model_tests(kind="node")}


def node_test(name: str) -> tuple[bytes, list[tuple[list[np.ndarray], list[np.ndarray]]]]:
    case = node_tests()[name]
    if case.model is not None:
        return case.model.SerializeToString(), case.data_sets
    folder = os.path.join(case.model_dir, "test_data_set_0")
    model = onnx.load(os.path.join(case.model_dir, "model.onnx"))

    def load(kind: str, count: int) -> list[np.ndarray]:
        return [
            numpy_helper.to_array(onnx.load_tensor(os.path.join(folder, f"{kind}_{index}.pb")))
            for index in range(count)
        ]

    return model.SerializeToString(), [(load("input", len(model.graph.input)), load("output", len(model.graph.output)))]


def model(
    nodes: list, inputs: dict[str, tuple], outputs: dict[str, tuple], weights: dict[str, Any] | None = None, opset=22
) -> bytes:
    def values(given: dict[str, tuple]) -> list:
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in given.items()]

    constants = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", values(inputs), values(outputs), constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return made.SerializeToString()


def changed(data: bytes) -> tuple[bytes, list[str]]:
    prepared, changes = prepare(data, BuildOptions())
    assert prepared is not None
    onnx.checker.check_model(onnx.load_from_string(prepared), full_check=True)
    return prepared, changes


def same(before: bytes, after: bytes, feeds: dict[str, np.ndarray]) -> None:
    wanted, actual = OnnxRuntimeSession(before).run(feeds), OnnxRuntimeSession(after).run(feeds)
    for name, array in wanted.items():
        assert actual[name].shape == array.shape
        np.testing.assert_allclose(actual[name], array, rtol=1e-4, atol=1e-5)


def operators(data: bytes) -> set[str]:
    return {node.op_type for node in onnx.load_from_string(data).graph.node}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", MENDED)
def test_onnx_node_tests(name: str) -> None:
    data, sets = node_test(name)
    prepared, changes = changed(data)
    assert all(change.startswith("1 ") for change in changes)
    names = [value.name for value in onnx.load_from_string(data).graph.input]
    for inputs, outputs in sets:
        actual = OnnxRuntimeSession(prepared).run(dict(zip(names, inputs, strict=True)))
        for got, wanted in zip(actual.values(), outputs, strict=True):
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-5)
    assert build_plan(data)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_left_alone(name: str) -> None:
    assert prepare(node_test(name)[0], BuildOptions(), flavor.load("tensorrt_rtx").capabilities) == (None, [])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_to_tensorrt_rtx_alone(name: str) -> None:
    data = node_test(name)[0]
    with pytest.raises(trtrun.BuildError, match=r"TensorRT-RTX 1\.6.*(RoiAlign|ends the process|is_causal=0)"):
        build_plan(data)
    assert prepare(data, BuildOptions()) == (None, [])
    capabilities = flavor.load("tensorrt_rtx").capabilities
    for other in ({"name": "tensorrt"}, {"version": "1.7.0.1"}):
        rewrites.refuse(onnx.load_from_string(data), "m", type(capabilities)(**{**capabilities.__dict__, **other}))
    # cut off by the choice of outputs, it is no reason
    proto = onnx.load_from_string(data)
    first = proto.graph.input[0]
    proto.graph.node.append(helper.make_node("Relu", [first.name], ["relu"]))
    assert build_plan(proto.SerializeToString(), BuildOptions(outputs=("relu",)))


@pytest.mark.parametrize("kind", [INT64, onnx.TensorProto.INT32, BOOL])
@pytest.mark.parametrize("k", [-1, 0, 2])
def test_trilu_of_dynamic_shapes(kind: int, k: int) -> None:
    nodes = [
        helper.make_node("Abs", ["x"], ["a"]) if kind != BOOL else helper.make_node("Not", ["x"], ["a"]),
        helper.make_node("Trilu", ["a", "k"], ["y"]),
    ]
    shape = ["N", "R", "C"]
    data = model(nodes, {"x": (kind, shape)}, {"y": (kind, shape)}, {"k": np.array(k)})
    prepared, changes = changed(data)
    assert "Trilu" in changes[0]
    x = RNG.integers(-9, 9, (2, 4, 5)).astype(helper.tensor_dtype_to_np_dtype(kind))
    wanted = np.triu(~x if kind == BOOL else np.abs(x), k)
    np.testing.assert_array_equal(OnnxRuntimeSession(prepared)(x)["y"], wanted)
    assert build_plan(data, BuildOptions(profiles=parse_shapes(["x=1x1x1:2x4x5:4x8x8"])))


def test_trilu_of_floats_and_inside_branches() -> None:
    data = model([helper.make_node("Trilu", ["x"], ["y"])], {"x": (FLOAT, [3, 4])}, {"y": (FLOAT, [3, 4])})
    assert prepare(data, BuildOptions()) == (None, [])
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["x"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", INT64, [3, 4])],
        )
        for name, operator in (("then_branch", "Trilu"), ("else_branch", "Neg"))
    }
    data = model(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        {"c": (BOOL, []), "x": (INT64, [3, 4])},
        {"y": (INT64, [3, 4])},
    )
    prepared, _ = changed(data)
    for condition in (True, False):
        same(data, prepared, {"c": np.array(condition), "x": RNG.integers(-9, 9, (3, 4))})


@pytest.mark.parametrize("operator", ["MaxPool", "AveragePool"])
@pytest.mark.parametrize(
    ("size", "attributes", "added"),
    [
        ((5, 5), {"kernel_shape": [1, 1], "strides": [3, 3]}, set()),  # windows at 0, 3, and 6, which is dropped
        ((5, 5), {"kernel_shape": [2, 2], "strides": [4, 4], "pads": [0, 0, 1, 1]}, None),  # 0, 4: no window is lost
        ((8, 8), {"kernel_shape": [2, 2], "strides": [3, 4], "pads": [0, 0, 1, 1]}, set()),  # rows lose one
        ((7, 6), {"kernel_shape": [3, 1], "strides": [3, 2], "pads": [1, 0, 1, 0]}, set()),
        ((8, 6), {"kernel_shape": [3, 1], "strides": [2, 4]}, {"Constant", "Slice"}),  # rows keep one, columns lose one
        (("H", "W"), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, None),  # never lost
        (("H", "W"), {"kernel_shape": [1, 2], "strides": [3, 3]}, {"Add", "Concat", "Div", "Gather", "Shape", "Slice"}),
    ],
)
def test_windows_that_start_in_the_padding(operator: str, size: tuple, attributes: dict, added: set | None) -> None:
    # TensorRT refuses averages without the padding over windows that are all padding
    more = {"count_include_pad": 1} if operator == "AveragePool" else {}
    nodes = [helper.make_node(operator, ["x"], ["y"], ceil_mode=1, **attributes, **more)]
    data = model(nodes, {"x": (FLOAT, [1, 2, *size])}, {"y": (FLOAT, [1, 2, "h", "w"])})
    dynamic = isinstance(size[0], str)
    sizes = [(h, w) for h in range(3, 10) for w in range(3, 10)] if dynamic else [size]

    def tensorrt(height: int, width: int) -> tuple[int, ...]:
        """How many windows TensorRT keeps."""
        pads = attributes.get("pads", [0] * 4)
        return tuple(
            -(-(length + pads[a] + pads[a + 2] - attributes["kernel_shape"][a]) // attributes["strides"][a]) + 1
            for a, length in enumerate((height, width))
        )

    arrays = [RNG.standard_normal((1, 2, *each)).astype(np.float32) for each in sizes]
    right = all(OnnxRuntimeSession(data)(x)["y"].shape[2:] == tensorrt(*x.shape[2:]) for x in arrays)
    if added is None:
        assert right
        assert prepare(data, BuildOptions()) == (None, [])
        return
    prepared, _ = changed(data)
    assert not right
    assert operators(prepared) - {operator, "Constant"} == added - {"Constant"}
    for x in arrays:
        same(data, prepared, {"x": x})
    profiles = parse_shapes(["x=1x2x3x3:1x2x8x8:1x2x16x16"]) if dynamic else ()
    assert build_plan(data, BuildOptions(profiles=profiles))


def recurrent(operator: str, direction: str, steps: Any, batch: Any, *, layout: int = 0, **extra: Any) -> bytes:
    """With random weights, biases and initial states; X is [steps, batch, 3], or [batch, steps, 3] with layout 1."""
    gates = {"GRU": 3, "LSTM": 4, "RNN": 1}[operator]
    sides = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(7)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in (("W", (sides, gates * 5, 3)), ("R", (sides, gates * 5, 5)), ("B", (sides, gates * 10)))
    }
    states = ["h", "c"] if operator == "LSTM" else ["h"]
    outputs = ["Y", *(f"Y_{state}" for state in states)]
    node = helper.make_node(
        operator, ["X", "W", "R", "B", "", *states], outputs, hidden_size=5, direction=direction, **extra
    )
    if layout:
        node.attribute.append(helper.make_attribute("layout", 1))
    state_shape = [batch, sides, 5] if layout else [sides, batch, 5]
    inputs = {"X": (FLOAT, [batch, steps, 3] if layout else [steps, batch, 3])}
    return model(
        [node],
        inputs | dict.fromkeys(states, (FLOAT, state_shape)),
        {"Y": (FLOAT, [None] * 4)} | {f"Y_{state}": (FLOAT, [None] * 3) for state in states},
        weights,
    )


def recurrent_feeds(operator: str, direction: str, steps: int, batch: int) -> dict[str, np.ndarray]:
    sides = 2 if direction == "bidirectional" else 1
    feeds = {"X": RNG.standard_normal((steps, batch, 3)).astype(np.float32)}
    for state in ("h", "c") if operator == "LSTM" else ("h",):
        feeds[state] = RNG.standard_normal((sides, batch, 5)).astype(np.float32)
    return feeds


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("operator", ["GRU", "LSTM", "RNN"])
def test_layout_1(operator: str, direction: str) -> None:
    """Judged by the same node with layout 0: ONNX Runtime computes no other."""
    data = recurrent(operator, direction, 4, 2, layout=1)
    prepared, changes = changed(data)
    assert "layout 1" in changes[0]
    feeds = recurrent_feeds(operator, direction, 4, 2)
    wanted = OnnxRuntimeSession(recurrent(operator, direction, 4, 2)).run(feeds)
    actual = OnnxRuntimeSession(prepared).run({name: array.swapaxes(0, 1) for name, array in feeds.items()})
    for name, array in wanted.items():
        turned = array.transpose(2, 0, 1, 3) if name == "Y" else array.swapaxes(0, 1)
        np.testing.assert_allclose(actual[name], turned, rtol=1e-4, atol=1e-5)
    assert build_plan(data)


@pytest.mark.parametrize("reset", [0, 1])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_gru_step_by_step(direction: str, reset: int) -> None:
    data = recurrent("GRU", direction, 3, "N", linear_before_reset=reset)
    prepared, changes = changed(data)
    assert "step by step" in changes[0]
    assert "GRU" not in operators(prepared)
    for batch in (1, 4):
        same(data, prepared, recurrent_feeds("GRU", direction, 3, batch))
    sides = 2 if direction == "bidirectional" else 1
    profiles = parse_shapes(["X=3x1x3:3x2x3:3x4x3", f"h={sides}x1x5:{sides}x2x5:{sides}x4x5"])
    assert build_plan(data, BuildOptions(profiles=profiles))


def test_gru_without_bias_and_state_and_what_is_not_written_out() -> None:
    rng = np.random.default_rng(1)
    weights = {"W": rng.standard_normal((1, 15, 3)).astype(np.float32)}
    weights["R"] = rng.standard_normal((1, 15, 5)).astype(np.float32)
    for reset in (0, 1):
        node = helper.make_node("GRU", ["X", "W", "R"], ["Y"], hidden_size=5, linear_before_reset=reset)
        data = model([node], {"X": (FLOAT, [3, 2, 3])}, {"Y": (FLOAT, [3, 1, 2, 5])}, weights)
        same(data, changed(data)[0], {"X": RNG.standard_normal((3, 2, 3)).astype(np.float32)})
    for steps, extra in (("S", {}), (65, {}), (3, {"clip": 1.0}), (3, {"activations": ["Sigmoid", "Relu"]})):
        assert prepare(recurrent("GRU", "forward", steps, 2, **extra), BuildOptions()) == (None, [])


@pytest.mark.parametrize("state", [False, True])
@pytest.mark.parametrize("steps", [3, 65])
def test_gru_in_bf16(steps: int, state: bool) -> None:
    """TensorRT's parser takes none in bf16: what is not written step by step stays in fp32."""
    data = recurrent("GRU", "bidirectional", steps, 2)
    if not state:
        proto = onnx.load_from_string(data)
        proto.graph.node[0].input.pop()
        proto.graph.input.pop()
        data = proto.SerializeToString()
    prepared, changes = prepare(data, BuildOptions(bf16=True))
    assert prepared is not None
    assert any("kept in fp32: none" in change for change in changes) == (steps == 3)
    assert ("GRU" in operators(prepared)) == (steps == 65)
    assert build_plan(data, BuildOptions(bf16=True))


def test_space_to_depth() -> None:
    node = helper.make_node("SpaceToDepth", ["x"], ["y"], blocksize=2, mode="CRD")
    data = model([node], {"x": (FLOAT, ["N", 3, "H", "W"])}, {"y": (FLOAT, ["N", 12, "h", "w"])}, opset=28)
    prepared, _ = prepare(data, BuildOptions())
    x = RNG.standard_normal((2, 3, 4, 6)).astype(np.float32)
    wanted = x.reshape(2, 3, 2, 2, 3, 2).transpose(0, 1, 3, 5, 2, 4).reshape(2, 12, 2, 3)
    np.testing.assert_array_equal(
        onnx.reference.ReferenceEvaluator(onnx.load_from_string(prepared)).run(None, {"x": x})[0], wanted
    )
    assert build_plan(data, BuildOptions(profiles=parse_shapes(["x=1x3x2x2:2x3x4x6:2x3x8x8"])))
    unknown = model([node], {"x": (FLOAT, ["N", "C", 4, 6])}, {"y": (FLOAT, ["N", "D", 2, 3])}, opset=28)
    with pytest.raises(trtrun.BuildError, match=r"CRD.*static channels"):
        build_plan(unknown)


def fp8_convolution(operator: str, *, constants: bool, pair: bool, branch: bool = False) -> bytes:
    """x [1, 16, 8, 8] in fp8, with weights [16, 32, 3, 3] (ConvTranspose) or [32, 16, 3, 3] whose scale is one."""
    import ml_dtypes

    fp8 = onnx.TensorProto.FLOAT8E4M3FN
    shape = (16, 32, 3, 3) if operator == "ConvTranspose" else (32, 16, 3, 3)
    weights = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    tensors = {"sx": np.float32(0.01), "sw": np.float32(0.01)}
    protos = [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()]
    protos.append(helper.make_tensor("zero", fp8, [], b"\0", raw=True))
    if pair:
        protos.append(numpy_helper.from_array(weights, "w"))
    else:
        stored = (weights / tensors["sw"]).astype(ml_dtypes.float8_e4m3fn)
        protos.append(helper.make_tensor("w", fp8, shape, stored.tobytes(), raw=True))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "sx", "zero"], ["xd"]),
        *([helper.make_node("QuantizeLinear", ["w", "sw", "zero"], ["wq"])] if pair else []),
        helper.make_node("DequantizeLinear", ["wq" if pair else "w", "sw", "zero"], ["wd"]),
        helper.make_node(operator, ["xd", "wd"], ["y"], pads=[1, 1, 1, 1]),
    ]
    x = helper.make_tensor_value_info("x", FLOAT, [1, 16, 8, 8])
    y = helper.make_tensor_value_info("y", FLOAT, [1, 32, 8, 8])
    inputs = [x]
    if constants:
        nodes[:0] = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in protos]
        protos = []
    if branch:
        inner = helper.make_graph(nodes, "inner", [], [y])
        other = helper.make_graph(
            [helper.make_node("Concat", ["x", "x"], ["z"], axis=1)],
            "other",
            [],
            [helper.make_tensor_value_info("z", FLOAT, [1, 32, 8, 8])],
        )
        nodes = [helper.make_node("If", ["c"], ["out"], then_branch=inner, else_branch=other)]
        inputs.append(helper.make_tensor_value_info("c", BOOL, []))
        y = helper.make_tensor_value_info("out", FLOAT, [1, 32, 8, 8])
    graph = helper.make_graph(nodes, "test", inputs, [y], protos)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return made.SerializeToString()


@pytest.mark.parametrize("branch", [False, True])
@pytest.mark.parametrize("pair", [False, True])
@pytest.mark.parametrize("constants", [False, True])
@pytest.mark.parametrize("operator", ["Conv", "ConvTranspose"])
def test_fp8_scales(operator: str, constants: bool, pair: bool, branch: bool) -> None:
    data = fp8_convolution(operator, constants=constants, pair=pair, branch=branch)
    prepared, changes = changed(data)
    assert changes == ["1 fp8 convolutions: the scale of the weights is written once per channel"]
    feeds = {"x": RNG.standard_normal((1, 16, 8, 8)).astype(np.float32)}
    if branch:
        feeds["c"] = np.array(True)
    same(data, prepared, feeds)
    proto = onnx.load_from_string(prepared)
    graph = proto.graph.node[0].attribute[0].g if branch else proto.graph
    if branch and graph.name != "inner":
        graph = proto.graph.node[0].attribute[1].g
    shapes = {t.name: list(t.dims) for g in (proto.graph, graph) for t in g.initializer}
    of_weights = [n for n in graph.node if "Linear" in n.op_type and n.output[0][0] == "w"]
    assert len(of_weights) == 1 + pair
    for node in of_weights:
        assert [shapes[name] for name in node.input[1:]] == [[32], [32]]
        assert [a.i for a in node.attribute if a.name == "axis"] == [0 if operator == "Conv" else 1]
    assert prepare(prepared, BuildOptions()) == (None, [])
    if not branch:
        assert build_plan(data)


def test_what_simplifying_makes_is_rewritten_too() -> None:
    """The number of channels is known after the fold."""
    nodes = [
        helper.make_node("ReduceProd", ["a"], ["size"], axes=[0], keepdims=0),
        helper.make_node("Reshape", ["x", "size"], ["r"]),
        helper.make_node("SpaceToDepth", ["r"], ["y"], blocksize=2, mode="CRD"),
    ]
    weights = {"a": np.array([[1, 2, 2, 1], [1, 1, 1, 4]])}
    data = model(nodes, {"x": (FLOAT, [1, 16])}, {"y": (FLOAT, [1, 8, 1, 2])}, weights, opset=17)
    prepared, changes = prepare(data, BuildOptions(simplify=True))
    assert prepared is not None
    assert ["simplified" in changes[0], "mode CRD" in changes[1]] == [True, True]
    # ONNX Runtime knows no mode CRD
    feeds = {"x": RNG.standard_normal((1, 16)).astype(np.float32)}
    assert np.array_equal(*(ReferenceEvaluator(each).run(None, feeds)[0] for each in (data, prepared)))


def parsed_shape(data: bytes) -> tuple[int, ...]:
    """The shape of the first output, as TensorRT's parser computes it."""
    loaded = flavor.for_building(None)
    network = loaded.module.Builder(loaded.logger.handle).create_network(0)
    assert loaded.module.OnnxParser(network, loaded.logger.handle).parse(data)
    return tuple(network.get_output(0).shape)


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("opset", [17, 22])
def test_pools_behind_pools_that_lose_a_window(opset: int, declared: bool, inside: bool) -> None:
    """Up to set 21 onnx infers the lost window too, and the next pool was written for it; files declare such sizes."""
    for size, stride, pads, second in (
        (7, 2, [1, 1, 1, 1], {"pads": [0, 0, 1, 1], "strides": [2, 2]}),
        (8, 3, [1, 1, 1, 0], {"pads": [0, 0, 0, 0], "strides": [3, 3]}),
        (9, 3, [0, 0, 1, 1], {"pads": [1, 0, 1, 1], "strides": [2, 3]}),
    ):
        first = helper.make_node(
            "MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[stride] * 2, pads=pads, ceil_mode=1
        )
        if inside:
            graph = branch([first], "a", FLOAT, {})
            first = helper.make_node("If", ["c"], ["a"], then_branch=graph, else_branch=graph)
        nodes = [first, helper.make_node("MaxPool", ["a"], ["y"], kernel_shape=[2, 2], ceil_mode=1, **second)]
        inputs = {"x": (FLOAT, [1, 2, size, size]), **({"c": (BOOL, [])} if inside else {})}
        data, judge = (model(nodes, inputs, {"y": (FLOAT, [1, 2, "h", "w"])}, opset=each) for each in (opset, 22))
        if declared:
            data = onnx.shape_inference.infer_shapes(onnx.load_from_string(data)).SerializeToString()
        feeds = {"x": RNG.standard_normal((1, 2, size, size)).astype(np.float32)}
        feeds |= {"c": np.array(True)} if inside else {}
        prepared, _ = changed(data)
        same(judge, prepared, feeds)  # before 22, ONNX Runtime fails at such a pool inside an If
        if not inside:
            assert parsed_shape(prepared) == OnnxRuntimeSession(judge).run(feeds)["y"].shape


def test_simplifying_behind_pools_that_lose_a_window() -> None:
    """onnxslim infers the lost window too, and took the Reshape for one that changes nothing."""
    nodes = [
        helper.make_node("MaxPool", ["x"], ["a"], kernel_shape=[2, 2], strides=[3, 1], pads=[1, 1, 1, 0], ceil_mode=1),
        helper.make_node("Reshape", ["a", "s"], ["y"]),
    ]
    weights = {"s": np.array([1, 4, 4, -1])}
    data = model(nodes, {"x": (FLOAT, [1, 4, 8, 8])}, {"y": (FLOAT, [1, 4, 4, 6])}, weights, opset=17)
    for options in (BuildOptions(simplify=True), BuildOptions(simplify=True, outputs=("y",))):
        prepared, changes = prepare(data, options)
        assert prepared is not None
        assert sum("ceil_mode" in change for change in changes) == 1
        same(data, prepared, {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)})


@pytest.mark.parametrize("opset", [17, 22])
def test_a_pool_is_rewritten_once(opset: int) -> None:
    """Before simplifying, and not again behind it."""
    nodes = [helper.make_node("MaxPool", ["x"], ["y"], ceil_mode=1, kernel_shape=[3, 1], strides=[2, 4])]
    data = model(nodes, {"x": (FLOAT, [1, 2, 8, 6])}, {"y": (FLOAT, [1, 2, 4, 2])}, opset=opset)
    prepared, _ = prepare(data, BuildOptions(simplify=True))
    assert sum(node.op_type == "Slice" for node in onnx.load_from_string(prepared or b"").graph.node) == 1


def branch(
    nodes: list, output: str, kind: int, weights: dict[str, np.ndarray], known: dict[str, list] | None = None
) -> onnx.GraphProto:
    return helper.make_graph(
        nodes,
        "branch",
        [],
        [helper.make_tensor_value_info(output, kind, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
        value_info=[helper.make_tensor_value_info(name, kind, shape) for name, shape in (known or {}).items()],
    )


def test_shapes_inside_branches_are_those_of_each() -> None:
    """Both call theirs by the same name; the shape of one was written into the other."""
    nodes = [helper.make_node("Slice", ["x", "s", "e"], ["t"]), helper.make_node("Trilu", ["t"], ["o"])]
    branches = {
        name: branch(nodes, "o", INT64, {"s": np.array([0, 0]), "e": np.array([size, size])})
        for name, size in (("then_branch", 4), ("else_branch", 1))
    }
    data = model(
        [helper.make_node("If", ["c"], ["y"], **branches)],
        {"c": (BOOL, []), "x": (INT64, [6, 6])},
        {"y": (INT64, ["N", "M"])},
    )
    prepared, _ = changed(data)
    for condition in (True, False):
        same(data, prepared, {"c": np.array(condition), "x": RNG.integers(1, 9, (6, 6))})


def test_values_inside_get_names_of_their_own() -> None:
    """Inner graphs read outer names; a name that is made inside hides the outer one from there on."""

    def choice(depth: int) -> onnx.NodeProto:
        branches = {}
        for at, name in enumerate(("then_branch", "else_branch")):
            nodes = [
                helper.make_node("Mul", ["a", "w"], ["t"]),  # the outer a
                helper.make_node("Add", ["t", "x"], ["a"]),
                helper.make_node("Mul", ["a", "w"], ["b"]),
            ]
            if depth:
                nodes += [choice(depth - 1), helper.make_node("Add", ["y", "b"], ["e"])]
            weights = {"w": np.array([depth * 2 + at + 2], np.float32)}
            branches[name] = branch(nodes, "e" if depth else "b", FLOAT, weights, {"a": [2]})
        return helper.make_node("If", ["c"], ["y"], **branches)

    nodes = [helper.make_node("Neg", ["x"], ["a"]), choice(1), helper.make_node("Add", ["a", "y"], ["z"])]
    data = model(nodes, {"c": (BOOL, []), "x": (FLOAT, [2])}, {"z": (FLOAT, [2])}, opset=17)
    proto = onnx.load_from_string(data)
    rewrites.separate_values(proto.graph)
    names = [name for graph in rewrites.graphs(proto.graph) for name in rewrites._made(graph)]
    assert len(names) == len(set(names)) == 5 + 2 * 6 + 4 * 4
    separate = proto.SerializeToString()
    onnx.checker.check_model(separate, full_check=True)  # which takes no name twice
    x = np.array([1, 2], np.float32)
    for condition, outer, inner in ((True, 4, 2), (False, 5, 3)):  # the weights
        b = outer * (a := outer * -x + x)
        y = inner * (inner * a + x)
        assert np.array_equal(OnnxRuntimeSession(separate).run({"x": x, "c": np.array(condition)})["z"], -x + y + b)
    rewrites.separate_values(proto.graph)
    assert proto.SerializeToString() == separate
