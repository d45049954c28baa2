"""Where a picture's pixels are in the network's input, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Points = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Letterbox:
    """A picture scaled to fit an input of fixed size, centred, its aspect ratio kept, the rest padded.

    Sizes are (width, height) in pixels. Coordinates are continuous: pixel i covers the interval from i to i + 1.
    """

    source: tuple[int, int]
    target: tuple[int, int]

    @property
    def resized(self) -> tuple[int, int]:
        """Size of the scaled picture inside the target."""
        (sw, sh), (tw, th) = self.source, self.target
        scale = min(tw / sw, th / sh)
        return max(1, min(tw, round(sw * scale))), max(1, min(th, round(sh * scale)))

    @property
    def offset(self) -> tuple[int, int]:
        """Columns of padding at the left, rows at the top."""
        return (self.target[0] - self.resized[0]) // 2, (self.target[1] - self.resized[1]) // 2

    @property
    def _scale(self) -> Points:
        # Per axis: rounding the resized picture to whole pixels stretches the two axes by slightly different factors.
        scale: Points = np.divide(self.resized, self.source, dtype=np.float32)
        return scale

    def to_input(self, points: Points) -> Points:
        """Points [..., 2] (x, y) of the picture as points of the network's input."""
        return points * self._scale + np.array(self.offset, np.float32)

    def to_picture(self, points: Points) -> Points:
        """Points [..., 2] (x, y) of the network's input as points of the picture; not clipped."""
        return (points - np.array(self.offset, np.float32)) / self._scale

    def boxes_to_picture(self, boxes: Points) -> Points:
        """Boxes [N, 4] (x1, y1, x2, y2) of the input as boxes of the picture, clipped to it."""
        corners = self.to_picture(boxes.reshape(-1, 2, 2))
        return np.clip(corners, 0, np.array(self.source, np.float32)).reshape(-1, 4)
