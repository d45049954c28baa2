"""Kernels that TensorRT-RTX compiled on this GPU, kept between loads and between processes.

A plan of TensorRT-RTX is compiled for the GPU at hand when a context is created and first run. The compiled kernels
can be serialized; loading them makes the next process start in a fraction of the time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .building.cache import cache_dir, keep_within_limit
from .building.files import write_atomic
from .cuda.cudnn_kernels import CudnnKernels
from .cuda.device import Device
from .cuda.early_starts import HOLDS_A_POINTER, Sizes
from .flavor import Flavor

_LOG = logging.getLogger("trtrun")
_MAX_SHAPES = 4096  # that are remembered; kernels of further ones are kept in this process only
_MAX_LOST = 64 << 20  # bytes that TensorRT-RTX 1.6.1 may lose in this process for sizes of tensors alone
_MAX_UNKNOWN = 4096  # launches that are remembered as not found
_MAX_KEPT = 32  # caches of plans, the least recently loaded goes first
_kept: OrderedDict[Path, RuntimeCache] = OrderedDict()
_kept_lock = threading.Lock()
_lost = 0


class RuntimeCache:
    """TensorRT's ``IRuntimeCache`` of one plan on one GPU, and its file.

    Engines of the plan share it, one after another too: TensorRT-RTX 1.6.1 leaves device memory behind with every cache
    that is given up, 30 kB, so the last ones are kept. Engines call it under their GPU's compile lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: Any = None
        self._body = b""  # what was loaded, kept as long as the handle: TensorRT may go on reading there
        self._compiled: set[object] = set()
        self._save_at = 1
        self._saved = 0  # of the shapes
        self._newest: bytes | None = None  # what was loaded or serialized last, if not looked into yet
        self._kernels = CudnnKernels(b"")
        self._unknown: set[object] = set()  # launches that were not found there

    @classmethod
    def of(cls, plan: Iterable[bytes | memoryview], flavor: Flavor, device: Device) -> RuntimeCache:
        """The cache of the plan of these pieces with this version of TensorRT on this GPU.

        This very one: TensorRT-RTX 1.6.1 refuses what another GPU of the same kind compiled.
        """
        key = hashlib.sha256()
        for piece in plan:
            key.update(piece)
        for part in (flavor.title, device.uuid, device.driver_version):
            key.update(b"\0" + part.encode())
        path = cache_dir() / "runtime" / f"{key.hexdigest()[:32]}.cache"
        with _kept_lock:
            cache = _kept.pop(path) if path in _kept else cls(path)
            _kept[path] = cache
            if len(_kept) > _MAX_KEPT:
                _kept.popitem(last=False)  # engines that are open have it still
            return cache

    def attach(self, config: Any) -> None:
        """Give the cache to an ``IRuntimeConfig``; the first time, with the kernels of the file."""
        if self._handle is None:
            self._handle = config.create_runtime_cache()
            self._load(self._handle)
        config.set_runtime_cache(self._handle)

    def _load(self, cache: Any) -> None:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            _LOG.warning("the runtime cache %s cannot be read (%s); kernels are compiled again", self.path, error)
            return
        body, digest = data[:-32], data[-32:]
        # TensorRT checks the environment, but a damaged body must not reach it.
        if hashlib.sha256(body).digest() != digest:
            _LOG.warning("the runtime cache %s is damaged; kernels are compiled again", self.path)
        elif not cache.deserialize(body):
            _LOG.warning("TensorRT refuses the runtime cache %s; kernels are compiled again", self.path)
        else:
            self._body = self._newest = body
            with suppress(OSError):  # a cache that may only be read
                os.utime(self.path)  # used now: pruning takes others first

    def note(self, shapes: object) -> None:
        """Say that kernels for these shapes are in the cache now, and write the file if it is time to.

        That is after 1, 2, 4, 8, … new shapes, and when an engine closes: TensorRT-RTX 1.6.1 loses the memory of each
        serialization.
        """
        if shapes in self._compiled or len(self._compiled) == _MAX_SHAPES:
            return
        self._compiled.add(shapes)
        if len(self._compiled) >= self._save_at:
            self._save_at = 2 * len(self._compiled)
            self.save()

    def sizes(self) -> Sizes:
        """What tells, of launches of cuDNN's kernels, the bytes of their tensors; good for one graph.

        Of launches that it has not seen it looks into the cache as it is by then, once. As that loses memory (see
        :meth:`note`) it does so until ``_MAX_LOST`` bytes are gone, for all caches together; then it knows what
        :meth:`save` wrote.
        """
        looked = False

        def sizes(name: bytes, parameters: Sequence[bytes]) -> Sequence[int | None] | None:
            nonlocal looked
            found = self._find(name, parameters)
            kind = name, tuple(value for value in parameters if len(value) not in HOLDS_A_POINTER)
            if found is not None or not name.startswith(b"cudnn_") or kind in self._unknown:
                return found
            if name in self._kernels.of_any_shape:
                return None
            if not looked and _lost >= _MAX_LOST:
                return None
            if not looked:
                looked = True
                _lose(len(self._serialize()))
                found = self._find(name, parameters)
            if found is None and len(self._unknown) < _MAX_UNKNOWN:
                self._unknown.add(kind)
            return found

        return sizes

    def _find(self, name: bytes, parameters: Sequence[bytes]) -> Sequence[int | None] | None:
        if self._newest is not None:
            self._kernels, self._newest = CudnnKernels(self._newest), None
        return self._kernels.sizes(name, parameters)

    def _serialize(self) -> bytes:
        """What the cache holds; nothing, and that is said, where TensorRT does not tell."""
        try:
            body = bytes(self._handle.serialize() or b"")
        except Exception as error:  # it is of use for speed alone, and no request must fail of it
            _LOG.warning("TensorRT fails to serialize the runtime cache %s: %s", self.path, error)
            return b""
        if body:
            self._newest = body
        else:
            _LOG.warning("TensorRT does not serialize the runtime cache %s", self.path)
        return body

    def save(self) -> None:
        """Write the kernels to the file if there are new ones. A folder that cannot be written is only warned of."""
        if self._handle is None or self._saved == len(self._compiled):
            return
        body = self._serialize()
        if not body:
            return
        self._saved = len(self._compiled)
        if body == self._body:
            return
        try:
            write_atomic(self.path, body + hashlib.sha256(body).digest())
            keep_within_limit()
        except OSError as error:
            _LOG.warning("the runtime cache %s cannot be written (%s); the next start compiles again", self.path, error)


def _lose(nbytes: int) -> None:
    """Count bytes that TensorRT lost for sizes, and say so once when there are no more to lose."""
    global _lost
    with _kept_lock:  # engines of other GPUs look too
        before, _lost = _lost, _lost + nbytes
    if before < _MAX_LOST <= before + nbytes:
        _LOG.warning(
            "graphs of some further shapes give up to 9 %% fewer results per second with many requests in flight: to "
            "tell how far their tensors reach would lose more host memory than the %d MB that TensorRT lost for it so "
            "far. The next process has them from the runtime cache.",
            (before + nbytes) >> 20,
        )
