"""Files that are there whole or not at all, and whether one has changed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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


def file_state(file: str | os.PathLike[str] | int) -> list[int]:
    """Inode, size, and the times of the last change: other numbers mean that a file may hold something else.

    The last number, ``st_ctime_ns``, changes with every write and cannot be set back. Only writes within one tick of
    the file system's clock leave it as it was, so see :data:`TICK`.
    """
    stat = os.stat(file)
    return [stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


TICK = 2 * 10**9  # nanoseconds: the coarsest clock of a file system in use, FAT's
