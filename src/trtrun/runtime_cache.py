"""Kernels that TensorRT-RTX compiled on this GPU, kept between loads and between processes.

A plan of TensorRT-RTX is compiled for the GPU at hand when a context is created and first run. The compiled kernels
can be serialized; loading them makes the next process start in a fraction of the time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from .building.cache import cache_dir, keep_within_limit
from .building.files import write_atomic
from .cuda.device import Device
from .flavor import Flavor

_LOG = logging.getLogger("trtrun")
_open_caches: dict[tuple[Path, int], RuntimeCache] = {}
_open_lock = threading.Lock()


class RuntimeCache:
    """TensorRT's ``IRuntimeCache`` of one plan on one GPU, and its file.

    There is one per plan and GPU in a process, kept until the process ends: a plan that is loaded again finds its
    kernels there.

    Attributes:
        lock: held while anything may compile kernels into the cache. Execution contexts that share one must not do so
            at once: six threads doing it crashed TensorRT-RTX 1.6.1 within seconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._handle: Any = None
        self._saved = b""
        self._compiled: set[object] = set()
        self._grown = False

    @classmethod
    def of(cls, plan: memoryview, flavor: Flavor, device: Device) -> RuntimeCache:
        """The cache of this plan with this version of TensorRT on this kind of GPU."""
        key = hashlib.sha256(plan)
        for part in (flavor.title, device.name, str(device.compute_capability), device.driver_version):
            key.update(b"\0" + part.encode())
        path = cache_dir() / "runtime" / f"{key.hexdigest()[:32]}.cache"
        with _open_lock:
            return _open_caches.setdefault((path, device.ordinal), cls(path))

    def attach(self, config: Any) -> None:
        """Give the cache to an ``IRuntimeConfig``; the first time, with the kernels of the file."""
        with self.lock:
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
        if hashlib.sha256(body).digest() == digest and cache.deserialize(body):
            self._saved = body
            with suppress(OSError):  # a cache that may only be read
                os.utime(self.path)  # used now: pruning takes others first
        else:
            _LOG.warning(
                "the runtime cache %s is damaged or not of this machine; kernels are compiled again", self.path
            )

    def note(self, shapes: object) -> None:
        """Say that kernels for these shapes are in the cache now."""
        with self.lock:
            if shapes not in self._compiled:
                self._compiled.add(shapes)
                self._grown = True

    def save(self) -> None:
        """Write the kernels to the file if there are new ones. A folder that cannot be written is only warned of."""
        with self.lock:
            # Asked only after new shapes: TensorRT-RTX 1.6.1 loses the memory of every serialization.
            if self._handle is None or not self._grown:
                return
            self._grown = False
            body = bytes(self._handle.serialize())
            if body == self._saved:
                return
            try:
                write_atomic(self.path, body + hashlib.sha256(body).digest())
                keep_within_limit()
            except OSError as error:
                _LOG.warning(
                    "the runtime cache %s cannot be written (%s); the next start compiles again", self.path, error
                )
            self._saved = body
