"""Several processes on the same ports, through Triton's client."""

from __future__ import annotations

import fcntl
import json
import multiprocessing.shared_memory
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from tests import models
from tests.unit.serve.process import Server
from trtrun.errors import InputError
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve import workers
from trtrun.serve.metrics import of_workers
from trtrun.serve.repository import merged
from trtrun.serve.shared_memory import SharedMemory, SharedRegistrations, SystemRegion
from trtrun.serve.workers import Place

X = np.random.default_rng(0).standard_normal((4, 12)).astype(np.float32)
BODY = json.dumps({"inputs": [{"name": "x", "shape": [1, 12], "datatype": "FP32", "data": X[0].tolist()}]}).encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("workers")
    (folder / "models").mkdir()
    (folder / "models" / "affine.onnx").write_bytes(models.affine())
    server = Server("--repository", str(folder / "models"), "--workers", "2", log=folder / "log")
    until(lambda: labels(server) == {"0", "1"})
    yield server
    assert server.stop() == 0


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def labels(server: Server) -> set[str]:
    """The workers whose metrics there are."""
    return set(re.findall(r'worker="(\d+)"', server.get("/metrics")[1].decode()))


def lines(server: Server) -> list[dict]:
    time.sleep(0.2)  # they are written some at a time
    return [json.loads(line) for line in server.log.read_text().splitlines()]


def who_answered(server: Server, what: str, since: int = 0) -> list[int]:
    return [line["worker"] for line in lines(server)[since:] if line["message"].startswith(what) and "worker" in line]


def pids(server: Server) -> list[int]:
    """Of the workers, as they got ready."""
    return [
        int(found[1]) for line in lines(server) if (found := re.search(r"is ready: process (\d+)", line["message"]))
    ]


def ask_both(server: Server, ask: Callable[[], object], what: str) -> None:
    """``ask`` on new connections until each worker has answered some; all must succeed."""
    since = len(lines(server))
    for _ in range(5):
        for _ in range(6):
            ask()
        if set(who_answered(server, what, since)) == {0, 1}:
            return
    pytest.fail("one worker answered everything")


def test_both_answer_over_both_protocols(server: Server) -> None:
    expected = next(iter(OnnxRuntimeSession(models.affine()).run({"x": X}).values()))

    def over_http() -> None:
        with tritonclient.http.InferenceServerClient(server.address) as client:
            check(client, tritonclient.http)

    def over_grpc() -> None:
        # Else the connection of the client before is used again.
        apart = [("grpc.use_local_subchannel_pool", 1)]
        with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}", channel_args=apart) as client:
            check(client, tritonclient.grpc)

    def check(client, kind) -> None:  # type: ignore[no-untyped-def]
        given = kind.InferInput("x", [4, 12], "FP32")
        given.set_data_from_numpy(X)
        answer = client.infer("affine", [given])
        (name,) = OnnxRuntimeSession(models.affine()).outputs
        np.testing.assert_allclose(answer.as_numpy(name), expected, rtol=1e-4, atol=1e-5)

    ask_both(server, over_http, "POST /v2/models/affine/infer")
    ask_both(server, over_grpc, "ModelInfer")
    first, second, *_ = pids(server)
    assert first != second


def test_statistics_are_summed_and_metrics_told_apart(server: Server) -> None:
    def count() -> int:
        return json.loads(server.get("/v2/models/affine/stats")[1])["model_stats"][0]["inference_stats"]["success"][
            "count"
        ]

    before = count()
    ask_both(server, lambda: server.get("/v2/models/affine/infer", BODY), "POST /v2/models/affine/infer")
    text = server.get("/metrics")[1].decode()
    counts = re.findall(r'^trtrun_requests_total\{[^}]*worker="(\d)"[^}]*\} ([\d.]+)$', text, re.M)
    assert {worker for worker, _ in counts} == {"0", "1"}
    assert sum(float(number) for _, number in counts) == count() > before
    assert text.count("# TYPE trtrun_requests_total counter") == 1
    assert 'trtrun_request_seconds_bucket{le="+Inf"' in text
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        assert client.get_inference_statistics("affine").model_stats[0].inference_stats.success.count == count()


def test_models_are_loaded_and_unloaded_in_both(server: Server) -> None:
    folder = server.log.parent / "models"
    (folder / "new.onnx").write_bytes(models.affine())
    with tritonclient.http.InferenceServerClient(server.address) as client:
        client.load_model("new")
    infer = "/v2/models/new/infer"
    ask_both(server, lambda: expect(server, 200), f"POST {infer}")
    with tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        client.unload_model("new")
        ask_both(server, lambda: expect(server, 404), f"POST {infer}")
        with pytest.raises(InferenceServerException, match="not loaded"):
            client.unload_model("new")
        with pytest.raises(InferenceServerException, match="no model 'never'"):
            client.unload_model("never")
        marked = {path.name for path in Path(tempfile.gettempdir()).glob("trtrun-*/unloaded/*")}
        assert "new" in marked
        assert "never" not in marked
        (folder / "new.onnx").write_bytes(b"no model")
        with pytest.raises(InferenceServerException):
            client.load_model("new")
    (folder / "new.onnx").unlink()


def test_sighup_reaches_both(server: Server) -> None:
    path = server.log.parent / "models" / "new.onnx"
    path.write_bytes(models.affine())
    server.process.send_signal(signal.SIGHUP)
    since = len(lines(server))
    assert server.get("/v2/repository/models/new/load", b"{}")[0] == 200  # it was unloaded, and stays so
    os.utime(path, (1, 1))
    server.process.send_signal(signal.SIGHUP)
    ready = "new version 1 is ready"
    until(lambda: [line["worker"] for line in lines(server)[since:] if ready in line["message"]].count(0) == 2)
    until(lambda: [line["worker"] for line in lines(server)[since:] if ready in line["message"]].count(1) == 2)
    path.unlink()
    assert server.get("/v2/repository/models/new/unload", b"{}")[0] == 200


def expect(server: Server, status: int) -> None:
    assert server.get("/v2/models/new/infer", BODY)[0] == status


def test_a_model_that_one_worker_cannot_load_is_an_error_that_names_it(server: Server) -> None:
    stopped = pids(server)[0]
    (server.log.parent / "models" / "late.onnx").write_bytes(models.affine())
    os.kill(stopped, signal.SIGSTOP)
    found: list[tuple[int, bytes]] = []
    try:
        since = len(lines(server))
        # The stopped one's connections wait; of several, one comes to the other.
        asking = [
            threading.Thread(target=lambda: found.append(server.get("/v2/repository/models/late/load", b"{}")))
            for _ in range(12)
        ]
        for thread in asking:
            thread.start()
        until(lambda: any("late version 1 is ready" in line["message"] for line in lines(server)[since:]))
        os.kill(stopped, signal.SIGKILL)
        for thread in asking:
            thread.join(30)
    finally:
        with suppress(ProcessLookupError):
            os.kill(stopped, signal.SIGCONT)
    failed = [body for status, body in found if status == 500]
    assert any(b"worker" in body and b"did not do it" in body for body in failed), found
    until(lambda: len(pids(server)) == 3 and labels(server) == {"0", "1"})
    assert server.get("/v2/repository/models/late/load", b"{}")[0] == 200
    assert server.get("/v2/repository/models/late/unload", b"{}")[0] == 200


def running() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def test_shared_memory_that_one_has_registered_serves_both(server: Server) -> None:
    (name,), expected = OnnxRuntimeSession(models.affine()).outputs, OnnxRuntimeSession(models.affine()).run({"x": X})
    nbytes = expected[name].nbytes
    memory = multiprocessing.shared_memory.SharedMemory(create=True, size=X.nbytes + nbytes)

    def ask() -> None:
        memory.buf[X.nbytes : X.nbytes + nbytes] = bytes(nbytes)
        with tritonclient.http.InferenceServerClient(server.address) as client:
            given = tritonclient.http.InferInput("x", [4, 12], "FP32")
            given.set_shared_memory("region", X.nbytes)
            output = tritonclient.http.InferRequestedOutput(name)
            output.set_shared_memory("region", nbytes, offset=X.nbytes)
            client.infer("affine", [given], outputs=[output])
        found = np.frombuffer(memory.buf, np.float32, nbytes // 4, X.nbytes).reshape(expected[name].shape).copy()
        np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)

    def refused() -> None:
        with pytest.raises(InferenceServerException, match="no shared memory region"):
            ask()

    def taken() -> None:
        with (
            tritonclient.http.InferenceServerClient(server.address) as client,
            pytest.raises(InferenceServerException, match="registered already"),
        ):
            client.register_system_shared_memory("region", memory.name, X.nbytes + nbytes)

    infer = "POST /v2/models/affine/infer"
    try:
        memory.buf[: X.nbytes] = X.tobytes()
        with tritonclient.http.InferenceServerClient(server.address) as client:
            client.register_system_shared_memory("region", memory.name, X.nbytes + nbytes)
            memory.unlink()  # both have opened it
            ask_both(server, ask, infer)
            ask_both(server, taken, "POST /v2/systemsharedmemory")
            client.unregister_system_shared_memory("region")
            ask_both(server, refused, infer)
            assert client.get_system_shared_memory_status() == []
        until(lambda: not held(server, memory.name))
    finally:
        memory.close()


def held(server: Server, name: str) -> list[str]:
    """Files of this shared memory that workers have open."""
    links = [link for pid in pids(server) if pid in running() for link in Path(f"/proc/{pid}/fd").iterdir()]
    return [str(link) for link in links if name in os.readlink(link)]


def test_a_worker_that_dies_comes_back_while_the_other_answers(server: Server) -> None:
    assert server.get("/v2/repository/models/affine/load", b"{}")[0] == 200
    (server.log.parent / "models" / "gone.onnx").write_bytes(models.affine())
    assert server.get("/v2/repository/models/gone/load", b"{}")[0] == 200
    assert server.get("/v2/repository/models/gone/unload", b"{}")[0] == 200
    started = len(pids(server))
    victim = pids(server)[-1]
    os.kill(victim, signal.SIGKILL)
    until(lambda: any("has ended with signal 9" in line["message"] for line in lines(server)[-20:]))
    answered = 0
    while len(pids(server)) == started:
        assert server.get("/v2/models/affine/infer", BODY)[0] == 200
        answered += 1
    assert answered
    until(lambda: labels(server) == {"0", "1"})
    ask_both(server, lambda: server.get("/v2/models/affine/infer", BODY), "POST /v2/models/affine/infer")
    ask_both(server, lambda: gone(server), "POST /v2/models/gone/infer")  # it has not been loaded by the new one


def gone(server: Server) -> None:
    assert server.get("/v2/models/gone/infer", BODY)[0] == 404


def test_port_0_and_sigterm(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    model = f"affine={tmp_path / 'affine.onnx'}"
    arguments = ("--workers", "2", "--max-queue-delay", "1500", "--max-batch-size", "8")
    server = Server(model, *arguments, log=tmp_path / "log", wait=False, any_port=True)
    until(lambda: len(pids(server)) == 2)
    said = [line["message"] for line in lines(server) if line["message"].startswith("listening on")]
    assert len(said) == 2
    assert len(set(said)) == 1
    found = re.search(r"http://(127\.0\.0\.1:\d+), gRPC on (127\.0\.0\.1:\d+)$", said[0])
    assert found
    server.address = found[1]
    with tritonclient.grpc.InferenceServerClient(found[2]) as client:
        assert client.is_server_ready()
    answers: list[tuple[int, bytes]] = []
    asking = [
        threading.Thread(target=lambda: answers.append(server.get("/v2/models/affine/infer", BODY))) for _ in range(12)
    ]
    for thread in asking:
        thread.start()
    time.sleep(0.5)
    start = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - start < 10
    for thread in asking:
        thread.join()
    assert [status for status, _ in answers] == [200] * 12
    assert sorted(line["worker"] for line in lines(server) if line["message"] == "stopped") == [0, 1]
    assert not set(pids(server)) & running()


def test_a_worker_that_cannot_get_ready_ends_all_with_1(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no model")
    said = Server.refused(str(tmp_path / "bad.onnx"), "--workers", "2")
    assert "bad was not loaded" in said
    assert re.search(r"worker [01] has ended with status 1 before it was ready; all end", said)
    assert "Traceback" not in said


def test_a_port_that_is_taken_is_one_error(server: Server, tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    command = [sys.executable, "-m", "trtrun", "serve", str(tmp_path / "affine.onnx"), "--workers", "2"]
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        for port, grpc_port, wrong in (
            (0, other.getsockname()[1], other.getsockname()[1]),
            (server.port, 0, server.port),  # those of workers, too, who share it with their own only
        ):
            done = subprocess.run(
                [*command, "--port", str(port), "--grpc-port", str(grpc_port)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert done.returncode == 1
            assert f"cannot listen on 127.0.0.1:{wrong}: Address already in use" in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_worker_that_cannot_be_started_again_at_once_ends_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, calls = subprocess.Popen, 0

    def popen(command: list[str], env: dict[str, str], pass_fds: list[int], **_: object) -> subprocess.Popen[bytes]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise BlockingIOError("Resource temporarily unavailable")
        if calls == 3:
            threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        seconds = 0 if calls == 1 else 20
        program = f"import os, time; os.write({pass_fds[0]}, b'r'); time.sleep({seconds})"
        return start([sys.executable, "-S", "-c", program], pass_fds=pass_fds)

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    monkeypatch.setattr(workers, "_DELAYS", (0.05, 0.1))
    assert workers.Supervisor(1, 0, None, str(tmp_path), 5.0).run()
    assert calls == 3


def test_a_worker_that_hangs_is_killed_and_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, made = subprocess.Popen, []

    def popen(command: list[str], env: dict[str, str], pass_fds: list[int], **_: object) -> subprocess.Popen[bytes]:
        if made:
            threading.Timer(1.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        beats = 100 if made else 3
        program = (
            f"import os, time\nfor _ in range({beats}): os.write({pass_fds[0]}, b'r'); time.sleep(0.1)\ntime.sleep(20)"
        )
        made.append(start([sys.executable, "-S", "-c", program], pass_fds=pass_fds))
        return made[-1]

    monkeypatch.setattr(workers.subprocess, "Popen", popen)
    monkeypatch.setattr(workers, "_DELAYS", (0.05, 0.1))
    monkeypatch.setattr(workers, "_SILENCE", 0.8)
    assert workers.Supervisor(1, 0, None, str(tmp_path), 5.0).run()
    assert [process.returncode for process in made] == [-signal.SIGKILL, -signal.SIGTERM]


def test_a_worker_gives_signs_of_life(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    for name in ("regions", "unloaded"):
        (tmp_path / name).mkdir()
    ours, theirs = socket.socketpair()
    place = Place(0, 1, str(tmp_path), 0, None, theirs.fileno())
    process = subprocess.Popen(
        [sys.executable, "-m", "trtrun", "serve", str(tmp_path / "affine.onnx")],
        env={**os.environ, "TRTRUN_WORKER": json.dumps(asdict(place)), "CUDA_VISIBLE_DEVICES": ""},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    try:
        ours.settimeout(20)
        assert ours.recv(1) == b"r"
        assert [ours.recv(1), ours.recv(1)] == [b"a", b"a"]
        process.terminate()
        assert process.wait(20) == 0
    finally:
        process.kill()
        ours.close()


def test_nobody_tidies_the_workers_folder_away(server: Server) -> None:
    environments = [Path(f"/proc/{pid}/environ").read_bytes().decode() for pid in set(pids(server)) & running()]
    folder = json.loads(next(v for e in environments for v in e.split("\0") if v.startswith("TRTRUN_WORKER="))[14:])[
        "folder"
    ]
    held = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(held)


def test_workers_end_with_their_supervisor(tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    before = set(Path(tempfile.gettempdir()).glob("trtrun-*"))
    server = Server(str(tmp_path / "affine.onnx"), "--workers", "2", log=tmp_path / "log", wait=False)
    until(lambda: len(pids(server)) == 2)
    server.process.kill()
    server.process.wait(10)
    until(lambda: not set(pids(server)) & running())
    assert set(Path(tempfile.gettempdir()).glob("trtrun-*")) <= before


def test_a_registration_holds_for_the_object_that_was_there(tmp_path: Path) -> None:
    one, other = (SharedMemory("tensors-", SharedRegistrations(tmp_path)) for _ in range(2))
    name = f"tensors-{os.getpid()}"
    memory = multiprocessing.shared_memory.SharedMemory(name, True, 64)
    one.register("a", name, 32, 16)
    assert other.status(SystemRegion) == one.status(SystemRegion)
    memory.close()
    memory.unlink()
    memory = multiprocessing.shared_memory.SharedMemory(name, True, 64)
    try:
        with pytest.raises(InputError, match="another object now"):
            other.open("a")
        other.unregister(SystemRegion, "a")
        assert other.open("a") == (None, None)
        assert one.open("a")[0] is not None  # until it is told
        one.forget(SystemRegion, "a")
        assert one.open("a") == (None, None)
        with pytest.raises(InputError, match="cannot be registered"):
            one.register("n" * 5000, name, 32)
        assert one.open("n" * 5000) == (None, None)
    finally:
        memory.close()
        memory.unlink()


def test_gpus_are_dealt_out() -> None:
    def dealt(gpus: int, workers: int) -> list[list[int]]:
        return [list(Place(index, workers, "", 0, None, -1).share(range(gpus))) for index in range(workers)]

    assert dealt(4, 4) == [[0], [1], [2], [3]]
    assert dealt(5, 2) == [[0, 2, 4], [1, 3]]
    assert dealt(2, 5) == [[0], [1], [0], [1], [0]]
    assert dealt(0, 2) == [[], []]


def test_as_many_workers_as_suit_the_machine() -> None:
    def suitable(gpus: int, cores: int, mebibytes: int = 100) -> int:
        return workers.suitable_count(gpus, cores, mebibytes << 20)

    assert [suitable(1, cores) for cores in (1, 2, 7, 8, 16, 128)] == [1, 1, 1, 2, 4, 4]
    assert suitable(0, 128) == 1  # the models take all cores
    assert [suitable(8, cores) for cores in (2, 64, 128)] == [8, 16, 32]  # one for each GPU at least
    assert [suitable(1, 128, size) for size in (0, 300, 600, 5000)] == [4, 3, 1, 1]
    assert 1 <= workers.usable_cores() <= (os.cpu_count() or 1)


def test_statistics_of_two_together() -> None:
    def summary(rows: int, count: int, p99: float) -> dict:
        compute = {"count": count, "ns": 10 * count}
        return {
            "name": "m",
            "version": "1",
            "last_inference": rows,
            "inference_count": rows * count,
            "inference_stats": {"success": compute},
            "batch_stats": [{"batch_size": rows, "compute_infer": compute}],
            "recent": {"rate": 2.0, "p50": 1.0, "p99": p99},
        }

    both = merged(merged(summary(1, 2, 5.0), summary(4, 3, 4.0)), summary(1, 5, 1.0))
    assert both["batch_stats"] == [
        {"batch_size": 1, "compute_infer": {"count": 7, "ns": 70}},
        {"batch_size": 4, "compute_infer": {"count": 3, "ns": 30}},
    ]
    assert (both["name"], both["last_inference"], both["inference_count"]) == ("m", 4, 19)
    assert both["recent"] == {"rate": 6.0, "p50": 1.0, "p99": 5.0}
    assert both["inference_stats"]["success"] == {"count": 10, "ns": 100}
    assert merged(summary(1, 2, 5.0), {}) == summary(1, 2, 5.0)


def test_metrics_of_two_together() -> None:
    text = '# HELP a_total So many.\n# TYPE a_total counter\na_total{model="m"} %d.0\n'
    text += "# HELP b Now.\n# TYPE b gauge\nb %d.0\n"
    found = of_workers({1: text % (1, 2), 0: text % (3, 4)})[0].decode()
    assert found.splitlines() == [
        "# HELP a_total So many.",
        "# TYPE a_total counter",
        'a_total{model="m",worker="0"} 3.0',
        'a_total{model="m",worker="1"} 1.0',
        "# HELP b Now.",
        "# TYPE b gauge",
        'b{worker="0"} 4.0',
        'b{worker="1"} 2.0',
    ]
