"""What a vision task found, as validated arrays in pixels of the original picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import InputError

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Detections:
    """Boxes of one picture, best first. The arrays are read-only; InputError is raised when they do not fit together.

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
        self._freeze("boxes", np.float32, (count, 4))
        self._freeze("scores", np.float32, (count,))
        self._freeze("class_ids", np.int64, (count,))
        if self.landmarks is not None:
            points = self.landmarks.shape[1] if self.landmarks.ndim == 3 else -1
            self._freeze("landmarks", np.float32, (count, points, 2))

    def _freeze(self, name: str, dtype: type[np.generic], shape: tuple[int, ...]) -> None:
        array = getattr(self, name)
        if array.dtype != dtype or array.shape != shape:
            wanted = " × ".join("K" if size < 0 else str(size) for size in shape)
            raise InputError(
                f"{name} of {shape[0]} detections must be {np.dtype(dtype).name} [{wanted}], "
                f"got {array.dtype.name} {list(array.shape)}."
            )
        view = array.view()  # the caller's own array keeps its flags
        view.flags.writeable = False
        object.__setattr__(self, name, view)

    def __len__(self) -> int:
        return len(self.boxes)

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary of plain numbers per detection, pixels to two decimals."""
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
    """Intersection over union of boxes [N, 4] with boxes [M, 4]: float [N, M]; 0 where both are empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = np.prod(np.clip(high - low, 0, None), axis=2)
    area_a, area_b = np.prod(a[:, 2:] - a[:, :2], axis=1), np.prod(b[:, 2:] - b[:, :2], axis=1)
    union = area_a[:, None] + area_b[None] - intersection
    iou: Array = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou
