"""CUDA shared memory: this process allocates and exports, a server process opens, reads and writes."""

from __future__ import annotations

import base64
import ctypes
import json
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

from tests.unit.serve.process import Server
from trtrun.cuda.check import check
from trtrun.cuda.device import Device
from trtrun.cuda.memory import DeviceMemory

RNG = np.random.default_rng()
SIZE = 4 << 20  # of every allocation: more than the 2 MiB that CUDA hands out in one piece


class Exported:
    """Device memory of this process and its handle."""

    def __init__(self) -> None:
        self.device = Device(0)
        self.memory = DeviceMemory(self.device, SIZE)
        with self.device:
            handle = check(driver.cuIpcGetMemHandle(self.memory.address), "export memory")
        self.handle = ctypes.string_at(handle.getPtr(), 64)

    def write(self, array: np.ndarray, offset: int = 0) -> None:
        array = np.ascontiguousarray(array)
        with self.device:
            check(driver.cuMemcpyHtoD(self.memory.address + offset, array.ctypes.data, array.nbytes), "write")
            check(driver.cuCtxSynchronize(), "wait")

    def read(self, shape: tuple[int, ...], offset: int) -> np.ndarray:
        array = np.empty(shape, np.float32)
        with self.device:
            check(driver.cuMemcpyDtoH(array.ctypes.data, self.memory.address + offset, array.nbytes), "read")
        return array

    def close(self) -> None:
        self.memory.close()


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two workers"])
def server(
    plan: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Server]:
    for package in ("uvicorn", "starlette", "httptools", "prometheus_client", "grpc"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "affine.engine").write_bytes(plan("affine"))
    workers = ("--workers", str(request.param))  # every request comes on a new connection, to any of them
    server = Server(str(folder / "affine.engine"), *workers, log=folder / "log", gpu=True)
    assert server.get("/v2/health/ready")[0] == 200, server.log.read_text()[-3000:]
    yield server
    assert server.stop() == 0, server.log.read_text()[-3000:]


@pytest.fixture
def exported(server: Server) -> Iterator[Exported]:
    exported = Exported()
    yield exported
    post(server, "/v2/cudasharedmemory/unregister", {})
    exported.close()


def post(server: Server, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    status, answer = server.get(path, json.dumps(body).encode())
    return status, json.loads(answer)


def register(server: Server, exported: Exported, nbytes: int = SIZE, handle: bytes | None = None) -> tuple[int, Any]:
    raw = {"b64": base64.b64encode(exported.handle if handle is None else handle).decode()}
    body = {"raw_handle": raw, "device_id": 0, "byte_size": nbytes}
    return post(server, "/v2/cudasharedmemory/region/region/register", body)


def place(nbytes: int, offset: int = 0) -> dict[str, Any]:
    return {"shared_memory_region": "region", "shared_memory_byte_size": nbytes, "shared_memory_offset": offset}


def infer(server: Server, given: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    status, answer = post(server, "/v2/models/affine/infer", {"inputs": [given], "outputs": [output]})
    assert status == 200, (answer, server.log.read_text()[-2000:])
    return answer["outputs"][0]


def test_metrics_tell_the_memory_of_sessions_and_of_the_gpu(server: Server) -> None:
    infer(server, {**x_of(3), "data": [0.5] * 36}, {"name": "y"})
    text = server.get("/metrics")[1].decode()
    on_gpu = re.findall(r'^trtrun_gpu_memory_bytes{gpu="0",state="(\w+)".*} (\S+)$', text, re.M)
    assert {state for state, _ in on_gpu} == {"used", "total"}
    total = Device(0).memory()[1]
    assert all(float(nbytes) == total if state == "total" else 0 < float(nbytes) < total for state, nbytes in on_gpu)
    held = re.findall(r'^trtrun_memory_bytes{location="(\w+)",model="affine".*} (\S+)$', text, re.M)
    assert {location for location, _ in held} == {"device", "host"}
    assert all(float(nbytes) > 0 for _, nbytes in held)


def x_of(rows: int, **more: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP32", "shape": [rows, 12], **more}


def test_both_ends_on_the_gpu(server: Server, exported: Exported, reference: Callable[[str], Any]) -> None:
    assert register(server, exported) == (200, {})
    regions = json.loads(server.get("/v2/cudasharedmemory/status")[1])
    assert regions == [{"name": "region", "device_id": 0, "byte_size": SIZE}]
    for turn in range(40):  # often enough for a graph over these very addresses
        rows = (1, 4, 64)[turn % 3]
        x = RNG.standard_normal((rows, 12)).astype(np.float32)
        name, wanted = next(iter(reference("affine").run({"x": x}).items()))
        exported.write(x, 4096)
        exported.write(np.full(wanted.shape, np.nan, np.float32), 1 << 20)
        output = {"name": name, "parameters": place(wanted.nbytes, 1 << 20)}
        tensor = infer(server, x_of(rows, parameters=place(x.nbytes, 4096)), output)
        assert tensor["parameters"]["shared_memory_region"] == "region"
        np.testing.assert_allclose(exported.read(wanted.shape, 1 << 20), wanted, rtol=1e-2, atol=1e-2)


def test_one_end_on_the_gpu(server: Server, exported: Exported, reference: Callable[[str], Any]) -> None:
    register(server, exported)
    x = RNG.standard_normal((3, 12)).astype(np.float32)
    name, wanted = next(iter(reference("affine").run({"x": x}).items()))
    exported.write(x)
    found = infer(server, x_of(3, parameters=place(x.nbytes)), {"name": name})
    np.testing.assert_allclose(np.reshape(found["data"], wanted.shape), wanted, rtol=1e-2, atol=1e-2)
    exported.write(np.zeros(wanted.shape, np.float32), 8192)
    infer(server, x_of(3, data=x.ravel().tolist()), {"name": name, "parameters": place(wanted.nbytes, 8192)})
    np.testing.assert_allclose(exported.read(wanted.shape, 8192), wanted, rtol=1e-2, atol=1e-2)


def test_beside_requests_that_are_batched(server: Server, exported: Exported, reference: Callable[[str], Any]) -> None:
    register(server, exported)
    wrong: list[Any] = []
    stop = threading.Event()

    def ask() -> None:
        rng = np.random.default_rng()
        while not stop.is_set():
            x = rng.standard_normal((2, 12)).astype(np.float32)
            name, wanted = next(iter(reference("affine").run({"x": x}).items()))
            found = infer(server, x_of(2, data=x.ravel().tolist()), {"name": name})
            if not np.allclose(np.reshape(found["data"], wanted.shape), wanted, rtol=1e-2, atol=1e-2):
                wrong.append(found)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(60):
            x = RNG.standard_normal((4, 12)).astype(np.float32)
            name, wanted = next(iter(reference("affine").run({"x": x}).items()))
            exported.write(x)
            output = {"name": name, "parameters": place(wanted.nbytes, 8192)}
            infer(server, x_of(4, parameters=place(x.nbytes)), output)
            np.testing.assert_allclose(exported.read(wanted.shape, 8192), wanted, rtol=1e-2, atol=1e-2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


def test_registering_anew_after_the_memory_was_freed(
    server: Server, exported: Exported, reference: Callable[[str], Any]
) -> None:
    for _ in range(5):
        other = Exported()
        assert register(server, other)[0] == 200
        for _ in range(4):
            x = RNG.standard_normal((4, 12)).astype(np.float32)
            name, wanted = next(iter(reference("affine").run({"x": x}).items()))
            other.write(x)
            infer(server, x_of(4, parameters=place(x.nbytes)), {"name": name, "parameters": place(wanted.nbytes, 8192)})
            np.testing.assert_allclose(other.read(wanted.shape, 8192), wanted, rtol=1e-2, atol=1e-2)
        assert post(server, "/v2/cudasharedmemory/region/region/unregister", {})[0] == 200
        assert json.loads(server.get("/v2/cudasharedmemory/status")[1]) == []
        other.close()


def test_what_cannot_be_registered(server: Server, exported: Exported) -> None:
    for nbytes, handle, said in (
        (1 << 40, None, "bytes, not"),
        (0, None, "bytes, not"),
        (SIZE, b"abc", "64 bytes"),
        (SIZE, bytes(64), "cannot be opened"),
    ):
        status, answer = register(server, exported, nbytes, handle)
        assert status == 400, answer
        assert said in answer["error"]
    assert register(server, exported)[0] == 200  # nothing is left of them
    status, answer = register(server, exported)
    assert status == 400
    assert "registered already" in answer["error"]
    beyond = {"inputs": [x_of(1, parameters=place(48, SIZE - 47))]}
    status, answer = post(server, "/v2/models/affine/infer", beyond)
    assert status == 400, answer
    assert server.get("/v2/health/live")[0] == 200


def test_over_grpc(server: Server, exported: Exported, reference: Callable[[str], Any]) -> None:
    import grpc

    from trtrun.serve.grpc_api import messages

    kinds = messages()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:

        def call(name: str, request: Any, response: str) -> Any:
            path = f"/inference.GRPCInferenceService/{name}"
            method = channel.unary_unary(path, type(request).SerializeToString, getattr(kinds, response).FromString)
            return method(request, timeout=60)

        wanted = {"name": "region", "raw_handle": exported.handle, "device_id": 0, "byte_size": SIZE}
        request = kinds.CudaSharedMemoryRegisterRequest(**wanted)
        call("CudaSharedMemoryRegister", request, "CudaSharedMemoryRegisterResponse")
        status = call("CudaSharedMemoryStatus", kinds.CudaSharedMemoryStatusRequest(), "CudaSharedMemoryStatusResponse")
        assert status.regions["region"].byte_size == SIZE
        x = RNG.standard_normal((4, 12)).astype(np.float32)
        name, array = next(iter(reference("affine").run({"x": x}).items()))
        exported.write(x)
        request = kinds.ModelInferRequest(model_name="affine")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[4, 12])
        output = request.outputs.add(name=name)
        for parameters, nbytes, offset in ((tensor.parameters, x.nbytes, 0), (output.parameters, array.nbytes, 8192)):
            parameters["shared_memory_region"].string_param = "region"
            parameters["shared_memory_byte_size"].int64_param = nbytes
            parameters["shared_memory_offset"].int64_param = offset
        call("ModelInfer", request, "ModelInferResponse")
        np.testing.assert_allclose(exported.read(array.shape, 8192), array, rtol=1e-2, atol=1e-2)
        request = kinds.CudaSharedMemoryUnregisterRequest(name="region")
        call("CudaSharedMemoryUnregister", request, "CudaSharedMemoryUnregisterResponse")
