"""``trtrun quantize``: an ONNX model with Q/DQ nodes, calibrated on the user's own data."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from .console import plain_console
from .options import HeadName, InputSize, parse_size


def command(
    model: Annotated[Path, typer.Argument(help="The fp32 ONNX file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="What the model is used on: a folder of pictures; or of .npz files with an array per input, or .npy "
            "files for a single input; or one such file."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the quantized ONNX file; beside the model.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp8 (GPUs from compute capability 8.9 on) or int8 (full TensorRT).")
    ] = "fp8",
    keep: Annotated[list[str] | None, typer.Option(help="Node that stays in fp32; several allowed.")] = None,
    head: HeadName = None,
    task: Annotated[
        str | None, typer.Option(help="What the model is for, where outputs and metadata do not say: detect, obb, …")
    ] = None,
    size: InputSize = None,
) -> None:
    """Write the model with Q/DQ nodes, as TensorRT takes int8 and fp8; then build it with trtrun build.

    Pictures are brought into the input as trtrun detect does it: as the head wants it, or as --head, --task and
    --size say.
    """
    from ..building.files import check_target, write_atomic
    from ..building.onnx_check import check_model
    from ..building.quantization import quantize

    if precision not in ("fp8", "int8"):
        raise InputError(f"--precision is fp8 or int8, got {precision!r}.")
    if not data.exists():
        raise InputError(f"{str(data)!r} does not exist.")
    arrays = sorted(data.iterdir()) if data.is_dir() else [data]
    arrays = [file for file in arrays if file.suffix in (".npz", ".npy")]
    if arrays and (head or task or size):
        raise InputError(
            "--head, --task and --size say how pictures are prepared, and --data holds arrays. Leave them out."
        )
    requests = _arrays(model, arrays) if arrays else _pictures(model, data, head, task, size)
    target = output or model.with_name(f"{model.stem}.{precision}.onnx")
    check_target(target, [model, data, *arrays, *(check_model(model) if target.exists() else ())])
    count = 0

    def counted() -> Iterator[dict[str, Any]]:
        nonlocal count
        for request in requests:
            count += 1
            yield request

    progress = plain_console(stderr=True)
    with progress.status("calibrating"):
        files = [str(file) for file in arrays]
        quantized = quantize(model, counted(), precision=precision, keep=keep or (), files=files)  # type: ignore[arg-type]
        write_atomic(target, quantized)
    typer.echo(f"{target}: {len(quantized):,} bytes, {precision}, calibrated with {count} requests")
    typer.echo(f"See what it costs in accuracy: trtrun compare {shlex.join([str(model), str(target)])}")


def _arrays(model: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    from ..building.onnx_check import check_model
    from ..building.onnx_file import read_model
    from ..building.rewrites import graph_inputs
    from .options import read_arrays, read_npz

    check_model(model)
    names = [value.name for value in graph_inputs(read_model(model).graph)]
    for file in files:
        yield read_npz(file) or {} if file.suffix == ".npz" else read_arrays([str(file)], names)


def _pictures(
    model: Path, source: Path, head: str | None, kind: str | None, size: str | None
) -> Iterator[dict[str, Any]]:
    from ..onnx_runtime import OnnxRuntimeSession
    from ..vision import task
    from ..vision.sources import read

    with OnnxRuntimeSession(model) as runner:
        prepared = task(runner, kind, head=head, size=None if size is None else parse_size(size))
        batch = prepared.batch_limit or 1  # a network of a fixed batch is calibrated on full ones
        ready: list[Any] = []
        for item in read(str(source)):
            if item.picture is None:
                plain_console(stderr=True).print(
                    f"{item.name} is left out: {item.error}", style="yellow", soft_wrap=True
                )
                continue
            ready.append(item.picture)
            if len(ready) == batch:
                yield prepared.request(ready)[0]
                ready = []
        if ready:
            yield prepared.request([ready[index % len(ready)] for index in range(batch)])[0]
