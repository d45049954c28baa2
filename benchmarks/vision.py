"""Measure vision on the GPU: preprocessing, suppression, and whole detectors from uint8 pictures to boxes.

    python benchmarks/vision.py [pre nms latency detect where]

``where`` stores nothing: it prints where the time of a request goes. ``nms`` and the CPU's side of ``detect`` need
torch, ``nms`` torchvision too. Each figure goes to benchmarks/results/<gpu>.json as soon as it is measured.

Pictures lie in the caller's memory. "staged" ones are in page-locked memory of ``VisionTask.empty``, as videos are
decoded; "pageable" ones anywhere else.
"""

from __future__ import annotations

import cProfile
import itertools
import pstats
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import models
import numpy as np
import peers
from cuda.bindings import driver
from results import Record, compare_rates, compare_times, environment, in_turns, run_groups

from trtrun import flavor, vision
from trtrun.arrays import COPY_POOL
from trtrun.buffers import Buffers
from trtrun.building.builder import build_plan
from trtrun.cuda.device import Device
from trtrun.cuda.event import Event
from trtrun.cuda.graph import capture
from trtrun.cuda.memory import copy_async, copy_now
from trtrun.cuda.stream import create_stream
from trtrun.cuda.transfer import Transfers
from trtrun.engine import Engine
from trtrun.pipeline import Pipeline
from trtrun.session import Session
from trtrun.vision import gpu
from trtrun.vision.preprocess import Preprocess, prepare_reference
from trtrun.vision.sources import Item

RTX = flavor.load("tensorrt_rtx").module
HEIGHT, WIDTH = 1080, 1920
FRAME = HEIGHT * WIDTH * 3
SECONDS = 1.0  # of each measured rate
ROUNDS = 3


def frames(count: int) -> list[np.ndarray]:
    """Smooth random pictures of 1080p, all different."""
    rng = np.random.default_rng(0)
    return [
        cv2.resize(rng.integers(0, 256, (27, 48, 3), np.uint8), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        for _ in range(count)
    ]


class Stopwatch:
    """Seconds on the GPU of what is enqueued, per call, as the median of several measurements."""

    def __init__(self, device: Device) -> None:
        self.stream = create_stream(device)
        self.handle = int(self.stream.handle)
        self._start, self._end = (Event(device, spin=True) for _ in range(2))

    def time(self, enqueue: Callable[[int], None], calls: int, *, graph: bool = True) -> list[float]:
        enqueue(self.handle)
        self.stream.sync()
        captured = capture(self.stream, enqueue) if graph else None
        found = []
        for _ in range(12):
            self._start.record(self.handle)
            captured.launch(self.stream) if captured else enqueue(self.handle)
            self._end.record(self.handle)
            self.stream.sync()
            found.append(self._end.since(self._start) / 1e3 / calls)
        if captured:
            captured.close()
        return found[3:]


def copy_bandwidth(device: Device, buffers: Buffers, watch: Stopwatch) -> float:
    """Bytes per second that a copy within the GPU reads and writes, of 512 MB."""
    nbytes = 512 << 20
    source, target = buffers.on_gpu("\0source", nbytes), buffers.on_gpu("\0target", nbytes)
    return (
        2
        * nbytes
        / statistics.median(watch.time(lambda stream: copy_async(target, source, nbytes, stream), 1, graph=False))
    )


def pre() -> Iterator[Record]:
    """The kernel alone, pictures on the GPU; sets of pictures take turns, so that none is found in the cache."""
    device, batch, sets = Device(), 8, 8
    with device:
        buffers, watch = Buffers(device), Stopwatch(device)
        bandwidth = copy_bandwidth(device, buffers, watch)
        print(f"  copy within the GPU: {bandwidth / 1e9:.0f} GB/s")
        pixels = buffers.on_gpu("\0pixels", sets * batch * FRAME)
        for index, frame in enumerate(frames(sets * batch)):
            copy_now(pixels + index * FRAME, frame)
        for dtype in ("float32", "float16"):
            how = Preprocess((640, 640), dtype=dtype)  # type: ignore[arg-type]
            geometry = how.geometry((WIDTH, HEIGHT))
            table = gpu.constant(device, how.table())
            output = int(np.prod(how.shape(batch))) * np.dtype(dtype).itemsize
            _, rows = gpu.rows_that_count(geometry)
            # Every 32 bytes of a row that counts are touched, because pixels lie 9 bytes apart.
            moved = batch * (HEIGHT if rows is None else len(rows)) * WIDTH * 3 + output
            launches = []
            for index in range(sets):
                described = [
                    gpu.describe(geometry, pixels + (index * batch + i) * FRAME, WIDTH * 3, 114) for i in range(batch)
                ]
                descriptors = np.frombuffer(b"".join(map(bytes, described)), np.uint8)
                address = buffers.on_gpu(f"\0{dtype}{index}", descriptors.nbytes)
                copy_now(address, descriptors)
                out = buffers.on_gpu(f"\0out{index}", 2 * output)
                launches.append(gpu.preparation(device, address, out, table.address, how, batch))

            def enqueue(stream: int, launches: list[Any] = launches) -> None:
                for launch in launches:
                    launch.enqueue(stream)

            ours = watch.time(enqueue, sets)
            bound = [moved / bandwidth] * len(ours)
            suffix = "" if dtype == "float32" else "_fp16"  # what most networks take
            what = f"{moved / 1e6:.1f} MB that must move at the copy's {bandwidth / 1e9:.0f} GB/s / ours, {dtype}"
            yield compare_times(f"vision.pre.1080p_640{suffix}.vs_roofline", what, ours, bound)
            every = batch * FRAME + output
            yield compare_times(
                f"vision.pre.1080p_640{suffix}.vs_whole_pictures",
                f"{every / 1e6:.1f} MB, every row of the pictures counted / ours, {dtype}",
                ours,
                [every / bandwidth] * len(ours),
            )
        buffers.close()


def scene(rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Candidates of 100 objects of 80 classes: boxes that lie around them, and different scores."""
    objects = rng.random((100, 4)) * [560, 560, 120, 120] + [0, 0, 20, 20]
    mine = rng.integers(0, len(objects), rows)
    boxes = objects[mine]
    boxes[:, :2] += rng.standard_normal((rows, 2)) * 0.08 * boxes[:, 2:]
    boxes[:, 2:] *= np.exp(rng.standard_normal((rows, 2)) * 0.1)
    boxes[:, 2:] += boxes[:, :2]
    scores = (rng.permutation(rows) + 1) / (rows + 1)
    return boxes.astype(np.float32), scores.astype(np.float32), rng.integers(0, 80, 100)[mine].astype(np.int32)


def nms() -> Iterator[Record]:
    """Suppression alone: boxes, scores and classes on the GPU -> those that are kept, sorted; ours on the host."""
    for rows, batch in ((8400, 1), (8400, 32), (25200, 1), (25200, 32)):
        yield suppression(rows, batch)


def suppression(rows: int, batch: int) -> Record:
    import torch
    import torchvision

    device = Device()
    selection = vision.Selection(iou_threshold=0.5, max_detections=1024)
    rng = np.random.default_rng(0)
    scenes = [np.stack(arrays) for arrays in zip(*(scene(rng, rows) for _ in range(batch)), strict=True)]
    boxes, scores, classes = (torch.from_numpy(array).cuda() for array in scenes)
    torch.cuda.synchronize()
    with device:
        buffers, watch = Buffers(device), Stopwatch(device)
        addresses = scores.data_ptr(), boxes.data_ptr(), classes.data_ptr()
        ours = gpu.Suppression(device, buffers, addresses, (batch, rows), 0, selection)

        def run() -> None:
            ours.step.enqueue(watch.handle)
            watch.stream.sync()

        def each() -> list[Any]:
            kept = [torchvision.ops.batched_nms(boxes[i], scores[i], classes[i], 0.5) for i in range(batch)]
            torch.cuda.synchronize()
            return kept

        def at_once() -> Any:
            number = torch.arange(batch, device="cuda").repeat_interleave(rows) * 80 + classes.view(-1)
            kept = torchvision.ops.batched_nms(boxes.view(-1, 4), scores.view(-1), number, 0.5)
            torch.cuda.synchronize()
            return kept

        run()
        results = ours.read()
        differ = 0
        for index, kept in enumerate(each()):
            found, expected = gpu.candidates_of(results, index), boxes[index, kept].cpu().numpy()
            # torchvision may add an offset per class to the coordinates, which costs them bits.
            differ += not np.array_equal(found.boxes, expected)
            if index == 0:
                print(f"  {rows} × {batch}: keeps {len(found.boxes)}, torchvision {len(expected)}")
        print(f"  {rows} × {batch}: {differ} of {batch} pictures keep other boxes than torchvision")
        once = {}
        for peer in (each, at_once) if batch > 1 else (each,):
            try:
                peer()
                start = time.perf_counter()
                peer()
                once[peer] = time.perf_counter() - start
            except RuntimeError as error:
                print(f"  {peer.__name__} is left out: {str(error)[:100]}")
        best = min(once, key=lambda peer: once[peer])
        times = in_turns(
            {"ours": run, "best": best},
            rounds=5 if once[best] < 0.1 else 3,
            calls=max(2, min(20, int(0.2 / once[best]))),
        )
        kept_count = float(results["counts"].mean())
        buffers.close()
    what = (
        f"torchvision.ops.batched_nms, its result on the GPU ({best.__name__}) / ours, written to the host, "
        f"{kept_count:.0f} kept"
    )
    return compare_times(f"vision.nms.{rows}.b{batch}.vs_torchvision", what, times["ours"], times["best"])


def detectors(runner: Any, picture: np.ndarray) -> dict[str, Any]:
    """The detector on the GPU, and on the CPU, with a threshold that about 150 candidates pass."""
    how = Preprocess((640, 640), dtype="float16")
    batch = runner.inputs["images"].shape[0]
    prepared, _ = prepare_reference([picture] * batch, how)
    values = runner.run({"images": prepared})["logits"][0, 4:].astype(np.float32)
    selection = vision.Selection(score_threshold=float(np.sort(values.max(axis=0))[-150]))
    options: dict[str, Any] = {"preprocess": how, "selection": selection, "head": "yolov8"}
    tasks = {"gpu": vision.detector(runner, **options), "cpu": vision.detector(runner, gpu=False, **options)}
    assert tasks["gpu"].postprocess_on == "GPU"
    ours, theirs = tasks["gpu"](picture), tasks["cpu"](picture)
    print(f"  threshold {selection.score_threshold:.3f}; GPU finds {len(ours.boxes)}, CPU {len(theirs.boxes)}")
    return tasks


def staged(task: Any, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """The pictures in the task's own page-locked memory."""
    found = []
    for picture in pictures:
        found.append(task.empty(*picture.shape[:2]))
        found[-1][...] = picture
    return found


def host_bandwidth(watch: Stopwatch, buffers: Buffers) -> float:
    """Bytes per second from page-locked memory to the GPU."""
    nbytes = 64 << 20
    host, target = buffers.host("\0host", nbytes), buffers.on_gpu("\0device", nbytes)
    times = watch.time(lambda stream: copy_async(target, host.ctypes.data, nbytes, stream), 1, graph=False)
    return nbytes / statistics.median(times)


def latency() -> Iterator[Record]:
    """One picture in the caller's memory -> boxes, against what no way around: the frame's copy and the engine."""
    device = Device()
    with Engine(build_plan(models.yolo(1))) as engine, Session(engine) as session:
        given = frames(8)
        tasks = detectors(session, given[0])
        locked = staged(tasks["gpu"], given)
        with device:
            buffers, watch = Buffers(device), Stopwatch(device)
            host, target = buffers.host("\0frame", FRAME), buffers.on_gpu("\0frame", FRAME)
            alone = peers.DeviceResident(RTX, engine.handle)

            def copy() -> None:
                copy_async(target, host.ctypes.data, FRAME, watch.handle)
                watch.stream.sync()

            def run_alone() -> None:
                alone.launch()
                alone.synchronize()

            turn, locked_turn = itertools.cycle(given), itertools.cycle(locked)
            contenders: dict[str, Callable[[], object]] = {
                "staged": lambda: tasks["gpu"](next(locked_turn)),
                "pageable": lambda: tasks["gpu"](next(turn)),
                "copy": copy,
                "engine": run_alone,
            }
            times = in_turns(contenders, rounds=7, calls=60)
            cpu = in_turns({"cpu": lambda: tasks["cpu"](next(turn))}, rounds=3, calls=10)["cpu"]
        for name, measured in {**times, "cpu": cpu}.items():
            print(f"  {name}: {1e6 * statistics.median(measured):.0f} µs")
        floor = [a + b for a, b in zip(times["copy"], times["engine"], strict=True)]
        for kind, suffix, memory in (
            ("staged", "", "page-locked memory"),
            ("pageable", ".pageable", "pageable memory"),
        ):
            yield compare_times(
                f"vision.latency.1080p.b1{suffix}",
                "engine's graph alone + copy of the whole frame from page-locked memory, one after the other / one "
                f"picture in {memory} to boxes, p50; ours reads only the rows that count, a third of them",
                times[kind],
                floor,
            )
        alone.close()
        buffers.close()


def streamed(task: Any, pictures: list[np.ndarray], batch: int, depth: int | None, seconds: float) -> float:
    """Pictures per second through a task's stream."""
    start, count = 0.0, 0
    turn = itertools.cycle(pictures)

    def source() -> Iterator[Item]:
        warm = time.perf_counter() + 0.5
        while not start or time.perf_counter() - start < seconds:
            yield Item("frame", next(turn))
            if not start and time.perf_counter() > warm:
                begin()

    def begin() -> None:
        nonlocal start, count
        start, count = time.perf_counter(), 0

    for found in task.stream(source(), batch=batch, depth=depth):
        assert found.error is None, found.error
        count += 1
    return count / (time.perf_counter() - start)


class PreparedOnCpu:
    """The same detector with everything beside the engine on the CPU, as fast as we know to write it.

    OpenCV resizes into a padded canvas, splits it and looks the three planes up as fp16 values; torch finds the best
    class; suppression is one matrix of overlaps in NumPy. All but the last let go of the interpreter lock. Requests
    are pipelined over the same engine.
    """

    def __init__(self, task: Any) -> None:
        self.task, self.how, self.selection = task, task.preprocess, task.selection
        self.geometry = self.how.geometry((WIDTH, HEIGHT))
        self.table = self.how.table().view(np.uint16)

    def prepare(self, picture: np.ndarray, canvas: np.ndarray, out: np.ndarray) -> None:
        (width, height), (left, top) = self.geometry.resized, self.geometry.offset
        place = canvas[top : top + height, left : left + width]
        cv2.resize(picture, (width, height), dst=place, interpolation=cv2.INTER_LINEAR)
        for channel, plane in enumerate(cv2.split(canvas)[::-1]):
            cv2.LUT(plane, self.table[channel], dst=out[channel].view(np.uint16))

    def find(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes in pixels of the picture, scores and classes of one output [4 + classes, rows]."""
        import torch

        values = torch.from_numpy(output)
        best, classes = values[4:].float().max(dim=0)
        rows = (best > self.selection.score_threshold).nonzero().view(-1)
        rows = rows[best[rows].argsort(descending=True)]
        x, y, w, h = values[:4, rows].float().numpy()
        scores, class_ids = best[rows].numpy(), classes[rows].numpy()
        boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1)
        size = np.maximum(
            np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2]), 0
        )
        both, area = size[..., 0] * size[..., 1], w * h
        overlaps = both > self.selection.iou_threshold * (area[:, None] + area[None] - both)
        overlaps &= class_ids[:, None] == class_ids[None]
        dropped = np.zeros(len(rows), bool)
        for index in range(len(rows)):
            if not dropped[index]:
                dropped[index + 1 :] |= overlaps[index, index + 1 :]
        kept = np.flatnonzero(~dropped)[: self.selection.max_detections]
        return self.geometry.boxes_to_picture(boxes[kept]), scores[kept], class_ids[kept]

    def rate(self, pictures: list[np.ndarray], batch: int, threads: int, seconds: float) -> float:
        """Pictures per second of so many threads."""
        import torch

        counts = [0] * threads
        name = self.task._image.name
        stop = 0.0

        def work(index: int, pipeline: Pipeline) -> None:
            turn = itertools.cycle(pictures[index % len(pictures) :] + pictures[: index % len(pictures)])
            canvas = np.full((640, 640, 3), self.how.padding, np.uint8)
            values = np.empty(self.how.shape(batch), self.how.dtype)
            waiting: Any = None
            while time.perf_counter() < stop:
                for row in range(batch):
                    self.prepare(next(turn), canvas, values[row])
                future = pipeline.submit({name: values})  # the GPU works on it while the one before is read
                if waiting is not None:
                    for output in waiting.result()["logits"]:
                        self.find(output)
                    counts[index] += batch
                waiting = future
            waiting.result()

        cv2.setNumThreads(1 if threads > 1 else 0)
        torch.set_num_threads(1)
        try:
            with Pipeline(self.task.runner, depth=min(max(threads, 4), 8)) as pipeline:
                stop = time.perf_counter() + 0.3
                work(0, pipeline)
                counts[0] = 0
                start = time.perf_counter()
                stop = start + seconds
                pool = [threading.Thread(target=work, args=(index, pipeline)) for index in range(threads)]
                for thread in pool:
                    thread.start()
                for thread in pool:
                    thread.join()
                return sum(counts) / (time.perf_counter() - start)
        finally:
            cv2.setNumThreads(-1)


class Peak:
    """Pictures per second of the engine alone, data on the GPU, with so many graphs in flight."""

    def __init__(self, engine: Engine, batch: int) -> None:
        self.batch = batch
        self.graphs = [peers.DeviceResident(RTX, engine.handle) for _ in range(4)]
        self.depth = max((1, 2, 4), key=self.rate)

    def rate(self, depth: int | None = None) -> float:
        graphs = self.graphs[: depth or self.depth]
        start, count = 0.0, 0
        for seconds in (0.05, 0.3):
            start, count = time.perf_counter(), 0
            while time.perf_counter() - start < seconds:
                for _ in range(10):
                    for graph in graphs:
                        graph.launch()
                        count += self.batch
                for graph in graphs:
                    graph.synchronize()
        return count / (time.perf_counter() - start)

    def close(self) -> None:
        for graph in self.graphs:
            graph.close()


def detect() -> Iterator[Record]:
    """Pictures per second from uint8 frames in the caller's memory to boxes, batches of 8."""
    device, batch = Device(), 8
    with Engine(build_plan(models.yolo(batch))) as engine, Session(engine) as session:
        given = frames(32)
        tasks = detectors(session, given[0])
        locked = staged(tasks["gpu"], given)
        cpu = PreparedOnCpu(tasks["cpu"])
        expected, output = tasks["cpu"](given[0]), session.run(tasks["cpu"].request([given[0]])[0])["logits"][0]
        print(f"  the CPU's side keeps {len(cpu.find(output)[0])}, the reference {len(expected.boxes)}")
        with device:
            buffers, watch = Buffers(device), Stopwatch(device)
            pcie = host_bandwidth(watch, buffers) / FRAME
            peak = Peak(engine, batch)
        depths = {depth: streamed(tasks["gpu"], locked, batch, depth, 0.5) for depth in (2, 3, 4, 6)}
        print("  staged by depth: " + ", ".join(f"{k}: {v:.0f}" for k, v in depths.items()), flush=True)
        depth = max(depths, key=lambda key: depths[key])
        threads = {n: cpu.rate(given, batch, n, 0.7) for n in (1, 2, 4, 8, 16)}
        print(
            "  prepared on the CPU, by threads: " + ", ".join(f"{k}: {v:.0f}" for k, v in threads.items()), flush=True
        )
        best = max(threads, key=lambda key: threads[key])
        rates: dict[str, list[float]] = {"staged": [], "pageable": [], "cpu": [], "peak": []}
        for _ in range(ROUNDS):
            rates["staged"].append(streamed(tasks["gpu"], locked, batch, depth, SECONDS))
            rates["pageable"].append(streamed(tasks["gpu"], given, batch, depth, SECONDS))
            rates["cpu"].append(cpu.rate(given, batch, best, SECONDS))
            with device:
                rates["peak"].append(peak.rate())
        print("  " + ", ".join(f"{k} {statistics.median(v):.0f}" for k, v in rates.items()) + f", PCIe {pcie:.0f}")
        what = f"pageable pictures / OpenCV, NumPy and the same engine pipelined, {best} threads, batch {batch}"
        yield compare_rates("vision.detect.1080p.vs_cpu_pre", what, rates["pageable"], rates["cpu"])
        bound = [min(value, pcie) for value in rates["peak"]]
        for kind, suffix in (("staged", ""), ("pageable", ".pageable")):
            yield compare_rates(
                f"vision.detect.1080p{suffix}.vs_bound",
                f"{kind} pictures / the less of the engine's peak and PCIe's {pcie:.0f} whole frames/s, batch {batch}",
                rates[kind],
                bound,
            )
        with device:
            peak.close()
            buffers.close()


def where() -> Iterator[Record]:
    """Where the time of a request goes; nothing is stored."""
    device = Device()
    for batch in (1, 8):
        with Engine(build_plan(models.yolo(batch))) as engine, Session(engine) as session:
            given = frames(batch)
            task = detectors(session, given[0])["gpu"]
            locked = staged(task, given)
            for kind, pictures in (("staged", locked), ("pageable", given)):
                print(f"  batch {batch}, {kind}, µs: " + ", ".join(stage_times(device, task, pictures)), flush=True)
            print(f"  batch {batch}, staged, timeline, µs: " + ", ".join(timeline(task, locked)), flush=True)
            print(f"  batch {batch}: " + ", ".join(ways(task, staged(task, frames(32)), batch)), flush=True)
            with device:
                print(f"  batch {batch}, pageable, until copied, µs: " + ", ".join(fillings(task, given)), flush=True)
            if batch == 8:
                with device:
                    peak = Peak(engine, batch)
                    rates = {depth: peak.rate(depth) for depth in (1, 2, 4)}
                    print("  engine alone by depth: " + ", ".join(f"{k}: {v:.0f}" for k, v in rates.items()))
                    peak.close()
                for kind, pictures in (("staged", staged(task, frames(32))), ("pageable", frames(32))):
                    for depth in (2, 3, 4, None) * 2:
                        rate = streamed(task, pictures, batch, depth, 0.5)
                        print(f"  {kind}, depth {depth}: {rate:.0f} pictures/s", flush=True)
                    profile = cProfile.Profile()
                    profile.enable()
                    streamed(task, pictures, batch, 3, 0.5)
                    profile.disable()
                    pstats.Stats(profile).sort_stats("tottime").print_stats(16)
    yield from ()


def timeline(task: Any, pictures: list[np.ndarray]) -> Iterator[str]:
    """When, within one request, each part of it is over: µs since the call, medians."""
    session = task._staged
    marks: list[tuple[str, float]] = []
    watched = [(session._opened, "fill"), (session, "_launch"), (session, "_wait"), (session, "_host_outputs")]

    def mark(owner: Any, name: str) -> None:
        call = getattr(owner, name)

        def marked(*arguments: Any, **options: Any) -> Any:
            marks.append((f"{name} from", time.perf_counter()))
            result = call(*arguments, **options)
            marks.append(("to", time.perf_counter()))
            return result

        setattr(owner, name, marked)

    for owner, name in watched:
        mark(owner, name)
    found: list[list[float]] = []
    names: list[str] = []
    for _ in range(80):
        marks.clear()
        start = time.perf_counter()
        task(pictures)
        marks.append(("end", time.perf_counter()))
        names = [name for name, _ in marks]
        found.append([1e6 * (at - start) for _, at in marks])
    for owner, name in watched:
        delattr(owner, name)
    return (f"{name} {at:.0f}" for name, at in zip(names, np.median(found[20:], axis=0), strict=True))


def ways(task: Any, pictures: list[np.ndarray], batch: int) -> Iterator[str]:
    """Page-locked pictures read by the kernel, and copied."""
    chosen = gpu._STRAIGHT
    for name, limit in (("read by the kernel", 1 << 40), ("copied", 0)) * 2:
        gpu._STRAIGHT = limit
        turn = itertools.cycle(pictures)
        times = []
        for _ in range(80):
            request = [next(turn) for _ in range(batch)]
            start = time.perf_counter()
            task(request)
            times.append(time.perf_counter() - start)
        rates = {depth: streamed(task, pictures, batch, depth, 0.3) for depth in (2, 3, 4, None)}
        yield f"{name} {1e6 * statistics.median(times[20:]):.0f} µs, pictures/s by depth " + " ".join(
            f"{k}: {v:.0f}" for k, v in rates.items()
        )
    gpu._STRAIGHT = chosen


def fillings(task: Any, pictures: list[np.ndarray]) -> Iterator[str]:
    """Ways to fill pageable pictures into page-locked memory and to send them."""
    session = task._staged
    request, _ = task._request(pictures)
    chosen = gpu._PARTS, COPY_POOL.threads
    for parts, threads in itertools.product((4, 8, 16), (1, 2, 3, 4)):
        gpu._PARTS, COPY_POOL.threads = parts, threads
        times = []
        for _ in range(40):
            start = time.perf_counter()
            session._opened.fill(request, session._handle, helpers=threads > 1)
            session._stream.sync()
            times.append(time.perf_counter() - start)
        yield f"{parts} parts {threads} threads {1e6 * statistics.median(times[10:]):.0f}"
    gpu._PARTS, COPY_POOL.threads = chosen


def stage_times(device: Device, task: Any, pictures: list[np.ndarray]) -> Iterator[str]:
    """What each step of a request takes: on the host by the clock, on the GPU by events, each step on its own."""
    session = task._staged

    def host(call: Callable[[], object], calls: int = 60) -> float:
        times = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        return 1e6 * statistics.median(times[10:])

    yield f"whole {host(lambda: task(pictures)):.1f}"
    request, geometries = task._request(pictures)
    yield f"[host] request {host(lambda: task._request(pictures)):.1f}"
    outputs = session.run(request)
    yield f"run {host(lambda: session.run(request)):.1f}"
    yield f"results {host(lambda: task._results(outputs, geometries)):.1f}"
    with device:
        watch, stream = Stopwatch(device), session._stream
        handle, opened, route = session._handle, session._opened, next(iter(session._routes.values()), session._common)
        for helpers in (False, True):

            def fill(helpers: bool = helpers) -> None:
                opened.fill(request, handle, helpers=helpers)

            def filled(helpers: bool = helpers) -> None:
                opened.fill(request, handle, helpers=helpers)
                stream.sync()

            yield f"fill{' by several threads' if helpers else ''} {host(fill):.1f}, until copied {host(filled):.1f}"
        _, copies = opened.fill(request, handle, helpers=False)
        steps = (0, True, copies)

        def graph() -> None:
            route.launch(steps, stream)
            stream.sync()

        yield f"launch and wait {host(graph):.1f}"
        yield f"results of the session {host(lambda: session._host_outputs(route, True)):.1f}"

        def on_gpu(name: str, enqueue: Callable[[int], None]) -> str:
            return f"{name} {1e6 * statistics.median(watch.time(enqueue, 1)):.1f}"

        yield on_gpu("[GPU] descriptors", Transfers(device, copies).enqueue)
        for step in route._before:
            yield on_gpu(step._name, step.enqueue)
        yield on_gpu("engine", route.execute)
        for step in route._after:
            yield on_gpu(getattr(step, "_name", "to the host"), step.enqueue)
        yield on_gpu("all of it", lambda stream: route._enqueue(stream, steps))
        # Read over PCIe by the kernel itself, without a copy.
        how, count = task.preprocess, len(pictures)
        table = gpu.constant(device, how.table())
        described = [gpu.describe(geometries[0], p.ctypes.data, WIDTH * 3, 114) for p in staged(task, pictures)]
        buffers = Buffers(device)
        at = buffers.on_gpu("\0descriptors", 80 * count)
        copy_now(at, np.frombuffer(b"".join(map(bytes, described)), np.uint8))
        out = buffers.on_gpu("\0out", 2 * int(np.prod(how.shape(count))))
        launch = gpu.preparation(device, at, out, table.address, how, count)
        yield on_gpu("prepared straight from the host", launch.enqueue)
        buffers.close()


GROUPS: dict[str, Callable[[], Iterator[Record]]] = {f.__name__: f for f in (pre, nms, latency, detect, where)}


def main(names: list[str]) -> int:
    # The hand-written peers take a current context for granted.
    peers.checked(driver.cuCtxSetCurrent(Device()._context))
    return run_groups(GROUPS, names or [name for name in GROUPS if name != "where"], environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
