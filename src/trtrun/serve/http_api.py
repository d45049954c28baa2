"""The protocol over HTTP: health, metadata, inference, repository, shared memory, statistics, metrics.

Plain Starlette: the bodies are tensors, of which FastAPI's models and validation would make copies.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import logging
import re
import shlex
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import __version__
from ..errors import (
    ClosedError,
    DeviceError,
    InputError,
    MediaTypeError,
    MissingPackageError,
    ModelNotFoundError,
    RequestStalledError,
    RequestTimeoutError,
    RequestTooLargeError,
    ServerBusyError,
    TrtrunError,
)
from . import json_text, protocol
from .aside import aside, result_of
from .bodies import Bodies, Body, packed
from .connection import on_leaving
from .logs import identity_of, log_bug, log_request, log_soon
from .pictures import Pictures, form_of
from .repository import EXTENSIONS, MODEL_ERRORS, Model, Repository, configuration, describe
from .shared_memory import CudaRegion, SharedMemory, SystemRegion
from .siblings import Siblings

_PATIENCE = (64 << 20, 5.0)  # bytes and seconds of a body that nobody wants, read all the same
# The page loads nothing from anywhere else, and talks to this server only.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src blob: data:; connect-src 'self'"
)
_OFTEN = logging.DEBUG  # of what the page asks every second, and Prometheus every few
_FORM = "application/x-www-form-urlencoded"  # what curl --data-binary says of any file
_LARGE = 1 << 18  # bytes of tensors, or of JSON, that are read or written beside the event loop
HEADER_LENGTH = "inference-header-content-length"

Handler = Callable[[Request], Awaitable[Response]]
T = TypeVar("T")


@dataclass(frozen=True)
class HttpOptions:
    """Limits and access.

    Attributes:
        max_body: bytes of a request at most.
        max_bodies: bytes at most of all requests that are under way.
        max_pixels: of a picture at most; each takes three bytes once it is decoded.
        token: a secret that requests must carry as ``Authorization: Bearer TOKEN``; None for none. Health is open.
        loopback: only this machine reaches the server. Without a token, it is used by the names of this machine only
            then: a page of any site may make its own name stand for this machine's address.
    """

    max_body: int = 256 << 20
    max_bodies: int = 2 << 30
    max_pixels: int = 1 << 26
    token: str | None = None
    loopback: bool = False


def status_of(error: BaseException) -> int:
    """The HTTP status that says what kind of error it was."""
    if isinstance(error, ModelNotFoundError):
        return 404
    if isinstance(error, (ServerBusyError, ClosedError, DeviceError)):  # another server may do it
        return 503
    if isinstance(error, RequestTimeoutError):
        return 504
    if isinstance(error, RequestTooLargeError):
        return 413
    if isinstance(error, RequestStalledError):
        return 408
    if isinstance(error, MediaTypeError):
        return 415
    if isinstance(error, MissingPackageError):
        return 501
    return 400 if isinstance(error, (InputError, *MODEL_ERRORS)) else 500


def application(
    repository: Repository,
    options: HttpOptions | None = None,
    memory: SharedMemory | None = None,
    bodies: Bodies | None = None,
    siblings: Siblings | None = None,
) -> Any:
    """The ASGI application over a repository. The rest are those of gRPC, where it is served too."""
    options, memory = options or HttpOptions(), memory or SharedMemory()
    bodies = bodies or Bodies(options.max_body, options.max_bodies)
    api = _Api(repository, options, memory, bodies, siblings or Siblings(repository, memory, bodies))
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"

    def route(path: str, method: str, handler: Handler, level: int = logging.INFO) -> Route:
        return Route(path, api.guarded(handler, level), methods=[method])

    routes = [
        Route("/v2/health/live", api.live, methods=["GET"]),
        Route("/v2/health/ready", api.ready, methods=["GET"]),
        Route("/", _page("page.html"), methods=["GET"]),  # hold no secret, and ask for the token themselves
        Route("/docs", _page("docs.html"), methods=["GET"]),
        route("/openapi.json", "GET", api.openapi),
        route("/metrics", "GET", api.metrics, _OFTEN),
        route("/v2", "GET", api.server),
        route("/v2/models/stats", "GET", api.all_stats, _OFTEN),
        *(
            route(prefix + path, method, handler)
            for prefix in (model, version)
            for path, method, handler in (
                ("", "GET", api.metadata),
                ("/ready", "GET", api.model_ready),
                ("/config", "GET", api.config),
                ("/stats", "GET", api.stats),
                ("/infer", "POST", api.infer),
                ("/predict", "POST", api.predict),
            )
        ),
        route("/v2/repository/index", "POST", api.index, _OFTEN),
        route("/v2/repository/models/{model}/load", "POST", api.load),
        route("/v2/repository/models/{model}/unload", "POST", api.unload),
        *(
            route(f"/v2/{kind}sharedmemory{path}", method, handler)
            for kind, status, register, unregister in (
                ("system", api.shm_status, api.shm_register, api.shm_unregister),
                ("cuda", api.cuda_status, api.cuda_register, api.cuda_unregister),
            )
            for path, method, handler in (
                ("/status", "GET", status),
                ("/region/{region}/status", "GET", status),
                ("/region/{region}/register", "POST", register),
                ("/region/{region}/unregister", "POST", unregister),
                ("/unregister", "POST", unregister),
            )
        ),
    ]
    handlers = {404: _no_route, 405: _no_route}
    return _Drained(Starlette(routes=routes, exception_handlers=handlers))


class _Api:
    def __init__(
        self,
        repository: Repository,
        options: HttpOptions,
        memory: SharedMemory,
        bodies: Bodies,
        siblings: Siblings,
    ) -> None:
        self._repository = repository
        self._siblings = siblings
        self._bodies = bodies
        self._options = options
        self._memory = memory
        self._pictures = Pictures(options.max_pixels)

    def guarded(self, handler: Handler, level: int) -> Handler:
        """The handler behind the token, its errors as the protocol's, one line in the log, of this level where it
        succeeds."""

        async def guard(request: Request) -> Response:
            start = time.perf_counter()
            identity = identity_of(request.headers.get("x-request-id", ""))
            problem, busy = "", False
            try:
                if self._options.loopback and self._options.token is None and not _is_here(request):
                    response = _error(
                        403,
                        "without a token this server is used as localhost or by its address only, not by "
                        f"{request.headers.get('host', '')!r:.100}: let a proxy send Host: localhost, or set a token",
                    )
                elif _is_foreign(request):
                    response = _error(403, "pages of other sites may not use this server from a browser")
                elif not self._allowed(request):
                    response = _error(401, "a bearer token is needed")
                    response.headers["WWW-Authenticate"] = "Bearer"
                else:
                    response = await handler(request)
            except ClientDisconnect:
                problem, response = "the client has gone", Response(status_code=499)
            except TrtrunError as error:
                problem, busy = str(error), isinstance(error, ServerBusyError)
                response = _error(status_of(error), problem)
                if response.status_code == 503:
                    response.headers["Retry-After"] = "1"
            except Exception as error:  # a bug must not end the connection without a word
                log_bug(identity)
                problem = f"{type(error).__name__}: {error}"
                response = _error(500, problem)
            response.headers["X-Request-Id"] = identity
            status, what = response.status_code, f"{request.method} {request.url.path}"
            log_soon(what, status, start, identity, problem, level if status < 400 else logging.INFO, refused=busy)
            return response

        return guard

    def _allowed(self, request: Request) -> bool:
        if self._options.token is None:
            return True
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), f"Bearer {self._options.token}".encode())

    async def _read(self, body: Body, request: Request) -> bytearray:
        coding = request.headers.get("content-encoding", "")
        length = request.headers.get("content-length", "")
        if not coding and length.isdecimal() and int(length) > self._options.max_body:
            raise RequestTooLargeError(f"the body is larger than {self._options.max_body} bytes.")
        return await body.read(request.stream(), coding)

    async def _json(self, request: Request) -> Mapping[str, Any]:
        with self._bodies.hold() as body:
            data = await self._read(body, request)
            try:
                with body.reserve(json_text.weight(data, len(data))):
                    value = await _beside(len(data), lambda: json_text.loads(data) if data else {})
            except (ValueError, RecursionError) as error:
                raise InputError(f"the request is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError("the request must be a JSON object.")
        return value

    def _model(self, request: Request) -> Model:
        return self._repository.get(request.path_params["model"], request.path_params.get("version", ""))

    # Health and metadata

    async def live(self, request: Request) -> Response:
        failure = self._repository.failure
        if failure is not None:  # only a new process can use the GPU again
            return JSONResponse({"live": False, "error": str(failure)}, 503)
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        ready = self._repository.ready
        return JSONResponse({"ready": ready}, 200 if ready else 503)

    async def server(self, request: Request) -> Response:
        return JSONResponse({"name": "trtrun", "version": __version__, "extensions": EXTENSIONS})

    async def metadata(self, request: Request) -> Response:
        return JSONResponse(describe(self._model(request)))

    async def model_ready(self, request: Request) -> Response:
        failure = self._model(request).batcher.failure
        if failure is not None:
            raise failure
        return JSONResponse({"ready": True})

    async def config(self, request: Request) -> Response:
        return JSONResponse(configuration(self._model(request)))

    async def stats(self, request: Request) -> Response:
        model = self._model(request)
        return JSONResponse({"model_stats": await self._siblings.summaries([model])})

    async def all_stats(self, request: Request) -> Response:
        models = [model for model, _ in self._repository.loaded()]
        return JSONResponse({"model_stats": await self._siblings.summaries(models)})

    async def metrics(self, request: Request) -> Response:
        text, kind = await self._siblings.metrics()
        return Response(text, media_type=kind)

    # Inference

    async def infer(self, request: Request) -> Response:
        self._model(request)  # an unknown one is refused before its body is read
        length = request.headers.get(HEADER_LENGTH)
        header_length = None if length is None else _number(length, HEADER_LENGTH)
        self._bodies.knock()
        with self._bodies.hold() as body:
            data = await self._read(body, request)
            view = memoryview(data)
            text = len(data) if header_length is None else header_length
            with body.reserve(json_text.weight(data, text)):
                parsed = await _beside(text, lambda: protocol.parse(view, header_length, self._memory))
            model, future = self._repository.submit(
                request.path_params["model"],
                request.path_params.get("version", ""),
                parsed.inputs,
                priority=parsed.priority,
                timeout=parsed.timeout,
                outputs="device" if self._memory.on_gpu(parsed.outputs) else "copy",
                here=self._bodies.lone,
            )
            results = await _answer_of(request, future)
        pieces, header = await _beside(
            sum(array.nbytes for array in results.values()),
            lambda: protocol.render(model.name, model.version, parsed, results, self._memory),
        )
        headers = {} if header is None else {HEADER_LENGTH: str(header)}
        content, coding = await packed(b"".join(pieces), request.headers.get("accept-encoding", ""))
        if coding:
            headers["Content-Encoding"] = coding
        kind = "application/json" if header is None else "application/octet-stream"
        return Response(content, media_type=kind, headers=headers)

    async def predict(self, request: Request) -> Response:
        self._model(request)
        query = request.query_params
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("", "application/octet-stream") and not kind.startswith("image/"):
            message = f"the body is {kind!r:.60}; send image/… or application/octet-stream."
            if kind == _FORM:
                message += f" With curl: curl -T picture.jpg -X POST {shlex.quote(str(request.url))}"
            raise MediaTypeError(message)
        timeout, annotated = _number(query.get("timeout", "0"), "timeout"), query.get("annotated", "false")
        if annotated not in ("0", "1", "false", "true"):
            raise InputError(f"annotated must be true or false, got {annotated!r:.50}.")
        form = form_of(request.headers.get("accept", ""), annotated in ("1", "true"))
        priority = _number(query.get("priority", "0"), "priority")
        with self._bodies.hold() as body:
            data = await self._read(body, request)
            while True:
                model = self._model(request)
                try:
                    content, media_type = await self._pictures.predict(
                        model,
                        data,
                        form,
                        partial(_answer_of, request),
                        priority=priority,
                        timeout=timeout / 1e6 if timeout else None,
                    )
                    break
                except ClosedError:
                    if self._model(request) is model:
                        raise
                    # The model was replaced meanwhile; the new one may want its pictures otherwise.
        return Response(content, media_type=media_type)

    # Repository and shared memory

    async def index(self, request: Request) -> Response:
        only_ready = (await self._json(request)).get("ready", False)
        if not isinstance(only_ready, bool):
            raise InputError(f"ready must be true or false, got {only_ready!r:.50}.")
        rows = await aside(self._repository.index)
        return JSONResponse([row for row in rows if not only_ready or row["state"] == "READY"])

    async def load(self, request: Request) -> Response:
        if (await self._json(request)).get("parameters"):
            raise InputError("models are loaded from the repository as they are; parameters are not taken.")
        await self._siblings.load(request.path_params["model"])
        return JSONResponse({})

    async def unload(self, request: Request) -> Response:
        await self._json(request)
        await self._siblings.unload(request.path_params["model"])
        return JSONResponse({})

    async def shm_status(self, request: Request) -> Response:
        found = self._memory.status(SystemRegion, request.path_params.get("region"))
        return JSONResponse([{"name": r.name, "key": r.key, "offset": r.offset, "byte_size": r.nbytes} for r in found])

    async def shm_register(self, request: Request) -> Response:
        wanted = await self._json(request)
        key, nbytes, offset = wanted.get("key"), wanted.get("byte_size"), wanted.get("offset", 0)
        if not isinstance(key, str):
            raise InputError("registering shared memory takes key, byte_size and offset.")
        nbytes, offset = protocol.integer(nbytes, "byte_size"), protocol.integer(offset, "offset")
        region, client = (
            request.path_params["region"],
            None if request.client is None else (request.client.host, request.client.port),
        )
        await self._siblings.register(region, key, nbytes, offset, client)
        return JSONResponse({})

    async def shm_unregister(self, request: Request) -> Response:
        await self._siblings.unregister(SystemRegion, request.path_params.get("region"))
        return JSONResponse({})

    async def cuda_status(self, request: Request) -> Response:
        found = self._memory.status(CudaRegion, request.path_params.get("region"))
        return JSONResponse([{"name": r.name, "device_id": r.device_id, "byte_size": r.nbytes} for r in found])

    async def cuda_register(self, request: Request) -> Response:
        wanted = await self._json(request)
        handle = wanted.get("raw_handle")
        text = handle.get("b64") if isinstance(handle, dict) else None
        if not isinstance(text, str):
            raise InputError('registering CUDA shared memory takes raw_handle {"b64": …}, device_id and byte_size.')
        try:
            raw = base64.b64decode(text, validate=True)
        except ValueError as error:
            raise InputError(f"raw_handle is not base64: {error}.") from error
        device_id = protocol.integer(wanted.get("device_id", 0), "device_id")
        nbytes = protocol.integer(wanted.get("byte_size"), "byte_size")
        region = request.path_params["region"]
        await self._siblings.register_cuda(region, raw, device_id, nbytes)
        return JSONResponse({})

    async def cuda_unregister(self, request: Request) -> Response:
        await self._siblings.unregister(CudaRegion, request.path_params.get("region"))
        return JSONResponse({})

    async def openapi(self, request: Request) -> Response:
        return PlainTextResponse(
            (files(__package__) / "openapi.json").read_text(encoding="utf-8"), media_type="application/json"
        )


def _page(name: str) -> Handler:
    """A page for people."""

    async def show(request: Request) -> Response:
        text = (files(__package__) / name).read_text(encoding="utf-8")
        return HTMLResponse(text, headers={"Content-Security-Policy": _POLICY})

    return show


async def _no_route(request: Request, error: Any) -> Response:
    what = f"{request.method} {request.url.path}"
    missing = f"{protocol.unserved(what)}; /openapi.json lists what there is."
    response = _error(error.status_code, missing if error.status_code == 404 else f"{what}: {error.detail}")
    identity = identity_of(request.headers.get("x-request-id", ""))
    response.headers.update({**(error.headers or {}), "X-Request-Id": identity})
    log_request(what, error.status_code, time.perf_counter(), identity)
    return response


class _Drained:
    """Reads what is left of a request before it is answered, or closes the connection behind the answer.

    A client that is still sending when the connection closes sees it reset, and not the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.routes = app.routes  # type: ignore[attr-defined]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        more = scope["type"] == "http"
        begun = False

        async def received() -> Message:
            nonlocal more, begun
            message = await receive()
            begun = True
            more = message["type"] == "http.request" and message.get("more_body", False)
            return message

        async def drain() -> None:
            most, seconds = _PATIENCE
            read = 0
            with suppress(asyncio.TimeoutError):
                while more and read <= most:
                    read += len((await asyncio.wait_for(received(), seconds)).get("body", b""))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start" and more:
                # Who asks before he sends has sent nothing yet.
                if begun or (b"expect", b"100-continue") not in scope["headers"]:
                    await drain()
                if more:
                    message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, received, sending)


async def _answer_of(request: Request, future: Future[T]) -> T:
    """What the future gives; it is cancelled when the client goes, and ClientDisconnect raised."""
    left = False

    def leave() -> None:
        nonlocal left
        left = future.cancel()  # what runs already runs to its end

    on_leaving(request.scope, leave)
    try:
        return await result_of(future)
    except asyncio.CancelledError:
        if left:
            raise ClientDisconnect from None
        raise


async def _beside(size: int, work: Callable[[], T]) -> T:
    """What ``work`` gives: beside the event loop where it reads or writes many bytes."""
    return work() if size < _LARGE else await aside(work)


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"{what} must be an integer that is not negative, got {text!r:.50}.")
    return int(text)


def _error(status: int, message: str) -> Response:
    # What the message shows of a request may be no text: JSON can name half of a surrogate pair.
    return JSONResponse({"error": message.encode(errors="replace").decode()}, status)


def _is_here(request: Request) -> bool:
    """Whether a client calls the server by an address or as localhost, which nobody else can make stand for it."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        ipaddress.ip_address(host)
    except ValueError:
        return not request.headers.get("host")  # HTTP/1.0, no browser
    return True


def _is_foreign(request: Request) -> bool:
    """True for what a browser sends for a page of another site, which could use a server on loopback otherwise."""
    origin = request.headers.get("origin")
    try:
        return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    except ValueError:  # no browser's
        return True
