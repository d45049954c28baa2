"""Text on pictures, with two networks of PP-OCR: one finds lines of text, the other reads them.

The detector gives the probability of text per pixel; lines are its connected parts (Liao et al., "Real-time Scene Text
Detection with Differentiable Binarization", arXiv:1911.08947). The recognizer gives a distribution over characters per
step, read with connectionist temporal classification (Graves et al., 2006): repetitions count once, blanks not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import InputError
from ..runner import Runner
from .geometry import Geometry, Size
from .preprocess import Picture, Preprocess, as_bgr, import_cv2, prepare_reference
from .results import Text
from .sources import Source, read
from .task import Found, image_input

Array = np.ndarray[Any, Any]

_HEIGHT = 48  # of the recognizer's input
_WIDTHS = (160, 320, 640, 1280)  # its widths: few, so that few shapes are compiled


class TextReader:
    """Reads text; composed of two runners, which it does not close.

    Args:
        detector: probability of text [N, 1, H, W] from pictures [N, 3, H, W].
        recognizer: probabilities [N, T, characters + 2] from lines [N, 3, 48, W].
        size: (width, height) that pictures are letterboxed to for the detector, multiples of 32.
        characters: what the recognizer's classes are, without the blank before and the space behind them; without it
            they are read from the model's metadata (``character``).
        threshold: probability from which a pixel is text.
        box_threshold: mean probability from which a part is a line of text.
        unclip: how much lines are widened, because the network finds their inner part: area × unclip ÷ circumference.
        batch: lines per request.

    Raises InputError when the networks are others, or the characters are missing or of another number.
    """

    def __init__(
        self,
        detector: Runner,
        recognizer: Runner,
        *,
        size: Size = (960, 960),
        characters: Sequence[str] | None = None,
        threshold: float = 0.3,
        box_threshold: float = 0.6,
        unclip: float = 1.6,
        batch: int = 6,
    ) -> None:
        if characters is None:
            listed = recognizer.metadata.get("character")
            if not isinstance(listed, str):
                raise InputError(
                    "the recognizer's metadata holds no characters. Give them: characters=[…] (--characters)."
                )
            characters = listed.splitlines()
        (scores,) = recognizer.outputs.values()
        if len(scores.shape) != 3 or scores.shape[2] not in (-1, len(characters) + 2):
            raise InputError(
                f"the recognizer gives {scores}, which does not fit {len(characters)} characters, a blank and a space."
            )
        if any(length % 32 or length <= 0 for length in size):
            raise InputError(
                f"the detector takes sizes that are multiples of 32, got {size}. Choose another size (--size)."
            )
        self.detector, self.recognizer = detector, recognizer
        self._inputs = image_input(detector).name, image_input(recognizer).name
        self._symbols = ["", *characters, " "]
        self._preprocess = Preprocess(
            size, align="top_left", padding=0, channels="BGR",
            mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
        )  # fmt: skip
        self.threshold, self.box_threshold, self.unclip, self.batch = threshold, box_threshold, unclip, batch

    def __call__(self, picture: Picture) -> Text:
        """The lines of text on a BGR picture uint8 [H, W, 3], from top to bottom and left to right."""
        images, (geometry,) = prepare_reference([picture], self._preprocess)
        (heat,) = self.detector.run({self._inputs[0]: images}).values()
        corners = self.find(np.asarray(heat[0, 0], np.float32), geometry)
        lines = self.recognize([rectify(picture, one) for one in corners])
        kept = [i for i, (text, _) in enumerate(lines) if text.strip()]
        return Text(tuple(lines[i][0] for i in kept), np.array([lines[i][1] for i in kept], np.float32), corners[kept])

    def stream(self, source: Source) -> Iterator[Found]:
        """Everything in a source, in order; what cannot be read or run comes with its error in its turn."""
        for item in read(source):
            result, error = None, item.error
            if item.picture is not None:
                try:
                    result = self(as_bgr(item.picture))
                except Exception as failure:  # of this picture; the rest goes on
                    error = failure
            yield Found(item.name, item.picture, result, error, item.frames_per_second)

    def find(self, heat: Array, geometry: Geometry) -> Array:
        """Corners float32 [N, 4, 2] of the lines in a map [H, W] of probabilities, in pixels of the picture."""
        cv2 = import_cv2()
        contours, _ = cv2.findContours((heat > self.threshold).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        found = []
        for contour in contours:
            center, (width, height), angle = cv2.minAreaRect(contour)
            if min(width, height) < 3:
                continue
            x, y, w, h = cv2.boundingRect(contour)
            mask = np.zeros((h, w), np.uint8)
            inner = np.rint(cv2.boxPoints((center, (width, height), angle)) - (x, y)).astype(np.int32)
            cv2.fillPoly(mask, [inner], 1)
            if cv2.mean(heat[y : y + h, x : x + w], mask)[0] < self.box_threshold:
                continue
            # A rectangle pushed outwards by a distance is a rectangle again, longer by twice that.
            more = width * height * self.unclip / (2 * (width + height)) * 2
            points = cv2.boxPoints((center, (width + more, height + more), angle)).astype(np.float32)
            found.append(_from_top_left(geometry.to_picture(points)))
        # Lines whose middles are within half a height are one row.
        found.sort(key=lambda one: float(one[:, 1].mean()))
        rows: list[list[Array]] = []
        for one in found:
            height = float(np.linalg.norm(one[3] - one[0]))
            if rows and abs(one[:, 1].mean() - rows[-1][0][:, 1].mean()) < height / 2:
                rows[-1].append(one)
            else:
                rows.append([one])
        ordered = [one for row in rows for one in sorted(row, key=lambda one: float(one[:, 0].min()))]
        return np.array(ordered, np.float32).reshape(-1, 4, 2)

    def recognize(self, lines: Sequence[Picture]) -> list[tuple[str, float]]:
        """What each picture of a line says, and the mean probability of its characters."""
        results: list[tuple[str, float]] = [("", 0.0)] * len(lines)
        by_width: dict[int, list[int]] = {}
        for index, line in enumerate(lines):
            wanted = _HEIGHT * line.shape[1] / line.shape[0]
            by_width.setdefault(next((w for w in _WIDTHS if w >= wanted), _WIDTHS[-1]), []).append(index)
        for width, members in by_width.items():
            how = Preprocess(
                (width, _HEIGHT), align="top_left", padding=0, channels="BGR", mean=(0.5,) * 3, std=(0.5,) * 3
            )
            for start in range(0, len(members), self.batch):
                part = members[start : start + self.batch]
                images, geometries = prepare_reference([lines[i] for i in part], how)
                for image, geometry in zip(images, geometries, strict=True):
                    image[:, :, geometry.resized[0] :] = 0  # padded after normalization, as it was trained
                (scores,) = self.recognizer.run({self._inputs[1]: images}).values()
                for i, one in zip(part, scores, strict=True):
                    results[i] = read_symbols(np.asarray(one, np.float32), self._symbols)
        return results


def read_symbols(scores: Array, symbols: Sequence[str]) -> tuple[str, float]:
    """The text of probabilities [T, symbols], the first of which is the blank, and its characters' mean probability."""
    best = scores.argmax(axis=1)
    kept = np.flatnonzero((best != 0) & np.concatenate([[True], best[1:] != best[:-1]]))
    text = "".join(symbols[best[step]] for step in kept)
    return text, float(scores[kept, best[kept]].mean()) if len(kept) else 0.0


def rectify(picture: Picture, corners: Array) -> Picture:
    """The quadrilateral of a picture as an upright picture; columns of letters are turned to lie."""
    cv2 = import_cv2()
    width = max(1, round(float(max(np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[2] - corners[3])))))
    height = max(1, round(float(max(np.linalg.norm(corners[3] - corners[0]), np.linalg.norm(corners[2] - corners[1])))))
    target = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    upright: Picture = cv2.warpPerspective(
        picture, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.ascontiguousarray(np.rot90(upright)) if height >= 1.5 * width else upright


def _from_top_left(corners: Array) -> Array:
    """The corners of a rectangle from the top left clockwise, for text that is less than 45 degrees off."""
    order = np.argsort(np.arctan2(*(corners - corners.mean(axis=0)).T[::-1]))  # clockwise, as y points down
    clockwise = corners[order]
    return np.roll(clockwise, -int(clockwise.sum(axis=1).argmin()), axis=0)
