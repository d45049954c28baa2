"""The measuring loop: trtexec's, on CUDA events.

Each inference stream is three CUDA streams (inputs, compute, outputs) with two inferences in flight, so that the
copies of one overlap with the compute of the other. Both use the same buffers: the bytes of the inputs are always
the same and the outputs are not looked at.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..arrays import Host
from ..buffers import Buffers
from ..cuda.event import Event
from ..cuda.stream import create_stream
from ..engine import Engine
from ..errors import InputNameError, ShapeError
from ..route import Route, Steps, bind_inputs
from ..tensor_spec import Shape, TensorSpec, is_whole
from .metrics import Metrics, Trace, evaluate, warnings

_DEPTH = 2
_COMPUTE_ONLY: Steps = (0, False, ())


@dataclass(frozen=True)
class BenchOptions:
    """The mode of a measurement. Figures of different modes cannot be compared."""

    streams: int = 1  # inference streams, each with its own execution context and buffers
    cuda_graph: bool = True  # the engine's launches as one CUDA graph
    transfers: bool = True  # copy inputs in and outputs out
    spin: bool = False  # wait for the GPU by polling instead of sleeping
    duration: float = 3.0  # seconds to measure at least, after the warm-up
    warmup: float = 200.0  # milliseconds before inferences count
    iterations: int = 10  # inferences per stream to measure at least

    def __post_init__(self) -> None:
        if self.streams < 1 or self.iterations < 1 or self.duration < 0 or self.warmup < 0:
            raise ValueError(f"streams and iterations must be 1 or more, duration and warmup not negative: {self}")


@dataclass(frozen=True)
class Measurement:
    """What was measured, how, and the timestamps of every inference, warm-up included.

    ``graph_reason`` says why no CUDA graph was used, and is None when one was.
    """

    engine: str
    backend: str
    shapes: dict[str, Shape]
    options: BenchOptions
    graph_reason: str | None
    uncopied: tuple[str, ...]  # outputs whose shape only the run decides: their D2H is not part of the figures
    traces: list[Trace]
    metrics: Metrics

    @property
    def mode(self) -> str:
        """The mode in one line."""
        count = self.options.streams
        return ", ".join(
            [
                f"{count} inference stream{'s' * (count > 1)}",
                "CUDA graph" if self.graph_reason is None else f"no CUDA graph ({self.graph_reason})",
                "transfers included" if self.options.transfers else "transfers NOT included",
                "spin-wait" if self.options.spin else "blocking wait",
            ]
        )

    @property
    def warnings(self) -> list[str]:
        found = warnings(self.metrics, cuda_graph=self.graph_reason is None, spin=self.options.spin)
        if self.uncopied and self.options.transfers:
            found.append(f"D2H leaves out {', '.join(self.uncopied)}: the shape is known only after each run.")
        return found

    def as_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "shapes": self.shapes,
            "mode": {**asdict(self.options), "graph_reason": self.graph_reason, "depth": _DEPTH},
            "metrics": self.metrics.as_json(),
            "warnings": self.warnings,
        }


def example_inputs(
    engine: Engine, shapes: Mapping[str, Shape], values: Mapping[str, Host]
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """An array for every input: the given values, or random ones of the given shapes.

    A dynamic input without either gets the shape its first optimization profile was tuned for. Floating-point values
    lie in [-1, 1); integers are 0 or 1, valid wherever they are indices.

    Raises InputNameError for unknown names, ShapeError for shapes outside the profiles and for shape tensors without
    values, DtypeError for values of another dtype.
    """
    unknown = sorted({*shapes, *values} - engine.inputs.keys())
    if unknown:
        raise InputNameError(f"the engine has no input {unknown[0]!r}; it takes {engine.inputs!r}.")
    rng = np.random.default_rng(0)
    arrays = {}
    for name, spec in engine.inputs.items():
        if name in values:
            spec.check_dtype(values[name].dtype)
            array = values[name].astype(spec.dtype)
        elif spec.location == "host":
            raise ShapeError(
                f"input {name!r} is a shape tensor: its values decide how much is computed, so random ones would "
                f"measure nothing. Give them: --input {name}=FILE.npy."
            )
        else:
            array = _random(rng, spec, shapes.get(name) or (spec.profiles[0].opt if spec.profiles else spec.shape))
        spec.check_shape(array.shape)
        arrays[name] = array
    return arrays


def _random(rng: np.random.Generator, spec: TensorSpec, shape: Shape) -> np.ndarray[Any, np.dtype[Any]]:
    spec.check_shape(shape)
    if is_whole(spec.dtype):
        return rng.integers(0, 2, shape).astype(spec.dtype)
    return rng.uniform(-1, 1, shape).astype(spec.dtype)


class _InferenceStream:
    """Three CUDA streams, the buffers and the execution context of inferences that take turns."""

    def __init__(self, engine: Engine, arrays: Mapping[str, Host], options: BenchOptions, index: int) -> None:
        self._index = index
        self._transfers = options.transfers
        self._next = 0
        self._enqueued: list[tuple[float, float] | None] = [None] * _DEPTH
        with ExitStack() as undo:
            streams = []
            for _ in range(3):
                stream = create_stream(engine.device)
                undo.callback(stream.close)
                streams.append(stream)
            self._input, self._compute, self._output = (int(stream.handle) for stream in streams)
            self._compute_stream = streams[1]
            buffers = Buffers(engine.device)
            undo.callback(buffers.close)
            self.route = Route(engine, buffers, streams[1], [engine.create_context()])
            undo.callback(self.route.close)
            # Transfers overlap with what is computed before and behind them, as trtexec's do.
            bind_inputs(self.route, buffers, arrays, shares_gpu=True)
            self._synchronize = streams[1].sync
            self._prepare(engine, options.cuda_graph)
            self._events = [[Event(engine.device, spin=options.spin) for _ in range(6)] for _ in range(_DEPTH)]
            for events in self._events:
                for event in events:
                    undo.callback(event.close)
            for stream in streams:
                undo.callback(stream.sync)  # first of all: nothing is freed under running work
            self._undo = undo.pop_all()

    def _prepare(self, engine: Engine, cuda_graph: bool) -> None:
        """Run once, inputs in place, so that kernels are compiled and chosen; then capture."""
        self.route.copy_in(self._compute)
        self.route.launch(_COMPUTE_ONLY, self._compute_stream)
        self._synchronize()
        if cuda_graph:
            self.route.capture(_COMPUTE_ONLY)
        engine.keep_kernels(self.route.key)

    def start(self, host_start: float) -> None:
        """Enqueue one inference and the events around its parts."""
        h2d_start, h2d_end, compute_start, compute_end, d2h_start, d2h_end = self._events[self._next]
        if self._transfers:
            h2d_start.record(self._input)
            self.route.copy_in(self._input)
            h2d_end.record(self._input)
            h2d_end.holds(self._compute)
        compute_start.record(self._compute)
        before = time.perf_counter()
        self.route.launch(_COMPUTE_ONLY, self._compute_stream)
        after = time.perf_counter()
        compute_end.record(self._compute)
        if self._transfers:
            compute_end.holds(self._output)
            d2h_start.record(self._output)
            self.route.copy_out(self._output)
            d2h_end.record(self._output)
        self._enqueued[self._next] = (1e3 * (before - host_start), 1e3 * (after - host_start))
        self._next = (self._next + 1) % _DEPTH

    def collect(self, gpu_start: Event) -> Trace | None:
        """Wait for the oldest inference in flight and read its events; None while fewer than two are."""
        enqueued, self._enqueued[self._next] = self._enqueued[self._next], None
        if enqueued is None:
            return None
        h2d_start, h2d_end, compute_start, compute_end, d2h_start, d2h_end = self._events[self._next]
        if self._transfers:
            d2h_end.synchronize()
            # Each from the one before: a single-precision distance from the beginning would lose microseconds.
            times = [h2d_start.since(gpu_start)]
            times.append(times[-1] + h2d_end.since(h2d_start))
            times.append(times[-1] + compute_start.since(h2d_end))
            times.append(times[-1] + compute_end.since(compute_start))
            times.append(times[-1] + d2h_start.since(compute_end))
            times.append(times[-1] + d2h_end.since(d2h_start))
        else:
            compute_end.synchronize()
            begin = compute_start.since(gpu_start)
            end = begin + compute_end.since(compute_start)
            times = [begin, begin, begin, end, end, end]
        return Trace(self._index, *enqueued, *times)

    def drain(self, gpu_start: Event) -> list[Trace]:
        traces = []
        for _ in range(_DEPTH):
            trace = self.collect(gpu_start)
            if trace is not None:
                traces.append(trace)
            self._next = (self._next + 1) % _DEPTH
        return traces

    def mark(self, event: Event) -> None:
        event.record(self._input)

    def close(self) -> None:
        self._undo.close()


def measure(
    engine: Engine,
    *,
    shapes: Mapping[str, Shape] | None = None,
    values: Mapping[str, Host] | None = None,
    options: BenchOptions | None = None,
) -> Measurement:
    """Measure an engine as trtexec does.

    Args:
        engine: the engine; no session needs to exist over it.
        shapes: shapes of dynamic inputs by name; see :func:`example_inputs` for what the others get.
        values: arrays by name to use instead of random values.
        options: the mode.

    Raises what :func:`example_inputs` raises, OutOfMemoryError and ExecutionError.
    """
    options = options or BenchOptions()
    arrays = example_inputs(engine, shapes or {}, values or {})
    with engine.occupied(), engine.device, ExitStack() as open_streams:
        start = Event(engine.device, spin=options.spin)
        open_streams.callback(start.close)
        streams = []
        for index in range(options.streams):
            streams.append(_InferenceStream(engine, arrays, options, index))
            open_streams.callback(streams[-1].close)
        traces = _loop(streams, start, options)
        # The route's own reason first: it holds whatever was asked for.
        reason = streams[0].route.graph_reason or (None if options.cuda_graph else "turned off")
        uncopied = tuple(streams[0].route.allocators)
    return Measurement(
        engine.name,
        f"{engine.flavor.title} on {engine.device.name}",
        {name: array.shape for name, array in arrays.items()},
        options,
        reason,
        uncopied,
        traces,
        evaluate(traces, options.warmup),
    )


def _loop(streams: list[_InferenceStream], gpu_start: Event, options: BenchOptions) -> list[Trace]:
    """Keep every stream busy until time and iterations are enough.

    Runs without the cyclic garbage collector, whose pauses would be the slowest inferences.
    """
    traces: list[Trace] = []
    streams[0].mark(gpu_start)
    gpu_start.synchronize()
    host_start = time.perf_counter()
    until = options.warmup + 1e3 * options.duration
    elapsed, counted = 0.0, 0
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        while elapsed < until or counted < options.iterations:
            for stream in streams:
                stream.start(host_start)
            for stream in streams:
                trace = stream.collect(gpu_start)
                if trace is not None:
                    traces.append(trace)
                    elapsed = max(elapsed, trace.compute_start)
            counted += elapsed >= options.warmup
        for stream in streams:
            traces += stream.drain(gpu_start)
    finally:
        if was_enabled:
            gc.enable()
    return traces
