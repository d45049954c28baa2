"""Changes to the graph: ONNX Runtime runs the changed model as judge, and the real builder takes it."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

import trtrun
from tests import models
from trtrun.building.builder import build_plan
from trtrun.building.graph import prepare
from trtrun.building.options import BuildOptions
from trtrun.onnx_runtime import OnnxRuntimeSession

RNG = np.random.default_rng()


def changed(model: bytes, **options: object) -> tuple[OnnxRuntimeSession, list[str], bytes]:
    data, changes = prepare(model, BuildOptions(**options))
    assert data is not None
    return OnnxRuntimeSession(data), changes, data


def test_nothing_to_change_leaves_the_model_alone() -> None:
    assert prepare(models.affine(), BuildOptions()) == (None, [])


@pytest.mark.parametrize("keep_io", [True, False])
def test_fp16(keep_io: bool) -> None:
    session, changes, data = changed(models.convolution(), fp16=True, keep_io=keep_io)
    dtype = np.float32 if keep_io else np.float16
    assert session.inputs["x"].dtype == dtype
    assert session.outputs["y"].dtype == dtype
    x = RNG.standard_normal((2, 3, 16, 16)).astype(dtype)
    wanted = OnnxRuntimeSession(models.convolution())(x.astype(np.float32))
    for name, array in session(x).items():
        error = np.linalg.norm(array.astype(np.float64) - wanted[name]) / np.linalg.norm(wanted[name])
        assert 0 < error < 5e-3  # 0 would mean that nothing was converted
    assert "fp16; kept in fp32" in changes[-1]
    assert build_plan(data, BuildOptions(profiles=_profile("x", (1, 3, 8, 8), (4, 3, 64, 64))))


def test_fp16_of_a_file_that_lists_its_weights_as_inputs() -> None:
    proto = onnx.load_from_string(models.convolution())
    proto.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in proto.graph.initializer
    )
    weights = len(proto.graph.initializer)
    session, changes, _ = changed(proto.SerializeToString(), fp16=True)
    assert list(session.inputs) == ["x"]
    assert changes[0] == f"{weights} initializers are no longer inputs that could replace them"
    x = RNG.standard_normal((2, 3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(session(x)["y"], OnnxRuntimeSession(models.convolution())(x)["y"], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("keep_io", [True, False])
def test_bf16(keep_io: bool) -> None:
    """ONNX Runtime computes no bf16 on the CPU, so the graph itself is looked at."""
    proto = onnx.load_from_string(models.convolution())
    weights = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    scaled = onnx.numpy_helper.to_array(weights) * np.float32(1e6)  # beyond fp16
    weights.CopyFrom(onnx.numpy_helper.from_array(scaled, weights.name))
    data, changes = prepare(proto.SerializeToString(), BuildOptions(bf16=True, keep_io=keep_io))
    assert data is not None
    kept, io = ("1 Flatten, 1 GlobalAveragePool, 1 Relu", "stay fp32") if keep_io else ("none", "bf16")
    assert changes == [f"bf16; kept in fp32: {kept}; inputs and outputs {io}"]
    converted = onnx.load_from_string(data)
    types = {tensor.data_type for tensor in converted.graph.initializer}
    assert onnx.TensorProto.FLOAT16 not in types
    assert onnx.TensorProto.BFLOAT16 in types
    found = next(tensor for tensor in converted.graph.initializer if len(tensor.dims) == 4)
    bits = np.frombuffer(found.raw_data, ml_dtypes.bfloat16).reshape(tuple(found.dims))
    np.testing.assert_array_equal(bits, scaled.astype(ml_dtypes.bfloat16))
    io = {value.type.tensor_type.elem_type for value in (*converted.graph.input, *converted.graph.output)}
    assert io == {onnx.TensorProto.FLOAT if keep_io else onnx.TensorProto.BFLOAT16}
    assert build_plan(data, BuildOptions(profiles=_profile("x", (1, 3, 8, 8), (4, 3, 64, 64))))


def test_bf16_constants_inside_nodes_and_what_excludes_it() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(np.float32([1e9]), "c")),
        helper.make_node("Mul", ["x", "c"], ["y"]),
    ]
    model = models._model(nodes, [models.value("x", [1, 4])], [models.value("y", [1, 4])], {})
    data, _ = prepare(model, BuildOptions(bf16=True, keep_io=False))  # keep_io keeps what ends a network in fp32
    assert data is not None
    (constant,) = onnx.load_from_string(data).graph.initializer
    assert constant.data_type == onnx.TensorProto.BFLOAT16
    assert np.frombuffer(constant.raw_data, ml_dtypes.bfloat16) == ml_dtypes.bfloat16(1e9)
    with pytest.raises(trtrun.BuildError, match="exclude each other"):
        prepare(model, BuildOptions(bf16=True, fp16=True))
    with pytest.raises(trtrun.BuildError, match="fp16 tensors already"):
        prepare(models.convolution("float16"), BuildOptions(bf16=True))


def test_sensitive_operators_stay_in_fp32() -> None:
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], name="squared"),
        helper.make_node("ReduceSum", ["square"], ["total"], keepdims=1),
        helper.make_node("Div", ["x", "total"], ["unit"], name="scaled"),
        helper.make_node("MatMul", ["unit", "w"], ["y"]),
    ]
    weights = {"w": np.ones((4096, 2), np.float32)}
    model = models._model(nodes, [models.value("x", [1, 4096])], [models.value("y", [1, 2])], weights)
    x = np.full((1, 4096), 6, np.float32)  # the squares add up to 147,456, beyond fp16
    session, changes, data = changed(model, fp16=True)
    assert "1 ReduceSum" in changes[0]
    assert np.isfinite(session(x)["y"]).all()
    by_name = onnx.load_from_string(changed(model, fp16=True, keep_fp32=("squared", "Div", "MatMul"))[2])
    assert sum(node.op_type == "Cast" for node in by_name.graph.node) < sum(
        node.op_type == "Cast" for node in onnx.load_from_string(data).graph.node
    )
    with pytest.raises(trtrun.BuildError, match="Sqrt"):
        prepare(model, BuildOptions(fp16=True, keep_fp32=("Sqrt",)))


def test_other_outputs() -> None:
    session, changes, data = changed(models.affine(), outputs=("h", "s"))
    assert list(session.outputs) == ["h", "s"]
    x = RNG.standard_normal((4, 12)).astype(np.float32)
    np.testing.assert_allclose(np.maximum(session(x)["s"], 0), OnnxRuntimeSession(models.affine())(x)["y"], rtol=1e-5)
    assert changes == ["outputs h, s: 2 of 3 nodes are needed for them"]
    assert build_plan(data, BuildOptions(profiles=_profile("x", (1, 12), (8, 12))))
    only = changed(models.several(), outputs=("scaled",))[0]
    assert list(only.inputs) == ["images"]  # what nothing needs is no input any more
    with pytest.raises(trtrun.BuildError, match=r"computes no \['nothing'\]"):
        prepare(models.affine(), BuildOptions(outputs=("nothing",)))


def test_other_outputs_behind_what_branches_read() -> None:
    """Nodes, weights and inputs that only an inner graph reads are needed too, and others are not."""
    branches = {
        name: helper.make_graph(
            [helper.make_node(operator, ["z", "w"], ["o"]), helper.make_node("Mul", ["o", "second"], ["p"])],
            name,
            [],
            [models.value("p", None)],
        )
        for name, operator in (("then_branch", "Add"), ("else_branch", "Sub"))
    }
    nodes = [
        helper.make_node("Neg", ["x"], ["z"]),
        helper.make_node("If", ["c"], ["v"], **branches),
        helper.make_node("Exp", ["v"], ["e"]),
        helper.make_node("Add", ["e", "third"], ["y"]),
    ]
    inputs = [models.value(name, [2]) for name in ("x", "second", "third")]
    inputs.append(helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []))
    weights = {name: np.array(value, np.float32) for name, value in (("w", [1, 2]), ("unread", [3]))}
    model = models._model(nodes, inputs, [models.value("y", [2])], weights)
    session, changes, data = changed(model, outputs=("e",))
    assert changes == ["outputs e: 3 of 4 nodes are needed for them"]
    assert [tensor.name for tensor in onnx.load_from_string(data).graph.initializer] == ["w"]
    given = {name: RNG.standard_normal(2).astype(np.float32) for name in ("x", "second")}
    for condition in (True, False):
        found = session.run({**given, "c": np.array(condition)})["e"]
        wanted = np.exp((-given["x"] + (1 if condition else -1) * weights["w"]) * given["second"])
        np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_what_other_outputs_leave_out_is_not_what_others_leave_out() -> None:
    weights = {
        "w": RNG.standard_normal((1, 15, 3)).astype(np.float32),
        "r": RNG.standard_normal((1, 15, 5)).astype(np.float32),
        "h": RNG.standard_normal((1, 2, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("GRU", ["x", "w", "r"], ["", "unused"], hidden_size=5),
        helper.make_node("GRU", ["x", "w", "r", "", "", "h"], ["y"], hidden_size=5),
    ]
    outputs = [models.value("y", [4, 1, 2, 5]), models.value("unused", [1, 2, 5])]
    _, changes, _ = changed(models._model(nodes, [models.value("x", [4, 2, 3])], outputs, weights), outputs=("y",))
    assert changes[0] == "outputs y: 1 of 2 nodes are needed for them"


def test_another_input_shape_leaves_the_types_of_what_plugins_compute() -> None:
    """Nothing but the file tells them."""
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], domain="trt.plugins"),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    weights = {"w": np.ones((4, 2), np.float32)}
    model = onnx.load_from_string(
        models._model(nodes, [models.value("x", [1, 4])], [models.value("y", [1, 2])], weights)
    )
    model.opset_import.append(helper.make_opsetid("trt.plugins", 1))
    model.graph.value_info.append(models.value("h", [1, 4]))
    data, _ = prepare(model.SerializeToString(), BuildOptions(input_shapes={"x": (-1, 4)}, outputs=("h",)))
    (output,) = onnx.load_from_string(data or b"").graph.output
    assert output.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert not output.type.tensor_type.HasField("shape")  # [1, 4] was of the old shape


def test_another_input_shape_is_not_held_against_what_branches_declare() -> None:
    """Their sizes were of the old one, and were written into what stands for a Trilu of integers."""
    kind = onnx.TensorProto.INT32
    branches = {
        name: helper.make_graph(
            [helper.make_node("Identity", ["x"], ["t"]), helper.make_node("Trilu", ["t"], ["o"])],
            name,
            [],
            [helper.make_tensor_value_info("o", kind, [3, 3])],
            value_info=[helper.make_tensor_value_info("t", kind, [3, 3])],
        )
        for name in ("then_branch", "else_branch")
    }
    inputs = [
        helper.make_tensor_value_info("x", kind, [3, 3]),
        helper.make_tensor_value_info("c", onnx.TensorProto.BOOL, []),
    ]
    nodes = [helper.make_node("If", ["c"], ["y"], **branches)]
    model = models._model(nodes, inputs, [helper.make_tensor_value_info("y", kind, [3, 3])], {})
    session, _, _ = changed(model, input_shapes={"x": (2, 2)})
    given = {"x": np.array([[1, 2], [3, 4]], np.int32), "c": np.array(True)}
    assert session.run(given)["y"].tolist() == [[1, 2], [0, 4]]


@pytest.mark.parametrize("operator", ["Loop", "Scan"])
def test_another_input_shape_leaves_what_bodies_need(operator: str) -> None:
    """ONNX Runtime takes none of a body's values without a rank. Both add up the rows of x."""
    rows = models.value("rows", [4])
    loop = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["on"]),
            helper.make_node("Gather", ["x", "i"], ["v"]),
            helper.make_node("Add", ["s", "v"], ["rows"]),
        ],
        "body",
        [
            models.value("i", [], "int64"),
            helper.make_tensor_value_info("go", onnx.TensorProto.BOOL, []),
            models.value("s", [4]),
        ],
        [helper.make_tensor_value_info("on", onnx.TensorProto.BOOL, []), rows],
    )
    scan = helper.make_graph(
        [helper.make_node("Add", ["s", "v"], ["rows"])],
        "body",
        [models.value("s", [4]), models.value("v", [4])],
        [rows],
    )
    nodes = {
        "Loop": helper.make_node("Loop", ["times", "", "zero"], ["y"], body=loop),
        "Scan": helper.make_node("Scan", ["zero", "x"], ["y"], body=scan, num_scan_inputs=1),
    }
    weights = {"times": np.int64(2), "zero": np.zeros(4, np.float32)}
    model = models._model([nodes[operator]], [models.value("x", [3, 4])], [models.value("y", [4])], weights)
    session, _, _ = changed(model, input_shapes={"x": (2, 4)})
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(session(x)["y"], x.sum(0), rtol=1e-5, atol=1e-5)


def test_simplified() -> None:
    nodes = [
        helper.make_node("Identity", ["x"], ["a"]),
        helper.make_node("Add", ["one", "two"], ["three"]),
        helper.make_node("Mul", ["a", "three"], ["y"]),
    ]
    weights = {"one": np.float32([1]), "two": np.float32([2])}
    model = models._model(nodes, [models.value("x", [2, 4])], [models.value("y", [2, 4])], weights)
    session, changes, data = changed(model, simplify=True)
    x = RNG.standard_normal((2, 4)).astype(np.float32)
    np.testing.assert_allclose(session(x)["y"], 3 * x, rtol=1e-6)
    assert [node.op_type for node in onnx.load_from_string(data).graph.node] == ["Mul"]
    assert "3 nodes to 1" in changes[0]


def test_dimensions_without_a_name_are_not_one() -> None:
    value = [models.value("a", ["?", 4]), models.value("b", ["?", 4])]
    nodes = [helper.make_node("Relu", ["a"], ["x"]), helper.make_node("Relu", ["b"], ["y"])]
    model = models._model(nodes, value, [models.value("x", ["?", 4]), models.value("y", ["?", 4])], {})
    profile = _profile("a", (1, 4), (8, 4))[0] | _profile("b", (2, 4), (16, 4))[0]
    assert build_plan(model, BuildOptions(profiles=(profile,)))  # tied, the builder finds the profile inconsistent
    assert "2 dimensions called '?'" in prepare(model, BuildOptions())[1][0]


def test_external_data_is_taken_along(tmp_path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(
        onnx.load_from_string(models.affine(batch=3)), path, save_as_external_data=True, location="w", size_threshold=0
    )
    data, _ = prepare(path, BuildOptions(fp16=True))
    x = RNG.standard_normal((3, 12)).astype(np.float32)
    wanted = OnnxRuntimeSession(path)(x)["y"]
    assert data is not None
    np.testing.assert_allclose(OnnxRuntimeSession(data)(x)["y"], wanted, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("asked", ["input shapes", "outputs"])
def test_external_data_stays_where_it_is_unless_it_may_be_changed(asked: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = onnx.load_from_string(models.affine(batch=3))
    onnx.save(proto, path, save_as_external_data=True, location="w", size_threshold=0)
    options = BuildOptions(input_shapes={"x": (5, 12)}) if asked == "input shapes" else BuildOptions(outputs=("y",))
    data, changes = prepare(path, options)
    assert data is not None
    assert changes
    kept = {tensor.data_location for tensor in onnx.load_model_from_string(data).graph.initializer}
    assert kept == {onnx.TensorProto.EXTERNAL if asked == "input shapes" else onnx.TensorProto.DEFAULT}
    assert len(build_plan(path, options)) > 1000


def test_weights_beyond_2_gb_are_no_matter_where_only_shapes_are_declared(tmp_path: Path) -> None:
    """One ONNX message holds no more."""
    weight = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=(1 << 15, 1 << 15))
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="w.bin")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    inputs, outputs = [models.value("x", [3, 1 << 15])], [models.value("y", [3, 1 << 15])]
    proto = onnx.load_model_from_string(models._model(nodes, inputs, outputs, {}))
    proto.graph.initializer.append(weight)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "w.bin", "wb") as file:
        file.truncate(4 << 30)  # holds no block
    data, _ = prepare(tmp_path / "m.onnx", BuildOptions(input_shapes={"x": (-1, 1 << 15)}))
    assert data is not None
    assert len(data) < 1000


def _profile(name: str, low: tuple[int, ...], high: tuple[int, ...]):
    return ({name: trtrun.ShapeRange(low, low, high)},)
