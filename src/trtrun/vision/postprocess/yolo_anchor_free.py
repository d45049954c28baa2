"""YOLOv8, v9, v11 and v12: one prediction per grid cell and no objectness (Ultralytics' export).

The output [B, 4 + C + E, A] is decoded up to the boxes: centre x, centre y, width, height in pixels of
the input, then the C class probabilities, then what the task adds: mask coefficients, keypoints or the angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, above, centers_to_corners, finite

Array = np.ndarray[Any, Any]


def candidates(
    outputs: Mapping[str, Array], *, classes: int, selection: Selection, oriented: bool = False
) -> list[Candidates]:
    """Per picture what passes the score threshold; the role is ``predictions``."""
    found = []
    for values in outputs["predictions"]:
        rows, class_ids, scores = above(values[4 : 4 + classes].T, selection)
        boxes, extra = values[:4, rows].T, values[4 + classes :, rows].T
        if oriented:
            boxes, extra = np.concatenate([boxes, extra[:, :1]], axis=1), extra[:, 1:]
        else:
            boxes = centers_to_corners(boxes)
        found.append(finite(Candidates(boxes, scores, class_ids, extra)))
    return found
