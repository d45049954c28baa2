"""Who made this plan: flavour, version and the exporter's metadata, read from the bytes alone.

No GPU and no TensorRT is needed. The layout is not documented by NVIDIA; it was read off plans that the builders
themselves wrote: bytes 0-3 are a tag (``ftrt`` for TensorRT, which its lean and dispatch runtimes also load;
``vtrt`` for TensorRT-RTX), and when the second 32-bit word is 0, bytes 24-27 hold major, minor, patch and build.
TensorRT-RTX also writes the plan's whole size into bytes 16-23, so a truncated plan is noticed here, and into bytes
32-39 a bit for each compute capability that it was built for.
Ultralytics puts a little-endian 4-byte length and that many bytes of JSON in front of the plan.
"""

from __future__ import annotations

import ast
import json
import mmap
import os
import shlex
import struct
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import ModelFileError, PlanError

Family = Literal["tensorrt", "tensorrt_rtx"]

HEADER_SIZE = 32  # bytes of the plan itself that identification needs, and
_HEAD = 40  # that it reads where they are there
_TAGS: dict[bytes, Family] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # what the lowest bits mean; those above are not known
_METADATA_LIMIT = 16 << 20  # a length beyond this is not metadata but some other file's first bytes
# What Ultralytics writes into ONNX files as Python literals, because their metadata is text alone.
_LITERALS = ("args", "batch", "channels", "end2end", "imgsz", "kpt_names", "kpt_shape", "names", "preprocess", "stride")


@dataclass(frozen=True)
class PlanInfo:
    """What a plan's own bytes say.

    Attributes:
        family: ``"tensorrt"`` (loaded by tensorrt, tensorrt_lean or tensorrt_dispatch) or ``"tensorrt_rtx"``.
        version: major, minor, patch, build of the TensorRT that built it; None where the layout does not say.
        size: bytes of the plan, without metadata in front.
        offset: where in the file the plan starts.
        metadata: the exporter's JSON in front of the plan (names, task, imgsz, stride, batch); empty without.
        compute_capabilities: what a plan of TensorRT-RTX was built for, ``"other"`` for one that trtrun cannot name
            (a plan for all has it, and runs on 9.0 too); empty where the layout does not say.
    """

    family: Family
    version: tuple[int, int, int, int] | None
    size: int
    offset: int = 0
    metadata: dict[str, Any] = field(default_factory=dict)
    compute_capabilities: tuple[str, ...] = ()

    @property
    def version_text(self) -> str:
        return ".".join(map(str, self.version)) if self.version else "unknown"

    def __str__(self) -> str:
        name = "TensorRT-RTX" if self.family == "tensorrt_rtx" else "TensorRT"
        return f"{name} {self.version_text} plan, {self.size:,} bytes"


def read_model_file(path: str | os.PathLike[str]) -> bytes:
    """The whole file, or ModelFileError with the reason."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise model_file_error(path, error) from error


class ModelFile:
    """An open model file whose slices are read when they are taken: host memory never holds the whole.

    It is read and not mapped: the pages of a mapped file count as the process's while they are mapped, and a file that
    is cut short in place takes the process with it. Closed when the last reference to it goes.

    Raises:
        ModelFileError: with the reason; also a slice that cannot be read any more.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.name = os.fspath(path)
        try:
            self._file = open(path, "rb", buffering=0)  # noqa: SIM115  # outlives this function
        except OSError as error:
            raise model_file_error(path, error) from error
        weakref.finalize(self, self._file.close)
        self._size = os.fstat(self.fileno()).st_size

    def fileno(self) -> int:
        return self._file.fileno()

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        return self._read(start, stop)

    def _read(self, start: int, stop: int) -> bytes:
        """The bytes of the file from ``start`` up to ``stop``."""
        read: list[bytes] = []
        while start < stop:
            try:
                read.append(os.pread(self.fileno(), stop - start, start))
            except OSError as error:
                raise model_file_error(self.name, error) from error
            if not read[-1]:
                raise ModelFileError(
                    f"{self.name!r} was cut short while it was read: it had {self._size:,} bytes, and ends after "
                    f"{start:,} now. Replace a model file by renaming a whole one to its name; then load it again."
                )
            start += len(read[-1])
        return b"".join(read)

    def mapped(self) -> memoryview:
        """All of it as one buffer. Whoever cuts the file short while it is in use takes the process with it."""
        return memoryview(mmap.mmap(self.fileno(), 0, access=mmap.ACCESS_READ))


ModelData = bytes | memoryview | ModelFile
PIECE = 4 << 20  # bytes that are read at once


def pieces(data: ModelData, start: int = 0) -> Iterator[bytes | memoryview]:
    """What stands from ``start`` on, a piece after the other."""
    return (data[at : at + PIECE] for at in range(start, len(data), PIECE))


def model_file_error(path: str | os.PathLike[str], error: OSError) -> ModelFileError:
    reason = {
        FileNotFoundError: "it does not exist",
        IsADirectoryError: "it is a directory",
        PermissionError: "permission was denied",
    }.get(type(error), str(error))
    return ModelFileError(
        f"cannot read {os.fspath(path)!r}: {reason}. Relative paths start at the working directory, {os.getcwd()!r}."
    )


def is_plan(head: bytes) -> bool:
    """True when these first bytes begin a plan, with or without exporter metadata in front."""
    if head[:4] in _TAGS:
        return True
    length = _metadata_length(head)
    return length is not None and head[4:5] == b"{"


def is_onnx_file(path: str | os.PathLike[str]) -> bool:
    """True for a file named ``.onnx`` that is not a plan by its bytes. Raises ModelFileError."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as error:
        raise model_file_error(path, error) from error
    return not is_plan(head) and os.fspath(path).lower().endswith(".onnx")


def identify_file(path: str | os.PathLike[str]) -> PlanInfo:
    """Identify a plan by reading only its first bytes. Raises ModelFileError and PlanError."""
    return identify(ModelFile(path), source=os.fspath(path))


def identify(data: ModelData, *, source: str = "these bytes") -> PlanInfo:
    """Identify a plan from its bytes, of which only the first are read.

    Raises:
        PlanError: the bytes are no plan, say what they are when that can be known, or end inside the header.
    """
    total = len(data)
    head = bytes(data[: 4 + _HEAD])
    offset, metadata = 0, {}
    if head[:4] not in _TAGS:
        length = _metadata_length(head)
        if length is None or head[4:5] != b"{":
            raise PlanError(f"{source} is not a TensorRT plan: {_guess(head, total, data)}")
        offset = 4 + length
        metadata = _parse_metadata(bytes(data[4:offset]), length, source)
        head = bytes(data[offset : offset + _HEAD])
    if total - offset < HEADER_SIZE or len(head) < HEADER_SIZE:
        raise PlanError(
            f"{source} is truncated: {max(total - offset, 0)} bytes of plan, less than its {HEADER_SIZE}-byte header. "
            "Copy or build it again."
        )
    if head[:4] not in _TAGS:
        raise PlanError(f"{source} has exporter metadata but no TensorRT plan behind it (found {head[:4]!r}).")
    family = _TAGS[head[:4]]
    version: tuple[int, int, int, int] | None = None
    capabilities: tuple[str, ...] = ()
    if head[4:8] == bytes(4):
        version = struct.unpack_from("4B", head, 24)
        (declared,) = struct.unpack_from("<Q", head, 16)
        if family == "tensorrt_rtx" and declared > total - offset:
            raise PlanError(
                f"{source} is truncated: the plan says it has {declared:,} bytes, {total - offset:,} are there. "
                "Copy or build it again."
            )
        if family == "tensorrt_rtx" and len(head) >= _HEAD:
            (bits,) = struct.unpack_from("<Q", head, 32)
            known = [name for bit, name in enumerate(_CAPABILITIES) if bits >> bit & 1]
            capabilities = (*known, "other") if bits >> len(_CAPABILITIES) else tuple(known)
    return PlanInfo(family, version, total - offset, offset, metadata, capabilities)


def header_of(metadata: Mapping[str, Any]) -> bytes:
    """What Ultralytics writes and reads in front of a plan; nothing without metadata. Raises PlanError for too much."""
    if not metadata:
        return b""
    try:
        text = json.dumps(metadata, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise PlanError(f"the metadata for the front of a plan is no JSON: {error}.") from error
    if len(text) > _METADATA_LIMIT:
        raise PlanError(
            f"the metadata for the front of a plan takes {len(text):,} bytes as JSON, and {_METADATA_LIMIT:,} are read "
            "there at most. Leave some of it out, or build without it: header=False (--no-header)."
        )
    return struct.pack("<I", len(text)) + text


def onnx_metadata(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata_props of an ONNX file as the JSON that Ultralytics' exporter puts in front of an engine.

    What is no text, as in metadata that stood in front of an engine, stays as it is.
    """
    return {key: _json_value(value) if key in _LITERALS else value for key, value in properties.items()}


def _json_value(value: Any) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(value), allow_nan=False)) if isinstance(value, str) else value
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def _metadata_length(head: bytes) -> int | None:
    if len(head) < 5:
        return None
    (length,) = struct.unpack_from("<I", head)
    return length if 2 <= length <= _METADATA_LIMIT else None


def _parse_metadata(text: bytes, length: int, source: str) -> dict[str, Any]:
    if len(text) < length:
        raise PlanError(f"{source} is truncated inside its metadata ({len(text)} of {length} bytes). Copy it again.")
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: JSON nested too deep to read
        raise PlanError(f"{source} is not a TensorRT plan: its metadata is not JSON ({error}).") from error
    if not isinstance(metadata, dict):
        raise PlanError(f"{source} is not a TensorRT plan: its metadata is not a JSON object.")
    return metadata


def _guess(head: bytes, total: int, data: ModelData) -> str:
    """Name what people pass by mistake, with what to do about it."""
    if total == 0:
        return "the file is empty."
    if head[:2] == b"PK" and head[30:].startswith(b"manifest.json"):
        return "it is a bundle. Show what is in it: trtrun bundle show."
    if head[:2] == b"PK":
        return "it is a ZIP archive (a torch .pt or .pth?). Export it to ONNX and load that."
    if head[:1] == b"\x08" or b"onnx" in head or b"pytorch" in head:
        if not isinstance(data, ModelFile):
            return "it looks like an ONNX model. Give it to trtrun.build first."
        command = f"trtrun build {shlex.quote(data.name)}"
        if data.name.lower().endswith(".onnx"):
            return f"it is an ONNX model, and an engine is needed here. Build it first: {command}"
        return f"it looks like an ONNX model. Name it *.onnx, or build it first: {command}"
    if head[:7] == b"version":
        return "it is a Git LFS pointer. Run: git lfs pull."
    if head[:3] == b"\xff\xd8\xff" or head[:8] == b"\x89PNG\r\n\x1a\n":
        return "it is a picture. Commands for pictures take it beside a model: trtrun detect PICTURE --model MODEL."
    if head[:1] in b"{[<":
        return "it is text."
    return f"it starts with {head[:4].hex(' ')}, not with the tag 'ftrt' or 'vtrt'."
