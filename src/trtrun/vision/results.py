"""What a vision task found, as validated arrays in pixels of the original picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Detections:
    """Boxes of one picture, best first.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the original picture.
        scores: float32 [N], from 0 to 1.
        class_ids: int64 [N].
        landmarks: float32 [N, K, 2], x and y in pixels, or None for heads without.
    """

    boxes: Array
    scores: Array
    class_ids: Array
    landmarks: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        shapes = {"boxes": (count, 4), "scores": (count,), "class_ids": (count,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} must have shape {shape}, got {getattr(self, name).shape}")
        if self.landmarks is not None and (self.landmarks.ndim != 3 or self.landmarks.shape[::2] != (count, 2)):
            raise ValueError(f"landmarks must have shape ({count}, K, 2), got {self.landmarks.shape}")
        for name in (*shapes, "landmarks"):
            if (array := getattr(self, name)) is not None:
                array.flags.writeable = False

    def __len__(self) -> int:
        return len(self.boxes)

    def to_json(self) -> list[dict[str, Any]]:
        """One plain dictionary per detection."""
        rows = []
        for index in range(len(self)):
            row: dict[str, Any] = {
                "box": [round(float(v), 2) for v in self.boxes[index]],
                "score": round(float(self.scores[index]), 4),
                "class_id": int(self.class_ids[index]),
            }
            if self.landmarks is not None:
                row["landmarks"] = [[round(float(v), 2) for v in point] for point in self.landmarks[index]]
            rows.append(row)
        return rows


def box_iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes [N, 4] with boxes [M, 4]: float [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None] - intersection
    iou: Array = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou
