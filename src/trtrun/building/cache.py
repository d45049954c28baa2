"""Engines built before, kept on disk and shared by processes.

An entry is named by a digest of everything the engine depends on: the model's content with its external data, the
options, the flavour with its version, and the GPU where the engine is tied to one. It is written atomically, with
its checksum beside it; an entry that does not match is built again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from pathlib import Path

from filelock import FileLock

from .. import flavor as flavors
from ..plan import read_model_file
from .builder import Progress, build_plan
from .options import BuildOptions

_LOG = logging.getLogger("trtrun")


def cache_dir() -> Path:
    """``$TRTRUN_CACHE_DIR``, else ``$XDG_CACHE_HOME/trtrun``, else ``~/.cache/trtrun``."""
    if chosen := os.environ.get("TRTRUN_CACHE_DIR"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trtrun"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or none. Creates its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def cached_engine(
    model: str | os.PathLike[str], options: BuildOptions | None = None, *, progress: Progress | None = None
) -> Path:
    """The path of an engine for this ONNX file, built when there is none yet. Raises what ``build_plan`` raises.

    Processes that ask at once build once: the others wait for the first.
    """
    options = options or BuildOptions()
    flavor = flavors.for_building(options.flavor)
    path = cache_dir() / "engines" / f"{_digest(model, options, flavor)}.engine"
    if _is_intact(path):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if path.exists():
            if _is_intact(path):
                return path
            _LOG.warning("the cached engine %s is damaged; it is built again", path)
        plan = build_plan(model, options, progress=progress)
        facts = {"sha256": hashlib.sha256(plan).hexdigest(), "model": os.fspath(model), "built_by": flavor.title}
        write_atomic(path.with_suffix(".json"), json.dumps(facts, indent=1).encode())
        write_atomic(path, plan)
    return path


def _is_intact(path: Path) -> bool:
    try:
        plan = path.read_bytes()
        facts = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return False
    return bool(hashlib.sha256(plan).hexdigest() == facts.get("sha256"))


def _digest(model: str | os.PathLike[str], options: BuildOptions, flavor: flavors.Flavor) -> str:
    digest = hashlib.sha256(read_model_file(model))
    for path in _external_data(Path(model)):
        digest.update(b"\0" + read_model_file(path))
    target = "portable"
    if not flavor.capabilities.can_build_without_gpu:
        from ..cuda.device import Device

        device = Device()
        target = f"{device.name} {device.compute_capability}"
    for part in (options.key(), flavor.title, target):
        digest.update(b"\0" + part.encode())
    return digest.hexdigest()[:32]


def _external_data(model: Path) -> list[Path]:
    """The files beside the model that hold its large tensors."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        graph = onnx.load(os.fspath(model), load_external_data=False).graph
    except Exception:  # not ONNX: the parser says why, better than this could
        return []
    names = {
        entry.value
        for tensor in graph.initializer
        if uses_external_data(tensor)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return [model.parent / name for name in sorted(names)]
