"""``trtrun eval``: how accurate a model is on a data set, to compare an engine with its ONNX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .console import plain_console
from .options import (
    AsJson,
    Batch,
    Device,
    HeadName,
    InputShapes,
    InputSize,
    Labels,
    Model,
    Plugins,
    load_model,
    parse_size,
    read_labels,
)


def command(
    data: Annotated[Path, typer.Argument(help="COCO annotations (.json), or a folder with one folder per class.")],
    model: Model,
    images: Annotated[
        Path | None, typer.Option("--images", help="Folder of the annotated pictures; else that of the annotations.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="detect, segment or pose with COCO annotations, of which detect is the default."),
    ] = None,
    head: HeadName = None,
    size: InputSize = None,
    input_shape: InputShapes = None,
    batch: Batch = 1,
    labels: Labels = None,
    as_json: AsJson = False,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Measure mAP on COCO annotations, or top-1 and top-5 on a folder per class."""
    from .. import vision
    from ..errors import InputError
    from ..vision.evaluation import mean_average_precision, top_k

    if not data.exists():
        raise InputError(f"there is no {str(data)!r}. Give COCO annotations (.json), or a folder with one per class.")
    if data.is_dir():
        given = {"--task": task not in (None, "classify"), "--images": images is not None, "--head": head is not None}
        if any(given.values()):
            raise InputError(
                f"{str(data)!r} is a folder, for which classification is measured. Leave out "
                f"{', '.join(option for option, is_given in given.items() if is_given)}, or give COCO annotations."
            )
    console = plain_console(stderr=True)
    names = None if labels is None else dict(enumerate(read_labels(labels)))
    wanted = None if size is None else parse_size(size)
    with load_model(model, device, plugin, input_shape, wanted) as runner:
        depth = 1 if runner.backend.startswith("ONNX Runtime") else None
        if data.is_dir():
            work = vision.classifier(runner, size=wanted, names=names, top=5)
            with console.status("classifying"):
                metrics = top_k(work, data, batch=batch, depth=depth)
        else:
            # As mAP is defined: every class of a box counts, down to the lowest scores.
            every = {"score_threshold": 0.001, "multi_label": True}  # all else is the head's own
            work = vision.task(runner, task or "detect", head=head, size=wanted, names=names, selection=every)
            with console.status("detecting"):
                metrics = mean_average_precision(work, data, images or data.parent, batch=batch, depth=depth)
        backend = runner.backend
    if as_json:
        typer.echo(json.dumps({"backend": backend, "metrics": metrics}, indent=2))
    else:
        for name, value in metrics.items():
            typer.echo(f"{name:10} {value:.4f}" if isinstance(value, float) else f"{name:10} {value}")
        console.print(f"{work.head} on {backend}")
    if metrics["unreadable"]:
        raise typer.Exit(1)
