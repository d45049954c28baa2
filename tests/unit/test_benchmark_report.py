from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from trtrun.benchmark import html, text
from trtrun.benchmark.measure import BenchOptions, Measurement
from trtrun.benchmark.metrics import Trace, evaluate


def synthetic(
    streams: int = 2, count: int = 400, transfers: bool = True, engine: str = "resnet50.engine"
) -> Measurement:
    """Streams that keep two inferences in flight: the copy in of one overlaps with the compute of the other."""
    rng = np.random.default_rng(0)
    traces = []
    for stream in range(streams):
        free, fed = 0.3 * stream, 0.3 * stream
        for _ in range(count):
            h2d = (fed, fed + 0.25 * rng.uniform(1, 1.1)) if transfers else (free, free)
            start = max(free, h2d[1])
            free = start + rng.gamma(60, 1 / 100)
            d2h = (free, free + 0.08) if transfers else (free, free)
            fed = start
            h2d = h2d if transfers else (start, start)
            traces.append(Trace(stream, start - 0.5, start - 0.49, *h2d, start, free, *d2h))
    options = BenchOptions(streams=streams, warmup=20.0, transfers=transfers)
    metrics = evaluate(traces, options.warmup)
    backend = "TensorRT-RTX 1.6.1.120 on NVIDIA H200"
    return Measurement(engine, backend, {"images": (8, 3, 224, 224)}, options, None, (), traces, metrics)


class _Page(HTMLParser):
    """Checks that every element is closed in order, and collects what is referred to."""

    VOID = frozenset({"meta"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.shapes = 0
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        for name, value in attrs:
            if name in ("x", "y", "width", "height", "x1", "x2", "y1", "y2"):
                assert np.isfinite(float(value or "nan"))
                self.shapes += 1

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_text_states_the_mode_first_and_keeps_the_order_of_trtexec() -> None:
    lines = text(synthetic()).splitlines()
    mode = next(line for line in lines[:5] if line.startswith("mode"))
    assert "2 inference streams, CUDA graph, transfers included, blocking wait" in mode
    starts = ["Throughput", "Latency", "Enqueue Time", "H2D", "GPU Compute", "D2H", "Total Host", "Total GPU"]
    order = [next(i for i, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert order == sorted(order)


def test_mode_without_transfers_and_graph() -> None:
    options = BenchOptions(transfers=False, spin=True, cuda_graph=False)
    measured = synthetic()
    mode = Measurement(
        measured.engine, measured.backend, {}, options, "turned off", (), measured.traces, measured.metrics
    ).mode
    assert mode == "1 inference stream, no CUDA graph (turned off), transfers NOT included, spin-wait"


@pytest.mark.parametrize(
    "measured",
    [synthetic(), synthetic(1, 60), synthetic(4, 100, transfers=False), synthetic(engine="<b>&x")],
    ids=["two", "few", "resident", "markup"],
)
def test_page_is_well_formed_and_self_contained(measured: Measurement) -> None:
    content = html(measured)
    page = _Page(content)
    assert page.open == []
    assert page.references == []
    assert page.shapes > 100
    assert "<script" not in content
    assert "url(" not in content
    assert "@import" not in content
    assert "<b>&x" not in content


def test_the_timeline_shows_what_overlaps() -> None:
    """H2D, compute and D2H of each stream in a lane of its own, on one axis: bars above one another ran together."""
    content = html(synthetic())
    timeline = content[content.index("<h2>Timeline") :]
    lanes = [f"{stream} {kind}" for stream in (0, 1) for kind in ("H2D", "compute", "D2H")]
    assert re.findall(r">(\d \w+)</text>", timeline) == lanes
    bars: dict[tuple[float, str], list[tuple[float, float]]] = {}
    bar = r'<rect class="(\w+)[^"]*" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"'
    for kind, x, y, width in re.findall(bar, timeline):
        bars.setdefault((float(y), kind), []).append((float(x), float(x) + float(width)))
    rows = sorted(bars)
    assert [kind for _, kind in rows] == 2 * ["h2d", "compute", "d2h"]
    for h2d, compute, d2h in (rows[:3], rows[3:]):
        overlap = [
            (a, b) for a in bars[h2d] for b in bars[compute] if min(a[1], b[1]) - max(a[0], b[0]) > 0.9 * (a[1] - a[0])
        ]
        assert len(overlap) >= len(bars[h2d]) - 2  # those at the edges of the picture may be cut
        assert all(any(abs(start - end) < 0.1 for _, end in bars[compute]) for start, _ in bars[d2h][1:])


def test_the_page_says_what_the_text_says() -> None:
    measured = synthetic()
    content = html(measured)
    for mark in ("median", "90%", "95%", "99%"):
        assert f">{mark}</text>" in content
    assert measured.warnings
    for warning in measured.warnings:
        assert f"Warning: {warning}" in text(measured)
    assert content.count('class="warning"') == len(measured.warnings) == len(measured.as_json()["warnings"])


def test_page_of_equal_times() -> None:
    same = [Trace(0, i, i + 0.1, i, i + 0.25, i + 0.25, i + 0.75, i + 0.75, i + 1.0) for i in range(20)]
    options = BenchOptions(warmup=0)
    content = html(Measurement("e", "b", {}, options, None, (), same, evaluate(same, 0)))
    assert "All 20 inferences took" in content
    _Page(content)


def test_json_is_plain_data() -> None:
    facts = json.loads(json.dumps(synthetic().as_json()))
    assert facts["mode"]["streams"] == 2
    assert facts["mode"]["transfers"] is True
    assert set(facts["metrics"]["latency"]["percentiles"]) == {"90", "95", "99"}


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match="1 or more"):
        BenchOptions(streams=0)
