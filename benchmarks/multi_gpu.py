"""Measure that one process fills all the GPUs of a machine.

    python benchmarks/multi_gpu.py [scaling serve_scaling ray_scaling]

Needs two GPUs or more, of one kind. Results go to benchmarks/results/<gpu>-x<count>.json.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import models
import numpy as np
import serve
from results import Record, compare_rates, environment, run_groups

import trtrun
from trtrun.building.builder import build_plan
from trtrun.cuda.device import Device, gpu_count
from trtrun.pipeline import Pipeline

BATCH = 8
ROUNDS = 5
SECONDS = 1.0


def arrays(count: int = 16) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal((BATCH, 3, 224, 224), np.float32).astype(np.float16) for _ in range(count)]


def mapped(pipeline: Pipeline, inputs: list[np.ndarray], seconds: float = SECONDS) -> float:
    """Images per second through Pipeline.map over host arrays."""
    turn, start, count = itertools.cycle(inputs), time.perf_counter(), 0

    def source() -> Iterator[np.ndarray]:
        while time.perf_counter() - start < seconds:
            yield next(turn)

    for _ in pipeline.map(source()):
        count += 1
    return BATCH * count / (time.perf_counter() - start)


def submitted(pipeline: Pipeline, inputs: list[np.ndarray], threads: int, seconds: float = SECONDS) -> float:
    """Images per second when several threads submit."""
    counts = [0] * threads
    start = time.perf_counter()

    def work(index: int) -> None:
        turn = itertools.cycle(inputs[index:] + inputs[:index])
        last = None
        while time.perf_counter() - start < seconds:
            last = pipeline.submit(next(turn))
            counts[index] += 1
        if last is not None:
            last.result()

    pool = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return BATCH * sum(counts) / (time.perf_counter() - start)


def _alone(path: str, ordinal: int, go: Any, found: Any) -> None:
    """A process of its own for one GPU."""
    inputs = arrays()
    with trtrun.load(path, device=ordinal) as runner, Pipeline(runner) as pipeline:
        mapped(pipeline, inputs, 0.3)
        found.put(0.0)
        go.wait()
        found.put([mapped(pipeline, inputs) for _ in range(ROUNDS)])


def processes(path: Path, gpus: int) -> list[float]:
    """Images per second of one process per GPU, all at once."""
    context = multiprocessing.get_context("spawn")
    go, found = context.Event(), context.Queue()
    pool = [context.Process(target=_alone, args=(str(path), ordinal, go, found)) for ordinal in range(gpus)]
    for process in pool:
        process.start()
    for _ in pool:
        found.get(timeout=120)
    go.set()
    rates = [found.get(timeout=120) for _ in pool]
    for process in pool:
        process.join()
    return [sum(turn) for turn in zip(*rates, strict=True)]


def scaling(folder: Path) -> Iterator[Record]:
    gpus, inputs = gpu_count(), arrays()
    path, model = folder / "resnet50.engine", models.resnet50(BATCH)
    path.write_bytes(build_plan(model))
    reference = trtrun.OnnxRuntimeSession(model)
    with (
        trtrun.load(path) as single,
        Pipeline(single) as alone,
        trtrun.load(path, devices="all") as everywhere,
        Pipeline(everywhere) as spread,
    ):
        expected = [single(x)["logits"] for x in inputs]
        pairs = list(zip(expected, (reference(x)["logits"] for x in inputs[:2]), strict=False))
        for _ in range(3):
            pairs += zip((out["logits"] for out in spread.map(inputs)), expected, strict=True)
        for (
            found,
            wanted,
        ) in pairs:  # every answer, in order; the expected ones are ONNX Runtime's where both were asked
            error = np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted)
            assert error < 1e-2, error
        mapped(alone, inputs, 0.3)
        before = [Device(ordinal).memory()[0] for ordinal in range(gpus)]
        rates: dict[str, list[float]] = {"one": [], "all": [], "inline": [], "threads": []}
        fillers = spread._fillers
        for _ in range(ROUNDS):
            rates["one"].append(gpus * mapped(alone, inputs))
            rates["all"].append(mapped(spread, inputs))
            spread._fillers = None
            rates["inline"].append(mapped(spread, inputs))
            spread._fillers = fillers
            rates["threads"].append(submitted(spread, inputs, 2 * gpus))
        grown = [before[ordinal] - Device(ordinal).memory()[0] for ordinal in range(gpus)]
        depth, slots = spread.depth, spread._clones[0]
        print(f"  depth {alone.depth} alone, {depth} on all; helpers {slots.copy_helpers}, turns {slots.turns}")
        yield Record(
            "multi_gpu.growth", max(grown), 0, "bytes", float(max(grown) <= 0), (1.0, 1.0), f"left behind: {grown}"
        )
    start = time.perf_counter()
    for x in inputs * 8:
        x.copy()
    print(f"  one core copies {len(inputs) * 8 * inputs[0].nbytes / (time.perf_counter() - start) / 1e9:.1f} GB/s")
    rates["processes"] = processes(path, gpus)
    what = f"Pipeline.map on {gpus} GPUs / {gpus} × one GPU, host arrays in and out, ResNet-50 batch {BATCH}"
    yield compare_rates("multi_gpu.scaling", what, rates["all"], rates["one"])
    what = f"the same, all requests filled in the thread that maps / {gpus} × one GPU"
    yield compare_rates("multi_gpu.scaling.inline", what, rates["inline"], rates["one"])
    what = f"the same, {2 * gpus} threads that submit / {gpus} × one GPU"
    yield compare_rates("multi_gpu.scaling.threads", what, rates["threads"], rates["one"])
    what = f"the same, one process per GPU / {gpus} × one GPU"
    yield compare_rates("multi_gpu.scaling.processes", what, rates["processes"], rates["one"])


def _shared_load(address: str, seconds: float, name: str, ready: Any, go: Any, found: Any) -> None:
    """One client process: requests of batch 8 from and to system shared memory, four at a time."""
    from multiprocessing import shared_memory

    import tritonclient.grpc as triton

    array = arrays(1)[0]
    size, out = array.nbytes, BATCH * 1000 * 2
    counts = [0] * WINDOWS

    def ask(thread: int) -> None:
        memory = shared_memory.SharedMemory(create=True, size=size + out)
        client = triton.InferenceServerClient(address, channel_args=serve.APART)
        region = f"m{name}-{thread}"
        try:
            client.register_system_shared_memory(region, memory.name, size + out)
            np.frombuffer(memory.buf, array.dtype, array.size).reshape(array.shape)[...] = array
            placed = serve.request(array)
            placed[0].set_shared_memory(region, size)
            answer = triton.InferRequestedOutput("logits")
            answer.set_shared_memory(region, out, size)
            client.infer("model", placed, outputs=[answer])
            ready.put(0)
            go.wait()
            start = time.perf_counter()
            while (window := int((time.perf_counter() - start) / seconds)) < WINDOWS:
                client.infer("model", placed, outputs=[answer])
                counts[window] += 1  # threads that lose one to another's are too few to matter
            client.unregister_system_shared_memory(region)
        finally:
            client.close()
            memory.close()
            memory.unlink()

    pool = [threading.Thread(target=ask, args=(thread,)) for thread in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    found.put([BATCH * count / seconds for count in counts])


WINDOWS = 3  # in which rates are read, one after another
CLIENTS = 6  # processes of the load for each GPU, with four requests under way in each


def served(path: Path, arguments: list[str], workers: int, clients: int, seconds: float = 2.0) -> list[float]:
    """Images per second of a server with these arguments, and of so many processes, under the load of others."""
    context = multiprocessing.get_context("spawn")
    with ExitStack() as running:
        # Clients that wait for their answers cannot bring more than can be done: nobody is to be turned away.
        fixed = ("--max-batch-size", str(BATCH), "--max-queue-time", "10000")
        port, http = serve.free_port(), serve.free_port()
        command = ["-m", "trtrun", "serve", f"model={path}", "--port", str(http), "--grpc-port", str(port)]
        command += ["--workers", str(workers)]
        command += [*fixed, *arguments]
        server = serve.Server(path.parent, "server", command, port, http=http, workers=workers)
        running.callback(server.stop)
        address = server.wait()
        ready, go, found = context.Queue(), context.Event(), context.Queue()
        pool = [
            context.Process(target=_shared_load, args=(address, seconds, str(index), ready, go, found))
            for index in range(clients)
        ]
        for process in pool:
            process.start()
        for _ in range(4 * len(pool)):
            ready.get(timeout=60)
        go.set()
        rates = [found.get(timeout=60) for _ in pool]
        for process in pool:
            process.join()
        return [sum(window) for window in zip(*rates, strict=True)]


def serve_scaling(folder: Path) -> Iterator[Record]:
    """A server of one GPU and of all: with a process for each, and with one for all."""
    gpus = gpu_count()
    path = folder / "served.engine"
    path.write_bytes(build_plan(models.resnet50(BATCH)))
    rates = {
        "one": [gpus * rate for rate in served(path, ["--device", "0"], 1, CLIENTS)],
        "each": served(path, ["--all-devices"], gpus, CLIENTS * gpus),
        "together": served(path, ["--all-devices"], 1, CLIENTS * gpus),
    }
    what = f"trtrun serve --all-devices on {gpus} GPUs / {gpus} × one GPU, gRPC and shared memory, batch {BATCH}"
    yield compare_rates("multi_gpu.serve_scaling", what, rates["each"], rates["one"])
    what = f"the same with --workers 1 / {gpus} × one GPU"
    yield compare_rates("multi_gpu.serve_scaling.one_process", what, rates["together"], rates["one"])


def ray_scaling(folder: Path) -> Iterator[Record]:
    """Ray Data, one GPU per actor. Needs ray[data]."""
    import ray_data

    gpus = gpu_count()
    path = serve.Models(folder)("resnet50")
    one = np.random.default_rng().standard_normal((ray_data.ROWS, *ray_data.ROW), np.float32).astype(np.float16)
    blocks = [np.roll(one, index, axis=0) for index in range(16)]
    single = ray_data.on_ray(path, blocks, 8 << 30, 1)
    several = ray_data.on_ray(path, blocks * gpus, (8 << 30) * gpus, gpus)
    what = f"Ray Data with {gpus} actors of a GPU each / {gpus} × one actor, ResNet-50, requests of {ray_data.BATCH}"
    yield compare_rates("multi_gpu.ray_scaling", what, several, [gpus * rate for rate in single])


GROUPS = {f.__name__: f for f in (scaling, serve_scaling, ray_scaling)}


def main(names: list[str]) -> int:
    gpus = gpu_count()
    if gpus < 2:
        raise SystemExit("this needs two GPUs or more")
    machine = {**environment(), "gpu": f"{Device().name} x{gpus}", "cpu cores": os.cpu_count()}
    with tempfile.TemporaryDirectory() as folder:
        return run_groups({name: partial(group, Path(folder)) for name, group in GROUPS.items()}, names, machine)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
