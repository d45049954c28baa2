"""A client's HTTP connection, bounded in time: it must say what it wants, and take its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_PATIENCE = 20.0  # seconds in which the headers of a request must have come, and in which an answer must move on
_TAKEN = 1 << 14  # bytes of an answer that must be taken in that time, or the rest of it
_GONE = "trtrun.gone"  # in the scope of a request: what is called when its client goes before it is answered


class Connection(HttpToolsProtocol):
    """uvicorn's, which by itself waits for ever for headers, and for a client that does not take its answer."""

    _waiting: asyncio.TimerHandle | None = None  # for headers
    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._waiting = self.loop.call_later(_PATIENCE, transport.abort)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope[_GONE] = []  # type: ignore[literal-required]
        if self._waiting is None:
            self._waiting = self.loop.call_later(_PATIENCE, self.transport.abort)

    def on_headers_complete(self) -> None:
        self._stop_waiting()
        if not self.flow.write_paused:  # who asks anew has taken the last answer
            self._stop_sending()
        super().on_headers_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_sending()
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._sending is None:
            self._watch()

    def _watch(self) -> None:
        self._stop_sending()
        left = self.transport.get_write_buffer_size()
        if left:
            self._sending = self.loop.call_later(_PATIENCE, self._look, left)

    def _look(self, before: int) -> None:
        if self.transport.get_write_buffer_size() > max(before - _TAKEN, 0):
            self.transport.abort()
        else:
            self._watch()

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _stop_sending(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._stop_sending()
        if self.cycle is not None and not self.cycle.response_complete:
            for leave in self.cycle.scope.get(_GONE, ()):  # type: ignore[attr-defined]
                leave()
        super().connection_lost(exc)


def on_leaving(scope: Mapping[str, Any], leave: Callable[[], object]) -> None:
    """Have ``leave`` called should the client of this request go before it is answered."""
    gone = scope.get(_GONE)  # there is none without a connection
    if gone is not None:
        gone.append(leave)
