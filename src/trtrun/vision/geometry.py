"""Where a picture's pixels are in the network's input, and back."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Points = np.ndarray[Any, np.dtype[np.float32]]
Array = np.ndarray[Any, Any]
Size = tuple[int, int]  # (width, height) in pixels
Align = Literal["center", "top_left"]


@dataclass(frozen=True)
class Geometry:
    """A picture resized to ``resized`` and laid into an input of size ``target`` with its corner at ``offset``.

    Sizes are (width, height) in pixels. Coordinates are continuous: pixel i covers the interval from i to i + 1, so a
    point of the picture times ``resized / source`` plus ``offset`` is a point of the input. Negative offsets
    crop.
    """

    source: Size
    target: Size
    resized: Size
    offset: tuple[int, int]  # columns at the left, rows at the top

    @classmethod
    def letterbox(cls, source: Size, target: Size, *, align: Align = "center") -> Geometry:
        """Scaled to fit, the aspect ratio kept; the rest is padding, on all sides or at the right and below.

        Centred, the size is rounded and an odd row or column of padding goes to the right or below, as in Ultralytics;
        at the top left it is cut to whole pixels, as in YOLOX.
        """
        scale = min(target[0] / source[0], target[1] / source[1])
        whole = round if align == "center" else int
        width = max(1, min(target[0], whole(source[0] * scale)))
        height = max(1, min(target[1], whole(source[1] * scale)))
        offset = ((target[0] - width) // 2, (target[1] - height) // 2) if align == "center" else (0, 0)
        return cls(source, target, (width, height), offset)

    @classmethod
    def stretch(cls, source: Size, target: Size) -> Geometry:
        """Each axis scaled to the input's."""
        return cls(source, target, target, (0, 0))

    @classmethod
    def center_crop(cls, source: Size, target: Size, *, short_side: int | None = None) -> Geometry:
        """Scaled until the shorter side is ``short_side`` long, then the middle cut out, as classifiers are trained.

        Without ``short_side`` the picture just covers the input; it always covers it.
        """
        cover = max(target[0] / source[0], target[1] / source[1])
        scale = max(cover, (short_side or 0) / min(source))
        width, height = max(target[0], round(source[0] * scale)), max(target[1], round(source[1] * scale))
        return cls(source, target, (width, height), (-round((width - target[0]) / 2), -round((height - target[1]) / 2)))

    @functools.cached_property
    def scale(self) -> Points:
        """Pixels of the input per pixel of the picture, per axis (x, y).

        Rounding the resized picture to whole pixels stretches the two axes by slightly different factors.
        """
        scale: Points = np.divide(self.resized, self.source, dtype=np.float32)
        scale.flags.writeable = False
        return scale

    @functools.cached_property
    def _for_boxes(self) -> tuple[Points, Points, Points]:
        """Offset, scale and the picture's size, each twice: for both corners of a box."""
        twice = np.array([self.offset, self.scale, self.source], np.float32)
        offset, scale, size = np.concatenate([twice, twice], axis=1)
        return offset, scale, size

    def to_input(self, points: Points) -> Points:
        """Points [..., 2] (x, y) of the picture as points of the network's input."""
        return points * self.scale + np.array(self.offset, np.float32)

    def to_picture(self, points: Points) -> Points:
        """Points [..., 2] (x, y) of the network's input as points of the picture; not clipped."""
        return (points - np.array(self.offset, np.float32)) / self.scale

    def boxes_to_input(self, boxes: Points) -> Points:
        """Boxes [N, 4] (x1, y1, x2, y2) of the picture as boxes of the input; not clipped."""
        return self.to_input(boxes.reshape(-1, 2, 2)).reshape(-1, 4)

    def boxes_to_picture(self, boxes: Points) -> Points:
        """Boxes [N, 4] (x1, y1, x2, y2) of the input as boxes of the picture, clipped to it."""
        offset, scale, size = self._for_boxes
        found: Points = np.subtract(boxes, offset)
        np.divide(found, scale, out=found)
        np.maximum(found, 0, out=found)  # np.clip takes longer than all of this together
        np.minimum(found, size, out=found)
        return found

    def map_to_picture(
        self, values: Array, *, nearest: bool = False, region: tuple[int, int, int, int] | None = None
    ) -> Array:
        """A map [h, w] that covers the network's input, at any resolution, as a map [H, W] of the picture.

        Bilinear with half-pixel centres, or the nearest value, which keeps class numbers whole. Where the picture was
        cropped, the map's edge is continued. ``region`` (x1, y1, x2, y2), in whole pixels, is the part that is wanted.
        """
        from .preprocess import import_cv2

        cv2 = import_cv2()
        height, width = values.shape
        left, top, right, bottom = region or (0, 0, *self.source)
        to_map = np.array([width / self.target[0], height / self.target[1]])
        scale = np.divide(self.resized, self.source) * to_map
        # Pixel centres: the picture's pixel X is at X + 0.5, and the map's value m is at m + 0.5.
        shift = (np.array([left, top]) + 0.5) * scale + np.array(self.offset) * to_map - 0.5
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        flags = (cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR) | cv2.WARP_INVERSE_MAP
        size = (right - left, bottom - top)
        mapped: Array = cv2.warpAffine(values, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        return mapped
