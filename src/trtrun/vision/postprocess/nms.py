"""Greedy non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..results import box_iou

Array = np.ndarray[Any, Any]


def non_maximum_suppression(
    boxes: Array,
    scores: Array,
    iou_threshold: float,
    *,
    class_ids: Array | None = None,
    limit: int | None = None,
) -> Array:
    """Indices of the boxes [N, 4] that are kept, best score first.

    A box is dropped when a kept box with a better score overlaps it by more than ``iou_threshold``; with ``class_ids``
    only when both are of one class. Equal scores keep their order. No more than ``limit`` are kept: the best.
    """
    return suppress(boxes, scores, iou_threshold, box_iou, class_ids=class_ids, limit=limit)


def suppress(
    boxes: Array,
    scores: Array,
    threshold: float,
    overlap: Any,
    *,
    class_ids: Array | None = None,
    limit: int | None = None,
) -> Array:
    """:func:`non_maximum_suppression` with any measure ``overlap`` of boxes [1, D] with boxes [M, D] -> [1, M]."""
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while order.size and (limit is None or len(kept) < limit):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        stays = overlap(boxes[best][None], boxes[rest])[0] <= threshold
        if class_ids is not None:
            stays |= class_ids[rest] != class_ids[best]
        order = rest[stays]
    return np.array(kept, dtype=np.int64)
