"""``trtrun run``: one request, arrays from files to files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import AsJson, Device, Plugins, read_arrays


def command(
    model: Annotated[Path, typer.Argument(help="A plan, or an ONNX file.")],
    inputs: Annotated[
        list[str], typer.Option("--input", "-i", help="NAME=FILE.npy, once per input; FILE.npy for a single input.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for NAME.npy of every output.")] = Path(
        "outputs"
    ),
    device: Device = 0,
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """Run one request: read .npy files, run the model, write a .npy file per output."""
    import numpy as np

    from ..predictor import load

    with load(model, device=device, plugins=plugin or ()) as runner:
        arrays = read_arrays(inputs, list(runner.inputs))
        start = time.perf_counter()
        results = runner.run(arrays)
        seconds = time.perf_counter() - start
        backend = runner.backend
    output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for name, array in results.items():
        # Tensor names may hold slashes and colons, which file names may not.
        path = output / ("".join(c if c.isalnum() or c in "._-" else "_" for c in name) + ".npy")
        np.save(path, array)
        rows.append({"name": name, "dtype": array.dtype.name, "shape": list(array.shape), "file": str(path)})
    if as_json:
        typer.echo(json.dumps({"backend": backend, "seconds": seconds, "outputs": rows}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("output", "dtype", "shape", "file")
    for row in rows:
        table.add_row(row["name"], row["dtype"], "×".join(map(str, row["shape"])) or "scalar", row["file"])
    console = Console()
    console.print(table)
    console.print(f"{backend}: first request {seconds * 1e3:.2f} ms", highlight=False)
