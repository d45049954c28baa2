"""Changes to an ONNX graph before TensorRT parses it, each one reported: outputs, tied dimensions, folding, fp16."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import BuildError, MissingPackageError, OnnxError
from . import rewrites
from .options import BuildOptions

if TYPE_CHECKING:
    from ..flavor import Capabilities

# Of what ``prepare`` makes of the same model and options: one more with each change, so that no cache serves the old.
REVISION = 1

_PROTOBUF_LIMIT = 2**31 - 1  # bytes of one ONNX message
# Names that exporters give to a dimension they know nothing of. The builder would tie all of one name together.
_NAMELESS = ("?", "None", "unk", "unknown", "dynamic", "-1")
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


def prepare(
    model: str | os.PathLike[str] | bytes, options: BuildOptions, capabilities: Capabilities | None = None
) -> tuple[bytes | None, list[str]]:
    """The model as bytes with the changes that ``options`` ask for, and one line for each; None where nothing changed.

    Dimensions without a real name are given one each in any case, and what TensorRT computes wrongly is written
    another way, last, whatever made it. With the ``capabilities`` of a flavour, what it is known to compute wrongly or
    to die of all the same is refused.

    Raises:
        BuildError: an output that does not exist, a graph that cannot be changed as asked, or an operator that this
            flavour cannot be given.
        OnnxError: the model with its external data is larger than one ONNX message can be.
        MissingPackageError: the package that makes a change is not installed.
    """
    import onnx  # check_model has been here and says what to install

    name = "this model" if isinstance(model, bytes) else os.fspath(model)
    graph_only = (
        onnx.load_model_from_string(model)
        if isinstance(model, bytes)
        else onnx.load(os.fspath(model), load_external_data=False)
    )
    changes = _untie(graph_only)
    if options.fp16 and options.bf16:
        raise BuildError("fp16 and bf16 exclude each other. Choose one.")
    asked = options.outputs or options.simplify or options.fp16 or options.bf16
    if not (asked or changes or rewrites.needed(graph_only)):
        if capabilities is not None:
            rewrites.refuse(graph_only, name, capabilities)
        return None, []
    proto: Any = graph_only
    if not isinstance(model, bytes):
        onnx.external_data_helper.load_external_data_for_model(proto, os.path.dirname(os.path.abspath(model)))
    if options.outputs:
        proto = _choose_outputs(proto, options.outputs, name, changes)
    if options.simplify:
        proto = _simplify(proto, name, changes)
    if options.fp16 or options.bf16:
        proto = _to_half(proto, options, name, changes)
    changes += rewrites.rewrite(proto)
    if capabilities is not None:
        rewrites.refuse(proto, name, capabilities)
    if proto.ByteSize() > _PROTOBUF_LIMIT:
        what = "without outputs, simplify and fp16" if asked else f"after this change: {'; '.join(changes)}"
        raise OnnxError(
            f"{name} holds {proto.ByteSize():,} bytes with its external data, more than one ONNX message can, so "
            f"trtrun cannot change it before it is built. Change it with the exporter, and build it {what}."
        )
    data: bytes = proto.SerializeToString()
    return data, changes


def _untie(proto: Any) -> list[str]:
    changes = []
    seen: Counter[str] = Counter()
    for value in proto.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            old = dim.dim_param
            if old in _NAMELESS:
                seen[old] += 1
                dim.dim_param = f"{value.name}_{axis}"
    for old, count in seen.items():
        if count > 1:
            changes.append(f"{count} dimensions called {old!r} are no longer taken for one")
    return changes


def _choose_outputs(proto: Any, outputs: tuple[str, ...], name: str, changes: list[str]) -> Any:
    import onnx
    from onnx.utils import Extractor

    known = {output for node in proto.graph.node for output in node.output if output}
    unknown = [output for output in outputs if output not in known]
    if unknown:
        raise BuildError(f"{name} computes no {unknown}, so it cannot be an output. It has {sorted(known)[:50]}.")
    before = len(proto.graph.node)
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = [value.name for value in proto.graph.input if value.name not in initializers]
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
        typed = {value.name for value in (*inferred.graph.value_info, *inferred.graph.output)}
        missing = [output for output in outputs if output not in typed]
        if missing:
            raise BuildError(f"the type of {missing} in {name} cannot be inferred, so it cannot be an output.")
        chosen = Extractor(inferred).extract_model(inputs, list(outputs))
    except BuildError:
        raise
    except Exception as error:  # onnx's errors share no base
        raise BuildError(f"the outputs {list(outputs)} cannot be taken from {name}: {error}") from error
    used = {name for node in chosen.graph.node for name in node.input}
    for value in [value for value in chosen.graph.input if value.name not in used]:
        chosen.graph.input.remove(value)
    changes.append(f"outputs {', '.join(outputs)}: {len(chosen.graph.node)} of {before} nodes are needed for them")
    return chosen


def _simplify(proto: Any, name: str, changes: list[str]) -> Any:
    try:
        import onnxslim
    except ImportError as error:
        raise MissingPackageError(
            f"simplifying needs onnxslim ({error}). Run: pip install 'trtrun[convert]'"
        ) from error
    before = Counter(node.op_type for node in proto.graph.node)
    try:
        slim = onnxslim.slim(proto)
    except Exception as error:
        raise BuildError(f"{name} cannot be simplified: {error}. Build it without simplify.") from error
    after = Counter(node.op_type for node in slim.graph.node)
    gone = ", ".join(f"{count} {op}" for op, count in sorted((before - after).items()))
    changes.append(f"simplified: {before.total()} nodes to {after.total()}" + (f", without {gone}" if gone else ""))
    return slim


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


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

    types = {tensor.data_type for graph in _graphs(proto.graph) for _, tensor in _tensors(graph)}
    types |= {a.i for graph in _graphs(proto.graph) for node in graph.node for a in node.attribute if a.name == "to"}
    types |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    if TensorProto.FLOAT16 in types:
        raise BuildError(f"{name} holds fp16 tensors already, so it cannot be converted to bf16. Build it as it is.")
    return {
        key: numpy_helper.to_array(tensor)
        for graph in _graphs(proto.graph)
        for key, tensor in _tensors(graph)
        if tensor.data_type == TensorProto.FLOAT
    }


def _fp16_to_bf16(proto: Any, full: dict[str, Any]) -> None:
    """Turn everything that is fp16 into bf16, constants from their fp32 values."""
    import ml_dtypes
    import numpy as np
    from onnx import TensorProto, numpy_helper

    half, bfloat = TensorProto.FLOAT16, TensorProto.BFLOAT16
    for graph in _graphs(proto.graph):
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


def _drop_defaults(proto: Any, changes: list[str]) -> None:
    """Weights that old exporters list among the inputs too: the converter would change one and leave the other."""
    initializers = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in initializers]
    dropped = len(proto.graph.input) - len(kept)
    if dropped:
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        changes.append(f"{dropped} initializers are no longer inputs that could replace them")


def _quantized(proto: Any) -> list[str]:
    """The Q/DQ nodes and what computes between them, by name.

    Their scales do not survive fp16: TensorRT-RTX 1.6.1 multiplies with them last, and what an fp8 product sums up to
    before is beyond fp16 (measured: infinities).
    """
    pair = ("QuantizeLinear", "DequantizeLinear")
    dequantized = {node.output[0] for node in proto.graph.node if node.op_type == pair[1]}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type in pair
        or (node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul") and dequantized & {*node.input})
    ]


def _to_half(proto: Any, options: BuildOptions, name: str, changes: list[str]) -> Any:
    try:
        from onnxconverter_common import float16
    except ImportError as error:
        raise MissingPackageError(
            f"fp16 and bf16 need onnxconverter-common ({error}). Run: pip install 'trtrun[convert]'"
        ) from error
    import numpy as np
    from onnx import TensorProto, numpy_helper

    _drop_defaults(proto, changes)
    label = "bf16" if options.bf16 else "fp16"
    full = _full_precision(proto, name) if options.bf16 else {}
    largest = 0.0
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor)
            largest = max(largest, float(np.abs(array).max(initial=0)))
    blocked = sorted({*float16.DEFAULT_OP_BLOCK_LIST, *_SENSITIVE, *options.keep_fp32})
    names = {node.name for node in proto.graph.node}
    operators = {node.op_type for node in proto.graph.node}
    unknown = [kept for kept in options.keep_fp32 if kept not in names | operators]
    if unknown:
        raise BuildError(f"keep_fp32 names {unknown}; {name} has neither such operators nor nodes of that name.")
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"  # the converter tells nodes apart by name
    quantized = _quantized(proto)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights beyond fp16, which are reported below, and bf16 holds them
            converted = float16.convert_float_to_float16(
                proto,
                keep_io_types=options.keep_io,
                op_block_list=blocked,
                node_block_list=[*(kept for kept in options.keep_fp32 if kept in names), *quantized],
                min_positive_val=0.0,  # rounded like any other number, not up to 1e-7
                max_finite_val=float(np.finfo(np.float16).max),
            )
    except Exception as error:  # it raises ValueError, and whatever its shape inference does
        raise BuildError(f"{name} cannot be converted to {label}: {error}. Build it without {label}.") from error
    del converted.graph.value_info[:]  # it leaves types of before
    if options.bf16:
        _fp16_to_bf16(converted, full)
    kept = Counter(node.op_type for node in converted.graph.node if node.op_type in blocked)
    text = ", ".join(f"{count} {op}" for op, count in sorted(kept.items())) or "none"
    if quantized:
        changes.append(f"{len(quantized)} nodes of quantized convolutions and products keep their fp32 side")
    changes.append(f"{label}; kept in fp32: {text}; inputs and outputs {'stay fp32' if options.keep_io else label}")
    if options.fp16 and largest > np.finfo(np.float16).max:
        changes.append(f"the largest weight, {largest:.3g}, is beyond fp16 and was cut to {np.finfo(np.float16).max}")
    return converted
