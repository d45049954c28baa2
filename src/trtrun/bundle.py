"""Bundles: engines for several GPUs and flavours, what belongs to them, and the ONNX model they came from, in one file.

A bundle is a ZIP archive whose members are stored uncompressed. ``manifest.json`` comes first: metadata (labels,
preprocessing, task), licence, accuracy, and for every other member its size and SHA-256. ``manifest.sig`` is an
Ed25519 signature of the manifest's bytes where the bundle was signed. Every member is checked against the manifest
before anything reads it. The hashes alone find damage; only a signature, checked against a key that came another way,
finds an author who is not the expected one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .building.files import check_target, write_atomic
from .errors import BundleError, MissingPackageError, TrtrunError
from .interface import Interface
from .plan import PIECE, ModelFile, PlanInfo, identify, model_file_error, onnx_metadata, pieces, read_model_file
from .tensor_spec import TensorSpec

FORMAT = "trtrun bundle 1"
_MANIFEST, _SIGNATURE = "manifest.json", "manifest.sig"
_MANIFEST_LIMIT = 16 << 20  # bytes; a larger one is not a manifest
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # in front of a member: signature, bytes of its name and of what follows it
# What zipfile, and who reads a manifest, raise where bytes were changed: other compression methods, passwords, …
_DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Member:
    """A file inside a bundle."""

    file: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineMember(Member):
    """An engine inside a bundle, with what its bytes say and the one GPU it was built for, if it is not portable."""

    family: str
    version: str
    compute_capability: str | None = None  # like "9.0"; None runs wherever its flavour does

    @property
    def plan(self) -> PlanInfo:
        numbers = tuple(map(int, self.version.split("."))) if self.version != "unknown" else None
        return PlanInfo(self.family, numbers, self.bytes)  # type: ignore[arg-type]  # as identify() wrote them


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; its manifest is read, its members are not.

    Attributes:
        path: the file.
        name: the model's name.
        metadata: what tasks and servers need: ``names``, ``task``, ``preprocess``, whatever the author put there.
        licence, source, source_sha256, accuracy: for people; the source is the file that the engines were built from.
        engines: in the order in which the author prefers them.
        onnx: the model to rebuild from; None without.
        interface: the inputs and outputs of that model, which the engines must have too; None without.
        signature: the Ed25519 signature of the manifest; None if the bundle was not signed.
    """

    path: Path
    name: str
    engines: tuple[EngineMember, ...]
    onnx: Member | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    licence: str | None = None
    source: str | None = None
    accuracy: Mapping[str, Any] | None = None
    created: str | None = None
    signature: bytes | None = None
    _manifest: bytes = b""
    source_sha256: str | None = None
    interface: Interface | None = None

    def check_interface(
        self, member: EngineMember, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        """Raise BundleError where an engine with these inputs and outputs cannot be of the ONNX model beside it."""
        if self.interface is not None:
            _refuse(f"{self.path}: {member.file}", "its ONNX model", self.interface.differences(inputs, outputs))

    def open(self, member: Member) -> ModelFile:
        """A member whose every piece is checked when it is read. Raises BundleError when a byte of it has changed."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                info = archive.getinfo(member.file)
        except _DAMAGE as error:
            raise self._unreadable(member, error) from error
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != member.bytes:
            raise BundleError(
                f"{self.path}: {member.file} has {info.file_size:,} bytes, the manifest says {member.bytes:,}. "
                "The bundle is damaged or was changed; get it again."
            )
        return _CheckedMember(self, member, info.header_offset)

    def read(self, member: Member) -> bytes:
        """The bytes of a member, checked. Raises BundleError when one of them has changed."""
        return self.open(member)[:]

    def _unreadable(self, member: Member, error: Exception) -> BundleError:
        return BundleError(f"{self.path}: {member.file} cannot be read ({error}). The bundle is damaged; get it again.")

    def _changed(self, member: Member) -> BundleError:
        return BundleError(
            f"{self.path}: {member.file} is not what the manifest says (SHA-256 differs). The bundle is damaged or "
            "was changed; get it again."
        )

    def check_signature(self, public_key: bytes) -> None:
        """Raise BundleError unless the manifest was signed with the key of this PEM."""
        if self.signature is None:
            raise BundleError(
                f"{self.path} is not signed, and a key to check it with was given. Sign it, or drop the key."
            )
        _, serialization, invalid = _cryptography()
        try:
            serialization.load_pem_public_key(public_key).verify(self.signature, self._manifest)
        except invalid as error:
            raise BundleError(f"{self.path} was signed with another key, or changed since. Do not use it.") from error
        except (ValueError, AttributeError, TypeError) as error:
            raise BundleError(
                f"the key to check {self.path} with is not an Ed25519 public key in PEM: {error}"
            ) from error

    def check(self) -> None:
        """Read and check every member. Raises BundleError."""
        for member in (*self.engines, *([self.onnx] if self.onnx else [])):
            self.open(member)

    def as_json(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self._manifest)
        return {"file": os.fspath(self.path), **manifest, "signed": self.signature is not None}


class _CheckedMember(ModelFile):
    """A member of a bundle, none of whose bytes gets out unchecked, and of which memory never holds the whole.

    Its SHA-256 is checked at once, while the hash of each piece is noted; a piece that is read later is hashed again.
    So a file that changes after it was checked is noticed too.
    """

    def __init__(self, bundle: Bundle, member: Member, header: int) -> None:
        super().__init__(bundle.path)
        self._changed = bundle._changed(member)
        try:
            end = min(header + _LOCAL_HEADER.size, self._size)
            signature, name, extra = _LOCAL_HEADER.unpack(self._read(header, end))
            self._start = header + _LOCAL_HEADER.size + name + extra
            if signature != b"PK\x03\x04" or self._start + member.bytes > self._size:
                raise zipfile.BadZipFile(f"no member begins at byte {header:,}")
        except _DAMAGE as error:
            raise bundle._unreadable(member, error) from error
        self._size = member.bytes
        self._hashes: list[bytes] = []
        whole = hashlib.sha256()
        for at in range(0, member.bytes, PIECE):
            piece = self._stored(at)
            whole.update(piece)
            self._hashes.append(hashlib.sha256(piece).digest())
        if whole.hexdigest() != member.sha256:
            raise self._changed

    def _stored(self, at: int) -> bytes:
        """The piece that begins at this byte of the member, as the file has it now."""
        return self._read(self._start + at, self._start + min(at + PIECE, self._size))

    def __getitem__(self, part: slice) -> bytes:
        start, stop, _ = part.indices(self._size)
        first = start // PIECE
        read = []
        for index in range(first, -(-stop // PIECE)):
            piece = self._stored(index * PIECE)
            if hashlib.sha256(piece).digest() != self._hashes[index]:
                raise self._changed
            read.append(piece)
        return b"".join(read)[start - first * PIECE : stop - first * PIECE]

    def mapped(self) -> memoryview:
        return memoryview(self[:])


def is_bundle(path: str | os.PathLike[str]) -> bool:
    """True for a ZIP archive that begins with a manifest. Raises ModelFileError."""
    try:
        with open(path, "rb") as file:
            head = file.read(30 + len(_MANIFEST))
    except OSError as error:
        raise model_file_error(path, error) from error
    return head[:4] == b"PK\x03\x04" and head[30:] == _MANIFEST.encode()


def open_bundle(path: str | os.PathLike[str]) -> Bundle:
    """Read a bundle's manifest. Raises ModelFileError, and BundleError where it is not one or is damaged."""
    if not is_bundle(path):
        raise BundleError(f"{os.fspath(path)} is not a bundle. Make one: trtrun bundle create.")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(_MANIFEST).file_size > _MANIFEST_LIMIT:
                raise BundleError(f"{os.fspath(path)}: the manifest is larger than {_MANIFEST_LIMIT:,} bytes.")
            text = archive.read(_MANIFEST)
            signature = archive.read(_SIGNATURE) if _SIGNATURE in archive.namelist() else None
        manifest = json.loads(text)
        if manifest.get("format") != FORMAT:
            raise BundleError(
                f"{os.fspath(path)} has the format {manifest.get('format')!r}, this trtrun reads {FORMAT!r}. Update it."
            )
        _check_types(
            manifest,
            {"name": str, "engines": list},
            {"onnx": dict, "metadata": dict, "accuracy": dict, "interface": dict},
        )
        _check_types(manifest, {}, dict.fromkeys(("licence", "source", "created", "source_sha256"), str))
        fields = {"file": str, "bytes": int, "sha256": str}
        for engine in manifest["engines"]:
            _check_types(engine, {**fields, "family": str, "version": str}, {"compute_capability": str})
            if not re.fullmatch(r"\d+(\.\d+){3}|unknown", engine["version"]):
                raise ValueError(f"the version {engine['version'][:40]!r} is no version of TensorRT")
            if engine["family"] not in ("tensorrt", "tensorrt_rtx"):
                raise ValueError(f"the family {engine['family'][:40]!r} is not known")
        if manifest.get("onnx"):
            _check_types(manifest["onnx"], fields, {})
        return Bundle(
            Path(path),
            manifest["name"],
            tuple(EngineMember(**engine) for engine in manifest["engines"]),
            Member(**manifest["onnx"]) if manifest.get("onnx") else None,
            dict(manifest.get("metadata") or {}),
            manifest.get("licence"),
            manifest.get("source"),
            manifest.get("accuracy"),
            manifest.get("created"),
            signature,
            text,
            manifest.get("source_sha256"),
            Interface.from_json(manifest["interface"]) if manifest.get("interface") else None,
        )
    except BundleError:
        raise
    except _DAMAGE as error:
        raise BundleError(
            f"{os.fspath(path)} is a damaged bundle ({type(error).__name__}: {error}); get it again."
        ) from error


def _check_types(fields: Any, needed: Mapping[str, type], optional: Mapping[str, type]) -> None:
    """Raise TypeError unless these are a JSON object's fields, those that are optional being null or missing."""
    if not isinstance(fields, dict):
        raise TypeError(f"{fields!r} is given where an object is expected"[:200])
    for name, kind in (*needed.items(), *optional.items()):
        value = fields.get(name)
        if (value is None and name in optional) or (isinstance(value, kind) and not isinstance(value, bool)):
            continue
        raise TypeError(f"{name} is {value!r}, and {kind.__name__} is expected"[:200])


def write_bundle(
    path: str | os.PathLike[str],
    *,
    engines: Sequence[str | os.PathLike[str] | tuple[str | os.PathLike[str], str | None]] = (),
    onnx: str | os.PathLike[str] | None = None,
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    licence: str | None = None,
    source: str | os.PathLike[str] | None = None,
    accuracy: Mapping[str, Any] | None = None,
    private_key: bytes | None = None,
) -> Bundle:
    """Write a bundle, atomically.

    Args:
        engines: plans, best first; with a compute capability like ``"9.0"`` where one runs on that alone.
        onnx: the model that engines are rebuilt from where none fits, and that the CPU runs. The engines must be of it:
            inputs and outputs are compared here where a GPU can open them, else when they are loaded.
        name: of the model; the name of the file unless given.
        metadata: JSON that ``runner.metadata`` shows: ``names``, ``task``, ``imgsz``, and ``preprocess``, the fields of
            :class:`trtrun.vision.Preprocess` that differ from the head's. It goes before what exporters wrote in front
            of the plans, and that before what is in the ONNX model.
        source: the file that the engines were built from, of which name and hash are kept; ``onnx`` unless given.
        accuracy: a report like that of :func:`trtrun.compare`.
        private_key: an Ed25519 private key in PEM to sign with.

    Raises:
        BundleError: neither an engine nor a model, an engine of another network than the model or the engines before
            it, metadata that is no JSON, a compute capability that is none, or a path that is one of these files or no
            regular file.
            ModelFileError, PlanError: an engine that is none.
            MissingPackageError: signing needs cryptography.
    """
    if not engines and onnx is None:
        raise BundleError("a bundle needs an engine or an ONNX model.")
    given = [engine if isinstance(engine, tuple) else (engine, None) for engine in engines]
    for engine, capability in given:
        if capability is not None and not re.fullmatch(r"\d+\.\d+", capability):
            raise BundleError(
                f"{os.fspath(engine)}@{capability}: {capability!r} is no compute capability. Write it like 9.0."
            )
    read = [engine for engine, _ in given] + [file for file in (onnx, source) if file is not None]
    if onnx is not None and os.path.exists(path):
        from .building.onnx_check import check_model

        read += check_model(onnx)
    check_target(path, read, BundleError)
    facts: dict[str, Any] = {}
    interface: Interface | None = None
    model: tuple[Member, bytes] | None = None
    if onnx is not None:
        body = _whole_model(onnx)
        model = Member("model.onnx", len(body), hashlib.sha256(body).hexdigest()), body
        interface, declared = _read_onnx(body)
        facts.update(declared)
    files: list[tuple[str, bytes]] = []
    members: list[EngineMember] = []
    for index, (engine, capability) in enumerate(given):
        data = ModelFile(engine)
        plan = identify(data, source=os.fspath(engine))
        if onnx is not None and interface is not None:
            told = _told_apart(onnx_metadata(plan.metadata), declared, is_fixed=interface.is_fixed)
            _refuse(os.fspath(engine), os.fspath(onnx), told or _differences(engine, interface))
        if told := _told_apart(onnx_metadata(plan.metadata), onnx_metadata(facts), other="in front of those before"):
            raise BundleError(
                f"{os.fspath(engine)} and the engines before it are not of the same network: {'; '.join(told)}. The "
                "GPU would decide which one runs. Write a bundle for each."
            )
        facts.update(plan.metadata)
        body = data[plan.offset :]
        file = f"engines/{index}-{plan.family}-{plan.version_text}.engine"
        digest = hashlib.sha256(body).hexdigest()
        members.append(EngineMember(file, len(body), digest, plan.family, plan.version_text, capability))
        files.append((file, body))
    if model is not None:
        files.append((model[0].file, model[1]))
    origin = source if source is not None else onnx
    manifest = {
        "format": FORMAT,
        "name": name or Path(path).stem,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "source": None if origin is None else Path(origin).name,
        "source_sha256": None if origin is None else _sha256(ModelFile(origin)),
        "licence": licence,
        "metadata": {**facts, **(metadata or {})},
        "accuracy": accuracy,
        "engines": [member.__dict__ for member in members],
        "onnx": model[0].__dict__ if model else None,
        "interface": interface.as_json() if interface else None,
    }
    try:
        text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError as error:
        raise BundleError(
            f"the metadata of {os.fspath(path)} holds half a character of UTF-16 ({error.object[error.start]!r}), "
            "which is no text. Write the whole character, or leave it out."
        ) from error
    except (TypeError, ValueError) as error:
        raise BundleError(f"the metadata of {os.fspath(path)} is no JSON: {error}") from error
    if private_key is not None:
        files.insert(0, (_SIGNATURE, _sign(private_key, text)))
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:
        for file, body in [(_MANIFEST, text), *files]:
            # A fixed date, so that equal contents make equal files.
            archive.writestr(zipfile.ZipInfo(file, (1980, 1, 1, 0, 0, 0)), body)
    write_atomic(Path(path), memory.getvalue())
    return open_bundle(path)


_DECIDE = ("task", "channels", "kpt_shape")  # metadata that decides what goes in and comes out


def _read_onnx(data: bytes) -> tuple[Interface, dict[str, Any]]:
    """What a model that was checked declares of its inputs and outputs, and its exporter's metadata."""
    from .building.onnx_file import proto_metadata, read_model

    proto = read_model(data)
    return Interface.of_onnx(proto), proto_metadata(proto)


def _told_apart(
    engine: Mapping[str, Any], model: Mapping[str, Any], *, is_fixed: bool = False, other: str = "in the ONNX model"
) -> list[str]:
    """Where exporters say that an engine and an ONNX model, or an ``other`` engine, are not the same network.

    Of an ``is_fixed`` model also the size of pictures, which is no more than a habit where it may be any.
    """
    found = []
    for key in (*_DECIDE, *(("imgsz",) if is_fixed else ())):
        of_engine, of_model = (
            [told[key]] * 2 if key == "imgsz" and isinstance(told.get(key), int) else told.get(key)
            for told in (engine, model)
        )
        if None not in (of_engine, of_model) and of_engine != of_model:
            found.append(f"{key} is {of_engine!r} in front of the engine and {of_model!r} {other}")
    counts = [len(names) for told in (engine, model) if isinstance(names := told.get("names"), (dict, list))]
    if len(set(counts)) > 1:
        found.append(f"{counts[0]} names stand in front of the engine and {counts[1]} {other}")
    return found


def _differences(engine: str | os.PathLike[str], interface: Interface) -> list[str]:
    """Where an engine differs, if it can be opened here; else that is seen when it is loaded."""
    from .cuda.device import gpu_count
    from .engine import Engine

    if not gpu_count():
        return []
    try:
        with Engine(engine, runtime_cache=False) as opened:
            return interface.differences(opened.inputs, opened.outputs)
    except TrtrunError:  # of another GPU or version, or one that needs plugins
        return []


def _refuse(engine: str, model: str, differences: Sequence[str]) -> None:
    if differences:
        raise BundleError(
            f"{engine} and {model} are not the same network: {'; '.join(differences)}. Machines with a GPU would run "
            "the one and others the other. Build the engine from this ONNX model, or give the bundle the model as the "
            "engine was built from it: with the same inputs and outputs (trtrun build --input-shape and --outputs "
            "change them)."
        )


def _sha256(file: ModelFile) -> str:
    digest = hashlib.sha256()
    for piece in pieces(file):
        digest.update(piece)
    return digest.hexdigest()


def new_keys() -> tuple[bytes, bytes]:
    """A new Ed25519 private key and its public key, both PEM; the private one is not encrypted."""
    ed25519, serialization, _ = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    return (
        private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo),
    )


def _sign(private_key: bytes, text: bytes) -> bytes:
    _, serialization, _ = _cryptography()
    try:
        signature: bytes = serialization.load_pem_private_key(private_key, password=None).sign(text)
    except (ValueError, TypeError, AttributeError) as error:
        raise BundleError(f"the key to sign with is not an unencrypted Ed25519 private key in PEM: {error}") from error
    return signature


def _whole_model(path: str | os.PathLike[str]) -> bytes:
    """An ONNX model with its external data inside."""
    from .building.onnx_check import check_model
    from .building.onnx_file import read_model

    if not check_model(path):
        return read_model_file(path)
    data: bytes = read_model(path, external_data=True).SerializeToString()
    return data


def _cryptography() -> tuple[Any, Any, Any]:
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise MissingPackageError(
            f"signing bundles needs cryptography ({error}). Run: pip install 'trtrun[sign]'"
        ) from error
    return ed25519, serialization, InvalidSignature
