"""trtrun bench on a real engine: the figures hang together."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from trtrun.benchmark import BenchOptions, measure
from trtrun.engine import Engine
from trtrun.errors import InputNameError, ShapeError


@pytest.mark.parametrize(
    "options",
    [
        BenchOptions(duration=0.2, warmup=20),
        BenchOptions(duration=0.2, warmup=20, streams=3, cuda_graph=False),
        BenchOptions(duration=0.2, warmup=20, transfers=False, spin=True),
    ],
)
def test_the_figures_hang_together(options: BenchOptions, plan: Callable[[str], bytes]) -> None:
    with Engine(plan("convolution")) as engine:
        result = measure(engine, shapes={"x": (4, 3, 64, 64)}, options=options)
    metrics = result.metrics
    assert (result.graph_reason is None) == options.cuda_graph
    assert metrics.inferences >= 10
    assert 0 < metrics.compute.min <= metrics.compute.median <= metrics.compute.percentiles[99] <= metrics.compute.max
    assert metrics.throughput * metrics.walltime == pytest.approx(metrics.inferences)
    assert metrics.latency.median >= metrics.compute.min
    for trace in result.traces:
        assert trace.h2d_start <= trace.h2d_end <= trace.compute_start <= trace.compute_end
        assert trace.compute_end <= trace.d2h_start <= trace.d2h_end or not options.transfers
    for stream in range(options.streams):  # one execution context computes one inference at a time
        own = [trace for trace in result.traces if trace.stream == stream]
        assert all(a.compute_end <= b.compute_start + 0.01 for a, b in itertools.pairwise(own))


def test_iterations_are_a_minimum(plan: Callable[[str], bytes]) -> None:
    with Engine(plan("static")) as engine:
        result = measure(engine, options=BenchOptions(duration=0, warmup=0, iterations=77))
    assert result.metrics.inferences == 77


def test_shapes_and_values(plan: Callable[[str], bytes]) -> None:
    options = BenchOptions(duration=0.05, warmup=20)
    with Engine(plan("convolution")) as engine:
        assert measure(engine, options=options).shapes == {"x": (2, 3, 32, 32)}  # what the profile was tuned for
        with pytest.raises(ShapeError, match="outside every"):
            measure(engine, shapes={"x": (9, 3, 64, 64)}, options=options)
        with pytest.raises(InputNameError, match="'y'"):
            measure(engine, shapes={"y": (4, 3, 64, 64)}, options=options)
    with Engine(plan("topk")) as engine:
        with pytest.raises(ShapeError, match="--input k="):
            measure(engine, options=options)
        result = measure(engine, values={"k": np.int64([7])}, options=options)
        assert result.graph_reason is not None
        assert "host" in result.mode
