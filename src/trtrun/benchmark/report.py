"""A measurement to read: as text for a terminal, and as one self-contained HTML page with its figures drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from ..tensor_spec import shape_text
from .measure import Measurement
from .metrics import PERCENTILES, Summary, Trace, after_warmup, latency_of

_COLUMNS = ("min", "max", "mean", "median", *(f"{percent}%" for percent in PERCENTILES))
# trtexec's names in trtexec's order: title, attribute of Metrics, meaning.
_QUANTITIES = (
    ("Latency", "latency", "H2D + GPU compute + D2H of one inference; waits between them and the enqueue not counted"),
    ("Enqueue Time", "enqueue", "host time of enqueueing the engine, or of launching its graph"),
    ("H2D Latency", "h2d", "copying the inputs to the GPU"),
    ("GPU Compute Time", "compute", "the engine itself"),
    ("D2H Latency", "d2h", "copying the outputs to the host"),
)


def _cells(summary: Summary) -> list[str]:
    values = [summary.min, summary.max, summary.mean, summary.median, *summary.percentiles.values()]
    return [f"{value:.4f}" for value in values]


def _shapes(measurement: Measurement) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in measurement.shapes.items())


def _counts(measurement: Measurement) -> str:
    metrics = measurement.metrics
    return (
        f"{metrics.inferences:,} inferences; {metrics.warmup:,} more in the warm-up of "
        f"{measurement.options.warmup:g} ms are left out"
    )


def text(measurement: Measurement) -> str:
    """trtexec's performance summary, the mode in the first lines, its warnings in the last."""
    metrics = measurement.metrics
    lines = [
        f"engine      {measurement.engine}",
        f"runs on     {measurement.backend}",
        f"shapes      {_shapes(measurement)}",
        f"mode        {measurement.mode}",
        f"evaluated   {_counts(measurement)}",
        "",
        f"Throughput: {metrics.throughput:.6g} inferences/s",
        "",
        f"{'ms':<17}" + "".join(f"{column:>10}" for column in _COLUMNS),
    ]
    for title, attribute, _ in _QUANTITIES:
        lines.append(f"{title:<17}" + "".join(f"{cell:>10}" for cell in _cells(getattr(metrics, attribute))))
    lines += [
        "",
        f"Total Host Walltime: {metrics.walltime:.6g} s",
        f"Total GPU Compute Time: {metrics.compute_total:.6g} s",
    ]
    return "\n".join([*lines, *(f"Warning: {warning}" for warning in measurement.warnings)])


def html(measurement: Measurement) -> str:
    """A page that needs nothing but a browser: the summary, histograms of the times, a timeline of every stream."""
    metrics = measurement.metrics
    kept = after_warmup(measurement.traces, measurement.options.warmup)
    rows = "".join(
        f'<tr><th scope="row" title="{escape(meaning)}">{title}</th>'
        + "".join(f"<td>{cell}</td>" for cell in _cells(getattr(metrics, attribute)))
        + "</tr>"
        for title, attribute, meaning in _QUANTITIES
    )
    heads = "".join(f"<th>{column}</th>" for column in _COLUMNS)
    facts = (
        ("runs on", measurement.backend),
        ("shapes", _shapes(measurement)),
        ("mode", measurement.mode),
        ("evaluated", _counts(measurement)),
    )
    tiles = (
        (f"{metrics.throughput:,.1f}", "inferences per second"),
        (f"{metrics.latency.median:.4g} ms", "median latency"),
        (f"{metrics.latency.percentiles[99]:.4g} ms", "99 % latency"),
        (f"{metrics.compute.median:.4g} ms", "median GPU compute"),
    )
    notes = "".join(
        f'<p class="warning">{escape(warning).replace("-", "&#8209;")}</p>' for warning in measurement.warnings
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(measurement.engine)} · trtrun bench</title><style>{STYLE}</style></head><body><main>
<h1>{escape(measurement.engine)}</h1>
<dl>{"".join(f"<dt>{title}</dt><dd>{escape(fact)}</dd>" for title, fact in facts)}</dl>
<div class="tiles">{"".join(f"<div><b>{value}</b>{title}</div>" for value, title in tiles)}</div>
{notes}
<h2>Times in milliseconds</h2>
<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>
<p>Total host walltime {metrics.walltime:.4g} s, total GPU compute time {metrics.compute_total:.4g} s.
Latency is H2D + GPU compute + D2H of one inference; waits between them and the enqueue are not counted.</p>
<h2>Latency</h2>
{_histogram([latency_of(trace) for trace in kept], metrics.latency, "latency")}
<h2>GPU compute</h2>
{_histogram([trace.compute_end - trace.compute_start for trace in kept], metrics.compute, "compute")}
<h2>Timeline</h2>
{_timeline(kept, measurement.options.transfers)}
</main></body></html>
"""


_WIDTH, _LEFT, _RIGHT = 960, 92, 16
_PLOT = _WIDTH - _LEFT - _RIGHT


def _ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from ``low`` to ``high``, steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= about)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _svg(height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
        + "".join(parts)
        + "</svg></div>"
    )


def _text(x: float, y: float, content: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'


def _time_axis(low: float, high: float, y: float, top: float) -> list[str]:
    parts = []
    for tick in _ticks(low, high):
        x = _LEFT + (tick - low) / (high - low) * _PLOT
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top:g}" y2="{y:g}"/>')
        parts.append(_text(x, y + 16, f"{tick:.6g}"))
    return [*parts, _text(_LEFT - 8, y + 16, "ms", "end")]


def _histogram(values: Sequence[float], summary: Summary, kind: str) -> str:
    """Counts up to the 99 % value and a little beyond; what is slower is counted at the right edge, and said."""
    low, edge = summary.min, summary.percentiles[99]
    high = min(summary.max, edge + 0.25 * (edge - low))
    if high <= low:
        return f"<p>All {len(values):,} inferences took {low:.4f} ms.</p>"
    bins = min(80, max(10, round(2 * len(values) ** (1 / 3))))
    counts, edges = np.histogram(np.clip(values, low, high), bins, (low, high))
    height, top, base = 220.0, 24.0, 188.0
    peak = int(counts.max())
    parts = _time_axis(low, high, base, top)
    for tick in _ticks(0, peak, 4):
        y = base - tick / peak * (base - top)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{tick:,.0f}", "end"))
    for count, start, end in zip(counts, edges, edges[1:], strict=False):
        x, bar = _LEFT + (start - low) / (high - low) * _PLOT, (end - start) / (high - low) * _PLOT
        tall = count / peak * (base - top)
        parts.append(
            f'<rect class="{kind}" x="{x:.2f}" y="{base - tall:.2f}" width="{max(bar - 1, 0.5):.2f}" '
            f'height="{tall:.2f}"><title>{start:.4f} to {end:.4f} ms: {count:,}</title></rect>'
        )
    free = -math.inf  # where the label before ends: labels of close marks would cover each other
    for title, value in (("median", summary.median), *((f"{p}%", v) for p, v in summary.percentiles.items())):
        x = _LEFT + (value - low) / (high - low) * _PLOT
        parts.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{top - 6:g}" y2="{base:g}"/>')
        if x - 22 > free:
            parts.append(_text(x, top - 10, title))
            free = x + 22
    slower = sum(value > high for value in values)
    said = f"<p>{slower:,} of {len(values):,} were slower, up to {summary.max:.4f} ms; the last bar counts them.</p>"
    return _svg(height, parts, f"histogram of {kind}") + (said if slower else "")


def _timeline(kept: Sequence[Trace], transfers: bool) -> str:
    """About eight inferences per stream from the middle of the measurement; per stream one lane per kind of work."""
    streams = sorted({trace.stream for trace in kept})
    # From the second half, where every stream is in its steady state.
    middle = kept[len(kept) // 2 :][: 8 * len(streams)]
    low, high = min(trace.h2d_start for trace in middle), max(trace.d2h_end for trace in middle)
    lanes = ("h2d", "compute", "d2h") if transfers else ("compute",)
    names = {"h2d": "H2D", "compute": "compute", "d2h": "D2H"}
    lane, gap, top = 16.0, 12.0, 4.0
    base = top + len(streams) * (len(lanes) * lane + gap)
    parts = _time_axis(0, high - low, base, top)
    for row, stream in enumerate(streams):
        y = top + row * (len(lanes) * lane + gap)
        for index, kind in enumerate(lanes):
            title = f"{stream} {names[kind]}" if len(streams) > 1 else names[kind]
            parts.append(_text(_LEFT - 8, y + index * lane + 12, title, "end"))
        for number, trace in enumerate(trace for trace in kept if trace.stream == stream):
            for index, kind in enumerate(lanes):
                start, end = getattr(trace, f"{kind}_start"), getattr(trace, f"{kind}_end")
                left, right = max(start, low), min(end, high)
                if right <= left:
                    continue
                x, width = _LEFT + (left - low) / (high - low) * _PLOT, (right - left) / (high - low) * _PLOT
                parts.append(
                    f'<rect class="{kind}{" other" * (number % 2)}" x="{x:.2f}" y="{y + index * lane + 1:.1f}" '
                    f'width="{max(width, 0.8):.2f}" height="{lane - 2:g}">'
                    f"<title>inference {number}, {names[kind]} {end - start:.4f} ms</title></rect>"
                )
    legend = "".join(f'<span><i class="{kind}"></i>{names[kind]}</span>' for kind in lanes)
    said = (
        f"{len(middle)} successive inferences from the middle of the measurement, light and dark in turns; "
        f"0 is {low:.3f} ms after the start. Bars above one another ran at the same time."
    )
    return f'<p class="legend">{legend}</p>' + _svg(base + 24, parts, "timeline") + f"<p>{said}</p>"


STYLE = """
:root{color-scheme:light dark;--ink:#1d2125;--soft:#626b75;--line:#dfe3e8;--page:#fff;--card:#f5f7f9;
--latency:#5b6bc0;--h2d:#d9822b;--compute:#2f8f5b;--d2h:#3f7fc4;--warn:#fff4dc}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#343b43;--page:#15181c;--card:#1e2329;
--latency:#8b9bf0;--h2d:#e89b4c;--compute:#4db37c;--d2h:#68a3e3;--warn:#3b3218}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1000px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 8px;overflow-wrap:anywhere}h2{font-size:17px;margin:32px 0 8px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0}dt{color:var(--soft)}dd{margin:0}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:20px 0}
.tiles div{background:var(--card);border-radius:8px;padding:12px 16px;color:var(--soft)}
.tiles b{display:block;font-size:24px;color:var(--ink)}
.warning{background:var(--warn);border-radius:8px;padding:10px 16px}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 10px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
thead th{color:var(--soft);font-weight:400}tbody th{text-align:left;font-weight:600}
p{color:var(--soft);margin:8px 0}p.warning{color:var(--ink)}
svg{width:100%;min-width:640px;height:auto;display:block}text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line)}.mark{stroke:var(--ink);stroke-dasharray:3 3}
.latency{fill:var(--latency);background:var(--latency)}.h2d{fill:var(--h2d);background:var(--h2d)}
.compute{fill:var(--compute);background:var(--compute)}.d2h{fill:var(--d2h);background:var(--d2h)}
.other{fill-opacity:.55}
.legend span{margin-right:16px}.legend i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px}
"""
