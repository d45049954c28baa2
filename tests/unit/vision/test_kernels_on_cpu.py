"""The vision kernels without a GPU: compiled by g++, a fiber for each thread, against the CPU reference."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from trtrun.vision import gpu
from trtrun.vision.heads import Head
from trtrun.vision.postprocess import centerface, oriented_boxes, yolo_anchor_free
from trtrun.vision.postprocess.candidates import Selection, keep
from trtrun.vision.postprocess.nms import non_maximum_suppression
from trtrun.vision.preprocess import Preprocess, prepare_reference

SOURCE = Path(__file__).resolve().parents[2] / "emulation" / "kernels.cpp"
OPTIONS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-w"]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    subprocess.run(["g++", *OPTIONS, "-o", str(library), str(SOURCE)], check=True, timeout=120)
    return ctypes.CDLL(str(library))


def suppress(
    kernels: ctypes.CDLL,
    boxes: Any,
    scores: Any,
    classes: Any,
    angles: Any = None,
    gathered: Any = None,
    *,
    most: int,
    agnostic: bool,
    threshold: float,
) -> list[Any]:
    """The rows that are kept of each picture, after all else that is written was compared with the candidates."""
    batch, rows = scores.shape
    counts = np.full(batch, -1, np.int32)
    kept = np.full((batch, most), -1, np.int32)
    kept_boxes = np.empty((batch, most, 4), np.float32)
    kept_scores, kept_classes = np.empty((batch, most), np.float32), np.empty((batch, most), np.int32)
    scratch = np.empty((batch, 2, rows, 2), np.uint32)
    of = lambda array: array.ctypes.data  # noqa: E731
    candidates = gpu._Candidates(of(scores), of(boxes), of(classes), 0 if angles is None else of(angles))
    target = gpu._Kept(
        of(counts), of(kept_boxes), of(kept_scores), of(kept_classes), of(kept), 0, of(scratch),
        most, agnostic, threshold,
    )  # fmt: skip
    kernels.run_suppress(ctypes.byref(candidates), rows, ctypes.byref(target), batch)
    if gathered is not None:
        head, extras = gathered
        target.extras = extras.ctypes.data
        kernels.run_gather_f32(ctypes.byref(head), ctypes.byref(target), batch)
    found = []
    for index in range(batch):
        count = counts[index]
        chosen = kept[index, :count]
        np.testing.assert_array_equal(kept_boxes[index, :count], boxes[index, chosen])
        np.testing.assert_array_equal(kept_scores[index, :count], scores[index, chosen])
        np.testing.assert_array_equal(kept_classes[index, :count], classes[index, chosen])
        found.append(chosen)
    return found


@pytest.mark.parametrize(
    ("rows", "passing", "classes", "most", "threshold"),
    [
        (1, 1.0, 1, 5, 0.5),
        (50, 1.0, 3, 300, 0.5),
        (64, 1.0, 1, 300, 0.3),
        (900, 0.0, 2, 300, 0.5),
        (8400, 0.02, 80, 300, 0.6),
        (3000, 0.9, 80, 300, 0.6),
        (5000, 0.9, 5, 1024, 0.7),
        (5000, 1.0, 1, 40, 0.9),
        (6000, 1.0, 2, 1024, 0.2),
    ],
)
@pytest.mark.parametrize("agnostic", [False, True])
def test_suppression_keeps_what_the_reference_keeps(
    kernels: ctypes.CDLL, rows: int, passing: float, classes: int, most: int, threshold: float, agnostic: bool
) -> None:
    rng = np.random.default_rng(rows)
    boxes = (rng.random((2, rows, 4)) * 500).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + 20 + boxes[..., 2:] / 5
    # Many are equal: their order is that of the rows.
    scores = np.round(rng.random((2, rows)) * 0.99 + 0.01, 3).astype(np.float32)
    scores[rng.random((2, rows)) >= passing] = 0
    class_ids = rng.integers(0, classes, (2, rows)).astype(np.int32)
    found = suppress(kernels, boxes, scores, class_ids, most=most, agnostic=agnostic, threshold=threshold)
    for index in range(2):
        there = np.flatnonzero(scores[index] > 0)
        expected = non_maximum_suppression(
            boxes[index, there], scores[index, there], threshold,
            class_ids=None if agnostic else class_ids[index, there], limit=most,
        )  # fmt: skip
        np.testing.assert_array_equal(found[index], there[expected])


def test_boxes_in_one_place_and_boxes_without_area(kernels: ctypes.CDLL) -> None:
    boxes = np.zeros((2, 200, 4), np.float32)
    boxes[0] = [5, 5, 25, 25]
    scores = np.linspace(0.1, 0.9, 400, dtype=np.float32).reshape(2, 200)
    classes = np.zeros((2, 200), np.int32)
    found = suppress(kernels, boxes, scores, classes, most=300, agnostic=False, threshold=0.5)
    assert found[0].tolist() == [199]
    assert found[1].tolist() == list(range(199, -1, -1))  # what has no area overlaps nothing


@pytest.mark.parametrize(("rows", "threshold"), [(700, 0.3), (2500, 0.5), (1500, 0.9)])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_oriented_boxes(kernels: ctypes.CDLL, dtype: str, rows: int, threshold: float) -> None:
    """From a head's output: boxes in clusters, thin ones and some without area, and numbers that are none."""
    rng = np.random.default_rng(rows)
    classes, count = 3, 40
    objects = np.concatenate([rng.random((count, 2)) * 600, rng.random((count, 2)) ** 3 * 120 + 2], axis=1)
    boxes = objects[rng.integers(0, count, rows)] + rng.standard_normal((rows, 4)) * 2
    boxes[:, 2:] = np.maximum(boxes[:, 2:], 0)
    angles = rng.integers(-3, 4, rows) * 0.5 + rng.standard_normal(rows) * 0.05
    values = np.concatenate([boxes, rng.random((rows, classes)), angles[:, None]], axis=1).T.astype(dtype)
    values[4, 7] = values[2, 9] = values[-1, 11] = np.nan
    values = np.ascontiguousarray(values[None])
    head = gpu._Head(
        values.ctypes.data, values.size, 1, rows, rows, classes, 1, 4 + classes, gpu._ORIENTED, 640, 640, 3, 0.4
    )  # fmt: skip
    found = np.zeros((1, rows), np.float32), np.zeros((1, rows, 4), np.float32), np.zeros((1, rows), np.int32)
    turned = np.zeros((1, rows), np.float32)
    candidates = gpu._Candidates(*(array.ctypes.data for array in (*found, turned)))
    getattr(kernels, f"run_select_{'f16' if dtype == 'float16' else 'f32'}")(
        ctypes.byref(head), ctypes.byref(candidates), 1
    )
    scores, places, class_ids = found
    (kept,) = suppress(kernels, places, scores, class_ids, turned, most=1024, agnostic=False, threshold=threshold)
    selection = Selection(score_threshold=0.4, iou_threshold=threshold, max_detections=1024)
    computable = {"predictions": values.astype(np.float32)}
    (expected,) = yolo_anchor_free.candidates(computable, classes=classes, selection=selection, oriented=True)
    expected = oriented_boxes.keep(expected, selection)
    assert len(expected.scores) > 20
    np.testing.assert_array_equal(np.concatenate([places[0], turned[0, :, None]], axis=1)[kept], expected.boxes)
    np.testing.assert_array_equal(scores[0, kept], expected.scores)
    np.testing.assert_array_equal(class_ids[0, kept], expected.class_ids)


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_channels_than_cells(kernels: ctypes.CDLL, channels_last: bool) -> None:
    rng = np.random.default_rng(1)
    classes, rows = 1203, 1029
    values = rng.random((1, 4 + classes, rows)).astype(np.float32) ** 8
    values[:, :4] *= 224
    (expected,) = yolo_anchor_free.candidates(
        {"predictions": values}, classes=classes, selection=(selection := Selection(score_threshold=0.999))
    )
    given = np.ascontiguousarray(values.transpose(0, 2, 1)) if channels_last else values
    head = Head("yolov8", "detect", {"predictions": "o"}, classes, channels_last=channels_last)
    name, raw, _ = gpu._dense(
        head, selection, Preprocess((224, 224)), {"predictions": (given.ctypes.data, given.shape)}
    )
    found = np.zeros((1, rows), np.float32), np.zeros((1, rows, 4), np.float32), np.zeros((1, rows), np.int32)
    candidates = gpu._Candidates(*(array.ctypes.data for array in found), 0)
    getattr(kernels, f"run_{name}_f32")(ctypes.byref(raw), ctypes.byref(candidates), 1)
    kept = found[0][0] > 0
    assert 20 < kept.sum() < rows
    np.testing.assert_array_equal(found[0][0, kept], expected.scores)
    np.testing.assert_array_equal(found[1][0, kept], expected.boxes)
    np.testing.assert_array_equal(found[2][0, kept], expected.class_ids)


def test_faces(kernels: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    batch, rows, columns, most = 2, 20, 33, 300
    shapes = {role: (batch, depth, rows, columns) for role, depth in centerface.ROLES.items()}
    maps = {role: rng.standard_normal(shape).astype(np.float32) for role, shape in shapes.items()}
    maps["scale"] += 1
    maps["heat"][0, 0, 3, 4] = maps["scale"][1, 0, 5, 6] = np.nan
    maps["heat"][1, 0, 5, 6], maps["scale"][1, 1, 7, 8], maps["heat"][1, 0, 7, 8] = 2, np.inf, 2
    selection = Selection(score_threshold=0.5, iou_threshold=0.3, max_detections=most)
    outputs: Any = {role: (values.ctypes.data, values.shape) for role, values in maps.items()}
    head = Head("centerface", "detect", {role: role for role in maps}, 1)
    name, faces, rest = gpu._faces(head, selection, Preprocess((columns * 4, rows * 4)), outputs)
    assert name == "select_faces"
    cells = rows * columns
    scores, boxes = np.empty((batch, cells), np.float32), np.empty((batch, cells, 4), np.float32)
    classes = np.empty((batch, cells), np.int32)
    candidates = gpu._Candidates(scores.ctypes.data, boxes.ctypes.data, classes.ctypes.data)
    kernels.run_select_faces_f32(ctypes.byref(faces), ctypes.byref(candidates), batch)
    extras = np.empty((batch, most, rest.extras), np.float32)
    kept = suppress(kernels, boxes, scores, classes, gathered=(rest, extras), most=most, agnostic=False, threshold=0.3)
    for index, theirs in enumerate(centerface.candidates(maps, selection=selection)):
        expected = keep(theirs, selection)
        assert len(expected.scores) > 20
        np.testing.assert_array_equal(scores[index, kept[index]], expected.scores)
        np.testing.assert_allclose(boxes[index, kept[index]], expected.boxes, rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(extras[index, : len(kept[index])], expected.extra)


@pytest.mark.parametrize("most", [1024, 300, 7])
def test_each_box_overlaps_the_next(kernels: ctypes.CDLL, most: int) -> None:
    """Every second is kept, and none can be settled before the one in front of it."""
    rows = 1500
    left = np.arange(rows, dtype=np.float32) * 4
    boxes = np.stack([left, 0 * left, left + 6, 0 * left + 10], axis=1)[None]
    scores = np.linspace(0.9, 0.1, rows, dtype=np.float32)[None]
    classes = np.zeros((1, rows), np.int32)
    found = suppress(kernels, boxes, scores, classes, most=most, agnostic=False, threshold=0.1)
    assert found[0].tolist() == list(range(0, rows, 2))[:most]


def prepare(kernels: ctypes.CDLL, pictures: Sequence[Any], how: Preprocess, packed: bool) -> Any:
    """The kernel's batch, from whole pictures or from the rows that count, and one row without a picture."""
    held, described = [], []
    for picture in pictures:
        geometry = how.geometry((picture.shape[1], picture.shape[0]))
        needed, rows = gpu.rows_that_count(geometry) if packed else (0, None)
        pixels = picture if rows is None else np.ascontiguousarray(picture[rows])
        held.append(pixels)
        described.append(gpu.describe(geometry, pixels.ctypes.data, pixels.strides[0], how.padding, packed=needed))
    count = len(pictures) + 1
    table, batch = how.table(), np.ones(how.shape(count), how.dtype)
    descriptors = (gpu.PictureStruct * count)(*described)
    target, grid, block = gpu.target(batch.ctypes.data, table.ctypes.data, how, count)
    size, itemsize = ctypes.c_uint32 * 3, np.dtype(how.dtype).itemsize
    kernels.run_prepare(descriptors, ctypes.byref(target), itemsize, size(*grid), size(*block))
    assert not batch[-1].any()
    return batch[:-1]


def nv12(picture: Any) -> Any:
    """The planes of a BGR picture of even sides, [H * 3 / 2, W]."""
    height, width = picture.shape[:2]
    planes = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    u, v = planes[height:].reshape(2, -1)
    return np.concatenate([planes[:height].ravel(), np.stack([u, v], axis=1).ravel()]).reshape(-1, width)


def test_nv12_becomes_what_opencv_makes_of_it(kernels: ctypes.CDLL) -> None:
    how = Preprocess((96, 96))
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (70, 130, 3), np.uint8), (5, 5), 2)
    planes = nv12(picture)
    geometry = how.geometry((130, 70))
    pixels = planes.ctypes.data
    described = gpu.describe(geometry, pixels, 130, how.padding, kind=gpu.IN_NV12, chroma=pixels + 70 * 130)
    table, batch = how.table(), np.empty(how.shape(1), how.dtype)
    target, grid, block = gpu.target(batch.ctypes.data, table.ctypes.data, how, 1)
    size = ctypes.c_uint32 * 3
    kernels.run_prepare(ctypes.byref(described), ctypes.byref(target), 4, size(*grid), size(*block))
    expected, _ = prepare_reference([cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)], how)
    assert np.abs(batch - expected).max() <= 1.001 / 255


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"size": (96, 96)},
        {"size": (96, 64), "dtype": "float16"},
        {"size": (97, 61), "dtype": "float16", "channels": "BGR", "align": "top_left"},
        {"size": (100, 60), "dtype": "uint8", "scale": 1.0},
        {"size": (97, 61), "layout": "NHWC", "dtype": "uint8", "scale": 1.0},
        {"size": (96, 64), "channels": "GREY", "dtype": "int8", "scale": 1.0, "mean": (128.0,) * 3},
        {"size": (64, 64), "mode": "center_crop"},
        {"size": (64, 64), "mode": "stretch", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    ],
    ids=str,
)
def test_pictures_become_what_the_reference_makes_of_them(
    kernels: ctypes.CDLL, options: dict[str, Any], packed: bool
) -> None:
    how = Preprocess(**options)
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (54, 96), (162, 288), (108, 192), (101, 77), (96, 96), (3, 5), (333, 201)]
    pictures = [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in sizes]
    pictures += [cv2.GaussianBlur(pictures[-1], (5, 5), 2)]
    expected, _ = prepare_reference(pictures, how)
    actual = prepare(kernels, pictures, how, packed)
    level = np.abs(np.diff(how.table().astype(np.float64), axis=1)).max()
    for index, picture in enumerate(pictures):
        difference = np.abs(actual[index].astype(np.float64) - expected[index]).max() / level
        assert difference <= 1.001, (picture.shape, difference)
