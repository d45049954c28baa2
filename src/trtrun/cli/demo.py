"""``trtrun demo``: real networks on real photographs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from .console import plain_console


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the networks and the pictures.")] = Path(
        "trtrun-demo"
    ),
    repetitions: Annotated[int, typer.Option(min=1, help="Repetitions per picture; the table shows medians.")] = 10,
) -> None:
    """Find faces with an engine built here, name a picture, cut out a foreground: annotated pictures and a table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    from .. import demo
    from ..building.files import check_folder
    from ..cuda.device import gpu_count, why_no_gpu
    from ..onnx_runtime import OnnxRuntimeSession
    from ..plan import identify_file
    from ..predictor import load
    from ..runner import Runner
    from .progress import build_progress

    check_folder(out)
    console = plain_console()

    def say(title: str, text: str) -> None:
        console.print(Text.assemble((title, "bold"), text), soft_wrap=True)  # paths stay whole, to be copied

    demo.prepare(out)
    with build_progress(console) as progress:
        start = time.perf_counter()
        engine = demo.build_engine(out, progress=progress)
        seconds = time.perf_counter() - start
    say("engine", f"   {engine}: CenterFace, {identify_file(engine)}, built in {seconds:.2f} s")
    runner: Runner
    if gpu_count():
        runner = load(engine)
    else:
        console.print(
            f"The engine was built but cannot run here: {why_no_gpu()}. "
            "The same network runs through ONNX Runtime on the CPU instead.",
            style="yellow",
            soft_wrap=True,
        )
        runner = OnnxRuntimeSession(out / "centerface.onnx")
    with runner:
        say("runs on", f"  {runner.backend}")
        with console.status("looking for faces"):
            results = demo.detect_all(runner, repetitions=repetitions)
    paths = demo.write_pictures(results, out)
    say("pictures", " " + " ".join(map(str, paths.values())))
    caption = f"boxes in pixels; stages in milliseconds, medians of {repetitions}"
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True, caption=caption, caption_justify="left")
    table.add_column("picture", no_wrap=True)
    for title in ("size", "faces", "x1 y1 x2 y2", "score", "pre", "infer", "post"):
        table.add_column(title, justify="right", no_wrap=True)
    for result in results:
        rows = result.faces.to_json()
        height, width = result.picture.shape[:2]
        table.add_row(
            result.name,
            f"{width}×{height}",
            str(len(rows)),
            "\n".join(" ".join(f"{v:.0f}" for v in row["box"]) for row in rows),
            "\n".join(f"{row['score']:.3f}" for row in rows),
            *(f"{1e3 * t:.2f}" for t in (result.timing.preprocess, result.timing.inference, result.timing.postprocess)),
        )
    console.print(table)
    with console.status("other networks"):
        for other in demo.further(out, load if gpu_count() else OnnxRuntimeSession):
            milliseconds = 1e3 * (other.timing.preprocess + other.timing.inference + other.timing.postprocess)
            say(other.task, f" {other.path}: {other.says}")
            say("", f"  {other.network}, {milliseconds:.1f} ms, {other.backend}")
