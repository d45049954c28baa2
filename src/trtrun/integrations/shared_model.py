"""A model file on its way to the nodes of a Ray cluster."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..building.cache import cache_dir
from ..building.files import write_atomic
from ..errors import MissingPackageError
from ..plan import read_model_file


class SharedModel:
    """A model file in Ray's object store. Each node that uses it writes it to its cache once.

    For clusters without a file system that all nodes share. It is one file: ONNX models with external data travel as
    a bundle (``trtrun bundle create``).

    Args:
        path: an engine, an ONNX file or a bundle on this machine. Raises ModelFileError.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        data = read_model_file(path)
        self._name = f"{hashlib.sha256(data).hexdigest()[:32]}-{Path(path).name}"
        self._reference = import_ray().put(data)

    def path(self) -> Path:
        """The file on this node, fetched by the first process that asks."""
        path = cache_dir() / "fetched" / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                write_atomic(path, import_ray().get(self._reference))
        return path


Model = str | os.PathLike[str] | SharedModel


def local_path(model: Model) -> str | os.PathLike[str]:
    """Where a model lies on this node: a path must be there on every one."""
    return model.path() if isinstance(model, SharedModel) else model


def import_ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise MissingPackageError(f"Ray cannot be imported ({error}). Run: pip install 'trtrun[ray]'") from error
    return ray
