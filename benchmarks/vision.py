"""Measure vision on the GPU: preprocessing, suppression, and whole detectors from uint8 pictures to boxes.

    python benchmarks/vision.py [pre nms latency detect]

``nms`` needs torch and torchvision. Figures go to benchmarks/results/<gpu>.json.
"""

from __future__ import annotations

import itertools
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
from trtrun.buffers import Buffers
from trtrun.building.builder import build_plan
from trtrun.cuda.device import Device
from trtrun.cuda.event import Event
from trtrun.cuda.graph import capture
from trtrun.cuda.memory import copy_async, copy_now
from trtrun.cuda.stream import create_stream
from trtrun.engine import Engine
from trtrun.pipeline import Pipeline
from trtrun.session import Session
from trtrun.vision import gpu
from trtrun.vision.preprocess import Preprocess, prepare_reference
from trtrun.vision.sources import Item

RTX = flavor.load("tensorrt_rtx").module
HEIGHT, WIDTH = 1080, 1920
FRAME = HEIGHT * WIDTH * 3
SECONDS = 1.5  # of each measured rate
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
    """Suppression alone: boxes, scores and classes on the GPU -> those that are kept, sorted, on the GPU."""
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
        host = buffers.host("\0kept", ours.nbytes)
        copy_async(host.ctypes.data, ours.address, ours.nbytes, watch.handle)
        watch.stream.sync()
        results = ours.split(host[: ours.nbytes].copy())
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
        times = in_turns({"ours": run, "best": best}, rounds=5, calls=max(2, min(20, int(0.2 / once[best]))))
        kept_count = float(results["counts"].mean())
        buffers.close()
    what = f"torchvision.ops.batched_nms on the GPU ({best.__name__}) / ours, {kept_count:.0f} kept"
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

            turn = itertools.cycle(given)
            contenders: dict[str, Callable[[], object]] = {
                "ours": lambda: tasks["gpu"](next(turn)),
                "copy": copy,
                "engine": run_alone,
            }
            times = in_turns(contenders, rounds=7, calls=60)
            cpu = in_turns({"cpu": lambda: tasks["cpu"](next(turn))}, rounds=3, calls=10)["cpu"]
        for name, measured in {**times, "cpu": cpu}.items():
            print(f"  {name}: {1e6 * statistics.median(measured):.0f} µs")
        timing = np.median(
            [[t.preprocess, t.inference, t.postprocess] for _, t in (tasks["gpu"].timed(f) for f in given * 4)], 0
        )
        print(
            "  of ours: "
            + ", ".join(f"{n} {1e6 * s:.0f} µs" for n, s in zip(("before", "run", "after"), timing, strict=True))
        )
        floor = [a + b for a, b in zip(times["copy"], times["engine"], strict=True)]
        yield compare_times(
            "vision.latency.1080p.b1",
            "engine's graph alone + copy of the frame from page-locked memory / one picture to boxes, p50",
            times["ours"],
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


def prepared_on_cpu(task: Any, pictures: list[np.ndarray], batch: int, threads: int, seconds: float) -> float:
    """Pictures per second of threads that prepare, run and decode, as people write it: OpenCV, float, transpose."""
    how, counts = task.preprocess, [0] * threads
    geometry = how.geometry((WIDTH, HEIGHT))
    (width, height), (left, top) = geometry.resized, geometry.offset
    right, bottom = 640 - width - left, 640 - height - top
    task_request = task._image.name
    stop = 0.0

    def letterbox(picture: np.ndarray) -> np.ndarray:
        small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
        padded = cv2.copyMakeBorder(small, top, bottom, left, right, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        return padded[..., ::-1].transpose(2, 0, 1)

    def work(index: int, pipeline: Pipeline) -> None:
        turn = itertools.cycle(pictures[index % len(pictures) :] + pictures[: index % len(pictures)])
        while time.perf_counter() < stop:
            small = np.stack([letterbox(next(turn)) for _ in range(batch)])
            values = (small.astype(np.float32) / 255).astype(how.dtype)
            outputs = pipeline.submit({task_request: values}).result()
            task.decode(outputs, [geometry] * batch)
            counts[index] += batch

    cv2.setNumThreads(1 if threads > 1 else 0)
    try:
        with Pipeline(task.runner, depth=min(max(threads, 4), 8)) as pipeline:
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


def detect() -> Iterator[Record]:
    """Pictures per second from uint8 frames in the caller's memory to boxes, batches of 8."""
    device, batch = Device(), 8
    with Engine(build_plan(models.yolo(batch))) as engine, Session(engine) as session:
        given = frames(32)
        tasks = detectors(session, given[0])
        with device:
            buffers, watch = Buffers(device), Stopwatch(device)
            pcie = host_bandwidth(watch, buffers) / FRAME
            graphs = [peers.DeviceResident(RTX, engine.handle) for _ in range(4)]

            def peak(depth: int) -> float:
                for graph in graphs[:depth]:
                    graph.launch()
                for graph in graphs[:depth]:
                    graph.synchronize()
                start, count = time.perf_counter(), 0
                while time.perf_counter() - start < 0.3:
                    for _ in range(10):
                        for graph in graphs[:depth]:
                            graph.launch()
                            count += batch
                    for graph in graphs[:depth]:
                        graph.synchronize()
                return count / (time.perf_counter() - start)

            engine_depth = max((1, 2, 4), key=peak)
        depths = {depth: streamed(tasks["gpu"], given, batch, depth, 0.5) for depth in (2, 3, 4, 6)}
        print("  ours by depth: " + ", ".join(f"{k}: {v:.0f}" for k, v in depths.items()), flush=True)
        depth = max(depths, key=lambda key: depths[key])
        threads = {n: prepared_on_cpu(tasks["cpu"], given, batch, n, 1.0) for n in (1, 2, 4, 8, 16)}
        print(
            "  prepared on the CPU, by threads: " + ", ".join(f"{k}: {v:.0f}" for k, v in threads.items()), flush=True
        )
        best = max(threads, key=lambda key: threads[key])
        ours, theirs, bound, peaks = [], [], [], []
        for _ in range(ROUNDS):
            ours.append(streamed(tasks["gpu"], given, batch, depth, SECONDS))
            theirs.append(prepared_on_cpu(tasks["cpu"], given, batch, best, SECONDS))
            with device:
                peaks.append(peak(engine_depth))
            bound.append(min(peaks[-1], pcie))
        print(f"  engine alone {statistics.median(peaks):.0f}, PCIe {pcie:.0f} pictures/s")
        what = f"ours / OpenCV, NumPy and the same engine pipelined, {best} threads, batch {batch}"
        yield compare_rates("vision.detect.1080p.vs_cpu_pre", what, ours, theirs)
        yield compare_rates(
            "vision.detect.1080p.vs_bound",
            f"ours / the less of the engine's peak and PCIe's {pcie:.0f} whole frames/s, batch {batch}",
            ours,
            bound,
        )
        for graph in graphs:
            graph.close()
        buffers.close()


GROUPS: dict[str, Callable[[], Iterator[Record]]] = {f.__name__: f for f in (pre, nms, latency, detect)}


def main(names: list[str]) -> int:
    # The hand-written peers take a current context for granted.
    peers.checked(driver.cuCtxSetCurrent(Device()._context))
    return run_groups(GROUPS, names, environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
