"""What is held of requests' bodies is bounded, packed ones too."""

from __future__ import annotations

import asyncio
import gzip
import time
import zlib
from collections.abc import AsyncIterator

import pytest

import trtrun.serve.bodies
from trtrun.errors import InputError, MediaTypeError, RequestStalledError, RequestTooLargeError, ServerBusyError
from trtrun.serve.bodies import Bodies, packed


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def read(bodies: Bodies, data: bytes, coding: str = "") -> bytes:
    async def run() -> bytes:
        with bodies.hold() as body:
            result = bytes(await body.read(chunks(data), coding))
            assert bodies.held == len(result)
        return result

    return asyncio.run(run())


@pytest.mark.parametrize("coding", ["", "identity", "gzip", "deflate", "GZip "])
def test_codings(coding: str) -> None:
    data = bytes(range(256)) * 20_000
    pack = {"gzip": gzip.compress, "deflate": zlib.compress}.get(coding.strip().lower(), bytes)
    bodies = Bodies(1 << 24, 1 << 24)
    assert read(bodies, pack(data), coding) == data
    assert bodies.held == 0


def test_what_is_refused() -> None:
    bodies = Bodies(1 << 20, 3 << 20)
    for data in (bytes((1 << 20) + 1), bytes(1 << 26)):
        with pytest.raises(RequestTooLargeError):
            read(bodies, data)
        with pytest.raises(RequestTooLargeError):
            read(bodies, gzip.compress(data), "gzip")
    whole = gzip.compress(b"some text")
    for damaged in (whole[:-3], whole + b"more", b"none at all"):
        with pytest.raises(InputError, match="unpacked"):
            read(bodies, damaged, "gzip")
    with pytest.raises(MediaTypeError, match="br"):
        read(bodies, b"", "br")
    assert bodies.held == 0


@pytest.mark.parametrize("begin", [gzip.compress(b"some text"), b"\x1f\x8b\x08\x08" + bytes([1] * 6)])
def test_what_unpacks_to_nothing_is_not_taken_for_ever(begin: bytes) -> None:
    bodies, came = Bodies(1 << 20, 1 << 20), 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal came
        yield begin  # a whole body, or the name of a file that does not end
        while came < 1 << 23:
            came += 1 << 14
            yield b"x" * (1 << 14)

    async def run() -> None:
        with bodies.hold() as body:
            await body.read(endless(), "gzip")

    with pytest.raises(InputError, match=r"follows its end|larger"):
        asyncio.run(run())
    assert came <= 2 << 20


def test_what_reading_takes_beside_a_body_counts_while_it_is_read() -> None:
    bodies = Bodies(1 << 10, 1 << 12)
    with bodies.hold() as body:
        body.grow(1 << 10)
        with pytest.raises(RequestTooLargeError, match="binary data"), body.reserve(1 << 12):
            pass
        with body.reserve(1 << 11):
            assert bodies.held == 3 << 10
            with bodies.hold() as other, pytest.raises(ServerBusyError), other.reserve(1 << 11):
                pass
        assert bodies.held == 1 << 10
    assert bodies.held == 0


def test_who_is_alone_came_after_a_pause_and_before_nobody_else() -> None:
    bodies = Bodies(1 << 10, 1 << 12)

    def ask(knocks: int = 1, pause: float = 0.01) -> bool:
        time.sleep(pause)
        for _ in range(knocks):
            bodies.knock()
        with bodies.hold():
            return bodies.lone

    assert ask()
    assert not ask(pause=0)  # at once behind another
    assert not ask(knocks=2)  # another's body is on its way
    assert not ask(knocks=0)  # the one whose body that was
    assert ask()
    time.sleep(0.01)
    with bodies.hold():
        assert not ask()  # another is held


def test_a_body_that_stops_coming_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trtrun.serve.bodies, "_IDLE", 0.2)
    bodies = Bodies(1 << 20, 1 << 20)

    async def slow(pauses: int, seconds: float) -> AsyncIterator[bytes]:
        yield b"some"
        for _ in range(pauses):
            await asyncio.sleep(seconds)
            yield b"more"

    async def run(pauses: int, seconds: float) -> int:
        with bodies.hold() as body:
            return len(await body.read(slow(pauses, seconds)))

    assert asyncio.run(run(5, 0.1)) == 24  # slowly, and steadily
    with pytest.raises(RequestStalledError):
        asyncio.run(run(1, 5.0))
    assert bodies.held == 0

    async def cancelled() -> None:
        task = asyncio.create_task(run(1, 5.0))
        await asyncio.sleep(0.05)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(cancelled())


def test_all_together() -> None:
    bodies = Bodies(100, 250)
    with bodies.hold() as first, bodies.hold() as second, bodies.hold() as third:
        first.grow(100)
        second.grow(100)
        with pytest.raises(ServerBusyError, match="200 bytes"):
            third.grow(51)
        third.grow(50)
    assert (bodies.held, bodies.refused) == (0, 1)


@pytest.mark.parametrize(
    ("accepted", "coding"),
    [("", ""), ("br", ""), ("gzip", "gzip"), ("br, Deflate, gzip", "deflate"), ("gzip;q=0", "")],
)
def test_answers(accepted: str, coding: str) -> None:
    data = b"0123456789" * 20_000
    result, name = asyncio.run(packed(data, accepted))
    unpack = {"": bytes, "gzip": gzip.decompress, "deflate": zlib.decompress}[coding]
    assert (unpack(result), name) == (data, coding)
