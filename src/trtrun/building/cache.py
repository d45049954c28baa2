"""Engines built before, kept on disk and shared by processes.

An entry is named by a digest of everything the engine depends on: the model's content with its external data
(:mod:`trtrun.building.content`), the options, the flavour with its version, the revision of trtrun's own changes to
graphs, the versions of packages that make others, the bytes of plugin libraries, and the GPU where the engine is tied
to one. It is written atomically, with its checksum beside it; an entry that does not match is built again. The checksum
is computed only when the file's state (:func:`~trtrun.building.files.file_state`) is not the one that it had when it
was written or last checked, so that an engine is found without reading it. An engine is stored only if its model's
content is after the build what it was before.

The cache is bounded: after each store, the entries that were used longest ago go until the rest fits. An entry's
lock is held while it is built and while it is removed, so that no process removes what another is building.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
import zlib
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from .. import flavor as flavors
from ..errors import BuildError, ModelFileError, PlanError
from ..plan import ModelFile, header_of, pieces
from . import files, graph
from .builder import Progress, build_plan
from .content import Content, content_of, forget
from .files import file_state, write_atomic
from .header import metadata_of
from .onnx_file import model_name
from .options import BuildOptions, parse_bytes

_LOG = logging.getLogger("trtrun")

DEFAULT_LIMIT = 20 * 10**9  # bytes of the whole cache
_GRACE = 60.0  # seconds: pruning keeps what was used this recently, since its path may not have been opened yet
_BUILDS = 3  # of a model that is changed while it is built
_LAYOUT = 1  # of an entry; one more where what was stored before must not be found: 1 has metadata in front of the plan
_ABANDONED = 3600.0  # seconds after which a half-written file is that of a process that died


def cache_dir() -> Path:
    """``$TRTRUN_CACHE_DIR``, else ``$XDG_CACHE_HOME/trtrun``, else ``~/.cache/trtrun``."""
    if chosen := os.environ.get("TRTRUN_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtrun"


def cache_limit() -> int:
    """Bytes that the cache may hold: ``$TRTRUN_CACHE_SIZE``, like ``5GB``, else 20 GB. Raises BuildError."""
    text = os.environ.get("TRTRUN_CACHE_SIZE")
    if not text:
        return DEFAULT_LIMIT
    try:
        return parse_bytes(text)
    except BuildError as error:
        raise BuildError(f"TRTRUN_CACHE_SIZE: {error.message}") from error


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache: an engine, or the kernels that TensorRT-RTX compiled for one on this GPU."""

    name: str
    kind: Literal["engine", "kernels"]
    path: Path
    bytes: int  # on disk, with what stands beside it
    created: float  # seconds since 1970
    used: float  # seconds since 1970, when it was last asked for
    model: str | None = None  # the ONNX file it was built from, as it was named then
    built_by: str | None = None  # flavour and version
    options: str | None = None  # the build options, as JSON

    def as_json(self) -> dict[str, Any]:
        return {**self.__dict__, "path": str(self.path)}


def entries() -> list[CacheEntry]:
    """Everything in the cache, last used first. Entries that another process is building are not in it yet."""
    found = [*(cache_dir() / "engines").glob("*.engine"), *(cache_dir() / "runtime").glob("*.cache")]
    return sorted(filter(None, map(_entry, found)), key=lambda entry: entry.used, reverse=True)


def _entry(path: Path) -> CacheEntry | None:
    try:
        stat = path.stat()
    except FileNotFoundError:  # removed by another process since it was listed
        return None
    if path.suffix == ".cache":
        return CacheEntry(path.stem, "kernels", path, stat.st_size, stat.st_ctime, stat.st_mtime)
    beside = _facts(path)
    try:
        text = beside.read_bytes()
        facts = {name: str(value) for name, value in json.loads(text).items()}
        used = beside.stat().st_mtime
    # damaged: built again when asked for, and listed so that it can be removed
    except (OSError, ValueError, AttributeError, RecursionError):
        text, facts, used = b"", {}, stat.st_mtime
    return CacheEntry(
        path.stem,
        "engine",
        path,
        stat.st_size + len(text),
        stat.st_mtime,
        used,
        facts.get("model"),
        facts.get("built_by"),
        facts.get("options"),
    )


def prune(*, limit: int | None = None, unused_for: float | None = None) -> list[CacheEntry]:
    """Remove what was used longest ago until the cache fits, and return what was removed.

    What another process is building or used within the last minute stays, whatever the limit.

    Args:
        limit: bytes to keep at most; :func:`cache_limit` unless given.
        unused_for: seconds; what was not used for longer goes even when the cache fits.
    """
    limit = cache_limit() if limit is None else limit
    now = time.time()
    found = entries()
    total = sum(entry.bytes for entry in found)
    removed = []
    for entry in reversed(found):
        old = unused_for is not None and now - entry.used > unused_for
        if (total > limit or old) and now - entry.used > _GRACE and _remove(entry):
            total -= entry.bytes
            removed.append(entry)
    _remove_abandoned(now)
    forget(_notes(), all_of_them=False)
    return removed


def clear() -> list[CacheEntry]:
    """Remove all but what another process is building right now, and return what was removed."""
    removed = [entry for entry in entries() if _remove(entry)]
    _remove_abandoned(time.time())
    forget(_notes(), all_of_them=True)
    return removed


def _remove(entry: CacheEntry) -> bool:
    """Remove an entry unless a process is building it again; a process that has opened the file keeps what it read."""
    if entry.kind == "kernels":
        entry.path.unlink(missing_ok=True)
        return True
    # The lock file itself stays: a process may be waiting on it, and another would lock a new one of the same name.
    try:
        with FileLock(entry.path.with_suffix(".lock"), timeout=0):
            entry.path.unlink(missing_ok=True)
            _facts(entry.path).unlink(missing_ok=True)
    except Timeout:
        return False
    return True


def _notes() -> Path:
    return cache_dir() / "models"


def _remove_abandoned(now: float) -> None:
    for folder in ("engines", "runtime", "models"):
        for path in (cache_dir() / folder).glob(".*"):
            try:
                if now - path.stat().st_mtime > _ABANDONED:
                    path.unlink()
            except FileNotFoundError:
                pass


def keep_within_limit() -> None:
    """Prune after a store. A cache that cannot be pruned is only warned of: what was asked for is there."""
    try:
        removed = prune()
    except (OSError, BuildError) as error:
        _LOG.warning("the cache %s could not be pruned: %s", cache_dir(), error)
        return
    if removed:
        _LOG.info("%d entries used longest ago were removed from the cache %s", len(removed), cache_dir())


def cached_engine(
    model: str | os.PathLike[str], options: BuildOptions | None = None, *, progress: Progress | None = None
) -> Path:
    """The path of an engine for this ONNX file, built when there is none yet. Raises what ``build_plan`` raises.

    The model's metadata may stand in front of the plan, as :func:`trtrun.build` writes it.

    Processes that ask at once build once: the others wait for the first. The file may be gone by the time it is
    opened if another process clears the cache; :func:`cached_plan` gives what cannot be taken away.
    """
    path, _ = cached_plan(model, options, progress=progress)
    if not path.exists():
        raise ModelFileError(f"the engine could not be kept in the cache {cache_dir()}; cached_plan gives its bytes.")
    return path


def cached_plan(
    model: str | os.PathLike[str] | bytes, options: BuildOptions | None = None, *, progress: Progress | None = None
) -> tuple[Path, ModelFile | memoryview]:
    """The path and the bytes of an engine, as :func:`cached_engine` finds or builds it; the model may be bytes too.

    The model's metadata stands in front of the plan, as :func:`trtrun.build` writes it.

    An engine that is found is an open file. One that is built where the cache cannot be written is not kept, with a
    warning; then there is no file at the path.
    """
    options = BuildOptions.of(options)
    flavor = flavors.for_building(options.flavor)
    name = model_name(model)
    for _ in range(_BUILDS):
        content = content_of(model, _notes())
        path = cache_dir() / "engines" / f"{_digest(content, options, flavor)}.engine"
        if plan := _intact(path):
            return path, plan
        with ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(path.with_suffix(".lock")))
            except OSError as error:
                unwritable: OSError | None = error
            else:
                unwritable = None
                if plan := _intact(path):
                    return path, plan
                if path.exists():
                    _LOG.warning("the cached engine %s is damaged; it is built again", path)
            plan_alone = build_plan(model, options, progress=progress)
            try:
                built = header_of(metadata_of(model)) + plan_alone
            except PlanError as error:
                _LOG.warning("%s: its metadata is left out of the engine: %s", name, error)
                built = plan_alone
            if content_of(model, _notes()) != content:
                _LOG.warning("%s was changed while it was built; it is built again", name)
                continue
            try:
                if unwritable is not None:
                    raise unwritable
                _store(path, built, model, options, flavor)
            except OSError as error:
                _LOG.warning("the engine is not kept: the cache %s cannot be written (%s)", cache_dir(), error)
        return path, memoryview(built)
    raise ModelFileError(f"{name} was changed during each of {_BUILDS} builds. Wait until it is written.")


def _store(
    path: Path,
    built: bytes,
    model: str | os.PathLike[str] | bytes,
    options: BuildOptions,
    flavor: flavors.Flavor,
) -> None:
    write_atomic(path, built)
    facts = {
        "crc32": zlib.crc32(built),
        # Trusted whatever the clock's tick: nobody else writes here, and trtrun never into a file that is there.
        "state": file_state(path),
        "model": "bytes" if isinstance(model, bytes) else os.path.abspath(model),
        "built_by": flavor.title,
        "options": options.key(),
    }
    write_atomic(_facts(path), json.dumps(facts, indent=1).encode())
    keep_within_limit()


def _facts(path: Path) -> Path:
    """The file beside an engine that says what it is; its time is when the engine was last asked for."""
    return path.with_suffix(".json")


def _intact(path: Path) -> ModelFile | None:
    """The plan of an entry that matches its checksum, noted as used now; None when there is none, or a damaged one."""
    try:
        plan = ModelFile(path)
        state = file_state(plan.fileno())
        facts = json.loads(_facts(path).read_bytes())
        known, checksum = facts.get("state"), facts.get("crc32")
    except (ModelFileError, OSError, ValueError, AttributeError, RecursionError):
        return None
    with suppress(OSError):  # removed since, or a cache that may only be read
        if known == state:
            os.utime(_facts(path))
        elif not _has_checksum(plan, checksum):
            return None
        elif files.has_settled(state, time.time_ns()):
            write_atomic(_facts(path), json.dumps({**facts, "state": state}, indent=1).encode())
    return plan


def _has_checksum(plan: ModelFile, checksum: object) -> bool:
    crc = 0
    try:
        for piece in pieces(plan):
            crc = zlib.crc32(piece, crc)
    except ModelFileError:
        return False
    return crc == checksum


def _plugin_hash(plugin: str | os.PathLike[str]) -> str:
    try:
        return hashlib.sha256(Path(plugin).read_bytes()).hexdigest()
    except OSError:  # build_plan says so
        return "missing"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # prepare says what to install
        return "missing"


def _digest(content: Content, options: BuildOptions, flavor: flavors.Flavor) -> str:
    target = "portable"
    if not flavor.capabilities.can_build_without_gpu:
        from ..cuda.device import Device

        device = Device()
        target = f"{device.name} {device.compute_capability}"
    parts = (
        content.sha256,
        options.key(),
        flavor.title,
        target,
        f"revision {graph.REVISION}, layout {_LAYOUT}",
        # of packages that change the graph, and of what plugins compute
        *(f"{package} {_version(package)}" for package in graph.packages(options)),
        *(_plugin_hash(plugin) for plugin in options.plugins),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
