"""CenterFace in ONNX Runtime on the demo's photographs, and what the detector refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import trtrun
from tests import models
from tests.unit.vision import heads
from trtrun import demo
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.runner import RunnerAbove
from trtrun.tensor_spec import ShapeRange, TensorSpecs
from trtrun.vision import Preprocess, Selection, detector
from trtrun.vision.results import box_iou
from trtrun.vision.task import default_preprocess

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
    with OnnxRuntimeSession(demo.face_detector()) as session:
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


def test_keypoints_are_eyes_nose_and_mouth(centerface: OnnxRuntimeSession) -> None:
    faces = detector(centerface, size=demo.SIZE)(demo.pictures()["astronaut"])
    expected = [(204, 101), (248, 103), (224, 125), (204, 145), (242, 146)]
    assert faces.keypoints is not None
    np.testing.assert_allclose(faces.keypoints[0], expected, atol=8)


def test_the_place_in_the_picture_does_not_depend_on_the_size_of_the_input(centerface: OnnxRuntimeSession) -> None:
    picture = demo.pictures()["astronaut"]
    sizes = [(320, 320), (640, 640), (960, 640), (416, 736)]
    boxes = [detector(centerface, size=size)(picture).boxes for size in sizes]
    assert all(len(found) == 1 for found in boxes)
    assert box_iou(np.concatenate(boxes), np.concatenate(boxes)).min() > 0.8


@pytest.mark.parametrize("shape", [(1, 1), (20, 3000), (3000, 20)])
def test_pictures_of_odd_sizes_hold_no_face(centerface: OnnxRuntimeSession, shape: tuple[int, int]) -> None:
    assert len(detector(centerface, size=demo.SIZE)(np.full((*shape, 3), 90, np.uint8))) == 0


def test_a_size_the_network_cannot_take_is_refused(centerface: OnnxRuntimeSession) -> None:
    with pytest.raises(trtrun.InputError, match=r"multiples of 32, got \(640, 360\)"):
        detector(centerface, size=(640, 360))


def test_a_network_of_any_size_needs_one(centerface: OnnxRuntimeSession) -> None:
    assert detector(centerface).preprocess.size == demo.SIZE  # its metadata's
    with (
        OnnxRuntimeSession(demo.model_path(), input_shapes=demo.INPUT_SHAPES) as session,
        pytest.raises(trtrun.InputError, match=r"Say which: size=\(640, 640\)"),
    ):
        detector(session)


def test_what_is_no_size_or_not_the_networks_is_refused(centerface: OnnxRuntimeSession) -> None:
    for wrong in (640, "640x640", (640,), (0, 32), (32.5, 32)):
        with pytest.raises(trtrun.InputError, match=r"size is \(width, height\)"):
            detector(centerface, size=wrong)
    with OnnxRuntimeSession(demo.model_path()) as session:
        with pytest.raises(trtrun.InputError, match=r"10×3×640×640 do not fit .*10×3×32×32\. Choose a size") as error:
            detector(session, size=(640, 640))
        assert "array" not in str(error.value)
        with pytest.raises(trtrun.InputError, match="10×1×32×32 do not fit"):
            detector(session, preprocess=Preprocess((32, 32), channels="GREY"))


def test_what_is_no_picture_is_refused(centerface: OnnxRuntimeSession) -> None:
    model = detector(centerface, size=demo.SIZE)
    for wrong, kind in ((None, "NoneType"), ("street.jpg", "str"), (7, "int"), ([None], "NoneType"), (b"ab", "int")):
        with pytest.raises(trtrun.InputError, match=f"NumPy array, got {kind}"):
            model(wrong)
    assert model([]) == []


def test_a_batch_that_does_not_fit_says_what_does() -> None:
    with (
        OnnxRuntimeSession(demo.model_path()) as session,
        pytest.raises(trtrun.InputError, match=r"takes at most 10 .*--b"),
    ):
        next(detector(session).stream([np.zeros((9, 9, 3), np.uint8)], batch=11))


def test_a_crop_of_a_very_long_picture_is_refused_wherever_it_is_prepared() -> None:
    how = Preprocess((224, 224), "center_crop")
    with pytest.raises(trtrun.InputError, match="before its middle is cut out"):
        how.geometry((2, 10_000))
    assert how.geometry((20, 10_000)).resized == (224, 112_000)


def test_another_model_is_refused() -> None:
    with OnnxRuntimeSession(models.affine()) as session, pytest.raises(trtrun.InputError, match="batch of pictures"):
        detector(session)


def test_a_fixed_batch_is_filled_and_cut() -> None:
    """The exported file says [10, 3, 32, 32]: 13 pictures take two requests, of which the second is not full."""
    pictures = [picture[:64, : 40 + 9 * i] for i, picture in enumerate([demo.pictures()["astronaut"]] * 13)]
    with OnnxRuntimeSession(demo.model_path()) as session:
        model = detector(session, selection=Selection(score_threshold=0.01))
        together = model(pictures)
        assert len(together) == 13
        for picture, found in zip(pictures, together, strict=True):
            np.testing.assert_allclose(model(picture).boxes, found.boxes, atol=1e-3)


def test_streams_keep_order_and_go_on_after_bad_items(centerface: OnnxRuntimeSession, tmp_path: Path) -> None:
    pictures = demo.pictures()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    source = [bad, pictures["astronaut"], np.zeros((4, 4), np.float32), pictures["group"], pictures["coffee"], bad]
    model = detector(centerface, size=demo.SIZE)
    found = list(model.stream(source, depth=2))
    faces = [None if item.result is None else len(item.result) for item in found]
    assert faces == [None, 1, None, 3, 0, None]
    assert [item.error is None for item in found] == [False, True, False, True, True, False]
    assert "0 bytes" in str(found[0].error)
    with pytest.raises(trtrun.InputError, match="batch 0"):
        list(model.stream(source, batch=0))


@pytest.mark.parametrize("batch", [1, 3, 10])
def test_streams_in_batches(batch: int) -> None:
    bad = np.zeros((4, 4), np.float32)
    picture = demo.pictures()["astronaut"]
    pictures = [picture[i : 64 + i, : 40 + 9 * i] for i in range(5)]
    source = [*pictures[:2], bad, *pictures[2:], bad]
    with OnnxRuntimeSession(demo.model_path()) as session:
        model = detector(session, selection=Selection(score_threshold=0.01))
        found = list(model.stream(source, batch=batch, depth=1))
        assert [item.error is None for item in found] == [True, True, False, True, True, True, False]
        assert [item.name for item in found] == [f"picture {i}" for i in range(7)]
        for item, expected in zip([item for item in found if item.error is None], model(pictures), strict=True):
            np.testing.assert_allclose(item.result.boxes, expected.boxes, atol=1e-3)


def test_the_engines_smallest_and_largest_batch() -> None:
    """An engine for 2 to 4 pictures gets zeros beside one, and five pictures in two requests."""
    shapes = [(n, 3, heads.SIZE[1], heads.SIZE[0]) for n in (2, 3, 4)]
    objects = heads.scene(0)
    planted = np.repeat(heads.plant_v8(objects, 5), 4, axis=0)

    class Engine(heads.Outputs):
        image_shapes = ShapeRange(*shapes)

        @property
        def inputs(self) -> TensorSpecs:
            return TensorSpecs([replace(self.image, profiles=(self.image_shapes,))])

    engine = Engine({"o": planted})
    model = detector(engine)
    assert (model.preprocess.size, model.batch_limit) == (heads.SIZE, 4)
    assert len(model(np.zeros((50, 60, 3), np.uint8))) == 6
    (request,) = engine.requests
    assert request["images"].shape == shapes[0]
    assert not request["images"][1].any()
    assert [len(found) for found in model([np.zeros((50, 60, 3), np.uint8)] * 5)] == [6] * 5
    assert [request["images"].shape[0] for request in engine.requests] == [2, 4, 2]


def test_an_engine_whose_channels_are_dynamic_and_a_size_as_an_array() -> None:
    """As torch exports it with every dimension dynamic; the profile then has three channels."""
    width, height = heads.SIZE
    profile = ShapeRange((1, 3, height, width), (2, 3, height, width), (4, 3, height, width))

    class Engine(heads.Outputs):
        @property
        def inputs(self) -> TensorSpecs:
            return TensorSpecs([replace(self.image, shape=(-1, -1, -1, -1), profiles=(profile,))])

    engine = Engine({"o": np.repeat(heads.plant_v8(heads.scene(0), 5), 4, axis=0)})
    for size in (None, np.array(heads.SIZE)):
        assert detector(engine, size=size).preprocess.size == heads.SIZE  # type: ignore[arg-type]
    with pytest.raises(trtrun.InputError, match=f"1×1×{height}×{width} do not fit"):
        detector(engine, preprocess=Preprocess(heads.SIZE, channels="GREY"))


@pytest.mark.parametrize("names", [["face"], "face", {"0": "face"}])
def test_names_that_no_class_would_find_are_refused_before_a_picture_comes(
    centerface: OnnxRuntimeSession, names: Any
) -> None:
    with pytest.raises(trtrun.InputError, match=r"dict\(enumerate\(names\)\)"):
        detector(centerface, size=demo.SIZE, names=names)


def test_a_bundle_says_how_its_pictures_are_prepared() -> None:
    told: dict[str, dict[str, object]] = {
        "preprocess": {"mode": "stretch", "scale": 1.0, "mean": [127, 127, 127], "std": [128, 128, 128]}
    }
    with OnnxRuntimeSession(demo.model_path(), input_shapes=demo.INPUT_SHAPES) as session:
        head = detector(session, size=demo.SIZE).head

        class Told(RunnerAbove):
            metadata = told

            def run(self, *_: object, **__: object) -> dict[str, np.ndarray]:
                raise AssertionError

            enqueue = clone = run  # type: ignore[assignment]

        how = default_preprocess(head, Told(session), demo.SIZE)
        assert (how.mode, how.mean, how.std, how.padding) == ("stretch", (127,) * 3, (128,) * 3, 0)
        for wrong in ({"model": 1}, {"size": [1, 1]}, {"mode": "fill"}, {"mean": 3}):
            told["preprocess"] = wrong
            with pytest.raises(trtrun.InputError):
                default_preprocess(head, Told(session), demo.SIZE)
