"""What a comparison found: as data, and as one self-contained HTML page with the error of every layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from typing import Any

from ..tensor_spec import shape_text
from .layers import Layer
from .metrics import TensorError, Tolerance


@dataclass(frozen=True)
class LayerError:
    """One intermediate tensor, the node that computes it, and its error."""

    layer: Layer
    error: TensorError


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`trtrun.compare`.

    Attributes:
        models, backends: of the reference and the other: what was named, and what computed.
        inputs: dtype, shape and source of each input.
        outputs: the error of each output.
        layers: the errors of intermediate tensors in topological order; empty when layers were not compared.
        layer_failures: tensors that could not be made outputs, and why.
        notes: what to know when reading the layers.
    """

    models: tuple[str, str]
    backends: tuple[str, str]
    inputs: Mapping[str, tuple[str, tuple[int, ...], str]]
    seed: int
    tolerance: Tolerance
    outputs: tuple[TensorError, ...]
    layers: tuple[LayerError, ...] = ()
    layer_failures: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def within(self) -> bool:
        """Whether every output is within the tolerance."""
        return all(output.within for output in self.outputs)

    @property
    def first_divergence(self) -> LayerError | None:
        """The first layer that misses the tolerance; all compared layers before it are within."""
        return next((layer for layer in self.layers if not layer.error.within), None)

    @property
    def first_nonfinite(self) -> LayerError | None:
        """The first layer with NaN or infinite values in either model."""
        return next((layer for layer in self.layers if any(layer.error.nonfinite)), None)

    def findings(self) -> list[str]:
        """The verdict and what explains it, one sentence each."""
        said = []
        count = len(self.outputs)
        missed = [output.name for output in self.outputs if not output.within]
        if missed:
            said.append(f"{len(missed)} of {count} outputs miss the tolerance: {', '.join(missed)}.")
        else:
            said.append(f"All outputs ({count}) are within the tolerance.")
        for output in self.outputs:
            if any(output.nonfinite):
                a, b = output.nonfinite
                said.append(
                    f"Output {output.name!r} has non-finite values: {a:,} in the reference, {b:,} in the other."
                )
        if first := self.first_divergence:
            said.append(f"The first layer that misses it is {first.layer}: {_numbers(first.error)}.")
        elif missed and self.layers:
            said.append("Every compared layer is within the tolerance: what differs lies in what was not compared.")
        if first := self.first_nonfinite:
            said.append(f"The first non-finite values come from {first.layer}.")
        if self.layer_failures:
            said.append(f"{len(self.layer_failures)} intermediate tensors could not be made outputs.")
        return [*said, *self.notes]

    def as_json(self) -> dict[str, Any]:
        first, nonfinite = self.first_divergence, self.first_nonfinite
        return {
            "models": self.models,
            "backends": self.backends,
            "inputs": {n: {"dtype": d, "shape": s, "source": source} for n, (d, s, source) in self.inputs.items()},
            "seed": self.seed,
            "tolerance": asdict(self.tolerance),
            "within": self.within,
            "outputs": [output.as_json() for output in self.outputs],
            "first_divergence": asdict(first.layer) if first else None,
            "first_nonfinite": asdict(nonfinite.layer) if nonfinite else None,
            "layers": [{**asdict(found.layer), **found.error.as_json()} for found in self.layers],
            "layer_failures": dict(self.layer_failures),
            "notes": self.notes,
        }


def _numbers(error: TensorError) -> str:
    return error.problem or f"relative L2 {error.l2:.3g}, cosine {error.cosine:.6f}, max abs {error.max_abs:.3g}"


# What decides first: on a narrow screen the last are out of sight.
COLUMNS = ("", "rel L2", "cosine", "max abs", "max rel", "NaN, inf", "shape")


def cells(error: TensorError) -> list[str]:
    """An error as text, for tables with :data:`COLUMNS`."""
    verdict = "ok" if error.within else "misses"
    if error.problem:
        return [verdict, "", "", "", "", "", error.problem]
    a, b = error.nonfinite
    numbers = [f"{error.l2:.3g}", f"{error.cosine:.6f}", f"{error.max_abs:.3g}", f"{error.max_rel:.3g}"]
    return [verdict, *numbers, f"{a:,} / {b:,}" if a or b else "none", shape_text(error.shape)]


def html(comparison: Comparison) -> str:
    """A page that needs nothing but a browser: the findings, the outputs, and the error of every layer drawn."""
    verdict = "within the tolerance" if comparison.within else "misses the tolerance"
    facts = [
        ("reference", f"{comparison.models[0]}: {comparison.backends[0]}"),
        ("compared", f"{comparison.models[1]}: {comparison.backends[1]}"),
        ("tolerance", str(comparison.tolerance)),
        *(
            (f"input {name}", f"{dtype} {shape_text(shape)}, {source}")
            for name, (dtype, shape, source) in comparison.inputs.items()
        ),
        ("seed", str(comparison.seed)),
    ]
    failures = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="words">{escape(reason)}</td></tr>'
        for name, reason in comparison.layer_failures.items()
    )
    first = comparison.first_divergence
    layers = ""
    if comparison.layers:
        rows = "".join(
            _row(found.layer.tensor, found.error, found is first, f"{found.layer.operator} {found.layer.node}")
            for found in comparison.layers
        )
        layers = (
            f"<h2>Relative L2 per layer</h2>{_plot(comparison)}<h2>Layers</h2>"
            + _table(rows, (*COLUMNS, "node"))
            + (f"<h2>Not compared</h2>{_table(failures, ('reason',))}" if failures else "")
        )
    kind = "good" if comparison.within else "warning"
    findings = "".join(
        f'<p class="{kind if i == 0 else "said"}">{escape(s)}</p>' for i, s in enumerate(comparison.findings())
    )
    outputs = "".join(_row(output.name, output) for output in comparison.outputs)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(comparison.models[1])} · trtrun compare</title><style>{_STYLE}</style></head><body><main>
<h1>{escape(comparison.models[1])} {verdict}</h1>
<dl>{"".join(f"<dt>{escape(title)}</dt><dd>{escape(fact)}</dd>" for title, fact in facts)}</dl>
{findings}
<h2>Outputs</h2>
{_table(outputs, COLUMNS)}
{layers}
</main></body></html>
"""


_WORDS = ("node", "reason")  # columns of text, which are broken into lines


def _table(rows: str, columns: tuple[str, ...]) -> str:
    heads = "".join(
        f'<th class="words">{column}</th>' if column in _WORDS else f"<th>{column}</th>" for column in columns
    )
    return f'<div class="wide"><table><thead><tr><th></th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row(name: str, error: TensorError, marked: bool = False, node: str | None = None) -> str:
    verdict, *numbers = cells(error)
    kind = "first" if marked else "" if error.within else "missed"
    said = (
        f'<td class="words" colspan="{len(numbers)}">{escape(error.problem)}</td>'
        if error.problem
        else "".join(f"<td>{escape(text)}</td>" for text in numbers)
    )
    last = "" if node is None else f'<td class="words">{escape(node.strip())}</td>'
    return f'<tr class="{kind}"><th scope="row">{escape(name)}</th><td>{verdict}</td>{said}{last}</tr>'


_WIDTH, _LEFT, _RIGHT, _TOP, _BASE = 960, 72, 16, 20, 240
_LOWEST = -9  # decades: what is smaller, zero too, is drawn on the axis


def _plot(comparison: Comparison) -> str:
    """A bar per layer, from left to right in topological order, on a logarithmic axis; the bound as a line."""
    layers = comparison.layers
    values = [found.error.l2 for found in layers]
    highest = max(1, math.ceil(math.log10(max(*values, 1e-3)))) if max(values) > 1 else 0

    def y_of(value: float) -> float:
        decade = max(math.log10(value), _LOWEST) if value > 0 else _LOWEST
        return _TOP + (highest - decade) / (highest - _LOWEST) * (_BASE - _TOP)

    parts = []
    for decade in range(_LOWEST, highest + 1):
        y = y_of(10.0**decade)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        label = f"1e{decade}" if decade > _LOWEST else f"≤1e{decade}"
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    step = (_WIDTH - _LEFT - _RIGHT) / len(layers)
    first = comparison.first_divergence
    for position, found in enumerate(layers):
        error, x = found.error, _LEFT + position * step
        # What has no number, or non-finite values of its own, stands out at full height.
        y = y_of(error.l2) if error.problem is None and not error.nonfinite_differ else _TOP
        kind = "ok" if error.within else "first" if found is first else "missed"
        parts.append(
            f'<rect class="{kind}" x="{x:.2f}" y="{min(y, _BASE - 1.5):.2f}" width="{max(step * 0.85, 0.5):.2f}" '
            f'height="{max(_BASE - y, 1.5):.2f}"><title>{escape(f"{found.layer}: {_numbers(error)}")}</title></rect>'
        )
        if found is first:
            anchor = "start" if x < _WIDTH / 2 else "end"
            label = f"{found.layer.operator} {found.layer.node or found.layer.tensor}"
            parts.append(
                f'<text class="strong" x="{x:.1f}" y="{_TOP - 6}" text-anchor="{anchor}">{escape(label)}</text>'
            )
    if comparison.tolerance.l2:
        y = y_of(comparison.tolerance.l2)
        parts.append(f'<line class="mark" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<text x="{_LEFT}" y="{_BASE + 18}" text-anchor="start">first layer</text>')
    parts.append(f'<text x="{_WIDTH - _RIGHT}" y="{_BASE + 18}" text-anchor="end">last of {len(layers)}</text>')
    legend = (
        '<p class="legend"><span><i class="ok"></i>within</span><span><i class="first"></i>first that misses</span>'
        '<span><i class="missed"></i>misses</span><span>dashed: the bound of relative L2</span></p>'
    )
    return (
        f'{legend}<div class="wide"><svg viewBox="0 0 {_WIDTH} {_BASE + 26}" role="img" '
        f'aria-label="relative L2 per layer">{"".join(parts)}</svg></div>'
    )


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2125;--soft:#626b75;--line:#dfe3e8;--page:#fff;--card:#f5f7f9;
--ok:#2f8f5b;--missed:#d9822b;--first:#c2362f;--warn:#fff4dc;--good:#e3f4ea}
@media (prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#343b43;--page:#15181c;--card:#1e2329;
--ok:#4db37c;--missed:#e89b4c;--first:#ee6a61;--warn:#3b3218;--good:#1b3626}}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
main{max-width:1200px;margin:0 auto;padding:24px}
h1{font-size:24px;margin:0 0 8px;overflow-wrap:anywhere}h2{font-size:17px;margin:32px 0 8px}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:0 0 16px}dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.warning,.good{border-radius:8px;padding:10px 16px}.warning{background:var(--warn)}.good{background:var(--good)}
p{margin:8px 0;overflow-wrap:anywhere}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{padding:5px 8px;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
tbody th,.words{text-align:left;white-space:normal;overflow-wrap:anywhere;min-width:8em}
td.words{min-width:14em}
thead th{color:var(--soft);font-weight:400}tbody th{font-weight:600}
tr.first th,tr.first th+td{color:var(--first)}tr.missed th+td{color:var(--missed)}
svg{width:100%;min-width:640px;height:auto;display:block}text{fill:var(--soft);font-size:12px}
text.strong{fill:var(--ink);font-weight:600}
.grid{stroke:var(--line)}.mark{stroke:var(--ink);stroke-dasharray:3 3}
rect.ok,i.ok{fill:var(--ok);background:var(--ok)}rect.first,i.first{fill:var(--first);background:var(--first)}
rect.missed,i.missed{fill:var(--missed);background:var(--missed)}
.legend{color:var(--soft)}.legend span{display:inline-block;margin-right:16px}
.legend i{display:inline-block;width:12px;height:12px;border-radius:2px;margin-right:6px}
"""
