from __future__ import annotations

import numpy as np
import pytest

from trtrun.vision.postprocess.nms import non_maximum_suppression
from trtrun.vision.results import box_iou


def iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def by_hand(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(iou(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_same_as_the_definition(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: ties in score, equal boxes and boxes without area all occur.
    corners = rng.integers(0, 8, (40, 2, 2)).astype(np.float64)
    boxes = np.concatenate([corners.min(1), corners.max(1)], axis=1)
    scores = rng.integers(0, 10, 40) / 10
    assert non_maximum_suppression(boxes, scores, threshold).tolist() == by_hand(boxes, scores, threshold)


def test_no_boxes() -> None:
    kept = non_maximum_suppression(np.empty((0, 4)), np.empty(0), 0.5)
    assert kept.shape == (0,)
    assert kept.dtype == np.int64


def test_iou() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], np.float32)
    b = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(box_iou(a, b), [[1, 1 / 3, 0, 0], [0, 0, 0, 0]], rtol=1e-6)
