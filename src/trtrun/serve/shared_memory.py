"""System shared memory that clients on the same machine have registered: tensors are read and written in place."""

from __future__ import annotations

import mmap
import os
import re
import threading
from dataclasses import dataclass

from ..errors import InputError
from .protocol import Region

_FOLDER = "/dev/shm"  # where POSIX shared memory lies on Linux
_KEY = re.compile(r"/?[A-Za-z0-9_.-]{1,200}")


@dataclass(frozen=True)
class Registered:
    """A registered region: ``nbytes`` from ``offset`` of the shared memory object ``key``."""

    name: str
    key: str
    offset: int
    nbytes: int
    memory: mmap.mmap


class SharedMemory:
    """The regions by name. Safe from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._regions: dict[str, Registered] = {}

    def register(self, name: str, key: str, nbytes: int, offset: int = 0) -> None:
        """Map a client's shared memory object. Raises InputError where it cannot be, or the name is taken."""
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise InputError(f"{key!r:.100} is no name of a shared memory object.")
        with self._lock:
            if name in self._regions:
                raise InputError(f"a shared memory region {name!r:.100} is registered already. Unregister it first.")
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
            self._regions[name] = Registered(name, key, offset, nbytes, memory)

    def unregister(self, name: str | None = None) -> None:
        """Forget a region, or all of them. One that is in use goes when its last request is done."""
        with self._lock:
            if name is None:
                self._regions.clear()
            else:
                self._regions.pop(name, None)

    def status(self, name: str | None = None) -> list[Registered]:
        """What is registered. Raises InputError for a name that is not."""
        with self._lock:
            if name is None:
                return list(self._regions.values())
            if name not in self._regions:
                raise InputError(f"there is no shared memory region {name!r:.100}.")
            return [self._regions[name]]

    def __call__(self, region: Region) -> memoryview:
        """The bytes of a part of a registered region. Raises InputError where it is not all inside."""
        (registered,) = self.status(region.name)
        if region.offset + region.nbytes > registered.nbytes:
            raise InputError(
                f"shared memory region {region.name!r} has {registered.nbytes} bytes, not {region.nbytes} from "
                f"{region.offset} on."
            )
        start = registered.offset + region.offset
        return memoryview(registered.memory)[start : start + region.nbytes]
