from __future__ import annotations

import cv2
import numpy as np
import pytest

import trtrun
from trtrun.vision.draw import draw, encode
from trtrun.vision.results import Classification, Detections, Matte, SegmentationMap, Text


def one(box: tuple[float, ...], landmarks: np.ndarray | None = None) -> Detections:
    return Detections(
        np.array([box], np.float32), np.array([0.87], np.float32), np.zeros(1, np.int64), keypoints=landmarks
    )


def test_draws_on_a_copy_at_the_box() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    drawn = draw(picture, one((100, 120, 220, 260)))
    assert (picture == 200).all()
    changed = (drawn != 200).any(axis=2)
    assert changed[121:259, 100].all()  # the left edge
    assert changed[260, 101:219].all()  # the lower edge
    assert not changed[140:240, 120:200].any()  # inside
    assert changed[108:118, 101:130].all()  # the label above
    rows, columns = np.nonzero(changed)
    assert rows.min() > 90
    assert rows.max() < 266
    assert columns.min() > 94
    assert columns.max() < 226


def test_landmarks_are_drawn() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    drawn = draw(picture, one((100, 120, 220, 260), np.array([[[150, 200]]], np.float32)))
    assert (drawn[200, 150] != 200).any()


def everything(shape: tuple[int, int]) -> list:
    height, width = shape
    corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float32)
    box = np.array([[0, 0, width, height]], np.float32)
    score, class_id = np.array([0.5], np.float32), np.array([3])
    points = np.tile(np.float32([width / 2, height / 2]), (1, 17, 1))
    return [
        Detections(box, score, class_id, {3: "bus"}, masks=np.ones((1, *shape), bool)),
        Detections(box, score, class_id, keypoints=points, keypoint_scores=np.ones((1, 17), np.float32)),
        Detections(box, score, class_id, corners=corners),
        Classification(class_id, score, {3: "bus"}),
        SegmentationMap(np.ones(shape, np.int32), {0: "background", 1: "road"}),
        Matte(np.full(shape, 0.5, np.float32)),
        Text(("A",), score, corners),
    ]


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2), (2000, 1500)])
def test_any_size_of_picture(shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    for result in everything(shape):
        drawn = draw(picture, result)
        assert drawn.shape == picture.shape
        assert drawn.dtype == np.uint8
        assert not picture.any()
        if min(shape) > 2:  # letters have no room there
            assert drawn.any(), type(result)


def test_uncertain_keypoints_and_those_that_are_nowhere_are_not_drawn() -> None:
    picture = np.full((100, 100, 3), 200, np.uint8)
    points = np.float32([[[50, 50], [np.nan, 3], [20, 80]]])
    found = Detections(
        np.float32([[0, 0, 1, 1]]), np.float32([0.5]), np.array([0]), keypoints=points,
        keypoint_scores=np.float32([[0.1, 0.9, 0.9]]),
    )  # fmt: skip
    drawn = draw(picture, found)
    assert (drawn[50, 50] == 200).all()
    assert (drawn[80, 20] != 200).any()


def test_labels_do_not_hide_a_crowd() -> None:
    """Of many small boxes side by side only the large one has a label."""
    picture = np.full((200, 400, 3), 200, np.uint8)
    boxes = np.float32([[20 * i, 150, 20 * i + 12, 162] for i in range(19)] + [[50, 40, 150, 100]])
    found = Detections(boxes, np.full(20, 0.5, np.float32), np.zeros(20, np.int64))
    drawn = (draw(picture, found) != 200).any(axis=2)
    assert not drawn[105:148].any()  # above the small ones
    assert drawn[28:38, 51:75].all()  # above the large one


@pytest.mark.parametrize(("width", "suffix"), [(65_500, ".jpg"), (65_501, ".png")])
def test_pictures_longer_than_jpeg_takes_become_png(width: int, suffix: str) -> None:
    given, data = encode(np.zeros((2, width, 3), np.uint8))
    assert given == suffix
    assert cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape == (2, width, 3)


def test_pictures_longer_than_png_takes_are_refused() -> None:
    with pytest.raises(trtrun.InputError, match="1000001×1"):
        encode(np.zeros((1, 1_000_001, 3), np.uint8))
