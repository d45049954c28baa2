"""Greedy non-maximum suppression."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..results import box_iou

Array = np.ndarray[Any, Any]


def non_maximum_suppression(boxes: Array, scores: Array, iou_threshold: float) -> Array:
    """Indices of the boxes [N, 4] that are kept, best score first.

    A box is dropped when a kept box with a better score overlaps it by more than ``iou_threshold``. Equal scores keep
    their order.
    """
    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[box_iou(boxes[best][None], boxes[rest])[0] <= iou_threshold]
    return np.array(kept, dtype=np.int64)
