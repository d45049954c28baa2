"""YOLOv10, YOLO26 and others that were trained to need no suppression (Wang et al., "YOLOv10", arXiv:2405.14458).

``predictions`` [B, K, 6 + E]: x1, y1, x2, y2 in pixels of the input, score, class, then what the task adds. Oriented
boxes come as centre x, centre y, width, height, score, class, angle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, best, finite

Array = np.ndarray[Any, Any]


def candidates(outputs: Mapping[str, Array], *, selection: Selection, oriented: bool = False) -> list[Candidates]:
    """Per picture what passes the score threshold, the best first."""
    found = []
    for values in outputs["predictions"]:
        values = values[values[:, 4] > selection.score_threshold]
        boxes, extra = values[:, :4], values[:, 6:]
        if oriented:
            boxes, extra = np.concatenate([boxes, extra[:, :1]], axis=1), extra[:, 1:]
        found.append(best(finite(Candidates(boxes, values[:, 4], values[:, 5].astype(np.int64), extra)), selection))
    return found
