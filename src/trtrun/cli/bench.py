"""``trtrun bench``: trtexec's figures for an engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import plain_console
from .options import AsJson, Device, InputFiles, Plugins, Shapes, need_gpu, parse_named_shapes, read_arrays, write_page


def command(
    model: Annotated[Path, typer.Argument(help="The engine.")],
    shape: Shapes = None,
    inputs: InputFiles = None,
    streams: Annotated[int, typer.Option(min=1, help="Inference streams, each with a context of its own.")] = 1,
    graph: Annotated[bool, typer.Option(help="Launch the engine as a CUDA graph.")] = True,
    transfers: Annotated[bool, typer.Option(help="Copy inputs in and outputs out.")] = True,
    spin: Annotated[bool, typer.Option("--spin", help="Wait for the GPU by polling instead of sleeping.")] = False,
    duration: Annotated[float, typer.Option(min=0, help="Seconds to measure at least.")] = 3.0,
    warmup: Annotated[float, typer.Option(min=0, help="Milliseconds before inferences count.")] = 200.0,
    iterations: Annotated[int, typer.Option(min=1, help="Inferences per stream to measure at least.")] = 10,
    device: Device = 0,
    plugin: Plugins = None,
    as_json: AsJson = False,
    report: Annotated[Path | None, typer.Option(help="Write a page with histograms and a timeline here.")] = None,
) -> None:
    """Measure an engine as trtexec does: throughput, latency, enqueue, transfers, GPU compute."""
    from .. import benchmark
    from ..building.files import check_target
    from ..engine import Engine
    from ..errors import InputError

    need_gpu()
    if report is not None:
        check_target(report, [model], InputError)
    options = benchmark.BenchOptions(streams, graph, transfers, spin, duration, warmup, iterations)
    shapes = parse_named_shapes(shape or (), "--shape")
    progress = plain_console(stderr=True)
    # Lines, not a spinner: what animates would take the interpreter from the loop that is measured.
    progress.print(f"loading {model}", style="dim")
    with Engine(model, device=device, plugins=plugin or ()) as engine:
        values = read_arrays(inputs or [], list(engine.inputs))
        progress.print(f"measuring for {warmup / 1e3 + duration:.1f} s or more", style="dim")
        measurement = benchmark.measure(engine, shapes=shapes, values=values, options=options)
    if report is not None:
        write_page(report, benchmark.html(measurement), progress)
    typer.echo(json.dumps(measurement.as_json(), indent=2) if as_json else benchmark.text(measurement))
