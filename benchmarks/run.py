"""Measure trtrun against its floors and peers on this machine's GPU.

    python benchmarks/run.py [GROUP …]     groups: latency throughput device_arrays specialize bench cold_start growth
                                           overhead; latency:resnet50 measures those networks alone

Every figure is a ratio of medians taken in turns in one run. Peers that are not installed are skipped, aloud. All of
them, in the versions that were measured:

    pip install torch torchvision polygraphy==0.53.6 onnxruntime-ep-nv-tensorrt-rtx-cu13==0.4.0
"""

from __future__ import annotations

import array
import gc
import itertools
import os
import select
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import numpy as np
import peers
from cuda.bindings import driver
from results import Record, compare_rates, compare_times, environment, in_turns, keep_fastest, run_groups, threaded

from trtrun import flavor
from trtrun.benchmark import BenchOptions, measure
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions
from trtrun.cuda.device import Device
from trtrun.engine import Engine
from trtrun.pipeline import Pipeline
from trtrun.route import Route
from trtrun.session import Session

RTX = flavor.load("tensorrt_rtx").module
ORT = f"ONNX Runtime with TensorRT-RTX {peers.version('onnxruntime-ep-nv-tensorrt-rtx-cu13')}"


def batches(engine: Engine, count: int = 8, batch: int | None = None) -> list[np.ndarray]:
    """Different random inputs, so that no contender works on what is in a cache already."""
    spec = next(iter(engine.inputs.values()))
    shape = (batch or spec.shape[0], *spec.shape[1:])
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, np.float32).astype(spec.dtype) for _ in range(count)]


def caller(infer: Callable[[dict[str, np.ndarray]], object], inputs: list[np.ndarray]) -> Callable[[], object]:
    turn = itertools.cycle(inputs)
    return lambda: infer({"images": next(turn)})


def agree(a: np.ndarray, b: np.ndarray) -> None:
    error = np.linalg.norm(a.astype(np.float64) - b) / np.linalg.norm(b.astype(np.float64))
    if not error < 1e-2:
        raise AssertionError(f"contenders disagree: {error}")


def latency(only: str = "") -> Iterator[Record]:
    """p50 of one request, NumPy to NumPy; of the networks whose name begins with ``only``."""
    networks = {
        "tiny.b1": (models.tiny(), 400),
        "mobilenet_v3_small.b1": (models.mobilenet_v3_small(1), 100),
        "resnet50.static.b1": (models.resnet50(1), 100),
        "resnet50.static.b8": (models.resnet50(8), 60),
        "resnet50.static.b32": (models.resnet50(32), 30),
    }
    for name, (model, calls) in networks.items():
        if not name.startswith(only):
            continue
        engine = Engine(build_plan(model))
        inputs = batches(engine)
        session = Session(engine)
        contenders: dict[str, object] = {
            "bare": peers.BareLoop(RTX, engine.handle),
            "recipe": peers.Recipe(RTX, engine.handle),
            "floor": peers.Floor(RTX, engine.handle),
        }
        optional: dict[str, Callable[[], object]] = {
            "polygraphy": lambda e=engine: peers.Polygraphy(RTX, e.handle),
            "ort": lambda m=model: peers.OnnxRuntimePlugin(m, cuda_graph=False),
            "ort_graph": lambda m=model: peers.OnnxRuntimePlugin(m, cuda_graph=True),
        }
        if "resnet50.static" in name:
            optional["torch"] = lambda x=inputs[0]: peers.TorchGraph(len(x))
        for label, make in optional.items():
            try:
                contenders[label] = make()
            except Exception as error:
                print(f"  {label} is left out of {name}: {error}", file=sys.stderr)
        if name == "resnet50.static.b8":
            contenders["chunked"] = peers.Chunked(RTX, engine.handle)
        expected = session(inputs[0])["logits"]
        for label, peer in contenders.items():
            if label not in ("floor", "torch"):  # which give nothing, and what other weights give
                agree(peer.infer({"images": inputs[0]})["logits"], expected)  # type: ignore[attr-defined]
        calling = {label: caller(peer.infer, inputs) for label, peer in contenders.items()}  # type: ignore[attr-defined]
        times = in_turns({"ours": caller(session.run, inputs), **calling}, calls=calls, rounds=7)
        print(f"  {name}: " + ", ".join(f"{k} {np.median(v) * 1e6:.1f}" for k, v in times.items()))
        modes = [label for label in ("ort", "ort_graph") if label in times]
        mode = "with its CUDA graph" if keep_fastest(times, "ort", modes) == "ort_graph" else "without its CUDA graph"
        mode += ", the better of its modes" if len(modes) > 1 else ": its other mode did not run"
        what = {
            "bare": "bare loop, one graph launch per request",
            "recipe": "classic recipe",
            "polygraphy": f"Polygraphy {peers.version('polygraphy')} TrtRunner",
            "ort": f"{ORT}, {mode}",
            "torch": "torch fp16 channels-last, CUDA graph",
        }
        for choice in engine.choices.values():
            print(f"  the input's way: {choice.best.__name__}")
        floor, chunked = times.pop("floor"), times.pop("chunked", None)
        for label in ("recipe", "ort"):
            if label in times and chunked:
                what_floor = f"{what[label]} / one core's copy in chunks that overlap with their transfers, p50"
                yield compare_times(f"floor.chunked.{name}.vs_{label}", what_floor, chunked, times[label])
            if label in times:
                what_floor = f"{what[label]} / one core's copy of the input and the engine's graph, nothing else, p50"
                yield compare_times(f"floor.{name}.vs_{label}", what_floor, floor, times[label])
        for label, reference in times.items():
            if label != "ours":
                yield compare_times(
                    f"latency.{name}.vs_{label}", f"{what[label]} / ours, p50", times["ours"], reference
                )
        for peer in contenders.values():
            peer.close()  # type: ignore[attr-defined]
        del contenders, calling
        engine.close()
        gc.collect()


class _Peak:
    """Launches per second of device-resident graphs, up to eight in flight."""

    def __init__(self, engine: Engine, kind: type = peers.DeviceResident) -> None:
        self.graphs = [kind(RTX, engine.handle) for _ in range(8)]

    def measure(self, depth: int, seconds: float) -> float:
        def rounds(count: int) -> None:
            for _ in range(count):
                for graph in self.graphs[:depth]:
                    graph.launch()
            for graph in self.graphs[:depth]:
                graph.synchronize()

        rounds(5)
        start = time.perf_counter()
        rounds(10)
        count = max(10, int(seconds * 10 / (time.perf_counter() - start)))
        start = time.perf_counter()
        rounds(count)
        return count * depth / (time.perf_counter() - start)

    def close(self) -> None:
        for graph in self.graphs:
            graph.close()


def _mapped(pipeline: Pipeline, inputs: list[np.ndarray], seconds: float) -> float:
    """Requests per second through Pipeline.map over host arrays."""
    for _ in pipeline.map(inputs * 2):
        pass
    start, count = time.perf_counter(), 0
    turn = itertools.cycle(inputs)

    def source() -> Iterator[np.ndarray]:
        while time.perf_counter() - start < seconds:
            yield next(turn)

    for _ in pipeline.map(source()):
        count += 1
    return count / (time.perf_counter() - start)


def throughput() -> Iterator[Record]:
    for batch in (1, 8, 32):
        yield from _throughput(batch)


def _throughput(batch: int) -> Iterator[Record]:
    model = models.resnet50(batch)
    engine = Engine(build_plan(model))
    inputs = batches(engine)
    resident, moving = _Peak(engine), _Peak(engine, peers.BareLoop)
    recipe = peers.Recipe(RTX, engine.handle)
    best_depth = max(range(1, 9), key=lambda depth: resident.measure(depth, 0.25))
    with Session(engine) as session, Pipeline(session) as pipeline:
        ways: dict[str, Callable[[], float]] = {
            "ours": lambda: _mapped(pipeline, inputs, 0.6),
            "peak": lambda: resident.measure(best_depth, 0.4),
            "moved": lambda: moving.measure(8, 0.3),
        }
        if batch == 8:
            ways["recipe"] = lambda: threaded([recipe.infer], inputs, 0.6)
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(5):
            for way in reversed(ways) if turn % 2 else ways:
                rates[way].append(batch * ways[way]())
        yield compare_rates(
            f"throughput.resnet50.b{batch}.vs_peak",
            f"Pipeline.map over host arrays (depth {pipeline.depth}, measured) / device-resident peak "
            f"({best_depth} graphs in flight, the best of 1…8)",
            rates["ours"],
            rates["peak"],
        )
        what = "graphs with transfers and no work on the host, 8 in flight / device-resident peak"
        yield compare_rates(f"floor.throughput.resnet50.b{batch}.vs_peak", what, rates["moved"], rates["peak"])
        if batch == 8:
            what = "Pipeline.map / classic recipe, one thread"
            yield compare_rates("throughput.resnet50.b8.vs_recipe", what, rates["ours"], rates["recipe"])
        for peer in (resident, moving, recipe):
            peer.close()
        if batch == 1:
            yield from _versus_onnx_runtime(model, inputs, lambda: _mapped(pipeline, inputs, 0.3))
    engine.close()


_ORT_READY = 40.0  # seconds that ONNX Runtime's ways get to start up, side by side, and
_ORT_MEASURED = 8.0  # each of them for 0.3 s of requests: with several threads some never come to an end
_ORT_THROUGHPUT = """
import os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # whatever a library prints must not get between the answers
import numpy as np, peers, results
model, sessions, threads = open(sys.argv[1], "rb").read(), int(sys.argv[2]), int(sys.argv[3])
made = [peers.OnnxRuntimePlugin(model, cuda_graph=sessions > 0) for _ in range(max(sessions, 1))]
inputs = list(np.load(sys.argv[4]))
for session in made:
    for _ in range(3):
        session.infer({"images": inputs[0]})
calls = [made[index % len(made)].infer for index in range(threads)]
print("ready", file=answers, flush=True)
for _ in sys.stdin:
    print(results.threaded(calls, inputs, 0.3), file=answers, flush=True)
os._exit(0)
"""


class _OnnxRuntime:
    """One way of ONNX Runtime, in a process of its own that measures when it is asked to."""

    def __init__(self, *arguments: str) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
        command = [sys.executable, "-c", _ORT_THROUGHPUT, *arguments]
        self._process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)  # type: ignore[call-overload]

    def answer(self, seconds: float) -> str:
        """Its next line. Raises TimeoutError after so many seconds, RuntimeError when it has died."""
        ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, seconds))
        if not ready:
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            raise RuntimeError((self._log.read().strip().splitlines() or ["no word"])[-1][:200])
        return str(line.strip())

    def measure(self) -> float:
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self.answer(_ORT_MEASURED))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._log.close()


def _versus_onnx_runtime(model: bytes, inputs: list[np.ndarray], ours: Callable[[], float]) -> Iterator[Record]:
    """Its best way against ours of the same moment. All start up side by side, and are measured one after another."""
    rates: dict[str, tuple[list[float], list[float]]] = {}
    cut_off: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        (Path(folder) / "model.onnx").write_bytes(model)
        np.save(Path(folder) / "inputs.npy", inputs)
        ways = {}
        for sessions, threads in ((0, 1), (0, 2), (0, 4), (0, 8), (1, 1), (2, 2), (4, 4), (8, 8)):
            way = f"{sessions} sessions with CUDA graph" if sessions else f"{threads} threads, one session"
            ways[way] = _OnnxRuntime(f"{folder}/model.onnx", str(sessions), str(threads), f"{folder}/inputs.npy")
            running.callback(ways[way].close)
        until = time.monotonic() + _ORT_READY
        waiting = {}
        for way, process in ways.items():
            try:
                process.answer(until - time.monotonic())
                waiting[way] = process
            except (TimeoutError, RuntimeError) as error:
                cut_off.append(f"{way} ({str(error) or f'not ready after {_ORT_READY:.0f} s'})")
                process.close()  # what still starts up would slow the others
        for way, process in waiting.items():
            pairs = []
            try:
                for _ in range(5):
                    pairs.append((ours(), process.measure()))
                rates[way] = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
            except (TimeoutError, OSError, RuntimeError) as error:
                cut_off.append(f"{way} ({str(error) or f'0.3 s of requests took more than {_ORT_MEASURED:.0f} s'})")
            process.close()
    for way in cut_off:
        print(f"  ONNX Runtime, left out: {way}", file=sys.stderr)
    if not rates:
        return
    print("  ONNX Runtime: " + ", ".join(f"{way} {np.median(theirs):.0f}" for way, (_, theirs) in rates.items()))
    best = max(rates, key=lambda way: float(np.median(rates[way][1])))
    what = f"Pipeline.map / {ORT}, its best of {len(rates)} ways: {best}"
    if cut_off:
        what += f"; left out: {'; '.join(cut_off)}"
    yield compare_rates("throughput.resnet50.b1.vs_ort", what, *rates[best])


def device_arrays() -> Iterator[Record]:
    import torch

    engine = Engine(build_plan(models.resnet50(8)))
    session = Session(engine)
    resident = peers.DeviceResident(RTX, engine.handle)
    tensors = [torch.from_numpy(x).cuda() for x in batches(engine)]
    turn = itertools.cycle(tensors)
    stream = torch.cuda.Stream()
    expected = session(tensors[0])["logits"]

    torch.cuda.set_stream(stream)

    def ours() -> None:
        out = session.run({"images": next(turn)}, outputs="device", stream=stream)
        torch.from_dlpack(out["logits"])
        stream.synchronize()

    def graph() -> None:
        resident.launch()
        resident.synchronize()

    result = torch.empty_like(torch.from_numpy(expected)).cuda()
    target, handle = next(iter(resident.tensors.values())), int(resident.stream)
    source = next(resident.tensors[name] for name in resident.outputs)

    def floor() -> None:
        tensor = next(turn)
        driver.cuMemcpyAsync(int(target.device), tensor.data_ptr(), target.nbytes, handle)
        resident.launch()
        driver.cuMemcpyAsync(result.data_ptr(), int(source.device), source.nbytes, handle)
        resident.synchronize()

    calls = [
        session.bind({"images": tensor}, {"logits": torch.empty_like(result)}, stream=stream) for tensor in tensors
    ]
    calling = itertools.cycle(calls)

    def bound() -> None:
        next(calling)()
        stream.synchronize()

    ours()
    out = session.run({"images": tensors[0]}, outputs="device")["logits"]
    agree(torch.from_dlpack(out).cpu().numpy(), expected)
    agree(calls[0]()["logits"].cpu().numpy(), expected)
    times = in_turns({"run": ours, "bound": bound, "graph": graph, "floor": floor}, calls=80)
    what = "replay of the engine's graph alone / torch tensor in, torch tensor out: session.bind, both synchronized"
    yield compare_times("device_arrays.resnet50.b8.vs_graph", what, times["bound"], times["graph"])
    what = "the same through session.run, whose tensors may be others each time"
    yield compare_times("device_arrays.resnet50.b8.run.vs_graph", what, times["run"], times["graph"])
    what = "replay of the engine's graph alone / the same with bare copies of the input and output on the GPU"
    yield compare_times("floor.device_arrays.resnet50.b8.vs_graph", what, times["floor"], times["graph"])
    resident.close()
    engine.close()


def specialize() -> Iterator[Record]:
    model = models.resnet50(None)
    one = Session(Engine(build_plan(model)))
    own = Session(Engine(build_plan(model, BuildOptions(specialize=(1, 8, 32)))))
    inputs = batches(one.engine, batch=1)
    agree(own(inputs[0])["logits"], one(inputs[0])["logits"])
    times = in_turns({"ours": caller(own.run, inputs), "one": caller(one.run, inputs)}, calls=60)
    what = "one dynamic profile / BuildOptions(specialize=(1, 8, 32)), p50 NumPy to NumPy"
    yield compare_times("specialize.resnet50.b1.vs_dynamic", what, times["ours"], times["one"])
    one.engine.close()
    own.engine.close()


def bench() -> Iterator[Record]:
    """trtrun bench's GPU Compute Time against a plain loop of CUDA events, whose median must be the same."""
    engine = Engine(build_plan(models.resnet50(1)))
    resident = peers.DeviceResident(RTX, engine.handle)
    options = BenchOptions(duration=0.5, warmup=100)
    ours, reference = [], []
    for _ in range(7):
        ours.append(measure(engine, options=options).metrics.compute.median / 1e3)
        reference.append(float(np.median(resident.event_times(800))) / 1e3)
    what = "plain loop of CUDA events / trtrun bench (CUDA graph, transfers included), GPU Compute Time, median"
    yield compare_times("bench.resnet50.vs_events", what, ours, reference)
    resident.close()
    engine.close()


_COLD = """
import sys, time
import numpy as np
import trtrun, trtrun.session, trtrun.engine
from trtrun.cuda.device import Device
with Device() as device:
    device.synchronize()
x = np.ones((1, 3, 224, 224), np.float16)
start = time.perf_counter()
with trtrun.load(sys.argv[1]) as pred:
    pred(x)
    print(time.perf_counter() - start)
"""


def cold_start() -> Iterator[Record]:
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "resnet50.engine"
        plan.write_bytes(build_plan(models.resnet50(1)))

        def start(cache: str) -> float:
            environment = {**os.environ, "TRTRUN_CACHE_DIR": str(Path(folder) / cache)}
            command = [sys.executable, "-c", _COLD, str(plan)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            return float(done.stdout)

        cold = [start(f"cold{turn}") for turn in range(3)]
        start("warm")
        cached = [start("warm") for _ in cold]
    what = "without / with the runtime cache: fresh process, CUDA initialized, from load to the first result"
    yield compare_times("cold_start.resnet50.cached_vs_cold", what, cached, cold)


def growth() -> Iterator[Record]:
    """A network of a few kernels, and one whose kernels are held back, in three shapes each."""
    sessions = [Session(Engine(build_plan(model))) for model in (models.tiny(None), models.resnet50(None))]
    requests = [(session, x) for session in sessions for batch in (1, 4, 32) for x in batches(session.engine, 2, batch)]
    turn = itertools.cycle(requests)
    # Readings come after whole rounds: what a session holds of its last request depends on which it was.
    runs = -(-10_000 // len(requests)) * len(requests)

    def run() -> None:
        session, x = next(turn)
        session(x)

    def held() -> tuple[int, int]:
        gc.collect()
        free, total = device.memory()
        return tracemalloc.get_traced_memory()[0], total - free

    for _ in range(40 * len(requests)):
        run()
    device = Device()
    tracemalloc.start()
    readings = array.array("q", [0] * 4)  # holds numbers, not objects: keeping a reading leaves nothing behind
    for i in (0, 2):  # the first after as many runs: by then what Python and NumPy keep for reuse is full
        for _ in itertools.repeat(None, runs):  # counting leaves an integer behind
            run()
        readings[i], readings[i + 1] = held()
    tracemalloc.stop()
    python, on_device = readings[2] - readings[0], readings[3] - readings[1]
    what = f"bytes left behind by {runs:,} runs: Python objects {python}, device memory {on_device}"
    held_bytes = max(python, 0) + max(on_device, 0)
    ratio = 1.0 if held_bytes == 0 else 0.0
    yield Record("hot_path.growth", held_bytes, 0, "bytes", ratio, (ratio, ratio), what)
    for session in sessions:
        session.engine.close()


OVERHEAD = 25.0  # µs that a request may take more than a bare loop that makes the same calls


def overhead() -> Iterator[Record]:
    """What profiles in turn, state and outputs from the allocator cost, against bare loops and plain sessions."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests import networks

    beyond = []
    for record in itertools.chain(_profile_switch(networks), _state(networks), _allocator(networks)):
        yield record
        if record.id.count(".") == 1 and record.difference is not None and record.difference > OVERHEAD:
            beyond.append(f"{record.id} {record.difference:+.1f} µs")
    if beyond:
        raise AssertionError(f"more than {OVERHEAD:.0f} µs beyond the bare loop: {', '.join(beyond)}")


def _costs(id: str, what: str, ours: list[float], reference: list[float]) -> Record:
    """A record of times per request whose difference is what counts."""
    difference = float(np.median([o - r for o, r in zip(ours, reference, strict=True)])) * 1e6
    return replace(
        compare_times(id, f"{what}: {difference:+.1f} µs a request", ours, reference), difference=round(difference, 2)
    )


def _profile_switch(networks: Any) -> Iterator[Record]:
    rng = np.random.default_rng(0)
    few, many = (rng.standard_normal((rows, 4)).astype(np.float32) for rows in (4, 150))
    with (
        Engine(networks.several_profiles()) as engine,
        Session(engine) as mixed,
        Session(engine) as small,
        Session(engine) as large,
    ):
        bare = peers.BareSwitch(engine.handle, many)
        for x, profile in ((few, 0), (many, 2)):
            agree(bare.infer(x, profile), x + x)

        # One call is a pair of requests: the median over single ones would be of two kinds.
        def pair() -> None:
            mixed.run({"x": few})
            mixed.run({"x": many})

        def apart() -> None:
            small.run({"x": few})
            large.run({"x": many})

        def same_calls() -> None:
            bare.infer(few, 0)
            bare.infer(many, 2)

        times = in_turns({"pair": pair, "apart": apart, "bare": same_calls}, calls=200)
        halved = {name: [seconds / 2 for seconds in rounds] for name, rounds in times.items()}
        what = "bare loop that switches between profiles 0 and 2, every call made / ours, which has a graph for each"
        yield _costs("overhead.profile_switch", what, halved["pair"], halved["bare"])
        what = "two sessions, each with one of the profiles / one session with both in turn"
        yield _costs("overhead.profile_switch.vs_two_sessions", what, halved["pair"], halved["apart"])
        bare.close()


def _state(networks: Any) -> Iterator[Record]:
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    with (
        Engine(networks.recurrent()) as engine,
        Session(engine) as plain,
        plain.state({"h": "h_out"}) as sequence,
    ):
        bare = peers.BareLoop(RTX, engine.handle, {"h": "h_out"})
        for _ in range(4):  # both begin with zeros
            agree(sequence.run({"x": x})["y"], bare.infer({"x": x})["y"])
        contenders = {
            "state": lambda: sequence.run({"x": x}),
            "plain": lambda: plain.run({"x": x, "h": x}),
            "bare": lambda: bare.infer({"x": x}),
        }
        times = in_turns(contenders, calls=200)
        what = "bare loop, one graph in which the state is copied within the GPU / state kept on the GPU"
        yield _costs("overhead.state", what, times["state"], times["bare"])
        what = "the same engine with the state passed by the caller / state kept on the GPU"
        yield _costs("overhead.state.vs_plain", what, times["state"], times["plain"])
        bare.close()


def _allocator(networks: Any) -> Iterator[Record]:
    few = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    with Engine(networks.several_profiles()) as engine, Session(engine) as plain:
        for _ in range(4):
            agree(plain.run({"x": few})["y"], few + few)
        # No operator of TensorRT-RTX 1.6 has a data-dependent shape: an output of a known one is treated as such, from
        # here on. The plain session has bound its shapes already.
        known = Route._output_shape
        Route._output_shape = lambda self, context, name: (-1, 4)  # type: ignore[method-assign]
        try:
            ours = Session(engine)
            bare = peers.BareAllocator(RTX, engine.handle, few)
            agree(bare.infer(few), few + few)
            agree(ours.run({"x": few})["y"], few + few)
            contenders = {
                "ours": lambda: ours.run({"x": few}),
                "plain": lambda: plain.run({"x": few}),
                "bare": lambda: bare.infer(few),
            }
            times = in_turns(contenders, calls=200)
            assert "known only after running" in (ours.graph_reason or ""), "the output did not come from the allocator"
            assert plain.graph_reason is None, "the plain session was bound again"
        finally:
            Route._output_shape = known  # type: ignore[method-assign]
        what = "bare loop with an output allocator, every step enqueued / ours, the same"
        yield _costs("overhead.allocator", what, times["ours"], times["bare"])
        what = "the same engine with an output of known shape, one graph / its output from the allocator, enqueued"
        yield _costs("overhead.allocator.vs_plain", what, times["ours"], times["plain"])
        ours.close()
        bare.close()


GROUPS = {f.__name__: f for f in (latency, throughput, device_arrays, specialize, bench, cold_start, growth, overhead)}


def main(names: list[str]) -> int:
    # The hand-written peers take a current context for granted.
    peers.checked(driver.cuCtxSetCurrent(Device()._context))
    return run_groups(GROUPS, names, environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
