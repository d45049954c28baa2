"""Write docs/performance.md and its plot from benchmarks/results/*.json.

make docs, or python benchmarks/report.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SMALLER_IS_BETTER = ("serve.grpc.b1.", "serve.overload", "serve.reload")  # beginnings of ids

HEAD = """# Performance

In short, on one H200:

- **Fast**: one image, 2.1 (ResNet-50) to 3.7 times (MobileNetV3) the classic recipe and 1.05 times ONNX Runtime
  (**latency.…**); host arrays at 0.96 to 0.97 of the GPU's own peak (**throughput.…**); 1080p pictures to boxes, 9.4
  times OpenCV and NumPy (**vision.detect.…**); four server processes, 5 times one of plain FastAPI
  (**serve.vs_naive**).
- **Even**: with a hand-written CUDA graph, 0.91 to 1.01 up to batch 8, 0.84 with a network of five nodes, and 1.27 at
  batch 32 (**latency.….vs_bare**).
- **Not fast**: requests over the network cost what Python's gRPC costs (**serve.grpc.…**, **serve.floor.grpc**);
  dynamic batching gains nothing in front of small networks (**serve.batching.…**); Ray Data reaches 0.81 of a
  pipeline; outputs whose shape only the run decides (**overhead.allocator**); fp8 is behind fp16 with both networks
  that were tried (Real models).

Every figure but those named below is a ratio of medians, measured in turns in one run, and better when larger:
reference ÷ ours for times, ours ÷ reference for rates. The bracket is the smallest and largest ratio of the rounds.
Requests go from NumPy to NumPy with different random inputs each time; networks are fp16 with random weights.
`make bench` measures again on your GPU.

- **bare**: hand-written `cuda.bindings`, one graph launch per request, nothing checked: the floor.
- **recipe**: the classic recipe as tutorials write it, on the v3 calls. It copies the caller's array to the GPU
  directly: of the two ways that tutorials have, the faster one for large batches.
- **ort**: ONNX Runtime with NVIDIA's TensorRT-RTX provider, with or without its own CUDA graph, whichever is faster.
- **peak**: the engine's graphs alone, data on the GPU, the best of 1 to 8 in flight.

The two sides of a record come from the same run; different groups were run on different days, which the tables tell, or
machines of the kind.
The machine is virtual, and its host memory differs from one to the next: one core copied 2.4 MB in 180 to 290 µs, and
9.6 MB in 740 to 1,300 µs.

- **floor.…** is what a hand-written loop reaches that does only what no loop can leave out; where trtrun's row is below
  its target, the floor says how much of that is physics.
- **overhead.…** compares a request with a hand-written loop that makes the same calls, **overhead.….vs_…** with one
  that needs no such feature; the difference per request is in the text.

Where trtrun is not ahead, and why, as far as it was found out. Figures here that no row shows are of earlier runs and
other machines:

- **resnet50**: TensorRT-RTX starts kernels before the tensors that they add are there (docs/architecture.md). trtrun
  makes them wait; the loops that it is compared with (bare, recipe, peak, a graph, CUDA events) do not, and are wrong
  at random: 20 of 6,960 requests in fp16 with four in flight, 361 of 6,720 in bf16, 1,131 of 4,920 in fp32. Waiting for
  no more than the kernel that writes the tensor costs 0 to 2.3 % where the GPU is never idle; that, and no more, is
  what **bench.….vs_events** lacks to 1.
- **resnet50.static.b1.vs_recipe**: how long the recipe takes is the host's: 650 µs on one machine, 860 on another,
  where rounds were 1.5 to 2.5 times ours. On the first the row was 1.56, where a loop without any transfer came to
  1.72. That loop (**floor.…**) is what could be reached at most.
- **resnet50.static.b8**: the request is bound by one core's copy of 2.4 MB and the engine (640 µs). The driver's
  staging, chunks by one thread or by several, and a copy inside the graph beat each other by a few percent from lease
  to lease; the session times them and takes the best. The floor, which leaves all transfers out, was 1.09 to
  1.51 times the recipe; **floor.chunked** is a hand-written loop whose transfers overlap with the copy. A helper
  thread wakes up in 34 µs and more, and the interpreter's lock changes hands at that price, which is why threads gain
  little below 4 MB, if anything. At batch 32 they pay.
- **device_arrays**: bound arrays cost one launch; the rest of the difference is the wait above. `session.run`, whose
  tensors may be others each time, takes 26 to 47 µs more than that: the exchange of the torch tensor, checks, the
  launch, and the memory of the result.
- **The machine** decides by some hundredths. Four leases of one day, 29 November, between which nothing changed for one
  request alone, but that before the fourth the ways of large inputs (batches of 8 and 32) are timed fifteen times each
  instead of seven: **latency.resnet50.static.b8.vs_ort** 1.27, 1.15, 1.10, 1.17, **b1.vs_ort** 1.12, 1.19, 1.06, 1.05,
  **b1.vs_bare** .990, .961, 1.005, .915, **b1.vs_recipe** 2.01, 2.19, 1.95, 2.08, and 1.39 on a fifth, whose floor was
  1.53. The fourth is shown. Minutes later, while its host became quieter (the recipe took 830, then 550 µs instead of
  960), five processes that measured this network alone gave **b1.vs_bare** .982 to .999 (ours 430, then 407 µs),
  **b1.vs_ort** 1.038 to 1.051, with a floor of 1.12 to 1.14, and **b1.vs_recipe** 1.93, then 1.34 to 1.35, with a floor
  of 1.45. Why ours took 462 µs in the first was not found out.
- **throughput.resnet50.b1.vs_peak**: one image fills the GPU only in part, so that many must be in flight. The copy
  engine copies these then, because a kernel that waits for PCIe keeps cores from the others (.951 → .972 with sixteen
  in flight); the early starts that are held back are the rest (1.000 without).
- **throughput**: large requests take turns, two or three computing at a time. Free to share the GPU, four in flight ran
  at 17,200 to 21,900 images/s with batch 32, from host to host.
- **multi_gpu**: one core fills about one GPU, so a pipeline over several fills the requests of each in a thread of its
  own (**.inline**: all in the thread that maps). Where cores copied at 8.5 GB/s that reached .85, and more where they
  copy faster; a process per GPU (**.processes**) always scales. A server is bound by its interpreter: one process
  answered 760 requests/s with one image, and with eight in shared memory 1,230 on one GPU and 1,410 on two, so
  `trtrun serve --all-devices` starts a process per GPU (**.one_process**: all in one).
- **hot_path.growth** and **multi_gpu.growth** count bytes; their ratio is 1 for none and 0 otherwise.
- **serve.vs_naive** and **serve.http.vs_naive** are `trtrun serve` as it starts by itself there, 4 worker processes,
  against one process of FastAPI. One worker alone against it is **serve.one.vs_naive**: 1.30, not 5.09.
- **serve.floor.grpc**: a gRPC server in Python, in as many processes, that receives the same requests and does nothing.
- **serve.batching.bound**: that server ÷ batch 1 in this process. Below 1 the GPU answers single images faster than a
  server in Python can receive them, so that batches, which make the GPU faster, gain nothing; in front of a slower
  model they do. **serve.floor.nothing** says the same from the other side.
- **serve.grpc.b1.overhead** holds the time of Python's gRPC client, **.client**, measured against a server that reads
  bytes and sends others, and that of a gRPC server in Python that does nothing, **.floor**, client included.
- **serve.grpc.b1.…** are milliseconds, **serve.overload** is how many times longer accepted requests take, and
  **serve.reload** counts requests: these are better when smaller, and are left out of the plot.
"""


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def table(path: Path) -> str:
    data = json.loads(path.read_text())
    environment = data["environment"]
    lines = [
        f"\n## {environment['gpu']}, {environment['tensorrt']}\n",
        f"![Ratios]({(Path('images') / f'performance-{path.stem}.svg').as_posix()})\n",
        "| id | ratio | ours | reference | measured | what |",
        "|---|---|---|---|---|---|",
    ]
    for r in data["records"]:
        low, high = r["spread"]
        lines.append(
            f"| {r['id']} | **{r['ratio']:.2f}** ({low:.2f}–{high:.2f}) | {number(r['ours'])} {r['unit']} "
            f"| {number(r['reference'])} {r['unit']} | {r['date']} | {r['what']} |"
        )
    return "\n".join(lines) + "\n"


def conformance() -> str:
    """What ONNX's own node tests came to, and every failure by name."""
    data = json.loads((ROOT / "benchmarks" / "results" / "onnx_conformance.json").read_text())
    environment = data["environment"]
    lines = [
        "\n## ONNX's node tests\n",
        f"{len(data['tests']):,} backend node tests of onnx {environment['onnx']} through `trtrun.load`, "
        f"{environment['tensorrt']} on one {environment['gpu']}: **{data['passed']:,} passed**, {data['refused']:,} "
        f"were refused with a reason ({data['refused_by']['TensorRT']:,} by TensorRT-RTX in its own words, "
        f"{data['refused_by']['trtrun']:,} by trtrun because TensorRT-RTX aborts there or answers wrongly), "
        f"**{data['failed']} failed**. 16 pass because `building/rewrites.py` writes them another way.",
    ]
    again = sum("environment" in test for test in data["tests"].values())
    if again:
        lines.append(f"{again} of them were run again later; the others are of {environment['date']}.")
    lines.append("")
    if data["failed"]:
        lines += ["| test | what happened |", "|---|---|"]
    for name, test in data["tests"].items():
        if test["result"] == "failed":
            lines.append(f"| {name} | {test['reason'].splitlines()[0][:90]} |")
    return "\n".join(lines) + "\n"


def models() -> str:
    """Networks in the wild by precision, and the engine cache; empty as long as they were not measured."""
    path = ROOT / "benchmarks" / "results" / "models.json"
    if not path.exists():
        return ""
    data = json.loads(path.read_text())
    environment = data["environment"]
    lines = [
        "\n## Real models\n",
        f"Networks that packages ship, on photographs and text, {environment['tensorrt']} on one {environment['gpu']}, "
        f"compared with ONNX Runtime {environment['onnxruntime']} in fp32 on the CPU. The cosine is the least over "
        "pictures and outputs. *Agrees*: cosine ≥ 0.9999 (fp32), 0.999 (fp16), 0.95 (fp8, int8), and the same "
        "class, text, or boxes and masks at IoU ≥ 0.95. Engines were built on a machine without a GPU, but for "
        "ResNet-50's. `fp32` is what `trtrun build` makes, which TensorRT-RTX multiplies in TF32: its 10 bits are "
        "felt by CenterFace and U²-Netp on a page of text, and move one of the 61 boxes that YOLOX finds there. These "
        "three are judged by `fp32_exact`, the same with `--no-tf32`, whose products are sums of three; the column "
        "against the first says what that costs. Models that are missing "
        "here have not been measured. Times are p50 from NumPy to NumPy. `fp8_fp16` is the fp8 model with the "
        "other operators in fp16. In 8 bits EfficientNet-Lite0 has the expansions of its last three blocks and the "
        "head's convolution, a quarter of its weights. One photograph shows a cat whose two likeliest kinds are 0.08 "
        "apart in fp32's logits: fp8 on the GPU keeps their order, `fp8_fp16` does not, and in ONNX Runtime every "
        "choice of layers turned it round. With all convolutions in fp8 the least cosine is 0.79. ResNet-50 has "
        "random weights and batch 8.\n",
        "| id | built | agrees | cosine | p50 | against the first | notes |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in data["records"]:
        agrees = {True: "yes", False: "**no**", None: "with TF32, see exact" if "judged_by" in r else "–"}[r["agrees"]]
        near = f"{r['cosine']:.6f}" if "cosine" in r else "–"
        p50 = f"{number(r['p50_us'])} µs" if "p50_us" in r else "–"
        gain = f"{r['vs_first']:.2f}" if "vs_first" in r else "–"
        shown = ("build_seconds", "second_seconds", "fresh_process_seconds", "ratios", "builds", "entries")
        notes = "; ".join(f"{key.replace('_', ' ')} {r[key]}" for key in shown if key in r and "cosine" not in r)
        reason = " ".join(str(r.get("reason", "")).split()).replace("|", "/")
        notes = "; ".join(filter(None, [notes, reason[:160]]))
        built = "yes" if r["built"] else "**no**"
        lines.append(f"| {r['id']} | {built} | {agrees} | {near} | {p50} | {gain} | {notes} |")
    return "\n".join(lines) + "\n"


def plot(path: Path) -> None:
    records = [
        r
        for r in json.loads(path.read_text())["records"]
        if r["unit"] != "bytes" and not r["id"].startswith(SMALLER_IS_BETTER)
    ]
    records.sort(key=lambda r: r["ratio"])
    figure, axes = plt.subplots(figsize=(9, 0.3 * len(records) + 1), layout="constrained")
    for y, r in enumerate(records):
        low, high = r["spread"]
        color = "#2e7d32" if r["ratio"] >= 1 else "#b26a00"
        axes.barh(y, r["ratio"] - 1, left=1, color=color, alpha=0.85)  # a logarithmic axis has no 0 to begin from
        axes.plot([low, high], [y, y], color="black", linewidth=1)
        axes.text(max(high, r["ratio"], 1) * 1.04, y, f"{r['ratio']:.2f}", va="center", fontsize=8)
    axes.set_xscale("log")
    axes.set_xticks([0.5, 1, 2, 5, 10, 20], ["0.5", "1", "2", "5", "10", "20"])
    lows, highs = zip(*(r["spread"] for r in records), strict=True)
    axes.set_xlim(min(0.5, 0.8 * min(lows)), 1.6 * max(highs))
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_yticks(range(len(records)), [r["id"] for r in records], fontsize=8)
    axes.set_ylim(-0.6, len(records) - 0.4)
    axes.set_xlabel("ratio (larger is better; the line is the spread of the rounds)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "images" / f"performance-{path.stem}.svg", metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    plt.rcParams["svg.hashsalt"] = "trtrun"  # the same figures give the same file
    stored = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    paths = [path for path in stored if path.stem != "models" and "records" in json.loads(path.read_text())]
    for path in paths:
        plot(path)
    (DOCS / "performance.md").write_text(HEAD + "".join(map(table, paths)) + models() + conformance())
