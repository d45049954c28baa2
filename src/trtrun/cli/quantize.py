"""``trtrun quantize``: an ONNX model with Q/DQ nodes, calibrated on the user's own data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError


def command(
    model: Annotated[Path, typer.Argument(help="The fp32 ONNX file.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Typical requests: a folder of .npz files with an array per input (or .npy files for one input), or "
            "one such file."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where to write the quantized ONNX file; beside the model.")
    ] = None,
    precision: Annotated[
        str, typer.Option(help="fp8 (GPUs from compute capability 8.9 on) or int8 (full TensorRT).")
    ] = "fp8",
    keep: Annotated[list[str] | None, typer.Option(help="Node that stays in fp32; several allowed.")] = None,
) -> None:
    """Write the model with Q/DQ nodes, as TensorRT takes int8 and fp8; then build it with trtrun build."""
    from rich.console import Console

    from ..building.files import write_atomic
    from ..building.quantization import quantize

    if precision not in ("fp8", "int8"):
        raise InputError(f"--precision is fp8 or int8, got {precision!r}.")
    files = sorted(data.iterdir()) if data.is_dir() else [data]
    files = [file for file in files if file.suffix in (".npz", ".npy")]
    if not files:
        raise InputError(f"{str(data)!r} holds no .npz or .npy file to calibrate with.")
    target = output or model.with_name(f"{model.stem}.{precision}.onnx")
    progress = Console(stderr=True)
    with progress.status(f"calibrating with {len(files)} requests"):
        quantized = quantize(model, _requests(model, files), precision=precision, keep=keep or ())  # type: ignore[arg-type]  # checked above
        write_atomic(target, quantized)
    typer.echo(f"{target}: {len(quantized):,} bytes, {precision}, calibrated with {len(files)} requests")


def _requests(model: Path, files: list[Path]) -> Iterator[dict[str, Any]]:
    import onnx

    from .options import read_arrays, read_npz

    graph = onnx.load(str(model), load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    names = [value.name for value in graph.input if value.name not in weights]
    for file in files:
        yield read_npz(file) or {} if file.suffix == ".npz" else read_arrays([str(file)], names)
