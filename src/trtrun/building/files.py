"""Files that are there whole or not at all, whether one has changed, and what must not be written over."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ..errors import BuildError, InputError, ModelFileError, TrtrunError


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that readers see all of it or none. Creates its folder. Raises ModelFileError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):  # which names the temporary file, or none
            reason = error.strerror or error
            raise ModelFileError(
                f"{str(path)!r} cannot be written: {reason}. Name another file, or mend that."
            ) from error
        raise


def check_target(
    target: str | os.PathLike[str],
    sources: Iterable[str | os.PathLike[str]] = (),
    error: type[TrtrunError] = BuildError,
) -> None:
    """Raise ``error`` where :func:`write_atomic` would fail, or replace a source, a folder or a device.

    And where it would make a folder: that is for the cache's own; a caller's path may be mistyped, and what takes an
    hour to build shall not lie where nobody looks for it.
    """
    target = os.fspath(target)
    name = repr(target)
    if not os.path.basename(target) or os.path.basename(target) in (os.curdir, os.pardir):
        raise error(f"{name} is not the name of a file to write. Name one.")
    if os.path.isdir(target):
        raise error(f"{name} is a folder, and a file is to be written. Name a file in it.")
    if os.path.lexists(target) and os.path.exists(target):
        if not os.path.isfile(target):
            raise error(f"{name} is a device or a pipe, which would be replaced by a file. Name another file.")
        for source in sources:
            if os.path.exists(source) and os.path.samefile(source, target):
                raise error(f"{name} would be written over what it is made from. Name another file.")
    folder = os.path.dirname(os.path.abspath(target))
    if not os.path.lexists(folder):
        raise error(f"{name} cannot be written: there is no folder {folder!r}. Make it first, or name another file.")
    if not os.path.isdir(folder):
        raise error(f"{name} cannot be written: {folder!r} is not a folder. Name another file.")
    if not _is_writable(folder):
        raise error(f"{name} cannot be written: {folder!r} may not be written to. Name another file.")


def check_folder(folder: str | os.PathLike[str], error: type[TrtrunError] = InputError) -> None:
    """Raise ``error`` where no files can be written to a folder, which is made when the first one is."""
    name = repr(os.fspath(folder))
    nearest = os.path.abspath(folder)
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise error(f"nothing can be written to {name}: {nearest!r} is not a folder. Name another folder.")
    if not _is_writable(nearest):
        raise error(f"nothing can be written to {name}: {nearest!r} may not be written to. Name another folder.")


def _is_writable(folder: str) -> bool:
    """Tried and not asked: permissions say nothing about /proc, quotas and network file systems."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def file_state(file: str | os.PathLike[str] | int) -> list[int]:
    """Device, inode, size, and the times of the last change: other numbers mean that a file may hold something else.

    The last number, ``st_ctime_ns``, changes with every write and cannot be set back, but for what :func:`has_settled`
    is about. A file system that never notes the times of writes through shared memory maps (tmpfs) is not seen through.
    """
    stat = os.stat(file)
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


TICK = 2 * 10**9  # nanoseconds: the coarsest clock of a file system in use, FAT's
# Linux writes dirty pages back within 35 s unless it was told otherwise (vm.dirty_expire_centisecs).
SETTLED = 60 * 10**9


def has_settled(state: list[int], now: int, *, written_back: bool = False) -> bool:
    """True where every change after ``now``, in nanoseconds since 1970, will show in the state.

    Two changes within one tick of the file system's clock leave the same times. And a write through a shared memory map
    changes them only when it makes a page dirty, not again before that page was written back: by the kernel, after a
    while, or by ``os.fsync`` from any process, which ``written_back`` says was called after ``now``.
    """
    return max(state[3:]) <= now - (TICK if written_back else SETTLED)
