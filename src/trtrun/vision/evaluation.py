"""How accurate a task is on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError, MissingPackageError
from .results import Classification, Detections
from .sources import PICTURE_SUFFIXES
from .task import VisionTask

_KINDS = {"detect": "bbox", "segment": "segm", "pose": "keypoints"}


def mean_average_precision(
    task: VisionTask, annotations: Path, images: Path, *, batch: int = 1, depth: int | None = None
) -> dict[str, Any]:
    """COCO's mean average precision, as pycocotools computes it.

    Args:
        task: for boxes, masks or keypoints. Its selection should let low scores through, down to 0.001.
        annotations: a COCO file. Its categories are matched with the task's names; where these do not say, the
            network's classes are the categories in the order of their ids, as the usual 80 of COCO are.
        images: the folder that ``file_name`` is relative to.
        batch, depth: see :meth:`VisionTask.stream`.

    Returns mAP (0.50 … 0.95), mAP50, mAP75, how many pictures counted and how many were unreadable, which count as
    pictures where nothing was found. Raises InputError for files and networks that do not fit.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingPackageError(
            f"faster-coco-eval cannot be imported ({error}). Run: pip install 'trtrun[eval]'"
        ) from error
    if task.head.task not in _KINDS:
        raise InputError(f"COCO has no measure for the task {task.head.task!r}. It has for {', '.join(_KINDS)}.")
    try:
        data = json.loads(annotations.read_text())
        files = {image["id"]: images / image["file_name"] for image in data["images"]}
        categories = {int(entry["id"]): str(entry["name"]) for entry in data["categories"]}
        if not data["annotations"]:
            raise ValueError("no annotations")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"cannot read {str(annotations)!r} as COCO annotations: {error!r}.") from error
    ids = match_categories(task, categories)
    rows: list[dict[str, Any]] = []
    unreadable = 0
    pictures = list(files)
    existing = [str(files[image]) for image in pictures]
    missing = [path for path in existing if not Path(path).is_file()]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(existing)} pictures are not there, the first is {missing[0]!r}. Give --images."
        )
    for image, found in zip(pictures, task.stream(existing, batch=batch, depth=depth), strict=True):
        if found.result is None:
            unreadable += 1
        elif isinstance(found.result, Detections):
            rows += [row for row in found.result.to_coco(image, ids) if row["category_id"] is not None]
    metrics: dict[str, Any] = {"mAP": 0.0, "mAP50": 0.0, "mAP75": 0.0}
    if rows:
        truth = COCO(data)
        judge = COCOeval_faster(truth, truth.loadRes(rows), _KINDS[task.head.task], print_function=lambda *_: None)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        metrics = {name: float(judge.stats[i]) for i, name in enumerate(metrics)}
    return {**metrics, "pictures": len(files), "unreadable": unreadable}


def match_categories(task: VisionTask, categories: dict[int, str]) -> dict[int, Any]:
    """The data set's category per class of the network; None for classes that it does not have."""
    by_name = {name.lower(): number for number, name in categories.items()}
    if any(name.lower() in by_name for name in task.head.names.values()):
        return {class_id: by_name.get(name.lower()) for class_id, name in task.head.names.items()}
    ordered = sorted(categories)
    if task.head.classes not in (0, len(ordered)):
        raise InputError(
            f"the network has {task.head.classes} classes and the data set {len(ordered)} categories, and no name says "
            "which is which. Give the network's names: --labels."
        )
    return dict(enumerate(ordered))


def top_k(task: VisionTask, folder: Path, *, batch: int = 1, depth: int | None = None) -> dict[str, Any]:
    """Shares of the pictures whose class is the likeliest, or among the five likeliest.

    Every folder in ``folder`` holds the pictures of one class: its name is the class's name, or its number, or else
    the folders are the classes in the order of their names, as torchvision's ImageFolder has them. Unreadable pictures
    count as wrong. Raises InputError when folders and classes do not fit.
    """
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    numbers = {name.lower(): number for number, name in task.head.names.items()}
    if all(name.lower() in numbers for name in classes):
        wanted = {name: numbers[name.lower()] for name in classes}
    elif classes and all(name.isdecimal() for name in classes):
        wanted = {name: int(name) for name in classes}
    elif len(classes) == task.head.classes:
        wanted = {name: index for index, name in enumerate(classes)}
    else:
        raise InputError(
            f"{str(folder)!r} has {len(classes)} folders and the network {task.head.classes} classes, and no name says "
            "which is which. Name the folders by class name or number, or give the network's names: --labels."
        )
    files = [
        (path, wanted[name])
        for name in classes
        for path in sorted((folder / name).iterdir())
        if path.suffix.lower() in PICTURE_SUFFIXES
    ]
    if not files:
        raise InputError(f"there is no picture in the folders of {str(folder)!r}.")
    first = five = unreadable = 0
    stream = task.stream([path for path, _ in files], batch=batch, depth=depth)
    for (_, number), found in zip(files, stream, strict=True):
        if not isinstance(found.result, Classification):
            unreadable += 1
            continue
        ranked = found.result.class_ids.tolist()
        first += ranked[0] == number
        five += number in ranked[:5]
    return {"top1": first / len(files), "top5": five / len(files), "pictures": len(files), "unreadable": unreadable}
