"""The bodies of requests that the server holds: bounded one by one, and all together."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ..errors import InputError, MediaTypeError, RequestTooLargeError, ServerBusyError
from .aside import aside

_CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LARGE = 1 << 16  # bytes whose compression is not worth a thread's while
_STEP = 1 << 20


class Bodies:
    """Counts the bytes of all bodies together. Used from the event loop only.

    Args:
        most: bytes of one body, unpacked.
        most_together: bytes of all that are held.
    """

    def __init__(self, most: int, most_together: int) -> None:
        self.most = most
        self.most_together = max(most, most_together)
        self.held = 0
        self.refused = 0

    def hold(self) -> Body:
        """A body that has no bytes yet: ``with bodies.hold() as body``."""
        return Body(self)


@dataclass
class Body:
    """One body; its bytes count until the ``with`` block ends."""

    _bodies: Bodies
    size: int = 0
    data: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> Body:
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.held -= self.size
        self.size = 0

    def grow(self, count: int) -> None:
        """Count so many bytes more. Raises RequestTooLargeError, and ServerBusyError where there is no room now."""
        if self.size + count > self._bodies.most:
            raise RequestTooLargeError(f"the body is larger than {self._bodies.most} bytes.")
        if self._bodies.held + count > self._bodies.most_together:
            self._bodies.refused += 1
            raise ServerBusyError(
                f"the requests that are here hold {self._bodies.held} bytes, and {self._bodies.most_together} are "
                "taken together. Come back later."
            )
        self.size += count
        self._bodies.held += count

    async def read(self, chunks: AsyncIterable[bytes], coding: str = "") -> bytearray:
        """Read it, and unpack what its ``Content-Encoding`` says.

        Raises MediaTypeError for others, InputError for what cannot be unpacked, and what :meth:`grow` does.
        """
        coding = coding.strip().lower()
        if coding not in ("", "identity", *_CODINGS):
            raise MediaTypeError(f"a body in the coding {coding!r:.60} is not taken; send gzip, deflate or neither.")
        if coding in _CODINGS:
            await self._unpack(chunks, zlib.decompressobj(_CODINGS[coding]))
            return self.data
        async for chunk in chunks:
            self.grow(len(chunk))
            self.data += chunk
        return self.data

    async def _unpack(self, chunks: AsyncIterable[bytes], unpacker: Any) -> None:
        async for chunk in chunks:
            rest, full = chunk, True
            while rest or full:  # in steps: a small body may unpack to any size
                step = partial(unpacker.decompress, rest, _STEP)
                try:
                    piece: bytes = step() if len(rest) < _LARGE else await aside(step)
                except zlib.error as error:
                    raise InputError(f"the body cannot be unpacked: {error}.") from error
                self.grow(len(piece))
                self.data += piece
                rest, full = unpacker.unconsumed_tail, len(piece) == _STEP
        if not unpacker.eof or unpacker.unused_data:
            raise InputError("the body cannot be unpacked: it ends too early, or more follows its end.")


async def packed(data: bytes, accepted: str) -> tuple[bytes, str]:
    """A response in the first of gzip and deflate that ``Accept-Encoding`` names, and its name; empty for neither."""
    names = [part.strip().lower() for part in accepted.split(",")]  # with q= something else is preferred, or nothing
    coding = next((name for name in names if name in _CODINGS), "")
    if not coding:
        return data, ""

    def pack() -> bytes:
        packer = zlib.compressobj(1, wbits=_CODINGS[coding])
        return packer.compress(data) + packer.flush()

    return (pack() if len(data) < _LARGE else await aside(pack)), coding
