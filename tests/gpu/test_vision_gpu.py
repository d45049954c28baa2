"""Vision tasks whose pictures and objects go through the engine's CUDA graph, against the same tasks on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests import models
from trtrun import vision
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.cuda.memory import PinnedPool
from trtrun.engine import Engine
from trtrun.errors import InputError, MissingPackageError
from trtrun.session import Session
from trtrun.vision import NV12, decoding
from trtrun.vision.results import Detections

SIZE = 128


@pytest.fixture(scope="module")
def yolo_plan() -> bytes:
    shapes = parse_shapes([f"images=1x3x{SIZE}x{SIZE}:4x3x{SIZE}x{SIZE}:8x3x{SIZE}x{SIZE}"])
    return build_plan(models.small_yolo(), BuildOptions(profiles=shapes))


@pytest.fixture
def runner(yolo_plan: bytes) -> Iterator[Session]:
    with Engine(yolo_plan) as engine, Session(engine) as session:
        yield session


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    sizes = [(1080, 1920), (128, 128), (77, 301), (600, 200), (33, 31), (720, 1280), (1, 1), (1080, 1920)]
    return [rng.integers(0, 256, (h, w, 3), np.uint8) for h, w in sizes]


def same(found: list[Detections], expected: list[Detections]) -> None:
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        print(f"picture {index}: found {len(ours.scores)}, expected {len(theirs.scores)}")
        assert len(ours.scores) == len(theirs.scores)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-4)
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=1e-3, atol=1e-2)


SELECTION = vision.Selection(score_threshold=0.6, iou_threshold=0.5)


def test_a_task_finds_the_same_on_the_gpu(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    theirs = vision.detector(runner, selection=SELECTION, gpu=False)
    assert (ours.preprocess_on, ours.postprocess_on) == ("GPU", "GPU")
    assert (theirs.preprocess_on, theirs.postprocess_on) == ("CPU", "CPU")
    given = pictures()
    expected = theirs(given)
    assert sum(len(one.scores) for one in expected) > 20
    for _ in range(4):  # the first runs step by step, later ones as graphs
        same(ours(given), expected)
    for picture, one in zip(given, expected, strict=True):  # another batch, other sizes, taking turns
        same([ours(picture)], [one])
    same(ours(given[:3]), expected[:3])
    same(ours(given), expected)


def test_masks_keypoints_and_oriented_boxes_are_the_same_on_the_gpu() -> None:
    shapes = parse_shapes([f"images=1x3x{SIZE}x{SIZE}:4x3x{SIZE}x{SIZE}:8x3x{SIZE}x{SIZE}"])
    kinds: list[tuple[str, bytes, dict[str, Any]]] = [
        ("segment", models.small_yolo(extras=8, prototypes=True), {}),
        ("pose", models.small_yolo(classes=1, extras=15), {"keypoint_shape": (5, 3)}),
        ("obb", models.small_yolo(extras=1), {}),
    ]
    for name, model, options in kinds:
        with Engine(build_plan(model, BuildOptions(profiles=shapes))) as engine, Session(engine) as session:
            ours = vision.task(session, name, selection=SELECTION, **options)
            theirs = vision.task(session, name, selection=SELECTION, gpu=False, **options)
            assert ours.postprocess_on == "GPU"
            expected = theirs(pictures())
            for _ in range(3):
                found = ours(pictures())
                same(found, expected)
                for one, other in zip(found, expected, strict=True):
                    if name == "segment":
                        assert one.masks.shape == other.masks.shape
                        assert (one.masks != other.masks).sum() <= 0.02 * other.masks.sum() + 5
                    elif name == "obb":
                        np.testing.assert_allclose(one.corners, other.corners, rtol=1e-3, atol=1e-1)
                    else:
                        np.testing.assert_allclose(one.keypoints, other.keypoints, rtol=1e-3, atol=1e-1)
                        np.testing.assert_allclose(one.keypoint_scores, other.keypoint_scores, atol=1e-3)


def test_pictures_in_page_locked_memory(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    given = pictures()
    expected = vision.detector(runner, selection=SELECTION, gpu=False)(given)
    for _ in range(4):
        locked = []
        for picture in given:
            locked.append(ours.empty(*picture.shape[:2]))
            assert PinnedPool.lent(locked[-1])
            locked[-1][...] = picture
        same(ours(locked), expected)
        mixed = [(a, b)[i % 2] for i, (a, b) in enumerate(zip(given, locked, strict=True))]
        same(ours(mixed), expected)
        for picture, one in zip(locked, expected, strict=True):
            same([ours(picture)], [one])
        large = [0, 5, 7]  # read by the kernel itself, all of them
        same(ours([locked[i] for i in large]), [expected[i] for i in large])
        # A part of such a picture is no contiguous one: it goes by way of the staging memory.
        whole, part = locked[0], given[0][5:-5, 7:-7]
        same([ours(whole[5:-5, 7:-7])], vision.detector(runner, selection=SELECTION, gpu=False)([part]))
    found = list(ours.stream(iter(locked), batch=4, depth=3))
    same([item.result for item in found if isinstance(item.result, Detections)], expected)


def test_nv12(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    theirs = vision.detector(runner, selection=SELECTION, gpu=False)
    rng = np.random.default_rng(0)
    frames = [NV12(rng.integers(0, 256, (h * 3 // 2, w), np.uint8)) for h, w in ((1080, 1920), (64, 98), (2, 2))]
    frames += [NV12(np.tile(np.arange(640, dtype=np.uint8), (540, 1)))]
    locked = ours.empty(360, 320).reshape(-1)[: 360 * 3 // 2 * 640].reshape(-1, 640)
    assert PinnedPool.lent(locked)
    locked[...] = frames[-1].planes
    frames.append(NV12(locked))
    mixed = [*frames, pictures()[0]]
    expected = theirs(mixed)
    for _ in range(3):
        same(ours(mixed), expected)
    same([ours(frames[0])], expected[:1])


def test_files_decoded_on_the_gpu(runner: Session, tmp_path: Path) -> None:
    """Where nvImageCodec, PyNvVideoCodec and the driver's libraries for video are there."""
    try:
        decoding.require("GPU")
    except MissingPackageError as error:
        pytest.skip(str(error)[:300])
    smooth = cv2.GaussianBlur(pictures()[0], (31, 31), 9)
    cv2.imwrite(str(tmp_path / "a.jpg"), smooth)
    (item,) = vision.read(tmp_path / "a.jpg", decode="GPU")
    assert isinstance(item.picture, np.ndarray), item.error
    assert np.abs(item.picture.astype(int) - cv2.imread(str(tmp_path / "a.jpg"))).max() <= 6
    clip = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"vp09"), 25, (640, 360))
    for shift in range(20):
        writer.write(np.roll(smooth[:360, :640], shift, axis=1))
    writer.release()
    found = list(vision.read(clip, decode="GPU"))
    expected = list(vision.read(clip))
    assert len(found) == len(expected) == 20, found[-1].error
    for ours, theirs in zip(found, expected, strict=True):
        assert isinstance(ours.picture, NV12)
        assert isinstance(theirs.picture, np.ndarray)
        assert np.abs(ours.picture.to_bgr().astype(int) - theirs.picture).mean() <= 4


def test_page_locked_pictures_are_used_again(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    first = ours.empty(30, 40)
    address = first.ctypes.data
    assert ours.empty(30, 40).ctypes.data != address
    row = first[3]
    del first
    assert ours.empty(30, 40).ctypes.data != address  # a row of it is still held
    del row
    assert address in {picture.ctypes.data for picture in [ours.empty(30, 40) for _ in range(4)]}


def test_a_video_is_decoded_into_page_locked_memory(runner: Session, tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 25, (640, 360))
    for picture in np.random.default_rng(0).integers(0, 256, (20, 360, 640, 3), np.uint8):
        writer.write(picture)
    writer.release()
    found = list(vision.detector(runner, selection=SELECTION).stream(clip, batch=2, depth=2))
    expected = list(vision.detector(runner, selection=SELECTION, gpu=False).stream(clip, batch=2, depth=2))
    assert len(found) == len(expected) == 20
    same([i.result for i in found], [i.result for i in expected])  # type: ignore[misc]
    assert all(PinnedPool.lent(item.picture) for item in found[1:])  # the first one tells the size


def test_a_stream_of_different_sizes(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    given = pictures() * 6
    expected = vision.detector(runner, selection=SELECTION, gpu=False)(given)
    for batch, depth in ((1, 3), (4, 2), (4, None)):
        found = list(ours.stream(given, batch=batch, depth=depth))
        assert [item.error for item in found] == [None] * len(given)
        same([item.result for item in found if isinstance(item.result, Detections)], expected)


def test_a_generator_may_fill_one_buffer_again_and_again(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    given = np.random.default_rng(1).integers(0, 256, (10, 200, 300, 3), np.uint8)
    expected = vision.detector(runner, selection=SELECTION, gpu=False)(given)

    def frames() -> Iterator[np.ndarray]:
        buffer = np.empty(given.shape[1:], np.uint8)
        for picture in given:
            buffer[...] = picture
            yield buffer

    for batch in (1, 4):
        found = list(ours.stream(frames(), batch=batch, depth=3))
        same([item.result for item in found if isinstance(item.result, Detections)], expected)
        for item, picture in zip(found, given, strict=True):
            np.testing.assert_array_equal(item.picture, picture)


def test_a_crop_of_a_very_long_picture_is_refused_as_on_the_cpu(runner: Session) -> None:
    how = vision.Preprocess((SIZE, SIZE), "center_crop")
    for gpu in (True, False):
        task = vision.detector(runner, preprocess=how, gpu=gpu)
        (found,) = task.stream([np.zeros((20_000, 2, 3), np.uint8)])
        assert "before its middle is cut out" in str(found.error)


def test_a_bad_picture_fails_alone(runner: Session) -> None:
    ours = vision.detector(runner, selection=SELECTION)
    with pytest.raises(InputError, match="uint8"):
        ours([np.zeros((4, 4), np.float32)])
    assert len(ours(pictures()[0]).scores) >= 0


def test_what_has_no_kernel_is_said(runner: Session, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trtrun"):
        many = vision.Selection(score_threshold=0.6, multi_label=True)
        ours = vision.detector(runner, selection=many)
    assert (ours.preprocess_on, ours.postprocess_on) == ("GPU", "CPU")
    assert "several labels" in caplog.text
    given = pictures()
    same(ours(given), vision.detector(runner, selection=many, gpu=False)(given))


def test_the_staged_runner_closes_with_its_runner(yolo_plan: bytes) -> None:
    engine = Engine(yolo_plan)
    engine.auto_close = True
    session = Session(engine)
    task = vision.detector(session, selection=SELECTION)
    task(pictures()[0])
    session.close()
    assert engine.closed
