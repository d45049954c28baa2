"""``trtrun compare``: whether two models compute the same, and where they part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import plain_console
from .options import AsJson, Plugins, parse_named_shapes, parse_ranges, read_npz, refuse_idle, write_page

if TYPE_CHECKING:
    from ..comparison import Comparison


def command(
    a: Annotated[Path, typer.Argument(help="The reference: an ONNX file (ONNX Runtime, CPU) or an engine.")],
    b: Annotated[Path | None, typer.Argument(help="What is compared; A built into an engine unless given.")] = None,
    build: Annotated[bool, typer.Option("--build", help="Build B, an ONNX file, into an engine first.")] = False,
    inputs: Annotated[Path | None, typer.Option(help="FILE.npz with an array per input name; others random.")] = None,
    shape: Annotated[
        list[str] | None, typer.Option(help="NAME=SHAPE of a random input, like images=8x3x224x224.")
    ] = None,
    value_range: Annotated[
        list[str] | None, typer.Option("--range", help="NAME=LOW:HIGH of a random input, like images=0:255.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the random inputs.")] = 0,
    l2: Annotated[
        float | None, typer.Option(min=0, help="Largest relative L2 of an output; 0.01 unless a bound is given.")
    ] = None,
    cosine: Annotated[float | None, typer.Option(min=-1, max=1, help="Smallest cosine similarity.")] = None,
    max_abs: Annotated[float | None, typer.Option(min=0, help="Largest absolute difference.")] = None,
    max_rel: Annotated[float | None, typer.Option(min=0, help="Largest relative difference.")] = None,
    atol: Annotated[
        float, typer.Option(min=0, help="A tensor with no absolute difference above this always agrees.")
    ] = 1e-6,
    layers: Annotated[bool, typer.Option("--layers", help="Compare every layer also when outputs agree.")] = False,
    report: Annotated[
        Path | None, typer.Option(help="Write a page with the error of every layer here; implies --layers.")
    ] = None,
    input_shape: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SHAPE: replace the shape that an ONNX file declares, -1 where dynamic."),
    ] = None,
    tf32: Annotated[bool, typer.Option(help="Allow TF32 in engines that are built.")] = True,
    fp16: Annotated[
        bool,
        typer.Option("--fp16", help="Engines that are built are fp16; say it for one that was, to compare its layers."),
    ] = False,
    bf16: Annotated[bool, typer.Option("--bf16", help="The same in bf16.")] = False,
    keep_fp32: Annotated[
        list[str] | None,
        typer.Option(help="With --fp16, --bf16: operator or node that stays in fp32; several allowed."),
    ] = None,
    device: Annotated[int | None, typer.Option(help="Ordinal of the GPU; 0 unless given.")] = None,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Compare the outputs of two models for one request; where they differ, find the first layer that does.

    Exit code 1 when an output misses the tolerance, 2 when the models cannot be compared.
    """
    from .. import comparison
    from ..building.files import check_target
    from ..building.options import BuildOptions
    from ..errors import InputError
    from ..plan import is_onnx_file

    engines_only = {
        "--device": device is not None,
        "--plugin": bool(plugin),
        "--no-tf32": not tf32,
        "--fp16": fp16,
        "--bf16": bf16,
        "--keep-fp32": bool(keep_fp32),
    }
    onnx = [is_onnx_file(path) for path in (a, b) if path is not None]
    if b is not None and not build and all(onnx):
        refuse_idle(engines_only, "on two ONNX files, which ONNX Runtime runs on the CPU (--build builds the second)")
    if not any(onnx):
        del engines_only["--device"], engines_only["--plugin"]
        refuse_idle({**engines_only, "--input-shape": bool(input_shape)}, "on engines that are built already")
    if report is not None:
        check_target(report, [path for path in (a, b, inputs) if path is not None], InputError)
    bounds = (l2, cosine, max_abs, max_rel)
    default = comparison.Tolerance().l2 if all(bound is None for bound in bounds) else None
    progress = plain_console(stderr=True)
    with progress.status("comparing"):
        result = comparison.compare(
            a,
            b,
            build=build,
            inputs=read_npz(inputs),
            shapes=parse_named_shapes(shape or (), "--shape"),
            ranges=parse_ranges(value_range or ()),
            seed=seed,
            tolerance=comparison.Tolerance(default if l2 is None else l2, cosine, max_abs, max_rel, atol),
            layers=layers or report is not None,
            build_options=BuildOptions(
                input_shapes=parse_named_shapes(input_shape or (), "--input-shape"),
                tf32=tf32,
                fp16=fp16,
                bf16=bf16,
                keep_fp32=tuple(keep_fp32 or ()),
                plugins=tuple(plugin or ()),
            ),
            device=device or 0,
            plugins=plugin or (),
        )
    if report is not None:
        write_page(report, comparison.html(result), progress)
    if as_json:
        typer.echo(json.dumps(result.as_json(), indent=2))
    else:
        _print(result)
    if not result.within:
        raise typer.Exit(1)


def _print(result: Comparison) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from ..comparison.report import COLUMNS, cells
    from ..tensor_spec import shape_text

    console = plain_console()
    console.print(f"reference  {result.models[0]}: {result.backends[0]}", soft_wrap=True)
    console.print(f"compared   {result.models[1]}: {result.backends[1]}", soft_wrap=True)
    for name, (dtype, shape, source) in result.inputs.items():
        console.print(f"input      {name}: {dtype} {shape_text(shape)}, {source}", soft_wrap=True)
    console.print(f"tolerance  {result.tolerance}", soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("output", overflow="fold")
    for title in COLUMNS:
        table.add_column(title, justify="right", no_wrap=not title.startswith("shape"))
    for output in result.outputs:
        table.add_row(output.name, *cells(output), style=None if output.within else "red")
    console.print(table)
    for index, sentence in enumerate(result.findings()):
        console.print(sentence, style=("green" if result.within else "red") if index == 0 else None, soft_wrap=True)
