"""Connections of HTTP that keep the server waiting."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from tests import models
from tests.unit.serve.process import Server
from trtrun.serve import connection
from trtrun.serve.connection import Connection

SIZE = 32 << 20  # more than the sockets of both sides take


async def answer(scope: Any, receive: Any, send: Any) -> None:
    size = SIZE if scope["path"] == "/large" else 40_000 if scope["path"] == "/some" else 2
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
    await send({"type": "http.response.body", "body": bytes(size)})


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(connection, "_PATIENCE", 0.5)
    server = uvicorn.Server(uvicorn.Config(answer, port=0, http=Connection, log_config=None, lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = server.force_exit = True
    thread.join(10)


def seconds_until_closed(client: socket.socket) -> float:
    start = time.perf_counter()
    client.settimeout(5)
    try:
        while client.recv(1 << 16):
            pass
    except ConnectionError:
        pass
    return time.perf_counter() - start


@pytest.mark.parametrize("said", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n"])
@pytest.mark.parametrize("before", [False, True])
def test_headers_must_come(port: int, said: bytes, before: bool) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        if before:
            if not said:
                return  # an idle connection is kept for the next request
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            client.recv(1 << 16)
        client.sendall(said)
        assert 0.3 < seconds_until_closed(client) < 3


def test_who_takes_no_answer_is_left(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(2)
        got = 0
        client.settimeout(5)
        with suppress(ConnectionError):
            while piece := client.recv(1 << 20):
                got += len(piece)
        assert got < SIZE  # what the sockets held


def test_who_takes_it_slowly_gets_it(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        client.settimeout(5)
        got = 0
        for _ in range(20):  # longer than the server's patience, but it moves on
            time.sleep(0.1)
            piece = client.recv(1 << 20)
            got += len(piece)
        while got < SIZE and (piece := client.recv(1 << 20)):
            got += len(piece)
        assert got >= SIZE
        for path in (b"/some", b"/large", b"/some"):  # and may ask on
            time.sleep(0.6)
            client.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path)
            wanted = SIZE if path == b"/large" else 40_000
            got = 0
            while got < wanted:
                piece = client.recv(1 << 20)
                assert piece
                got += len(piece)


def test_requests_of_clients_that_have_gone_are_not_computed(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    batching = ["--max-batch-size", "64", "--max-queue-delay", "1500", "--instances", "1"]
    server = Server(str(tmp_path / "affine.onnx"), *batching, log=tmp_path / "log")
    x = {"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0.0] * 12}
    body = json.dumps({"inputs": [x]}).encode()
    gone = http.client.HTTPConnection(server.address, timeout=20)
    gone.request("POST", "/v2/models/affine/infer", body)
    time.sleep(0.3)  # it waits for others to fill its batch
    gone.close()
    assert server.get("/v2/models/affine/infer", body)[0] == 200
    (stats,) = json.loads(server.get("/v2/models/affine/stats")[1])["model_stats"]
    assert stats["inference_count"] == 1
    assert [batch["batch_size"] for batch in stats["batch_stats"]] == [1]
    time.sleep(0.2)
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [line["status"] for line in lines if "infer" in line["message"]] == [499, 200]
    assert server.stop() == 0


def test_nobody_is_told_without_a_connection() -> None:
    connection.on_leaving({}, lambda: asyncio.sleep(0))
