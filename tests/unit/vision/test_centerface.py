from __future__ import annotations

import numpy as np
import pytest

from trtrun.vision.geometry import Geometry
from trtrun.vision.postprocess.candidates import Selection, keep
from trtrun.vision.postprocess.centerface import ROLES, candidates
from trtrun.vision.postprocess.centerface import faces as faces_of
from trtrun.vision.results import Detections

CELLS = (16, 24)  # rows, columns: an input of 96 × 64
PLAIN = Geometry.letterbox((96, 64), (96, 64))


def decode(maps: dict[str, np.ndarray], geometry: Geometry, **options: float) -> Detections:
    selection = Selection(**{"score_threshold": 0.5, "iou_threshold": 0.3, **options})
    (found,) = candidates(maps, selection=selection)
    return faces_of(keep(found, selection), geometry, {})


def empty_maps() -> dict[str, np.ndarray]:
    return {name: np.zeros((1, depth, *CELLS), np.float32) for name, depth in ROLES.items()}


def put(
    maps: dict[str, np.ndarray], box: tuple[float, float, float, float], score: float, marks: np.ndarray | None = None
) -> None:
    """Write a face as the network would: everything at the cell that holds the centre of its box."""
    heat, scale, offset, landmarks = maps.values()
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2 / 4, (y1 + y2) / 2 / 4
    row, column = int(y), int(x)
    heat[0, 0, row, column] = score
    scale[0, :, row, column] = np.log([(y2 - y1) / 4, (x2 - x1) / 4])
    offset[0, :, row, column] = y - row - 0.5, x - column - 0.5
    if marks is not None:
        relative = (marks - (x1, y1)) / (x2 - x1, y2 - y1)
        landmarks[0, :, row, column] = relative[:, ::-1].ravel()


def test_a_face_comes_back_where_it_was_put() -> None:
    maps = empty_maps()
    marks = np.array([[30, 20], [44, 21], [37, 28], [31, 38], [43, 39]])
    put(maps, (25, 9, 50, 44), 0.75, marks)
    faces = decode(maps, PLAIN)
    np.testing.assert_allclose(faces.boxes, [[25, 9, 50, 44]], atol=1e-3)
    np.testing.assert_allclose(faces.scores, [0.75])
    np.testing.assert_array_equal(faces.class_ids, [0])
    assert faces.keypoints is not None
    np.testing.assert_allclose(faces.keypoints, marks[None], atol=1e-3)


def test_faces_are_in_pixels_of_the_picture() -> None:
    maps = empty_maps()
    put(maps, (25, 9, 50, 44), 0.75)
    faces = decode(maps, Geometry.letterbox((300, 400), (96, 64)))  # scaled by 0.16, 24 columns of padding at the left
    np.testing.assert_allclose(faces.boxes, [[1 / 0.16, 9 / 0.16, 26 / 0.16, 44 / 0.16]], atol=0.01)


def test_best_first_and_without_overlaps_or_weak_ones() -> None:
    maps = empty_maps()
    put(maps, (4, 4, 24, 28), 0.6)
    put(maps, (50, 10, 74, 40), 0.9)
    put(maps, (54, 10, 78, 40), 0.8)  # the same face once more
    put(maps, (10, 44, 22, 60), 0.5)  # not above the threshold
    faces = decode(maps, PLAIN)
    np.testing.assert_allclose(faces.scores, [0.9, 0.6])
    np.testing.assert_allclose(faces.boxes, [[50, 10, 74, 40], [4, 4, 24, 28]], atol=1e-3)
    assert len(decode(maps, PLAIN, score_threshold=0.4)) == 3
    assert len(decode(maps, PLAIN, iou_threshold=0.95)) == 3


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nothing_found_keeps_shapes_and_dtypes(dtype: type[np.generic]) -> None:
    faces = decode({name: value.astype(dtype) for name, value in empty_maps().items()}, PLAIN)
    assert len(faces) == 0
    assert faces.boxes.shape == (0, 4)
    assert faces.keypoints is not None
    assert faces.keypoints.shape == (0, 5, 2)
    assert faces.boxes.dtype == faces.scores.dtype == np.float32
    assert faces.to_json() == []


def test_order_of_the_outputs_does_not_matter() -> None:
    maps = empty_maps()
    put(maps, (25, 9, 50, 44), 0.75)
    np.testing.assert_array_equal(decode(dict(reversed(maps.items())), PLAIN).boxes, decode(maps, PLAIN).boxes)
