"""What the heads for objects have in common: candidates, of which some are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import InputError
from ..geometry import Geometry
from ..results import Detections, Names
from .nms import non_maximum_suppression

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Selection:
    """Which candidates become detections. Raises InputError for thresholds outside 0 … 1."""

    score_threshold: float = 0.25  # a candidate's score must be above it
    iou_threshold: float = 0.7  # of two that overlap more, the worse is dropped; not used by heads that need no NMS
    max_detections: int = 300
    class_agnostic: bool = False  # drop overlapping ones of different classes, too
    multi_label: bool = False  # a candidate counts once for every class above the threshold, as when mAP is measured

    def __post_init__(self) -> None:
        for name in ("score_threshold", "iou_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if self.max_detections < 1:
            raise InputError(f"max_detections must be at least 1, got {self.max_detections}.")


@dataclass(frozen=True)
class Candidates:
    """Boxes of one picture that passed the score threshold.

    ``boxes`` [M, 4] are x1, y1, x2, y2 in pixels of the network's input, [M, 5] centre x, centre y, width, height and
    angle in radians for oriented ones. ``extra`` [M, E] is what the head says beside: mask coefficients or keypoints.
    """

    boxes: Array
    scores: Array
    class_ids: Array
    extra: Array

    def take(self, rows: Array) -> Candidates:
        return Candidates(self.boxes[rows], self.scores[rows], self.class_ids[rows], self.extra[rows])


def above(scores: Array, selection: Selection) -> tuple[Array, Array, Array]:
    """Rows, classes and scores of what passes in scores [M, C]. NaN never does, and hides no other class of its row."""
    passed = scores > selection.score_threshold
    if selection.multi_label:
        rows, class_ids = np.nonzero(passed)
    else:
        rows = np.flatnonzero(passed.any(axis=1))
        class_ids = np.where(passed[rows], scores[rows], -1).argmax(axis=1)
    return rows, class_ids, scores[rows, class_ids]


def centers_to_corners(boxes: Array) -> Array:
    """Boxes [..., 4] of centre x, centre y, width, height as x1, y1, x2, y2."""
    half = boxes[..., 2:4] / 2
    return np.concatenate([boxes[..., :2] - half, boxes[..., :2] + half], axis=-1)


def finite(candidates: Candidates) -> Candidates:
    """Without those whose box has a NaN or an infinity: it is nowhere."""
    good = np.isfinite(candidates.boxes).all(axis=1)
    return candidates if good.all() else candidates.take(np.flatnonzero(good))


def keep(candidates: Candidates, selection: Selection) -> Candidates:
    """Non-maximum suppression, by class unless ``class_agnostic``."""
    class_ids = None if selection.class_agnostic else candidates.class_ids
    return candidates.take(
        non_maximum_suppression(
            candidates.boxes,
            candidates.scores,
            selection.iou_threshold,
            class_ids=class_ids,
            limit=selection.max_detections,
        )
    )


def best(candidates: Candidates, selection: Selection) -> Candidates:
    """The best first, for heads that suppress by themselves."""
    return candidates.take(np.argsort(-candidates.scores, kind="stable")[: selection.max_detections])


def to_detections(candidates: Candidates, geometry: Geometry, names: Names, **more: Array | None) -> Detections:
    """In pixels of the picture; ``more`` are further fields of Detections, in its pixels already."""
    boxes = geometry.boxes_to_picture(candidates.boxes.astype(np.float32, copy=False))
    scores, class_ids = candidates.scores.astype(np.float32), candidates.class_ids.astype(np.int64)
    if more:
        return Detections(boxes, scores, class_ids, names, **more)
    return Detections.unchecked(boxes, scores, class_ids, names)
