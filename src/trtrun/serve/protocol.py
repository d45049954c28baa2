"""The Open Inference Protocol's tensors, as JSON and as binary data behind it, to NumPy and back.

Source: the "Predict Protocol - Version 2" of KServe, and Triton's binary tensor data extension, which every client of
Triton uses: the body is a JSON header, whose length stands in ``Inference-Header-Content-Length``, with the tensors'
bytes behind it in the order in which the header names them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from ..errors import DtypeError, InputError, InputNameError, ShapeError
from . import json_text

Array = np.ndarray[Any, np.dtype[Any]]

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"{kind}{bits}": np.dtype(f"{kind.lower()}{bits}") for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_RANK = 16


@dataclass(frozen=True)
class Region:
    """Where in a registered shared memory region a tensor lies."""

    name: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class RequestedOutput:
    """An output that the client wants, and how."""

    name: str
    binary: bool
    region: Region | None = None


@dataclass(frozen=True)
class InferRequest:
    """An inference request.

    Attributes:
        inputs: arrays by name; on the GPU where CUDA shared memory holds them, yet to be read where system shared
            memory does.
        outputs: those that the client wants, in its order; None for all.
        binary: give outputs that are not named as binary data.
        priority: as Triton has it: 1 is served first, 2 after it, and so on; 0, unless given, is last.
        timeout: seconds in which the request must be begun; None for no limit.
    """

    inputs: Mapping[str, Any]
    outputs: tuple[RequestedOutput, ...] | None = None
    id: str = ""
    binary: bool = False
    priority: int = 0
    timeout: float | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for output in self.outputs or ():
            if output.name in seen:  # a small request would have an answer of any size
                raise InputNameError(f"output {output.name!r:.100} is named twice.")
            seen.add(output.name)


class RegionBytes(Protocol):
    """Bytes of a shared memory region, on the host or on a GPU."""

    @property
    def nbytes(self) -> int: ...

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
        """All of it as an array on the GPU, or as a tensor that is read from the host's memory later."""

    def write(self, array: Any) -> None:
        """Copy an array of the GPU's or NumPy's to its beginning."""


def unserved(what: str) -> str:
    """That there is no such path or method, and why where it is one of Triton's."""
    reason = ""
    if re.search(r"/(trace/setting|v2/logging|TraceSetting|LogSettings)$", what):
        reason = ": of Triton's interface, trace and log settings are left out"
    return f"{what} is not served{reason}"


# Gives the bytes of a shared memory region, to read and to write.
Memory = Callable[[Region], RegionBytes]


def no_memory(region: Region) -> RegionBytes:
    raise InputError(f"there is no shared memory region {region.name!r}: register it first.")


def datatype(dtype: np.dtype[Any]) -> str:
    """The protocol's name of a dtype. Raises DtypeError for those that it has no name for."""
    name = _NAMES.get(dtype)
    if name is None:
        raise DtypeError(f"the protocol has no datatype for {dtype.name}; it has {', '.join(_DTYPES)}.")
    return name


def dtype_of(name: Any) -> np.dtype[Any]:
    """The dtype of one of the protocol's names. Raises DtypeError for others, BYTES among them."""
    dtype = _DTYPES.get(name) if isinstance(name, str) else None
    if dtype is None:
        why = ": no engine takes strings" if name == "BYTES" else ""
        raise DtypeError(f"datatype {name!r} cannot be served{why}; it must be one of {', '.join(_DTYPES)}.")
    return dtype


def parse(body: bytes | memoryview, header_length: int | None = None, memory: Memory = no_memory) -> InferRequest:
    """An inference request from an HTTP body. Arrays are views of the body where it holds them as binary data.

    Args:
        header_length: the length of the JSON part; None when all of the body is JSON.
        memory: gives the bytes of registered shared memory regions.

    Raises InputError, and its kinds, for whatever does not follow the protocol.
    """
    view = memoryview(body)
    length = len(view) if header_length is None else header_length
    if not 0 <= length <= len(view):
        raise InputError(f"Inference-Header-Content-Length is {length}, and the body has {len(view)} bytes.")
    try:
        header = json_text.loads(view[:length])
    except (ValueError, RecursionError) as error:
        raise InputError(f"the request is not JSON: {error}") from error
    header = _mapping(header, "the request")
    parameters = _mapping(header.get("parameters", {}), "parameters")
    binary = view[length:]
    inputs: dict[str, Any] = {}
    for entry in _list(header.get("inputs"), "inputs"):
        tensor = _mapping(entry, "an input")
        name = _name(tensor, "input")
        if name in inputs:
            raise InputNameError(f"input {name!r} is given twice.")
        inputs[name], used = _read(name, tensor, binary, memory)
        binary = binary[used:]
    if len(binary):
        raise InputError(f"{len(binary)} bytes follow the inputs that the request names.")
    outputs = None
    all_binary = _flag(parameters, "binary_data_output", "parameters")
    if header.get("outputs"):
        outputs = tuple(_requested(_mapping(o, "an output"), all_binary) for o in _list(header["outputs"], "outputs"))
    timeout = integer(parameters.get("timeout", 0), "timeout")
    identity = header.get("id", "")
    if not isinstance(identity, str):
        raise InputError(f"id must be text, got {identity!r}.")
    return InferRequest(
        inputs,
        outputs,
        identity,
        all_binary,
        integer(parameters.get("priority", 0), "priority"),
        timeout / 1e6 if timeout else None,  # microseconds, as Triton has it
        parameters,
    )


def render(
    model: str, version: str, request: InferRequest, results: Mapping[str, Any], memory: Memory = no_memory
) -> tuple[list[bytes | memoryview], int | None]:
    """The response's pieces, and the length of its JSON part where binary data follows it.

    Raises InputNameError for an output that does not exist, and what writing to shared memory raises.
    """
    tensors: list[bytes] = []
    pieces: list[bytes | memoryview] = []
    for output, array in wanted(request, results):
        tensor: dict[str, Any] = {
            "name": output.name,
            "datatype": datatype(array.dtype),
            "shape": list(array.shape),
        }
        if output.region is not None:
            write(array, output.region, memory)
            tensor["parameters"] = region_parameters(output.region, array.nbytes)
        elif output.binary:
            tensor["parameters"] = {"binary_data_size": array.nbytes}
            pieces.append(bytes_of(array))
        text = json.dumps(tensor).encode()
        if output.region is None and not output.binary:
            text = b'%b, "data": %b}' % (text[:-1], _to_json(on_host(array)))
        tensors.append(text)
    about = {"model_name": model, "model_version": version, **({"id": request.id} if request.id else {})}
    header = b'%b, "outputs": [%b]}' % (json.dumps(about).encode()[:-1], b", ".join(tensors))
    return [header, *pieces], len(header) if pieces else None


def wanted(request: InferRequest, results: Mapping[str, Any]) -> Iterator[tuple[RequestedOutput, Any]]:
    """The outputs that a request names, or all, with their arrays. InputNameError for others."""
    for output in request.outputs or tuple(RequestedOutput(name, request.binary) for name in results):
        if output.name not in results:
            raise InputNameError(f"there is no output {output.name!r}; the model gives {list(results)}.")
        yield output, results[output.name]


def on_host(array: Any) -> Array:
    """An output as a NumPy array, wherever it is."""
    host: Array = array if isinstance(array, np.ndarray) else array.numpy()
    return host


def bytes_of(array: Any) -> memoryview:
    """The bytes of an output in row-major order."""
    array = on_host(array)
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def from_bytes(name: str, data: bytes | memoryview | RegionBytes, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Any:
    """A read-only array over these bytes. Raises ShapeError where they are not as many as the shape needs."""
    needed, given = dtype.itemsize * math.prod(shape), len(data) if isinstance(data, bytes) else data.nbytes
    if given != needed:
        raise ShapeError(f"input {name!r} of shape {list(shape)} needs {needed} bytes, got {given}.")
    if not isinstance(data, (bytes, memoryview)):
        return data.array(dtype, shape)
    if dtype == np.bool_ and needed and np.frombuffer(data, np.uint8).max() > 1:
        raise DtypeError(f"input {name!r} is BOOL and holds bytes other than 0 and 1.")
    array: Array = np.frombuffer(data, dtype).reshape(shape)
    return array


def write(array: Any, region: Region, memory: Memory) -> None:
    """Put an output into shared memory. Raises ShapeError where it does not fit."""
    if array.nbytes > region.nbytes:
        raise ShapeError(
            f"an output has {array.nbytes} bytes, and {region.nbytes} are set aside for it in {region.name!r}."
        )
    memory(region).write(array)


def region_parameters(region: Region, nbytes: int) -> dict[str, Any]:
    parameters = {"shared_memory_region": region.name, "shared_memory_byte_size": nbytes}
    return {**parameters, "shared_memory_offset": region.offset} if region.offset else parameters


def region_of(parameters: Mapping[str, Any]) -> Region | None:
    """The shared memory region that a tensor's parameters name, if any."""
    name = parameters.get("shared_memory_region")
    if name is None:
        return None
    if not isinstance(name, str):
        raise InputError(f"shared_memory_region must be text, got {name!r}.")
    offset = integer(parameters.get("shared_memory_offset", 0), "shared_memory_offset")
    return Region(name, offset, integer(parameters.get("shared_memory_byte_size"), "shared_memory_byte_size"))


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """A tensor's shape. Raises ShapeError for anything but a list of sizes."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > _MAX_RANK:
        raise ShapeError(f"input {name!r}: its shape must be a list of at most {_MAX_RANK} sizes, got {value!r:.100}.")
    for size in value:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 2**31:
            raise ShapeError(f"input {name!r}: {size!r:.50} is no size of a dimension.")
    if math.prod(value) >= 2**40:
        raise ShapeError(f"input {name!r}: no request holds a tensor of shape {list(value)}.")
    return tuple(value)


def _read(name: str, tensor: Mapping[str, Any], binary: memoryview, memory: Memory) -> tuple[Any, int]:
    """An input, and how much of the binary data it took."""
    dtype, shape = dtype_of(tensor.get("datatype")), shape_of(name, tensor.get("shape"))
    parameters = _mapping(tensor.get("parameters", {}), "parameters")
    region = region_of(parameters)
    if region is not None:
        return from_bytes(name, memory(region), dtype, shape), 0
    if "binary_data_size" in parameters:
        size = integer(parameters["binary_data_size"], "binary_data_size")
        if size > len(binary):
            raise InputError(f"input {name!r} has {size} bytes of binary data, and {len(binary)} are left.")
        return from_bytes(name, binary[:size], dtype, shape), size
    if "data" not in tensor:
        raise InputError(f"input {name!r} has neither data nor binary_data_size nor shared memory.")
    return _from_json(name, tensor["data"], dtype, shape), 0


def _from_json(name: str, data: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    def convert(piece: Any) -> Array:
        given = np.asarray(piece)
        if given.size and given.dtype.kind not in "biuf":
            raise ValueError(f"its data is not all numbers: {piece!s:.60}")
        with np.errstate(all="ignore"):
            array = given.astype(dtype)
        if dtype.kind not in "fV" and not np.array_equal(array, given):
            raise DtypeError(f"input {name!r} holds numbers that {datatype(dtype)} does not.")
        return array

    try:
        array = json_text.to_array(data, convert)
    except DtypeError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DtypeError(f"input {name!r} cannot be read as {datatype(dtype)}: {error}") from error
    if array.size != math.prod(shape):
        raise ShapeError(f"input {name!r} of shape {list(shape)} needs {math.prod(shape)} numbers, got {array.size}.")
    return array.reshape(shape)


def _to_json(array: Array) -> bytes:
    if array.dtype.kind == "V":  # ml_dtypes
        array = array.astype(np.float32)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InputError("an output holds NaN or infinities, which JSON cannot say. Ask for it as binary data.")
    return json_text.numbers(array.reshape(-1))


def _requested(output: Mapping[str, Any], all_binary: bool) -> RequestedOutput:
    name, parameters = _name(output, "output"), _mapping(output.get("parameters", {}), "parameters")
    binary = _flag(parameters, "binary_data", f"output {name!r}") if "binary_data" in parameters else all_binary
    return requested(name, parameters, binary)


def requested(name: str, parameters: Mapping[str, Any], binary: bool) -> RequestedOutput:
    """An output that a request names, with its parameters. Raises InputError for what is not served."""
    if integer(parameters.get("classification", 0), "classification"):
        raise InputError(f"output {name!r}: the classification extension is not served; take the top values yourself.")
    return RequestedOutput(name, binary, region_of(parameters))


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{what} must be a JSON object, got {value!r:.60}.")
    return value


def _list(value: Any, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{what} must be a JSON array, got {value!r:.60}.")
    return value


def _name(tensor: Mapping[str, Any], what: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise InputNameError(f"an {what} has no name.")
    return name


def integer(value: Any, what: str) -> int:
    """A parameter that is a count. Raises InputError for anything else."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise InputError(f"{what} must be an integer that is not negative, got {value!r:.50}.")
    return value


def _flag(parameters: Mapping[str, Any], key: str, what: str) -> bool:
    value = parameters.get(key, False)
    if not isinstance(value, bool):
        raise InputError(f"{what}: {key} must be true or false, got {value!r:.50}.")
    return value
