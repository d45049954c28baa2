"""The precision of an ONNX graph: fp16 and bf16, for which networks are strongly typed, and fp32 without TF32."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import BuildError, MissingPackageError
from .options import BuildOptions
from .rewrites import (
    INTEGERS,
    Values,
    attribute_of,
    copied,
    free_name,
    graph_inputs,
    graphs,
    inner_graphs,
    is_unrolled,
    quantized_types,
    read_by,
    scopes,
    value_names,
)

# Kept in fp32: sums and powers leave fp16's range, exponentials and logarithms its precision. onnxconverter-common's
# own list comes on top: operators that fp16 does not exist for.
_SENSITIVE = (
    "CumSum",
    "Exp",
    "Log",
    "LogSoftmax",
    "Pow",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = (*_CONVOLUTIONS, "Gemm", "MatMul")
_INNER_PRODUCTS = ("Einsum", "Attention", "DeformConv", "LSTM", "GRU", "RNN")  # and what else these operators do
# What a tail does not reach beyond: where the work is, and what is quantized.
_HEAVY = (*_PRODUCTS, *_INNER_PRODUCTS, *_PAIR, "Constant")
# Kernels nearly cancel whose sum is below this part of their L2 norm, to which the error of a sum is proportional.
# CenterFace's lowest cosine in fp16, with only what lies below rounded so: none 0.99809, 1/256 0.99969, 1/64 0.99988,
# 1/16 0.99991, 1/2 0.99985.
_NEARLY_CANCEL = 1 / 16
# A bias drowns a product when its L2 norm is above this many times that of the weights: with inputs near 1 the product
# is nearly all taken away again, and with it four of fp16's eleven bits. Of the networks in benchmarks/real_models.py
# three have seven such layers, at 17 and more; the next one is at 6.
_DROWNS = 16
# What integers go through on their way to positions and sizes, and what they have to reach as they are.
_FOLLOWED = (
    *("Abs", "Add", "Cast", "Ceil", "Clip", "Concat", "CumSum", "Div", "Einsum", "Exp", "Expand", "Flatten", "Floor"),
    *("Gather", "Identity", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Pow", "Reciprocal", "ReduceMax"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Round", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum"),
    *("Tile", "Transpose", "Unsqueeze", "Where"),
)
_EXACT = (
    *("Ceil", "Cos", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mod", "Range", "Resize"),
    *("Round", "Sin", "Upsample"),
)
_DEEPEST = 16  # nodes before an output that may stay in fp32: in some networks sums go on to the first layer


def to_half(proto: Any, options: BuildOptions, name: str, changes: list[str]) -> Any:
    """A model in fp16 or bf16, but for what is sensitive or ``options`` name.

    Raises BuildError for a model that cannot be converted, and MissingPackageError.
    """
    try:
        from onnxconverter_common import float16
    except ImportError as error:
        raise MissingPackageError(
            f"fp16 and bf16 need onnxconverter-common ({error}). Run: pip install 'trtrun[convert]'"
        ) from error
    import numpy as np
    from onnx import TensorProto, numpy_helper

    drop_defaults(proto, changes)
    label = "bf16" if options.bf16 else "fp16"
    for graph in graphs(proto.graph):
        _end_outputs(graph, {value.name for value in graph.output} if graph is proto.graph else _read_too(graph))
    names = _name_apart(proto.graph)
    by_name, apart = _one_by_one(proto.graph, options.keep_fp32, names)
    _unfold_constants(proto.graph)
    _bring_in(proto)
    operators = {node.op_type for graph in graphs(proto.graph) for node in graph.node}
    unknown = [kept for kept in options.keep_fp32 if kept not in names.keys() | operators]
    if unknown:
        raise BuildError(
            f"keep_fp32 names {unknown}; {name} has neither such operators nor nodes of that name. A node without a "
            "name is called node_ and its position, from 0."
        )
    no_bf16 = ("HardSwish",) if options.bf16 else ()  # which TensorRT's parser takes as fp32 and fp16 only
    blocked = sorted({*float16.DEFAULT_OP_BLOCK_LIST, *_SENSITIVE, *no_bf16, *options.keep_fp32} - {*by_name})
    quantized = _quantized(proto)
    drowned = _drowned(proto)
    in_fp32 = [*(name for kept in options.keep_fp32 for name in by_name.get(kept, names.get(kept, ()))), *drowned]
    in_fp32 += _loops_of_gru(proto) if options.bf16 else []
    casts = [*_casts(proto.graph)]
    positions = _positions(proto)
    in_fp32 += positions
    tail = _Tail(proto, {*options.keep_fp32, *in_fp32} - {*by_name}, {*quantized}) if options.keep_io else None
    kept_nodes = [*in_fp32, *quantized, *casts]
    for graph in graphs(proto.graph):
        _separate(graph, {*blocked, *kept_nodes})
    limit = float(np.finfo(np.float16).max)
    beyond = {}
    for key, tensor in (found for graph in graphs(proto.graph) for found in _tensors(graph)):
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            largest = float(np.abs(array[np.isfinite(array)]).max(initial=0))  # infinities stay what they are
            if largest > limit:
                beyond[key] = largest
    rounded = _round_kernels(proto, {*blocked, *kept_nodes}, label)
    full = _full_precision(proto, name) if options.bf16 else {}
    left_out = _name_outputs(proto.graph)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights beyond fp16, which are reported below, and bf16 holds them
            converted = float16.convert_float_to_float16(
                proto,
                keep_io_types=options.keep_io,
                op_block_list=blocked,
                node_block_list=kept_nodes,
                min_positive_val=0.0,  # rounded like any other number, not up to 1e-7
                max_finite_val=limit,
            )
    except Exception as error:  # it raises ValueError, and whatever its shape inference does
        raise BuildError(f"{name} cannot be converted to {label}: {error}. Build it without {label}.") from error
    for graph in graphs(converted.graph):
        del graph.value_info[:]  # it leaves types of before
        _join(graph, {*positions, *casts, *(name for nodes in by_name.values() for name in nodes)})
    half = {
        key
        for graph in graphs(converted.graph)
        for key, tensor in _tensors(graph)
        if tensor.data_type == TensorProto.FLOAT16
    }
    if options.bf16:
        _fp16_to_bf16(converted, full)
    kept = Counter(node.op_type for node in converted.graph.node if node.op_type in blocked or node.name in in_fp32)
    if tail is not None:
        kept += Counter(node.op_type for node in tail.nodes if node.op_type != "Identity")
        tail.put_back(converted)
    _leave_out(converted.graph, left_out)
    for graph in reversed([*graphs(converted.graph)]):  # innermost first: sorting copies what is inside nodes
        _sort(graph)
    if quantized:
        changes.append(f"{len(quantized)} nodes of quantized convolutions and products keep their fp32 side")
    if apart:
        changes.append(
            f"{', '.join(apart)}: what is inside reads values from outside, so it is kept in fp32 node by node, and "
            f"what goes from one round to the next is {label}"
        )
    if drowned:
        changes.append(f"{', '.join(drowned)}: far larger biases than weights, kept in fp32")
    if positions:
        changes.append(f"{len(positions)} nodes that make positions or sizes of integers stay in fp32")
    if rounded:
        changes.append(
            f"{rounded} convolutions: kernels whose weights nearly cancel are rounded so that their sum stays"
        )
    ends = "stay fp32" if options.keep_io else label
    changes.append(f"{label}; kept in fp32: {_listed(kept) or 'none'}; inputs and outputs {ends}")
    cut = [beyond[key] for key in beyond.keys() & half]
    if options.fp16 and cut:
        changes.append(
            f"{len(cut)} constants hold numbers beyond fp16, up to {max(cut):.3g}, which were cut to {limit:g}"
        )
    return converted


def _name_apart(graph: Any) -> dict[str, list[str]]:
    """Give every node a name of its own, in inner graphs too; returns the new names by what the nodes were called.

    ONNX lets nodes share a name or have none, and the converter makes names of values out of those of nodes. A node
    without a name is called node_ and its position, in inner graphs inner_, the number of its graph and its position.
    """
    names: dict[str, list[str]] = {}
    taken = {node.name for each in graphs(graph) for node in each.node}
    for index, each in enumerate(graphs(graph)):
        for at, node in enumerate(each.node):
            called = node.name or (f"inner_{index}_{at}" if index else f"node_{at}")
            same = names.setdefault(called, [])
            node.name = free_name(called, taken, len(same) - 1) if same else called
            taken.add(called)
            same.append(node.name)
    return names


def _one_by_one(
    graph: Any, kept: Sequence[str], names: Mapping[str, list[str]]
) -> tuple[dict[str, list[str]], list[str]]:
    """The nodes, by name, that are kept for a name or an operator of which the converter cannot be told itself.

    It would keep the casts that it makes as well as others. And it does not look into an If, Loop or Scan that it
    keeps: one in which something is read that is computed outside is kept node by node. Those come second.
    """
    nodes = [node for each in graphs(graph) for node in each.node]
    computed = {value.name for each in graphs(graph) for value in each.input}
    computed |= {name for node in nodes if node.op_type != "Constant" for name in node.output}

    def parts(node: Any) -> list[Any]:
        inner = [each for body in inner_graphs(node) for each in graphs(body)]
        inside = [each for body in inner for each in body.node]
        own = {value.name for body in inner for value in body.input} | {name for n in inside for name in n.output}
        read = {name for n in inside for name in n.input} | {value.name for body in inner for value in body.output}
        return [n for n in inside if not inner_graphs(n)] if (read - own) & computed else [node]

    found: dict[str, list[str]] = {}
    apart = []
    for what in kept:
        meant = [node for node in nodes if node.op_type == what or node.name in names.get(what, ())]
        in_parts = [(node, parts(node)) for node in meant]
        split = [node.name for node, each in in_parts if each != [node]]
        if what == "Cast" or split:
            found[what] = [part.name for _, each in in_parts for part in each]
            apart += split
    return found, apart


def _loops_of_gru(proto: Any) -> list[str]:
    """The GRUs that TensorRT's parser is given as such, by name: it takes none in bf16."""
    values = Values(proto)
    nodes = (node for graph in graphs(proto.graph) for node in graph.node if node.op_type == "GRU")
    return [node.name for node in nodes if not is_unrolled(node, values)]


def _casts(graph: Any) -> Iterator[str]:
    """The casts to fp32, of masks and counts: the converter leaves them as they are, and has to be told that."""
    from onnx import TensorProto, helper

    for each in graphs(graph):
        for node in each.node:
            if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT:
                yield node.name


def _positions(proto: Any) -> list[str]:
    """The nodes, by name, on the way from integers to positions and sizes: Sin, Floor, a Cast back, and their like.

    fp16 has no odd integers beyond 2048 and none beyond 65504: the sines of rotary positions are wrong by .1 from 1000
    on, and TensorRT takes no sizes in it. What vectors of constants give to that (frequencies) is on the way too. A
    product is where it multiplies nothing else: no matrix of weights, no features.
    """
    from onnx import TensorProto

    values = Values(proto)
    whole = (TensorProto.INT32, TensorProto.INT64, TensorProto.UINT32, TensorProto.UINT64)
    counts: set[str] = set()  # values that come from integers, and those that constants alone give
    fixed = {
        tensor.name
        for graph in graphs(proto.graph)
        for tensor in graph.initializer
        if tensor.data_type == TensorProto.FLOAT and sum(size > 1 for size in tensor.dims) < 2
    }
    found = []
    for node in (node for graph in graphs(proto.graph) for node in graph.node):
        if node.domain not in ("", "ai.onnx"):
            continue
        to = attribute_of(node, "to", 0) if node.op_type == "Cast" else TensorProto.FLOAT
        given = node.input[1:] if node.op_type in ("Resize", "Upsample") else node.input  # sizes, not the picture
        types = {name: values.type(name) for name in given if name}
        reads = {name for name, kind in types.items() if kind == TensorProto.FLOAT}
        alone = bool(reads) and reads <= counts | fixed
        product = node.op_type in ("MatMul", "Einsum")
        if all(types.values()) and (alone or (reads & counts and not product)):
            found.append((node, to, reads))
            if node.op_type in _FOLLOWED and to == TensorProto.FLOAT:
                (counts if reads & counts else fixed).update(node.output)
        made = node.op_type in ("Range", "CumSum") and values.type(node.output[0]) == TensorProto.FLOAT
        if made or (node.op_type == "Cast" and to == TensorProto.FLOAT and types[node.input[0]] in whole):
            counts.update(node.output)
    kept: list[str] = []
    wanted: set[str] = set()
    for node, to, reads in reversed(found):
        if wanted & {*node.output} or (reads & counts and (node.op_type in _EXACT or to in whole)):
            kept.append(node.name)
            wanted |= reads & (counts | fixed)
    return kept[::-1]


def _join(graph: Any, kept: set[str]) -> None:
    """Give what reads in fp32 what these nodes made in fp32: the converter rounds it between the two.

    It leaves a cast to half and one back where several read the value, and where an Identity stands between.
    """
    from onnx import TensorProto

    makers = {name: node for node in graph.node for name in node.output if name}
    for node in graph.node:
        if node.op_type != "Cast" or attribute_of(node, "to", 0) != TensorProto.FLOAT or node.name in kept:
            continue
        source = makers.get(node.input[0])
        while source is not None and source.op_type == "Identity":
            source = makers.get(source.input[0])
        if source is not None and source.op_type == "Cast" and attribute_of(source, "to", 0) == TensorProto.FLOAT16:
            maker = makers.get(source.input[0])
            if maker is not None and maker.name in kept:
                node.CopyFrom(copied(node, [source.input[0]], [*node.output]))
                node.op_type = "Identity"
                del node.attribute[:]
    reads = Counter([*(value.name for value in graph.output), *(name for node in graph.node for name in read_by(node))])
    for node in reversed([*graph.node]):
        if node.op_type in ("Cast", "Identity") and not any(reads[name] for name in node.output):
            reads.subtract(node.input)
            graph.node.remove(node)


def _read_too(graph: Any) -> set[str]:
    """The outputs of a graph that its nodes read too."""
    return {value.name for value in graph.output} & {name for node in graph.node for name in read_by(node)}


def _end_outputs(graph: Any, outputs: set[str]) -> None:
    """Give these outputs an Identity of their own each: all of a model, and of inner graphs those that are read there.

    The converter puts a cast on an output, and whoever reads it too would be given what comes out of the cast; and it
    takes an output for half that a node in fp32 makes.
    """
    from onnx import helper

    inner = {name: f"{name}/inside" for name in outputs}
    made = [tensor.name for tensor in graph.initializer if tensor.name in inner]
    made += [name for node in graph.node for name in node.output if name in inner]
    for tensor in graph.initializer:
        tensor.name = inner.get(tensor.name, tensor.name)
    for node in graph.node:
        node.output[:] = [inner.get(name, name) for name in node.output]
        _rename_reads(node, {name: inner[name] for name in made})
    graph.node.extend(helper.make_node("Identity", [inner[name]], [name], name=inner[name]) for name in made)


def _name_outputs(graph: Any) -> set[str]:
    """Name the outputs that are left out before others, for the converter looks for a node at every name."""
    taken = value_names(graph)
    names = set()
    for each in graphs(graph):
        for node in each.node:
            for index, output in enumerate(node.output):
                if not output:
                    node.output[index] = free_name(f"{node.op_type}/left_out", taken)
                    names.add(node.output[index])
    return names


def _leave_out(graph: Any, names: set[str]) -> None:
    """Leave those outputs out again, and the casts that the converter put behind them."""
    for each in graphs(graph):
        for node in [node for node in each.node if node.op_type == "Cast" and node.output[0] in names]:
            names = names | {*node.input}
            each.node.remove(node)
        for node in each.node:
            node.output[:] = ["" if name in names else name for name in node.output]


def _rename_reads(node: Any, names: Mapping[str, str]) -> None:
    node.input[:] = [names.get(name, name) for name in node.input]
    for graph in inner_graphs(node):
        for each in graph.node:
            _rename_reads(each, names)
        for value in graph.output:
            value.name = names.get(value.name, value.name)


def _unfold_constants(graph: Any) -> None:
    """Make the floating-point Constant nodes initializers, so that one rule serves both.

    The converter would leave a ``value_float`` in fp32 among fp16, and cut what a node that stays in fp32 reads. Those
    of inner graphs stay nodes, which hold a tensor then.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for each in graphs(graph):
        kept = []
        for node in each.node:
            given = {a.name: a for a in node.attribute} if node.op_type == "Constant" else {}
            for kind in ("value_float", "value_floats"):
                if kind in given:
                    value = np.array(helper.get_attribute_value(given[kind]), np.float32)
                    del node.attribute[:]
                    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
                    given = {"value": node.attribute[0]}
            tensor = TensorProto.FromString(given["value"].t.SerializeToString()) if "value" in given else None
            # of an empty one, which Resize is given, TensorRT's parser would warn
            if each is graph and tensor is not None and tensor.data_type == TensorProto.FLOAT and all(tensor.dims):
                tensor.name = node.output[0]
                each.initializer.append(tensor)
            else:
                kept.append(copied(node, [*node.input], [*node.output]))
        if len(kept) < len(each.node):
            del each.node[:]
            each.node.extend(kept)


def _bring_in(proto: Any) -> None:
    """Give inner graphs what they read of fp32 values outside: constants of their own, and an Identity of the rest.

    The converter knows the types of a graph's own values alone, and does not tell inner graphs of the casts that it
    puts or takes away outside: there an Identity stands for them too.
    """
    from onnx import TensorProto, helper

    values = Values(proto)
    taken = value_names(proto.graph) | {node.name for graph in graphs(proto.graph) for node in graph.node}
    given = {value.name: "" for value in proto.graph.input}
    given |= {name: "" for node in proto.graph.node for name in node.output}
    (_, *inside) = scopes(proto.graph, {})
    for graph, constants in reversed(inside):  # innermost first: putting nodes in front copies what is inside
        own = {value.name for value in (*graph.input, *graph.initializer)}
        own |= {name for node in graph.node for name in node.output}
        read = [*(name for node in graph.node for name in node.input), *(value.name for value in graph.output)]
        names = {}
        nodes = []
        for name in dict.fromkeys(read):
            if name in own or values.type(name) != TensorProto.FLOAT:
                continue
            names[name] = free_name(f"{name}/inside", taken)
            if name in constants:
                tensor = TensorProto.FromString(constants[name].SerializeToString())
                tensor.name = names[name]
                graph.initializer.append(tensor)
                continue
            if name in given:
                given[name] = given[name] or free_name(f"{name}/given", taken)
            nodes.append(helper.make_node("Identity", [given.get(name, name)], [names[name]], name=names[name]))
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
        for value in graph.output:
            value.name = names.get(value.name, value.name)
        nodes += graph.node
        del graph.node[:]
        graph.node.extend(nodes)
    if inside:
        identities = (helper.make_node("Identity", [name], [new], name=new) for name, new in given.items() if new)
        proto.graph.node.extend(identities)
        _sort(proto.graph)
        drop_unused(proto)


def _sort(graph: Any) -> None:
    """Put nodes behind what the graphs inside them read; the converter puts them behind what they read themselves."""
    if not any(inner_graphs(node) for node in graph.node):
        return
    missing = {name for node in graph.node for name in node.output if name}
    nodes: list[Any] = []
    left = [*graph.node]
    while left:
        later = []
        for node in left:
            if missing.isdisjoint(read_by(node)):
                nodes.append(node)
                missing.difference_update(node.output)
            else:
                later.append(node)
        if len(later) == len(left):
            return  # a circle, of which TensorRT says more
        left = later
    del graph.node[:]
    graph.node.extend(nodes)


def _separate(graph: Any, kept: set[str]) -> None:
    """Give what stays in fp32 constants of its own, where others read them too and are to have them in half."""
    from onnx import TensorProto

    weights = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == TensorProto.FLOAT}
    stays = [node for node in graph.node if kept & {node.op_type, node.name}]
    others = {name for node in graph.node if not kept & {node.op_type, node.name} for name in read_by(node)}
    shared = {name for node in stays for name in node.input} & others & weights.keys()
    for name in sorted(shared):
        tensor = TensorProto.FromString(weights[name].SerializeToString())
        tensor.name = f"{name}/fp32"
        graph.initializer.append(tensor)
    for node in stays:
        node.input[:] = [f"{name}/fp32" if name in shared else name for name in node.input]


class _Tail:
    """The nodes between the last products in half precision and the outputs, taken out and put back in fp32.

    They are few, and what they give leaves the network as fp32: rounded to fp16, scores near 1 tie (CenterFace's box
    moved by a cell), and coordinates beyond 512 are half a pixel apart. The converter is given the rest, whose outputs
    are what these nodes read.
    """

    def __init__(self, proto: Any, kept: set[str], quantized: set[str]) -> None:
        """With the names and operators that stay in fp32, and the names of nodes that Q/DQ pairs hold together."""
        from onnx import TensorProto, ValueInfoProto, helper

        graph = proto.graph
        self._outputs = [ValueInfoProto.FromString(value.SerializeToString()) for value in graph.output]
        self._tensors: list[Any] = []
        values, constants = Values(proto), next(scopes(graph, {}))[1]
        heavy = {
            node.name
            for node in graph.node
            if node.name in quantized or (node.op_type in _HEAVY and not kept & {node.op_type, node.name})
        }
        found = self._behind(graph, heavy)
        self.nodes = [copied(node, [*node.input], [*node.output]) for node in graph.node if node.name in found]
        rest = [copied(node, [*node.input], [*node.output]) for node in graph.node if node.name not in found]
        made = {name for node in rest for name in node.output if name}
        wanted = dict.fromkeys(name for node in self.nodes for name in node.input if name in made)
        if not self.nodes or not all(values.type(name) for name in wanted):
            self.nodes = []
            return
        inner = {
            name: f"{name}/last" for node in self.nodes for name in node.input if name in constants or name in made
        }
        for name in (each for each in inner if each in constants):
            tensor = TensorProto.FromString(constants[name].SerializeToString())
            tensor.name = inner[name]
            self._tensors.append(tensor)
        for node in self.nodes:
            node.input[:] = [inner.get(name, name) for name in node.input]
        del graph.output[:]
        graph.output.extend(value for value in self._outputs if value.name in made)
        for name in wanted:
            if name not in constants:
                rest.append(helper.make_node("Identity", [name], [inner[name]], name=inner[name]))
                # the shape may not be known, and is not asked for
                graph.output.append(helper.make_tensor_value_info(inner[name], values.type(name), None))
        del graph.node[:]
        graph.node.extend(rest)

    @staticmethod
    def _behind(graph: Any, heavy: set[str]) -> set[str]:
        makers = {output: node for node in graph.node for output in node.output if output}
        found: dict[str, Any] = {}
        front = {value.name for value in graph.output}
        for _ in range(_DEEPEST):
            nodes = [makers[name] for name in front if name in makers and makers[name].name not in found]
            nodes = [
                node
                for node in nodes
                if not (node.name in heavy or node.op_type.endswith("Normalization") or inner_graphs(node))
            ]
            found.update((node.name, node) for node in nodes)
            front = {name for node in nodes for name in node.input}
        while True:  # what others read too has to be among them
            read = {name for node in graph.node if node.name not in found for name in read_by(node)}
            shared = [name for name, node in found.items() if read & {*node.output}]
            if not shared:
                return set(found)
            for name in shared:
                del found[name]

    def put_back(self, proto: Any) -> None:
        if self.nodes:
            proto.graph.node.extend(self.nodes)
            proto.graph.initializer.extend(self._tensors)
            del proto.graph.output[:]
            proto.graph.output.extend(self._outputs)
            drop_unused(proto)


def _drowned(proto: Any) -> list[str]:
    """The products whose biases are far larger than their weights, by name; see :data:`_DROWNS`.

    There a large sum meets a large bias and little is left, in which the rounding of both is felt. TensorRT-RTX 1.6.1
    also adds up fp16 convolutions in fp16: emulated so, U²-Netp's lowest cosine is the 0.997867 that an H200 gave, by
    one layer nearly alone, whose biases reach 1,360. With four of its 119 convolutions in fp32 it is 0.99984.
    """
    import numpy as np
    from onnx import numpy_helper

    constants = next(scopes(proto.graph, {}))[1]
    found = []
    for node in proto.graph.node:
        if node.op_type in (*_CONVOLUTIONS, "Gemm") and len(node.input) > 2 and {*node.input[1:]} <= constants.keys():
            weights, bias = (
                np.linalg.norm(numpy_helper.to_array(constants[name]).astype(np.float64)) for name in node.input[1:]
            )
            if bias > _DROWNS * weights:
                found.append(node.name)
    return found


def _round_kernels(proto: Any, kept: set[str], label: str) -> int:
    """Round spatial kernels that nearly cancel to half precision so that their sum stays; returns in how many nodes.

    Rounded one by one, weights that nearly cancel (an edge filter's) leave a sum that is wrong by a half of the last
    bit of the largest, which adds a constant wherever the picture is even. Here each weight also takes the error of
    the larger ones before it, which makes its own error 1.4 times as large on average: so it is done only below
    :data:`_NEARLY_CANCEL`, and zeros stay zeros. Weights that something else reads are left alone.
    """
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto, numpy_helper

    half: Any = ml_dtypes.bfloat16 if label == "bf16" else np.float16
    weights = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    fitting: Counter[str] = Counter()
    for node in proto.graph.node:
        if node.op_type in _CONVOLUTIONS and not kept & {node.op_type, node.name} and len(node.input) > 1:
            fitting[node.input[1]] += 1
    readers = Counter(name for node in proto.graph.node for name in read_by(node))
    readers.update(value.name for value in proto.graph.output)
    done = 0
    for name, count in fitting.items():
        tensor = weights.get(name)
        if tensor is None or readers[name] > count or len(tensor.dims) < 3 or int(np.prod(tensor.dims[2:])) < 2:
            continue
        array = numpy_helper.to_array(tensor)
        if not np.abs(array).max(initial=0) < float(np.finfo(np.float16).max) / 2:  # NaN too
            continue
        every = array.reshape(-1, int(np.prod(array.shape[2:]))).astype(np.float64)
        nearly = np.abs(every.sum(1)) < _NEARLY_CANCEL * np.linalg.norm(every, axis=1)
        if not nearly.any():
            continue
        kernels = every[nearly]
        order = np.argsort(-np.abs(kernels), axis=1, kind="stable")
        rows = np.arange(len(kernels))
        error = np.zeros(len(kernels))
        for column in order.T:
            old = kernels[rows, column]
            wanted = np.where(old == 0, 0, old + error)
            kernels[rows, column] = wanted.astype(np.float32).astype(half).astype(np.float64)
            error = np.where(old == 0, error, wanted - kernels[rows, column])
        every[nearly] = kernels
        tensor.CopyFrom(numpy_helper.from_array(every.astype(np.float32).reshape(array.shape), name))
        done += count
    return done


def _tensors(graph: Any) -> Iterator[tuple[str, Any]]:
    """The constants of a graph by the names of their values."""
    for tensor in graph.initializer:
        yield tensor.name, tensor
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield f"{node.output[0]} {attribute.name}", attribute.t


def _full_precision(proto: Any, name: str) -> dict[str, Any]:
    """The fp32 constants before the conversion, which goes by way of fp16 and would cut them to its range."""
    from onnx import TensorProto, numpy_helper

    types = {tensor.data_type for graph in graphs(proto.graph) for _, tensor in _tensors(graph)}
    types |= {a.i for graph in graphs(proto.graph) for node in graph.node for a in node.attribute if a.name == "to"}
    types |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    if TensorProto.FLOAT16 in types:
        raise BuildError(f"{name} holds fp16 tensors already, so it cannot be converted to bf16. Build it as it is.")
    return {
        key: numpy_helper.to_array(tensor)
        for graph in graphs(proto.graph)
        for key, tensor in _tensors(graph)
        if tensor.data_type == TensorProto.FLOAT
    }


def _fp16_to_bf16(proto: Any, full: dict[str, Any]) -> None:
    """Turn everything that is fp16 into bf16, constants from their fp32 values."""
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto, numpy_helper

    half, bfloat = TensorProto.FLOAT16, TensorProto.BFLOAT16
    for graph in graphs(proto.graph):
        for key, tensor in _tensors(graph):
            if tensor.data_type == half:
                array = full.get(key, numpy_helper.to_array(tensor)).astype(ml_dtypes.bfloat16)
                tensor.CopyFrom(
                    TensorProto(
                        name=tensor.name, data_type=bfloat, dims=tensor.dims, raw_data=array.view(np.uint16).tobytes()
                    )
                )
        for node in graph.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == half:
                    attribute.i = bfloat
        for value in (*graph.input, *graph.output, *graph.value_info):
            if value.type.tensor_type.elem_type == half:
                value.type.tensor_type.elem_type = bfloat


def drop_defaults(proto: Any, changes: list[str]) -> None:
    """Weights that old exporters list among the inputs too: a change would reach one and leave the other."""
    kept = graph_inputs(proto.graph)
    dropped = len(proto.graph.input) - len(kept)
    if dropped:
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        proto.ir_version = max(proto.ir_version, 4)  # from which on initializers need not be inputs
        changes.append(f"{dropped} initializers are no longer inputs that could replace them")


def _quantized(proto: Any) -> list[str]:
    """The Q/DQ nodes that fp16 scales would spoil, and what computes between them, by name: those of fp8.

    Their scales do not survive fp16: TensorRT-RTX 1.6.1 multiplies with them last, and what an fp8 product sums up to
    before is beyond fp16 (measured: infinities). Those of int8 have to be fp32 too before operator set 19, where
    ONNX gave them other types.
    """
    kinds = quantized_types(proto)
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    pairs = [node for node in proto.graph.node if node.op_type in _PAIR]
    kept = [node for node in pairs if opset < 19 or kinds.get(node.output[0]) not in INTEGERS]
    dequantized = {node.output[0] for node in kept if node.op_type == "DequantizeLinear"}
    between = [node for node in proto.graph.node if node.op_type in _PRODUCTS and dequantized & {*node.input}]
    return [node.name for node in (*kept, *between)]


def without_tf32(proto: Any, name: str, changes: list[str]) -> Any:
    """A model whose fp32 products need no more than TF32's 10 bits: each is the sum of three.

    TensorRT-RTX 1.6.1 rounds the operands of fp32 convolutions and matrix products to TF32 whether its flag is set or
    not. So every operand is written as the sum of what TF32 holds (of a value that is computed: what bf16 holds) and
    the rest, and of the four products the least is left out: about 2⁻¹⁹ of a product is lost. An infinite operand
    gives NaN. Depthwise convolutions are not rounded there, and left as they are. What multiplies inside one operator
    (an LSTM, Einsum, Attention) cannot be written so, and is reported.

    Raises BuildError for a model of an operator set before 13, where bf16 began, that onnx cannot bring there.
    """
    drop_defaults(proto, changes)
    proto = at_least_opset(proto, 13, name, "tf32=False")
    values = Values(proto)
    counts, left = Counter[str](), Counter[str]()
    for graph, constants in scopes(proto.graph, {}):
        dequantized = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        halves = _Halves(constants)
        for node in graph.node:
            rounded = _is_rounded_to_tf32(node, values) and not dequantized & {*node.input}
            if rounded:
                (left if node.op_type in _INNER_PRODUCTS else counts)[node.op_type] += 1
            if rounded and node.op_type in _PRODUCTS:
                halves.multiply(node)
            else:
                halves.nodes.append(copied(node, [*node.input], [*node.output]))
        del graph.node[:]
        graph.node.extend(halves.nodes)
        graph.initializer.extend(halves.tensors)
    if counts:
        drop_unused(proto)
        changes.append(f"without TF32: {_listed(counts)}, each computed as a sum of three")
    if left:
        changes.append(f"still with TF32, which multiply inside: {_listed(left)}")
    return proto


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {operator}" for operator, count in sorted(counts.items()))


def at_least_opset(proto: Any, opset: int, name: str, why: str) -> Any:
    """The model in this operator set of ONNX, or in its own later one. Raises BuildError where onnx cannot do it."""
    import onnx

    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if versions and versions[0] >= opset:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, opset)
    except Exception as error:  # its errors share no base
        raise BuildError(
            f"{name} is of operator set {versions[0] if versions else 'unknown'}, {why} needs {opset}, and onnx cannot "
            f"convert it: {error}. Export it again with that operator set."
        ) from error


def _is_rounded_to_tf32(node: Any, values: Values) -> bool:
    from onnx import TensorProto

    if node.op_type not in (*_PRODUCTS, *_INNER_PRODUCTS) or node.domain not in ("", "ai.onnx"):
        return False
    types = {values.type(tensor) for tensor in node.input[:2]} - {0}  # unknown behind custom operators
    if types != {TensorProto.FLOAT}:
        return False
    shape = values.shape(node.input[1]) if node.op_type == "Conv" else None
    return not (shape and shape[1] == 1 and attribute_of(node, "group", 1) > 1)


class _Halves:
    """The nodes of a graph in which products are sums of three; a value's two halves are computed once."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self.nodes: list[Any] = []
        self.tensors: list[Any] = []
        self._constants = constants
        self._halves: dict[str, tuple[str, str]] = {}

    def multiply(self, node: Any) -> None:
        output = node.output[0]
        (a, a_rest), (b, b_rest) = (self._of(tensor, f"{output}/{i}") for i, tensor in enumerate(node.input[:2]))
        sums = [f"{output}/{part}" for part in ("high", "right", "left")]
        # the bias is added once; without it, Gemm's beta has no effect
        for inputs, product in (([a, b, *node.input[2:]], sums[0]), ([a, b_rest], sums[1]), ([a_rest, b], sums[2])):
            made = copied(node, inputs, [product])
            made.name = product
            self.nodes.append(made)
        self._add("Add", sums[1:], f"{output}/rest")
        self._add("Add", [sums[0], f"{output}/rest"], output)

    def _of(self, tensor: str, base: str) -> tuple[str, str]:
        if tensor not in self._halves:
            self._halves[tensor] = f"{base}/tf32", f"{base}/rest"
            self._split(tensor, *self._halves[tensor])
        return self._halves[tensor]

    def _split(self, tensor: str, high: str, rest: str) -> None:
        import numpy as np
        from onnx import TensorProto, numpy_helper

        if tensor in self._constants:
            array = np.ascontiguousarray(numpy_helper.to_array(self._constants[tensor]))
            bits = array.view(np.uint32)
            rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
            rounded = np.where(np.isfinite(rounded), rounded, array)
            self.tensors.append(numpy_helper.from_array(rounded, high))
            with np.errstate(invalid="ignore"):  # ∞ − ∞
                self.tensors.append(numpy_helper.from_array(array - rounded, rest))
            return
        bf16 = f"{high}/bf16"
        self._add("Cast", [tensor], bf16, to=TensorProto.BFLOAT16)
        self._add("Cast", [bf16], high, to=TensorProto.FLOAT)
        self._add("Sub", [tensor, high], rest)

    def _add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))


def drop_unused(proto: Any) -> None:
    """Take away the weights that no node reads any more."""
    read = {value.name for graph in graphs(proto.graph) for value in graph.output}
    read |= {name for graph in graphs(proto.graph) for node in graph.node for name in node.input}
    for graph in graphs(proto.graph):
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)
