"""Kernels that TensorRT-RTX compiled on this GPU, kept between processes.

A plan of TensorRT-RTX is compiled for the GPU at hand when a context is created and first run. The compiled kernels
can be serialized; loading them makes the next process start in a fraction of the time.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from .building.cache import cache_dir, write_atomic
from .cuda.device import Device
from .flavor import Flavor

_LOG = logging.getLogger("trtrun")


class RuntimeCacheFile:
    """One file per plan, TensorRT version and kind of GPU. A file that TensorRT rejects is removed and made again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._saved = b""

    @classmethod
    def for_plan(cls, plan: memoryview, flavor: Flavor, device: Device) -> RuntimeCacheFile:
        key = hashlib.sha256(plan)
        for part in (flavor.title, device.name, str(device.compute_capability), device.driver_version):
            key.update(b"\0" + part.encode())
        return cls(cache_dir() / "runtime" / f"{key.hexdigest()[:32]}.cache")

    def load_into(self, cache: Any) -> bool:
        """Give the stored kernels to TensorRT's ``IRuntimeCache``; False when there are none it accepts."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            _LOG.warning("the runtime cache %s cannot be read (%s); kernels are compiled again", self.path, error)
            return False
        body, digest = data[:-32], data[-32:]
        # TensorRT checks the environment, but a damaged body must not reach it.
        if hashlib.sha256(body).digest() != digest or not cache.deserialize(body):
            _LOG.warning(
                "the runtime cache %s is damaged or of another environment; kernels are compiled again", self.path
            )
            self.path.unlink(missing_ok=True)
            return False
        self._saved = body
        return True

    def save(self, cache: Any) -> None:
        """Store the kernels unless they are those already stored. A folder that cannot be written is only warned of."""
        body = bytes(cache.serialize())
        if body == self._saved:
            return
        try:
            write_atomic(self.path, body + hashlib.sha256(body).digest())
        except OSError as error:
            _LOG.warning("the runtime cache %s cannot be written (%s); the next start compiles again", self.path, error)
            return
        self._saved = body
