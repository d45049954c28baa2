"""The vision kernels against the CPU reference: the same grey levels, the same boxes kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from trtrun.buffers import Buffers
from trtrun.cuda.device import Device
from trtrun.cuda.memory import copy_async, copy_now, fill_async
from trtrun.cuda.stream import create_stream
from trtrun.vision import gpu
from trtrun.vision.geometry import Geometry
from trtrun.vision.heads import Head
from trtrun.vision.postprocess import centerface, oriented_boxes, yolo_anchor_free, yolo_objectness
from trtrun.vision.postprocess.candidates import Candidates, Selection, keep
from trtrun.vision.postprocess.nms import non_maximum_suppression
from trtrun.vision.preprocess import Preprocess, import_cv2, prepare_reference

POISON = 0x7B


class Machine:
    """A GPU, memory and a stream."""

    def __init__(self) -> None:
        self.device = Device()
        self.buffers = Buffers(self.device)
        self.stream = create_stream(self.device)
        self.handle = int(self.stream.handle)
        self._count = 0

    def put(self, array: np.ndarray) -> int:
        self._count += 1
        address = self.buffers.on_gpu(f"\0test{self._count}", array.nbytes + 16)
        if array.nbytes:
            copy_now(address, np.ascontiguousarray(array))
        return address

    def poisoned(self, nbytes: int) -> int:
        self._count += 1
        address = self.buffers.on_gpu(f"\0test{self._count}", nbytes)
        fill_async(address, POISON, nbytes, self.handle)
        return address

    def get(self, address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
        array = np.empty(shape, dtype)
        host = self.buffers.host("\0get", array.nbytes)
        copy_async(host.ctypes.data, address, array.nbytes, self.handle)
        self.stream.sync()
        return host[: array.nbytes].view(dtype).reshape(shape).copy()


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Device():
        machine = Machine()
        yield machine
        machine.stream.sync()
        machine.buffers.close()
        machine.stream.close()


def prepare(machine: Machine, pictures: list[np.ndarray], how: Preprocess) -> np.ndarray:
    """Through the stages' own filling, which sends only the rows that count."""
    stages = gpu.VisionStages("x", how, len(pictures)).open(0, machine.buffers)
    geometries = [how.geometry((p.shape[1], p.shape[0])) for p in pictures]
    (shape,), copies = stages.fill({"pictures": pictures, "geometries": geometries}, machine.handle, helpers=True)
    nbytes = int(np.prod(shape)) * np.dtype(how.dtype).itemsize
    batch = machine.poisoned(nbytes)
    before, after = stages.bind({"x": (batch, shape)}, {})
    assert not after
    for copy in copies:
        copy_async(*copy, machine.handle)
    for step in before:
        step.enqueue(machine.handle)
    return machine.get(batch, shape, how.dtype)


SIZES = [(1, 1), (1080, 1920), (2160, 3840), (101, 77), (30, 2000), (640, 640), (1280, 1280), (3, 5), (333, 501)]
KINDS: list[dict[str, Any]] = [
    {"size": (640, 640)},
    {"size": (640, 384), "dtype": "float16", "channels": "BGR", "align": "top_left"},
    {"size": (97, 61), "layout": "NHWC", "dtype": "uint8", "scale": 1.0},
    {"size": (96, 64), "channels": "GREY", "dtype": "int8", "scale": 1.0, "mean": (128.0,) * 3},
    {"size": (224, 224), "layout": "NHWC", "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind['size']}-{kind.get('dtype', 'float32')}")
@pytest.mark.parametrize("mode", ["letterbox", "stretch", "center_crop"])
def test_pictures_become_what_the_reference_makes_of_them(machine: Machine, mode: Any, kind: dict[str, Any]) -> None:
    if mode != "letterbox":
        kind = {key: value for key, value in kind.items() if key != "align"}
    how = Preprocess(mode=mode, **kind)
    rng = np.random.default_rng(0)
    sizes = [size for size in SIZES if mode != "center_crop" or max(size) < 20 * min(size)]
    pictures = [rng.integers(0, 256, (h + 2, w + 3, 3), np.uint8)[1:-1, 2:-1] for h, w in sizes]  # views with strides
    pictures += [np.ascontiguousarray(picture) for picture in pictures]
    expected, _ = prepare_reference(pictures, how)
    actual = prepare(machine, pictures, how)
    for index, picture in enumerate(pictures):
        difference = np.abs(actual[index].astype(np.float64) - expected[index])
        level = np.abs(np.diff(how.table().astype(np.float64), axis=1)).max()
        print(mode, picture.shape, "largest difference in grey levels:", difference.max() / level)
        assert difference.max() <= 1.001 * level


def test_photographs(machine: Machine) -> None:
    data = pytest.importorskip("skimage.data")
    pictures = [np.ascontiguousarray(getattr(data, name)()[..., ::-1]) for name in ("astronaut", "chelsea", "coffee")]
    how = Preprocess((640, 640))
    assert np.abs(prepare(machine, pictures, how) - prepare_reference(pictures, how)[0]).max() <= 1.001 / 255


def test_rows_without_a_picture_are_zeros(machine: Machine) -> None:
    how = Preprocess((64, 64))
    stages = gpu.VisionStages("x", how, 3).open(0, machine.buffers)
    picture = np.full((20, 30, 3), 200, np.uint8)
    request = {"pictures": [picture], "geometries": [how.geometry((30, 20))]}
    (shape,), copies = stages.fill(request, machine.handle, helpers=False)
    assert shape[0] == 3
    batch = machine.poisoned(4 * int(np.prod(shape)))
    for copy in copies:
        copy_async(*copy, machine.handle)
    stages.bind({"x": (batch, shape)}, {})[0][0].enqueue(machine.handle)
    actual = machine.get(batch, shape, np.float32)
    assert (actual[1:] == 0).all()
    assert np.abs(actual[:1] - prepare_reference([picture], how)[0]).max() <= 1.001 / 255


@pytest.mark.parametrize("size", [(1920, 1080), (640, 480), (2, 2), (202, 98)])
def test_nv12(machine: Machine, size: tuple[int, int]) -> None:
    cv2 = import_cv2()
    width, height = size
    planes = np.random.default_rng(0).integers(0, 256, (height * 3 // 2, width), np.uint8)
    how = Preprocess((640, 640))
    geometry = Geometry.letterbox(size, how.size)
    pixels = machine.put(planes)
    picture = gpu.describe(geometry, pixels, width, 114, kind=gpu.IN_NV12, chroma=pixels + width * height)
    batch = machine.poisoned(4 * 3 * 640 * 640)
    table = gpu.constant(machine.device, how.table())
    descriptors = machine.put(np.frombuffer(bytes(picture), np.uint8))
    gpu.preparation(machine.device, descriptors, batch, table.address, how, 1).enqueue(machine.handle)
    actual = machine.get(batch, how.shape(1), np.float32)
    expected, _ = prepare_reference([cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)], how)
    assert np.abs(actual - expected).max() <= 1.001 / 255


def find(
    machine: Machine, values: np.ndarray, head: Head, selection: Selection, size: tuple[int, int]
) -> list[Candidates]:
    how = Preprocess(size)
    outputs: Any = {"predictions": (machine.put(values), values.shape)}
    found = gpu.KeptObjects(machine.device, machine.buffers, head, selection, how, outputs, values.dtype.name)
    found.suppression.host[...] = POISON
    for step in found.steps:
        step.enqueue(machine.handle)
    machine.stream.sync()
    results = found.suppression.read()
    return [gpu.candidates_of(results, index) for index in range(len(values))]


def check(found: list[Candidates], expected: list[Candidates], *, tolerance: float = 0) -> None:
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        print(f"picture {index}: kept {len(ours.scores)}, expected {len(theirs.scores)}")
        assert len(ours.scores) == len(theirs.scores)
        for name in ("scores", "class_ids", "boxes", "extra"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=tolerance, err_msg=name)


def predictions(batch: int, rows: int, base: int, classes: int, extras: int, power: float) -> np.ndarray:
    """Random boxes with scores of which many are equal, and some numbers that are none."""
    rng = np.random.default_rng(rows)
    values = rng.random((batch, rows, base + classes + extras)).astype(np.float32)
    values[..., :2] *= 600
    values[..., 2:4] = values[..., 2:4] * 150 + 5
    values[..., 4:] = np.round(values[..., 4:] ** power, 2)
    values[0, 3, 2] = values[0, 5, 4] = np.nan
    values[0, 7, 1] = values[0, 9, 4] = np.inf
    return values


ROLES = {"predictions": "y"}


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("rows", [8400, 25200])
@pytest.mark.parametrize("power", [40, 1], ids=["sparse", "dense"])
def test_anchor_free(machine: Machine, dtype: str, rows: int, power: float) -> None:
    values = predictions(2, rows, 4, 5, 3, power).transpose(0, 2, 1).astype(dtype)
    values = np.ascontiguousarray(values)
    head, selection = Head("yolov8", "detect", ROLES, 5), Selection(iou_threshold=0.5)
    found = yolo_anchor_free.candidates({"predictions": values.astype(np.float32)}, classes=5, selection=selection)
    check(find(machine, values, head, selection, (640, 640)), [keep(one, selection) for one in found])


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_channels_than_cells(machine: Machine, channels_last: bool) -> None:
    values = np.ascontiguousarray(predictions(2, 1029, 4, 1203, 0, 40).transpose(0, 2, 1))
    head, selection = Head("yolov8", "detect", ROLES, 1203, channels_last=channels_last), Selection(iou_threshold=0.5)
    found = yolo_anchor_free.candidates({"predictions": values}, classes=1203, selection=selection)
    given = np.ascontiguousarray(values.transpose(0, 2, 1)) if channels_last else values
    check(find(machine, given, head, selection, (224, 224)), [keep(one, selection) for one in found])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("threshold", [0.2, 0.6])
def test_oriented_boxes(machine: Machine, dtype: str, threshold: float) -> None:
    values = predictions(2, 8400, 4, 3, 1, 8)
    values[..., -1] = values[..., -1] * 3 - 1.5
    values[0, 11, -1] = np.nan
    values[0, 20:40, 2:4] = [[0, 30]]  # without area
    values = np.ascontiguousarray(values.transpose(0, 2, 1).astype(dtype))
    head, selection = Head("yolov8", "obb", ROLES, 3), Selection(iou_threshold=threshold, max_detections=1000)
    found = yolo_anchor_free.candidates(
        {"predictions": values.astype(np.float32)}, classes=3, selection=selection, oriented=True
    )
    expected = [oriented_boxes.keep(one, selection) for one in found]
    for ours, theirs in zip(find(machine, values, head, selection, (640, 640)), expected, strict=True):
        print(f"kept {len(ours.scores)}, expected {len(theirs.scores)}")
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(np.concatenate([ours.boxes, ours.extra], axis=1), theirs.boxes)
        np.testing.assert_array_equal(ours.class_ids, theirs.class_ids)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_faces(machine: Machine, dtype: str) -> None:
    rng = np.random.default_rng(0)
    shapes = {role: (3, depth, 160, 160) for role, depth in centerface.ROLES.items()}
    maps = {role: (rng.standard_normal(shape) / 2).astype(dtype) for role, shape in shapes.items()}
    maps["scale"] += np.array(2, dtype)
    maps["heat"][0, 0, 3, 4] = maps["scale"][1, 0, 5, 6] = np.nan
    maps["heat"][1, 0, 5, 6] = 2
    maps["heat"][2] = 0
    head = Head("centerface", "detect", {role: role for role in maps}, 1)
    selection = Selection(score_threshold=1.0, iou_threshold=0.3, max_detections=1000)
    outputs: Any = {role: (machine.put(values), values.shape) for role, values in maps.items()}
    found = gpu.KeptObjects(machine.device, machine.buffers, head, selection, Preprocess((640, 640)), outputs, dtype)
    found.suppression.host[...] = POISON
    for step in found.steps:
        step.enqueue(machine.handle)
    machine.stream.sync()
    results = found.suppression.read()
    computable = {role: values.astype(np.float32) for role, values in maps.items()}
    for index, theirs in enumerate(centerface.candidates(computable, selection=selection)):
        ours, expected = gpu.candidates_of(results, index), keep(theirs, selection)
        print(f"picture {index}: kept {len(ours.scores)}, expected {len(expected.scores)}")
        np.testing.assert_array_equal(ours.scores, expected.scores)
        np.testing.assert_allclose(ours.boxes, expected.boxes, rtol=1e-5, atol=1e-3)
        np.testing.assert_array_equal(ours.extra, expected.extra)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("agnostic", [False, True])
def test_objectness(machine: Machine, dtype: str, agnostic: bool) -> None:
    values = predictions(3, 25200, 5, 4, 2, 3).astype(dtype)
    selection = Selection(iou_threshold=0.45, class_agnostic=agnostic, max_detections=1000)
    found = yolo_objectness.candidates(values.astype(np.float32), classes=4, selection=selection)
    actual = find(machine, values, Head("yolov5", "detect", ROLES, 4), selection, (640, 640))
    check(actual, [keep(one, selection) for one in found])


@pytest.mark.parametrize("size", [(416, 416), (640, 384)])
def test_grid(machine: Machine, size: tuple[int, int]) -> None:
    rows = sum((size[0] // stride) * (size[1] // stride) for stride in (8, 16, 32))
    values = predictions(2, rows, 5, 3, 0, 3)
    values[..., :4] = np.random.default_rng(0).standard_normal(values[..., :4].shape)
    selection = Selection(score_threshold=0.3, iou_threshold=0.4)
    decoded = yolo_objectness.decode({"predictions": values}, kind="grid", size=size)
    found = yolo_objectness.candidates(decoded, classes=3, selection=selection)
    actual = find(machine, values, Head("yolox", "detect", ROLES, 3), selection, size)
    check(actual, [keep(one, selection) for one in found], tolerance=1e-5)


def test_none_one_and_all_in_one_place(machine: Machine) -> None:
    values = predictions(3, 8400, 4, 2, 0, 1)
    values[0, :, 4:] = 0
    values[1, :, 4:] = 0
    values[1, 17, 5] = 0.9
    values[2, :, :4] = [50, 50, 20, 20]
    values = np.ascontiguousarray(values.transpose(0, 2, 1))
    selection = Selection()
    found = yolo_anchor_free.candidates({"predictions": values}, classes=2, selection=selection)
    actual = find(machine, values, Head("yolov8", "detect", ROLES, 2), selection, (640, 640))
    assert [len(one.scores) for one in actual] == [0, 1, 2]
    check(actual, [keep(one, selection) for one in found])


@pytest.mark.parametrize("most", [1, 300, 1024])
def test_suppression_alone(machine: Machine, most: int) -> None:
    rng = np.random.default_rng(most)
    batch, rows = 4, 5000
    boxes = (rng.random((batch, rows, 4)) * 500).astype(np.float32)
    boxes[..., 2:] = boxes[..., :2] + 20 + boxes[..., 2:] / 5
    scores = np.round(rng.random((batch, rows)), 3).astype(np.float32)
    classes = rng.integers(0, 10, (batch, rows)).astype(np.int32)
    selection = Selection(iou_threshold=0.6, max_detections=most)
    addresses = machine.put(scores), machine.put(boxes), machine.put(classes)
    suppression = gpu.Suppression(machine.device, machine.buffers, addresses, (batch, rows), 0, selection)
    suppression.host[...] = POISON
    suppression.step.enqueue(machine.handle)
    machine.stream.sync()
    results = suppression.read()
    for index in range(batch):
        there = np.flatnonzero(scores[index] > 0)
        kept = there[
            non_maximum_suppression(
                boxes[index, there], scores[index, there], 0.6, class_ids=classes[index, there], limit=most
            )
        ]
        ours = gpu.candidates_of(results, index)
        assert len(ours.scores) == len(kept)
        np.testing.assert_array_equal(ours.boxes, boxes[index, kept])
        np.testing.assert_array_equal(ours.class_ids, classes[index, kept])
