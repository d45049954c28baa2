"""The same server asked over gRPC, by Triton's client and by messages of our own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from tests import models
from tests.unit.serve.process import Server
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve import grpc_api
from trtrun.serve.grpc_api import messages

RNG = np.random.default_rng()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("grpc")
    (folder / "affine.onnx").write_bytes(models.affine())
    (folder / "token").write_text("secret")
    server = Server("--repository", str(folder), "--max-batch-size", "8", log=folder.parent / "grpc.log")
    yield server
    assert server.stop() == 0


@pytest.fixture
def client(server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        yield client


def tensor_of(x: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput("x", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return tensor


def test_who_is_to_come_back_later_is_not_read_first(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    batching = ["--max-batch-size", "64", "--max-queue-delay", "2000", "--instances", "1", "--queue-size", "1"]
    server = Server(str(tmp_path / "affine.onnx"), *batching, log=tmp_path / "log")
    wrong = triton.InferInput("none of its inputs", [1, 12], "FP32")
    wrong.set_data_from_numpy(np.zeros((1, 12), np.float32))
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT"):
            client.infer("affine", [wrong])
        waits = client.async_infer("affine", [tensor_of(np.zeros((1, 12), np.float32))], callback=lambda *_: None)
        time.sleep(0.3)
        with pytest.raises(InferenceServerException, match="RESOURCE_EXHAUSTED"):
            client.infer("affine", [wrong])
        with pytest.raises(InferenceServerException, match="NOT_FOUND"):
            client.infer("no model", [wrong])
        waits.cancel()
    assert server.stop() == 0


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("affine")
    assert not client.is_model_ready("nothing")
    assert "model_repository" in client.get_server_metadata(as_json=True)["extensions"]
    metadata = client.get_model_metadata("affine", as_json=True)
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "12"]}]
    (model,) = client.get_model_repository_index(as_json=True)["models"]
    assert (model["name"], model["state"]) == ("affine", "READY")


def test_inference_and_streams(client: triton.InferenceServerClient) -> None:
    reference = OnnxRuntimeSession(models.affine())
    answers: list[tuple[object, object]] = []
    xs = [RNG.standard_normal((rows, 12)).astype(np.float32) for rows in (1, 3, 12)]
    for x in xs:
        result = client.infer("affine", [tensor_of(x)], request_id="5")
        for name, array in reference.run({"x": x}).items():
            np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)
        assert result.get_response().id == "5"
    client.start_stream(lambda result, error: answers.append((result, error)))
    for x in xs:
        client.async_stream_infer("affine", [tensor_of(x)])
    client.async_stream_infer("affine", [tensor_of(np.zeros((1, 13), np.float32))])
    client.stop_stream()
    assert len(answers) == 4
    for x, (result, error) in zip(xs, answers, strict=False):
        assert error is None
        for name, array in reference.run({"x": x}).items():
            np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)
    assert "dimension 1 must be 12" in str(answers[3][1])
    stats = client.get_inference_statistics("affine", as_json=True)["model_stats"][0]
    assert int(stats["inference_count"]) >= 6


def test_a_streams_requests_run_together_and_are_answered_in_order(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    options = ["--max-batch-size", "8", "--max-queue-delay", "300", "--instances", "1"]
    server = Server(str(tmp_path / "affine.onnx"), *options, log=tmp_path / "log")
    answers: list[tuple[object, object]] = []
    reference = OnnxRuntimeSession(models.affine())
    xs = [RNG.standard_normal((1, 12)).astype(np.float32) for _ in range(20)]
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        start = time.perf_counter()
        client.start_stream(lambda result, error: answers.append((result, error)))
        for index, x in enumerate(xs):
            client.async_stream_infer("affine", [tensor_of(x)], request_id=str(index))
        client.async_stream_infer("nothing", [tensor_of(xs[0])], request_id="bad")
        client.async_stream_infer("affine", [tensor_of(xs[0])], request_id="last")
        client.stop_stream()
        took = time.perf_counter() - start
        stats = client.get_inference_statistics("affine", as_json=True)["model_stats"][0]
    assert [result.get_response().id for result, error in answers if error is None] == [*map(str, range(20)), "last"]
    assert "not served" in str(answers[20][1])
    for x, (result, _) in zip(xs, answers, strict=False):
        for name, array in reference.run({"x": x}).items():
            np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)
    assert took < 3  # one by one each would wait for others to fill its batch, 6 s
    assert int(stats["inference_count"]) == 21
    assert int(stats["execution_count"]) <= 5
    assert stats["batch_stats"][-1]["batch_size"] == "8"
    assert server.stop() == 0


def test_without_the_token_no_message_is_read(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    (tmp_path / "token").write_text("secret")
    options = ["--token-file", str(tmp_path / "token"), "--max-body", "64"]
    server = Server(str(tmp_path / "affine.onnx"), *options, log=tmp_path / "log")

    def memory() -> int:
        (line,) = [x for x in Path(f"/proc/{server.process.pid}/status").read_text().splitlines() if "VmHWM" in x]
        return int(line.split()[1]) << 10

    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError):
            infer(b"", timeout=20)
        before = memory()
        for _ in range(3):
            with pytest.raises(grpc.RpcError) as caught:
                infer(bytes(60 << 20), timeout=20)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert memory() - before < 30 << 20
        with pytest.raises(grpc.RpcError) as caught:
            infer(bytes(60 << 20), timeout=20, metadata=(("authorization", "Bearer secret"),))
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT  # read, and no message
        assert memory() - before > 60 << 20
    assert server.stop() == 0


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compression(algorithm: str, client: triton.InferenceServerClient) -> None:
    x = RNG.standard_normal((50, 12)).astype(np.float32)
    result = client.infer("affine", [tensor_of(x)], compression_algorithm=algorithm)
    for name, array in OnnxRuntimeSession(models.affine()).run({"x": x}).items():
        np.testing.assert_allclose(result.as_numpy(name), array, rtol=1e-4, atol=1e-5)


def test_a_small_message_that_unpacks_to_a_large_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    server = Server(str(tmp_path / "affine.onnx"), "--max-body", "1", log=tmp_path / "log")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", compression=grpc.Compression.Gzip) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            infer(bytes(50 << 20), timeout=20)
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert server.stop() == 0


@contextmanager
def model_infer(server: Server) -> Iterator[grpc.UnaryUnaryMultiCallable]:
    """ModelInfer for messages as they are, which tritonclient would make itself."""
    kinds = messages()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=kinds.ModelInferRequest.SerializeToString,
            response_deserializer=kinds.ModelInferResponse.FromString,
        )


def test_contents_by_type(server: Server) -> None:
    """What clients send that do not pack tensors themselves."""
    with model_infer(server) as infer:
        x = RNG.standard_normal((2, 12)).astype(np.float32)
        request = messages().ModelInferRequest(model_name="affine")
        tensor = request.inputs.add(name="x", datatype="FP32", shape=[2, 12])
        tensor.contents.fp32_contents.extend(x.ravel().tolist())
        response = infer(request)
        (output,) = response.outputs
        wanted = OnnxRuntimeSession(models.affine()).run({"x": x})[output.name]
        found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(tuple(output.shape))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        del tensor.contents.fp32_contents[-1]
        with pytest.raises(grpc.RpcError) as caught:
            infer(request)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("rows", [3, 500])  # a message that is parsed whole, and one whose bytes stay where they lie
def test_requests_that_say_the_same_have_their_own_bytes(server: Server, rows: int) -> None:
    with model_infer(server) as infer:
        runner = OnnxRuntimeSession(models.affine())
        for cut in (0, 4, 0, 4):
            x = RNG.standard_normal((rows, 12)).astype(np.float32)
            request = messages().ModelInferRequest(model_name="affine")
            request.inputs.add(name="x", datatype="FP32", shape=x.shape)
            request.raw_input_contents.append(x.tobytes()[cut:])
            if cut:
                with pytest.raises(grpc.RpcError) as caught:
                    infer(request)
                assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
                continue
            response = infer(request)
            wanted = runner.run({"x": x})[response.outputs[0].name]
            found = np.frombuffer(response.raw_output_contents[0], np.float32).reshape(wanted.shape)
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_errors_have_their_codes(client: triton.InferenceServerClient) -> None:
    for model, shape, code in (("nothing", (1, 12), "NOT_FOUND"), ("affine", (1, 13), "INVALID_ARGUMENT")):
        with pytest.raises(InferenceServerException) as caught:
            client.infer(model, [tensor_of(np.zeros(shape, np.float32))])
        assert code in caught.value.status()
    with pytest.raises(InferenceServerException, match=r"not loaded|no model"):
        client.unload_model("nothing")
    client.load_model("affine")


def test_tokens(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    (tmp_path / "token").write_text("secret")
    server = Server(str(tmp_path / "affine.onnx"), "--token-file", str(tmp_path / "token"), log=tmp_path / "log")
    with triton.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="bearer token"):
            client.get_model_metadata("affine")
        assert client.get_model_metadata("affine", headers={"authorization": "Bearer secret"}).name == "affine"
    assert server.stop() == 0


def test_what_is_left_out_of_tritons_interface_is_said(client: triton.InferenceServerClient) -> None:
    missing = {
        "TraceSetting": [client.get_trace_settings, lambda: client.update_trace_settings("affine")],
        "LogSettings": [client.get_log_settings, lambda: client.update_log_settings({"log_info": True})],
    }
    for what, calls in missing.items():
        for call in calls:
            with pytest.raises(InferenceServerException, match=f"{what} is not served: .*trace and log") as raised:
                call()
            assert raised.value.status() == "StatusCode.UNIMPLEMENTED"
    wanted = triton.InferRequestedOutput("y", class_count=2)
    with pytest.raises(InferenceServerException, match="classification extension is not served"):
        client.infer("affine", [tensor_of(np.zeros((1, 12), np.float32))], outputs=[wanted])


def test_configuration(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("affine").config
    assert (config.name, config.backend, config.max_batch_size) == ("affine", "trtrun", 8)
    (given,) = config.input
    assert (given.name, given.data_type, list(given.dims)) == ("x", 11, [12])  # TYPE_FP32
    names = list(OnnxRuntimeSession(models.affine()).outputs)
    assert [output.name for output in config.output] == names
    assert config.instance_group[0].count == 2
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    with pytest.raises(InferenceServerException, match="not served"):
        client.get_model_config("affine", "9")


@settings(deadline=None, max_examples=200)
@given(
    raw=st.lists(st.binary(max_size=300), max_size=5),
    identity=st.text(max_size=300),
    cut=st.none() | st.integers(0, 2000),
)
def test_messages_are_taken_apart_as_protobuf_does(raw: list[bytes], identity: str, cut: int | None) -> None:
    kind = messages().ModelInferRequest
    message = kind(model_name="affine", id=identity, raw_input_contents=raw)
    message.inputs.add(name="x", datatype="FP32", shape=[2, 12])
    message.parameters["priority"].int64_param = 1
    data = message.SerializeToString()[:cut]
    before, grpc_api._SMALL = grpc_api._SMALL, 0
    try:
        rest, found = grpc_api.split(data)
    finally:
        grpc_api._SMALL = before
    try:
        wanted = kind.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            kind.FromString(rest)
        return
    parsed = kind.FromString(rest)
    parsed.raw_input_contents.extend([bytes(one) for one in found])
    assert parsed == wanted
    if cut is None:
        assert list(map(bytes, found)) == raw
