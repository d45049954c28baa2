"""``trtrun profile``: what each layer costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def command(
    model: Annotated[Path, typer.Argument(help="A plan; layers have names if it was built with --detailed.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SHAPE of a dynamic input, like images=8x3x224x224; the shape tuned for unless given."),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", help="NAME=FILE.npy: these values instead of random ones."),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs to take medians over.")] = 50,
    top: Annotated[int, typer.Option(min=1, help="How many of the slowest layers to print.")] = 20,
    device: Annotated[int, typer.Option(help="Ordinal of the GPU.")] = 0,
    plugin: Annotated[list[Path] | None, typer.Option(help="Plugin library to load first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    report: Annotated[Path | None, typer.Option(help="Write a page with a bar per layer here.")] = None,
) -> None:
    """Time an engine layer by layer."""
    from rich.console import Console

    from ..benchmark.layers import layers_html, layers_text, profile_layers
    from ..engine import Engine
    from .bench import parse_fixed_shapes
    from .run import read_arrays

    with Engine(model, device=device, plugins=plugin or ()) as engine:
        values = read_arrays(inputs or [], list(engine.inputs))
        profile = profile_layers(engine, shapes=parse_fixed_shapes(shape or ()), values=values, runs=runs)
    if report is not None:
        report.write_text(layers_html(profile), encoding="utf-8")
        Console(stderr=True).print(f"wrote {report}", style="dim", highlight=False)
    typer.echo(json.dumps(profile.as_json(), indent=2) if as_json else layers_text(profile, top))
