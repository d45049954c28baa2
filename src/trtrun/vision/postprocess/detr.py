"""RT-DETR, D-FINE and DEIM: a set of queries, each an object or none (Zhao et al., "DETRs Beat YOLOs on Real-time
Object Detection", arXiv:2304.08069; Peng et al., "D-FINE", arXiv:2410.13842).

Boxes are centre x, centre y, width, height as shares of the input, and every class has a probability of its own (focal
loss). Three exports are in use: Ultralytics' ``predictions`` [B, Q, 4 + C] with probabilities; Hugging Face's
``logits`` [B, Q, C] and ``boxes`` [B, Q, 4]; and the authors', which take the size to scale to and give ``labels``
[B, Q], ``boxes`` [B, Q, 4] (x1, y1, x2, y2) and ``scores`` [B, Q]. DETR itself has a class for "no object" and is not
read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, above, best, centers_to_corners, finite

Array = np.ndarray[Any, Any]


def candidates(outputs: Mapping[str, Array], *, size: tuple[int, int], selection: Selection) -> list[Candidates]:
    """Per picture what passes the score threshold, the best first; ``size`` (width, height) is the input's."""
    if "labels" in outputs:
        boxes, labels, scores = outputs["boxes"], outputs["labels"].astype(np.int64), outputs["scores"]
        return [_passed(boxes[i], scores[i], labels[i], selection) for i in range(len(boxes))]
    if "logits" in outputs:
        with np.errstate(over="ignore"):
            probabilities = 1 / (1 + np.exp(-outputs["logits"].astype(np.float32)))
        shares = outputs["boxes"]
    else:
        shares, probabilities = outputs["predictions"][..., :4], outputs["predictions"][..., 4:]
    boxes = centers_to_corners(shares.astype(np.float32)) * np.array([*size, *size], np.float32)
    found = []
    for index in range(len(boxes)):
        rows, class_ids, scores = above(probabilities[index], selection)
        found.append(_best(boxes[index][rows], scores, class_ids, selection))
    return found


def _passed(boxes: Array, scores: Array, labels: Array, selection: Selection) -> Candidates:
    rows = np.flatnonzero(scores > selection.score_threshold)
    return _best(boxes[rows], scores[rows], labels[rows], selection)


def _best(boxes: Array, scores: Array, class_ids: Array, selection: Selection) -> Candidates:
    return best(finite(Candidates(boxes, scores, class_ids, np.empty((len(boxes), 0), np.float32))), selection)
