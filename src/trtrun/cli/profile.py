"""``trtrun profile``: what each layer costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import plain_console
from .options import AsJson, Device, InputFiles, Plugins, Shapes, need_gpu, parse_named_shapes, read_arrays, write_page


def command(
    model: Annotated[Path, typer.Argument(help="A plan; layers have names if it was built with --detailed.")],
    shape: Shapes = None,
    inputs: InputFiles = None,
    runs: Annotated[int, typer.Option(min=1, help="Runs to take medians over.")] = 50,
    top: Annotated[int, typer.Option(min=1, help="How many of the slowest layers to print.")] = 20,
    device: Device = 0,
    plugin: Plugins = None,
    as_json: AsJson = False,
    report: Annotated[Path | None, typer.Option(help="Write a page with a bar per layer here.")] = None,
) -> None:
    """Time an engine layer by layer."""
    from ..benchmark.layers import layers_html, layers_text, profile_layers
    from ..building.files import check_target
    from ..engine import Engine
    from ..errors import InputError

    need_gpu()
    if report is not None:
        check_target(report, [model], InputError)
    with Engine(model, device=device, plugins=plugin or ()) as engine:
        values = read_arrays(inputs or [], list(engine.inputs))
        profile = profile_layers(engine, shapes=parse_named_shapes(shape or (), "--shape"), values=values, runs=runs)
    if report is not None:
        write_page(report, layers_html(profile), plain_console(stderr=True))
    typer.echo(json.dumps(profile.as_json(), indent=2) if as_json else layers_text(profile, top))
