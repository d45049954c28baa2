"""The server process: loads, listens, drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import resource
import shutil
import signal
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import uvicorn

from ..errors import InputError, TrtrunError
from . import grpc_api
from .aside import in_thread
from .bodies import Bodies
from .connection import Connection
from .http_api import HttpOptions, application
from .repository import Repository
from .shared_memory import SharedMemory, SharedRegistrations
from .siblings import Siblings
from .workers import Place, supervise

_LOG = logging.getLogger("trtrun.serve")
_FILES = 1 << 16  # open at once, where the system allows it
_KEPT = 75  # seconds that an idle connection stays: longer than load balancers, most with 60 s, keep theirs for reuse
_CLOSING = 10.0  # seconds for what runs on the GPU when nobody waits for it any more


@dataclass(frozen=True)
class ServerOptions:
    """Where to listen, and how to end.

    Attributes:
        grpc_port: of the protocol over gRPC; None for none.
        tls_certificate, tls_key: PEM files; without them the connection is not encrypted.
        drain: seconds that running requests are given after SIGTERM, over HTTP and gRPC together.
        shared_memory: see :class:`~trtrun.serve.shared_memory.SharedMemory`.
        place: of this process among the workers of a server; None where it is the server.

    Raises InputError where both protocols would have one port.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    http: HttpOptions = field(default_factory=HttpOptions)
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    drain: float = 30.0
    shared_memory: str | None = None
    place: Place | None = None

    def __post_init__(self) -> None:
        if self.port and self.port == self.grpc_port:  # 0 is a free one for each
            raise InputError(
                f"HTTP and gRPC cannot both listen on port {self.port}. Choose another --port or --grpc-port, or "
                "--grpc-port -1 for HTTP alone."
            )


class _Server(uvicorn.Server):
    """HTTP, and what ends together with it: none must take requests while another has only the old ones left."""

    beside: Callable[[], Awaitable[Any]] | None = None

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        beside = [] if self.beside is None else [self.beside()]
        await asyncio.gather(super().shutdown(sockets), *beside)


def serve(repository: Repository, options: ServerOptions | None = None) -> list[TrtrunError]:
    """Serve a repository until SIGTERM or SIGINT; what kept it from serving on is returned.

    It listens at once and is ready when every model has run once; it ends at once where one cannot be loaded, and when
    a GPU fails, which only a new process can use again. SIGHUP loads what is new or has changed on disk. On SIGTERM it
    refuses new requests, answers those it has, and ends.

    A worker listens when every model has run once, so that clients get none that is not ready, and ends with its
    supervisor.

    Raises InputError where it cannot listen.
    """
    options = options or ServerOptions()
    raise_limit()
    try:
        return _serve(repository, options)
    finally:
        # What hangs on a GPU must not keep the process.
        closing = threading.Thread(target=repository.close, name="trtrun-close", daemon=True)
        closing.start()
        closing.join(_CLOSING)
        _LOG.info("stopped" if not closing.is_alive() else "stopped, with requests that do not end")


def _serve(repository: Repository, options: ServerOptions) -> list[TrtrunError]:
    place = options.place
    registrations = None if place is None else SharedRegistrations(Path(place.folder, "regions"))
    memory = SharedMemory(options.shared_memory, registrations)
    bodies = Bodies(options.http.max_body, options.http.max_bodies)
    siblings = Siblings(repository, memory, bodies, place)
    sockets = listen(options.host, options.port, among_workers=place is not None)
    loopback = all(ipaddress.ip_address(one.getsockname()[0].partition("%")[0]).is_loopback for one in sockets)
    config = uvicorn.Config(
        application(repository, replace(options.http, loopback=loopback), memory, bodies, siblings),
        log_config=None,
        access_log=False,  # every request has its line already, with its id
        proxy_headers=False,  # who a client is decides about shared memory
        http=Connection,
        ssl_certfile=options.tls_certificate,
        ssl_keyfile=options.tls_key,
        timeout_graceful_shutdown=max(1, round(options.drain)),
        timeout_keep_alive=_KEPT,
        lifespan="off",
    )
    server = _Server(config)
    errors: list[TrtrunError] = []

    def end(failed: list[TrtrunError]) -> None:
        errors.extend(failed)
        if errors:
            server.should_exit = True

    def failed(error: TrtrunError) -> None:
        if not errors:
            _LOG.critical("the GPU has failed, and this process with it: %s", error)
            end([error])

    async def run() -> None:
        if hasattr(signal, "SIGHUP"):
            asyncio.get_running_loop().add_signal_handler(
                signal.SIGHUP, lambda: threading.Thread(target=repository.reload_changed, daemon=True).start()
            )
        async with siblings.listening():
            if place is None:
                threading.Thread(target=lambda: end(repository.load_all()), name="trtrun-load", daemon=True).start()
                await listening()
            elif await load_first(place):
                siblings.begin()
                await listening()

    async def load_first(place: Place) -> bool:
        """Whether all could be loaded before this worker was to end."""
        loop, told = asyncio.get_running_loop(), asyncio.Event()

        def leave() -> None:
            loop.remove_reader(place.channel)
            server.should_exit = True
            told.set()

        def leave_alone() -> None:
            shutil.rmtree(place.folder, ignore_errors=True)  # nobody else does
            leave()

        def leave_at(number: int, frame: Any) -> None:
            loop.call_soon_threadsafe(leave)

        loop.add_reader(place.channel, leave_alone)  # nobody writes there: the supervisor has gone
        signal.signal(signal.SIGTERM, leave_at)
        loading = asyncio.create_task(in_thread(lambda: repository.load_all(siblings.is_unloaded)))
        waiting = asyncio.create_task(told.wait())
        await asyncio.wait({loading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        signal.signal(signal.SIGTERM, leave_before)
        if loading.done():
            end(loading.result())
        return loading.done() and not server.should_exit

    async def listening() -> None:
        scheme = "https" if options.tls_key else "http"
        said = ", ".join(f"{scheme}://{address_of(*one.getsockname()[:2])}" for one in sockets)
        async with contextlib.AsyncExitStack() as undo:
            if options.grpc_port is not None:
                over_grpc, port = grpc_api.server(
                    repository,
                    address_of(options.host, options.grpc_port),
                    memory,
                    bodies,
                    siblings,
                    token=options.http.token,
                    tls=_tls(options),
                )
                undo.push_async_callback(over_grpc.stop, None)  # its destructor comes when the event loop has ended
                await over_grpc.start()
                server.beside = lambda: over_grpc.stop(options.drain)
                said += f", gRPC on {address_of(options.host, port)}"
            _LOG.info("listening on %s", said)
            await server.serve(sockets)

    repository.on_failure = failed

    def leave_before(number: int, frame: Any) -> None:
        server.should_exit = True

    # When it has drained, uvicorn hands the signal on to whoever handled it before; the end of this function does that.
    before = signal.signal(signal.SIGTERM, leave_before)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(run())
    finally:
        signal.signal(signal.SIGTERM, before)
        for one in sockets:
            one.close()
    return errors


def serve_by_workers(count: int, options: ServerOptions) -> bool:
    """Serve by so many processes with this one's command line; False where one did not get ready.

    Raises InputError where they could not listen.
    """
    if not hasattr(socket, "SO_REUSEPORT"):
        raise InputError("several processes cannot listen on one port on this system: --workers 1.")
    sockets = listen(options.host, options.port)
    try:
        over_grpc = [] if options.grpc_port is None else listen(options.host, options.grpc_port)
    except InputError:
        for one in sockets:
            one.close()
        raise
    return supervise(count, sockets, over_grpc, options.drain + _CLOSING + 3)


def raise_limit() -> None:
    """Allow this process as many open files as it may have: each connection and each shared memory region is one, and
    a login shell or systemd grants 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def listen(host: str, port: int, *, among_workers: bool = False) -> list[socket.socket]:
    """Sockets for all addresses of a host, bound to one port; ``among_workers`` to one that other workers have too.

    Raises InputError where there are none.
    """
    found: list[socket.socket] = []
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            one = socket.socket(family, kind, protocol)
            try:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if among_workers:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                if family == socket.AF_INET6:
                    one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                one.bind((address[0], found[0].getsockname()[1] if found else port, *address[2:]))
            except OSError as error:
                one.close()
                if error.errno == errno.EADDRNOTAVAIL and address != addresses[-1][4]:
                    continue  # "localhost" may name an address of IPv6 that the machine does not have
                raise
            found.append(one)
    except OSError as error:
        for one in found:
            one.close()
        raise InputError(
            f"cannot listen on {address_of(host, port)}: {error.strerror or error}. Choose another --host or --port."
        ) from error
    return found


def address_of(host: str, port: int) -> str:
    """Host and port as one text, IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _tls(options: ServerOptions) -> tuple[bytes, bytes] | None:
    if options.tls_key is None or options.tls_certificate is None:
        return None
    return options.tls_key.read_bytes(), options.tls_certificate.read_bytes()
