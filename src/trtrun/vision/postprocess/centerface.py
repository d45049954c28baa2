"""CenterFace: faces as the peaks of a heat map (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face
as Point", arXiv:1911.03599).

Every cell of the stride-4 maps predicts one face: its score, the logarithm of its height and width in cells, the offset
of its centre from the cell's, and five landmarks (eyes, nose, corners of the mouth) relative to its box. The network
takes RGB from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..geometry import Geometry
from ..results import Detections, Names
from .candidates import Candidates, Selection, finite, to_detections

Array = np.ndarray[Any, Any]

STRIDE = 4
SIZE_MULTIPLE = 32  # what height and width of the input must be divisible by
ROLES = {"heat": 1, "scale": 2, "offset": 2, "landmarks": 10}  # the four maps and their channels, in the model's order


def candidates(outputs: Mapping[str, Array], *, selection: Selection) -> list[Candidates]:
    """Per picture the cells whose heat is above the score threshold; ``extra`` [M, 10] are the landmarks' numbers.

    Roles: heat [B, 1, h, w], scale [B, 2, h, w] (height, width), offset [B, 2, h, w] (y, x), landmarks [B, 10, h, w]
    (five times y, x).
    """
    found = []
    for heat, scale, offset, marks in zip(*(np.asarray(outputs[role], np.float32) for role in ROLES), strict=True):
        rows, columns = np.nonzero(heat[0] > selection.score_threshold)
        height, width = np.exp(scale[:, rows, columns]) * STRIDE
        y = (rows + offset[0, rows, columns] + 0.5) * STRIDE
        x = (columns + offset[1, rows, columns] + 0.5) * STRIDE
        boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], axis=1)
        none = np.zeros(len(rows), np.int64)
        found.append(finite(Candidates(boxes, heat[0, rows, columns], none, marks[:, rows, columns].T)))
    return found


def faces(kept: Candidates, geometry: Geometry, names: Names) -> Detections:
    """In pixels of the picture, with eyes, nose and corners of the mouth as keypoints."""
    size = kept.boxes[:, 2:] - kept.boxes[:, :2]
    landmarks = kept.boxes[:, None, :2] + kept.extra.reshape(-1, 5, 2)[..., ::-1] * size[:, None]
    keypoints = geometry.to_picture(landmarks.astype(np.float32))
    return to_detections(kept, geometry, names or {0: "face"}, keypoints=keypoints)
