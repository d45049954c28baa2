"""TensorRT's EfficientNMS plugin, and exports that copy its outputs (YOLOv6, v7 and YOLO-NAS "end to end").

``count`` [B, 1]: how many rows count; ``boxes`` [B, K, 4]: x1, y1, x2, y2 in pixels of the input; ``scores`` [B, K];
``classes`` [B, K]. Rows from ``count`` on hold anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, best, finite

Array = np.ndarray[Any, Any]


def candidates(outputs: Mapping[str, Array], *, selection: Selection) -> list[Candidates]:
    """Per picture what passes the score threshold, the best first."""
    counts = outputs["count"].reshape(len(outputs["boxes"]))
    found = []
    for index, count in enumerate(counts):
        scores = outputs["scores"][index, : max(int(count), 0)]
        rows = np.flatnonzero(scores > selection.score_threshold)
        boxes, classes = outputs["boxes"][index][rows], outputs["classes"][index][rows].astype(np.int64)
        extra = np.empty((len(rows), 0), np.float32)
        found.append(best(finite(Candidates(boxes, scores[rows], classes, extra)), selection))
    return found
