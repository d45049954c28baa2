"""A picture into a network's input, on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..errors import InputError, MissingPackageError
from .geometry import Letterbox

Picture = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3], BGR as OpenCV reads it


@dataclass(frozen=True)
class Preprocessing:
    """What the network was trained on. A value v becomes (v * scale - mean) / std, per channel after ordering."""

    channels: Literal["RGB", "BGR"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    padding: int = 114  # grey level beside a letterboxed picture


def letterbox(
    picture: Picture, size: tuple[int, int], preprocessing: Preprocessing | None = None
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], Letterbox]:
    """A BGR picture uint8 [H, W, 3] as float32 [1, 3, height, width] for ``size`` (width, height), and its geometry.

    Bilinear interpolation with half-pixel centres, OpenCV's INTER_LINEAR. Raises InputError for anything else.
    """
    cv2 = import_cv2()
    how = preprocessing or Preprocessing()
    _check(picture)
    geometry = Letterbox((picture.shape[1], picture.shape[0]), size)
    (width, height), (left, top) = geometry.resized, geometry.offset
    canvas = np.full((size[1], size[0], 3), how.padding, np.uint8)
    canvas[top : top + height, left : left + width] = cv2.resize(
        picture, (width, height), interpolation=cv2.INTER_LINEAR
    )
    values = np.empty((1, 3, size[1], size[0]), np.float32)
    planes = cv2.split(canvas)  # one plane at a time: thirty times faster than transposing a float picture
    for index, plane in enumerate(planes[::-1] if how.channels == "RGB" else planes):
        np.multiply(plane, how.scale / how.std[index], out=values[0, index], dtype=np.float32)
        values[0, index] -= np.float32(how.mean[index] / how.std[index])
    return values, geometry


def _check(picture: Picture) -> None:
    if not isinstance(picture, np.ndarray):
        raise InputError(
            f"a picture must be a NumPy array, got {type(picture).__name__}. "
            "cv2.imread returns None for a file that is missing or is no image."
        )
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or 0 in picture.shape:
        raise InputError(
            f"a picture must be uint8 [height, width, 3] in BGR order, got {picture.dtype.name} {list(picture.shape)}. "
            "cv2.imread(path, cv2.IMREAD_COLOR) returns that for any image file."
        )


def import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(f"OpenCV cannot be imported ({error}). Run: pip install 'trtrun[vision]'") from error
    return cv2
