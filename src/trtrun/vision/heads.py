"""Heads: which decoder reads a network's outputs, recognised from shapes and metadata, or named."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np

from ..errors import InputError
from ..runner import Runner
from ..tensor_spec import TensorSpec
from .geometry import Geometry, Size
from .postprocess import (
    centerface,
    classification,
    detr,
    efficient_nms,
    end_to_end,
    instance_masks,
    matting,
    onnx_nms,
    oriented_boxes,
    semantic,
    yolo_anchor_free,
    yolo_objectness,
)
from .postprocess.candidates import Candidates, Selection, best, keep, to_detections
from .postprocess.classification import Activation
from .postprocess.keypoints import keypoints
from .results import Detections, Names, Result

Array = np.ndarray[Any, Any]

TASKS = ("detect", "segment", "pose", "obb", "classify", "semantic", "matting")
_OBJECTS = ("detect", "segment", "pose", "obb")
_FLOATS = "fV"  # V: bfloat16
_FEW = 1000  # rows of a head that needs no suppression: 100 to 300 in practice, where grids have thousands


@dataclass(frozen=True)
class Head:
    """What a network's outputs mean.

    Attributes:
        name: the decoder, one of ``HEADS``.
        task: what it is for, one of ``TASKS``.
        roles: the decoder's name of each output -> the network's.
        classes: how many; 0 where the outputs do not say.
        names: what the classes are called, as far as is known.
        keypoint_shape: points per object, and numbers per point (2, or 3 with visibility), for the task pose.
        channels_last: the predictions are [B, cells, channels], not [B, channels, cells]; which of the two sizes is
            larger does not tell, because 1203 classes are more than a small input has cells.
    """

    name: str
    task: str
    roles: Mapping[str, str]
    classes: int = 0
    names: Names = field(default_factory=dict)
    keypoint_shape: tuple[int, int] | None = None
    channels_last: bool = False

    def __str__(self) -> str:
        classes = f" with {self.classes} {'class' if self.classes == 1 else 'classes'}" if self.classes else ""
        return f"{self.name} for {self.task}{classes}"

    @property
    def suppresses(self) -> bool:
        """Whether overlapping candidates must be dropped here, because the network does not do it."""
        return self.name == "centerface" or (self.name.startswith("yolo") and self.name != "yolov10")

    def selection(self) -> Selection:
        """The usual thresholds."""
        if self.name == "centerface":
            return Selection(score_threshold=0.5, iou_threshold=0.3)
        return Selection()

    def decode(
        self,
        outputs: Mapping[str, Array],
        geometries: Sequence[Geometry],
        *,
        selection: Selection,
        top: int = 5,
        activation: Activation = "auto",
        normalize: bool = False,
    ) -> list[Result]:
        """One result per picture, from the network's outputs by its names.

        Args:
            outputs: for a batch of at least as many pictures; what is beyond them is padding.
            geometries: how each picture was brought into the input.
            selection: which objects to keep.
            top, activation: see :func:`.postprocess.classification.decode`.
            normalize: see :func:`.postprocess.matting.decode`.
        """
        by_role = {role: _as_computable(outputs[name]) for role, name in self.roles.items()}
        results: Sequence[Result]
        if self.task == "classify":
            results = classification.decode(by_role, top=top, names=self.names, activation=activation)
        elif self.task == "semantic":
            results = semantic.decode(by_role, geometries, names=self.names)
        elif self.task == "matting":
            results = matting.decode(by_role, geometries, normalize=normalize)
        else:
            size = geometries[0].target if geometries else (1, 1)
            prototypes = by_role.pop("prototypes", None)
            candidates = self._candidates(by_role, size, len(geometries), selection)
            kept = [self._keep(one, selection) for one in candidates[: len(geometries)]]
            results = self._finish(kept, geometries, prototypes)
        return list(results[: len(geometries)])

    def _candidates(
        self, outputs: Mapping[str, Array], size: Size, batch: int, selection: Selection
    ) -> list[Candidates]:
        oriented = self.task == "obb"
        if self.name == "centerface":
            return centerface.candidates(outputs, selection=selection)
        if self.name == "yolov8":
            if self.channels_last:
                outputs = {"predictions": outputs["predictions"].transpose(0, 2, 1)}
            return yolo_anchor_free.candidates(outputs, classes=self.classes, selection=selection, oriented=oriented)
        if self.name in _OBJECTNESS:
            predictions = outputs.get("predictions")
            strides: Sequence[int] = yolo_objectness.STRIDES
            if predictions is not None and predictions.shape[1] != _cells(size, strides):
                strides = (*strides, 64)
            decoded = yolo_objectness.decode(outputs, kind=_OBJECTNESS[self.name], size=size, strides=strides)
            return yolo_objectness.candidates(decoded, classes=self.classes, selection=selection)
        if self.name == "yolov10":
            return end_to_end.candidates(outputs, selection=selection, oriented=oriented)
        if self.name == "rtdetr":
            return detr.candidates(outputs, size=size, selection=selection)
        if self.name == "efficient-nms":
            return efficient_nms.candidates(outputs, selection=selection)
        return onnx_nms.candidates(outputs, batch=batch, selection=selection)

    def finish(
        self, kept: Sequence[Candidates], geometries: Sequence[Geometry], outputs: Mapping[str, Array]
    ) -> list[Detections]:
        """The results of objects that were kept already; ``outputs`` by the network's names, for the prototypes."""
        prototypes = None if "prototypes" not in self.roles else _as_computable(outputs[self.roles["prototypes"]])
        return self._finish(kept, geometries, prototypes)

    def _keep(self, candidates: Candidates, selection: Selection) -> Candidates:
        if not self.suppresses:
            return best(candidates, selection)
        return oriented_boxes.keep(candidates, selection) if self.task == "obb" else keep(candidates, selection)

    def _finish(
        self, kept: Sequence[Candidates], geometries: Sequence[Geometry], prototypes: Array | None
    ) -> list[Detections]:
        return [
            self._detections(one, geometry, None if prototypes is None else prototypes[index])
            for index, (one, geometry) in enumerate(zip(kept, geometries, strict=False))
        ]

    def _detections(self, kept: Candidates, geometry: Geometry, prototypes: Array | None) -> Detections:
        if self.name == "centerface":
            return centerface.faces(kept, geometry, self.names)
        if self.task == "obb":
            corners = oriented_boxes.corners(kept.boxes, geometry)
            return Detections(
                boxes=oriented_boxes.enclosing(corners, geometry),
                scores=kept.scores.astype(np.float32),
                class_ids=kept.class_ids.astype(np.int64),
                names=self.names,
                corners=corners,
            )
        more: dict[str, Array | None] = {}
        if prototypes is not None:
            boxes = geometry.boxes_to_picture(kept.boxes.astype(np.float32))
            more["masks"] = instance_masks.masks(kept.extra, prototypes, boxes, geometry)
        if self.task == "pose" and self.keypoint_shape:
            more["keypoints"], more["keypoint_scores"] = keypoints(kept.extra, self.keypoint_shape, geometry)
        return to_detections(kept, geometry, self.names, **more)


_OBJECTNESS = {"yolov5": "decoded", "yolov6": "decoded", "yolox": "grid", "yolov5-raw": "anchors"}


@dataclass(frozen=True)
class _Facts:
    """What is known of a network before it runs."""

    outputs: Mapping[str, TensorSpec]
    size: Size
    task: str | None
    names: Names
    keypoint_shape: tuple[int, int] | None
    ultralytics: bool
    end_to_end: bool | None

    @property
    def tasks(self) -> tuple[str, ...]:
        return (self.task,) if self.task else _OBJECTS

    def widths(self, base: int, width: int, task: str, prototypes: int = 0) -> Iterator[tuple[int, Any]]:
        """Numbers of classes, with the keypoint shape, for which a prediction of ``base`` numbers is ``width`` wide."""
        shapes: list[Any] = [None]
        if task == "pose":
            # Without metadata: one class, and points with visibility.
            points = (width - base - 1) // 3
            shapes = [self.keypoint_shape] if self.keypoint_shape else [(points, 3)] if points > 0 else []
        for shape in shapes:
            extra = prototypes if task == "segment" else shape[0] * shape[1] if shape else int(task == "obb")
            classes = width - base - extra
            if (
                classes >= 1
                and (not self.names or len(self.names) == classes)
                and (task != "pose" or self.keypoint_shape or classes == 1)
            ):
                yield classes, shape


def recognise(
    runner: Runner,
    *,
    size: Size,
    task: str | tuple[str, ...] | None = None,
    head: str | None = None,
    names: Names | None = None,
    keypoint_shape: tuple[int, int] | None = None,
) -> Head:
    """The head of a network.

    Args:
        runner: whose outputs are looked at, and whose metadata, where an exporter left any.
        size: (width, height) of the input, which says how many cells a grid has.
        task: one of ``TASKS``, or several of which it must be one; None takes the metadata's, or what the outputs
            leave possible.
        head: one of ``HEADS``; None takes the metadata's, or tries them all.
        names, keypoint_shape: instead of the metadata's.

    Raises InputError when no head fits, or several do: it lists them, and what to name.
    """
    tasks = TASKS if task is None else (task,) if isinstance(task, str) else task
    if not tasks:
        raise InputError(f"no task was asked for. Name one of {', '.join(TASKS)}, or leave it out: task=None.")
    if names is not None and not (isinstance(names, Mapping) and all(isinstance(key, Integral) for key in names)):
        raise InputError("names are a mapping from a class's number to its name. Of a list: dict(enumerate(names)).")
    for given, known, what in (*((one, TASKS, "task") for one in tasks), (head, tuple(HEADS), "head")):
        if given is not None and given not in known:
            raise InputError(f"there is no {what} {given!r}. Known: {', '.join(known)}.")
    told = read_metadata(runner.metadata)
    head = head or told.head
    if told.task and told.task not in tasks:
        raise InputError(
            f"the task {_either(tasks)} was asked for, but the model's metadata says that it is for {told.task!r}. "
            "Use the task or the command for that one, or put another into the metadata: trtrun bundle create --task."
        )
    if told.task:
        tasks = (told.task,)
    facts = _Facts(
        outputs=dict(runner.outputs),
        size=size,
        task=None,
        names=read_names(runner.metadata) if names is None else names,
        keypoint_shape=keypoint_shape or told.keypoint_shape,
        ultralytics=told.ultralytics,
        end_to_end=told.end_to_end,
    )
    fitting = _matching(facts, tasks, head)
    outputs = ", ".join(f"{spec}" for spec in runner.outputs.values())
    asked = f" for the task {_either(tasks)}" if tasks != TASKS else ""
    asked += f" as the head {head!r}" if head else ""
    if not fitting:
        asked += f" with {len(facts.names)} class name{'s' * (len(facts.names) > 1)}" if facts.names else ""
        if others := _others(facts, tasks, head):
            others += (
                ", or what the model's metadata says" if runner.metadata.keys() & {"task", "head", "names"} else ""
            )
            raise InputError(f"the outputs ({outputs}) cannot be read{asked}, but as {others}.")
        raise InputError(
            f"the outputs ({outputs}) of this network with an input of {size[0]}×{size[1]} cannot be read{asked}, "
            f"nor by any other head ({', '.join(HEADS)}). Decode the runner's outputs yourself."
        )
    if len(fitting) > 1:
        raise InputError(
            f"the outputs ({outputs}) can be read in several ways{asked}: {'; '.join(map(str, fitting))}. "
            "Name the one that is meant: task=… (--task), head=… (--head) or names=… (--labels), or the same in the "
            "model's metadata (trtrun bundle writes it)."
        )
    return fitting[0]


def _matching(facts: _Facts, tasks: Sequence[str], head: str | None) -> list[Head]:
    """What the outputs can be, of these tasks."""
    facts = replace(facts, task=tasks[0] if len(tasks) == 1 else None)
    return [
        replace(found, names=facts.names)
        for name, match in HEADS.items()
        if head in (None, name)
        for found in match(facts)
        if found.task in tasks
    ]


def _others(facts: _Facts, tasks: Sequence[str], head: str | None) -> str:
    """What the outputs can be where nothing fits that was asked for, and what to change then; "" for nothing."""
    # The task, the head and the names may each be wrong; first those where fewer are.
    for new_tasks, new_head, names in (
        (TASKS, head, facts.names), (tasks, None, facts.names), (tasks, head, {}),
        (TASKS, None, facts.names), (tasks, None, {}), (TASKS, head, {}), (TASKS, None, {}),
    ):  # fmt: skip
        # Each task by itself: some outputs are looked at only when theirs is asked for.
        found = [one for task in new_tasks for one in _matching(replace(facts, names=names), (task,), new_head)]
        if found:
            changes = {
                "the task (task=…; --task, or another command)": any(one.task not in tasks for one in found),
                "the head (head=…, --head)": head is not None and any(one.name != head for one in found),
                "the class names (names=…, --labels)": names != facts.names,
            }
            change = " and ".join(name for name, is_other in changes.items() if is_other)
            return f"{'; '.join(map(str, found))}. Change {change}"
    return ""


@dataclass(frozen=True)
class Told:
    """What the exporter's metadata says of a head; None and empty where it says nothing."""

    task: str | None = None
    head: str | None = None
    size: Size | None = None
    keypoint_shape: tuple[int, int] | None = None
    end_to_end: bool | None = None
    ultralytics: bool = False
    preprocess: Mapping[str, Any] = field(default_factory=dict)  # fields of Preprocess


def read_metadata(metadata: Mapping[str, Any]) -> Told:
    """Ultralytics' keys (task, imgsz, kpt_shape, end2end), a bundle's preprocess and head.

    The values are JSON; some exporters write Python literals as text in front of engines too. Raises InputError where
    imgsz or kpt_shape are written otherwise.
    """
    values = {key: _literal(value) for key, value in metadata.items()}
    size, shape = values.get("imgsz"), values.get("kpt_shape")
    if isinstance(size, int):
        size = (size, size)
    end = values.get("end2end")
    task = values.get("task")
    try:
        return Told(
            task=task if task in TASKS else None,
            head=head if (head := values.get("head")) in tuple(HEADS) else None,
            size=pair[::-1] if (pair := _pair(size)) else None,
            keypoint_shape=_pair(shape),
            end_to_end=end if isinstance(end, bool) else None,
            ultralytics="ultralytics" in str(metadata.get("author", "")).lower() or "stride" in metadata,
            preprocess=preprocess if isinstance(preprocess := values.get("preprocess"), Mapping) else {},
        )
    except (TypeError, ValueError, OverflowError) as error:
        raise _unreadable(error) from error


def read_names(metadata: Mapping[str, Any]) -> Names:
    """Ultralytics' names of classes or PaddleOCR's list of labels. Raises InputError where they are written otherwise.

    Apart from the rest: where names are given, these need not be readable.
    """
    names = _literal(metadata.get("names"))
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, Mapping):
        labels = metadata.get("character")
        names = dict(enumerate(labels.split("\n"))) if isinstance(labels, str) else {}
    try:
        # Half a character of UTF-16, which a literal can hold, is no text: OpenCV crashes on it.
        return {int(key): str(value).encode(errors="replace").decode() for key, value in names.items()}
    except (TypeError, ValueError, OverflowError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> InputError:
    return InputError(
        f"the model's metadata cannot be read ({error}): names are {{number: name}} or a list, imgsz is [height, "
        "width], kpt_shape [points, numbers of each]. Put others before them: trtrun bundle create --metadata."
    )


def _pair(value: Any) -> tuple[int, int] | None:
    return (int(value[0]), int(value[1])) if isinstance(value, (list, tuple)) and len(value) == 2 else None


def _either(tasks: Sequence[str]) -> str:
    return " or ".join(map(repr, tasks))


def _as_computable(values: Any) -> Array:
    """Integers as they are, floats of any kind as float32: half precision would round again at every step."""
    array = np.asarray(values)
    return array if array.dtype.kind in "iu" else array.astype(np.float32, copy=False)


def _literal(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
            return value
    return value


def _cells(size: Size, strides: Sequence[int]) -> int:
    return sum((size[0] // stride) * (size[1] // stride) for stride in strides)


def _is_grid(rows: int, size: Size, per_cell: int) -> bool:
    """Whether so many predictions can be those of strides 8 to 32, or 8 to 64; -1 can be anything."""
    sums = [per_cell * _cells(size, strides) for strides in ((8, 16, 32), (8, 16, 32, 64))]
    return rows == -1 or rows in sums


def _is_any_grid(rows: int, facts: _Facts) -> bool:
    return _is_grid(rows, facts.size, 1) or _is_grid(rows, facts.size, 3)


def _predictions(facts: _Facts) -> tuple[TensorSpec, TensorSpec | None] | None:
    """The output [B, P, Q] of a head for objects, with the prototypes [B, M, h, w] of a segmenter."""
    flat = [spec for spec in facts.outputs.values() if len(spec.shape) == 3 and spec.dtype.kind in _FLOATS]
    maps = [spec for spec in facts.outputs.values() if len(spec.shape) == 4]
    if len(flat) == 1 and len(maps) <= 1 and len(facts.outputs) == 1 + len(maps):
        return flat[0], maps[0] if maps else None
    return None


def _dense(
    facts: _Facts, name: str, base: int, fits: Callable[[int, int], int | None], *, tasks: tuple[str, ...] = _OBJECTS
) -> Iterator[Head]:
    """Heads with one wide output; ``fits`` says which axis, of the sizes (P, Q), has the channels: 1, 2 or None."""
    found = _predictions(facts)
    if found is None:
        return
    spec, maps = found
    axis = fits(spec.shape[1], spec.shape[2])
    if axis is None:
        return
    width = spec.shape[axis]
    roles = {"predictions": spec.name} | ({"prototypes": maps.name} if maps else {})
    for task in facts.tasks:
        if task in tasks and (task == "segment") == (maps is not None):
            for classes, shape in facts.widths(base, width, task, maps.shape[1] if maps else 0):
                yield Head(name, task, roles, classes, keypoint_shape=shape, channels_last=axis == 2)


def _yolov8(facts: _Facts) -> Iterator[Head]:
    if facts.end_to_end:
        return

    def fits(p: int, q: int) -> int | None:
        if p > 4 and _is_grid(q, facts.size, 1):
            return 1
        return 2 if q > 4 and p != -1 and _is_grid(p, facts.size, 1) else None

    yield from _dense(facts, "yolov8", 4, fits)


def _yolov5(facts: _Facts) -> Iterator[Head]:
    yield from _dense(
        facts,
        "yolov5",
        5,
        lambda p, q: 2 if q > 5 and _is_grid(p, facts.size, 3) else None,
        tasks=("detect", "segment"),
    )


def _one_per_cell(name: str) -> Callable[[_Facts], Iterator[Head]]:
    def match(facts: _Facts) -> Iterator[Head]:
        if not facts.ultralytics:  # Ultralytics exports neither
            yield from _dense(
                facts, name, 5, lambda p, q: 2 if q > 5 and _is_grid(p, facts.size, 1) else None, tasks=("detect",)
            )

    return match


def _yolov5_raw(facts: _Facts) -> Iterator[Head]:
    maps = list(facts.outputs.values())
    if len(maps) == 3 and all(len(m.shape) == 5 and m.shape[1] == 3 and m.shape[4] > 5 for m in maps):
        classes = maps[0].shape[4] - 5
        if not facts.names or len(facts.names) == classes:
            yield Head("yolov5-raw", "detect", {f"map{i}": m.name for i, m in enumerate(maps)}, classes)


def _yolov10(facts: _Facts) -> Iterator[Head]:
    if facts.end_to_end is False:
        return
    found = _predictions(facts)
    if found is None:
        return
    spec, maps = found
    rows, width = spec.shape[1:]
    if not 0 < rows <= _FEW or _is_any_grid(width, facts) or (_is_any_grid(rows, facts) and not facts.end_to_end):
        return
    roles = {"predictions": spec.name} | ({"prototypes": maps.name} if maps else {})
    shape = facts.keypoint_shape or ((width - 6) // 3, 3)
    extras = {"detect": 0, "segment": maps.shape[1] if maps else -1, "pose": shape[0] * shape[1] or -1, "obb": 1}
    for task in facts.tasks:
        if (task == "segment") == (maps is not None) and extras.get(task) == width - 6:
            yield Head("yolov10", task, roles, len(facts.names), keypoint_shape=shape if task == "pose" else None)


def _rtdetr(facts: _Facts) -> Iterator[Head]:
    specs = facts.outputs
    if set(specs) == {"labels", "boxes", "scores"}:
        yield Head("rtdetr", "detect", {name: name for name in specs}, len(facts.names))
        return
    flat = [spec for spec in specs.values() if len(spec.shape) == 3]
    if len(specs) == 2 and len(flat) == 2:
        boxes = [spec for spec in flat if spec.shape[2] == 4]
        logits = [spec for spec in flat if spec not in boxes] or [s for s in flat if s.name == "logits"]
        if len(boxes) == 2:  # a network of four classes: only the names tell
            boxes = [spec for spec in boxes if "box" in spec.name]
        if len(boxes) == 1 and len(logits) == 1 and boxes[0].shape[1] == logits[0].shape[1]:
            yield Head("rtdetr", "detect", {"logits": logits[0].name, "boxes": boxes[0].name}, logits[0].shape[2])
    if facts.end_to_end:
        return
    yield from _dense(
        facts,
        "rtdetr",
        4,
        lambda p, q: (
            2 if q > 4 and 50 <= p <= _FEW and not _is_any_grid(p, facts) and not _is_any_grid(q, facts) else None
        ),
        tasks=("detect",),
    )


def _efficient_nms(facts: _Facts) -> Iterator[Head]:
    specs = list(facts.outputs.values())
    boxes = [spec for spec in specs if len(spec.shape) == 3 and spec.shape[2] == 4]
    if len(specs) != 4 or len(boxes) != 1:
        return
    rows = boxes[0].shape[1]
    counts = [spec for spec in specs if spec.shape[1:] in ((1,), ()) and spec.dtype.kind in "iu"]
    lists = [spec for spec in specs if spec.shape[1:] == (rows,) and spec not in counts]
    classes = [spec for spec in lists if spec.dtype.kind in "iu"] or [s for s in lists if "class" in s.name]
    scores = [spec for spec in lists if spec not in classes]
    if len(counts) == len(classes) == len(scores) == 1:
        chosen = {"count": counts[0], "boxes": boxes[0], "scores": scores[0], "classes": classes[0]}
        yield Head("efficient-nms", "detect", {role: spec.name for role, spec in chosen.items()}, len(facts.names))


def _onnx_nms(facts: _Facts) -> Iterator[Head]:
    specs = list(facts.outputs.values())
    if len(specs) == 1 and len(specs[0].shape) == 2 and specs[0].shape[1] == 7 and facts.task == "detect":
        yield Head("onnx-nms", "detect", {"rows": specs[0].name}, len(facts.names))
    selected = [spec for spec in specs if len(spec.shape) == 2 and spec.shape[1] == 3 and spec.dtype.kind == "i"]
    flat = [spec for spec in specs if len(spec.shape) == 3]
    boxes = [spec for spec in flat if spec.shape[2] == 4]
    scores = [spec for spec in flat if spec not in boxes]
    if len(specs) == 3 and len(selected) == len(boxes) == len(scores) == 1:
        roles = {"selected": selected[0].name, "boxes": boxes[0].name, "scores": scores[0].name}
        yield Head("onnx-nms", "detect", roles, scores[0].shape[1])


def _centerface(facts: _Facts) -> Iterator[Head]:
    specs = list(facts.outputs.values())
    if [spec.shape[1:2] for spec in specs if len(spec.shape) == 4] == [(n,) for n in centerface.ROLES.values()]:
        roles = {role: spec.name for role, spec in zip(centerface.ROLES, specs, strict=True)}
        yield Head("centerface", "detect", roles, 1)


def _classifier(facts: _Facts) -> Iterator[Head]:
    for spec in facts.outputs.values():
        if len(facts.outputs) > 1 or spec.dtype.kind not in _FLOATS:
            return
        flat = len(spec.shape) == 2 or (len(spec.shape) == 4 and spec.shape[2:] == (1, 1))
        if flat and spec.shape[1] > 1 and (not facts.names or len(facts.names) == spec.shape[1]):
            yield Head("classifier", "classify", {"scores": spec.name}, spec.shape[1])


def _semantic(facts: _Facts) -> Iterator[Head]:
    for spec in facts.outputs.values():
        whole = spec.dtype.kind in "iu" and len(spec.shape) >= 3 and (len(spec.shape) == 3 or spec.shape[1] == 1)
        scores = spec.dtype.kind in _FLOATS and len(spec.shape) == 4 and spec.shape[1] > 1 and spec.shape[2:] != (1, 1)
        if len(facts.outputs) == 1 and (whole or scores):
            classes = spec.shape[1] if scores else len(facts.names)
            yield Head("semantic", "semantic", {"map": spec.name}, classes)


def _matting(facts: _Facts) -> Iterator[Head]:
    specs = list(facts.outputs.values())
    # U²-Net has further outputs, of its inner stages; the first is the one.
    if all(len(s.shape) == 4 and s.shape[1] == 1 and s.dtype.kind in _FLOATS for s in specs):
        yield Head("matting", "matting", {"alpha": specs[0].name})


HEADS: Mapping[str, Callable[[_Facts], Iterator[Head]]] = {
    "yolov8": _yolov8,  # v8, v9, v11, v12
    "yolov5": _yolov5,  # v5, v7: three anchors per cell
    "yolov5-raw": _yolov5_raw,
    "yolov6": _one_per_cell("yolov6"),
    "yolox": _one_per_cell("yolox"),
    "yolov10": _yolov10,  # v10, 26
    "rtdetr": _rtdetr,  # RT-DETR, D-FINE, DEIM
    "efficient-nms": _efficient_nms,
    "onnx-nms": _onnx_nms,
    "centerface": _centerface,
    "classifier": _classifier,
    "semantic": _semantic,
    "matting": _matting,
}
