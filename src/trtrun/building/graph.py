"""Changes to an ONNX graph before TensorRT parses it, each one reported: outputs, dimensions, folding, precision."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..errors import BuildError, MissingPackageError, OnnxError
from ..tensor_spec import Shape, shape_text
from . import precision, rewrites
from .onnx_file import add_external_data, model_name, read_model
from .options import BuildOptions, closest

if TYPE_CHECKING:
    from ..flavor import Capabilities

# Of what ``prepare`` makes of the same model and options: one more with each change, so that no cache serves the old.
# A test holds it to the sources of this module, precision.py and rewrites.py.
REVISION = 8

_PROTOBUF_LIMIT = 2**31 - 1  # bytes of one ONNX message
# Names that exporters give to a dimension they know nothing of. The builder would tie all of one name together.
_NAMELESS = ("?", "None", "unk", "unknown", "dynamic", "-1")


def prepare(
    model: str | os.PathLike[str] | bytes, options: BuildOptions, capabilities: Capabilities | None = None
) -> tuple[bytes | None, list[str]]:
    """The model as bytes with the changes that ``options`` ask for, and one line for each; None where nothing changed.

    Its external data stays beside the file where only dimensions were given other sizes or names, and is inside where
    more was changed.

    Values of inner graphs are given names of their own first, which nobody sees outside. Dimensions without a real name
    are given one each in any case, and what TensorRT computes wrongly is written another way, last, whatever made it.
    With the ``capabilities`` of a flavour, what it is known to compute wrongly or to die of all the same is refused.

    Raises:
        BuildError: options that exclude each other, an output that does not exist, a graph that cannot be changed as
            asked, or an operator that this flavour cannot be given.
        OnnxError: the model with its external data is larger than one ONNX message can be.
        MissingPackageError: the package that makes a change is not installed.
    """
    options.check()
    name = model_name(model)
    proto = read_model(model)
    rewrites.separate_values(proto.graph)
    changes = declare(proto, options.input_shapes, name) + _untie(proto)
    # TensorRT-RTX computes fp32 products with TF32 operands whatever it is told, where the GPU has TF32
    is_rtx = capabilities is not None and capabilities.name == "tensorrt_rtx"
    in_parts = is_rtx and not options.tf32 and options.targets != ("sm_75",)
    asked = options.outputs or options.simplify or options.fp16 or options.bf16 or in_parts
    if not (asked or rewrites.needed(proto)):
        if capabilities is not None:
            rewrites.refuse(proto, name, capabilities)
        return (proto.SerializeToString() if changes else None), changes
    add_external_data(proto, model)
    written: set[str] = set()
    if options.outputs or options.simplify:  # which infer shapes, and would infer wrong ones of some pools
        pools, written = rewrites.rewrite_pools(proto)
        changes += pools
    if options.outputs:
        proto = choose_outputs(proto, options.outputs, name, changes)
    if options.simplify:
        proto = _simplify(proto, name, changes)
    if options.fp16 or options.bf16:
        proto = precision.to_half(proto, options, name, changes)
    if in_parts:
        proto = precision.without_tf32(proto, name, changes)
    changes += rewrites.rewrite(proto, written)
    if capabilities is not None:
        rewrites.refuse(proto, name, capabilities)
    if proto.ByteSize() > _PROTOBUF_LIMIT:
        what = (
            "with tf32, without outputs, simplify, fp16 and bf16"
            if asked
            else f"after this change: {'; '.join(changes)}"
        )
        raise OnnxError(
            f"{name} holds {proto.ByteSize():,} bytes with its external data, more than one ONNX message can, so "
            f"trtrun cannot change it before it is built. Change it with the exporter, and build it {what}."
        )
    data: bytes = proto.SerializeToString()
    return data, changes


def packages(options: BuildOptions) -> tuple[str, ...]:
    """The packages that ``prepare`` leaves changes to, whose versions decide what comes out."""
    half = ("onnxconverter-common",) if options.fp16 or options.bf16 else ()
    return (*(("onnxslim",) if options.simplify else ()), *half)


def declare(proto: Any, shapes: Mapping[str, Shape], name: str) -> list[str]:
    """Give inputs other shapes than the file does, before the parser bakes those into what it makes of Flatten.

    Returns what was changed. Raises BuildError for inputs that there are not.
    """
    changes = []
    inputs = {value.name: value for value in rewrites.graph_inputs(proto.graph)}
    for input_name, shape in shapes.items():
        if input_name not in inputs:
            raise BuildError(f"{name} has no input {input_name!r}; it has {list(inputs)}.")
        dims = inputs[input_name].type.tensor_type.shape.dim
        old = "×".join(dim.dim_param or str(dim.dim_value) for dim in dims) or "no shape"
        del dims[:]
        for axis, size in enumerate(shape):  # names of their own: equal ones would tie dimensions together
            dims.add(**({"dim_param": f"{input_name}_{axis}"} if size < 0 else {"dim_value": size}))
        changes.append(f"input {input_name} is declared {shape_text(shape)}, not {old}")
    if shapes:  # the sizes that were declared for the old ones no longer hold; types do
        rewrites.forget_shapes(proto.graph, ranks=True)
    return changes


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


def choose_outputs(proto: Any, outputs: tuple[str, ...], name: str, changes: list[str]) -> Any:
    """The model with these tensors as its outputs, and only what is needed for them. Raises BuildError."""
    from onnx import helper

    graph = proto.graph
    makers = {output: node for node in graph.node for output in node.output if output}
    unknown = [output for output in outputs if output not in makers]
    if unknown:
        raise BuildError(f"{name} computes no {unknown}, so it cannot be an output; {closest(unknown, makers)}.")
    values = rewrites.Values(proto)
    missing = [output for output in outputs if not values.type(output)]
    if missing:
        raise BuildError(f"the type of {missing} in {name} cannot be inferred, so it cannot be an output.")
    needed: set[str] = set()
    todo = [*outputs]
    while todo:
        value = todo.pop()
        if value and value not in needed:  # what is left out has no name
            needed.add(value)
            todo += rewrites.read_by(makers[value]) if value in makers else ()
    before = len(graph.node)
    for held, kept in (
        (graph.node, [node for node in graph.node if needed & {*node.output}]),
        (graph.input, [value for value in graph.input if value.name in needed]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.value_info, [value for value in graph.value_info if value.name in needed]),
    ):
        if len(kept) < len(held):
            del held[:]
            held.extend(kept)
    declared = {value.name: value for value in (*graph.value_info, *graph.output) if value.type.tensor_type.elem_type}
    # a shape need not be declared: what runs the graph infers it
    chosen = [declared.get(x) or helper.make_tensor_value_info(x, values.type(x), None) for x in outputs]
    del graph.output[:]
    graph.output.extend(chosen)
    changes.append(f"outputs {', '.join(outputs)}: {len(graph.node)} of {before} nodes are needed for them")
    return proto


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
