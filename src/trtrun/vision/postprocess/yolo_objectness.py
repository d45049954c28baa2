"""YOLOv5, v6, v7 and YOLOX: a score of being an object beside the classes' (Redmon & Farhadi, arXiv:1804.02767; Ge et
al., "YOLOX", arXiv:2107.08430).

A prediction is centre x, centre y, width, height, objectness, then the C class probabilities; its score is objectness
times probability. ``predictions`` [B, A, 5 + C + E] come in three kinds:

- decoded: in pixels of the input, as YOLOv5, v6 and v7 export;
- ``grid``: YOLOX without its decoding: the centre in cells from its cell's corner, the logarithm of the size in cells,
  cells of strides 8, 16 and 32 row by row;
- ``anchors``: the raw maps of YOLOv5 and v7, [B, 3, h, w, 5 + C] per stride, before the sigmoid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .candidates import Candidates, Selection, above, centers_to_corners, finite

Array = np.ndarray[Any, Any]

STRIDES = (8, 16, 32)
# Width and height in pixels per stride; YOLOv5's, found by k-means on COCO.
YOLOV5_ANCHORS = (
    ((10, 13), (16, 30), (33, 23)),
    ((30, 61), (62, 45), (59, 119)),
    ((116, 90), (156, 198), (373, 326)),
)


def candidates(predictions: Array, *, classes: int, selection: Selection) -> list[Candidates]:
    """Per picture what passes the score threshold, of decoded predictions [B, A, 5 + C + E]."""
    found = []
    for values in predictions:
        # Probabilities are at most 1, so that nothing else can pass.
        objects = values[values[:, 4] > selection.score_threshold]
        with np.errstate(invalid="ignore"):  # infinity times 0; it passes no threshold
            scored = objects[:, 5 : 5 + classes] * objects[:, 4:5]
        rows, class_ids, scores = above(scored, selection)
        boxes = centers_to_corners(objects[rows, :4])
        found.append(finite(Candidates(boxes, scores, class_ids, objects[rows, 5 + classes :])))
    return found


def decode_grid(predictions: Array, size: tuple[int, int], strides: Sequence[int]) -> Array:
    """YOLOX's raw predictions for an input of ``size`` (width, height) as decoded ones."""
    cells, steps = [], []
    for stride in strides:
        rows, columns = np.mgrid[: size[1] // stride, : size[0] // stride]
        cells.append(np.stack([columns, rows], axis=-1).reshape(-1, 2))
        steps.append(np.full((rows.size, 1), stride))
    step = np.concatenate(steps).astype(np.float32)
    decoded = predictions.astype(np.float32)
    decoded[..., :2] = (decoded[..., :2] + np.concatenate(cells)) * step
    with np.errstate(over="ignore"):  # an infinite box is dropped later
        decoded[..., 2:4] = np.exp(decoded[..., 2:4]) * step
    return decoded


def decode_anchors(
    maps: Sequence[Array], strides: Sequence[int] = STRIDES, anchors: Sequence[Any] = YOLOV5_ANCHORS
) -> Array:
    """YOLOv5's raw maps [B, 3, h, w, 5 + C], one per stride, as decoded predictions [B, A, 5 + C]."""
    decoded = []
    for values, stride, sizes in zip(maps, strides, anchors, strict=True):
        batch, count, height, width, depth = values.shape
        with np.errstate(over="ignore"):
            values = 1 / (1 + np.exp(-values.astype(np.float32)))
        rows, columns = np.mgrid[:height, :width]
        values[..., :2] = (values[..., :2] * 2 - 0.5 + np.stack([columns, rows], axis=-1)) * stride
        values[..., 2:4] = (values[..., 2:4] * 2) ** 2 * np.reshape(sizes, (1, count, 1, 1, 2))
        decoded.append(values.reshape(batch, -1, depth))
    return np.concatenate(decoded, axis=1)


def decode(
    outputs: Mapping[str, Array], *, kind: str, size: tuple[int, int], strides: Sequence[int] = STRIDES
) -> Array:
    """Decoded predictions from outputs by role; ``kind`` is "decoded", "grid" or "anchors"."""
    if kind == "anchors":
        # The finest map first, whatever the order of the outputs.
        maps = sorted(outputs.values(), key=lambda values: -values.shape[2] * values.shape[3])
        return decode_anchors(maps)
    if kind == "grid":
        return decode_grid(outputs["predictions"], size, strides)
    return outputs["predictions"]
