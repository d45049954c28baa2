"""Results drawn on their picture, through supervision's annotators."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .preprocess import NV12, Picture, as_bgr, import_cv2
from .results import Classification, Detections, Matte, Result, SegmentationMap, Text, import_supervision

# Hues that stay apart from each other and from photographs, and carry white or black text; as #RRGGBB.
COLORS = ["#1F9E55", "#2F6FDE", "#E0692A", "#B0369B", "#C9A100", "#0FA3B1", "#D63A4A", "#7A5AF0", "#6B8E23", "#A0522D"]
# The limbs of COCO's 17 keypoints, counted from 1 as supervision counts.
_COCO_LIMBS = (
    (16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9), (8, 10), (9, 11),
    (2, 3), (1, 2), (1, 3), (2, 4), (3, 5),
)  # fmt: skip
_LONGEST_JPEG = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_CROWD = 15  # from more objects on, small ones go without a label
_MARK = b"Drawn by trtrun"
_NEAR = 256  # bytes at the front of a picture, in which its mark is
_VISIBLE = 0.5  # keypoints that are less sure are not drawn


def draw(picture: Picture | NV12, result: Result) -> Picture:
    """A copy of a BGR picture uint8 [H, W, 3] with the result on it; lines and letters follow the picture's size."""
    picture = as_bgr(picture)
    if isinstance(result, Detections):
        return _draw_detections(picture, result)
    if isinstance(result, Classification):
        lines = [f"{result.label(i)}  {result.scores[i]:.2f}" for i in range(len(result))]
        return _banner(picture, lines)
    if isinstance(result, SegmentationMap):
        return _draw_map(picture, result)
    if isinstance(result, Text):
        return _draw_text(picture, result)
    return _draw_matte(picture, result)


def encode(picture: Picture) -> tuple[str, bytes]:
    """A picture as the suffix and the bytes of a file: JPEG, or PNG where a side is longer than JPEG takes.

    A comment in it says that it is a drawing; see :func:`is_drawing`. Raises InputError where PNG does not take it.
    """
    cv2 = import_cv2()
    suffix, options = (
        (".jpg", [cv2.IMWRITE_JPEG_QUALITY, 92]) if max(picture.shape[:2]) <= _LONGEST_JPEG else (".png", [])
    )
    try:
        good, data = cv2.imencode(suffix, picture, options)
    except cv2.error:
        good = False
    if not good:
        raise InputError(f"OpenCV cannot encode a picture of {picture.shape[1]}×{picture.shape[0]} as {suffix}.")
    encoded: bytes = data.tobytes()
    if suffix == ".jpg":
        at = 4 + int.from_bytes(encoded[4:6], "big")  # behind the JFIF header, which has to be first
        comment = b"\xff\xfe" + (2 + len(_MARK)).to_bytes(2, "big") + _MARK
    else:
        at = 33  # behind the header
        text = b"tEXtComment\0" + _MARK
        comment = (len(text) - 4).to_bytes(4, "big") + text + zlib.crc32(text).to_bytes(4, "big")
    return suffix, encoded[:at] + comment + encoded[at:]


def mark_video(path: Path) -> None:
    """Say in an MP4 file that it is a drawing: in a box behind the others, of the type that readers skip."""
    with path.open("ab") as file:
        file.write((8 + len(_MARK)).to_bytes(4, "big") + b"free" + _MARK)


def is_drawing(path: Path) -> bool:
    """Whether :func:`encode` or :func:`mark_video` made this file what it is. Raises OSError."""
    with path.open("rb") as file:
        head = file.read(_NEAR)
        file.seek(max(file.seek(0, 2) - len(_MARK), 0))
        return _MARK in head or file.read() == _MARK


def _sizes(picture: Picture) -> tuple[int, float, int]:
    """Thickness of lines, scale and thickness of letters, for a picture of this size."""
    side = min(max(min(picture.shape[:2]), 1), max(picture.shape[:2]) / 1.5)
    letters = min(max(0.4, side / 1100), 2.5)
    return max(1, round(side / 270)), letters, max(1, round(1.6 * letters))


def _palette() -> Any:
    return import_supervision().ColorPalette.from_hex(COLORS)


def _draw_detections(picture: Picture, found: Detections) -> Picture:
    canvas: Picture = picture.copy()
    if not len(found):
        return canvas
    sv = import_supervision()
    palette = _palette()
    objects = found.to_supervision()
    line, letters, stroke = _sizes(picture)
    if found.masks is not None:
        canvas = sv.MaskAnnotator(palette, opacity=0.45).annotate(canvas, objects)
    boxes = sv.BoxAnnotator if found.corners is None else sv.OrientedBoxAnnotator
    canvas = boxes(palette, thickness=line).annotate(canvas, objects)
    if found.keypoints is not None:
        _draw_keypoints(canvas, found, line)
    # One class without a name needs no number beside every box.
    nameless = not found.names and not found.class_ids.any()
    texts = [f"{'' if nameless else found.label(i) + ' '}{found.scores[i]:.2f}" for i in range(len(found))]
    if found.track_ids is not None:
        texts = [f"#{i} {text}" if i >= 0 else text for i, text in zip(found.track_ids, texts, strict=True)]
    labels = sv.LabelAnnotator(
        palette, text_scale=letters, text_thickness=stroke, text_padding=max(2, round(7 * letters)), smart_position=True
    )
    rows = np.arange(len(found))
    if len(found) > _CROWD:
        # Labels wider than their boxes would hide the rest of a crowd.
        cv2, font = import_cv2(), import_cv2().FONT_HERSHEY_SIMPLEX
        widths = np.array([cv2.getTextSize(text, font, letters, stroke)[0][0] for text in texts])
        rows = np.flatnonzero(found.boxes[:, 2] - found.boxes[:, 0] >= widths)
    drawn: Picture = labels.annotate(canvas, objects[rows], labels=[texts[i] for i in rows])
    return drawn


def _draw_keypoints(canvas: Picture, found: Detections, line: int) -> None:
    cv2 = import_cv2()
    assert found.keypoints is not None
    for index, points in enumerate(found.keypoints):
        sure = np.isfinite(points).all(axis=1)
        if found.keypoint_scores is not None:
            sure &= found.keypoint_scores[index] >= _VISIBLE
        place = [(round(float(x)), round(float(y))) if ok else (0, 0) for (x, y), ok in zip(points, sure, strict=True)]
        for a, b in _COCO_LIMBS if len(points) == 17 else ():
            if sure[a - 1] and sure[b - 1]:
                cv2.line(canvas, place[a - 1], place[b - 1], (255, 200, 0), line, cv2.LINE_AA)
        for at, ok in zip(place, sure, strict=True):
            if ok:
                cv2.circle(canvas, at, line + 2, (255, 255, 255), cv2.FILLED, cv2.LINE_AA)
                cv2.circle(canvas, at, line + 1, (220, 120, 0), cv2.FILLED, cv2.LINE_AA)


def _draw_map(picture: Picture, found: SegmentationMap) -> Picture:
    """Every class in its colour, except the first, which is the background where it is named so."""
    cv2 = import_cv2()
    palette = _palette()
    ids = np.unique(found.class_ids)
    colors = np.array([palette.by_idx(int(i)).as_bgr() for i in ids], np.uint8)
    overlay = colors[np.searchsorted(ids, found.class_ids)]
    canvas = cv2.addWeighted(picture, 0.5, overlay, 0.5, 0)
    background = (
        found.class_ids == 0 if found.names.get(0, "").lower() in ("background", "bg", "__background__") else None
    )
    if background is not None:
        canvas[background] = picture[background]
    shown = [row for row in found.to_json() if background is None or row["class_id"] != 0][:6]
    return _banner(
        canvas,
        [f"{row['class']}  {100 * row['share']:.0f} %" for row in shown],
        [palette.by_idx(row["class_id"]).as_bgr() for row in shown],
    )


def _draw_matte(picture: Picture, found: Matte) -> Picture:
    """The foreground on a checkerboard, as picture editors show what is transparent."""
    height, width = found.alpha.shape
    tile = max(4, min(height, width) // 40)
    rows, columns = np.arange(height)[:, None] // tile, np.arange(width)[None] // tile
    board = np.where((rows + columns) % 2, np.uint8(255), np.uint8(214))[..., None]
    alpha = found.alpha[..., None]
    blended: Picture = np.rint(picture * alpha + board * (1 - alpha)).astype(np.uint8)
    return blended


def _draw_text(picture: Picture, found: Text) -> Picture:
    cv2 = import_cv2()
    canvas: Picture = picture.copy()
    line = _sizes(picture)[0]
    for corners in found.corners:
        cv2.polylines(canvas, [np.rint(corners).astype(np.int32)], True, (60, 60, 214), line, cv2.LINE_AA)
    return canvas


def _banner(picture: Picture, lines: list[str], colors: list[tuple[int, int, int]] | None = None) -> Picture:
    """Lines of text in a dark panel at the top left, with a patch of colour before each where there are colours."""
    cv2 = import_cv2()
    canvas: Picture = picture.copy()
    if not lines:
        return canvas
    _, letters, stroke = _sizes(picture)
    font = cv2.FONT_HERSHEY_SIMPLEX
    sizes = [cv2.getTextSize(text, font, letters, stroke)[0] for text in lines]
    height = max(size[1] for size in sizes)
    pad, step = max(2, height // 2), round(height * 1.9)
    patch = height + pad if colors else 0
    right, bottom = max(size[0] for size in sizes) + 2 * pad + patch, step * len(lines) + pad
    panel = canvas[:bottom, :right]
    panel[...] = (panel * 0.3).astype(np.uint8)
    for index, text in enumerate(lines):
        base = pad // 2 + step * index + (step + height) // 2
        if colors:
            cv2.rectangle(canvas, (pad, base - height), (pad + height, base), colors[index], cv2.FILLED)
        cv2.putText(canvas, text, (pad + patch, base), font, letters, (255, 255, 255), stroke, cv2.LINE_AA)
    return canvas
