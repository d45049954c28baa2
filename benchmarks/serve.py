"""Measure trtrun serve with Triton's own client: server processes, and load from processes of their own.

    python benchmarks/serve.py [overhead throughput shm overload reload]

With a GPU the models are engines, and each figure goes to benchmarks/results/<gpu>.json as soon as it is measured;
without one they run in ONNX Runtime on the CPU, and the figures are only printed. Needs tritonclient[grpc];
``throughput`` also fastapi. All together take less than four minutes on a GPU: every wait is bounded, a group that
fails leaves the others, and after ``LIMIT`` seconds whatever is left is ended. ``reload`` takes what the others leave,
which is too little for its 200 reloads: run it alone.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import models
import numpy as np
from results import Record, compare_rates, compare_times, environment, in_turns, run_groups

import trtrun
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.device import Device, gpu_count
from trtrun.serve.workers import suitable_count, usable_cores

ROW = (3, 224, 224)
GPU = gpu_count() > 0
# For overload: a model that is slower than the network, so that it and not the protocol is what has too much to do.
SLOW_SIDE, SLOW_ENLARGE, SLOW_BATCH = (64, 24, 4) if GPU else (64, 2, 4)
DTYPE = "float16" if GPU else "float32"  # CPUs compute no fp16
PROCESSES, CLIENTS = (8 if GPU else 4), 64
CALL = 30.0  # seconds that one request may take
LIMIT = 238.0  # seconds for all of it
# Clients of one process would share a connection otherwise, and with it a worker.
APART = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]


class Models:
    """The model files, each made once: engines with a GPU, ONNX files without."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # one after the other

    def __call__(self, name: str) -> Path:
        with self._lock:
            path = self._folder / f"{name}{'.engine' if GPU else '.onnx'}"
            if not path.exists():
                start = time.monotonic()
                path.write_bytes(self._made(name))
                print(f"  {path.name}: {time.monotonic() - start:.1f} s", flush=True)
            return path

    @staticmethod
    def _made(name: str) -> bytes:
        if name == "slow":
            model, shape = models.resnet50(None, DTYPE, SLOW_SIDE, SLOW_ENLARGE), f"x3x{SLOW_SIDE}x{SLOW_SIDE}"
            options = BuildOptions(profiles=parse_shapes([f"images=1{shape}:{SLOW_BATCH}{shape}:{SLOW_BATCH}{shape}"]))
        elif name == "single":
            model, options = models.mobilenet_v3_small(1, DTYPE), BuildOptions()
        elif name == "reloaded":  # two sizes of batches: kernels and graphs are made anew for each, 200 times
            model, shape = models.mobilenet_v3_small(None, DTYPE), "x".join(map(str, ROW))
            profiles = parse_shapes([f"images=1x{shape}:8x{shape}:8x{shape}"])
            options = BuildOptions(profiles=profiles, specialize=(1, 8))
        else:
            make = {"resnet50": models.resnet50, "mobilenet": models.mobilenet_v3_small, "nothing": models.nothing}
            model = make[name](None, DTYPE)
            shape = "x".join(map(str, ROW))
            profiles = parse_shapes([f"images=1x{shape}:16x{shape}:32x{shape}"])
            options = BuildOptions(profiles=profiles, specialize=(1, 8, 32))
        return build_plan(model, options) if GPU else model


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Server:
    """A server process, started at once and waited for when it is asked for the first time."""

    def __init__(
        self,
        folder: Path,
        name: str,
        command: list[str],
        port: int,
        *,
        http: int = 0,
        triton: bool = True,
        workers: int = 1,
    ) -> None:
        self.address, self.http = f"127.0.0.1:{port}", f"127.0.0.1:{http or port}"
        self.workers = workers
        self._triton = triton
        self._ready = False
        self._log = folder / f"{name}.log"
        with self._log.open("w") as errors:
            self.process = subprocess.Popen([sys.executable, *command], stderr=errors)
        CHILDREN.append(self.process.pid)

    def wait(self) -> str:
        """Its address, when it is ready."""
        until = time.monotonic() + 90
        while not self._ready:
            if self.process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not get ready:\n{self._log.read_text()[-2000:]}")
            time.sleep(0.1)
            self._ready = self._answers()
        return self.address

    def _answers(self) -> bool:
        if not self._triton:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", int(self.address.rpartition(":")[2]))) == 0
        import tritonclient.grpc as triton

        try:
            if self.workers > 1:
                with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
                return all(f'worker="{index}"' in text for index in range(self.workers))
            with triton.InferenceServerClient(self.address) as client:
                return bool(client.is_server_ready(client_timeout=5))
        except Exception:  # not listening yet
            return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM if self._triton else signal.SIGKILL)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
        CHILDREN.remove(self.process.pid)


class Servers:
    """The servers by name, each started once; several groups share one."""

    def __init__(self, folder: Path, files: Models) -> None:
        self._folder, self._files = folder, files
        self._locks: dict[str, threading.Lock] = {}
        self._made: dict[str, Server] = {}

    def __getitem__(self, name: str) -> Server:
        with self._locks.setdefault(name, threading.Lock()):
            if name not in self._made:
                self._made[name] = self._start(name)
            return self._made[name]

    def _start(self, name: str) -> Server:
        port = free_port()
        if name == "naive":
            command = ["-c", _NAIVE, str(self._files("single")), str(port), str(Path(__file__).parent), DTYPE]
            return Server(self._folder, name, command, port, triton=False)
        several = ("mobilenet", "resnet50", "nothing")
        if name == "least":
            return Server(self._folder, name, ["-c", _LEAST, str(port)], port, triton=False)
        if name in ("bare", "one bare"):
            count = self._suitable(several) if name == "bare" else 1
            return Server(self._folder, name, ["-c", _BARE, str(port), str(count)], port, triton=False)
        served, batch, workers = {
            "batched": (several, 32, 0),  # as many workers as it thinks fit
            "single": (several, 1, 0),
            "one batched": (several, 32, 1),
            "one single": (several, 1, 1),
            "slow": (("slow",), SLOW_BATCH, 0),
            "reloaded": (("reloaded",), 8, 1),
        }[name]
        command = ["-m", "trtrun", "serve", *(f"{one}={self._files(one)}" for one in served)]
        http = free_port()
        command += ["--port", str(http), "--grpc-port", str(port), "--max-batch-size", str(batch)]
        if name != "slow":  # clients that wait for their answers are measured there, and none is to be turned away
            command += ["--max-queue-time", "5000"]
        command += ["--workers", str(workers)] if workers else []
        return Server(self._folder, name, command, port, http=http, workers=workers or self._suitable(served))

    def _suitable(self, served: tuple[str, ...]) -> int:
        """How many workers trtrun serve starts by itself for these models."""
        return suitable_count(int(GPU), usable_cores(), sum(self._files(one).stat().st_size for one in served))

    def stop(self) -> None:
        for server in self._made.values():
            server.stop()


def images(batch: int, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng()
    return [rng.standard_normal((batch, *ROW), np.float32).astype(DTYPE) for _ in range(count)]


def request(array: np.ndarray) -> list[Any]:
    import tritonclient.grpc as triton
    from tritonclient.utils import np_to_triton_dtype

    tensor = triton.InferInput("images", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return [tensor]


Answers = tuple[list[float], dict[str, int]]  # latencies of what was answered, and errors by kind


def over_http(array: np.ndarray) -> tuple[bytes, dict[str, str]]:
    """The protocol's request with binary tensors, and its headers."""
    tensor = {
        "name": "images",
        "shape": list(array.shape),
        "datatype": "FP16" if array.dtype == np.float16 else "FP32",
        "parameters": {"binary_data_size": array.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return header + array.tobytes(), {"Inference-Header-Content-Length": str(len(header))}


def _closed(
    order: Connection, protocol: str, address: str, model: str, seconds: float, threads: int, checked: bool
) -> Answers:
    """Clients that ask again when they are answered, until the time is over or another order comes.

    ``protocol`` is "grpc" (Triton's client, each with a connection of its own), "shm" (the same, with its images in
    system shared memory), "http", or "naive", whose bodies are the array's bytes.
    """
    from multiprocessing import shared_memory

    import tritonclient.grpc as triton

    path = "/infer" if protocol == "naive" else f"/v2/models/{model}/infer"
    arrays = images(1)
    latencies: list[float] = []
    errors: dict[str, int] = {}
    wanted: list[np.ndarray] = []
    if checked:
        with triton.InferenceServerClient(address) as client:
            for array in arrays:
                answer = client.infer(model, request(array), client_timeout=CALL)
                wanted.append(answer.as_numpy("logits").astype(np.float64))
    until = time.perf_counter() + seconds
    stop = threading.Event()

    def ask() -> None:
        import http.client

        client: Any
        requests: list[Any]
        memory = None
        if protocol in ("grpc", "shm"):
            client = triton.InferenceServerClient(address, channel_args=APART)
            requests = [request(array) for array in arrays]
            if protocol == "shm":
                memory = shared_memory.SharedMemory(create=True, size=arrays[0].nbytes)
                client.register_system_shared_memory(memory.name, memory.name, memory.size, client_timeout=CALL)
                target = np.frombuffer(memory.buf, DTYPE, arrays[0].size).reshape(arrays[0].shape)
                for one in requests:
                    one[0].set_shared_memory(memory.name, arrays[0].nbytes)
        else:
            client = http.client.HTTPConnection(address, timeout=CALL)
            requests = [over_http(array) if protocol == "http" else (array.tobytes(), {}) for array in arrays]
        turn = 0
        while time.perf_counter() < until and not stop.is_set():
            start = time.perf_counter()
            turn += 1
            try:
                if memory is not None:
                    target[...] = arrays[turn % 4]
                if protocol not in ("grpc", "shm"):
                    client.request("POST", path, *requests[turn % 4])
                    answer = client.getresponse()
                    answer.read()
                    if answer.status != 200:
                        raise RuntimeError(str(answer.status))
                else:
                    answer = client.infer(model, requests[turn % 4], client_timeout=CALL)
                    if checked:
                        difference = answer.as_numpy("logits").astype(np.float64) - wanted[turn % 4]
                        if not np.linalg.norm(difference) <= 0.02 * np.linalg.norm(wanted[turn % 4]):
                            raise RuntimeError("wrong answer")
                latencies.append(time.perf_counter() - start)
            except Exception as error:
                status = getattr(error, "status", None)
                kind = str(status() if callable(status) else error) or type(error).__name__
                errors[kind] = errors.get(kind, 0) + 1
        if memory is not None:
            client.unregister_system_shared_memory(memory.name, client_timeout=CALL)
            target = None  # else the memory could not be closed
            memory.close()
            memory.unlink()
        client.close()

    pool = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in pool:
        thread.start()
    while time.perf_counter() < until and not order.poll(0.1):
        pass
    stop.set()
    for thread in pool:
        thread.join()
    return latencies, errors


def _open(order: Connection, address: str, rate: float, seconds: float, seed: int) -> Answers:
    """Requests at random times, so many a second, whether the server keeps up or not."""
    import asyncio

    import grpc
    import grpc.aio

    from trtrun.serve.grpc_api import messages

    kinds, shape = messages(), (1, 3, SLOW_SIDE, SLOW_SIDE)
    array = np.random.default_rng(seed).standard_normal(shape, np.float32).astype(DTYPE)
    message = kinds.ModelInferRequest(model_name="slow", raw_input_contents=[array.tobytes()])
    message.inputs.add(name="images", datatype="FP16" if DTYPE == "float16" else "FP32", shape=shape)
    body = message.SerializeToString()
    latencies: list[float] = []
    errors: dict[str, int] = {}

    async def ask(infer: Any, due: float) -> None:
        try:
            await infer(body, timeout=CALL)
            latencies.append(time.perf_counter() - due)  # since it was due, should this process be late
        except grpc.RpcError as error:
            errors[error.code().name] = errors.get(error.code().name, 0) + 1

    async def run() -> None:
        draw = random.Random(seed)
        async with grpc.aio.insecure_channel(address) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            due = time.perf_counter()
            until, asked = due + seconds, set()
            while due < until:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                task = asyncio.create_task(ask(infer, due))
                asked.add(task)
                task.add_done_callback(asked.discard)
                due += draw.expovariate(rate)
            await asyncio.gather(*asked)

    asyncio.run(run())
    return latencies, errors


def _work(order: Connection) -> None:
    """A process of the load: does what it is told, and sends what came of it."""
    import tritonclient.grpc  # noqa: F401  # before the first measurement

    order.send("ready")
    while (what := order.recv()) is not None:
        try:
            order.send({"closed": _closed, "open": _open}[what[0]](order, *what[1:]))
        except Exception:
            order.send(traceback.format_exc())


class Load:
    """The processes of the load, which are started once."""

    def __init__(self, count: int = PROCESSES) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        for _ in range(count):
            end, other = context.Pipe()
            process = context.Process(target=_work, args=(other,), daemon=True)
            process.start()
            CHILDREN.append(process.pid or 0)
            self._ends.append(end)
        self._started = False

    def __call__(self, orders: list[tuple[Any, ...]], seconds: float) -> Answers:
        """What came of these orders, one a process, which take so many seconds."""
        if not self._started:
            for end in self._ends:
                _received(end, 60)
            self._started = True
        used = self._ends[: len(orders)]
        for end, what in zip(used, orders, strict=True):
            end.send(what)
        latencies: list[float] = []
        errors: dict[str, int] = {}
        for end in used:
            some, kinds = _received(end, seconds + CALL + 10)
            latencies += some
            for kind, count in kinds.items():
                errors[kind] = errors.get(kind, 0) + count
        return latencies, errors

    def stop(self) -> None:
        """End what is under way."""
        for end in self._ends:
            end.send("stop")

    def rate(self, server: Server, protocol: str, seconds: float, model: str) -> float:
        """Requests per second of ``CLIENTS`` clients for one image each."""
        address = server.wait() if protocol in ("grpc", "shm") else server.wait() and server.http
        orders = [("closed", protocol, address, model, seconds, CLIENTS // PROCESSES, False)] * PROCESSES
        latencies, errors = self(orders, seconds)
        if errors:
            print(f"  errors: {errors}", flush=True)
        return len(latencies) / seconds

    def arrivals(self, server: Server, rate: float, seconds: float) -> Answers:
        """Latencies and errors of requests that come at this rate."""
        count = PROCESSES if GPU else 1
        address = server.wait()
        return self(
            [("open", address, rate / count, seconds, random.randrange(1 << 30)) for _ in range(count)], seconds
        )


def _received(end: Connection, seconds: float) -> Any:
    if not end.poll(seconds):
        raise TimeoutError(f"a process of the load said nothing for {seconds:.0f} s")
    got = end.recv()
    if isinstance(got, str) and got != "ready":
        raise RuntimeError(got)
    return got


class Bench:
    """What the groups share."""

    def __init__(self, folder: Path) -> None:
        self._begin = time.monotonic()
        self.files = Models(folder)
        self.servers = Servers(folder, self.files)

    def left(self) -> float:
        """Seconds of ``LIMIT``."""
        return LIMIT - (time.monotonic() - self._begin)

    @functools.cached_property
    def load(self) -> Load:
        return Load()


# A gRPC server in as many processes as ours that only receives a request and replies. The others end with the first.
_BARE = """
import ctypes, os, sys
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")  # as trtrun serve has it
for _ in range(int(sys.argv[2]) - 1):
    if not os.fork():
        ctypes.CDLL(None).prctl(1, 9)
        break
import asyncio
import grpc, grpc.aio

async def main():
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    answer = None

    async def infer(request, context):
        return answer

    from trtrun.serve.grpc_api import messages
    message = messages().ModelInferResponse(model_name="resnet50", model_version="1", raw_output_contents=[bytes(2000)])
    message.outputs.add(name="logits", datatype="FP16", shape=[1, 1000])
    answer = message.SerializeToString()
    handlers = {"ModelInfer": grpc.unary_unary_rpc_method_handler(infer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port("127.0.0.1:" + sys.argv[1])
    await server.start()
    await server.wait_for_termination()

asyncio.run(main())
"""


# The least that can answer Triton's client: HTTP/2 frames by hand, for these very requests and nothing else. What the
# client and the kernel take by themselves.
_LEAST = """
import asyncio, struct, sys
from trtrun.serve.grpc_api import messages

message = messages().ModelInferResponse(model_name="resnet50", model_version="1", raw_output_contents=[bytes(2000)])
message.outputs.add(name="logits", datatype="FP16", shape=[1, 1000])
body = message.SerializeToString()

def literal(name, value):
    return b"\\0" + bytes([len(name)]) + name + bytes([len(value)]) + value

def frame(kind, flags, stream, payload):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload

BEGIN, END = b"\\x88" + literal(b"content-type", b"application/grpc"), literal(b"grpc-status", b"0")
ANSWER = b"\\0" + struct.pack(">I", len(body)) + body

class Connection(asyncio.BufferedProtocol):
    def connection_made(self, transport):
        self.transport, self.view, self.at, self.skip, self.taken = transport, memoryview(bytearray(1 << 21)), 0, 24, 0
        settings = struct.pack(">HIHI", 4, 0x7FFFFFFF, 5, (1 << 24) - 1)
        transport.write(frame(4, 0, 0, settings) + frame(8, 0, 0, struct.pack(">I", 0x7FFFFFFF - 65535)))

    def get_buffer(self, hint):
        return self.view[self.at:]

    def buffer_updated(self, count):
        self.at += count
        at = self.skip
        if self.at < at:
            return
        while self.at - at >= 9:
            view = self.view
            size, kind, flags = int.from_bytes(view[at:at + 3], "big"), view[at + 3], view[at + 4]
            if self.at - at < 9 + size:
                break
            stream = int.from_bytes(view[at + 5:at + 9], "big")
            if kind == 0:
                self.taken += size
                if self.taken > 1 << 28:
                    self.transport.write(frame(8, 0, 0, struct.pack(">I", self.taken)))
                    self.taken = 0
                if flags & 1:
                    parts = frame(1, 4, stream, BEGIN), frame(0, 0, stream, ANSWER), frame(1, 5, stream, END)
                    self.transport.write(b"".join(parts))
            elif kind in (4, 6) and not flags & 1:
                self.transport.write(frame(kind, 1, 0, b"" if kind == 4 else bytes(view[at + 9:at + 9 + size])))
            at += 9 + size
        left = bytes(self.view[at:self.at])
        self.view[:len(left)] = left
        self.at, self.skip = len(left), 0

async def main():
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()

asyncio.run(main())
"""


def overhead(bench: Bench) -> Iterator[Record]:
    """One request at a time over gRPC, against the same in the process; against the bare server, which is what this
    client and this library take by themselves; and against the least of servers, which is what the client takes."""
    import tritonclient.grpc as triton

    array = images(1, 1)[0]
    with (
        triton.InferenceServerClient(bench.servers["batched"].wait()) as client,
        triton.InferenceServerClient(bench.servers["one bare"].wait()) as bare,
        triton.InferenceServerClient(bench.servers["least"].wait()) as least,
        trtrun.load(bench.files("resnet50")) as runner,
    ):
        inputs = request(array)
        times = in_turns(
            {
                "served": lambda: client.infer("resnet50", inputs, client_timeout=CALL),
                "bare": lambda: bare.infer("resnet50", inputs, client_timeout=CALL),
                "least": lambda: least.infer("resnet50", inputs, client_timeout=CALL),
                "here": lambda: runner.run({"images": array}),
            },
            calls=100 if GPU else 10,
            rounds=9 if GPU else 5,
        )
    served, floor, here = times["served"], times["bare"], times["here"]
    zero = [0.0] * len(floor)
    for id, ours, reference, more, what in (
        ("serve.grpc.b1.overhead", served, here, zero, "milliseconds that gRPC on loopback adds to a request, p50"),
        (
            "serve.grpc.b1.floor",
            floor,
            zero,
            zero,
            "milliseconds of the same request to a gRPC server in Python that only receives it and replies, p50",
        ),
        (
            "serve.grpc.b1.client",
            times["least"],
            zero,
            zero,
            "milliseconds of the same request to a server that reads its bytes and sends others: the client's own, p50",
        ),
        (
            "serve.grpc.b1.over_floor",
            served,
            here,
            floor,
            "milliseconds that trtrun serve adds to the request in the process and to that server's reply, p50",
        ),
    ):
        differences = [1e3 * (a - b - c) for a, b, c in zip(ours, reference, more, strict=True)]
        yield Record(
            id,
            round(1e6 * statistics.median(ours), 1),
            round(1e6 * (statistics.median(reference) + statistics.median(more)), 1),
            "µs",
            round(statistics.median(differences), 4),
            (round(min(differences), 4), round(max(differences), 4)),
            what,
        )


_NAIVE = """
import sys
import numpy as np, uvicorn
from fastapi import FastAPI, Request, Response
sys.path.insert(0, sys.argv[3])
if sys.argv[1].endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(sys.argv[1])
    infer = lambda x: session.run(None, {"images": x})[0]
else:
    import peers
    from cuda.bindings import driver
    from trtrun import flavor
    from trtrun.cuda.device import Device
    from trtrun.engine import Engine
    peers.checked(driver.cuCtxSetCurrent(Device()._context))
    engine = Engine(sys.argv[1])
    recipe = peers.Recipe(flavor.load("tensorrt_rtx").module, engine.handle)
    infer = lambda x: recipe.infer({"images": x})["logits"]
app = FastAPI()

@app.post("/infer")
async def run(request: Request) -> Response:
    x = np.frombuffer(await request.body(), sys.argv[4]).reshape(1, 3, 224, 224)
    return Response(infer(x).tobytes())

uvicorn.run(app, port=int(sys.argv[2]), log_level="warning")
"""


def throughput(bench: Bench) -> Iterator[Record]:
    """Many clients with one image each, of the server as it starts by itself and of one process.

    What its front end can do at all is told by a model that computes nothing; and what any can that receives its
    requests through gRPC in Python, by the bare server with as many processes.
    """
    contenders = {
        name: (bench.servers[server], protocol, model)
        for name, server, protocol, model in (
            ("batched", "batched", "grpc", "mobilenet"),
            ("single", "single", "grpc", "mobilenet"),
            ("nothing", "batched", "grpc", "nothing"),
            ("bare", "bare", "grpc", "mobilenet"),
            ("http batched", "batched", "http", "mobilenet"),
            ("http single", "single", "http", "mobilenet"),
            ("shm batched", "batched", "shm", "resnet50"),
            ("shm single", "single", "shm", "resnet50"),
            ("one batched", "one batched", "grpc", "mobilenet"),
            ("one single", "one single", "grpc", "mobilenet"),
            ("one bare", "one bare", "grpc", "mobilenet"),
            ("naive", "naive", "naive", "mobilenet"),
        )
    }
    for name, (server, _, _) in list(contenders.items()):
        try:
            server.wait()
        except RuntimeError as error:  # the other rows do not need it
            print(f"  {name} is left out: {error}", file=sys.stderr, flush=True)
            del contenders[name]
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(4):
        for name, (server, protocol, model) in contenders.items():
            rate = bench.load.rate(server, protocol, 0.8 if turn else 0.3, model)
            if turn:  # whoever is first waits for kernels and graphs
                rates[name].append(rate)
    rates["alone"] = _batch_one(bench)
    count = bench.servers["batched"].workers
    by = f"{CLIENTS} clients, one image each, over {{}} to trtrun serve ({{}})"
    several, one = f"{count} workers, its default here", "--workers 1"
    off, plain = ": dynamic batching / without", " / a FastAPI handler around the recipe"
    front = ": mobilenet / a model that computes nothing, which is what the front end can do"
    bare = " / a gRPC server in Python, in as many processes, that only receives and replies"
    for id, what, ours, reference in (
        ("serve.batching.vs_off", by.format("gRPC", several) + off, "batched", "single"),
        ("serve.floor.nothing", by.format("gRPC", several) + front, "batched", "nothing"),
        ("serve.floor.grpc", by.format("gRPC", several) + bare, "batched", "bare"),
        ("serve.one.floor.grpc", by.format("gRPC", one) + bare, "one batched", "one bare"),
        (
            "serve.batching.shm_vs_off",
            by.format("shared memory", several) + f", ResNet-50{off}",
            "shm batched",
            "shm single",
        ),
        ("serve.http.batching.vs_off", by.format("HTTP", several) + off, "http batched", "http single"),
        ("serve.one.batching.vs_off", by.format("gRPC", one) + off, "one batched", "one single"),
        ("serve.vs_naive", by.format("gRPC", several) + plain, "batched", "naive"),
        ("serve.http.vs_naive", by.format("HTTP", several) + plain, "http batched", "naive"),
        ("serve.one.vs_naive", by.format("gRPC", one) + plain, "one batched", "naive"),
        (
            "serve.batching.bound",
            f"what batching could gain at most: the bare server, {count} processes / batch 1 through Pipeline.map here",
            "bare",
            "alone",
        ),
        ("serve.workers.vs_one", by.format("gRPC", several) + " / one", "batched", "one batched"),
    ):
        if rates.get(ours) and rates.get(reference):
            yield compare_rates(id, what, rates[ours], rates[reference])


def _batch_one(bench: Bench) -> list[float]:
    """Images per second of the same model one by one, with nothing in front of it: no batching, and no server."""
    inputs = images(1, 16)
    with trtrun.load(bench.files("single")) as runner, trtrun.Pipeline(runner, depth=None if GPU else 1) as pipeline:
        rates = []
        for _ in range(4):
            start, count = time.perf_counter(), 0
            for _ in pipeline.map(inputs * (200 if GPU else 2)):
                count += 1
            rates.append(count / (time.perf_counter() - start))
    return rates[1:]


def shm(bench: Bench) -> Iterator[Record]:
    """Batch 32 through shared memory, against the same over the wire."""
    from multiprocessing import shared_memory

    import tritonclient.grpc as triton

    array = images(32 if GPU else 2, 1)[0]
    memory = shared_memory.SharedMemory(create=True, size=array.nbytes)
    try:
        with triton.InferenceServerClient(bench.servers["batched"].wait()) as client:
            client.register_system_shared_memory("images", memory.name, array.nbytes)
            placed = request(array)
            placed[0].set_shared_memory("images", array.nbytes)

            def through_memory() -> None:
                np.frombuffer(memory.buf, array.dtype, array.size).reshape(array.shape)[...] = array
                client.infer("resnet50", placed, client_timeout=CALL)

            def over_the_wire() -> None:
                client.infer("resnet50", request(array), client_timeout=CALL)

            contenders = {"wire": over_the_wire, "memory": through_memory}
            said = f"batch {len(array)} of ResNet-50 over the wire / in {{}} shared memory, with the client's copy, p50"
            with ExitStack() as left:
                if GPU:
                    try:
                        contenders["gpu"] = left.enter_context(_on_the_gpu(client, array))
                        contenders["gpu"]()
                    except Exception as error:  # the other row does not need it
                        contenders.pop("gpu", None)
                        print(f"  CUDA shared memory: {type(error).__name__}: {error}", flush=True)
                times = in_turns(contenders, calls=20 if GPU else 1, rounds=5)
            client.unregister_system_shared_memory("images")
        yield compare_times("serve.shm.vs_wire", said.format("system"), times["memory"], times["wire"])
        if "gpu" in times:
            yield compare_times("serve.shm.cuda_vs_wire", said.format("CUDA"), times["gpu"], times["wire"])
    finally:
        memory.close()
        memory.unlink()


@contextmanager
def _on_the_gpu(client: Any, array: np.ndarray) -> Iterator[Callable[[], None]]:
    """The same request through device memory of this process, into which the array is copied each time."""
    import base64
    import ctypes

    from cuda.bindings import driver

    from trtrun.cuda.check import check
    from trtrun.cuda.memory import DeviceMemory

    device = Device()
    memory = DeviceMemory(device, array.nbytes)
    with device:
        handle = check(driver.cuIpcGetMemHandle(memory.address), "export memory")
    raw = base64.b64encode(ctypes.string_at(handle.getPtr(), 64))
    client.register_cuda_shared_memory("gpu", raw, 0, array.nbytes)
    placed = request(array)
    placed[0].set_shared_memory("gpu", array.nbytes)

    def through_memory() -> None:
        with device:
            check(driver.cuMemcpyHtoD(memory.address, array.ctypes.data, array.nbytes), "copy the images")
            check(driver.cuCtxSynchronize(), "wait for the copy")
        client.infer("resnet50", placed, client_timeout=CALL)

    yield through_memory
    client.unregister_cuda_shared_memory("gpu")
    memory.close()


def overload(bench: Bench) -> Iterator[Record]:
    """Four times what the server can do as it starts by itself, against four fifths of it."""
    seconds = 60.0 if GPU else 16.0
    server = bench.servers["slow"]
    bench.load.arrivals(server, 10.0, 1.0)  # whoever is first waits for kernels and graphs
    answered, _ = bench.load.arrivals(server, 3000.0 if GPU else 200.0, 4.0)
    capacity = len(answered) / 4.0
    calm, _ = bench.load.arrivals(server, 0.8 * capacity, 8.0)
    busy, errors = bench.load.arrivals(server, 4.0 * capacity, seconds)
    others = sum(count for kind, count in errors.items() if kind != "RESOURCE_EXHAUSTED")
    for name, latencies, length in (("at 80 %", calm, 8.0), ("at 400 %", busy, seconds)):
        p50, p99 = 1e3 * np.percentile(latencies, (50, 99))
        print(f"  {name}: {len(latencies) / length:.0f}/s of {capacity:.0f}/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms")
    print(f"  errors at 400 %: {errors}", flush=True)
    ratio = float(np.percentile(busy, 99) / np.percentile(calm, 99))
    yield Record(
        "serve.overload",
        round(1e6 * float(np.percentile(busy, 99))),
        round(1e6 * float(np.percentile(calm, 99))),
        "µs",
        round(ratio, 3),
        (round(ratio, 3), round(ratio, 3)),
        f"p99 of accepted requests at four times the capacity for {seconds:.0f} s / at 80 % of it; {others} errors but "
        "back-pressure",
    )


def reload(bench: Bench) -> Iterator[Record]:
    """Reloads of one process under load: requests that were lost or answered wrongly."""
    import tritonclient.grpc as triton

    count, most = (200, min(150.0, bench.left() - 15)) if GPU else (20, 15.0)
    server = bench.servers["reloaded"]
    address = server.wait()
    bench.load.rate(server, "grpc", 0.2, "reloaded")  # its processes have started
    found: list[Answers] = []

    def ask() -> None:
        found.append(bench.load([("closed", "grpc", address, "reloaded", most + 10, 2, True)] * 2, most + 10))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    time.sleep(1.0)  # they have their answers to compare with
    done, until = 0, time.monotonic() + most
    with triton.InferenceServerClient(address) as client:
        while done < count and time.monotonic() < until:
            client.load_model("reloaded", client_timeout=CALL)
            done += 1
    bench.load.stop()
    thread.join(CALL + 20)
    latencies, errors = found[0]
    print(f"  {len(latencies)} requests, {done} reloads, errors: {errors}", flush=True)
    if done < count:
        print(f"  the time was up before {count} reloads: run this group alone", file=sys.stderr, flush=True)
    lost = sum(errors.values())
    what = f"lost or wrong of {len(latencies)} requests in {done} reloads under load"
    yield Record("serve.reload", lost, 0, "requests", lost, (lost, lost), what)


GROUPS: dict[str, Callable[[Bench], Iterator[Record]]] = {
    f.__name__: f for f in (overhead, throughput, shm, overload, reload)
}
NEEDED = {
    "overhead": ("batched", "one bare", "least"),
    "throughput": ("batched", "single", "one batched", "one single", "bare", "one bare", "naive"),
    "shm": ("batched",),
    "overload": ("slow",),
    "reload": ("reloaded",),
}
CHILDREN: list[int] = []


def _give_up() -> None:
    print(f"after {LIMIT:.0f} s what is left is ended", flush=True)
    for pid in CHILDREN:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    os._exit(2)


def main(names: list[str]) -> None:
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    names = names or list(GROUPS)
    limit = threading.Timer(LIMIT, _give_up)
    limit.daemon = True
    limit.start()
    if not GPU:
        print("ONNX Runtime on the CPU: these figures say that it works, not how fast it is")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        _ = bench.load  # its processes import meanwhile
        starts = [
            threading.Thread(target=bench.servers.__getitem__, args=(server,), daemon=True)
            for server in dict.fromkeys(server for name in names for server in NEEDED[name])
        ]
        for thread in starts:
            thread.start()
        for thread in starts:
            thread.join(120)
        groups = {name: partial(group, bench) for name, group in GROUPS.items()}
        status = run_groups(groups, names, environment() if GPU else None)
        bench.servers.stop()
    for pid in CHILDREN:  # the load's processes
        os.kill(pid, signal.SIGKILL)
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1:])
