"""trtexec's definitions against values computed by hand."""

from __future__ import annotations

import dataclasses

import pytest

from trtrun.benchmark.metrics import Metrics, Trace, evaluate, percentile, summarize, warnings


def test_percentile_drops_the_top_of_the_order() -> None:
    hundred = [float(i) for i in range(1, 101)]
    assert percentile(hundred, 90) == 90  # 10 dropped: 91 … 100
    assert percentile(hundred, 95) == 95
    assert percentile(hundred, 99) == 99
    assert percentile(hundred, 100) == 100
    assert percentile(hundred, 0) == 1
    assert percentile(hundred[:10], 90) == 9
    assert percentile(hundred[:10], 99) == 10  # a tenth of a value is none
    assert percentile([7.0], 90) == 7


def test_summary() -> None:
    summary = summarize([4.0, 1.0, 2.0, 5.0])
    assert (summary.min, summary.max, summary.mean, summary.median) == (1, 5, 3, 3)
    assert summary.percentiles == {90: 5, 95: 5, 99: 5}


#                stream enqueue      h2d         compute     d2h
WARM = Trace(0, 0.0, 0.1, 0.0, 1.0, 1.0, 5.0, 5.0, 6.0)
FIRST = Trace(0, 9.0, 9.1, 9.5, 10.5, 11.0, 13.0, 13.5, 14.0)  # latency 1 + 2 + 0.5
SECOND = Trace(0, 11.0, 11.3, 11.5, 13.0, 13.0, 17.0, 17.0, 19.5)  # 1.5 + 4 + 2.5


def test_metrics_of_two_inferences_after_the_warmup() -> None:
    metrics = evaluate([WARM, FIRST, SECOND], warmup=11.0)  # the warm-up ends where FIRST's compute starts
    assert (metrics.inferences, metrics.warmup) == (2, 1)
    assert metrics.latency.min == pytest.approx(3.5)
    assert metrics.latency.max == pytest.approx(8.0)
    assert metrics.enqueue.mean == pytest.approx(0.2)
    assert metrics.h2d.median == pytest.approx(1.25)
    assert metrics.compute.median == pytest.approx(3.0)
    assert metrics.d2h.max == pytest.approx(2.5)
    assert metrics.walltime == pytest.approx(0.010)  # 9.5 to 19.5 ms
    assert metrics.throughput == pytest.approx(200)
    assert metrics.compute_total == pytest.approx(0.006)
    assert metrics.compute_variation == pytest.approx(100 / 3)  # population: deviation 1 of mean 3


def test_walltime_spans_streams_that_end_out_of_order() -> None:
    late = Trace(1, 9.0, 9.1, 9.0, 9.5, 11.0, 29.0, 29.0, 30.0)
    metrics = evaluate([late, FIRST, SECOND], warmup=0)
    assert metrics.walltime == pytest.approx(0.021)  # 9.0 of one stream to 30.0 of the same, the others inside
    assert metrics.compute_total == pytest.approx(0.024)


def test_nothing_after_the_warmup_is_an_error() -> None:
    with pytest.raises(ValueError, match="none of 1"):
        evaluate([WARM], warmup=2.0)


def figures(*, enqueue: float = 0.1, h2d: float = 0.1, compute: float = 1.0, d2h: float = 0.1) -> Metrics:
    def trace(start: float) -> Trace:
        ends = [start, start + h2d, start + h2d, start + h2d + compute, start + h2d + compute]
        return Trace(0, start, start + enqueue, *ends, start + h2d + compute + d2h)

    return evaluate([trace(10.0 * i) for i in range(20)], warmup=0)


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        (figures(), None),
        (figures(enqueue=0.79), None),
        (figures(enqueue=0.81), "Enqueue Time"),
        (figures(h2d=0.99), None),
        (figures(h2d=1.01), "H2D transfers of the inputs"),
        (figures(d2h=1.01), "D2H transfers of the outputs"),
        (dataclasses.replace(figures(), compute_variation=2.4), None),
        (dataclasses.replace(figures(), compute_variation=2.6), "unstable"),
    ],
)
def test_warnings(metrics: Metrics, says: str | None) -> None:
    found = warnings(metrics, cuda_graph=True, spin=False)
    if says is None:
        assert found == []
    else:
        assert len(found) == 1
        assert says in found[0]


def test_remedies_are_not_what_is_on_already() -> None:
    bound = figures(enqueue=0.9)
    assert "--no-graph" in warnings(bound, cuda_graph=False, spin=False)[0]
    assert "--no-graph" not in warnings(bound, cuda_graph=True, spin=False)[0]
    unstable = dataclasses.replace(figures(), compute_variation=9.0)
    assert "--spin" in warnings(unstable, cuda_graph=True, spin=False)[0]
    assert "--spin" not in warnings(unstable, cuda_graph=True, spin=True)[0]
