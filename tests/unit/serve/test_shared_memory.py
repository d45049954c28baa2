"""Tensors in memory that client and server share, through Triton's client, over both protocols."""

from __future__ import annotations

import base64
import multiprocessing.shared_memory
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests import models
from tests.unit.serve.process import Server
from trtrun.cuda.device import gpu_count
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve.peer import peer_of, user_of

RNG = np.random.default_rng()
KINDS = {"http": tritonclient.http, "grpc": tritonclient.grpc}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("shared")
    (folder / "affine.onnx").write_bytes(models.affine())
    server = Server(str(folder / "affine.onnx"), log=folder / "log")
    yield server
    assert server.stop() == 0


@pytest.fixture(params=KINDS)
def connection(server: Server, request: pytest.FixtureRequest) -> Iterator[tuple[Any, Any]]:
    """The module of a client, and one connected."""
    kind = KINDS[request.param]
    address = server.address if request.param == "http" else f"127.0.0.1:{server.grpc_port}"
    with kind.InferenceServerClient(address) as client:
        yield kind, client


def test_system_shared_memory(connection: tuple[Any, Any]) -> None:
    kind, client = connection
    x = RNG.standard_normal((4, 12)).astype(np.float32)
    name, array = next(iter(OnnxRuntimeSession(models.affine()).run({"x": x}).items()))
    size = x.nbytes + array.nbytes
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=size)
    try:
        memory.buf[: x.nbytes] = x.tobytes()
        client.register_system_shared_memory("region", memory.name, size)
        status = client.get_system_shared_memory_status()
        registered = status[0]["byte_size"] if kind is tritonclient.http else status.regions["region"].byte_size
        assert registered == size
        given = kind.InferInput("x", [4, 12], "FP32")
        given.set_shared_memory("region", x.nbytes)
        output = kind.InferRequestedOutput(name)
        output.set_shared_memory("region", array.nbytes, offset=x.nbytes)
        client.infer("affine", [given], outputs=[output])
        found = np.frombuffer(memory.buf, np.float32, array.size, x.nbytes).reshape(array.shape).copy()
        np.testing.assert_allclose(found, array, rtol=1e-4, atol=1e-5)
        beyond = kind.InferInput("x", [4, 12], "FP32")
        beyond.set_shared_memory("region", size + 1)
        with pytest.raises(InferenceServerException, match="bytes"):
            client.infer("affine", [beyond])
        with pytest.raises(InferenceServerException, match="registered already"):
            client.register_system_shared_memory("region", memory.name, size)
        client.unregister_system_shared_memory("region")
        with pytest.raises(InferenceServerException, match="no shared memory region"):
            client.infer("affine", [given])
        with pytest.raises(InferenceServerException, match="no name"):
            client.register_system_shared_memory("bad", "../../etc/passwd", 4)
    finally:
        memory.close()
        memory.unlink()


def test_memory_that_a_client_makes_shorter_fails_its_own_request_only(connection: tuple[Any, Any]) -> None:
    kind, client = connection
    rows = 40_000
    x = np.zeros((rows, 12), np.float32)
    name = next(iter(OnnxRuntimeSession(models.affine()).outputs))
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=x.nbytes)
    try:
        client.register_system_shared_memory("short", memory.name, x.nbytes)
        given = kind.InferInput("x", [rows, 12], "FP32")
        given.set_shared_memory("short", x.nbytes)
        client.infer("affine", [given])
        os.truncate(f"/dev/shm/{memory.name}", 4096)
        with pytest.raises(InferenceServerException, match="become shorter"):
            client.infer("affine", [given])
        small = kind.InferInput("x", [1, 12], "FP32")
        small.set_data_from_numpy(x[:1])
        output = kind.InferRequestedOutput(name)
        output.set_shared_memory("short", 4096, offset=4096)
        with pytest.raises(InferenceServerException, match="become shorter"):
            client.infer("affine", [small], outputs=[output])
        assert os.stat(f"/dev/shm/{memory.name}").st_size == 4096
        assert client.infer("affine", [small]).as_numpy(name) is not None  # the server is there
    finally:
        client.unregister_system_shared_memory("short")
        memory.close()
        memory.unlink()


def test_what_belongs_to_another_user_is_not_registered(connection: tuple[Any, Any]) -> None:
    _, client = connection
    if os.geteuid() != 0:
        pytest.skip("needs root, who may give files away")
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=64)
    try:
        os.chown(f"/dev/shm/{memory.name}", 12345, 12345)
        with pytest.raises(InferenceServerException, match=r"does not belong to user 0.*--shared-memory"):
            client.register_system_shared_memory("foreign", memory.name, 64)
    finally:
        memory.close()
        memory.unlink()


def test_names_that_the_server_allows(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    server = Server(str(tmp_path / "affine.onnx"), "--shared-memory", "tensors-", log=tmp_path / "log")
    made = [multiprocessing.shared_memory.SharedMemory(f"{name}-{os.getpid()}", True, 64) for name in ("tensors", "x")]
    try:
        with tritonclient.http.InferenceServerClient(server.address) as client:
            client.register_system_shared_memory("good", made[0].name, 64)
            with pytest.raises(InferenceServerException, match="must begin with 'tensors-'"):
                client.register_system_shared_memory("bad", made[1].name, 64)
    finally:
        for memory in made:
            memory.close()
            memory.unlink()
    assert server.stop() == 0


def test_whose_socket_it_is() -> None:
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as listening, socket.socket(family) as client:
            try:
                listening.bind((host, 0))
            except OSError:  # no IPv6 here
                continue
            listening.listen()
            client.connect(listening.getsockname()[:2])
            accepted, address = listening.accept()
            with accepted:
                assert user_of(address[:2]) == os.geteuid()
                assert user_of((host, 1)) is None
                assert user_of(("192.0.2.7", address[1])) is None
    assert peer_of("ipv4:127.0.0.1:50") == ("127.0.0.1", 50)
    assert peer_of("ipv6:%5B::1%5D:50") == ("::1", 50)
    assert peer_of("unix:") is None


@pytest.mark.skipif(gpu_count() > 0, reason="with a GPU: tests/gpu/test_serve_cuda_shared_memory.py")
def test_cuda_shared_memory_without_a_gpu(connection: tuple[Any, Any]) -> None:
    kind, client = connection
    status = client.get_cuda_shared_memory_status()
    assert not (status if kind is tritonclient.http else status.regions)
    with pytest.raises(InferenceServerException, match=r"cannot be opened: .*GPU") as caught:
        client.register_cuda_shared_memory("region", base64.b64encode(bytes(64)), 0, 16)
    assert "400" in caught.value.status() or "INVALID_ARGUMENT" in caught.value.status()
    with pytest.raises(InferenceServerException, match="has 64 bytes, got 3"):
        client.register_cuda_shared_memory("region", base64.b64encode(b"abc"), 0, 16)
    client.unregister_cuda_shared_memory("region")
    client.unregister_cuda_shared_memory()
