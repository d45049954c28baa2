"""What cuDNN's kernels read and write, as TensorRT-RTX notes it beside their code in its runtime cache.

For each kernel that was compiled the cache holds cuDNN's own JSON: the tensors of the operation, the parameters of the
launch, and which of them point to which tensor. TensorRT launches it with these very parameters but for the addresses:
so it was with all 262 launches of nine networks (TensorRT-RTX 1.6.1), whether the kernels had just been compiled or
were loaded. So a launch whose name and other parameters are equal to these, byte by byte, works on tensors of these
sizes. (One parameter holds bytes that nobody initialized; they are the same in both, and tell launches apart that are
otherwise equal.) NVIDIA documents none of this: what is not found, or looks otherwise, is not known. Nor is the size of
a workspace, which 8 of the 262 have, and of whatever several kernels share, nor anything of kernels for dynamic shapes.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_BEGINS = re.compile(r'\{"cudnnVersion":')
_ITEM = {
    "FLOAT": 4, "HALF": 2, "BFLOAT16": 2, "FP8_E4M3": 1, "FP8_E5M2": 1, "INT8": 1, "UINT8": 1, "INT32": 4, "INT64": 8,
    "DOUBLE": 8, "BOOLEAN": 1,
}  # fmt: skip


class _Launch(NamedTuple):
    """Of each parameter the bytes of what it points to, None where they are not known, or 0, and its value then."""

    sizes: tuple[int | None, ...]
    offsets: tuple[int, ...]
    values: bytes

    def is_of(self, parameters: Sequence[bytes]) -> bool:
        return len(parameters) == len(self.sizes) and all(
            size != 0 or value == self.values[offset : offset + len(value)]
            for size, offset, value in zip(self.sizes, self.offsets, parameters, strict=True)
        )


class CudnnKernels:
    """The kernels in a serialized runtime cache.

    Attributes:
        of_any_shape: names of those that are compiled once for all shapes; what each launch works on is not told.
    """

    def __init__(self, body: bytes) -> None:
        self._launches: dict[bytes, list[_Launch]] = {}
        self.of_any_shape: set[bytes] = set()
        text, decode = body.decode("latin-1"), json.JSONDecoder().raw_decode
        for begin in _BEGINS.finditer(text):
            try:
                found, _ = decode(text, begin.start())
                for kept in found.get("kernel_cache") or ():
                    self.of_any_shape.update(kernel["kernelName"].encode() for kernel in kept["value"])
                kernels = found["engine"]["payload"]["kernels"]
                sizes = {tensor["name"]: _nbytes(tensor) for tensor in found["operationGraph"]["tensors"]}
                for kernel in kernels:
                    launch = _launch(kernel["kernelParams"], sizes if len(kernels) == 1 else {})  # several share memory
                    self._launches.setdefault(kernel["kernelName"].encode(), []).append(launch)
            except Exception:  # whatever is odd there is not known; a request must not fail of it
                continue

    def sizes(self, name: bytes, parameters: Sequence[bytes]) -> tuple[int | None, ...] | None:
        """Of each parameter of a launch: the bytes from the address in it on that may be read or written, None where
        they are not known, 0 where it holds no address. None where there is no such launch."""
        fitting = [launch.sizes for launch in self._launches.get(name, ()) if launch.is_of(parameters)]
        return tuple(map(_largest, zip(*fitting, strict=True))) if fitting else None


def _largest(sizes: Sequence[int | None]) -> int | None:
    known = [size for size in sizes if size is not None]
    return max(known) if len(known) == len(sizes) else None


def _nbytes(tensor: Mapping[str, Any]) -> int | None:
    item = _ITEM.get(tensor["dataType"].removeprefix("CUDNN_DATA_"))
    if item is None or tensor["vectCount"] != 1 or tensor["isByValue"] or min(tensor["dim"] + tensor["stride"]) < 1:
        return None
    return item * (1 + sum((int(dim) - 1) * int(at) for dim, at in zip(tensor["dim"], tensor["stride"], strict=True)))


def _launch(parameters: Mapping[str, Any], sizes: Mapping[str, int | None]) -> _Launch:
    """Raises an exception for parameters whose values are not there."""
    nbytes: list[int | None] = []
    for parameter in parameters["offsets"]:
        is_tensor = parameter.get("update_as") in ("pointer", "tma_desc")
        if "uid" in parameter or "update_as" in parameter:  # the workspace has a uid that is no tensor's
            nbytes.append(sizes.get(str(parameter.get("uid"))) if is_tensor else None)
        else:
            nbytes.append(0)
    values = base64.b64decode(parameters["rawData"], validate=True)
    offsets = tuple(parameter["value"] for parameter in parameters["offsets"])
    if not all(type(offset) is int and 0 <= offset <= len(values) for offset in offsets):
        raise ValueError(f"{offsets} are no offsets")
    return _Launch(tuple(nbytes), offsets, values)
