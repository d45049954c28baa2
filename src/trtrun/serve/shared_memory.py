"""Shared memory that clients on the same machine have registered: tensors are read and written in place.

System shared memory lies on the host; CUDA shared memory is device memory that a client exported.
"""

from __future__ import annotations

import mmap
import os
import re
import threading
from dataclasses import dataclass
from typing import Any, TypeVar

from ..errors import DeviceError, InputError
from .protocol import DeviceBytes, Region, RequestedOutput

_FOLDER = "/dev/shm"  # where POSIX shared memory lies on Linux
_KEY = re.compile(r"/?[A-Za-z0-9_.-]{1,200}")


@dataclass(frozen=True)
class SystemRegion:
    """A registered region: ``nbytes`` from ``offset`` of the shared memory object ``key``."""

    name: str
    key: str
    offset: int
    nbytes: int
    memory: mmap.mmap


@dataclass(frozen=True)
class CudaRegion:
    """A registered region of ``nbytes`` on the GPU ``device_id``."""

    name: str
    device_id: int
    nbytes: int
    memory: Any  # a cuda.ipc.ImportedMemory


Kind = TypeVar("Kind", SystemRegion, CudaRegion)


class SharedMemory:
    """The regions by name, of both kinds together. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, SystemRegion | CudaRegion] = {}

    def register(self, name: str, key: str, nbytes: int, offset: int = 0) -> None:
        """Map a client's shared memory object. Raises InputError where it cannot be, or the name is taken."""
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise InputError(f"{key!r:.100} is no name of a shared memory object.")
        with self._lock:
            self._check_free(name)
            try:
                file = os.open(os.path.join(_FOLDER, key.lstrip("/")), os.O_RDWR | os.O_NOFOLLOW)
            except OSError as error:
                raise InputError(f"shared memory {key!r} cannot be opened: {error.strerror}.") from error
            try:
                size = os.fstat(file).st_size
                if nbytes < 1 or offset < 0 or offset + nbytes > size:
                    raise InputError(f"shared memory {key!r} has {size} bytes, not {nbytes} from {offset} on.")
                memory = mmap.mmap(file, offset + nbytes)
            except (OSError, ValueError) as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(f"shared memory {key!r} cannot be mapped: {error}.") from error
            finally:
                os.close(file)
            self._regions[name] = SystemRegion(name, key, offset, nbytes, memory)

    def register_cuda(self, name: str, handle: bytes, device_id: int, nbytes: int) -> None:
        """Open a client's device memory by the 64 bytes of its ``cudaIpcMemHandle_t``.

        Raises InputError where it cannot be, or the name is taken.
        """
        from ..cuda.ipc import ImportedMemory

        with self._lock:
            self._check_free(name)
            try:
                memory = ImportedMemory(handle, device_id, nbytes)
            except DeviceError as error:
                raise InputError(f"CUDA shared memory {name!r:.100} cannot be opened: {error.message}") from error
            self._regions[name] = CudaRegion(name, device_id, nbytes, memory)

    def _check_free(self, name: str) -> None:
        if name in self._regions:
            raise InputError(f"a shared memory region {name!r:.100} is registered already. Unregister it first.")

    def unregister(self, kind: type[Kind], name: str | None = None) -> None:
        """Forget a region, or all of this kind. One that is in use goes when its last request is done."""
        with self._lock:
            for region in [r for r in self._regions.values() if isinstance(r, kind) and name in (None, r.name)]:
                del self._regions[region.name]

    def status(self, kind: type[Kind], name: str | None = None) -> list[Kind]:
        """What is registered of this kind. Raises InputError for a name that is not."""
        with self._lock:
            found = [r for r in self._regions.values() if isinstance(r, kind) and name in (None, r.name)]
        if name is not None and not found:
            raise InputError(f"there is no shared memory region {name!r:.100}.")
        return found

    def on_gpu(self, outputs: tuple[RequestedOutput, ...] | None) -> bool:
        """Whether a request wants an output in CUDA shared memory."""
        names = {output.region.name for output in outputs or () if output.region is not None}
        return any(isinstance(self._regions.get(name), CudaRegion) for name in names)

    def __call__(self, region: Region) -> memoryview | DeviceBytes:
        """A part of a registered region. Raises InputError where it is not all inside."""
        with self._lock:
            registered = self._regions.get(region.name)
        if registered is None:
            raise InputError(f"there is no shared memory region {region.name!r:.100}: register it first.")
        if region.offset + region.nbytes > registered.nbytes:
            raise InputError(
                f"shared memory region {region.name!r} has {registered.nbytes} bytes, not {region.nbytes} from "
                f"{region.offset} on."
            )
        if isinstance(registered, CudaRegion):
            part: DeviceBytes = registered.memory.part(region.offset, region.nbytes)
            return part
        start = registered.offset + region.offset
        return memoryview(registered.memory)[start : start + region.nbytes]
