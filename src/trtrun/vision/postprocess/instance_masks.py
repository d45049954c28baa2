"""Masks as weighted sums of prototypes (Bolya et al., "YOLACT", arXiv:1904.02689), as in the YOLO segmenters."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import Geometry

Array = np.ndarray[Any, Any]


def masks(coefficients: Array, prototypes: Array, boxes: Array, geometry: Geometry) -> Array:
    """One mask per detection, bool [N, H, W] over the picture.

    Args:
        coefficients: [N, M].
        prototypes: [M, h, w] over the network's input, at any resolution.
        boxes: [N, 4] in pixels of the picture; a mask ends at its box.

    A pixel belongs to the object where the weighted sum is above 0, which is where its sigmoid is above a half. The sum
    is interpolated to the picture's pixels before, so that outlines are smooth.
    """
    width, height = geometry.source
    depth, rows, columns = prototypes.shape
    sums = (coefficients.astype(np.float32) @ prototypes.astype(np.float32).reshape(depth, -1)).reshape(
        -1, rows, columns
    )
    found = np.zeros((len(boxes), height, width), bool)
    # A pixel is in the box when its centre is.
    edges = np.clip(np.ceil(boxes - 0.5), 0, [width, height, width, height]).astype(int)
    for index, (left, top, right, bottom) in enumerate(edges.tolist()):
        if left < right and top < bottom:
            region = (left, top, right, bottom)
            found[index, top:bottom, left:right] = geometry.map_to_picture(sums[index], region=region) > 0
    return found
