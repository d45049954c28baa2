"""Networks that end in ONNX's NonMaxSuppression operator.

Either ``selected`` [S, 3], its own output (picture, class, box), with ``boxes`` [B, A, 4] and ``scores`` [B, C, A] that
it chose from; or ``rows`` [S, 7], as YOLOv7 exports with ``--end2end``: picture, x1, y1, x2, y2, class, score. Boxes
are x1, y1, x2, y2, or centre x, centre y, width, height with ``centers`` (the operator's center_point_box), in pixels
of the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, best, centers_to_corners, finite

Array = np.ndarray[Any, Any]


def candidates(
    outputs: Mapping[str, Array], *, batch: int, selection: Selection, centers: bool = False
) -> list[Candidates]:
    """Per picture what passes the score threshold, the best first. Rows of pictures beyond the batch are padding."""
    if "rows" in outputs:
        rows = outputs["rows"]
        pictures, boxes, class_ids, scores = rows[:, 0], rows[:, 1:5], rows[:, 5].astype(np.int64), rows[:, 6]
    else:
        # Some exports pad with -1, which must not count from the end.
        selected = outputs["selected"][(outputs["selected"] >= 0).all(axis=1)]
        pictures, class_ids, places = selected.T
        boxes, scores = outputs["boxes"][pictures, places], outputs["scores"][pictures, class_ids, places]
    if centers:
        boxes = centers_to_corners(boxes)
    found = []
    for index in range(batch):
        mine = np.flatnonzero((pictures == index) & (scores > selection.score_threshold))
        extra = np.empty((len(mine), 0), np.float32)
        found.append(best(finite(Candidates(boxes[mine], scores[mine], class_ids[mine], extra)), selection))
    return found
