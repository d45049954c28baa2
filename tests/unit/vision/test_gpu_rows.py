"""The rows of a picture that are sent to the GPU are those that OpenCV's resize reads."""

from __future__ import annotations

import logging

import cv2
import numpy as np
import pytest

from tests import models
from trtrun import vision
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.vision.geometry import Geometry
from trtrun.vision.gpu import Passage, rows_that_count


@pytest.mark.parametrize("source", [(1920, 1080), (3840, 2160), (1500, 1000), (333, 2000), (31, 4001), (20, 30000)])
@pytest.mark.parametrize("target", [(640, 640), (97, 61)])
def test_no_other_row_counts(source: tuple[int, int], target: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for geometry in (Geometry.letterbox(source, target), Geometry.stretch(source, target)):
        needed, rows = rows_that_count(geometry)
        picture = rng.integers(0, 256, (source[1], source[0], 3), np.uint8)
        if rows is None:
            assert geometry.resized[1] > 0.4 * source[1]
            continue
        assert len(rows) == needed * geometry.resized[1] < source[1]
        others = rng.integers(0, 256, picture.shape, np.uint8)
        others[rows] = picture[rows]
        expected = cv2.resize(picture, geometry.resized, interpolation=cv2.INTER_LINEAR)
        assert (cv2.resize(others, geometry.resized, interpolation=cv2.INTER_LINEAR) == expected).all()


def test_only_the_rows_inside_a_crop_count() -> None:
    geometry = Geometry.center_crop((300, 4000), (224, 224))
    needed, rows = rows_that_count(geometry)
    assert rows is not None
    assert len(rows) == needed * 224
    assert 1500 < rows.min() < rows.max() < 2500


def test_a_task_says_where_it_works(caplog: pytest.LogCaptureFixture) -> None:
    with OnnxRuntimeSession(models.small_yolo()) as runner, caplog.at_level(logging.INFO, "trtrun"):
        task = vision.detector(runner)
        assert (task.preprocess_on, task.postprocess_on) == ("CPU", "CPU")
        assert "on the CPU" in caplog.text
        caplog.clear()
        vision.detector(runner, gpu=False)
        assert not caplog.text


@pytest.mark.parametrize(
    "source", [(1920, 1080), (2560, 1440), (3840, 2160), (1500, 1000), (31, 4001), (20, 30000), (9, 7)]
)
@pytest.mark.parametrize("count", [1, 4])
def test_the_parts_of_a_picture_are_its_rows_that_count(source: tuple[int, int], count: int) -> None:
    geometry = Geometry.letterbox(source, (640, 640))
    picture = np.random.default_rng(0).integers(0, 256, (source[1], source[0], 3), np.uint8)
    passage = Passage(geometry, 114)
    target = np.zeros(passage.nbytes + 100, np.uint8)
    parts = passage.parts(100, target[100:], picture, count)
    place = 100
    for part in parts:
        assert part.start == place
        part.copy()
        place += part.nbytes
    assert place == 100 + passage.nbytes
    expected = picture if passage.rows is None else picture[passage.rows]
    np.testing.assert_array_equal(target[100:], expected.ravel())


def test_rows_equally_far_apart_are_one_copy() -> None:
    for source, step, width in (((1920, 1080), 3, 1), ((2560, 1440), 4, 2)):
        passage = Passage(Geometry.letterbox(source, (640, 640)), 114)
        assert (passage.step, passage.needed) == (step, width)
        assert passage.copy._copy.WidthInBytes == width * source[0] * 3
        assert passage.copy._copy.Height == 360
    assert not Passage(Geometry.letterbox((1999, 1501), (640, 640)), 114).step
