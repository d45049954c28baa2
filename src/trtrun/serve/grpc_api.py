"""The protocol over gRPC, on the same repository as HTTP."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import SimpleNamespace
from typing import Any, NamedTuple

import grpc
import grpc.aio
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from .. import __version__
from ..errors import (
    ClosedError,
    DeviceError,
    InputError,
    InputNameError,
    ModelNotFoundError,
    RequestTimeoutError,
    ServerBusyError,
    ShapeError,
    TrtrunError,
)
from . import protocol
from .aside import aside, result_of
from .bodies import Bodies
from .logs import identity_of, log_bug, log_request, log_soon
from .peer import peer_of
from .protocol import InferRequest, Region, RequestedOutput
from .repository import EXTENSIONS, MODEL_ERRORS, Repository, configuration, describe
from .shared_memory import CudaRegion, SharedMemory, SystemRegion
from .siblings import Siblings

_SERVICE = "inference.GRPCInferenceService"
_MOST_CALLS = 1024  # at once; more are refused before their messages are read
_IN_STREAM = 64  # requests of one stream that are under way
_LARGE = 1 << 18  # bytes of tensors that are read or written beside the event loop
_SMALL, _MOST_FIELDS = 1 << 14, 256  # bytes and fields of a message that is taken apart by hand
_SHORT, _KEPT = 1 << 12, 256  # bytes of a message without its tensors', and how many of such are remembered
_RAW = 7 << 3 | 2  # the field raw_input_contents
_OPEN = ("ServerLive", "ServerReady")  # without a token
# Which of InferTensorContents' lists holds a datatype that is not given as raw bytes.
_CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@lru_cache(maxsize=1)
def _descriptors() -> Any:
    return descriptor_pb2.FileDescriptorSet.FromString((files(__package__) / "open_inference.desc").read_bytes())


@lru_cache(maxsize=1)
def messages() -> SimpleNamespace:
    """The message classes by name. In a pool of their own: Triton's client brings messages of the same names."""
    pool = descriptor_pool.DescriptorPool()
    classes: dict[str, Any] = {}
    for file in _descriptors().file:
        pool.Add(file)
        for message in file.message_type:
            descriptor = pool.FindMessageTypeByName(f"{file.package}.{message.name}")
            classes[message.name] = message_factory.GetMessageClass(descriptor)
    return SimpleNamespace(**classes)


def code_of(error: BaseException) -> grpc.StatusCode:
    """The status that says what kind of error it was."""
    kinds = (
        (ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
        (ServerBusyError, grpc.StatusCode.RESOURCE_EXHAUSTED),
        ((ClosedError, DeviceError), grpc.StatusCode.UNAVAILABLE),  # another server may do it
        (RequestTimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
        ((InputError, *MODEL_ERRORS), grpc.StatusCode.INVALID_ARGUMENT),
    )
    return next((code for kind, code in kinds if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


def server(
    repository: Repository,
    address: str,
    memory: SharedMemory,
    bodies: Bodies,
    siblings: Siblings,
    *,
    token: str | None = None,
    tls: tuple[bytes, bytes] | None = None,
) -> tuple[grpc.aio.Server, int]:
    """A server that has not been started, and its port.

    Args:
        address: host and port; port 0 takes a free one.
        memory, bodies, siblings: those of HTTP.
        token: what the metadata ``authorization`` must hold after ``Bearer``; None for nothing.
        tls: private key and certificate chain in PEM.

    Raises InputError where it cannot listen there.
    """
    made = grpc.aio.server(
        interceptors=[] if token is None else [_TokenCheck(token)],
        maximum_concurrent_rpcs=_MOST_CALLS,
        options=[
            ("grpc.max_receive_message_length", bodies.most),
            ("grpc.max_send_message_length", -1),
            # Two servers on one port share the clients between them, which only workers are meant to do.
            ("grpc.so_reuseport", int(siblings.place is not None)),
        ],
    )
    service = _Service(repository, memory, bodies, siblings)
    handlers = {}
    for method in _descriptors().file[0].service[0].method:
        request = getattr(messages(), method.input_type.rpartition(".")[2])
        response = getattr(messages(), method.output_type.rpartition(".")[2])
        make = grpc.stream_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
        handlers[f"/{_SERVICE}/{method.name}"] = make(
            service.handler(method.name),
            request_deserializer=_reader(request),
            response_serializer=response.SerializeToString,
        )
    made.add_generic_rpc_handlers((_Methods(handlers, bodies),))
    try:
        if tls is None:
            return made, made.add_insecure_port(address)
        return made, made.add_secure_port(address, grpc.ssl_server_credentials([tls]))
    except RuntimeError as error:
        why = str(error).rstrip(".")
        raise InputError(f"gRPC cannot listen on {address}: {why}. Choose another --grpc-port, or -1.") from error


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """The handlers by path; asked for one when a call has come, before its message is read."""

    def __init__(self, handlers: Mapping[str, Any], bodies: Bodies) -> None:
        self._handlers = handlers
        self._bodies = bodies

    def service(self, call: Any) -> Any:
        self._bodies.knock()
        return self._handlers.get(call.method) or _unserved(call.method)


def _unserved(method: str) -> Any:
    """The handler of a method that there is not; gRPC's own says only that."""

    async def refuse(requests: Any, context: Any) -> None:
        log_request(method, "UNIMPLEMENTED", time.perf_counter(), _identity(context, None))
        text = f"{protocol.unserved(method)}; docs/serving.md says what there is."
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)

    return grpc.stream_stream_rpc_method_handler(refuse)  # of a stream nothing is read unless it is asked for


@dataclass(frozen=True)
class _Received:
    """A message, or why the bytes are none; what gRPC itself would call the server's fault."""

    message: Any
    size: int
    raw: Sequence[bytes | memoryview] = ()  # of an inference request: raw_input_contents, where they came
    rest: bytes = b""  # and what stood beside them, where that is worth remembering


def _reader(kind: Any) -> Callable[[bytes], _Received]:
    def read(data: bytes) -> _Received:
        try:
            if kind.DESCRIPTOR.name != "ModelInferRequest":
                return _Received(kind.FromString(data), len(data))
            rest, raw = split(data)
            short = len(rest) <= _SHORT
            message = _known(rest) if short else kind.FromString(rest)
            return _Received(message, len(data), raw or message.raw_input_contents, rest if short else b"")
        except DecodeError as error:
            return _Received(error, len(data))

    return read


@lru_cache(maxsize=_KEPT)
def _known(rest: bytes) -> Any:
    """A ModelInferRequest without its large tensors: most clients send the same again and again. Not to be changed."""
    return messages().ModelInferRequest.FromString(rest)


@lru_cache(maxsize=_KEPT)
def _known_header(rest: bytes) -> _Header:
    return _header(_known(rest))


def split(data: bytes) -> tuple[bytes, list[memoryview]]:
    """A ModelInferRequest without its raw_input_contents, and these as they lie: parsing would copy them twice.

    A message that is small, damaged or of many fields is left whole.
    """
    if len(data) < _SMALL:
        return data, []
    view = memoryview(data)
    raw: list[memoryview] = []
    rest: list[memoryview] = []
    at = 0
    try:
        for _ in range(_MOST_FIELDS):
            if at == len(data):
                return b"".join(rest), raw
            begin = at
            tag, at = _varint(data, at)
            if tag & 7 != 2:
                break  # a request has no other top-level fields
            length, at = _varint(data, at)
            if at + length > len(data):
                break
            if tag == _RAW:
                raw.append(view[at : at + length])
            else:
                rest.append(view[begin : at + length])
            at += length
    except IndexError:  # it ends within a number
        pass
    return data, []


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128 or shift > 63:
            return value, at
        shift += 7


class _TokenCheck(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls without the token before their messages are read."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    async def intercept_service(self, continuation: Any, call: Any) -> Any:
        method = call.method.rpartition("/")[2]
        given = dict(call.invocation_metadata).get("authorization", "")
        if method in _OPEN or hmac.compare_digest(str(given).encode(), self._wanted):
            return await continuation(call)

        async def refuse(requests: Any, context: Any) -> None:
            start, identity = time.perf_counter(), _identity(context, None)
            log_request(method, "UNAUTHENTICATED", start, identity)
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "a bearer token is needed")

        return grpc.stream_stream_rpc_method_handler(refuse)  # of a stream nothing is read unless it is asked for


def _identity(context: Any, request: Any) -> str:
    given = next((str(value) for key, value in context.invocation_metadata() if key == "x-request-id"), "")
    return identity_of(given or getattr(request, "id", ""))


class _Service:
    def __init__(self, repository: Repository, memory: SharedMemory, bodies: Bodies, siblings: Siblings) -> None:
        self._repository = repository
        self._siblings = siblings
        self._memory = memory
        self._bodies = bodies

    def handler(self, name: str) -> Any:
        if name == "ModelStreamInfer":
            return self._stream
        method: Callable[[Any, Any], Awaitable[Any]] = getattr(self, f"_{name}")

        async def guarded(received: _Received, context: Any) -> Any:
            request = received.message
            start, identity = time.perf_counter(), _identity(context, request)
            context.set_trailing_metadata((("x-request-id", identity),))
            code, problem, busy = grpc.StatusCode.OK, "", False
            try:
                with self._bodies.hold() as body:
                    body.grow(received.size)
                    if isinstance(request, DecodeError):
                        raise InputError(f"the message is no {name} request: {request}")
                    return await method(received if name == "ModelInfer" else request, context)
            except TrtrunError as error:
                code, problem = code_of(error), str(error)
                busy = isinstance(error, ServerBusyError)
            except asyncio.CancelledError:
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # a bug must not end the call without a word
                log_bug(identity)
                code, problem = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
            finally:
                what = f"{name} {getattr(request, 'model_name', '')}".rstrip()
                log_soon(what, code.name, start, identity, problem, refused=busy)
            return await context.abort(code, problem)

        return guarded

    async def _ServerLive(self, request: Any, context: Any) -> Any:
        return messages().ServerLiveResponse(live=self._repository.failure is None)

    async def _ServerReady(self, request: Any, context: Any) -> Any:
        return messages().ServerReadyResponse(ready=self._repository.ready)

    async def _ModelReady(self, request: Any, context: Any) -> Any:
        try:
            model = self._repository.get(request.name, request.version)
        except ModelNotFoundError:
            return messages().ModelReadyResponse(ready=False)
        return messages().ModelReadyResponse(ready=model.batcher.failure is None)

    async def _ServerMetadata(self, request: Any, context: Any) -> Any:
        return messages().ServerMetadataResponse(name="trtrun", version=__version__, extensions=EXTENSIONS)

    async def _ModelMetadata(self, request: Any, context: Any) -> Any:
        return messages().ModelMetadataResponse(**describe(self._repository.get(request.name, request.version)))

    async def _ModelConfig(self, request: Any, context: Any) -> Any:
        return messages().ModelConfigResponse(config=configuration(self._repository.get(request.name, request.version)))

    async def _ModelStatistics(self, request: Any, context: Any) -> Any:
        models = [model for model, _ in self._repository.loaded()]
        if request.name:
            models = [self._repository.get(request.name, request.version)]
        stats = await self._siblings.summaries(models)
        for one in stats:
            del one["recent"], one["waiting"], one["refused"]  # not of the protocol
        return messages().ModelStatisticsResponse(model_stats=stats)

    async def _ModelInfer(self, received: _Received, context: Any) -> Any:
        return await self._infer(received, context.time_remaining())

    async def _stream(self, requests: AsyncIterator[_Received], context: Any) -> AsyncIterator[Any]:
        """The answers in the order of the requests, which run at the same time."""
        # No more are read when it is full.
        under_way: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue(_IN_STREAM)

        async def read() -> None:
            try:
                async for received in requests:
                    await under_way.put(asyncio.create_task(self._streamed(received)))
            finally:
                await under_way.put(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await under_way.get()) is not None:
                yield await task
            await reader
        finally:
            reader.cancel()
            while not under_way.empty():
                left = under_way.get_nowait()
                if left is not None:
                    left.cancel()

    async def _streamed(self, received: _Received) -> Any:
        request = received.message
        start, identity = time.perf_counter(), identity_of(getattr(request, "id", ""))
        answer, code = messages().ModelStreamInferResponse(), grpc.StatusCode.OK
        try:
            with self._bodies.hold() as body:
                body.grow(received.size)
                if isinstance(request, DecodeError):
                    raise InputError(f"the message is no ModelInfer request: {request}")
                answer.infer_response.CopyFrom(await self._infer(received, None))
        except TrtrunError as error:
            code, answer.error_message = code_of(error), str(error)
        except Exception as error:  # a bug must not end the stream of the requests behind
            log_bug(identity)
            code, answer.error_message = grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"
        if answer.error_message:
            answer.infer_response.id = getattr(request, "id", "")
        model = getattr(request, "model_name", "")
        log_request(f"ModelStreamInfer {model}".rstrip(), code.name, start, identity, answer.error_message)
        return answer

    async def _infer(self, received: _Received, remaining: float | None) -> Any:
        request = received.message
        parameters = _parameters(request.parameters)
        priority = protocol.integer(parameters.get("priority", 0), "priority")
        # Who is to come back later costs as little as possible: when most are, it is most of the work.
        self._repository.get(request.model_name, request.model_version).batcher.check_room(priority)
        if not received.raw and received.size > _LARGE:  # numbers one by one
            parsed = await aside(lambda: self._parse(received))
        else:
            parsed = self._parse(received)
        timeout = min((t for t in (parsed.timeout, remaining) if t is not None), default=None)
        model, future = self._repository.submit(
            request.model_name,
            request.model_version,
            parsed.inputs,
            priority=parsed.priority,
            timeout=timeout,
            outputs="device" if self._memory.on_gpu(parsed.outputs) else "copy",
            here=self._bodies.lone,
        )
        results = await result_of(future)
        if sum(array.nbytes for array in results.values()) < _LARGE:
            return self._render(model.name, model.version, parsed, results)
        return await aside(lambda: self._render(model.name, model.version, parsed, results))

    def _parse(self, received: _Received) -> InferRequest:
        header = _known_header(received.rest) if received.rest else _header(received.message)
        raw = iter(received.raw)
        inputs: dict[str, Any] = {}
        for name, dtype, shape, region, tensor in header.inputs:
            if region is not None:
                inputs[name] = protocol.from_bytes(name, self._memory(region), dtype, shape)
            elif received.raw:
                data = next(raw, None)
                if data is None:
                    raise InputError(f"raw_input_contents holds nothing for input {name!r}.")
                inputs[name] = protocol.from_bytes(name, data, dtype, shape)
            else:
                inputs[name] = _from_contents(tensor, dtype, shape)
        if next(raw, None) is not None:
            raise InputError("raw_input_contents holds more than the request's inputs.")
        return InferRequest(
            inputs, header.outputs, received.message.id, True, header.priority, header.timeout, header.parameters
        )

    def _render(self, model: str, version: str, request: InferRequest, results: Mapping[str, Any]) -> Any:
        response = messages().ModelInferResponse(model_name=model, model_version=version, id=request.id)
        for output, array in protocol.wanted(request, results):
            tensor = response.outputs.add(
                name=output.name, datatype=protocol.datatype(array.dtype), shape=list(array.shape)
            )
            if output.region is None:
                response.raw_output_contents.append(bytes(protocol.bytes_of(array)))
                continue
            protocol.write(array, output.region, self._memory)
            for key, value in protocol.region_parameters(output.region, array.nbytes).items():
                if isinstance(value, str):
                    tensor.parameters[key].string_param = value
                else:
                    tensor.parameters[key].int64_param = value
        return response

    async def _RepositoryIndex(self, request: Any, context: Any) -> Any:
        rows = await aside(self._repository.index)
        return messages().RepositoryIndexResponse(
            models=[row for row in rows if not request.ready or row["state"] == "READY"]
        )

    async def _RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        if request.parameters:
            raise InputError("models are loaded from the repository as they are; parameters are not taken.")
        await self._siblings.load(request.model_name)
        return messages().RepositoryModelLoadResponse()

    async def _RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        await self._siblings.unload(request.model_name)
        return messages().RepositoryModelUnloadResponse()

    async def _SystemSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        response = messages().SystemSharedMemoryStatusResponse()
        for region in self._memory.status(SystemRegion, request.name or None):
            status = response.regions[region.name]
            status.name, status.key, status.offset, status.byte_size = (
                region.name,
                region.key,
                region.offset,
                region.nbytes,
            )
        return response

    async def _SystemSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        client = peer_of(context.peer())
        await self._siblings.register(request.name, request.key, request.byte_size, request.offset, client)
        return messages().SystemSharedMemoryRegisterResponse()

    async def _SystemSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        await self._siblings.unregister(SystemRegion, request.name or None)
        return messages().SystemSharedMemoryUnregisterResponse()

    async def _CudaSharedMemoryStatus(self, request: Any, context: Any) -> Any:
        response = messages().CudaSharedMemoryStatusResponse()
        for region in self._memory.status(CudaRegion, request.name or None):
            status = response.regions[region.name]
            status.name, status.device_id, status.byte_size = region.name, region.device_id, region.nbytes
        return response

    async def _CudaSharedMemoryRegister(self, request: Any, context: Any) -> Any:
        await self._siblings.register_cuda(request.name, request.raw_handle, request.device_id, request.byte_size)
        return messages().CudaSharedMemoryRegisterResponse()

    async def _CudaSharedMemoryUnregister(self, request: Any, context: Any) -> Any:
        await self._siblings.unregister(CudaRegion, request.name or None)
        return messages().CudaSharedMemoryUnregisterResponse()


class _Header(NamedTuple):
    """What an inference request says beside its tensors' bytes; ``inputs`` as name, dtype, shape, region, message."""

    inputs: tuple[tuple[str, np.dtype[Any], tuple[int, ...], Region | None, Any], ...]
    outputs: tuple[RequestedOutput, ...] | None
    priority: int
    timeout: float | None
    parameters: Mapping[str, Any]


def _header(request: Any) -> _Header:
    names: set[str] = set()
    inputs = []
    for tensor in request.inputs:
        if tensor.name in names:
            raise InputNameError(f"input {tensor.name!r} is given twice.")
        names.add(tensor.name)
        dtype, shape = protocol.dtype_of(tensor.datatype), protocol.shape_of(tensor.name, list(tensor.shape))
        inputs.append((tensor.name, dtype, shape, protocol.region_of(_parameters(tensor.parameters)), tensor))
    outputs = tuple(protocol.requested(output.name, _parameters(output.parameters), True) for output in request.outputs)
    parameters = _parameters(request.parameters)
    timeout = protocol.integer(parameters.get("timeout", 0), "timeout")
    return _Header(
        tuple(inputs),
        outputs or None,
        protocol.integer(parameters.get("priority", 0), "priority"),
        timeout / 1e6 if timeout else None,
        parameters,
    )


def _parameters(given: Mapping[str, Any]) -> dict[str, Any]:
    if not given:
        return {}
    chosen = {key: value.WhichOneof("parameter_choice") for key, value in given.items()}
    return {key: getattr(given[key], which) for key, which in chosen.items() if which}


def _from_contents(tensor: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    field = _CONTENTS.get(tensor.datatype)
    if field is None:
        raise InputError(f"input {tensor.name!r}: {tensor.datatype} must be given in raw_input_contents.")
    given = np.array(getattr(tensor.contents, field))
    if given.size != int(np.prod(shape, dtype=np.int64)):
        raise ShapeError(f"input {tensor.name!r} of shape {list(shape)} got {given.size} values in {field}.")
    array = given.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(array, given):
        raise InputError(f"input {tensor.name!r} holds numbers that {tensor.datatype} does not.")
    return array.reshape(shape)
