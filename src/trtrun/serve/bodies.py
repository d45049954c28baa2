"""The bodies of requests that the server holds: bounded one by one, and all together."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import AsyncIterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Any

from ..errors import InputError, MediaTypeError, RequestStalledError, RequestTooLargeError, ServerBusyError
from .aside import aside

_CODINGS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
_LARGE = 1 << 16  # bytes whose compression is not worth a thread's while
_STEP = 1 << 20
_PAUSE = 0.0002  # seconds without a request that clients who wait for their answers leave, and many together do not
_IDLE = 20.0  # seconds without a byte, after which a client does not hold its part of the memory any longer


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
        self._count = 0
        self._knocked = self._ended = 0.0  # when one came last, and when one was last done with
        self._quiet = False  # before the newest came
        self._lone = False

    def hold(self) -> Body:
        """A body that has no bytes yet: ``with bodies.hold() as body``."""
        return Body(self)

    def take(self, count: int) -> None:
        """Count so many bytes. Raises ServerBusyError where there is no room for them now."""
        if self.held + count > self.most_together:
            self.refused += 1
            raise ServerBusyError(
                f"the requests that are here hold {self.held} bytes, and {self.most_together} are taken together. Come "
                "back later."
            )
        self.held += count

    def knock(self) -> None:
        """A request has come, whose body has not: busy clients' stand in line then, though only one is ever held."""
        now = time.perf_counter()
        self._quiet = not self._count and now - max(self._knocked, self._ended) > _PAUSE
        self._knocked = now

    @property
    def lone(self) -> bool:
        """Whether the newest that is held came after a pause, and is the only one."""
        return self._lone


@dataclass
class Body:
    """One body; its bytes count until the ``with`` block ends."""

    _bodies: Bodies
    size: int = 0
    data: bytearray = field(default_factory=bytearray)

    def __enter__(self) -> Body:
        bodies = self._bodies
        bodies._lone, bodies._quiet = bodies._quiet and not bodies._count, False
        bodies._count += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies._count -= 1
        self._bodies._ended = time.perf_counter()
        self._bodies.held -= self.size
        self.size = 0

    def grow(self, count: int) -> None:
        """Count so many bytes more. Raises RequestTooLargeError, and ServerBusyError where there is no room now."""
        if self.size + count > self._bodies.most:
            raise RequestTooLargeError(f"the body is larger than {self._bodies.most} bytes.")
        self._bodies.take(count)
        self.size += count

    @contextmanager
    def reserve(self, count: int) -> Iterator[None]:
        """Count so many bytes more for as long as the block runs: what reading the body takes beside it.

        Raises RequestTooLargeError where all bodies together may not take that, and ServerBusyError where there is no
        room now.
        """
        bodies = self._bodies
        if self.size + count > bodies.most_together:
            raise RequestTooLargeError(
                f"reading JSON of this size takes {count} bytes of memory, and {bodies.most_together} are for all "
                "requests together. Send the tensors as binary data."
            )
        bodies.take(count)
        try:
            yield
        finally:
            bodies.held -= count

    async def read(self, chunks: AsyncIterable[bytes], coding: str = "") -> bytearray:
        """Read it, and unpack what its ``Content-Encoding`` says.

        Raises MediaTypeError for others, InputError for what cannot be unpacked, RequestStalledError when nothing
        comes for a while, and what :meth:`grow` does.
        """
        coding = coding.strip().lower()
        if coding not in ("", "identity", *_CODINGS):
            raise MediaTypeError(f"a body in the coding {coding!r:.60} is not taken; send gzip, deflate or neither.")
        with _Patience() as patience:
            if coding in _CODINGS:
                await self._unpack(chunks, zlib.decompressobj(_CODINGS[coding]), patience)
                return self.data
            async for chunk in chunks:
                patience.renew()
                self.grow(len(chunk))
                self.data += chunk
        return self.data

    async def _unpack(self, chunks: AsyncIterable[bytes], unpacker: Any, patience: _Patience) -> None:
        came = 0
        async for chunk in chunks:
            patience.renew()
            came += len(chunk)
            if came > self._bodies.most:  # what unpacks to nothing, too, ends some time
                raise RequestTooLargeError(f"the body is larger than {self._bodies.most} bytes.")
            rest, full = chunk, True
            while rest or full:  # in steps: a small body may unpack to any size
                step = partial(unpacker.decompress, rest, _STEP)
                try:
                    piece: bytes = step() if len(rest) < _LARGE else await aside(step)
                except zlib.error as error:
                    raise InputError(f"the body cannot be unpacked: {error}.") from error
                self.grow(len(piece))
                self.data += piece
                if unpacker.unused_data:  # zlib would keep all that follows
                    raise InputError("the body cannot be unpacked: more follows its end.")
                rest, full = unpacker.unconsumed_tail, len(piece) == _STEP
        if not unpacker.eof:
            raise InputError("the body cannot be unpacked: it ends too early.")


class _Patience:
    """Ends the task that reads a body when nothing came for a while: cheaper than a timeout of every chunk."""

    def __enter__(self) -> _Patience:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._ended = False
        self.renew()
        self._timer = self._loop.call_later(_IDLE, self._look)
        return self

    def renew(self) -> None:
        self._last = self._loop.time()

    def _look(self) -> None:
        left = self._last + _IDLE - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._task is not None:
            self._ended = True
            self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        if self._ended and kind is asyncio.CancelledError:
            uncancel = getattr(self._task, "uncancel", None)  # from Python 3.11 on
            if uncancel is not None:
                uncancel()
            raise RequestStalledError(f"nothing of the body has come for {_IDLE:.0f} s.") from None


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
