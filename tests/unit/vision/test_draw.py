from __future__ import annotations

import numpy as np
import pytest

from trtrun.vision.draw import draw
from trtrun.vision.results import Detections


def one(box: tuple[float, ...], landmarks: np.ndarray | None = None) -> Detections:
    return Detections(
        np.array([box], np.float32), np.array([0.87], np.float32), np.zeros(1, np.int64), landmarks=landmarks
    )


def test_draws_on_a_copy_at_the_box() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    drawn = draw(picture, one((100, 120, 220, 260)), label="face")
    assert (picture == 200).all()
    changed = (drawn != 200).any(axis=2)
    assert changed[120:260, 100].all()  # the left edge
    assert changed[260, 100:220].all()  # the lower edge
    assert not changed[140:240, 120:200].any()  # inside
    assert changed[107:118, 100:155].all()  # the label above
    rows, columns = np.nonzero(changed)
    assert rows.min() > 90
    assert rows.max() < 266
    assert columns.min() > 94
    assert columns.max() < 226


def test_landmarks_are_drawn() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    drawn = draw(picture, one((100, 120, 220, 260), np.array([[[150, 200]]], np.float32)))
    assert (drawn[200, 150] != 200).any()


def test_a_label_at_the_edge_stays_inside_the_picture() -> None:
    picture = np.full((300, 400, 3), 200, np.uint8)
    drawn = draw(picture, one((380, 0, 400, 60)), label="face")
    # The label is as large as one in the middle of the picture: nothing of it was cut off.
    middle = draw(picture, one((100, 120, 120, 180)), label="face")
    label = (drawn == drawn[4, 396]).all(axis=2).sum()
    assert label == pytest.approx((middle == drawn[4, 396]).all(axis=2).sum(), rel=0.2)


@pytest.mark.parametrize("shape", [(1, 1), (2, 500), (500, 2), (4000, 3000)])
def test_any_size_of_picture(shape: tuple[int, int]) -> None:
    picture = np.zeros((*shape, 3), np.uint8)
    drawn = draw(picture, one((0, 0, shape[1], shape[0])), label="face")
    assert drawn.shape == picture.shape
    assert drawn.any()
