from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import trtrun
from trtrun.vision.geometry import Geometry
from trtrun.vision.postprocess.candidates import Candidates, to_detections
from trtrun.vision.results import Classification, Detections, Matte, SegmentationMap, run_lengths


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


def test_what_a_head_found_is_validated_arrays_too() -> None:
    geometry = Geometry.letterbox((200, 100), (64, 64))
    for dtype in (np.float32, np.float64):
        boxes = np.array([[-5, 10, 70, 30], [8, 20, 16, 24]], dtype)
        candidates = Candidates(boxes, np.array([0.9, 0.5], dtype), np.array([1, 0], np.int32), np.empty((2, 0)))
        found = to_detections(candidates, geometry, {1: "b"})
        Detections(found.boxes, found.scores, found.class_ids, found.names)  # of the right dtypes and shapes
        expected = geometry.to_picture(boxes.reshape(-1, 2, 2)).clip(0, geometry.source).reshape(-1, 4)
        np.testing.assert_allclose(found.boxes, expected, rtol=1e-6)
        assert found.label(0) == "b"
        assert (found.masks, found.keypoints, found.track_ids) == (None, None, None)
        assert not any(array.flags.writeable for array in (found.boxes, found.scores, found.class_ids))
        assert boxes.flags.writeable
        assert replace(found, track_ids=np.array([1, 2])).track_ids is not None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boxes": np.zeros((2, 5), np.float32)}, r"boxes must be float32 \[2 × 4\].*\[2, 5\]"),
        ({"boxes": np.zeros((2, 4))}, "float32.*float64"),
        ({"scores": np.zeros(3, np.float32)}, r"scores.*\[2\].*\[3\]"),
        ({"class_ids": np.zeros(2, np.float32)}, "class_ids.*int64.*float32"),
        ({"keypoints": np.zeros((2, 5, 3), np.float32)}, r"keypoints.*\[2 × K × 2\].*\[2, 5, 3\]"),
        ({"keypoints": np.zeros((2, 10), np.float32)}, r"keypoints.*\[2 × K × 2\].*\[2, 10\]"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        two(**changes)


def test_json() -> None:
    rows = two(keypoints=np.full((2, 1, 2), 0.333, np.float32)).to_json()
    assert json.loads(json.dumps(rows)) == [
        {"box": [1, 2, 3, 4], "score": 0.9, "class_id": 0, "keypoints": [[0.33, 0.33]]},
        {"box": [5, 6, 7.13, 8], "score": 0.5, "class_id": 3, "keypoints": [[0.33, 0.33]]},
    ]
    assert "keypoints" not in two().to_json()[0]


def test_names_and_labels() -> None:
    found = two(names={3: "bus"})
    assert [found.label(0), found.label(1)] == ["0", "bus"]
    assert [row["class"] for row in found.to_json()] == ["0", "bus"]


def test_keypoint_scores_need_keypoints() -> None:
    with pytest.raises(trtrun.InputError, match="without keypoints"):
        two(keypoint_scores=np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_cocos(seed: int) -> None:
    from faster_coco_eval.core import mask as coco

    mask = np.random.default_rng(seed).random((7, 5)) > [0.5, 0, 1, 0.9, 0.1][seed]
    rle = run_lengths(mask)
    assert sum(rle["counts"]) == mask.size
    np.testing.assert_array_equal(coco.decode(coco.frPyObjects(rle, 7, 5)), mask)


def test_coco_rows() -> None:
    masks = np.zeros((2, 10, 12), bool)
    masks[0, 2:4, 1:3] = True
    points = np.array([[[1, 2]], [[3, 4]]], np.float32)
    rows = two(masks=masks, keypoints=points).to_coco(17, {0: 1, 3: 7})
    assert json.loads(json.dumps(rows))
    assert rows[0]["bbox"] == [1, 2, 2, 2]
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(17, 1), (17, 7)]
    assert rows[0]["segmentation"] == {"size": [10, 12], "counts": [12, 2, 8, 2, 96]}
    assert rows[1]["keypoints"] == [3, 4, 1]


def test_supervision_gets_everything() -> None:
    corners = np.arange(16, dtype=np.float32).reshape(2, 4, 2)
    found = two(names={0: "car"}, masks=np.ones((2, 9, 9), bool), corners=corners).to_supervision()
    np.testing.assert_array_equal(found.xyxy, two().boxes)
    assert found.mask.shape == (2, 9, 9)
    assert found.data["class_name"].tolist() == ["car", "3"]
    np.testing.assert_array_equal(found.data["xyxyxyxy"], corners)
    empty = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), np.empty(0, np.int64))
    assert len(empty.to_supervision()) == 0


def test_the_other_results() -> None:
    ranked = Classification(np.array([4, 1]), np.array([0.9, 0.05], np.float32), {4: "cat"})
    assert ranked.to_json()[0] == {"class_id": 4, "class": "cat", "score": 0.9}
    classes = SegmentationMap(np.array([[0, 2], [2, 2]], np.int32), {2: "road"})
    assert [(row["class"], row["share"]) for row in classes.to_json()] == [("road", 0.75), ("0", 0.25)]
    assert Matte(np.array([[0.2, 0.7]], np.float32)).to_json()[0]["mask"] == {"size": [1, 2], "counts": [1, 1]}
    with pytest.raises(trtrun.InputError, match=r"alpha must be float32 \[H × W\], got float64"):
        Matte(np.zeros((2, 2)))
