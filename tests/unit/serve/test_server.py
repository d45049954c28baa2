"""A real server process, asked by Triton's own client and by hand."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import io
import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests import models
from tests.fakes import FakeRunner
from tests.unit.serve.process import Server
from trtrun.errors import ClosedError, DeviceError
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve import logs
from trtrun.serve.aside import result_of
from trtrun.serve.batcher import BatchOptions, Outcome
from trtrun.serve.http_api import application
from trtrun.serve.logs import TextFormatter, identity_of
from trtrun.serve.repository import Repository, Statistics

RNG = np.random.default_rng()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("models")
    (folder / "affine" / "3").mkdir(parents=True)
    (folder / "affine" / "3" / "model.onnx").write_bytes(models.affine())
    (folder / "affine" / "1").mkdir()
    (folder / "affine" / "1" / "model.onnx").write_bytes(b"old, and never read")
    (folder / "several.onnx").write_bytes(models.several())
    outside = folder.parent / "outside.onnx"
    outside.write_bytes(models.static())
    (folder / "linked.onnx").symlink_to(outside)
    static = folder.parent / "fixed.onnx"
    static.write_bytes(models.static())
    server = Server(
        f"static={static}",
        "--repository",
        str(folder),
        "--max-batch-size",
        "8",
        "--max-body",
        "1",
        log=folder.parent / "log",
    )
    yield server
    assert server.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    client = triton.InferenceServerClient(server.address, concurrency=4)
    yield client
    client.close()


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert client.is_model_ready("affine", "3")
    assert not client.is_model_ready("affine", "1")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("affine")
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 12]}]
    assert client.get_model_config("affine")["max_batch_size"] == 8
    assert client.get_model_config("static")["max_batch_size"] == 0
    names = {model["name"]: model["state"] for model in client.get_model_repository_index()}
    assert names == {"affine": "READY", "several": "READY", "static": "READY"}  # and nothing from outside the folder


def test_figures_that_are_read_all_the_time_have_no_line_and_refusals_do(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    (tmp_path / "token").write_text("secret")
    server = Server(str(tmp_path / "affine.onnx"), "--token-file", str(tmp_path / "token"), log=tmp_path / "log")
    for path, body in (("/metrics", None), ("/v2/models/stats", None), ("/v2/repository/index", b"")):
        assert server.get(path, body, Authorization="Bearer secret")[0] == 200
        assert server.get(path, body, Authorization="Bearer wrong")[0] == 401
    assert server.get("/v2/models/affine/stats", Authorization="Bearer secret")[0] == 200
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [(one["message"].split()[1], one["status"]) for one in lines if "status" in one] == [
        ("/metrics", 401),
        ("/v2/models/stats", 401),
        ("/v2/repository/index", 401),
        ("/v2/models/affine/stats", 200),
    ]


def test_what_is_left_out_of_tritons_interface_is_said(client: triton.InferenceServerClient, server: Server) -> None:
    missing = {
        "GET /v2/trace/setting": client.get_trace_settings,
        "GET /v2/models/affine/trace/setting": lambda: client.get_trace_settings("affine"),
        "POST /v2/trace/setting": client.update_trace_settings,
        "GET /v2/logging": client.get_log_settings,
        "POST /v2/logging": lambda: client.update_log_settings({"log_info": True}),
    }
    for what, call in missing.items():
        with pytest.raises(InferenceServerException, match=f"{what} is not served: .*trace and log settings") as raised:
            call()
        assert raised.value.status() == "404"
    for path in ("/nope", "/v2/models/logging/nope", "/v2/models/trace/nope"):
        assert "trace and log" not in json.loads(server.get(path)[1])["error"]
    assert "Method Not Allowed" in json.loads(server.get("/v2/models/affine", b"{}")[1])["error"]


def test_a_model_that_is_not_batched_says_so(client: triton.InferenceServerClient) -> None:
    """Triton's 0: its shapes are whole, and there is no batching to tell of."""
    batched, alone = client.get_model_config("affine"), client.get_model_config("static")
    assert (batched["max_batch_size"], batched["input"][0]["dims"]) == (8, [12])
    assert "dynamic_batching" in batched
    assert (alone["max_batch_size"], alone["input"][0]["dims"]) == (
        0,
        client.get_model_metadata("static")["inputs"][0]["shape"],
    )
    assert "dynamic_batching" not in alone


@pytest.mark.parametrize("binary_in", [False, True])
@pytest.mark.parametrize("binary_out", [False, True])
def test_inference(binary_in: bool, binary_out: bool, client: triton.InferenceServerClient) -> None:
    reference = OnnxRuntimeSession(models.affine())
    for rows in (1, 3, 12):  # more rows than a batch may have run alone
        x = RNG.standard_normal((rows, 12)).astype(np.float32)
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=binary_in)
        wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in reference.outputs]
        result = client.infer("affine", [given], outputs=wanted, request_id="17")
        for name, array in reference.run({"x": x}).items():
            np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)
        assert result.get_response()["id"] == "17"


def test_every_output_without_asking(client: triton.InferenceServerClient) -> None:
    x = RNG.standard_normal((2, 12)).astype(np.float32)
    given = triton.InferInput("x", [2, 12], "FP32")
    given.set_data_from_numpy(x)
    result = client.infer("affine", [given])
    for name, array in OnnxRuntimeSession(models.affine()).run({"x": x}).items():
        np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)


def test_errors_are_the_clients_own(client: triton.InferenceServerClient, server: Server) -> None:
    for model, shape, dtype, said in (
        ("nothing", (1, 12), np.float32, "is not served"),
        ("affine", (1, 13), np.float32, "dimension 1 must be 12"),
        ("affine", (1, 12), np.int64, "float32, got int64"),
    ):
        given = triton.InferInput("x", list(shape), {np.float32: "FP32", np.int64: "INT64"}[dtype])
        given.set_data_from_numpy(np.zeros(shape, dtype))
        with pytest.raises(InferenceServerException, match=said):
            client.infer(model, [given])
    path = "/v2/models/affine/infer"
    assert server.get(path, b"{}")[0] == 400
    assert server.get(path, b"{" * 5000)[0] == 400
    assert server.get(path, b"x" * (2 << 20))[0] == 413
    half = rb'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 12], "data": "\ud800"}]}'
    assert server.get(path, half)[0] == 400  # and the answer is text
    assert server.get("/v2/models/..%2f..%2foutside")[0] == 404
    assert server.get("/v2/repository/models/linked/load", b"")[0] == 404
    assert server.get("/nowhere")[0] == 404
    status, body = server.get("/v2/models/nothing/ready")
    assert status == 404
    assert "Served are" in json.loads(body)["error"]


def test_statistics_and_metrics(client: triton.InferenceServerClient, server: Server) -> None:
    given = triton.InferInput("x", [1, 12], "FP32")
    given.set_data_from_numpy(np.zeros((1, 12), np.float32))
    for _ in range(3):
        client.infer("affine", [given])
    (stats,) = client.get_inference_statistics("affine")["model_stats"]
    assert stats["inference_count"] >= 3
    assert stats["inference_stats"]["success"]["ns"] > 0
    text = server.get("/metrics")[1].decode()
    assert 'trtrun_requests_total{model="affine",version="3"}' in text
    assert "trtrun_batches_total" in text
    assert b"<svg" in server.get("/")[1]
    assert b"openapi.json" in server.get("/docs")[1]
    assert json.loads(server.get("/openapi.json")[1])["openapi"].startswith("3.")
    server.get("/v2/models/affine", **{"X-Request-Id": "who-asks"})
    lines: list[dict[str, Any]] = []
    for _ in range(100):  # they are written a moment later
        lines = [json.loads(line) for line in server.log.read_text().splitlines() if "who-asks" in line]
        if lines:
            break
        time.sleep(0.05)
    (line,) = lines
    assert line["request_id"] == "who-asks"
    assert line["status"] == 200
    assert line["milliseconds"] > 0


def test_reloading_loses_no_request(client: triton.InferenceServerClient, server: Server) -> None:
    reference = OnnxRuntimeSession(models.affine())
    stop, wrong, count = threading.Event(), [], [0]

    def ask() -> None:
        with triton.InferenceServerClient(server.address) as mine:
            while not stop.is_set():
                x = RNG.standard_normal((2, 12)).astype(np.float32)
                given = triton.InferInput("x", [2, 12], "FP32")
                given.set_data_from_numpy(x)
                try:
                    result = mine.infer("affine", [given])
                    name, array = next(iter(reference.run({"x": x}).items()))
                    np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)
                except Exception as error:
                    wrong.append(error)
                count[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        client.load_model("affine")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert count[0] > 10
    client.unload_model("several")
    assert not client.is_model_ready("several")
    client.load_model("several")
    assert client.is_model_ready("several")


def test_a_request_whose_body_is_slow_goes_to_the_model_that_is_loaded_then(
    client: triton.InferenceServerClient, server: Server
) -> None:
    body = json.dumps({"inputs": [{"name": "x", "shape": [1, 12], "datatype": "FP32", "data": [0.5] * 12}]}).encode()
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.putrequest("POST", "/v2/models/affine/infer")
    connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body[:10])
    time.sleep(0.2)
    client.load_model("affine")
    connection.send(body[10:])
    assert connection.getresponse().status == 200
    connection.close()


def test_pages_of_other_sites_are_refused(server: Server) -> None:
    for origin, status in (
        (f"http://{server.address}", 200),
        ("http://elsewhere.example", 403),
        ("http://[", 403),
        ("null", 403),
    ):
        connection = http.client.HTTPConnection(server.address, timeout=20)
        connection.request("POST", "/v2/repository/index", b"", {"Origin": origin, "Content-Type": "text/plain"})
        assert connection.getresponse().status == status, origin
        connection.close()


def test_names_that_anybody_can_make_stand_for_this_machine_are_refused(server: Server) -> None:
    port = server.port
    for host, status in (
        (f"localhost:{port}", 200),
        ("app.localhost", 200),
        ("[::1]:80", 200),
        ("192.0.2.1", 200),  # no name
        (f"elsewhere.example:{port}", 403),
        ("localhost.example", 403),
        ("[", 403),
    ):
        for path in ("/v2", "/v2/models/affine"):
            assert server.get(path, Host=host)[0] == status, host
    assert server.get("/v2/health/ready", Host="elsewhere.example")[0] == 200  # tells nothing


def test_termination_answers_what_is_under_way(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine())
    server = Server(
        str(model), "--max-batch-size", "64", "--max-queue-delay", "1000", "--instances", "1", log=tmp_path / "log"
    )
    x = {"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0.0] * 12}
    connection = http.client.HTTPConnection(server.address)
    connection.request("POST", "/v2/models/affine/infer", json.dumps({"inputs": [x]}))
    time.sleep(0.3)  # it waits for others to fill its batch
    server.process.send_signal(signal.SIGTERM)
    answer = connection.getresponse()
    assert answer.status == 200
    answer.read()
    connection.close()
    assert server.process.wait(20) == 0


def test_back_pressure_and_timeouts(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine())
    batching = ["--max-batch-size", "64", "--max-queue-delay", "3000", "--instances", "1", "--queue-size", "1"]
    server = Server(str(model), *batching, log=tmp_path / "log")
    x = {"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0.0] * 12}

    def asking(**parameters: int) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(server.address)
        connection.request("POST", "/v2/models/affine/infer", json.dumps({"inputs": [x], "parameters": parameters}))
        return connection

    start = time.perf_counter()
    waiting = asking(timeout=500_000)  # it waits for others to fill its batch
    time.sleep(0.2)
    refused = asking()
    answer = refused.getresponse()
    assert answer.status == 503
    assert answer.headers["Retry-After"] == "1"
    assert "queue" in json.loads(answer.read())["error"]
    answer = waiting.getresponse()
    assert answer.status == 504
    assert time.perf_counter() - start < 2.5
    answer.read()
    refused.close()
    waiting.close()
    assert server.stop() == 0


_SLOW = """
import sys
from pathlib import Path
from tests.fakes import FakeRunner
from trtrun.serve.batcher import BatchOptions
from trtrun.serve.repository import Repository
from trtrun.serve.server import ServerOptions, serve

options = BatchOptions(max_batch_size=1, instances=1, max_queue_time=60.0)
repository = Repository(lambda path: FakeRunner(0.5), {"slow": Path("x")}, options=options)
sys.exit(3 if serve(repository, ServerOptions(port=int(sys.argv[1]), grpc_port=int(sys.argv[2]))) else 0)
"""


@pytest.mark.parametrize(
    ("module", "late"), [(triton, "504"), (grpc_client, "StatusCode.DEADLINE_EXCEEDED")], ids=["http", "grpc"]
)
def test_priorities_and_timeouts_reach_the_queue(module: Any, late: str, tmp_path: Path) -> None:
    """While one request runs, the urgent one overtakes, and the one whose time is up fails."""
    server = Server(log=tmp_path / "log", instead=[sys.executable, "-c", _SLOW])
    address = server.address if module is triton else f"127.0.0.1:{server.grpc_port}"
    done: list[str] = []

    def ask(name: str, parameters: dict[str, int]) -> str:
        given = module.InferInput("x", [1], "FP32")
        given.set_data_from_numpy(np.float32([1]))
        with module.InferenceServerClient(address) as client:
            try:
                client.infer("slow", [given], **parameters)
            except InferenceServerException as error:
                return str(error.status())
        done.append(name)
        return ""

    requests = {"running": {}, "low": {}, "urgent": {"priority": 1}, "late": {"timeout": 50_000}}
    with ThreadPoolExecutor(4) as pool:
        asked = []
        for name, parameters in requests.items():
            asked.append(pool.submit(ask, name, parameters))
            time.sleep(0.1)
        assert [one.result() for one in asked] == ["", "", "", late]
    assert done == ["running", "urgent", "low"]
    assert server.stop() == 0


def test_both_protocols_stop_together_and_within_the_time(tmp_path: Path) -> None:
    """After SIGTERM neither takes new requests, while both answer what they have."""
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine())
    options = ["--max-batch-size", "64", "--max-queue-delay", "2000", "--instances", "1"]
    server = Server(str(model), *options, log=tmp_path / "log")
    x = {"name": "x", "datatype": "FP32", "shape": [1, 12], "data": [0.0] * 12}
    connection = http.client.HTTPConnection(server.address)
    connection.request("POST", "/v2/models/affine/infer", json.dumps({"inputs": [x]}))
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_live()
        time.sleep(0.3)  # it waits for others to fill its batch
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        with pytest.raises(InferenceServerException):
            client.is_server_live()
        with pytest.raises(ConnectionRefusedError):
            http.client.HTTPConnection(server.address).connect()
        answer = connection.getresponse()
        assert answer.status == 200
        answer.read()
    connection.close()
    assert server.process.wait(20) == 0
    assert time.perf_counter() - start < 6


def test_what_is_unloaded_or_cannot_be_loaded_leaves_the_rest_ready(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.onnx").write_bytes(models.affine())
    server = Server("--repository", str(tmp_path), log=tmp_path / "log")
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_ready()
        client.unload_model("two")
        assert client.is_server_ready()
        assert not client.is_model_ready("two")
        (tmp_path / "bad.onnx").write_bytes(b"no model")
        with pytest.raises(InferenceServerException):
            client.load_model("bad")
        assert server.get("/v2/repository/models/bad/load", b"{}")[0] == 400
        assert client.is_server_ready()
        assert client.is_model_ready("one")
        assert not client.is_model_ready("bad")
    assert server.stop() == 0


def test_a_hangup_loads_what_is_new_and_not_what_was_unloaded(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.onnx").write_bytes(models.affine())
    server = Server("--repository", str(tmp_path), log=tmp_path / "log")
    with triton.InferenceServerClient(server.address) as client:
        client.unload_model("two")
        (tmp_path / "three" / "7").mkdir(parents=True)
        (tmp_path / "three" / "7" / "model.onnx").write_bytes(models.several())
        server.process.send_signal(signal.SIGHUP)
        for _ in range(100):
            if client.is_model_ready("three"):
                break
            time.sleep(0.1)
        assert client.is_model_ready("three", "7")
        assert not client.is_model_ready("two")
    assert server.stop() == 0


_FAILING = """
import sys
from pathlib import Path
import numpy as np
from tests.fakes import FakeRunner
from trtrun.errors import DeviceError
from trtrun.serve.batcher import BatchOptions
from trtrun.serve.logs import log_to_stderr
from trtrun.serve.repository import Repository
from trtrun.serve.server import ServerOptions, serve

class Gpu(FakeRunner):
    failed = False

    def run(self, inputs, **_):
        Gpu.failed = Gpu.failed or bool((np.asarray(inputs["x"]) == 13).any())
        if Gpu.failed:
            raise DeviceError("an illegal memory access")
        return super().run(inputs)

    def clone(self):
        return Gpu()

log_to_stderr(as_json=False)
repository = Repository(lambda path: Gpu(), {"gpu": Path("x")}, options=BatchOptions(8))
sys.exit(3 if serve(repository, ServerOptions(port=int(sys.argv[1]), grpc_port=int(sys.argv[2]))) else 0)
"""


def test_a_gpu_that_fails_ends_the_server(tmp_path: Path) -> None:
    """Nothing in the process can use it again, so whoever watches the process must start another."""
    server = Server(log=tmp_path / "log", instead=[sys.executable, "-c", _FAILING])
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        given = grpc_client.InferInput("x", [2], "FP32")
        given.set_data_from_numpy(np.float32([1, 2]))
        assert list(client.infer("gpu", [given]).as_numpy("y")) == [2, 4]
        given.set_data_from_numpy(np.float32([1, 13]))
        with pytest.raises(InferenceServerException, match="illegal") as caught:
            client.infer("gpu", [given])
        assert "UNAVAILABLE" in caught.value.status()
    assert server.process.wait(20) == 3
    assert "the GPU has failed" in server.log.read_text()


def test_a_gpu_that_has_failed_is_neither_ready_nor_live() -> None:
    broken = threading.Event()

    class Gpu(FakeRunner):
        def run(self, inputs: Mapping[str, Any], **_: Any) -> dict[str, Any]:
            if broken.is_set():
                raise DeviceError("gone")
            return super().run(inputs)

        def clone(self) -> Gpu:
            return Gpu()

    repository = Repository(lambda path: Gpu(), {"gpu": Path("x")})
    asked = application(repository)
    assert asyncio.run(status_of_get(asked, "/v2/health/ready")) == 503  # it has not begun
    assert repository.load_all() == []
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/gpu/ready"):
        assert asyncio.run(status_of_get(asked, path)) == 200
    broken.set()
    _, future = repository.submit("gpu", "", {"x": np.float32([1])})
    with pytest.raises(DeviceError):
        future.result(5)
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/gpu/ready"):
        assert asyncio.run(status_of_get(asked, path)) == 503
    repository.close()


async def status_of_get(app: Any, path: str) -> int:
    found: list[int] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    await app({"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}, receive, send)
    return found[0]


def test_a_model_is_ready_when_every_instance_has_run() -> None:
    """The first requests compile kernels and capture graphs: no client is to wait for that."""
    answering: list[bool] = []

    class Watched(FakeRunner):
        def enqueue(self, inputs: Mapping[str, Any]) -> Future[dict[str, Any]]:
            answering.append(repository.ready or bool(repository.loaded()))
            return super().enqueue(inputs)

    runner = Watched()
    repository = Repository(lambda path: runner, {"fake": Path("x")}, options=BatchOptions(instances=2))
    assert repository.load_all() == []
    assert repository.ready
    assert [one.requests > 0 for one in runner.made] == [False, True, True]  # the clones, which answer
    assert not any(answering)
    repository.close()


def test_lines_that_nobody_takes_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_WAITING", 10)
    open_again = threading.Event()

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            open_again.wait(10)
            return super().write(text)

    stream = Full()
    writer = logs.Writer(stream)
    writer.setFormatter(TextFormatter())
    for index in range(5):
        writer.emit(logging.makeLogRecord({"msg": f"early {index}"}))
    time.sleep(0.3)  # it writes these, and is held up
    start = time.perf_counter()
    for index in range(100):
        writer.emit(logging.makeLogRecord({"msg": f"late {index}"}))
    assert time.perf_counter() - start < 1  # requests are not held up by it
    open_again.set()
    writer.close()
    text = stream.getvalue()
    assert "late 9\n" in text
    assert "late 10\n" not in text
    assert "90 lines of the log were dropped" in text


def test_of_refusals_one_a_second_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse() -> None:
        for index in range(50):
            logs.log_soon(f"request {index}", 503, time.perf_counter(), "id", "busy", refused=True)
        logs.log_soon("another", 200, time.perf_counter(), "id")
        await asyncio.sleep(1.1)
        logs.log_soon("request 50", 503, time.perf_counter(), "id", "busy", refused=True)
        await asyncio.sleep(0.01)

    with caplog.at_level(logging.INFO, "trtrun.serve"):
        asyncio.run(refuse())
    messages = [record.getMessage() for record in caplog.records]
    assert [message.partition(" 503")[0].partition(" 200")[0] for message in messages] == [
        "request 0",
        "another",
        "49 more requests were turned away within a second",
        "request 50",
    ]


def test_what_a_batch_gives_wakes_the_event_loop_once() -> None:
    async def run() -> tuple[list[int], int]:
        loop, woken = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal woken
            woken += 1
            return wake(*arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
        futures: list[Future[int]] = [Future() for _ in range(20)]
        tasks = [asyncio.create_task(result_of(future)) for future in futures]
        await asyncio.sleep(0.01)

        def settle() -> None:
            for index, future in enumerate(futures):
                future.set_result(index)

        thread = threading.Thread(target=settle)
        thread.start()
        thread.join()  # the loop has other things to do meanwhile
        return await asyncio.gather(*tasks), woken

    results, woken = asyncio.run(run())
    assert results == list(range(20))
    assert woken == 1


def test_what_comes_of_a_future_of_another_thread() -> None:
    async def run() -> None:
        failed: Future[int] = Future()
        threading.Timer(0.05, failed.set_exception, [ValueError("no")]).start()
        with pytest.raises(ValueError, match="no"):
            await result_of(failed)
        left: Future[int] = Future()
        task = asyncio.create_task(result_of(left))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left.cancelled()
        dropped: Future[int] = Future()
        threading.Timer(0.05, dropped.cancel).start()
        with pytest.raises(asyncio.CancelledError):
            await result_of(dropped)

    asyncio.run(run())


def test_addresses(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine())
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for arguments in (["--port", port, "--grpc-port", "-1"], ["--port", "0", "--grpc-port", port]):
            command = [sys.executable, "-m", "trtrun", "serve", str(model), *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 1
            assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
            assert "Traceback" not in done.stderr
            assert ".. Choose" not in done.stderr
    assert "cannot listen on nowhere.invalid" in Server.refused(str(model), "--host", "nowhere.invalid")
    server = Server(str(model), log=tmp_path / "log", host="[::1]")
    assert server.get("/v2/health/ready")[0] == 200
    with grpc_client.InferenceServerClient(f"[::1]:{server.grpc_port}") as client:
        assert client.is_server_ready()
    assert server.stop() == 0


def test_one_port_for_both_protocols_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    command = [sys.executable, "-m", "trtrun", "serve", str(tmp_path / "affine.onnx")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    done = subprocess.run(
        [*command, "--port", port, "--grpc-port", port], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"trtrun: HTTP and gRPC cannot both listen on port {port}")
    assert len(done.stderr.splitlines()) == 1


def test_grpc_stops_where_http_cannot_listen(tmp_path: Path) -> None:
    """Its destructor wants the event loop, which has ended by then."""
    script = """
import sys, uvicorn
from trtrun.serve.repository import Repository
from trtrun.serve.server import ServerOptions, serve

async def fail(self, sockets):
    raise OSError("taken meanwhile")

uvicorn.Server.serve = fail
serve(Repository(None), ServerOptions(port=0, grpc_port=0))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.rstrip().endswith("taken meanwhile")
    assert "Exception ignored" not in done.stderr
    assert "never awaited" not in done.stderr


def test_lines_of_text_name_the_request(tmp_path: Path) -> None:
    model = tmp_path / "affine.onnx"
    model.write_bytes(models.affine())
    server = Server(str(model), log=tmp_path / "log", as_json=False)
    server.get("/v2/models/affine%0Aforged", **{"X-Request-Id": "mine-17"})
    with grpc_client.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.get_model_metadata("affine", headers={"x-request-id": "over-grpc"})
    assert server.stop() == 0
    lines = server.log.read_text().splitlines()
    assert sum("GET /v2/models/affineforged 404" in line and line.endswith("[mine-17]") for line in lines) == 1
    assert sum("ModelMetadata OK" in line and line.endswith("[over-grpc]") for line in lines) == 1
    forged = logging.makeLogRecord({"msg": "one\ntwo", "request_id": identity_of("a\nb \x1b[3")})
    assert TextFormatter().format(forged).endswith("one\\ntwo [ab[3]")
    assert (
        TextFormatter().format(logging.makeLogRecord({"msg": "a\x1b[2J\x9b\u2028é"})).endswith("a\\x1b[2J\\x9b\\u2028é")
    )


def test_a_line_that_cannot_be_formatted_does_not_end_the_log() -> None:
    stream = io.StringIO()
    writer = logs.Writer(stream)
    writer.setFormatter(TextFormatter())
    writer.emit(logging.makeLogRecord({"msg": "%d", "args": ("no number",), "pathname": "theirs.py", "lineno": 7}))
    writer.emit(logging.makeLogRecord({"msg": "the next"}))
    writer.close()
    assert "theirs.py:7 cannot be written" in stream.getvalue()
    assert "the next\n" in stream.getvalue()


def test_what_any_library_raises_keeps_no_other_model_from_being_loaded(tmp_path: Path) -> None:
    good, files = FakeRunner(), {"a": tmp_path / "a", "b": tmp_path / "b"}

    def load(path: Path) -> FakeRunner:
        if path.name == "a":
            raise RuntimeError("theirs")
        return good

    repository = Repository(load, files)
    errors = repository.load_all()
    assert len(errors) == 1
    assert "theirs" in str(errors[0])
    repository.get("b")
    repository.unload("b")
    repository._entries["b"].unloaded = False
    repository.reload_changed()
    model = repository.get("b")
    repository.unload("b")
    assert repository.summary(model)["inference_count"] == 0  # asked for just before
    repository.close()
    with pytest.raises(ClosedError, match="shutting down"):
        repository.load("b")


def test_tritons_configuration_is_not_read_and_that_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("with", "without"):
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.onnx").touch()
    (tmp_path / "with" / "config.pbtxt").write_text("max_batch_size: 8\n")
    repository = Repository(lambda path: FakeRunner(), folder=tmp_path)
    assert not repository.load_all()
    repository.load("with")
    repository.close()
    said = [record.getMessage() for record in caplog.records if "config.pbtxt" in record.getMessage()]
    assert len(said) == 1
    assert said[0].startswith(f"with: {tmp_path.resolve()}/with/config.pbtxt is not read. ")
    assert "--max-batch-size" in said[0]


def test_what_is_skipped_in_a_repository_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        caplog.clear()
        Repository(lambda path: FakeRunner(), folder=tmp_path).say_skipped()
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    assert ["there is no model in" in line for line in said()] == [True]
    (tmp_path / "foo").mkdir()
    (tmp_path / "foo" / "bar.onnx").touch()
    (tmp_path / "a b.onnx").touch()
    (tmp_path / "README").touch()
    (tmp_path / ".git").mkdir()
    skipped, nothing = said()
    assert "skipped a b.onnx, foo. A model is NAME/VERSION/model.{engine,plan,trt,onnx,bundle}" in skipped
    assert "there is no model in" in nothing
    (tmp_path / "good.onnx").touch()
    assert ["skipped a b.onnx, foo." in line for line in said()] == [True]
    for name in ("a b.onnx", "foo/bar.onnx"):
        (tmp_path / name).unlink()
    (tmp_path / "foo" / "1").mkdir()
    (tmp_path / "foo" / "1" / "model.onnx").touch()
    assert not said()


def test_a_hangup_does_not_end_a_server_that_starts(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    server = Server(str(tmp_path / "affine.onnx"), log=tmp_path / "log", wait=False)
    status, masks = Path(f"/proc/{server.process.pid}/status"), {"SigIgn": 0, "SigCgt": 0}
    for _ in range(2000):
        found = dict(line.split(":") for line in status.read_text().splitlines())
        masks = {name: int(found[name], 16) & 1 for name in masks}
        if any(masks.values()):
            break
        time.sleep(0.005)
    assert masks == {"SigIgn": 1, "SigCgt": 0}  # long before it has a handler
    server.process.send_signal(signal.SIGHUP)
    for _ in range(200):
        if server.get("/v2/health/ready")[0] == 200:
            break
        time.sleep(0.1)
    assert server.get("/v2/health/ready")[0] == 200
    assert server.stop() == 0


def test_hangups_that_come_together_load_a_change_once(tmp_path: Path) -> None:
    file, loads = tmp_path / "a", 0

    def load(path: Path) -> FakeRunner:
        nonlocal loads
        loads += 1
        time.sleep(0.2)
        return FakeRunner()

    file.write_bytes(b"one")
    repository = Repository(load, {"a": file})
    assert not repository.load_all()
    file.write_bytes(b"another")
    threads = [threading.Thread(target=repository.reload_changed) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    repository.close()
    assert loads == 2


def test_connections_are_kept_longer_than_load_balancers_keep_theirs(server: Server) -> None:
    connection = http.client.HTTPConnection(server.address, timeout=20)
    connection.request("GET", "/v2")
    kept = connection.getresponse()
    assert kept.read()
    time.sleep(6)
    assert connection.sock is not None
    connection.sock.setblocking(False)
    with pytest.raises(BlockingIOError):  # nothing has come, the end of the connection neither
        connection.sock.recv(1)
    connection.close()


def test_as_many_files_as_the_system_allows() -> None:
    program = (
        "import resource as r; from trtrun.serve.server import raise_limit; hard = r.getrlimit(r.RLIMIT_NOFILE)[1];"
        "r.setrlimit(r.RLIMIT_NOFILE, (300, min(hard, 3000) if hard > 0 else 3000)); raise_limit();"
        "print(*r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["3000", "3000"]


def test_clients_cannot_make_any_number_of_time_series() -> None:
    statistics = Statistics()
    for rows in range(1, 20_000):
        statistics.note(Outcome(0.0, 0.001, rows, rows))
    assert len(statistics.batches) <= 1024 + 5
    assert statistics.batches[2048] == (1024, pytest.approx(1.024))
    assert statistics.rows == sum(range(1, 20_000))


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
@pytest.mark.parametrize("binary", [False, True])
def test_compressed_bodies(algorithm: str, binary: bool, client: triton.InferenceServerClient) -> None:
    x = RNG.standard_normal((100, 12)).astype(np.float32)
    given = triton.InferInput("x", list(x.shape), "FP32")
    given.set_data_from_numpy(x, binary_data=binary)
    reference = OnnxRuntimeSession(models.affine())
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in reference.outputs]
    how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    result = client.infer("affine", [given], outputs=wanted, **how)
    for name, array in reference.run({"x": x}).items():
        np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)


def test_compressed_bodies_have_the_same_limits(server: Server) -> None:
    path = "/v2/models/affine/infer"
    for body, coding, status in (
        (gzip.compress(bytes(8 << 20)), "gzip", 413),
        (b"no gzip", "gzip", 400),
        (b"{}", "br", 415),
    ):
        assert server.get(path, body, **{"Content-Encoding": coding})[0] == status


def test_tokens(tmp_path: Path) -> None:
    model, token = tmp_path / "affine.onnx", tmp_path / "token"
    model.write_bytes(models.affine())
    token.write_text("secret\n")
    server = Server(str(model), "--token-file", str(token), log=tmp_path / "log")
    assert server.get("/v2/models/affine")[0] == 401
    assert server.get("/v2/models/affine", Authorization="Bearer wrong")[0] == 401
    assert server.get("/v2/models/affine", Authorization="Bearer secret")[0] == 200
    assert server.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to serve"),
        (["--repository", "/nowhere"], "no folder"),
        (["no.onnx"], "trtrun: cannot read 'no.onnx': it does not exist"),
        (["."], "trtrun: '.' is a folder, and a model is a file. To serve the models in it: --repository ."),
        (["a b=x"], "no name"),
        (["x.onnx", "--token-file", "nope"], "cannot read the secret in 'nope': it does not exist. Write one there"),
        (["x.onnx", "--token-file", "latin1.txt"], "cannot read the secret in 'latin1.txt': it is no text in UTF-8"),
        (["x.onnx", "--head", "x=yolo0"], "write MODEL=HEAD, with one of"),
        (["x.onnx", "--task", "x=detection"], "write MODEL=TASK, with one of detect, segment"),
        (["x.onnx", "--labels", "names.txt"], "write MODEL=FILE"),
        (["x.onnx", "--size", "640x640"], "write MODEL=WIDTHxHEIGHT"),
        (["x.onnx", "--size", "x=640"], "write WIDTHxHEIGHT"),
        (["--repository", ".", "other/x.onnx"], "two models are called 'x': other/x.onnx and "),
    ],
)
def test_what_cannot_be_served(arguments: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").touch()
    (tmp_path / "latin1.txt").write_bytes(b"\xe9")
    command = [sys.executable, "-m", "trtrun", "serve", *arguments, "--port", "0", "--grpc-port", "-1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "listening" not in done.stderr
