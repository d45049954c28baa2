"""Oriented boxes: centre x, centre y, width, height and angle in radians; suppression by probabilistic IoU.

Two boxes are compared as the Gaussians with their covariance (Llerena et al., "Gaussian Bounding Boxes and
Probabilistic Intersection-over-Union for Object Detection", arXiv:2106.06072): 1 minus their Hellinger distance.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import Geometry
from .candidates import Candidates, Selection
from .nms import suppress

Array = np.ndarray[Any, Any]

_TINY = 1e-7


def probabilistic_iou(a: Array, b: Array) -> Array:
    """Overlap of oriented boxes [N, 5] with oriented boxes [M, 5]: float [N, M], from 0 to 1."""
    (ax, ay, aa, ab, ac), (bx, by, ba, bb, bc) = _gaussians(a[:, None]), _gaussians(b[None])
    # The covariance of the mean of both Gaussians is [[p, r], [r, q]].
    p, q, r = aa + ba, ab + bb, ac + bc
    determinant = np.clip(p * q - r**2, 0, None)  # of boxes without area, rounding may leave less
    dx, dy = ax - bx, ay - by
    shifted = (p * dy**2 + q * dx**2 - 2 * r * dx * dy) / (determinant + _TINY) / 4
    product = np.sqrt(np.clip(aa * ab - ac**2, 0, None) * np.clip(ba * bb - bc**2, 0, None))
    spread = np.log(determinant / (4 * product + _TINY) + _TINY) / 2
    bhattacharyya = np.clip(shifted + spread, _TINY, 100)
    overlap: Array = 1 - np.sqrt(1 - np.exp(-bhattacharyya) + _TINY)
    return overlap


def _gaussians(boxes: Array) -> tuple[Array, Array, Array, Array, Array]:
    """Centre, and variances along x and y with their covariance, of the uniform distribution over each box."""
    x, y, width, height, angle = np.moveaxis(boxes.astype(np.float64), -1, 0)
    along, across = width**2 / 12, height**2 / 12
    cos, sin = np.cos(angle), np.sin(angle)
    return x, y, along * cos**2 + across * sin**2, along * sin**2 + across * cos**2, (along - across) * cos * sin


def keep(candidates: Candidates, selection: Selection) -> Candidates:
    """Non-maximum suppression by probabilistic IoU, by class unless ``class_agnostic``."""
    class_ids = None if selection.class_agnostic else candidates.class_ids
    rows = suppress(
        candidates.boxes,
        candidates.scores,
        selection.iou_threshold,
        probabilistic_iou,
        class_ids=class_ids,
        limit=selection.max_detections,
    )
    return candidates.take(rows)


def corners(boxes: Array, geometry: Geometry) -> Array:
    """The corners float32 [N, 4, 2] of oriented boxes [N, 5] of the input, in pixels of the picture, not clipped."""
    center, angle = boxes[:, None, :2], boxes[:, 4, None]
    along = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * boxes[:, 2, None, None] / 2
    across = np.stack([-np.sin(angle), np.cos(angle)], axis=-1) * boxes[:, 3, None, None] / 2
    around = [center - along - across, center + along - across, center + along + across, center - along + across]
    return geometry.to_picture(np.concatenate(around, axis=1).astype(np.float32))


def enclosing(around: Array, geometry: Geometry) -> Array:
    """The upright boxes float32 [N, 4] around corners [N, 4, 2] of the picture, clipped to it."""
    boxes = np.concatenate([around.min(axis=1), around.max(axis=1)], axis=1)
    limits = np.array([*geometry.source, *geometry.source], np.float32)
    clipped: Array = np.clip(boxes, 0, limits)
    return clipped
