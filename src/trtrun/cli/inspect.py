"""``trtrun inspect``: what a plan or an ONNX file contains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from . import bundle
from .console import plain_console
from .options import AsJson


def command(
    model: Annotated[Path, typer.Argument(help="A plan, an ONNX file or a bundle.")],
    as_json: AsJson = False,
) -> None:
    """Show what is in a plan, an ONNX file or a bundle. What the file itself says needs neither a GPU nor TensorRT."""
    from ..bundle import is_bundle
    from ..inspection import inspect

    if not as_json and is_bundle(model):
        bundle.show(model)
        return
    facts = inspect(model)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
    else:
        _print(facts)


def _print(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from ..tensor_spec import shape_text

    console = plain_console()
    tensors = {key: facts.pop(key, None) for key in ("inputs", "outputs")}
    layers = facts.pop("layers", None)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), _text(key, value))
    console.print(table)
    for title, rows in tensors.items():
        if rows is None:
            continue
        grid = Table("name", "dtype", "shape", title=title, title_justify="left", title_style="bold")
        ranged = any(row.get("profiles") for row in rows)
        if ranged:
            grid.add_column("optimization profiles")
        for row in rows:
            cells = [row["name"], row["dtype"], shape_text(row["shape"])]
            if ranged:
                cells.append(
                    "\n".join("…".join(shape_text(p[k]) for k in ("min", "opt", "max")) for p in row["profiles"])
                )
            grid.add_row(*cells)
        console.print(grid)
    if facts["kind"] == "plan" and tensors["inputs"] is None:
        console.print(
            "inputs and outputs are not shown: only an engine that is loaded tells them, and this one cannot be loaded "
            "here. See them where it can be, or in the ONNX file that it was built from: trtrun inspect model.onnx",
            soft_wrap=True,
        )
    if layers:
        grid = Table("", "layer", "kind", title=f"{len(layers)} layers", title_justify="left", title_style="bold")
        for index, layer in enumerate(layers):
            named = layer if isinstance(layer, dict) else {"Name": str(layer)}
            grid.add_row(str(index), str(named.get("Name", "")), str(named.get("LayerType", "")))
        console.print(grid)


def _text(key: str, value: Any) -> str:
    if key == "compute_capabilities" and "other" in value:
        named = [capability for capability in value if capability != "other"]
        return ", ".join([*named, "and others, as in every engine that was built for all GPUs"])
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and key not in ("ir_version",):
        return f"{value:,}"
    return "none" if value is None else str(value)
