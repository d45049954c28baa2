"""CenterFace: faces as the peaks of a heat map (Xu et al., "CenterFace: Joint Face Detection and Alignment Using Face
as Point", arXiv:1911.03599).

Every cell of the stride-4 maps predicts one face: its score, the logarithm of its height and width in cells, the offset
of its centre from the cell's, and five landmarks (eyes, nose, corners of the mouth) relative to its box. The network
takes RGB from 0 to 255.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..geometry import Geometry
from ..results import Detections
from .nms import non_maximum_suppression

STRIDE = 4
SIZE_MULTIPLE = 32  # what height and width of the input must be divisible by
ROLES = {"heat": 1, "scale": 2, "offset": 2, "landmarks": 10}  # the four maps and their channels, in the model's order


def decode(
    outputs: Mapping[str, np.ndarray[Any, Any]],
    geometries: Sequence[Geometry],
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.3,
) -> list[Detections]:
    """The faces of each picture.

    Args:
        outputs: by role: heat map [B, 1, h, w], scale [B, 2, h, w] (height, width), offset [B, 2, h, w] (y, x),
            landmarks [B, 10, h, w] (five times y, x).
        geometries: how each picture was brought into the network's input.
        score_threshold: cells whose heat is not above it are no faces.
        iou_threshold: of two faces that overlap more, the worse is dropped.
    """
    maps = [np.asarray(outputs[role], np.float32) for role in ROLES]
    return [
        _decode_one([values[index] for values in maps], geometry, score_threshold, iou_threshold)
        for index, geometry in enumerate(geometries)
    ]


def _decode_one(
    maps: Sequence[np.ndarray[Any, Any]], geometry: Geometry, score_threshold: float, iou_threshold: float
) -> Detections:
    heat, scale, offset, marks = maps
    rows, columns = np.nonzero(heat[0] > score_threshold)
    scores = heat[0, rows, columns]
    size = np.exp(scale[:, rows, columns]) * STRIDE
    centre_y = (rows + offset[0, rows, columns] + 0.5) * STRIDE
    centre_x = (columns + offset[1, rows, columns] + 0.5) * STRIDE
    boxes = np.stack(
        [centre_x - size[1] / 2, centre_y - size[0] / 2, centre_x + size[1] / 2, centre_y + size[0] / 2], axis=1
    )
    kept = non_maximum_suppression(boxes, scores, iou_threshold)
    boxes, size = boxes[kept], size[:, kept]
    relative = marks[:, rows[kept], columns[kept]].T.reshape(-1, 5, 2)[..., ::-1]
    landmarks = boxes[:, None, :2] + relative * size[::-1].T[:, None]
    return Detections(
        boxes=geometry.boxes_to_picture(boxes.astype(np.float32)),
        scores=scores[kept],
        class_ids=np.zeros(len(kept), np.int64),
        names={0: "face"},
        keypoints=geometry.to_picture(landmarks.astype(np.float32)),
    )
