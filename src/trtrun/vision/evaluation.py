"""How accurate a task is on a data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from ..errors import InputError, MissingPackageError
from .results import Classification, Detections
from .sources import PICTURE_SUFFIXES, VIDEO_SUFFIXES
from .task import VisionTask

_KINDS = {"detect": "bbox", "segment": "segm", "pose": "keypoints"}
_KEYPOINTS = 17  # for which COCO says how exact each is to be


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
    kind = _KINDS[task.head.task]
    if kind == "keypoints" and (task.head.keypoint_shape or (0,))[0] != _KEYPOINTS:
        raise InputError(f"COCO's measure is defined for {_KEYPOINTS} keypoints, the network finds another number.")
    data = read_annotations(annotations, kind)
    files = {image["id"]: images / image["file_name"] for image in data["images"]}
    categories = {entry["id"]: entry["name"] for entry in data["categories"]}
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
        judge = COCOeval_faster(truth, truth.loadRes(rows), kind, print_function=lambda *_: None)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
        metrics = {name: float(judge.stats[i]) for i, name in enumerate(metrics)}
    return {**metrics, "pictures": len(files), "unreadable": unreadable}


def read_annotations(path: Path, kind: str) -> dict[str, list[dict[str, Any]]]:
    """The images, categories and annotations of a COCO file, each row with what measuring needs.

    Annotations are numbered anew from 1, because 0 means "none" in COCO's code; ``iscrowd`` is 0 and ``area`` the
    box's where they are missing.

    Args:
        kind: "bbox", "segm" or "keypoints".

    Raises InputError that counts the rows that cannot be used, and says what is wrong with the first.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # str: the repr of some has all the bytes of the file
        raise InputError(f"cannot read {str(path)!r} as COCO annotations: {error}.") from error
    images: set[Any] = set()
    categories: set[Any] = set()

    def image_problem(row: dict[str, Any]) -> str | None:
        name = row.get("file_name")
        if not isinstance(name, str):
            return "it has no file_name"
        if Path(name).suffix.lower() in VIDEO_SUFFIXES:
            return f"{name!r} is a video, not a picture"
        if kind == "segm" and not all(_is_number(row.get(side)) for side in ("width", "height")):
            return "it has no width and height"
        return _id_problem(row, images)

    def category_problem(row: dict[str, Any]) -> str | None:
        return _id_problem(row, categories) if isinstance(row.get("name"), str) else "it has no name"

    def annotation_problem(row: dict[str, Any]) -> str | None:
        for key, known in (("image_id", images), ("category_id", categories)):
            if not isinstance(row.get(key), int) or row[key] not in known:
                return f"its {key} {row.get(key)!r} is unknown"
        box = row.get("bbox")
        if not _are_numbers(box) or len(box) != 4 or min(box[2:]) < 0:
            return "its bbox is not [x, y, width, height]"
        if kind == "segm" and not _is_segmentation(row.get("segmentation")):
            return "its segmentation is neither polygons nor run lengths"
        if kind == "keypoints" and not (_are_numbers(points := row.get("keypoints")) and len(points) == 3 * _KEYPOINTS):
            return f"its keypoints are not {_KEYPOINTS} times x, y, visibility"
        return None

    for key, check in (
        ("images", image_problem), ("categories", category_problem), ("annotations", annotation_problem)
    ):  # fmt: skip
        rows = data.get(key) if isinstance(data, dict) else None
        if not isinstance(rows, list) or not rows:
            raise InputError(f"cannot read {str(path)!r} as COCO annotations: it has no list of {key}.")
        wrong = [
            (number, problem)
            for number, row in enumerate(rows)
            if (problem := check(row) if isinstance(row, dict) else "it is no object") is not None
        ]
        if wrong:
            raise InputError(
                f"cannot read {str(path)!r} as COCO annotations: {len(wrong)} of {len(rows)} {key} cannot be used. "
                f"The first is number {wrong[0][0]}, counted from 0: {wrong[0][1]}."
            )
    boxes = [row["bbox"] for row in data["annotations"]]
    data["annotations"] = [
        {"iscrowd": 0, "area": box[2] * box[3], **row, "id": number}
        for number, (row, box) in enumerate(zip(data["annotations"], boxes, strict=True), 1)
    ]
    found: dict[str, list[dict[str, Any]]] = data
    return found


def _id_problem(row: dict[str, Any], seen: set[Any]) -> str | None:
    number = row.get("id")
    if not isinstance(number, int):
        return f"its id {number!r} is no whole number"
    if number in seen:
        return f"the id {number} is there twice"
    seen.add(number)
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12  # no NaN


def _are_numbers(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and all(_is_number(number) for number in value)


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        return _are_numbers(value.get("size")) and isinstance(value.get("counts"), (str, list))
    polygons = isinstance(value, list) and bool(value)
    return polygons and all(_are_numbers(part) and len(part) >= 6 and len(part) % 2 == 0 for part in value)


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
