"""Whatever is sent, valid or not: an answer of the protocol, no 500, and the server goes on.

``schemathesis run`` against a running server asks more; docs/serving.md has the command.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import cv2
import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import models
from tests.unit.serve.process import Server
from tests.unit.serve.test_pictures import centerface
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve.grpc_api import _descriptors, messages
from trtrun.serve.http_api import HttpOptions, application
from trtrun.serve.repository import Repository

OPENAPI = json.loads((files("trtrun.serve") / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = [(path, method) for path, methods in OPENAPI["paths"].items() for method in methods]
NAMES = ["affine", "faces", "1", "x", "region", "nothing", "..", "%2e%2e", "\u00e9"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=300)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("properties")
    (folder / "affine.onnx").write_bytes(models.affine())
    (folder / "faces.onnx").write_bytes(centerface())
    repository = Repository(OnnxRuntimeSession, folder=folder)
    assert repository.load_all() == []
    yield application(repository, HttpOptions(max_body=1 << 16, max_pixels=1 << 16))
    repository.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("fuzzed")
    (folder / "affine.onnx").write_bytes(models.affine())
    server = Server(f"affine={folder / 'affine.onnx'}", "--max-body", "1", log=folder / "log")
    yield server
    assert "Traceback" not in server.log.read_text()
    assert server.stop() == 0


def ask(app: Any, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One request to the application itself, its body in two pieces."""
    path, _, query = path.partition("?")
    scope = {
        "type": "http", "method": method.upper(), "path": path, "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(key.replace("_", "-").encode(), value.encode()) for key, value in headers.items()],
    }  # fmt: skip
    pieces = [{"type": "http.request", "body": body[:7], "more_body": True}, {"type": "http.request", "body": body[7:]}]
    sent: list[Any] = []

    async def receive() -> Any:
        return pieces.pop(0) if pieces else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert not pieces, "the body was not read before the answer"
    found = {key.decode().lower(): value.decode() for key, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(message.get("body", b"") for message in sent[1:])


def of_schema(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that follow a schema of the document, or, one time in ten, anything."""
    if "$ref" in schema:
        schema = OPENAPI["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    kind = schema.get("type")
    if "enum" in schema:
        valid = st.sampled_from(schema["enum"])
    elif kind == "object":
        fields = {key: of_schema(value) for key, value in schema.get("properties", {}).items()}
        required = {key: fields.pop(key) for key in schema.get("required", [])}
        valid = st.fixed_dictionaries(required, optional=fields)
    elif kind == "array":
        valid = st.lists(of_schema(schema.get("items", {})), max_size=3)
    elif kind == "string":
        valid = st.sampled_from(NAMES) | st.text(max_size=6)
    elif kind == "integer":
        valid = st.integers(schema.get("minimum", -2), 20) | st.integers()
    elif kind == "boolean":
        valid = st.booleans()
    else:
        valid = st.floats(-9, 9) | st.integers(0, 9)
    return st.one_of(*[valid] * 9, JSON)


def check(status: int, headers: dict[str, str], body: bytes, documented: Any = None) -> None:
    assert status != 500, body
    if documented is not None:
        assert str(status) in documented, (status, body)
    if status >= 400:
        assert headers["content-type"] == "application/json"
        assert json.loads(body)["error"]


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
@FEW
@given(data=st.data())
def test_every_operation(path: str, method: str, data: st.DataObject, app: Any) -> None:
    if path.endswith("load"):
        return  # changes what the others ask; below
    operation = OPENAPI["paths"][path][method]
    filled = re.sub(r"\{\w+\}", lambda _: data.draw(st.sampled_from(NAMES)), path)
    content = operation.get("requestBody", {}).get("content", {})
    body, headers = b"", {}
    if "application/json" in content:
        body = json.dumps(data.draw(of_schema(content["application/json"]["schema"]))).encode()
        headers["content_type"] = "application/json"
    elif content:
        body = data.draw(st.binary(max_size=60))
        headers["content_type"] = data.draw(st.sampled_from([*content, "image/jpeg", "text/plain"]))
    queries = [p for p in operation.get("parameters", []) if p.get("in") == "query"]
    pairs = [f"{p['name']}={data.draw(of_schema(p['schema']))}" for p in queries if data.draw(st.booleans())]
    query = "?" + "&".join(pairs) if pairs else ""
    check(*ask(app, method, filled + query, body, **headers), documented=operation["responses"])


def test_only_what_is_documented_is_served_and_all_of_it(app: Any) -> None:
    served = {(re.sub(r":\w+\}", "}", route.path), method.lower()) for route in app.routes for method in route.methods}
    hidden = {("/", "get"), ("/docs", "get"), ("/openapi.json", "get")}
    assert {pair for pair in served if pair[1] != "head"} - hidden == set(OPERATIONS)


@MANY
@given(header=of_schema({"$ref": "#/components/schemas/InferRequest"}), rest=st.binary(max_size=60), data=st.data())
def test_binary_bodies(header: Any, rest: bytes, data: st.DataObject, app: Any) -> None:
    text = json.dumps(header).encode()
    length = data.draw(st.sampled_from([str(len(text)), "0", "-1", "x", "9" * 5000, str(len(text) + 1)]))
    check(*ask(app, "post", "/v2/models/affine/infer", text + rest, inference_header_content_length=length))
    check(*ask(app, "post", "/v2/models/affine/infer", rest, inference_header_content_length=length))


@MANY
@given(rows=st.integers(0, 3), size=st.integers(0, 160), datatype=st.sampled_from(["FP32", "INT64", "BYTES", "BF16"]))
def test_binary_tensors_of_any_size(rows: int, size: int, datatype: str, app: Any) -> None:
    tensor = {"name": "x", "datatype": datatype, "shape": [rows, 12], "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    answer = ask(
        app, "post", "/v2/models/affine/infer", text + bytes(size), inference_header_content_length=str(len(text))
    )
    check(*answer)
    served = datatype in ("FP32", "BF16")  # every bfloat16 is a float32
    assert (answer[0] == 200) == (served and size == rows * (48 if datatype == "FP32" else 24))


@MANY
@given(data=st.data())
def test_damaged_pictures(data: st.DataObject, app: Any) -> None:
    kind = data.draw(st.sampled_from([".jpg", ".png", ".webp", ".bmp", ".tiff", ".gif"]))
    picture = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    good, file = cv2.imencode(kind, picture)
    assert good
    body = bytearray(file.tobytes())
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    del body[data.draw(st.integers(1, len(body))) :]
    check(*ask(app, "post", "/v2/models/affine/predict", bytes(body)))
    check(*ask(app, "post", "/v2/models/faces/predict", bytes(body)))


def of_message(kind: Any, depth: int = 0) -> st.SearchStrategy[Any]:
    """Messages of any kind, fields of plausible values or of any."""

    @st.composite
    def build(draw: Any) -> Any:
        message = kind()
        for field in kind.DESCRIPTOR.fields:
            if depth > 3 or not draw(st.booleans()):
                continue
            values = scalar(field)
            if field.message_type is not None and field.message_type.GetOptions().map_entry:
                name = draw(st.sampled_from(["timeout", "priority", "shared_memory_region", "binary_data_output"]))
                entry = getattr(message, field.name)[name]
                if hasattr(entry, "CopyFrom"):
                    entry.CopyFrom(draw(of_message(type(entry), depth + 1)))
            elif field.message_type is not None:
                made = of_message(getattr(message, field.name).__class__, depth + 1)
                if field.is_repeated:
                    for _ in range(draw(st.integers(0, 2))):
                        one = getattr(message, field.name).add()
                        one.CopyFrom(draw(of_message(type(one), depth + 1)))
                else:
                    getattr(message, field.name).CopyFrom(draw(made))
            elif field.is_repeated:
                getattr(message, field.name).extend(draw(st.lists(values, max_size=3)))
            else:
                setattr(message, field.name, draw(values))
        return message

    return build()


def scalar(field: Any) -> st.SearchStrategy[Any]:
    kinds = {
        field.TYPE_BOOL: st.booleans(),
        field.TYPE_STRING: st.sampled_from([*NAMES[:6], "FP32", "INT64", "BYTES", "region", ""]),
        field.TYPE_BYTES: st.sampled_from([bytes(48), b"", b"abc", bytes(64)]) | st.binary(max_size=64),
        field.TYPE_INT32: st.integers(-(2**31), 2**31 - 1),
        field.TYPE_INT64: st.sampled_from([0, 1, 12]) | st.integers(-(2**63), 2**63 - 1),
        field.TYPE_UINT32: st.integers(0, 2**32 - 1),
        field.TYPE_UINT64: st.sampled_from([0, 1, 48]) | st.integers(0, 2**64 - 1),
        field.TYPE_FLOAT: st.floats(width=32),
        field.TYPE_DOUBLE: st.floats(),
    }
    return kinds.get(field.type, st.nothing())


METHODS = {method.name: method for method in _descriptors().file[0].service[0].method}


def call(channel: grpc.Channel, name: str, data: bytes) -> grpc.StatusCode:
    path = f"/inference.GRPCInferenceService/{name}"
    try:
        if METHODS[name].server_streaming:
            list(channel.stream_stream(path)(iter([data, data]), timeout=20))
        else:
            channel.unary_unary(path)(data, timeout=20)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


@pytest.mark.parametrize("name", [name for name in METHODS if "RepositoryModel" not in name])
@FEW
@given(data=st.data())
def test_any_message_over_grpc(name: str, data: st.DataObject, server: Server) -> None:
    kind = getattr(messages(), METHODS[name].input_type.rpartition(".")[2])
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for body in (data.draw(of_message(kind)).SerializeToString(), data.draw(st.binary(max_size=40))):
            code = call(channel, name, body)
            assert code in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), code


def test_repository_requests(app: Any) -> None:
    for path in (
        "/v2/repository/models/nothing/load",
        "/v2/repository/models/a%20b/load",
        "/v2/repository/models/../unload",
    ):
        for body in (b"", b"{}", b"[]", b'{"parameters": 1}', b"\xff"):
            status, headers, answer = ask(app, "post", path, body)
            check(status, headers, answer)
            assert status in (400, 404)


def test_answers_arrive_though_nobody_wants_the_body(server: Server) -> None:
    """A connection that is closed with unread data behind it is reset, and the answer lost."""
    for path, size, status in (
        ("/v2/models/nothing/infer", 1 << 20, 404),
        ("/nowhere", 1 << 20, 404),
        ("/v2", 1 << 20, 405),
        ("/v2/models/affine/infer", 1 << 20, 400),
        ("/v2/models/affine/infer", 9 << 20, 413),
    ):
        for keep in ("close", "keep-alive"):
            for _ in range(10):
                connection = http.client.HTTPConnection(server.address, timeout=20)
                connection.request("POST", path, b"x" * size, {"Connection": keep})
                answer = connection.getresponse()
                assert answer.status == status
                assert json.loads(answer.read())["error"]
                if keep == "keep-alive":  # and the next request is not read out of the middle of the body
                    connection.request("GET", "/v2/health/live")
                    assert connection.getresponse().read() == b'{"live":true}'
                connection.close()


def test_a_body_without_end_closes_the_connection(server: Server) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.putrequest("POST", "/v2/models/nothing/infer")
    connection.putheader("Content-Length", str(1 << 40))
    connection.putheader("Expect", "100-continue")
    connection.endheaders()
    answer = connection.getresponse()  # at once: who asks before he sends is not waited for
    assert answer.status == 404
    assert answer.headers["Connection"] == "close"
    connection.close()
