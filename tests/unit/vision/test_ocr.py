from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

import trtrun
from tests.unit.vision.heads import Outputs
from trtrun.vision.ocr import TextReader, read_symbols, rectify

SYMBOLS = ["", *"abc", " "]  # the blank first, the space last


def steps(text: str) -> np.ndarray:
    """Certain probabilities for symbols by place, - for the blank."""
    table = np.full((len(text), len(SYMBOLS)), 0.02, np.float32)
    for step, symbol in enumerate(text):
        table[step, 0 if symbol == "-" else SYMBOLS.index(symbol)] = 0.9
    return table


@pytest.mark.parametrize(
    ("path", "text"),
    [("aa-ab--c", "aabc"), ("----", ""), ("-a  b-", "a b"), ("abc", "abc"), ("a-a", "aa"), ("aaa", "a")],
)
def test_repetitions_count_once_and_blanks_separate(path: str, text: str) -> None:
    said, score = read_symbols(steps(path), SYMBOLS)
    assert said == text
    assert score == pytest.approx(0.9 if text else 0)


def reader(heat: np.ndarray, lines: str = "a-b") -> TextReader:
    detector = Outputs({"heat": heat[None, None]}, image=(-1, 3, -1, -1))
    recognizer = Outputs(
        {"scores": np.repeat(steps(lines)[None], 6, axis=0)}, {"character": "a\nb\nc"}, image=(-1, 3, 48, -1)
    )
    return TextReader(detector, recognizer, size=(heat.shape[1], heat.shape[0]))


class Echo(Outputs):
    """Answers with as many rows as there were pictures."""

    def run(self, inputs, *, outputs="copy", stream=None):
        (images,) = inputs.values()
        return {name: np.repeat(values[:1], len(images), axis=0) for name, values in self.arrays.items()}


@pytest.mark.parametrize("angle", [0, 12, -20])
def test_lines_are_found_widened_and_read_in_order(angle: int) -> None:
    heat = np.zeros((320, 640), np.float32)
    planted = [((150, 80), (200, 24)), ((460, 84), (180, 24)), ((300, 220), (260, 30))]
    for center, size in planted:
        cv2.fillPoly(heat, [np.rint(cv2.boxPoints((center, size, angle))).astype(np.int32)], 0.9)
    heat[300:304, 600:610] = 0.4  # too unsure to be a line
    work = reader(heat)
    work.recognizer = Echo(work.recognizer.arrays, work.recognizer.metadata, work.recognizer.image.shape)
    found = work(np.zeros((640, 1280, 3), np.uint8))
    assert found.lines == ("ab", "ab", "ab")
    np.testing.assert_allclose(found.scores, 0.9, atol=1e-5)
    for corners, (center, (w, h)) in zip(found.corners, planted, strict=True):
        np.testing.assert_allclose(corners.mean(axis=0), np.array(center) * 2, atol=4)
        width, height = np.linalg.norm(corners[1] - corners[0]), np.linalg.norm(corners[3] - corners[0])
        # fillPoly draws the pixels of an edge whole, so that what was planted is larger.
        more = w * h * 1.6 / (w + h)
        np.testing.assert_allclose(
            [width, height], [(w + more) * 2, (h + more) * 2], atol=10
        )  # fillPoly draws edges whole
        along = corners[1] - corners[0]  # the upper edge runs to the right
        assert math.degrees(math.atan2(along[1], along[0])) == pytest.approx(angle, abs=2)


def test_nothing_is_an_empty_text() -> None:
    found = reader(np.zeros((64, 64), np.float32))(np.zeros((64, 64, 3), np.uint8))
    assert found.lines == ()
    assert found.corners.shape == (0, 4, 2)
    assert found.to_json() == []


def test_rectify_turns_upright() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    picture[40:60, 20:50] = (255, 0, 0)
    picture[40:60, 50:80] = (0, 0, 255)
    corners = np.array([[20, 40], [80, 40], [80, 60], [20, 60]], np.float32)
    upright = rectify(picture, corners)
    assert upright.shape == (20, 60, 3)
    assert (upright[5:15, 5:25] == (255, 0, 0)).all()
    assert (upright[5:15, 35:55] == (0, 0, 255)).all()
    assert rectify(picture, corners[:, ::-1].copy())[..., 0].shape == (20, 60)


def test_other_networks_are_refused() -> None:
    detector = Outputs({"heat": np.zeros((1, 1, 64, 64), np.float32)})
    with pytest.raises(trtrun.InputError, match="holds no characters"):
        TextReader(detector, Outputs({"scores": np.zeros((1, 4, 9), np.float32)}))
    with pytest.raises(trtrun.InputError, match="does not fit 3 characters"):
        TextReader(detector, Outputs({"scores": np.zeros((1, 4, 9), np.float32)}), characters="abc")
    with pytest.raises(trtrun.InputError, match="multiples of 32"):
        TextReader(detector, Outputs({"s": np.zeros((1, 4, 5), np.float32)}), characters="abc", size=(100, 64))


def test_what_cannot_be_run_is_reported_and_the_rest_goes_on() -> None:
    class Failing(Outputs):
        def run(self, inputs, *, outputs="copy", stream=None):
            if next(iter(inputs.values())).max() > 2:  # white
                raise trtrun.InputError("not this one")
            return super().run(inputs)

    work = reader(np.zeros((64, 64), np.float32))
    work.detector = Failing(work.detector.arrays, image=(-1, 3, -1, -1))
    dark, white = np.zeros((64, 64, 3), np.uint8), np.full((64, 64, 3), 255, np.uint8)
    found = list(work.stream([dark, white, dark]))
    assert [str(item.error) for item in found] == ["None", "not this one", "None"]
    assert [item.result is None for item in found] == [False, True, False]
