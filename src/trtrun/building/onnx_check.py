"""What TensorRT's parser does not check of an ONNX file, checked before it sees the file.

Each check stands for something that the parser of TensorRT-RTX 1.6.1 was seen to crash on (nodes without outputs,
functions that call themselves, negative offsets of external data) or to build an engine from without a word (inputs,
attributes or dimensions that make no sense, external data that ends too early, a domain it does not look at). Whatever
else is wrong with a model the parser says itself, and says better. ``onnx.checker`` is not used: it refuses the
operators that plugins implement.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ..errors import OnnxError
from .onnx_file import model_name, read_model

_STANDARD = ("", "ai.onnx")
_READ_BY_NAME = ("com.microsoft", "trt")  # domains whose operators TensorRT or its plugins implement on purpose


def check_model(model: str | os.PathLike[str] | bytes) -> list[Path]:
    """Check a model that is to be parsed; returns the files of its external data.

    Raises:
        ModelFileError: the file cannot be read. OnnxError: says what is wrong with the model, and where.
        MissingPackageError: onnx is not installed.
    """
    proto = read_model(model)
    folder = Path() if isinstance(model, bytes) else Path(model).parent
    try:
        return _check(proto, folder)
    except _Malformed as error:
        raise OnnxError(f"{model_name(model)} is malformed: {error}. Export it again.") from error


class _Malformed(Exception):
    """What is wrong, without the model's name."""


def _check(proto: Any, folder: Path) -> list[Path]:
    graph = proto.graph
    if not graph.output:
        raise _Malformed("it is not a usable ONNX model, since no graph with outputs is in it")
    if not proto.opset_import:
        raise _Malformed("it does not say which operator set it uses; the file may be cut off")
    for function in proto.functions:
        _check_text(function.name, function.domain, *function.input, *function.output)
    _check_functions(proto.functions)
    for title, values in (("input", graph.input), ("output", graph.output)):
        seen: set[str] = set()
        for value in values:
            if value.name in seen:
                raise _Malformed(f"two {title}s of the graph are named {value.name!r}")
            seen.add(value.name)
            _check_text(value.name)
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_value < -1:  # some exporters write -1 where a dimension is dynamic
                    raise _Malformed(f"{title} {value.name!r} has the dimension {dim.dim_value}")
    opset = next((entry.version for entry in proto.opset_import if entry.domain in _STANDARD), 1)
    local = {(function.domain, function.name) for function in proto.functions}
    files = dict.fromkeys(_check_tensors(graph.initializer, folder))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for body in (graph, *proto.functions):
        for node in _nodes(body):
            _check_node(node, opset, local, shapes)
            for attribute in node.attribute:
                tensors = [*attribute.tensors, *attribute.g.initializer]
                tensors += [tensor for inner in attribute.graphs for tensor in inner.initializer]
                if attribute.HasField("t"):
                    tensors.append(attribute.t)
                files |= dict.fromkeys(_check_tensors(tensors, folder))
    return sorted(files)


def _nodes(body: Any) -> Iterator[Any]:
    """The nodes of a graph or function and of the graphs inside them; protobuf has bounded the depth."""
    for node in body.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _check_text(*texts: str | bytes) -> None:
    """Names are UTF-8: TensorRT's messages cannot be read when they hold others."""
    for text in texts:
        if isinstance(text, bytes):  # which protobuf gives where it cannot decode
            raise _Malformed(f"the name {text!r} is not UTF-8")


def _check_functions(functions: Any) -> None:
    """No function may call itself, also not through others: the parser would expand it for ever."""
    calls = {(f.domain, f.name): {(node.domain, node.op_type) for node in _nodes(f)} for f in functions}
    # What is left when the functions that call none of the rest are taken away, again and again, calls itself.
    left = set(calls)
    while leaves := {function for function in left if not calls[function] & left}:
        left -= leaves
    if left:
        raise _Malformed(f"the functions {sorted(name for _, name in left)} call themselves")


def _check_node(node: Any, opset: int, local: set[tuple[str, str]], shapes: dict[str, tuple[int, ...]]) -> None:
    import onnx

    names = (attribute.name for attribute in node.attribute)
    _check_text(node.name, node.op_type, node.domain, *node.input, *node.output, *names)
    where = f"node {node.name!r} ({node.op_type[:80]})"
    if not node.output:
        raise _Malformed(f"{where} has no outputs")
    if (node.domain, node.op_type) in local:
        return
    if node.domain not in _STANDARD:
        if onnx.defs.has(node.op_type) and not node.domain.lower().startswith(_READ_BY_NAME):
            raise _Malformed(
                f"{where} is of the domain {node.domain!r}, and TensorRT would take it for ONNX's own operator of "
                "that name"
            )
        return
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
    except Exception:  # a plugin's operator, or one that is gone: the parser knows
        return
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise _Malformed(
            f"{where} has {len(node.input)} inputs, where {schema.min_input} to {schema.max_input} are expected"
        )
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        if known is not None and not attribute.ref_attr_name and attribute.type != int(known.type.value):
            kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
            raise _Malformed(f"attribute {attribute.name!r} of {where} is {kind}, where {known.type.name} is expected")
    _check_window(node, where, shapes)


def _check_window(node: Any, where: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """The window of a convolution or pooling: every attribute speaks of the same number of spatial dimensions."""
    if not node.op_type.startswith(("Conv", "MaxPool", "AveragePool", "LpPool")):
        return
    counts: dict[str, float] = {
        a.name: len(a.ints) for a in node.attribute if a.name in ("kernel_shape", "strides", "dilations")
    }
    for attribute in node.attribute:
        if attribute.name == "pads" and attribute.ints:  # a pad at the beginning and one at the end
            counts["half of pads"] = len(attribute.ints) / 2
    if "Conv" in node.op_type and len(node.input) > 1 and node.input[1] in shapes:
        counts["the weight's spatial rank"] = len(shapes[node.input[1]]) - 2
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count:g}" for name, count in counts.items())
        raise _Malformed(f"{where} does not say how many dimensions its window has: {said}")


def _check_tensors(tensors: Iterable[Any], folder: Path) -> Iterator[Path]:
    """The files of tensors that are kept outside, each of which must hold what is looked for in it."""
    import onnx

    for tensor in tensors:
        _check_text(tensor.name, *(text for entry in tensor.external_data for text in (entry.key, entry.value)))
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        where = f"the external data of tensor {tensor.name!r}"
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        parts = (*PurePosixPath(location).parts, *PureWindowsPath(location).parts)
        if not location or ".." in parts or PurePosixPath(location).is_absolute() or PureWindowsPath(location).drive:
            raise _Malformed(f"{where} is at {location!r}, which is not a path inside the model's folder")
        path = folder / location
        try:
            if not path.is_file():
                raise _Malformed(f"{where} is missing: {os.fspath(path)!r} is not a file")
            there = path.stat().st_size
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise _Malformed(f"{where} cannot be read: {error}") from error
        needed = _bytes_of(tensor, where)
        try:
            offset = int(entries.get("offset", 0))
            length = int(entries["length"]) if "length" in entries else needed or 0
        except ValueError as error:
            raise _Malformed(f"the offset or length of {where} is not a number") from error
        if offset < 0 or length < 0 or (needed is not None and length < needed) or offset + length > there:
            raise _Malformed(
                f"{where} should be {needed if needed is not None else length:,} bytes, and the file "
                f"{os.fspath(path)!r} of {there:,} bytes is said to have {length:,} at {offset:,}"
            )
        yield path


def _bytes_of(tensor: Any, where: str) -> int | None:
    """Bytes that a tensor's elements take; None for a type whose size is unknown."""
    import onnx

    elements = 1
    for size in tensor.dims:
        if size < 0:
            raise _Malformed(f"{where} has the dimension {size}")
        elements *= size
    kind = onnx.TensorProto.DataType
    if tensor.data_type not in kind.values() or tensor.data_type in (kind.UNDEFINED, kind.STRING):
        return None
    title = kind.Name(tensor.data_type)
    if title.endswith("INT4") or title.startswith("FLOAT4"):
        return (elements + 1) // 2
    if title.endswith("INT2"):
        return (elements + 3) // 4
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
