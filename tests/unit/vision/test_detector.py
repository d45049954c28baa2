"""CenterFace in ONNX Runtime on the demo's photographs, and what the detector refuses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import trtrun
from tests import models
from trtrun import demo
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.vision.detector import FaceDetector
from trtrun.vision.results import box_iou

# Chin to forehead and cheek to cheek, read off the pictures by eye, so agreement is not exact.
BY_EYE = {
    "astronaut": [(180, 62, 272, 180)],
    "grace_hopper": [(172, 125, 352, 340)],
    "camera": [(196, 112, 258, 200)],
    "coffee": [],
    "china": [],
    "group": [(180, 62, 272, 180), (667, 107, 816, 290), (1144, 112, 1206, 200)],
}


@pytest.fixture(scope="module")
def centerface() -> Iterator[OnnxRuntimeSession]:
    with OnnxRuntimeSession(demo.model_path(), input_shapes=demo.OPTIONS.input_shapes) as session:
        yield session


def test_faces_are_found_where_they_are_and_nowhere_else(centerface: OnnxRuntimeSession) -> None:
    results = {result.name: result for result in demo.detect_all(centerface)}
    assert results.keys() == BY_EYE.keys()
    for name, expected in BY_EYE.items():
        faces = results[name].faces
        assert len(faces) == len(expected), name
        if expected:
            overlap = box_iou(np.array(expected, np.float32), faces.boxes)
            assert (overlap.max(axis=1) > 0.75).all(), (name, overlap)
            assert (faces.scores > 0.7).all()


def test_landmarks_are_eyes_nose_and_mouth(centerface: OnnxRuntimeSession) -> None:
    faces = FaceDetector(centerface).detect(demo.pictures()["astronaut"])
    expected = [(204, 101), (248, 103), (224, 125), (204, 145), (242, 146)]
    assert faces.landmarks is not None
    np.testing.assert_allclose(faces.landmarks[0], expected, atol=8)


def test_the_place_in_the_picture_does_not_depend_on_the_size_of_the_input(centerface: OnnxRuntimeSession) -> None:
    picture = demo.pictures()["astronaut"]
    sizes = [(320, 320), (640, 640), (960, 640), (416, 736)]
    boxes = [FaceDetector(centerface, size=size).detect(picture).boxes for size in sizes]
    assert all(len(found) == 1 for found in boxes)
    assert box_iou(np.concatenate(boxes), np.concatenate(boxes)).min() > 0.8


@pytest.mark.parametrize("shape", [(1, 1), (20, 3000), (3000, 20)])
def test_pictures_of_odd_sizes_hold_no_face(centerface: OnnxRuntimeSession, shape: tuple[int, int]) -> None:
    assert len(FaceDetector(centerface).detect(np.full((*shape, 3), 90, np.uint8))) == 0


def test_a_size_the_network_cannot_take_is_refused(centerface: OnnxRuntimeSession) -> None:
    with pytest.raises(trtrun.InputError, match=r"multiples of 32, got \(640, 360\)"):
        FaceDetector(centerface, size=(640, 360))


def test_the_model_as_exported_has_another_size() -> None:
    with (
        OnnxRuntimeSession(demo.model_path()) as session,
        pytest.raises(trtrun.ShapeError, match="must be 10, not 1"),
    ):
        FaceDetector(session)


def test_another_model_is_refused() -> None:
    with OnnxRuntimeSession(models.affine()) as session, pytest.raises(trtrun.InputError, match="no CenterFace"):
        FaceDetector(session)
