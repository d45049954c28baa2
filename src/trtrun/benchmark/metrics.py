"""What the timestamps of single inferences say together, by trtexec's definitions (NVIDIA/TensorRT, samples/common:
``sampleReporting.cpp``). Pure: timestamps in, figures out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

PERCENTILES = (90, 95, 99)

ENQUEUE_BOUND = 0.8  # of GPU Compute Time, in medians: above it the host may hold the GPU back
UNSTABLE = 2.5  # per cent: coefficient of variation of GPU Compute Time


class Trace(NamedTuple):
    """Timestamps of one inference in milliseconds: of the host since its start, the others since the GPU's.

    Without transfers, H2D starts and ends where compute starts, and D2H where it ends.
    """

    stream: int  # which inference stream
    enqueue_start: float  # host
    enqueue_end: float  # host
    h2d_start: float
    h2d_end: float
    compute_start: float
    compute_end: float
    d2h_start: float
    d2h_end: float


@dataclass(frozen=True)
class Summary:
    """One quantity over all inferences, in milliseconds."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[int, float]


@dataclass(frozen=True)
class Metrics:
    """trtexec's performance summary.

    Attributes:
        inferences: how many were evaluated.
        warmup: how many were dropped because their compute started during the warm-up.
        throughput: inferences per second of ``walltime``. A batch is one inference.
        latency: H2D + GPU compute + D2H of each inference, without the waits between them and without the enqueue.
        enqueue: host time of enqueueing the engine, or of launching its graph.
        h2d: GPU time of copying the inputs to the device.
        compute: GPU time of the engine.
        d2h: GPU time of copying the outputs to the host.
        walltime: seconds from the first evaluated H2D's start to the last D2H's end.
        compute_total: seconds, the sum of the GPU compute times; above ``walltime`` when streams overlap.
        compute_variation: per cent, the standard deviation of the GPU compute times over their mean.
    """

    inferences: int
    warmup: int
    throughput: float
    latency: Summary
    enqueue: Summary
    h2d: Summary
    compute: Summary
    d2h: Summary
    walltime: float
    compute_total: float
    compute_variation: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def percentile(ordered: Sequence[float], percent: int) -> float:
    """trtexec's percentile of values in ascending order: the largest after dropping the top ``100 - percent`` %.

    trtexec drops ``int((1 - percent / 100) * count)`` values in single precision, which for 99 % of 100 values rounds
    to none; the integers here round as the formula is meant.
    """
    dropped = (100 - percent) * len(ordered) // 100
    return float(ordered[max(len(ordered) - 1 - dropped, 0)])


def summarize(values: Iterable[float]) -> Summary:
    ordered = sorted(values)
    return Summary(
        ordered[0],
        ordered[-1],
        float(np.mean(ordered)),
        float(np.median(ordered)),
        {percent: percentile(ordered, percent) for percent in PERCENTILES},
    )


def after_warmup(traces: Iterable[Trace], warmup: float) -> list[Trace]:
    """The inferences whose compute started ``warmup`` milliseconds or more after the beginning, by H2D start."""
    return sorted((trace for trace in traces if trace.compute_start >= warmup), key=lambda trace: trace.h2d_start)


def latency_of(trace: Trace) -> float:
    return (
        (trace.h2d_end - trace.h2d_start)
        + (trace.compute_end - trace.compute_start)
        + (trace.d2h_end - trace.d2h_start)
    )


def evaluate(traces: Sequence[Trace], warmup: float) -> Metrics:
    """The performance summary of these inferences, those of the first ``warmup`` milliseconds left out.

    Raises ValueError when none is left.
    """
    kept = after_warmup(traces, warmup)
    if not kept:
        raise ValueError(f"none of {len(traces)} inferences started after the warm-up of {warmup} ms")
    compute = [trace.compute_end - trace.compute_start for trace in kept]
    walltime = (max(trace.d2h_end for trace in kept) - kept[0].h2d_start) / 1e3
    return Metrics(
        inferences=len(kept),
        warmup=len(traces) - len(kept),
        throughput=len(kept) / walltime,
        latency=summarize(map(latency_of, kept)),
        enqueue=summarize(trace.enqueue_end - trace.enqueue_start for trace in kept),
        h2d=summarize(trace.h2d_end - trace.h2d_start for trace in kept),
        compute=summarize(compute),
        d2h=summarize(trace.d2h_end - trace.d2h_start for trace in kept),
        walltime=walltime,
        compute_total=sum(compute) / 1e3,
        compute_variation=float(100 * np.std(compute) / np.mean(compute)),
    )


def warnings(metrics: Metrics, *, cuda_graph: bool, spin: bool) -> list[str]:
    """Why the figures may not be the engine's best, on trtexec's conditions."""
    found = []
    compute = metrics.compute.median
    if metrics.enqueue.median > ENQUEUE_BOUND * compute:
        remedy = "more work per inference (a larger batch)" if cuda_graph else "a CUDA graph (without --no-graph)"
        found.append(
            f"Throughput may be bound by Enqueue Time ({metrics.enqueue.median:.4g} ms, median) rather than GPU "
            f"Compute Time ({compute:.4g} ms): the GPU may idle. Try {remedy}."
        )
    for title, side, summary in (("H2D", "inputs", metrics.h2d), ("D2H", "outputs", metrics.d2h)):
        if summary.median >= compute:
            found.append(
                f"Throughput may be bound by the {title} transfers of the {side} ({summary.median:.4g} ms, median) "
                f"rather than GPU Compute Time ({compute:.4g} ms). --no-transfers measures the engine alone."
            )
    if metrics.compute_variation > UNSTABLE:
        remedy = "" if spin else ", or try --spin"
        found.append(
            f"GPU Compute Time is unstable: its coefficient of variation is {metrics.compute_variation:.1f} %. "
            f"Leave the GPU to this process and measure longer{remedy}."
        )
    return found
