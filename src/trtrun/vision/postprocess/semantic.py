"""A class for every pixel: scores ``map`` [B, C, h, w], or class numbers [B, h, w] or [B, 1, h, w] already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..geometry import Geometry
from ..results import Names, SegmentationMap

Array = np.ndarray[Any, Any]


def decode(outputs: Mapping[str, Array], geometries: Sequence[Geometry], *, names: Names) -> list[SegmentationMap]:
    """The class of each pixel of each picture.

    Scores are interpolated to the picture's pixels and then compared, class by class, which gives smooth borders and
    needs the memory of two classes. Where scores are equal, the first class wins.
    """
    return [
        SegmentationMap(_decode_one(values, geometry), names)
        for values, geometry in zip(outputs["map"], geometries, strict=False)
    ]


def _decode_one(values: Array, geometry: Geometry) -> Array:
    if values.dtype.kind in "iu":
        numbers = values.reshape(values.shape[-2:]).astype(np.float32)  # OpenCV warps no integers of 32 or 64 bits
        return geometry.map_to_picture(numbers, nearest=True).astype(np.int32)
    best = geometry.map_to_picture(values[0].astype(np.float32))
    class_ids = np.zeros(best.shape, np.int32)
    for index in range(1, len(values)):
        scores = geometry.map_to_picture(values[index].astype(np.float32))
        better = scores > best
        class_ids[better] = index
        best[better] = scores[better]
    return class_ids
