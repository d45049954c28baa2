"""Pictures into a network's input: what to do, and the CPU reference that does it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, get_args

import numpy as np

from ..errors import InputError, MissingPackageError
from .geometry import Align, Geometry, Size

Array = np.ndarray[Any, Any]
Picture = np.ndarray[Any, np.dtype[np.uint8]]  # [H, W, 3], BGR as OpenCV reads it


class NV12:
    """A picture as video decoders give it, which tasks take instead of a BGR one.

    Args:
        planes: uint8 [H * 3 / 2, W], H and W even: the luma, and below it U and V in turn for every 2 × 2 pixels, as
            OpenCV's COLOR_YUV2BGR_NV12 takes them (BT.601, limited range).

    Raises InputError for other arrays.
    """

    def __init__(self, planes: Array) -> None:
        fits = isinstance(planes, np.ndarray) and planes.dtype == np.uint8 and planes.ndim == 2 and planes.size > 0
        if not fits or planes.shape[0] % 3 or planes.shape[1] % 2:
            got = (
                f"{planes.dtype.name} {list(planes.shape)}" if isinstance(planes, np.ndarray) else type(planes).__name__
            )
            raise InputError(f"NV12 is uint8 [height * 3 / 2, width] of even height and width, got {got}.")
        self.planes = np.ascontiguousarray(planes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the BGR picture."""
        rows, width = self.planes.shape
        return rows // 3 * 2, width, 3

    @property
    def nbytes(self) -> int:
        return self.planes.nbytes

    def to_bgr(self) -> Picture:
        cv2 = import_cv2()
        picture: Picture = cv2.cvtColor(self.planes, cv2.COLOR_YUV2BGR_NV12)
        return picture


_KNOWN = {
    "mode": ("letterbox", "stretch", "center_crop"),
    "align": get_args(Align),
    "channels": ("RGB", "BGR", "GREY"),
    "layout": ("NCHW", "NHWC"),
    "dtype": ("float32", "float16", "uint8", "int8"),
}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def check_size(size: object) -> None:
    """Raise InputError unless this is (width, height) of an input."""
    if (
        not isinstance(size, (tuple, list, np.ndarray))
        or len(size) != 2
        or not all(isinstance(length, (int, np.integer)) and length >= 1 for length in size)
    ):
        raise InputError(f"the size is (width, height) of the network's input, like (640, 480), got {size!r}.")


_LARGEST = 1 << 26  # pixels of a resized picture: 0.2 GB, which only a crop of a very long picture passes


@dataclass(frozen=True)
class Preprocess:
    """What the network was trained on.

    A picture is resized bilinearly with half-pixel centres (OpenCV's INTER_LINEAR) and rounded to whole grey levels;
    a level v of a channel then becomes (v * scale - mean) / std, per channel after ordering. Integer inputs get that
    value rounded to the nearest, halves to even, and saturated. Raises InputError where the fields conflict.
    """

    size: Size  # (width, height) of the input
    mode: Literal["letterbox", "stretch", "center_crop"] = "letterbox"
    align: Align = "center"  # where a letterboxed picture lies; YOLOX and PP-OCR put it at the top left
    short_side: int | None = None  # center_crop: the picture's shorter side before the crop; None: it just covers
    padding: int = 114  # grey level beside a letterboxed picture
    channels: Literal["RGB", "BGR", "GREY"] = "RGB"
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "float16", "uint8", "int8"] = "float32"

    def __post_init__(self) -> None:
        depth = self.depth
        for name, known in _KNOWN.items():
            if getattr(self, name) not in known:
                raise InputError(f"{name} is one of {', '.join(known)}, got {getattr(self, name)!r}.")
        for name in ("short_side", "padding", "scale", "mean", "std"):
            value = getattr(self, name)
            if name in ("mean", "std"):
                if not isinstance(value, (tuple, list, np.ndarray)) or not all(map(_is_number, value)):
                    raise InputError(f"{name} is made of finite numbers, one for each channel, got {value!r}.")
            elif not (value is None and name == "short_side") and not _is_number(value):
                raise InputError(f"{name} is one finite number, got {value!r}.")
        check_size(self.size)
        if len(self.mean) < depth or len(self.std) < depth or 0 in self.std:
            raise InputError(
                f"{self.channels} needs {depth} means and {depth} standard deviations other than 0, "
                f"got {self.mean} and {self.std}."
            )
        if not 0 <= self.padding <= 255:
            raise InputError(f"padding is a grey level from 0 to 255, got {self.padding}.")
        if self.short_side is not None and self.mode != "center_crop":
            raise InputError(f"short_side belongs to mode='center_crop', not to {self.mode!r}. Leave it out.")

    @property
    def depth(self) -> int:
        """How many channels the input has."""
        return 1 if self.channels == "GREY" else 3

    def shape(self, batch: int) -> tuple[int, int, int, int]:
        """The input's shape for so many pictures."""
        width, height = self.size
        return (batch, self.depth, height, width) if self.layout == "NCHW" else (batch, height, width, self.depth)

    def geometry(self, source: Size) -> Geometry:
        """Where a picture of this size (width, height) lies in the input.

        Raises InputError where it would become too large before its middle is cut out.
        """
        if self.mode == "letterbox":
            return Geometry.letterbox(source, self.size, align=self.align)
        if self.mode == "stretch":
            return Geometry.stretch(source, self.size)
        geometry = Geometry.center_crop(source, self.size, short_side=self.short_side)
        width, height = geometry.resized
        if width * height > _LARGEST:
            raise InputError(
                f"a picture of {source[0]}×{source[1]} would become {width}×{height} before its middle is cut out. "
                "Crop it yourself, or use mode='letterbox' or 'stretch'."
            )
        return geometry

    def table(self) -> Array:
        """What the grey levels 0 … 255 become: [channels, 256] of the input's dtype, each rounded once."""
        levels = np.arange(256, dtype=np.float64)
        depth = self.depth
        values = (levels * self.scale - np.reshape(self.mean[:depth], (-1, 1))) / np.reshape(self.std[:depth], (-1, 1))
        dtype = np.dtype(self.dtype)
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            values = np.clip(np.rint(values), limits.min, limits.max)
        table: Array = values.astype(dtype)
        return table


def prepare_reference(
    pictures: Sequence[Picture | NV12], how: Preprocess, *, out: Array | None = None
) -> tuple[Array, list[Geometry]]:
    """Pictures into one batch on the CPU, with OpenCV and NumPy: the reference of every other implementation.

    Args:
        pictures: BGR pictures uint8 [H, W, 3], or NV12, of any sizes and strides.
        how: what the network takes.
        out: where to write, C-contiguous, of the shape and dtype that follow from ``how``; None makes a new array.

    Returns the batch, C-contiguous, of ``how.shape(len(pictures))``, and where each picture lies in it. Raises
    InputError for anything that is no picture.
    """
    cv2 = import_cv2()
    shape = how.shape(len(pictures))
    if out is not None and (out.shape != shape or out.dtype != how.dtype or not out.flags.c_contiguous):
        raise InputError(
            f"out must be C-contiguous {how.dtype} {list(shape)}, got {out.dtype.name} {list(out.shape)}. "
            "Leave it out for a new array."
        )
    batch = np.empty(shape, how.dtype) if out is None else out
    table = how.table()
    geometries = []
    for index, given in enumerate(pictures):
        check_picture(given)
        picture = as_bgr(given)
        geometry = how.geometry((picture.shape[1], picture.shape[0]))
        planes = _planes(place(picture, geometry, how.padding), how.channels)
        for channel, plane in enumerate(planes):
            # One plane at a time: many times faster than transposing a picture of floats.
            if how.layout == "NHWC":
                batch[index, :, :, channel] = table[channel][plane]
            elif how.dtype == "float16":  # which OpenCV does not know before version 5: looked up as 16 bits
                cv2.LUT(plane, table[channel].view(np.uint16), dst=batch[index, channel].view(np.uint16))
            else:
                cv2.LUT(plane, table[channel], dst=batch[index, channel])
        geometries.append(geometry)
    return batch, geometries


def place(picture: Picture, geometry: Geometry, padding: int) -> Picture:
    """The picture at its place in the input: BGR uint8 [height, width, 3], padded with a grey level."""
    cv2 = import_cv2()
    width, height = geometry.resized
    resized = picture
    if (width, height) != geometry.source:
        resized = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    left, top = geometry.offset
    resized = resized[max(-top, 0) : max(-top, 0) + geometry.target[1], max(-left, 0) :][:, : geometry.target[0]]
    right, bottom = geometry.target[0] - max(left, 0) - width, geometry.target[1] - max(top, 0) - height
    if max(left, top, right, bottom) <= 0:
        return resized
    placed: Picture = cv2.copyMakeBorder(
        resized,
        max(top, 0), max(bottom, 0), max(left, 0), max(right, 0),
        cv2.BORDER_CONSTANT, value=(padding, padding, padding),
    )  # fmt: skip
    return placed


def _planes(picture: Picture, channels: str) -> Sequence[Picture]:
    cv2 = import_cv2()
    if channels == "GREY":
        return [cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)]
    planes: Sequence[Picture] = cv2.split(picture)
    return planes[::-1] if channels == "RGB" else planes


def check_picture(picture: Any) -> None:
    """Raise InputError unless this is a BGR picture uint8 [H, W, 3] or NV12."""
    if isinstance(picture, NV12):
        return
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


def as_bgr(picture: Picture | NV12) -> Picture:
    return picture.to_bgr() if isinstance(picture, NV12) else picture


def import_cv2() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(f"OpenCV cannot be imported ({error}). Run: pip install 'trtrun[vision]'") from error
    return cv2


def import_pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingPackageError(f"Pillow cannot be imported ({error}). Run: pip install 'trtrun[vision]'") from error
    return Image
