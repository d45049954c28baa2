"""Shared memory that clients on the same machine have registered: tensors are read from it and written to it.

System shared memory lies on the host; CUDA shared memory is device memory that a client exported. System shared memory
is read and written as a file, never mapped: whoever created an object may make it shorter at any time, and a mapping
would end the server then (SIGBUS).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
import threading
import weakref
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..errors import DeviceError, DtypeError, InputError
from .peer import Peer, user_of
from .protocol import Region, RegionBytes, RequestedOutput, bytes_of

_FOLDER = "/dev/shm"  # where POSIX shared memory lies on Linux
_KEY = re.compile(r"/?[A-Za-z0-9_.-]{1,200}")
_MOST = 4096  # regions: each holds a file open

Array = np.ndarray[Any, np.dtype[Any]]


class SharedObject:
    """An open shared memory object; closed when the last region and request that use it are gone."""

    def __init__(self, key: str) -> None:
        self.key = key
        try:
            self._file = os.open(os.path.join(_FOLDER, key.lstrip("/")), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"shared memory {key!r} cannot be opened: {error.strerror}.") from error
        weakref.finalize(self, os.close, self._file)
        self.status = os.fstat(self._file)
        self.identity = self.status.st_dev, self.status.st_ino

    def read(self, target: memoryview, offset: int) -> None:
        """Fill ``target``. Raises InputError where the object has become too short."""
        while len(target):
            count = os.preadv(self._file, [target], offset)
            if not count:
                raise InputError(f"shared memory {self.key!r} has become shorter than what was registered of it.")
            target, offset = target[count:], offset + count

    def write(self, source: memoryview, offset: int) -> None:
        """The reverse. Raises InputError where the object has become too short, or the machine has no memory for it."""
        if os.fstat(self._file).st_size < offset + len(source):
            raise InputError(f"shared memory {self.key!r} has become shorter than what was registered of it.")
        try:
            while len(source):
                count = os.pwrite(self._file, source, offset)
                source, offset = source[count:], offset + count
        except OSError as error:
            raise InputError(f"shared memory {self.key!r} cannot be written: {error.strerror}.") from error


@dataclass(frozen=True)
class SharedTensor:
    """An input that lies in system shared memory, and is read when its batch is put together."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    memory: SharedObject
    offset: int

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def read_into(self, target: Array) -> None:
        """Copy it to an array of its dtype and shape. Raises InputError for memory that has become too short, and
        DtypeError for booleans other than 0 and 1."""
        flat = target.reshape(-1).view(np.uint8)
        self.memory.read(flat.data, self.offset)
        if self.dtype == np.bool_ and flat.size and flat.max() > 1:
            raise DtypeError("a BOOL input in shared memory holds bytes other than 0 and 1.")


@dataclass(frozen=True)
class SharedBytes:
    """A part of a system shared memory region."""

    memory: SharedObject
    offset: int
    nbytes: int

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> SharedTensor:
        return SharedTensor(dtype, shape, self.memory, self.offset)

    def write(self, array: Any) -> None:
        self.memory.write(bytes_of(array), self.offset)


@dataclass(frozen=True)
class SystemRegion:
    """A registered region: ``nbytes`` from ``offset`` of the shared memory object ``key``.

    Attributes:
        found: device and inode of the object that had this name when it was registered.
    """

    name: str
    key: str
    offset: int
    nbytes: int
    found: tuple[int, int]

    def open(self) -> SharedObject:
        """Raises InputError where it cannot be opened, or the name is another object's by now."""
        memory = SharedObject(self.key)
        if memory.identity != self.found:
            raise InputError(f"shared memory {self.key!r} is another object now than when it was registered.")
        return memory


@dataclass(frozen=True)
class CudaRegion:
    """A registered region of ``nbytes`` on the GPU ``device_id``, exported as ``handle``."""

    name: str
    device_id: int
    nbytes: int
    handle: bytes

    def open(self) -> Any:
        """A :class:`~trtrun.cuda.ipc.ImportedMemory`. Raises InputError where it cannot be opened."""
        from ..cuda.ipc import ImportedMemory

        try:
            return ImportedMemory(self.handle, self.device_id, self.nbytes)
        except DeviceError as error:
            raise InputError(f"CUDA shared memory {self.name!r:.100} cannot be opened: {error.message}") from error


Kind = TypeVar("Kind", SystemRegion, CudaRegion)


class Registrations:
    """The regions that clients have registered, by name."""

    def __init__(self) -> None:
        self._regions: dict[str, SystemRegion | CudaRegion] = {}

    def add(self, region: SystemRegion | CudaRegion) -> None:
        """Raises InputError where the name is taken."""
        if self._regions.setdefault(region.name, region) is not region:
            raise _taken(region.name)

    def get(self, name: str) -> SystemRegion | CudaRegion | None:
        return self._regions.get(name)

    def remove(self, name: str) -> None:
        self._regions.pop(name, None)

    def all(self) -> list[SystemRegion | CudaRegion]:
        return list(self._regions.values())


class SharedRegistrations(Registrations):
    """Those of several processes, in a folder.

    Each is a symbolic link whose target is its JSON: a link is made, read and removed in one system call, is never
    there by half, and is made only where there is none of its name.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def add(self, region: SystemRegion | CudaRegion) -> None:
        text = json.dumps({"kind": type(region).__name__, **asdict(region)}, default=bytes.hex)
        try:
            os.symlink(text, self._path(region.name))
        except FileExistsError:
            raise _taken(region.name) from None
        except OSError as error:  # a name that is too long, or no room
            raise InputError(f"{region.name!r:.100} cannot be registered: {error.strerror}.") from error

    def get(self, name: str) -> SystemRegion | CudaRegion | None:
        return self._read(self._path(name))

    def remove(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)

    def all(self) -> list[SystemRegion | CudaRegion]:
        found = (self._read(path) for path in self._folder.iterdir())
        return [region for region in found if region is not None]

    def _path(self, name: str) -> Path:
        return self._folder / hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()

    @staticmethod
    def _read(path: Path) -> SystemRegion | CudaRegion | None:
        try:
            about = json.loads(os.readlink(path))
        except FileNotFoundError:
            return None
        if about.pop("kind") == SystemRegion.__name__:
            return SystemRegion(**{**about, "found": tuple(about["found"])})
        return CudaRegion(**{**about, "handle": bytes.fromhex(about["handle"])})


def _taken(name: str) -> InputError:
    return InputError(f"a shared memory region {name!r:.100} is registered already. Unregister it first.")


class SharedMemory:
    """The registered regions, of both kinds together, as this process has opened them. Safe from any thread.

    What another process has registered is opened when it is used first. When it has been unregistered there,
    :meth:`forget` must be called here.

    Args:
        prefix: clients may register every object whose name begins so, wherever they are and whoever owns it. None:
            a client on this machine may register what belongs to its own user, and nobody else anything.
        registrations: those of other processes with this one's.
    """

    def __init__(self, prefix: str | None = None, registrations: Registrations | None = None) -> None:
        self._prefix = prefix
        self._registrations = registrations or Registrations()
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[SystemRegion | CudaRegion, Any]] = {}

    def register(self, name: str, key: str, nbytes: int, offset: int = 0, *, client: Peer | None = None) -> None:
        """Open a client's shared memory object.

        Raises InputError where it cannot be opened or is not the client's, or the name is taken.
        """
        if not _KEY.fullmatch(key) or key.strip("/") in (".", ".."):
            raise InputError(f"{key!r:.100} is no name of a shared memory object.")
        if self._prefix is not None and not key.lstrip("/").startswith(self._prefix):
            raise InputError(f"shared memory {key!r} may not be used here: names must begin with {self._prefix!r}.")
        with self._lock:
            self._check_free(name)
            memory = SharedObject(key)
            if self._prefix is None and (user := user_of(client)) != memory.status.st_uid:
                who = "a client on another machine" if user is None else f"user {user}"
                raise InputError(
                    f"shared memory {key!r} does not belong to {who}, who asks for it. What belongs to others is "
                    "registered only by a server that allows its name: trtrun serve --shared-memory PREFIX."
                )
            size = memory.status.st_size
            if not stat.S_ISREG(memory.status.st_mode) or nbytes < 1 or offset < 0 or offset + nbytes > size:
                raise InputError(f"shared memory {key!r} has {size} bytes, not {nbytes} from {offset} on.")
            self._add(SystemRegion(name, key, offset, nbytes, memory.identity), memory)

    def register_cuda(self, name: str, handle: bytes, device_id: int, nbytes: int) -> None:
        """Open a client's device memory by the 64 bytes of its ``cudaIpcMemHandle_t``.

        Raises InputError where it cannot be, or the name is taken.
        """
        with self._lock:
            self._check_free(name)
            region = CudaRegion(name, device_id, nbytes, handle)
            self._add(region, region.open())

    def _check_free(self, name: str) -> None:
        if self._registrations.get(name) is not None:
            raise _taken(name)
        if len(self._registrations.all()) >= _MOST:
            raise InputError(f"{_MOST} shared memory regions are registered, and no more are taken. Unregister some.")

    def _add(self, region: SystemRegion | CudaRegion, memory: Any) -> None:
        self._registrations.add(region)
        self._opened[region.name] = region, memory

    def unregister(self, kind: type[Kind], name: str | None = None) -> None:
        """Forget a region, or all of this kind. One that is in use goes when its last request is done."""
        for region in self._named(kind, name):
            self._registrations.remove(region.name)
        self.forget(kind, name)

    def forget(self, kind: type[Kind], name: str | None = None) -> None:
        """Close what this process has opened of a region, or of all of this kind."""
        with self._lock:
            opened = [region for region, _ in self._opened.values()]
            for region in [r for r in opened if isinstance(r, kind) and name in (None, r.name)]:
                del self._opened[region.name]

    def status(self, kind: type[Kind], name: str | None = None) -> list[Kind]:
        """What is registered of this kind. Raises InputError for a name that is not."""
        found = self._named(kind, name)
        if name is not None and not found:
            raise InputError(f"there is no shared memory region {name!r:.100}.")
        return found

    def _named(self, kind: type[Kind], name: str | None) -> list[Kind]:
        found = self._registrations.all() if name is None else [self._registrations.get(name)]
        return [region for region in found if isinstance(region, kind)]

    def on_gpu(self, outputs: tuple[RequestedOutput, ...] | None) -> bool:
        """Whether a request wants an output in CUDA shared memory."""
        names = {output.region.name for output in outputs or () if output.region is not None}
        return any(isinstance(self.open(name)[0], CudaRegion) for name in names)

    def open(self, name: str) -> tuple[SystemRegion | CudaRegion | None, Any]:
        """A region and its memory, opened now where another process has registered it; None for a name that is not.

        Raises InputError where it cannot be opened.
        """
        with self._lock:
            found = self._opened.get(name)
            if found is None:
                region = self._registrations.get(name)
                if region is None:
                    return None, None
                found = self._opened[name] = region, region.open()
            return found

    def __call__(self, region: Region) -> RegionBytes:
        """A part of a registered region. Raises InputError where it is not all inside."""
        registered, memory = self.open(region.name)
        if registered is None:
            raise InputError(f"there is no shared memory region {region.name!r:.100}: register it first.")
        if region.offset + region.nbytes > registered.nbytes:
            raise InputError(
                f"shared memory region {region.name!r} has {registered.nbytes} bytes, not {region.nbytes} from "
                f"{region.offset} on."
            )
        if isinstance(registered, CudaRegion):
            part: RegionBytes = memory.part(region.offset, region.nbytes)
            return part
        return SharedBytes(memory, registered.offset + region.offset, region.nbytes)
