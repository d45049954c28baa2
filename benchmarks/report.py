"""Write docs/performance.md and its plot from benchmarks/results/*.json.

python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"

HEAD = """# Performance

Every figure is a ratio of medians, measured in turns in one run, and better when larger: reference ÷ ours for times,
ours ÷ reference for rates. The bracket is the smallest and largest ratio of the rounds. Requests go from NumPy to NumPy
with different random inputs each time; networks are fp16 with random weights. `make bench` measures again on your GPU.

- **bare**: hand-written `cuda.bindings`, one graph launch per request, nothing checked: the floor.
- **recipe**: the classic recipe as tutorials write it, on the v3 calls.
- **ort**: ONNX Runtime with NVIDIA's TensorRT-RTX provider, with or without its own CUDA graph, whichever is faster.
- **peak**: the engine's graphs alone, data on the GPU, the best of 1 to 8 in flight.

The two sides of a record come from the same run; different groups were run on different days or machines of the kind.

Where trtrun is not ahead, and why:

- **resnet50.static.b8**: the request is bound by one core's copy of 2.4 MB (about 180 µs) and the engine (630 µs). The
  driver's own staging, which the recipe uses too, is the fastest way that was found: waking helper threads takes as
  long as the copy. At batch 32 they pay.
- **device_arrays**: a call with torch tensors costs about 60 µs beyond the graph: exchanging arrays, two waits between
  streams, a copy in, memory for the results.
- **throughput.resnet50.b1.vs_peak**: one Python thread fills, launches and collects 8,600 requests a second.
- **hot_path.growth** counts bytes; its ratio is 1 for none and 0 otherwise.
"""


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(path: Path) -> str:
    data = json.loads(path.read_text())
    environment = data["environment"]
    lines = [
        f"\n## {environment['gpu']}, {environment['tensorrt']}\n",
        f"![Ratios]({(Path('images') / f'performance-{path.stem}.svg').as_posix()})\n",
        "| id | ratio | ours | reference | what |",
        "|---|---|---|---|---|",
    ]
    for r in data["records"]:
        low, high = r["spread"]
        lines.append(
            f"| {r['id']} | **{r['ratio']:.2f}** ({low:.2f}–{high:.2f}) | {number(r['ours'])} {r['unit']} "
            f"| {number(r['reference'])} {r['unit']} | {r['what']} |"
        )
    return "\n".join(lines) + "\n"


def plot(path: Path) -> None:
    records = [r for r in json.loads(path.read_text())["records"] if r["unit"] != "bytes"]
    records.sort(key=lambda r: r["ratio"])
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(records) + 1), layout="constrained")
    for y, r in enumerate(records):
        low, high = r["spread"]
        color = "#2e7d32" if r["ratio"] >= 1 else "#b26a00"
        axes.barh(y, r["ratio"], color=color, alpha=0.85)
        axes.plot([low, high], [y, y], color="black", linewidth=1)
        axes.text(max(high, r["ratio"]) * 1.04, y, f"{r['ratio']:.2f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    axes.set_xlim(0.5, 1.6 * max(r["spread"][1] for r in records))
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(records)), [r["id"] for r in records], fontsize=8)
    axes.set_ylim(-0.6, len(records) - 0.4)
    axes.set_xlabel("ratio (larger is better; the line is the spread of the rounds)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "images" / f"performance-{path.stem}.svg")
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "trtrun"  # the same figures give the same file
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    for path in paths:
        plot(path)
    (DOCS / "performance.md").write_text(HEAD + "".join(map(table, paths)))
