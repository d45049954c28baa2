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

from ..geometry import Letterbox
from ..preprocess import Preprocessing
from ..results import Detections
from .nms import non_maximum_suppression

STRIDE = 4
SIZE_MULTIPLE = 32  # what height and width of the input must be divisible by
OUTPUTS = ("537", "538", "539", "540")  # heat map, scale, offset, landmarks; the names in the published model
PREPROCESSING = Preprocessing(channels="RGB", scale=1.0, padding=0)


def decode(
    outputs: Mapping[str, np.ndarray[Any, Any]],
    geometry: Letterbox,
    *,
    score_threshold: float = 0.5,
    iou_threshold: float = 0.3,
) -> Detections:
    """The faces of one picture.

    Args:
        outputs: ``OUTPUTS`` for a batch of one: heat map [1, 1, h, w], scale [1, 2, h, w] (height, width), offset
            [1, 2, h, w] (y, x), landmarks [1, 10, h, w] (five times y, x).
        geometry: how the picture was brought into the network's input.
        score_threshold: cells whose heat is not above it are no faces.
        iou_threshold: of two faces that overlap more, the worse is dropped.
    """
    heat, scale, offset, marks = (np.asarray(outputs[name][0], np.float32) for name in OUTPUTS)
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
        landmarks=geometry.to_picture(landmarks.astype(np.float32)),
    )
