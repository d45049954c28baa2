"""``trtrun run``: one request, arrays from files to files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import plain_console
from .options import AsJson, Device, InputShapes, Plugins, load_model, read_arrays


def command(
    model: Annotated[Path, typer.Argument(help="A plan, or an ONNX file.")],
    inputs: Annotated[
        list[str], typer.Option("--input", "-i", help="NAME=FILE.npy, once per input; FILE.npy for a single input.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.npy of every output.")] = Path(
        "outputs"
    ),
    debug: Annotated[
        str | None,
        typer.Option(help="NAME,NAME…: tensors inside the network, marked when it was built, to write as well."),
    ] = None,
    input_shape: InputShapes = None,
    device: Device = 0,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Run one request: read .npy files, run the model, write a .npy file per output."""
    from ..building.files import check_folder, check_target
    from ..debug_tensors import debug_tensors
    from ..errors import InputError
    from ..session import Session

    check_folder(output)
    inside: dict[str, Any] = {}
    with load_model(model, device, plugin, input_shape, pictures=False) as runner:
        arrays = read_arrays(inputs, list(runner.inputs))
        if output.is_dir():
            read = [text.rpartition("=")[2] for text in inputs]
            for name in (*runner.outputs, *(debug.split(",") if debug else ())):
                check_target(_path(output, name), read, InputError)
        start = time.perf_counter()
        results = runner.run(arrays)
        seconds = time.perf_counter() - start
        backend = runner.backend
        if debug is not None:
            if not isinstance(runner, Session):
                raise InputError(
                    f"--debug reads tensors inside an engine, and {model} runs on {backend}. Run it on a GPU, or see "
                    "every layer with trtrun compare --layers."
                )
            inside = debug_tensors(runner.engine, arrays, debug.split(","))
    output.mkdir(parents=True, exist_ok=True)
    rows, debug_rows = _save(results, output), _save(inside, output)
    if as_json:
        facts = {"backend": backend, "seconds": seconds, "outputs": rows}
        typer.echo(json.dumps(facts if debug is None else {**facts, "debug_tensors": debug_rows}, indent=2))
        return
    from rich.table import Table

    from ..tensor_spec import shape_text

    table = Table("output", "dtype", "shape", "file")
    for row in (*rows, *debug_rows):
        table.add_row(row["name"], row["dtype"], shape_text(row["shape"]), row["file"])
    console = plain_console()
    console.print(table)
    console.print(f"{backend}: first request {seconds * 1e3:.2f} ms")


def _path(folder: Path, name: str) -> Path:
    """Where a tensor is written: names may hold slashes and colons, which those of files may not."""
    return folder / ("".join(c if c.isalnum() or c in "._-" else "_" for c in name) + ".npy")


def _save(arrays: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Write each array to ``folder``, and say what and where."""
    import numpy as np

    rows = []
    for name, array in arrays.items():
        path = _path(folder, name)
        np.save(path, array)
        rows.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": str(path)})
    return rows
