"""The server process: loads, listens, drains."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import TrtrunError
from . import grpc_api
from .http_api import HttpOptions, application
from .repository import Repository
from .shared_memory import SharedMemory

_LOG = logging.getLogger("trtrun.serve")


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, and how to end.

    Attributes:
        grpc_port: of the protocol over gRPC; None for none.
        tls_certificate, tls_key: PEM files; without them the connection is not encrypted.
        drain: seconds that running requests are given after SIGTERM.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    http: HttpOptions = field(default_factory=HttpOptions)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    drain: float = 30.0


def serve(repository: Repository, options: ServerOptions | None = None) -> list[TrtrunError]:
    """Serve a repository until SIGTERM or SIGINT; what could not be loaded at the start is returned.

    It listens at once and is ready when every model has run once; it ends at once where one cannot be loaded. SIGHUP
    loads anew what has changed on disk. On SIGTERM it refuses new connections, answers the requests it has, and ends.
    """
    options = options or ServerOptions()
    memory = SharedMemory()
    config = uvicorn.Config(
        application(repository, options.http, memory),
        host=options.host,
        port=options.port,
        log_config=None,
        access_log=False,  # every request has its line already, with its id
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
        timeout_graceful_shutdown=max(1, round(options.drain)),
        lifespan="off",
    )
    server = uvicorn.Server(config)
    errors: list[TrtrunError] = []

    def load() -> None:
        errors.extend(repository.load_all())
        if errors:
            server.should_exit = True

    async def run() -> None:
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: threading.Thread(target=repository.reload_changed, daemon=True).start()
            )
        over_grpc = None
        if options.grpc_port is not None:
            over_grpc, _ = grpc_api.server(
                repository,
                f"{options.host}:{options.grpc_port}",
                memory,
                max_body=options.http.max_body,
                token=options.http.token,
                tls=_tls(options),
            )
            await over_grpc.start()
        threading.Thread(target=load, name="trtrun-load", daemon=True).start()
        await server.serve()
        if over_grpc is not None:
            await over_grpc.stop(options.drain)

    # When it has drained, uvicorn hands the signal on to whoever handled it before; the end of this function does that.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        repository.close()
        _LOG.info("stopped")
    return errors


def _tls(options: ServerOptions) -> tuple[bytes, bytes] | None:
    if options.tls_key is None or options.tls_certificate is None:
        return None
    return options.tls_key.read_bytes(), options.tls_certificate.read_bytes()


class JsonFormatter(logging.Formatter):
    """Log records as one JSON object a line, with the request's id and what else a record carries."""

    _KNOWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry |= {key: value for key, value in vars(record).items() if key not in self._KNOWN}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)
