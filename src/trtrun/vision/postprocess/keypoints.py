"""Keypoints beside a box: x, y in pixels of the input and, with three numbers each, how visible the point is."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import Geometry

Array = np.ndarray[Any, Any]


def keypoints(extra: Array, shape: tuple[int, int], geometry: Geometry) -> tuple[Array, Array | None]:
    """Values [N, K × D] for ``shape`` (K, D) as points [N, K, 2] of the picture, and scores [N, K] where D is 3."""
    values = extra.reshape(len(extra), *shape).astype(np.float32)
    points = geometry.to_picture(values[..., :2])
    return points, np.ascontiguousarray(values[..., 2]) if shape[1] == 3 else None
