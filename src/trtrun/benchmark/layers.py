"""What each layer costs: TensorRT's own times per layer, as data, text and page."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ExecutionError
from ..route import borrowed_route
from ..tensor_spec import Shape, shape_text
from .measure import example_inputs
from .report import STYLE

if TYPE_CHECKING:
    from ..engine import Engine

_WARMUP = 10  # runs that are not counted


@dataclass(frozen=True)
class LayerTime:
    """One layer: the median of its times in milliseconds, and its share of the sum over all layers."""

    name: str
    median: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class LayerProfile:
    """Times of all layers, in the order in which they run.

    ``total`` is the sum of the medians in milliseconds. It is more than the engine takes by itself: layers that are
    timed one by one wait for each other, and no CUDA graph is used.
    """

    engine: str
    backend: str
    shapes: dict[str, Shape]
    runs: int
    layers: tuple[LayerTime, ...]

    @property
    def total(self) -> float:
        return sum(layer.median for layer in self.layers)

    def top(self, count: int) -> list[LayerTime]:
        return sorted(self.layers, key=lambda layer: -layer.median)[:count]

    def as_json(self) -> dict[str, Any]:
        return {
            "engine": self.engine,
            "backend": self.backend,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "runs": self.runs,
            "total_ms": self.total,
            "layers": [
                {"name": one.name, "median_ms": one.median, "min_ms": one.low, "max_ms": one.high, "share": one.share}
                for one in self.layers
            ],
        }


def profile_layers(
    engine: Engine,
    *,
    shapes: Mapping[str, Shape] | None = None,
    values: Mapping[str, np.ndarray[Any, np.dtype[Any]]] | None = None,
    runs: int = 50,
) -> LayerProfile:
    """Time every layer of an engine. Names are the network's where it was built with ``BuildOptions(detailed=True)``.

    Args:
        shapes: of dynamic inputs; the shape that the first profile was tuned for where not given.
        values: arrays for inputs, random ones for the rest.
        runs: how many runs to take medians over.

    Raises what :func:`trtrun.benchmark.measure` raises.
    """
    arrays = example_inputs(engine, shapes or {}, values or {})
    times: dict[str, list[float]] = {}
    order: dict[tuple[str, int], None] = {}  # names repeat where layers share one
    turn: dict[str, int] = {}
    lock = threading.Lock()
    module: Any = engine.flavor.module
    if not engine.flavor.capabilities.has_layer_times:
        raise ExecutionError(f"{engine.flavor.title} does not tell the times of layers.")

    class Profiler(module.IProfiler):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            module.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            with lock:
                index = turn[layer_name] = turn.get(layer_name, -1) + 1
                order.setdefault((layer_name, index))
                times.setdefault(f"{layer_name}\0{index}", []).append(ms)

    profiler = Profiler()

    def attach(context: Any) -> None:
        context.profiler = profiler

    with borrowed_route(engine, arrays, attach) as (route, stream):
        for _ in range(_WARMUP + runs):
            turn.clear()
            route.execute(int(stream.handle))
            stream.sync()
    medians = {key: float(np.median(values[-runs:])) for key, values in times.items()}
    total = sum(medians.values()) or 1.0
    layers = []
    for name, index in order:
        key = f"{name}\0{index}"
        kept = times[key][-runs:]
        layers.append(LayerTime(name, medians[key], min(kept), max(kept), medians[key] / total))
    return LayerProfile(
        engine.name,
        f"{engine.flavor.title} on {engine.device.name}",
        {name: array.shape for name, array in arrays.items()},
        runs,
        tuple(layers),
    )


def layers_text(profile: LayerProfile, count: int = 20) -> str:
    """The slowest layers, slowest first."""
    lines = [
        f"engine   {profile.engine}",
        f"runs on  {profile.backend}",
        f"shapes   {_shapes(profile)}",
        f"{len(profile.layers)} layers, {profile.total:.4f} ms in sum (medians of {profile.runs} runs, layer by layer)",
        "",
        f"{'ms':>10}{'share':>8}  layer",
    ]
    lines += [f"{layer.median:>10.4f}{layer.share:>8.1%}  {layer.name}" for layer in profile.top(count)]
    rest = len(profile.layers) - count
    return "\n".join([*lines, *([f"{'':>18}  … and {rest} more"] if rest > 0 else [])])


def layers_html(profile: LayerProfile) -> str:
    """A self-contained page: one bar per layer, in the order in which they run."""
    longest = max((layer.median for layer in profile.layers), default=1.0) or 1.0
    rows = "".join(
        f'<tr><td class="name" title="{escape(layer.name)}">{escape(_shortened(layer.name))}</td>'
        f"<td>{layer.median:.4f}</td><td>{layer.share:.1%}</td>"
        f'<td class="bar"><span style="width:{100 * layer.median / longest:.2f}%"></span></td></tr>'
        for layer in profile.layers
    )
    slowest = profile.top(1)
    tiles = (
        (f"{profile.total:.4g} ms", "all layers"),
        (f"{len(profile.layers)}", "layers"),
        (f"{slowest[0].share:.1%}" if slowest else "–", "the slowest layer"),
        (f"{sum(layer.share for layer in profile.top(10)):.1%}", "the ten slowest"),
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(profile.engine)} · trtrun profile</title><style>{STYLE}{_STYLE}</style></head><body><main>
<h1>{escape(profile.engine)}</h1>
<dl><dt>runs on</dt><dd>{escape(profile.backend)}</dd><dt>shapes</dt><dd>{escape(_shapes(profile))}</dd>
<dt>evaluated</dt><dd>medians of {profile.runs} runs, layer by layer: their sum is more than the engine takes</dd></dl>
<div class="tiles">{"".join(f"<div><b>{value}</b>{title}</div>" for value, title in tiles)}</div>
<h2>Layers in the order in which they run</h2>
<div class="wide"><table class="layers"><thead><tr><th class="name">layer</th><th>ms</th><th>share</th><th></th></tr>
</thead><tbody>{rows}</tbody></table></div>
</main></body></html>
"""


def _shapes(profile: LayerProfile) -> str:
    return ", ".join(f"{name} {shape_text(shape)}" for name, shape in profile.shapes.items())


def _shortened(name: str, length: int = 72) -> str:
    return name if len(name) <= length else f"{name[: length // 2]}…{name[-length // 2 :]}"


_STYLE = """
table.layers td.name, table.layers th.name { text-align: left; font-family: ui-monospace, monospace; font-size: .8rem }
table.layers td.bar { width: 40%; min-width: 12rem }
table.layers td.bar span { display: block; height: .8rem; background: var(--compute); border-radius: 2px }
"""
