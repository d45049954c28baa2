"""Measure trtrun serve with Triton's own client: a server process, and load from processes of their own.

    python benchmarks/serve.py [overhead batching naive shm overload reload]

With a GPU the models are engines, and results go to benchmarks/results/<gpu>.json; without one they run in ONNX
Runtime on the CPU, and the figures are only printed. Needs tritonclient[http,grpc]; ``naive`` also fastapi.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import models
import numpy as np
from results import Record, compare_rates, compare_times, environment, in_turns, run_groups

import trtrun
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.device import Device, gpu_count

ROW = (3, 224, 224)
GPU = gpu_count() > 0
# For overload: a model that is slower than the network, so that it and not the protocol is what has too much to do.
SLOW_SIDE, SLOW_ENLARGE, SLOW_BATCH = (64, 24, 4) if GPU else (64, 2, 4)
DTYPE = "float16" if GPU else "float32"  # CPUs compute no fp16
PROCESSES, THREADS = 4, 16  # of the load: 64 clients


def model_file(folder: Path, name: str) -> Path:
    """A model of any batch up to 32: an engine with a GPU, an ONNX file without."""
    model = {"resnet50": models.resnet50, "mobilenet": models.mobilenet_v3_small}[name](None, DTYPE)
    if not GPU:
        path = folder / f"{name}.onnx"
        path.write_bytes(model)
        return path
    shape = "x".join(map(str, ROW))
    options = BuildOptions(profiles=parse_shapes([f"images=1x{shape}:16x{shape}:32x{shape}"]), specialize=(1, 8, 32))
    path = folder / f"{name}.engine"
    path.write_bytes(build_plan(model, options))
    return path


def slow_model_file(folder: Path) -> Path:
    model = models.resnet50(None, DTYPE, SLOW_SIDE, SLOW_ENLARGE)
    path = folder / ("slow.engine" if GPU else "slow.onnx")
    if GPU:
        shape = f"x3x{SLOW_SIDE}x{SLOW_SIDE}"
        options = BuildOptions(profiles=parse_shapes([f"images=1{shape}:{SLOW_BATCH}{shape}:{SLOW_BATCH}{shape}"]))
        model = build_plan(model, options)
    path.write_bytes(model)
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(path: Path, *arguments: str) -> Iterator[tuple[str, str]]:
    """A server process; its addresses for HTTP and gRPC."""
    http, over_grpc = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "trtrun", "serve", f"model={path}", "--port", http.partition(":")[2]]
    command += ["--grpc-port", over_grpc.partition(":")[2], *arguments]
    log = path.with_suffix(".log")
    with log.open("w") as errors:
        process = subprocess.Popen(command, stderr=errors)
    try:
        wait_until_ready(over_grpc, process, log)
        yield http, over_grpc
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def wait_until_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    import tritonclient.grpc as triton

    with triton.InferenceServerClient(address) as client:
        for _ in range(600):
            try:
                if client.is_server_ready():
                    return
            except Exception:  # not listening yet
                pass
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit(f"the server did not get ready:\n{log.read_text()[-2000:]}")


def images(batch: int, count: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng()
    return [rng.standard_normal((batch, *ROW), np.float32).astype(DTYPE) for _ in range(count)]


def request(array: np.ndarray) -> list[Any]:
    import tritonclient.grpc as triton
    from tritonclient.utils import np_to_triton_dtype

    tensor = triton.InferInput("images", list(array.shape), np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return [tensor]


def _load(address: str, seconds: float, threads: int, naive: bool, checked: bool, found: Any, stop: Any) -> None:
    """One process of the load: latencies of what was answered, and errors by kind, wrong answers among them."""
    import tritonclient.grpc as triton

    requests = [request(array) for array in images(1)]
    bodies = [array.tobytes() for array in images(1)]
    latencies: list[float] = []
    errors: dict[str, int] = {}
    wanted: list[np.ndarray] = []
    if checked:
        with triton.InferenceServerClient(address) as client:
            wanted += [client.infer("model", inputs).as_numpy("logits").astype(np.float64) for inputs in requests]
    until = time.perf_counter() + seconds

    def ask() -> None:
        import http.client

        client: Any = http.client.HTTPConnection(address) if naive else triton.InferenceServerClient(address)
        turn = 0
        while time.perf_counter() < until and not stop.is_set():
            start = time.perf_counter()
            turn += 1
            try:
                if naive:
                    client.request("POST", "/infer", bodies[turn % 4])
                    answer = client.getresponse()
                    answer.read()
                    if answer.status != 200:
                        raise RuntimeError(str(answer.status))
                else:
                    answer = client.infer("model", requests[turn % 4])
                    if checked:
                        difference = answer.as_numpy("logits").astype(np.float64) - wanted[turn % 4]
                        if not np.linalg.norm(difference) <= 0.02 * np.linalg.norm(wanted[turn % 4]):
                            raise RuntimeError("wrong answer")
                latencies.append(time.perf_counter() - start)
            except Exception as error:
                status = getattr(error, "status", None)
                kind = str(status() if callable(status) else error) or type(error).__name__
                errors[kind] = errors.get(kind, 0) + 1
        client.close()

    pool = [threading.Thread(target=ask) for _ in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    found.put((latencies, errors))


def load(
    address: str,
    seconds: float,
    *,
    threads: int = THREADS,
    processes: int = PROCESSES,
    naive: bool = False,
    checked: bool = False,
    stop: Any = None,
) -> tuple[float, list[float], dict[str, int]]:
    """Requests per second, latencies and errors of a load from several processes."""
    context = multiprocessing.get_context("spawn")
    found, stop = context.Queue(), stop or context.Event()
    arguments = (address, seconds, threads, naive, checked, found, stop)
    pool = [context.Process(target=_load, args=arguments) for _ in range(processes)]
    for process in pool:
        process.start()
    latencies: list[float] = []
    errors: dict[str, int] = {}
    for _ in pool:
        some, kinds = found.get(timeout=seconds + 120)
        latencies += some
        for kind, count in kinds.items():
            errors[kind] = errors.get(kind, 0) + count
    for process in pool:
        process.join()
    return len(latencies) / seconds, latencies, errors


def _arrivals(address: str, rate: float, seconds: float, seed: int, found: Any) -> None:
    """One process of a load that does not wait for answers: requests at random times, so many a second."""
    import asyncio
    import random

    import grpc
    import grpc.aio

    from trtrun.serve.grpc_api import messages

    kinds, shape = messages(), (1, 3, SLOW_SIDE, SLOW_SIDE)
    array = np.random.default_rng(seed).standard_normal(shape, np.float32).astype(DTYPE)
    message = kinds.ModelInferRequest(model_name="model", raw_input_contents=[array.tobytes()])
    message.inputs.add(name="images", datatype="FP16" if DTYPE == "float16" else "FP32", shape=shape)
    body, latencies, errors = message.SerializeToString(), [], {}

    async def ask(infer: Any, due: float) -> None:
        try:
            await infer(body)
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
    found.put((latencies, errors))


def arrivals(address: str, rate: float, seconds: float) -> tuple[list[float], dict[str, int]]:
    """Latencies and errors of requests that come at this rate, whether the server keeps up or not."""
    context = multiprocessing.get_context("spawn")
    found, processes = context.Queue(), PROCESSES if GPU else 1
    arguments = [(address, rate / processes, seconds, seed, found) for seed in range(processes)]
    pool = [context.Process(target=_arrivals, args=some) for some in arguments]
    for process in pool:
        process.start()
    latencies: list[float] = []
    errors: dict[str, int] = {}
    for _ in pool:
        some, kinds = found.get(timeout=seconds + 120)
        latencies += some
        for kind, count in kinds.items():
            errors[kind] = errors.get(kind, 0) + count
    for process in pool:
        process.join()
    return latencies, errors


def overhead(folder: Path) -> Iterator[Record]:
    """One request at a time over gRPC, against the same in the process."""
    import tritonclient.grpc as triton

    path = model_file(folder, "resnet50")
    array = images(1, 1)[0]
    with serving(path) as (_, address), triton.InferenceServerClient(address) as client, trtrun.load(path) as runner:
        inputs = request(array)
        times = in_turns(
            {"served": lambda: client.infer("model", inputs), "here": lambda: runner.run({"images": array})},
            calls=50 if GPU else 5,
            rounds=5,
        )
    difference = [1e3 * (a - b) for a, b in zip(times["served"], times["here"], strict=True)]
    middle = statistics.median(difference)
    yield Record(
        "serve.grpc.b1.overhead",
        round(1e6 * statistics.median(times["served"]), 1),
        round(1e6 * statistics.median(times["here"]), 1),
        "µs",
        round(middle, 4),
        (round(min(difference), 4), round(max(difference), 4)),
        "milliseconds that gRPC on loopback adds to a request, p50",
    )


def batching(folder: Path) -> Iterator[Record]:
    path = model_file(folder, "mobilenet")
    rates: dict[str, list[float]] = {"on": [], "off": []}
    with (
        serving(path, "--max-batch-size", "32") as (_, on),
        serving(path, "--max-batch-size", "1") as (_, off),
    ):
        for _ in range(3):
            for kind, address in (("on", on), ("off", off)):
                rates[kind].append(load(address, 1.5)[0])
    what = f"{PROCESSES * THREADS} clients, one image each: dynamic batching / the same server without"
    yield compare_rates("serve.batching.vs_off", what, rates["on"], rates["off"])


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


def naive(folder: Path) -> Iterator[Record]:
    """A plain FastAPI handler around the recipe, with an engine of batch 1, as it is pasted."""
    path = model_file(folder, "mobilenet")
    single = folder / f"single{path.suffix}"
    model = models.mobilenet_v3_small(1, DTYPE)
    single.write_bytes(build_plan(model) if GPU else model)
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", _NAIVE, str(single), str(port), str(Path(__file__).parent), DTYPE]
    )
    rates: dict[str, list[float]] = {"ours": [], "naive": []}
    try:
        with serving(path, "--max-batch-size", "32") as (_, address):
            for _ in range(100):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.2)
            for _ in range(3):
                rates["naive"].append(load(f"127.0.0.1:{port}", 1.5, naive=True)[0])
                rates["ours"].append(load(address, 1.5)[0])
    finally:
        process.kill()
        process.wait()
    what = f"{PROCESSES * THREADS} clients, one image each: trtrun serve / a FastAPI handler around the recipe"
    yield compare_rates("serve.vs_naive", what, rates["ours"], rates["naive"])


def shm(folder: Path) -> Iterator[Record]:
    """Batch 32 through shared memory, against the same over the wire."""
    from multiprocessing import shared_memory

    import tritonclient.grpc as triton

    path, array = model_file(folder, "resnet50"), images(32 if GPU else 2, 1)[0]
    memory = shared_memory.SharedMemory(create=True, size=array.nbytes)
    try:
        with serving(path, "--max-batch-size", "32") as (_, address), triton.InferenceServerClient(address) as client:
            client.register_system_shared_memory("images", memory.name, array.nbytes)
            placed = request(array)
            placed[0].set_shared_memory("images", array.nbytes)

            def through_memory() -> None:
                np.frombuffer(memory.buf, array.dtype, array.size).reshape(array.shape)[...] = array
                client.infer("model", placed)

            def over_the_wire() -> None:
                client.infer("model", request(array))

            contenders = {"wire": over_the_wire, "memory": through_memory}
            with ExitStack() as left:
                if GPU:
                    contenders["gpu"] = left.enter_context(_on_the_gpu(client, array))
                times = in_turns(contenders, calls=20 if GPU else 1, rounds=5)
        said = f"batch {len(array)} of ResNet-50 over the wire / in {{}} shared memory, with the client's copy, p50"
        yield compare_times("serve.shm.vs_wire", said.format("system"), times["memory"], times["wire"])
        if GPU:
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
        client.infer("model", placed)

    yield through_memory
    client.unregister_cuda_shared_memory("gpu")
    memory.close()


def overload(folder: Path) -> Iterator[Record]:
    """Four times what the server can do, with its default queue, against four fifths of it."""
    seconds = 60.0 if GPU else 16.0
    path = slow_model_file(folder)
    with serving(path, "--max-batch-size", str(SLOW_BATCH)) as (_, address):
        arrivals(address, 10.0, 1.0)  # whoever is first waits for kernels and graphs
        answered, _ = arrivals(address, 3000.0 if GPU else 200.0, 4.0)
        capacity = len(answered) / 4.0
        calm, _ = arrivals(address, 0.8 * capacity, 8.0)
        busy, errors = arrivals(address, 4.0 * capacity, seconds)
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
        f"p99 of accepted requests at four times the capacity / at 80 % of it; {others} errors but back-pressure",
    )


def reload(folder: Path) -> Iterator[Record]:
    """Reloads under load: requests that were lost or answered wrongly."""
    import tritonclient.grpc as triton

    path = model_file(folder, "mobilenet")
    count = 200 if GPU else 20
    stop = multiprocessing.get_context("spawn").Event()
    with serving(path, "--max-batch-size", "32") as (_, address), triton.InferenceServerClient(address) as client:
        lost: list[int] = []

        def ask() -> None:
            rate, _, errors = load(address, 90.0, threads=4, processes=2, checked=True, stop=stop)
            print(f"  {round(90 * rate)} requests, errors: {errors}", flush=True)
            lost.append(sum(errors.values()))

        thread = threading.Thread(target=ask)
        thread.start()
        time.sleep(4)  # the load's processes start
        done, until = 0, time.monotonic() + (70 if GPU else 15)
        while done < count and time.monotonic() < until:
            client.load_model("model")
            done += 1
        stop.set()
        thread.join()
    what = f"lost or wrong in {done} reloads under load"
    yield Record("serve.reload", lost[0], 0, "requests", lost[0], (lost[0], lost[0]), what)


GROUPS: dict[str, Callable[[Path], Iterator[Record]]] = {
    f.__name__: f for f in (overhead, batching, naive, shm, overload, reload)
}


def main(names: list[str]) -> int:
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    if not GPU:
        print("ONNX Runtime on the CPU: these figures say that it works, not how fast it is")
    groups = {name: partial(in_a_folder, group) for name, group in GROUPS.items()}
    return run_groups(groups, names, environment() if GPU else None)


def in_a_folder(group: Callable[[Path], Iterator[Record]]) -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        yield from group(Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
