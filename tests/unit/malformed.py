"""More than a hundred malformed ONNX files, the same ones on every run."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests import models

Proto = onnx.ModelProto
FLOAT = TensorProto.FLOAT


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _conv() -> Proto:
    return _static(models.convolution())


def _affine() -> Proto:
    return onnx.load_from_string(models.affine(batch=3))


def _static(model: bytes) -> Proto:
    proto = onnx.load_from_string(model)
    for axis, size in enumerate((1, 3, 8, 8)):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    return proto


def _weight(proto: Proto, name: str) -> TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name == name)


def _graph(nodes: list, weights: dict[str, np.ndarray] | None = None, shape: tuple = (2, 3)) -> Proto:
    return onnx.load_from_string(
        models._model(nodes, [models.value("x", shape)], [models.value("y", [])], weights or {})
    )


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, outputs, **attributes)


EDITS: dict[str, Callable[[], Proto]] = {}


def edit(start: Callable[[], Proto] = _affine) -> Callable[[Callable[[Proto], object]], None]:
    def register(change: Callable[[Proto], object]) -> None:
        def made() -> Proto:
            proto = start()
            change(proto)
            return proto

        EDITS[change.__name__] = made

    return register


# Graphs that do not hang together.


@edit()
def cycle_of_two(proto: Proto) -> None:
    proto.graph.node[0].input[0] = "s"


@edit()
def cycle_of_one(proto: Proto) -> None:
    proto.graph.node[2].input[0] = "y"


@edit()
def cycle_through_all(proto: Proto) -> None:
    proto.graph.node[0].input[0] = "y"


@edit()
def unknown_tensor(proto: Proto) -> None:
    proto.graph.node[1].input[1] = "nowhere"


@edit()
def empty_required_input(proto: Proto) -> None:
    proto.graph.node[1].input[1] = ""


@edit()
def output_that_nothing_computes(proto: Proto) -> None:
    proto.graph.output[0].name = "nowhere"


@edit()
def no_outputs(proto: Proto) -> None:
    del proto.graph.output[:]


@edit()
def no_nodes(proto: Proto) -> None:
    del proto.graph.node[:]


@edit()
def no_inputs(proto: Proto) -> None:
    del proto.graph.input[:]


@edit()
def no_graph(proto: Proto) -> None:
    proto.ClearField("graph")


@edit()
def duplicate_outputs_of_nodes(proto: Proto) -> None:
    proto.graph.node[1].output[0] = "h"
    proto.graph.node[2].input[0] = "h"


@edit()
def node_computes_an_input(proto: Proto) -> None:
    proto.graph.node[0].output[0] = "x"
    proto.graph.node[1].input[0] = "x"


@edit()
def node_computes_a_weight(proto: Proto) -> None:
    proto.graph.node[0].output[0] = "b"


@edit()
def duplicate_graph_inputs(proto: Proto) -> None:
    proto.graph.input.append(models.value("x", [3, 7]))


@edit()
def duplicate_graph_outputs(proto: Proto) -> None:
    proto.graph.output.append(models.value("y", [3, 5]))


@edit()
def nodes_out_of_order_with_a_gap(proto: Proto) -> None:
    first = proto.graph.node.pop(0)
    first.input[0] = "gap"
    proto.graph.node.append(first)


@edit()
def node_without_operator(proto: Proto) -> None:
    proto.graph.node[1].op_type = ""


@edit()
def node_without_outputs(proto: Proto) -> None:
    del proto.graph.node[1].output[:]


@edit()
def node_without_inputs(proto: Proto) -> None:
    del proto.graph.node[0].input[:]


@edit()
def too_many_inputs(proto: Proto) -> None:
    proto.graph.node[2].input.extend(["x", "x", "x"])


@edit()
def too_few_inputs(proto: Proto) -> None:
    proto.graph.node[1].input.pop()


@edit()
def empty_output_name(proto: Proto) -> None:
    proto.graph.node[2].output[0] = ""


# Operators and versions that nobody knows.


@edit()
def unknown_operator(proto: Proto) -> None:
    proto.graph.node[1].op_type = "Frobnicate"


@edit()
def unknown_domain(proto: Proto) -> None:
    proto.graph.node[1].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))


@edit()
def domain_without_import(proto: Proto) -> None:
    proto.graph.node[1].domain = "org.nowhere"


@edit()
def operator_of_the_wrong_case(proto: Proto) -> None:
    proto.graph.node[0].op_type = "matmul"


@edit()
def operator_with_zero_bytes(proto: Proto) -> None:
    proto.graph.node[0].op_type = "Mat\0Mul"


@edit()
def operator_with_a_megabyte_of_name(proto: Proto) -> None:
    proto.graph.node[0].op_type = "M" * 1_000_000


@edit()
def function_that_calls_itself(proto: Proto) -> None:
    body = [_node("Self", ["a"], ["c"], domain="local")]
    opsets = [helper.make_opsetid("local", 1)]
    proto.functions.append(helper.make_function("local", "Self", ["a"], ["c"], body, opsets))
    proto.opset_import.append(opsets[0])
    proto.graph.node[2].CopyFrom(_node("Self", ["s"], ["y"], domain="local"))


@edit()
def functions_that_call_each_other(proto: Proto) -> None:
    opsets = [helper.make_opsetid("local", 1)]
    for one, other in (("Ping", "Pong"), ("Pong", "Ping")):
        body = [_node(other, ["a"], ["c"], domain="local")]
        proto.functions.append(helper.make_function("local", one, ["a"], ["c"], body, opsets))
    proto.opset_import.append(opsets[0])
    proto.graph.node[2].CopyFrom(_node("Ping", ["s"], ["y"], domain="local"))


# Types and shapes that contradict.


@edit()
def unknown_type_of_input(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 999


@edit()
def undefined_type_of_input(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = 0


@edit()
def input_of_strings(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING


@edit()
def input_of_complex_numbers(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.COMPLEX64


@edit()
def input_that_is_a_sequence(proto: Proto) -> None:
    proto.graph.input[0].type.CopyFrom(helper.make_sequence_type_proto(helper.make_tensor_type_proto(FLOAT, [2])))


@edit()
def input_without_type(proto: Proto) -> None:
    proto.graph.input[0].ClearField("type")


@edit()
def types_that_do_not_mix(proto: Proto) -> None:
    _weight(proto, "b").CopyFrom(numpy_helper.from_array(np.arange(5), "b"))


@edit()
def booleans_in_a_matrix_product(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.BOOL


@edit()
def negative_dimension_of_input(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -7


@edit()
def dimension_beyond_64_bits_of_elements(proto: Proto) -> None:
    for dim in proto.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_value = 2**62


@edit()
def shapes_that_do_not_multiply(proto: Proto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 11


@edit()
def shapes_that_do_not_broadcast(proto: Proto) -> None:
    _weight(proto, "b").CopyFrom(numpy_helper.from_array(np.ones(4, np.float32), "b"))


@edit()
def rank_beyond_eight(proto: Proto) -> None:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    del dims[:]
    for _ in range(9):
        dims.add(dim_value=2)


@edit()
def rank_of_a_thousand(proto: Proto) -> None:
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    del dims[:]
    for _ in range(1000):
        dims.add(dim_value=1)


# Weights that are not what they say.


@edit()
def negative_dimension_of_weight(proto: Proto) -> None:
    _weight(proto, "W").dims[0] = -12


@edit()
def weight_claims_five_gigabytes(proto: Proto) -> None:
    _weight(proto, "W").dims[:] = [12, 5 * 10**9 // 48]


@edit()
def weight_claims_an_exabyte(proto: Proto) -> None:
    _weight(proto, "W").dims[:] = [2**40, 2**18]


@edit()
def weight_claims_more_than_64_bits(proto: Proto) -> None:
    _weight(proto, "W").dims[:] = [2**62, 2**62]


@edit()
def weight_claims_that_wrap_to_its_size(proto: Proto) -> None:
    _weight(proto, "W").dims[:] = [2**33, 2**31, 12, 5]


@edit()
def weight_too_short(proto: Proto) -> None:
    _weight(proto, "W").raw_data = _weight(proto, "W").raw_data[:-4]


@edit()
def weight_too_long(proto: Proto) -> None:
    _weight(proto, "W").raw_data = _weight(proto, "W").raw_data + bytes(400)


@edit()
def weight_of_a_fraction_of_an_element(proto: Proto) -> None:
    _weight(proto, "b").raw_data = _weight(proto, "b").raw_data[:-1]


@edit()
def weight_without_data(proto: Proto) -> None:
    _weight(proto, "W").ClearField("raw_data")


@edit()
def weight_of_unknown_type(proto: Proto) -> None:
    _weight(proto, "W").data_type = 777


@edit()
def weight_of_undefined_type(proto: Proto) -> None:
    _weight(proto, "W").data_type = 0


@edit()
def weight_of_strings(proto: Proto) -> None:
    weight = _weight(proto, "b")
    weight.ClearField("raw_data")
    weight.data_type = TensorProto.STRING
    weight.string_data.extend([b"a"] * 5)


@edit()
def weight_in_the_field_of_another_type(proto: Proto) -> None:
    weight = _weight(proto, "W")
    weight.ClearField("raw_data")
    weight.int32_data.extend(range(60))


@edit()
def weight_with_too_few_typed_values(proto: Proto) -> None:
    weight = _weight(proto, "W")
    weight.ClearField("raw_data")
    weight.float_data.extend([1.0] * 7)


@edit()
def weight_without_name(proto: Proto) -> None:
    _weight(proto, "W").name = ""


@edit()
def duplicate_weights(proto: Proto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.ones((7, 7), np.float32), "W"))


@edit()
def weight_of_no_elements(proto: Proto) -> None:
    _weight(proto, "W").CopyFrom(numpy_helper.from_array(np.zeros((12, 0), np.float32), "W"))


@edit()
def sparse_weight_out_of_bounds(proto: Proto) -> None:
    sparse = proto.graph.sparse_initializer.add()
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([1, 2]), "W"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([0, 10**12]), "W_indices"))
    sparse.dims.extend([12, 5])
    proto.graph.initializer.remove(_weight(proto, "W"))


def _external(location: str | None, offset: str | None = None, length: str | None = None) -> Proto:
    proto = _affine()
    weight = _weight(proto, "W")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in (("location", location), ("offset", offset), ("length", length)):
        if text is not None:
            weight.external_data.add(key=key, value=text)
    return proto


EDITS |= {
    "external_data_missing": lambda: _external("gone.bin"),
    "external_data_without_location": lambda: _external(None),
    "external_data_is_a_folder": lambda: _external("."),
    "external_data_outside": lambda: _external("../../../../../../etc/passwd"),
    "external_data_at_an_absolute_path": lambda: _external("/dev/zero", length="240"),
    "external_data_beyond_the_end": lambda: _external("short.bin", "1000", "240"),
    "external_data_too_short": lambda: _external("short.bin", "0", "240"),
    "external_data_of_five_gigabytes": lambda: _external("short.bin", "0", str(5 * 10**9)),
    "external_data_at_a_path_that_is_not_utf8": lambda: _external("w.bin"),
    "external_data_at_a_negative_offset": lambda: _external("short.bin", "-1", "240"),
    "external_data_at_an_offset_in_words": lambda: _external("short.bin", "here", "there"),
}


# Attributes that make no sense.


@edit(_conv)
def kernel_of_another_shape(proto: Proto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("kernel_shape", [5, 5]))


@edit(_conv)
def negative_kernel(proto: Proto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("kernel_shape", [-3, -3]))


@edit(_conv)
def stride_of_zero(proto: Proto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("strides", [0, 0]))


@edit(_conv)
def groups_of_zero(proto: Proto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 0))


@edit(_conv)
def groups_that_do_not_divide(proto: Proto) -> None:
    proto.graph.node[0].attribute.append(helper.make_attribute("group", 2))


@edit(_conv)
def pads_of_the_wrong_length(proto: Proto) -> None:
    proto.graph.node[0].attribute[0].ints[:] = [1, 1, 1]


@edit(_conv)
def pads_of_text(proto: Proto) -> None:
    proto.graph.node[0].attribute[0].CopyFrom(helper.make_attribute("pads", "wide"))


@edit(_conv)
def kernel_larger_than_the_picture(proto: Proto) -> None:
    proto.graph.node[0].attribute[0].ints[:] = [0, 0, 0, 0]
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = 1


EDITS |= {
    "concat_without_axis": lambda: _graph([_node("Concat", ["x", "x"], ["y"])]),
    "concat_axis_out_of_range": lambda: _graph([_node("Concat", ["x", "x"], ["y"], axis=7)]),
    "reshape_to_another_size": lambda: _graph([_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([7, 7])}),
    "reshape_with_two_unknowns": lambda: _graph([_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([-1, -1])}),
    "transpose_that_repeats_an_axis": lambda: _graph([_node("Transpose", ["x"], ["y"], perm=[0, 0])]),
    "squeeze_of_a_long_axis": lambda: _graph([_node("Squeeze", ["x", "a"], ["y"])], {"a": np.array([0])}),
    "gather_axis_out_of_range": lambda: _graph([_node("Gather", ["x", "i"], ["y"], axis=5)], {"i": np.array([0])}),
    "cast_to_an_unknown_type": lambda: _graph([_node("Cast", ["x"], ["y"], to=999)]),
    "constant_without_value": lambda: _graph([_node("Constant", [], ["c"]), _node("Add", ["x", "c"], ["y"])]),
    "if_without_branches": lambda: _graph([_node("If", ["c"], ["y"])], {"c": np.array(True)}),
    "loop_without_body": lambda: _graph([_node("Loop", ["", "", "x"], ["y"])]),
    "attribute_of_undefined_type": lambda: _undefined_attribute(),
}


def _undefined_attribute() -> Proto:
    proto = _graph([_node("Softmax", ["x"], ["y"], axis=1)])
    attribute = proto.graph.node[0].attribute[0]
    attribute.Clear()
    attribute.name = "axis"
    return proto


def files() -> dict[str, bytes]:
    """The files by name: whole models with one thing wrong each, then bytes that are no whole model."""
    made = {name: change().SerializeToString() for name, change in EDITS.items()}
    good = _affine().SerializeToString()
    place = "external_data_at_a_path_that_is_not_utf8"
    made[place] = made[place].replace(b"w.bin", b"w.b\xba\xba")
    broken = {
        "empty": b"",
        "zeros": bytes(1000),
        "text": b"This is not a model.\n" * 20,
        "random": random.Random(0).randbytes(1000),
        "a_field_that_claims_five_gigabytes": good + b"\x3a" + _varint(5 * 10**9) + bytes(1000),
        "a_weight_that_claims_five_gigabytes": b"\x08\x09\x3a" + _varint(5 * 10**9) + b"\x2a" + _varint(4 * 10**9),
        "a_varint_without_end": good[:40] + b"\xff" * 20,
        "a_thousand_nested_messages": _nested(1000),
        "a_name_that_is_not_utf8": good.replace(b"Relu", b"Re\xbau"),
        "an_output_that_is_not_utf8": good.replace(b"\x01y", b"\x01\xba"),
        "a_plan_tag": b"ftrt" + struct.pack("<6I", 0, 0, 0, 2**31, 0, 0) + bytes(100),
    }
    for length in (1, 2, 3, *range(5, len(good), len(good) // 20), *range(len(good) - 5, len(good))):
        broken[f"truncated_at_{length}"] = good[:length]
    return made | broken


def _nested(depth: int) -> bytes:
    """A graph in an attribute of a node in a graph, and so on."""
    graph = b""
    for _ in range(depth):
        attribute = b"\x0a\x01g" + b"\x32" + _varint(len(graph)) + graph  # name, g
        node = b"\x22\x02If" + b"\x2a" + _varint(len(attribute)) + attribute  # op_type, attribute
        graph = b"\x0a" + _varint(len(node)) + node
    return b"\x08\x09" + b"\x3a" + _varint(len(graph)) + graph


def write(folder: Path) -> list[Path]:
    """Write the files and ``short.bin``, to which some point; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "short.bin").write_bytes(bytes(100))
    paths = []
    for name, data in files().items():
        path = folder / f"{name}.onnx"
        path.write_bytes(data)
        paths.append(path)
    return paths
