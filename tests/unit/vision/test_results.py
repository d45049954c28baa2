from __future__ import annotations

import json

import numpy as np
import pytest

import trtrun
from trtrun.vision.results import Detections


def two(**changes: np.ndarray) -> Detections:
    arrays = {
        "boxes": np.array([[1, 2, 3, 4], [5, 6, 7.126, 8]], np.float32),
        "scores": np.array([0.9, 0.5], np.float32),
        "class_ids": np.array([0, 3], np.int64),
    }
    return Detections(**{**arrays, **changes})


def test_arrays_are_read_only_and_the_callers_stay_writable() -> None:
    boxes = np.zeros((2, 4), np.float32)
    detections = two(boxes=boxes)
    with pytest.raises(ValueError, match="read-only"):
        detections.boxes[0] = 1
    boxes[0] = 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes of 2 detections must be float32 \[2 × 4\].*\[2, 5\]"),
        ({"boxes": np.zeros((2, 4))}, "float32.*float64"),
        ({"scores": np.zeros(3, np.float32)}, r"scores of 2.*\[2\].*\[3\]"),
        ({"class_ids": np.zeros(2, np.float32)}, "class_ids.*int64.*float32"),
        ({"landmarks": np.zeros((2, 5, 3), np.float32)}, r"landmarks.*\[2 × 5 × 2\].*\[2, 5, 3\]"),
        ({"landmarks": np.zeros((2, 10), np.float32)}, r"landmarks.*\[2 × K × 2\].*\[2, 10\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        two(**changes)


def test_json() -> None:
    rows = two(landmarks=np.full((2, 1, 2), 0.333, np.float32)).to_json()
    assert json.loads(json.dumps(rows)) == [
        {"box": [1, 2, 3, 4], "score": 0.9, "class_id": 0, "landmarks": [[0.33, 0.33]]},
        {"box": [5, 6, 7.13, 8], "score": 0.5, "class_id": 3, "landmarks": [[0.33, 0.33]]},
    ]
    assert "landmarks" not in two().to_json()[0]
