"""``trtrun bench``: trtexec's figures for an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def command(
    model: Annotated[Path, typer.Argument(help="The engine.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SHAPE of a dynamic input, like images=8x3x224x224; the shape tuned for unless given."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="NAME=FILE.npy: these values instead of random ones."),
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="Inference streams, each with a context of its own.")] = 1,
    graph: Annotated[bool, typer.Option(help="Launch the engine as a CUDA graph.")] = True,
    transfers: Annotated[bool, typer.Option(help="Copy inputs in and outputs out.")] = True,
    spin: Annotated[bool, typer.Option("--spin", help="Wait for the GPU by polling instead of sleeping.")] = False,
    duration: Annotated[float, typer.Option(min=0, help="Seconds to measure at least.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0, help="Milliseconds before inferences count.")] = 200.0,
    iterations: Annotated[int, typer.Option(min=1, help="Inferences per stream to measure at least.")] = 10,
    device: Annotated[int, typer.Option(help="Ordinal of the GPU.")] = 0,
    plugin: Annotated[list[Path] | None, typer.Option(help="Plugin library to load first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page with histograms and a timeline here.")] = None,
) -> None:
    """Measure an engine as trtexec does: throughput, latency, enqueue, transfers, GPU compute."""
    from rich.console import Console

    from .. import benchmark
    from ..engine import Engine
    from .run import read_arrays

    options = benchmark.BenchOptions(streams, graph, transfers, spin, duration, warmup, iterations)
    shapes = parse_fixed_shapes(shape or ())
    progress = Console(stderr=True)
    # Lines, not a spinner: what animates would take the interpreter from the loop that is measured.
    progress.print(f"loading {model}", style="dim", highlight=False)
    with Engine(model, device=device, plugins=plugin or ()) as engine:
        values = read_arrays(inputs or [], list(engine.inputs))
        progress.print(f"measuring for {warmup / 1e3 + duration:.1f} s or more", style="dim", highlight=False)
        measurement = benchmark.measure(engine, shapes=shapes, values=values, options=options)
    if report is not None:
        report.write_text(benchmark.html(measurement), encoding="utf-8")
        progress.print(f"wrote {report}", style="dim", highlight=False)
    typer.echo(json.dumps(measurement.as_json(), indent=2) if as_json else benchmark.text(measurement))


def parse_fixed_shapes(texts: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of ``NAME=SHAPE`` texts."""
    from ..building.options import parse_shape
    from ..errors import ShapeError

    shapes = {}
    for text in texts:
        name, _, dims = text.rpartition("=")
        if not name or not dims:
            raise ShapeError(f"cannot read --shape {text!r}: write NAME=SHAPE, like images=8x3x224x224.")
        shapes[name] = parse_shape(dims, text)
    return shapes
