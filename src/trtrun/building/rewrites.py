"""What TensorRT computes wrongly, written so that it computes it right: the same numbers by other nodes.

Measured with TensorRT-RTX 1.6.1 on ONNX's node tests. What is written another way here is the same by ONNX's own
definition, so it is done for every flavour and version; what only can be refused (:func:`refuse`) is refused to
TensorRT-RTX up to 1.6. Functions inside a model are not looked into.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BuildError

if TYPE_CHECKING:
    from ..flavor import Capabilities

_STANDARD = ("", "ai.onnx")
INTEGERS = (2, 3, 21, 22)  # of TensorProto.DataType: UINT8, INT8, UINT4, INT4
_GRU_STEPS = 64  # the longest sequence that is written out step by step
_SMALL = 1024  # elements; constants up to this size may be shapes or axes, which types follow from


def rewrite(proto: Any, written: Container[str] = ()) -> list[str]:
    """Rewrite a model in place whose external data is loaded; returns one line for each kind of change.

    ``written`` holds what :func:`rewrite_pools` returned, where it was called before.
    """
    changes = [*_fp8_scales(proto), *rewrite_pools(proto, written)[0]]
    values = Values(proto)
    counts: Counter[str] = Counter()

    def rewritten(node: Any) -> list[Any]:
        result = _another_way(node, values, _WAYS)
        if result is None:
            return [node]
        text, nodes = result
        counts[text] += 1
        # a GRU of layout 0 may need more; whatever else is written is right
        return [last for made in nodes for last in (rewritten(made) if made.op_type == "GRU" else [made])]

    for graph, _ in scopes(proto.graph, {}):
        if not any(_another_way(node, values, _WAYS) for node in graph.node):
            continue
        nodes = [last for node in graph.node for last in rewritten(node)]
        del graph.node[:]
        graph.node.extend(nodes)
    return [*changes, *_counted(counts)]


def rewrite_pools(proto: Any, written: Container[str] = ()) -> tuple[list[str], set[str]]:
    """What :func:`rewrite` does to pools; returns also names of what is ``written`` and not to be written again.

    One after the other, in the order in which they are computed: up to operator set 21 onnx too infers the window that
    TensorRT keeps, and wrong shapes from there on, until it is dropped by nodes. Files may hold such shapes already.
    """
    counts: Counter[str] = Counter()
    whole: set[str] = set()
    values = Values(proto)
    sliced = {node.input[0] for each in graphs(proto.graph) for node in each.node if node.op_type == "Slice"}
    done = {name for name in sliced if name in written}

    def pools(graph: Any) -> None:
        nonlocal values
        at = 0
        while at < len(graph.node):
            node = graph.node[at]
            for inner in inner_graphs(node):
                pools(inner)
            found = None if node.output[0] in done else _another_way(node, values, _POOLS)
            if found is None:
                at += 1
                continue
            text, made = found
            counts[text] += 1
            whole.add(made[0].output[0])
            nodes = [*graph.node[:at], *made, *graph.node[at + 1 :]]
            del graph.node[:]
            graph.node.extend(nodes)
            at += len(made)
            forget_shapes(proto.graph, ranks=False)
            values = Values(proto)

    pools(proto.graph)
    return _counted(counts), whole


def _counted(counts: Counter[str]) -> list[str]:
    return [f"{count} {text}" for text, count in sorted(counts.items())]


def needed(proto: Any) -> bool:
    """True when :func:`rewrite` would change something; external data need not be loaded."""
    values = Values(proto)
    return next(_one_scale(proto), None) is not None or any(
        _another_way(node, values, _POOLS) or _another_way(node, values, _WAYS)
        for graph, _ in scopes(proto.graph, {})
        for node in graph.node
    )


def refuse(proto: Any, name: str, capabilities: Capabilities) -> None:
    """Raise BuildError for what TensorRT-RTX up to 1.6 computes wrongly or dies of, where no other writing helps."""
    if capabilities.name != "tensorrt_rtx" or tuple(map(int, capabilities.version.split(".")[:2])) > (1, 6):
        return
    kinds = quantized_types(proto)
    for graph, _ in scopes(proto.graph, {}):
        for node in graph.node:
            if node.domain not in _STANDARD:
                continue
            where = f"node {node.name or ', '.join(filter(None, node.output))!r} of {name}"
            if node.op_type in ("Conv", "ConvTranspose") and all(kinds.get(x) in INTEGERS for x in node.input[:2]):
                raise BuildError(
                    f"{where} is a {node.op_type} of quantized integers, and TensorRT-RTX {capabilities.version} "
                    'computes none. Quantize to fp8 (trtrun quantize --precision fp8), or build with flavor="tensorrt".'
                )
            if node.op_type == "RoiAlign":
                raise BuildError(
                    f"{where} is a RoiAlign, and the ONNX parser of TensorRT-RTX {capabilities.version} ends the "
                    'process at it. Build with flavor="tensorrt", or take outputs=… before it and align outside.'
                )
            if node.op_type == "SpaceToDepth" and attribute_of(node, "mode", "DCR") == "CRD":
                raise BuildError(
                    f"{where} is a SpaceToDepth with mode CRD, which TensorRT-RTX {capabilities.version} computes as "
                    "DCR, and the number of its channels is not known, so it cannot be written another way. Export it "
                    "with static channels, or with mode DCR."
                )
            if node.op_type == "Attention" and attribute_of(node, "is_causal", 0) and _given(node, 6):
                raise BuildError(
                    f"{where} is an Attention with is_causal=1 and nonpad_kv_seqlen, and TensorRT-RTX "
                    f"{capabilities.version} computes the two together wrongly. Give it the mask as attn_mask with "
                    "is_causal=0, or export it as the operators that it stands for."
                )


# Reading a graph


def quantized_types(proto: Any) -> dict[str, int]:
    """By output, the quantized ``TensorProto`` type of each QuantizeLinear and DequantizeLinear; 0 where unknown.

    It is that of the zero point, of the constant that is dequantized, or of what a Q node before says.
    """
    found: dict[str, int] = {}
    for graph, constants in scopes(proto.graph, {}):
        for node in graph.node:
            if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or node.domain not in _STANDARD:
                continue
            zero = constants.get(_given(node, 2))
            kind = 0 if zero is None else int(zero.data_type)
            if node.op_type == "QuantizeLinear":
                kind = attribute_of(node, "output_dtype", 0) or kind or INTEGERS[0]
            elif not kind:
                source = constants.get(node.input[0])
                kind = found.get(node.input[0], 0) if source is None else int(source.data_type)
            found[node.output[0]] = kind
    return found


def graph_inputs(graph: Any) -> list[Any]:
    """The inputs that a request gives: old exporters list the weights among a graph's inputs too."""
    weights = {tensor.name for tensor in graph.initializer}
    return [value for value in graph.input if value.name not in weights]


def scopes(graph: Any, outer: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A graph and those inside its nodes, each with the constants that it sees, as TensorProto by name."""
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in _STANDARD:
            for attribute in node.attribute:
                if attribute.name == "value":
                    constants[node.output[0]] = attribute.t
    yield graph, constants
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from scopes(inner, constants)


def forget_shapes(graph: Any, *, ranks: bool) -> None:
    """Take away the sizes that a graph, and those inside it, declare of what is computed; types stay.

    With ``ranks`` those of the graph itself too; ONNX Runtime takes no Loop or Scan without those inside.
    """
    for each in graphs(graph):
        for value in (*each.value_info, *each.output, *(() if each is graph else each.input)):
            is_typed = value.type.HasField("tensor_type")  # what is not would be given an empty type
            if ranks and each is graph and is_typed:
                value.type.tensor_type.ClearField("shape")
            for dim in value.type.tensor_type.shape.dim:
                dim.Clear()


def inner_graphs(node: Any) -> list[Any]:
    return [
        inner
        for attribute in node.attribute
        for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)
    ]


def graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for inner in inner_graphs(node):
            yield from graphs(inner)


def read_by(node: Any) -> Iterator[str]:
    """What a node reads, and what the graphs inside it do."""
    yield from node.input
    for inner in inner_graphs(node):
        for each in inner.node:
            yield from read_by(each)
        yield from (value.name for value in inner.output)


def value_names(graph: Any) -> set[str]:
    """The names of all values of a graph and of those inside it."""
    return {
        name
        for each in graphs(graph)
        for name in (
            *(value.name for value in (*each.input, *each.output, *each.initializer)),
            *(sparse.values.name for sparse in each.sparse_initializer),
            *(name for node in each.node for name in (*node.input, *node.output)),
        )
    }


def free_name(wanted: str, taken: set[str], count: int = 0) -> str:
    """A name that is not taken, ``wanted`` or like it; takes it. So many like it are known to be taken."""
    name = wanted
    while name in taken:
        count += 1
        name = f"{wanted}/{count}"
    taken.add(name)
    return name


def separate_values(graph: Any) -> None:
    """Give the values inside inner graphs names that no other value has, in place; the graph's own keep theirs.

    Branches may use the same names, and what is known of values is kept by name. Nothing outside sees the new ones:
    an inner graph's inputs and outputs are told apart by position.
    """
    taken = value_names(graph)
    seen = {name for name in _made(graph) if name}

    def separate(inner: Any, outer: Mapping[str, str]) -> None:
        """``outer``: what the names that can be read here are now."""
        own: dict[str, str] = {}
        for name in filter(None, _made(inner)):
            if name not in own:
                own[name] = free_name(name, taken) if name in seen else name
        seen.update(own.values())
        names = {**own, **outer}  # a node's output hides an outer value only from the node on
        for value in (*inner.input, *inner.initializer, *(sparse.values for sparse in inner.sparse_initializer)):
            if value.name:
                names[value.name] = value.name = own[value.name]
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            for each in inner_graphs(node):
                separate(each, names)
            for name in filter(None, node.output):
                names[name] = own[name]
            node.output[:] = [own.get(name, name) for name in node.output]
        for value in inner.output:
            value.name = names.get(value.name, value.name)
        for value in inner.value_info:
            value.name = own.get(value.name, value.name)

    outermost = {name: name for name in seen}
    for node in graph.node:
        for inner in inner_graphs(node):
            separate(inner, outermost)


def _made(graph: Any) -> Iterator[str]:
    """The names of the values that a graph is given, holds and computes, inner graphs left out."""
    yield from (value.name for value in (*graph.input, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output)


def attribute_of(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _given(node: Any, index: int) -> str:
    """The name of an input, empty where it is left out."""
    return str(node.input[index]) if len(node.input) > index else ""


def _output(node: Any, index: int) -> str:
    return str(node.output[index]) if len(node.output) > index else ""


Shape = list["int | None"]


class Values:
    """The types and shapes of a model's values, inferred when they are first asked for."""

    def __init__(self, proto: Any) -> None:
        self._proto = proto
        self._known: dict[str, tuple[int, Shape | None]] | None = None
        versions = [entry.version for entry in proto.opset_import if entry.domain in _STANDARD]
        self.opset = versions[0] if versions else 0

    def type(self, name: str) -> int:
        """The ``TensorProto`` type; 0 where it cannot be inferred."""
        return self._all().get(name, (0, None))[0]

    def shape(self, name: str) -> Shape | None:
        """The dimensions, None for each that is dynamic; None where not even the rank can be inferred."""
        return self._all().get(name, (0, None))[1]

    def add(self, name: str, like: str, perm: list[int]) -> None:
        """Note the value that a Transpose of another makes."""
        shape = self.shape(like)
        self._all()[name] = (self.type(like), None if shape is None else [shape[axis] for axis in perm])

    def _all(self) -> dict[str, tuple[int, Shape | None]]:
        if self._known is None:
            self._known = {}
            for graph, _ in scopes(self._inferred().graph, {}):
                for value in (*graph.input, *graph.output, *graph.value_info):
                    tensor = value.type.tensor_type
                    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]
                    self._known[value.name] = (tensor.elem_type, dims if tensor.HasField("shape") else None)
                for constant in graph.initializer:
                    self._known[constant.name] = (constant.data_type, list(constant.dims))
        return self._known

    def _inferred(self) -> Any:
        import onnx

        # without the weights: inference copies its model, and takes none beyond 2 GB
        old = self._proto.graph
        graph = onnx.GraphProto(
            name="types", node=old.node, input=old.input, output=old.output, value_info=old.value_info
        )
        for tensor in old.initializer:
            count = 1
            for dim in tensor.dims:
                count *= dim
            graph.initializer.append(
                tensor
                if count <= _SMALL
                else onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            )
        light = onnx.ModelProto(
            ir_version=self._proto.ir_version,
            opset_import=self._proto.opset_import,
            functions=self._proto.functions,
            graph=graph,
        )
        try:
            return onnx.shape_inference.infer_shapes(light, data_prop=True)
        except Exception:  # its errors share no base; what the model itself declares stays known
            return light


class Nodes:
    """Nodes that stand for another; its values are named after it."""

    def __init__(self, node: Any, opset: int) -> None:
        self.nodes: list[Any] = []
        self._base = next(name for name in node.output if name)
        self._opset = opset

    def __call__(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:
        """Add a node; returns the name of its output, ``to`` unless that is empty."""
        from onnx import helper

        output = to or f"{self._base}/{operator}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(operator, [*inputs], [output], name=f"{self._base}/{len(self.nodes)}", **attributes)
        )
        return output

    def constant(self, value: Any, dtype: Any = "int64") -> str:
        import numpy as np
        from onnx import numpy_helper

        return self("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def unsqueeze(self, value: str, axes: list[int], to: str = "") -> str:
        if self._opset < 13:
            return self("Unsqueeze", value, to=to, axes=axes)
        return self("Unsqueeze", value, self.constant(axes), to=to)

    def part(self, value: str, start: int, end: int, axis: int) -> str:
        return self("Slice", value, self.constant([start]), self.constant([end]), self.constant([axis]))


def copied(node: Any, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    """A copy of a node with other inputs, outputs and attributes; None takes an attribute away."""
    from onnx import NodeProto, helper

    copy = NodeProto()
    copy.CopyFrom(node)
    copy.input[:], copy.output[:] = inputs, outputs
    kept = [attribute for attribute in copy.attribute if attribute.name not in attributes]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    copy.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items() if value is not None)
    return copy


# Writing nodes another way: each function returns what stands for a node, or None where TensorRT computes it right


def _another_way(node: Any, values: Values, ways: _Ways) -> tuple[str, list[Any]] | None:
    if node.domain not in _STANDARD or not any(node.output):
        return None
    for function, text in ways.get(node.op_type, ()):
        nodes = function(node, values)
        if nodes is not None:
            return text, nodes
    return None


def _trilu(node: Any, values: Values) -> list[Any] | None:
    """TensorRT-RTX 1.6.1 gives wrong upper triangles of integers; of floats they are right."""
    from onnx import TensorProto, helper

    x, k = node.input[0], _given(node, 1)
    kinds = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL)
    if not attribute_of(node, "upper", 1) or values.type(x) not in kinds:
        return None
    shape = values.shape(x)
    if shape is not None and 0 in shape:
        return None  # nothing to compute
    add = Nodes(node, values.opset)
    counted = []
    for axis in (-2, -1):
        size = None if shape is None else shape[axis]
        if size is not None:
            counted.append(add.constant(range(size)))
        else:
            size_now = add("Gather", add("Shape", x), add.constant(axis), axis=0)
            counted.append(add("Range", add.constant(0), size_now, add.constant(1)))
    distance = add("Sub", counted[1], add.unsqueeze(counted[0], [1]))
    inside = add("GreaterOrEqual", distance, k or add.constant(0))
    if values.type(x) == TensorProto.BOOL:
        add("And", inside, x, to=node.output[0])
        return add.nodes
    zero = add.constant(0, helper.tensor_dtype_to_np_dtype(values.type(x)))
    add("Where", inside, x, zero, to=node.output[0])
    return add.nodes


def _pool(node: Any, values: Values) -> list[Any] | None:
    """With ceil_mode, ONNX drops a last window that starts in the padding behind the input; TensorRT keeps it."""
    same = attribute_of(node, "auto_pad", "NOTSET").startswith("SAME")
    if not attribute_of(node, "ceil_mode", 0) or same or _output(node, 1):
        return None
    kernel = list(attribute_of(node, "kernel_shape", []))
    rank = len(kernel)
    strides = list(attribute_of(node, "strides", [1] * rank))
    dilations = list(attribute_of(node, "dilations", [1] * rank))
    pads = list(attribute_of(node, "pads", [0] * 2 * rank))
    shape = values.shape(node.input[0]) or [None] * (rank + 2)
    drops, floors = [], True  # the axes that lose a window; whether no axis keeps one that floor would not give
    for axis in range(rank):
        size, stride, before, after = shape[axis + 2], strides[axis], pads[axis], pads[rank + axis]
        reach = dilations[axis] * (kernel[axis] - 1) + 1
        if after + stride <= reach:  # the last window starts before the padding, whatever the size
            rest = 1 if size is None else (size + before + after - reach) % stride
            floors = floors and not rest
        elif size is None:
            drops.append(axis)
            floors = False
        else:
            kept = -(-(size + before + after - reach) // stride) + 1
            if (kept - 1) * stride >= size + before:
                drops.append(axis)
            else:
                floors = floors and (size + before + after - reach) % stride == 0
    if not drops:
        return None
    if floors:
        return [copied(node, list(node.input), list(node.output), ceil_mode=0)]
    add = Nodes(node, values.opset)
    whole = f"{node.output[0]}/with_windows"
    add.nodes.append(copied(node, list(node.input), [whole]))
    # the windows that start in the input or before it; beyond its end, Slice takes what there is
    ends = []
    for axis in drops:
        size, stride = shape[axis + 2], strides[axis]
        if size is not None:
            ends.append(add.constant([-(-(size + pads[axis]) // stride)]))
            continue
        size_now = add("Gather", add("Shape", node.input[0]), add.constant([axis + 2]), axis=0)
        ends.append(add("Div", add("Add", size_now, add.constant([pads[axis] + stride - 1])), add.constant([stride])))
    end = ends[0] if len(ends) == 1 else add("Concat", *ends, axis=0)
    add("Slice", whole, add.constant([0] * len(drops)), end, add.constant([a + 2 for a in drops]), to=node.output[0])
    return add.nodes


def _space_to_depth(node: Any, values: Values) -> list[Any] | None:
    """TensorRT knows mode DCR only, and takes CRD for it."""
    import numpy as np

    if attribute_of(node, "mode", "DCR") != "CRD":
        return None
    shape = values.shape(node.input[0])
    channels = None if shape is None else shape[1]
    if channels is None:
        return None  # refused
    square = int(attribute_of(node, "blocksize", 1)) ** 2
    add = Nodes(node, values.opset)
    whole = f"{node.output[0]}/DCR"
    add.nodes.append(copied(node, list(node.input), [whole], mode="DCR"))
    order = np.arange(square * channels).reshape(square, channels).T.reshape(-1)
    add("Gather", whole, add.constant(order), to=node.output[0], axis=1)
    return add.nodes


def _batchwise(node: Any, values: Values) -> list[Any] | None:
    """TensorRT takes the batch of layout=1 for the sequence."""
    if not attribute_of(node, "layout", 0):
        return None
    add = Nodes(node, values.opset)
    inputs, outputs = list(node.input), list(node.output)
    for index in (0, 5, 6):
        if _given(node, index):
            inputs[index] = add("Transpose", node.input[index], perm=[1, 0, 2])
            values.add(inputs[index], node.input[index], [1, 0, 2])
    at = len(add.nodes)
    for index, output in enumerate(node.output):
        if output:
            outputs[index] = f"{output}/layout_0"
            add("Transpose", outputs[index], to=output, perm=[1, 0, 2] if index else [2, 0, 1, 3])
    add.nodes.insert(at, copied(node, inputs, outputs, layout=None))
    return add.nodes


def _gru(node: Any, values: Values) -> list[Any] | None:
    """TensorRT-RTX 1.6.1 never finishes compiling some loops of a GRU; written step by step it has none.

    Seen to hang: three steps with the whole sequence as output. Seen to run: one and two steps with Y_h alone.
    """
    from onnx import TensorProto

    x, w, r = node.input[:3]
    shape, kind = values.shape(x), values.type(x)
    steps = None if shape is None else shape[0]
    hidden = attribute_of(node, "hidden_size", 0)
    if steps is None or not 1 <= steps <= _GRU_STEPS or (steps <= 2 and not _output(node, 0)) or values.opset < 10:
        return None
    if not hidden or not _activations(node) or _given(node, 4) or attribute_of(node, "clip", None) is not None:
        return None
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return None
    direction = attribute_of(node, "direction", "forward")
    add = Nodes(node, values.opset)
    one_by_one: list[list[str]] = []  # per direction, the states in the order of the sequence
    last = []
    for index, backwards in enumerate({"forward": [0], "reverse": [1]}.get(direction, [0, 1])):

        def of(name: str, index: int = index) -> str:
            return add("Gather", name, add.constant(index), axis=0)

        def gates(name: str, first: int = 0) -> list[str]:  # z, r, h
            return [add.part(name, (first + i) * hidden, (first + i + 1) * hidden, 0) for i in range(3)]

        weights = [add("Transpose", gate, perm=[1, 0]) for gate in gates(of(w))]
        recurrent = [add("Transpose", gate, perm=[1, 0]) for gate in gates(of(r))]
        products = [add("MatMul", x, weight) for weight in weights]
        inner = ""  # the bias that the reset gate scales
        if _given(node, 3):
            bias = of(node.input[3])
            outer_bias, recurrent_bias = gates(bias), gates(bias, 3)
            if attribute_of(node, "linear_before_reset", 0):
                inner = recurrent_bias.pop()
            products = [add("Add", product, b) for product, b in zip(products, outer_bias, strict=True)]
            products[: len(recurrent_bias)] = [
                add("Add", product, b) for product, b in zip(products, recurrent_bias, strict=False)
            ]
        if _given(node, 5):
            state = of(node.input[5])
        else:  # of one row, which every row of the batch shares; its bytes are 0 in every type
            zeros = bytes(hidden * (4 if kind == TensorProto.FLOAT else 2))
            state = add("Constant", value=TensorProto(data_type=kind, dims=[1, hidden], raw_data=zeros))
        states: list[str] = [""] * steps
        for step in reversed(range(steps)) if backwards else range(steps):
            now = [add("Gather", product, add.constant(step), axis=0) for product in products]
            z, reset = (
                add("Sigmoid", add("Add", now[gate], add("MatMul", state, recurrent[gate]))) for gate in range(2)
            )
            if attribute_of(node, "linear_before_reset", 0):
                product = add("MatMul", state, recurrent[2])
                remembered = add("Mul", reset, add("Add", product, inner) if inner else product)
            else:
                remembered = add("MatMul", add("Mul", reset, state), recurrent[2])
            new = add("Tanh", add("Add", now[2], remembered))
            state = add("Add", new, add("Mul", z, add("Sub", state, new)))
            states[step] = state
        one_by_one.append(states)
        last.append(state)
    if _output(node, 0):
        sides = [add("Concat", *(add.unsqueeze(state, [0, 1]) for state in states), axis=0) for states in one_by_one]
        add("Concat", *sides, to=node.output[0], axis=1)
    if _output(node, 1):
        add("Concat", *(add.unsqueeze(state, [0]) for state in last), to=node.output[1], axis=0)
    return add.nodes


def is_unrolled(node: Any, values: Values) -> bool:
    """True for a GRU that :func:`rewrite` writes step by step, as it is."""
    return not attribute_of(node, "layout", 0) and _gru(node, values) is not None


def _activations(node: Any) -> bool:
    """True where a GRU has the usual activations."""
    names = [name.decode().lower() for name in attribute_of(node, "activations", [])]
    return names in ([], ["sigmoid", "tanh"], ["sigmoid", "tanh"] * 2)


_Way = Callable[[Any, Values], "list[Any] | None"]
_LAYOUT = "{} with layout 1: transposed, since TensorRT takes the batch for the sequence"
_WINDOW = "{} with ceil_mode: the window that starts in the padding is dropped, which TensorRT keeps"
_Ways = dict[str, tuple[tuple[_Way, str], ...]]
_POOLS: _Ways = {
    "MaxPool": ((_pool, _WINDOW.format("MaxPool")),),
    "AveragePool": ((_pool, _WINDOW.format("AveragePool")),),
}
_WAYS: _Ways = {
    "Trilu": ((_trilu, "Trilu of integers: the upper triangle, which TensorRT gets wrong, is chosen with Where"),),
    "SpaceToDepth": ((_space_to_depth, "SpaceToDepth with mode CRD: DCR, which TensorRT takes it for, reordered"),),
    "LSTM": ((_batchwise, _LAYOUT.format("LSTM")),),
    "RNN": ((_batchwise, _LAYOUT.format("RNN")),),
    "GRU": (
        (_batchwise, _LAYOUT.format("GRU")),
        (_gru, "GRU: written step by step, since TensorRT-RTX may never finish compiling its loop"),
    ),
}


# Scales of fp8 weights


def _fp8_scales(proto: Any) -> list[str]:
    """Give the fp8 weights of convolutions a scale per output channel where they have one for all.

    TensorRT-RTX 1.6.1 leaves the scales out of the result where one scale serves the whole tensor, so that it
    saturates at 448; with the same scale once per channel it is exact (both measured on an H200).
    """
    import numpy as np
    from onnx import TensorProto, numpy_helper

    found = list(_one_scale(proto))
    for graph, nodes, scale, fp8, channels, axis in found:
        value = np.ascontiguousarray(np.broadcast_to(numpy_helper.to_array(scale).reshape(-1), channels))
        for node in nodes:
            inputs = [node.input[0], f"{node.output[0]}_scale_per_channel"]
            graph.initializer.append(numpy_helper.from_array(value, inputs[1]))
            if _given(node, 2):
                inputs.append(f"{node.output[0]}_zero_point_per_channel")
                # fp8 has no zero points but 0, whose byte is 0
                graph.initializer.append(
                    TensorProto(name=inputs[2], data_type=fp8, dims=[channels], raw_data=bytes(channels))
                )
            node.CopyFrom(copied(node, inputs, list(node.output), axis=axis))
    return [f"{len(found)} fp8 convolutions: the scale of the weights is written once per channel"] if found else []


def _one_scale(proto: Any) -> Iterator[tuple[Any, list[Any], Any, int, int, int]]:
    """Such weights: the graph they are in, their Q and DQ nodes, the scale, the fp8 type, the channels and their axis.

    The weights are stored in fp8 before a DequantizeLinear, or in higher precision before a pair of nodes.
    """
    from onnx import TensorProto

    types = (TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
    done = set()
    makers: dict[str, tuple[Any, Any]] = {}  # of outer graphs too, as constants are
    for graph, constants in scopes(proto.graph, {}):
        makers.update({output: (graph, node) for node in graph.node for output in node.output if output})
        for reader in graph.node:
            name = _given(reader, 1)
            if reader.op_type not in ("Conv", "ConvTranspose") or name not in makers or name in done:
                continue
            home, dequantize = makers[name]
            if dequantize.op_type != "DequantizeLinear":
                continue
            nodes, source = [dequantize], dequantize.input[0]
            weights = constants.get(source)
            kind = 0 if weights is None else weights.data_type
            if weights is None and source in makers and makers[source][1].op_type == "QuantizeLinear":
                quantize = makers[source][1]
                nodes.insert(0, quantize)
                weights, zero = constants.get(quantize.input[0]), constants.get(_given(quantize, 2))
                kind = attribute_of(quantize, "output_dtype", 0) or (0 if zero is None else zero.data_type)
            scales = [constants[node.input[1]] for node in nodes if node.input[1] in constants]
            if weights is None or kind not in types or len(scales) < len(nodes):
                continue
            if all(list(scale.dims) in ([], [1]) for scale in scales):
                done.add(name)
                axis = 0 if reader.op_type == "Conv" else 1
                yield home, nodes, scales[0], kind, int(weights.dims[axis]), axis
