"""What the server says: a line for every request, with its id."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, TextIO

_LOG = logging.getLogger("trtrun.serve")
_PIPE = 4096  # bytes that a pipe takes whole
_WAITING = 10_000  # records that have not been written
# A client may write some of a line: it must not end it, nor tell a terminal anything.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_STRANGE = re.compile(r"[^\x21-\x7e]")
_GATHER = 0.05  # seconds in which others join the first: waking a thread for each costs more than the line


def identity_of(given: str) -> str:
    """A request's id: what the client calls it, of what can be printed, or a new one."""
    return (given and _STRANGE.sub("", given[:100])) or os.urandom(16).hex()


def log_request(
    what: str,
    status: int | str,
    start: float,
    identity: str,
    problem: str = "",
    level: int = logging.INFO,
    **about: Any,
) -> None:
    """The line of one request.

    Args:
        what: method and path.
        status: of HTTP or gRPC; a server's own fault is a warning.
        start: when it began, of ``time.perf_counter``.
        identity: the id that the client gave, or was given.
        problem: why it failed.
        level: of the line, unless the fault is the server's.
        about: more for the log in JSON.
    """
    bad = status >= 500 if isinstance(status, int) else status in ("INTERNAL", "UNAVAILABLE", "UNKNOWN")
    level = logging.WARNING if bad else level
    if not _LOG.isEnabledFor(level):
        return
    milliseconds = round(1e3 * (time.perf_counter() - start), 3)
    values = (what, status, milliseconds, f" {problem}" if problem else "")
    # Made by hand: Logger.log looks for its caller first, which takes longer than all the rest.
    record = logging.LogRecord(_LOG.name, level, "", 0, "%s %s %.1f ms%s", values, None)
    record.__dict__.update(request_id=identity, status=status, milliseconds=milliseconds, **about)
    _LOG.handle(record)


def log_soon(
    what: str,
    status: int | str,
    start: float,
    identity: str,
    problem: str = "",
    level: int = logging.INFO,
    *,
    refused: bool = False,
) -> None:
    """:func:`log_request` when the event loop has done what it is doing: no answer waits for its line.

    Of requests that are ``refused`` because there is too much to do, one a second has its line and the others are
    counted: there may be thousands, and lines about them would be part of what is too much.
    """
    loop = asyncio.get_running_loop()
    if refused and not _refusals.has_line(loop):
        return
    loop.call_soon(log_request, what, status, start, identity, problem, level)


class _Refusals:
    """Requests that were turned away and have no line of their own."""

    def __init__(self) -> None:
        self._since = -1.0  # when one had a line
        self._more = 0

    def has_line(self, loop: asyncio.AbstractEventLoop) -> bool:
        now = time.monotonic()
        if now - self._since < 1.0:
            self._more += 1
            return False
        self._since = now
        loop.call_later(1.0, self._say)
        return True

    def _say(self) -> None:
        more, self._more = self._more, 0
        if more:
            _LOG.info("%d more requests were turned away within a second", more)


_refusals = _Refusals()


def log_bug(identity: str) -> None:
    """The traceback of an exception that should not have been."""
    _LOG.exception("request failed", extra={"request_id": identity})


def _time_of(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


class TextFormatter(logging.Formatter):
    """Log records as lines: time, level, message, and the request's id behind it. Rich takes half a millisecond."""

    def format(self, record: logging.LogRecord) -> str:
        identity = getattr(record, "request_id", "")
        message = _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], record.getMessage())
        if hasattr(record, "worker"):
            message = f"worker {record.worker}: {message}"
        line = f"{_time_of(record)} {record.levelname.lower():7} {message}"
        line += f" [{identity}]" if identity else ""
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """Log records as one JSON object a line, with the request's id and what else a record carries."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in self._KNOWN}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _gathered(lines: list[str]) -> Iterator[str]:
    """Lines joined to pieces of the size that a pipe takes whole: those of several workers must not mix."""
    piece = ""
    for line in lines:
        if piece and len(piece) + len(line) > _PIPE:
            yield piece
            piece = ""
        piece += line
    yield piece


class Writer(logging.Handler):
    """Formats and writes records in a thread of its own, some at a time, so that no request waits for its line.

    What comes faster than it can be written is dropped, and how much is said.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._queue: queue.SimpleQueue[logging.LogRecord | None] = queue.SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._write, name="trtrun-log", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        if self._queue.qsize() < _WAITING:
            self._queue.put(record)
        else:
            self._dropped += 1

    def _write(self) -> None:
        record = self._queue.get()
        while record is not None:
            self._closing.wait(_GATHER)
            lines = []
            while record is not None:
                try:
                    lines.append(f"{self.format(record)}\n")
                except Exception as error:  # another library's line must not end the log
                    lines.append(f"a line of {record.pathname}:{record.lineno} cannot be written: {error!r}\n")
                if self._queue.empty() or len(lines) == 1000:
                    break
                record = self._queue.get()
            if self._dropped:
                lost, self._dropped = self._dropped, 0
                text = f"{lost} lines of the log were dropped: they came faster than they could be written"
                lines.append(self.format(logging.LogRecord(_LOG.name, logging.WARNING, "", 0, text, (), None)) + "\n")
            with suppress(OSError, ValueError):  # nobody reads any more
                for text in _gathered(lines):
                    self._stream.write(text)
                    self._stream.flush()
            if record is not None:
                record = self._queue.get()

    def close(self) -> None:
        self._closing.set()
        self._queue.put(None)
        self._thread.join(2)
        super().close()


def log_to_stderr(*, as_json: bool, worker: int | None = None) -> None:
    """Log every request to stderr, and what else trtrun says from warnings on; each line with the number of the
    worker, where this process is one of several."""
    handler = Writer(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    # A message that has been printed with its error is not printed again.
    for old in logging.getLogger().handlers:
        for one in old.filters:
            handler.addFilter(one)
    if worker is not None:

        def mark(record: logging.LogRecord) -> bool:
            record.worker = worker
            return True

        handler.addFilter(mark)
    logging.getLogger().handlers[:] = [handler]
    # Nothing here prints these, and finding them out is half of what a record takes.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    _LOG.setLevel(logging.INFO)
