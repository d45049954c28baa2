"""Every head for objects: planted objects come back, and noise is read as the slow definition reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import trtrun
from tests.unit.vision import heads
from tests.unit.vision.heads import SIZE, Outputs, cells, scene
from trtrun import vision
from trtrun.tensor_spec import TensorSpec
from trtrun.vision import Selection
from trtrun.vision.postprocess.oriented_boxes import probabilistic_iou
from trtrun.vision.postprocess.yolo_objectness import YOLOV5_ANCHORS

CLASSES = 5
NAMES = dict(enumerate(["person", "car", "dog", "cup", "tree"]))
PICTURE = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)  # as large as the input, so that both coordinates are the same


def rows(objects: Any) -> list[list[float]]:
    return [[*box, score, class_id] for box, score, class_id in zip(*objects, strict=True)]


def end_to_end(objects: Any, extra: np.ndarray | None = None) -> np.ndarray:
    rest = np.zeros((len(objects[0]), 0)) if extra is None else extra
    table = np.zeros((1, 40, 6 + rest.shape[1]), np.float32)
    table[0, : len(rest)] = np.concatenate([np.array(rows(objects)), rest], axis=1)
    return table


def ultralytics_detr(objects: Any, rows: int = 300) -> np.ndarray:
    boxes, scores, ids = objects
    table = np.random.default_rng(0).uniform(0, 0.2, (1, rows, 4 + CLASSES)).astype(np.float32)
    for i, at in enumerate(np.random.default_rng(1).permutation(rows)[: len(boxes)]):
        table[0, at, :4] = heads.centers(boxes)[i] / [*SIZE, *SIZE]
        table[0, at, 4 + ids[i]] = scores[i]
    return table


def hugging_face(objects: Any) -> dict[str, np.ndarray]:
    table = ultralytics_detr(objects).astype(np.float64)
    probabilities = np.clip(table[..., 4:], 1e-4, 1)
    logits = np.log(probabilities / (1 - probabilities))
    return {"logits": logits.astype(np.float32), "pred_boxes": table[..., :4].astype(np.float32)}


def efficient(objects: Any) -> dict[str, np.ndarray]:
    boxes, scores, ids = objects
    count = len(boxes)
    outputs = {
        "num_dets": np.array([[count]], np.int32),
        "det_boxes": np.full((1, 100, 4), 1e9, np.float32),  # what is beyond the count means nothing
        "det_scores": np.full((1, 100), 0.99, np.float32),
        "det_classes": np.full((1, 100), 77, np.int32),
    }
    for name, values in (("det_boxes", boxes), ("det_scores", scores), ("det_classes", ids)):
        outputs[name][0, :count] = values
    return outputs


def selected(objects: Any) -> dict[str, np.ndarray]:
    boxes, scores, ids = objects
    table = np.zeros((1, CLASSES, 50), np.float32)
    places = np.random.default_rng(3).permutation(50)[: len(boxes)]
    corners = np.random.default_rng(4).uniform(0, 90, (1, 50, 4)).astype(np.float32)
    corners[0, places], table[0, ids, places] = boxes, scores
    indices = [[0, c, p] for c, p in zip(ids, places, strict=True)] + [[-1, -1, -1]] * 3
    return {"selected": np.array(indices, np.int64), "boxes": corners, "scores": table}


def authors_detr(objects: Any) -> dict[str, np.ndarray]:
    boxes, scores, ids = objects
    return {
        "labels": ids[None].astype(np.int64),
        "boxes": boxes[None].astype(np.float32),
        "scores": scores[None].astype(np.float32),
    }


def yolov7_rows(objects: Any) -> np.ndarray:
    boxes, scores, ids = objects
    return np.array([[0, *b, c, s] for b, s, c in zip(boxes, scores, ids, strict=True)], np.float32).reshape(-1, 7)


GRID = len(cells())
PLANTED: dict[str, tuple[Callable[[Any], Any], dict[str, Any], str]] = {
    "yolov8": (lambda o: heads.plant_v8(o, CLASSES), {}, "yolov8"),
    "yolov8 transposed": (lambda o: heads.plant_v8(o, CLASSES).transpose(0, 2, 1), {"names": NAMES}, "yolov8"),
    "yolov5": (lambda o: heads.plant_objectness(o, CLASSES, 3 * GRID), {}, "yolov5"),
    "yolov6": (lambda o: heads.plant_objectness(o, CLASSES, GRID), {"head": "yolov6"}, "yolov6"),
    "yolox": (lambda o: heads.plant_yolox(o, CLASSES), {"head": "yolox"}, "yolox"),
    "yolov5 raw": (lambda o: heads.plant_anchors(o, CLASSES, YOLOV5_ANCHORS), {}, "yolov5-raw"),
    "yolov10": (end_to_end, {"names": NAMES}, "yolov10"),
    "rt-detr": (ultralytics_detr, {}, "rtdetr"),
    "rt-detr, hugging face": (hugging_face, {}, "rtdetr"),
    "rt-detr, its authors": (authors_detr, {}, "rtdetr"),
    "efficient nms": (efficient, {}, "efficient-nms"),
    "onnx nms": (selected, {}, "onnx-nms"),
    "yolov7 end to end": (yolov7_rows, {}, "onnx-nms"),
}


def as_outputs(planted: Any) -> dict[str, np.ndarray]:
    return planted if isinstance(planted, dict) else {"output0": planted}


def check(found: vision.Detections, objects: Any, tolerance: float = 2e-3) -> None:
    boxes, scores, ids = objects
    np.testing.assert_allclose(found.scores, scores, atol=1e-4)
    np.testing.assert_array_equal(found.class_ids, ids)
    np.testing.assert_allclose(found.boxes, boxes, atol=tolerance)


@pytest.mark.parametrize("name", PLANTED)
@pytest.mark.parametrize("seed", range(3))
def test_planted_objects_come_back(name: str, seed: int) -> None:
    plant, options, head = PLANTED[name]
    objects = scene(seed)
    sizes = [TensorSpec("orig_target_sizes", np.dtype(np.int64), (-1, 2))] if name == "rt-detr, its authors" else []
    runner = Outputs(as_outputs(plant(objects)), more=sizes)
    model = vision.detector(runner, **options)
    assert model.head.name == head
    check(model(PICTURE), objects)
    if sizes:
        np.testing.assert_array_equal(runner.requests[0]["orig_target_sizes"], [SIZE])


@pytest.mark.parametrize("channels_last", [False, True])
def test_more_channels_than_cells(channels_last: bool) -> None:
    """LVIS's 1203 classes on 252 cells: which size is larger does not tell which axis has the channels."""
    boxes, scores, _ = scene(0)
    objects = boxes, scores, np.array([0, 1202, 7, 400, 251, 252])
    planted = heads.plant_v8(objects, 1203)
    assert planted.shape[1] > planted.shape[2]
    planted = planted.transpose(0, 2, 1) if channels_last else planted
    model = vision.detector(Outputs({"output0": planted}), head="yolov8", names=dict(enumerate(map(str, range(1203)))))
    assert (model.head.classes, model.head.channels_last) == (1203, channels_last)
    check(model(PICTURE), objects)


@pytest.mark.parametrize("name", [n for n in PLANTED if n not in ("rt-detr, its authors",)])
def test_a_larger_picture_gives_its_own_pixels(name: str) -> None:
    plant, options, _ = PLANTED[name]
    boxes, scores, ids = objects = scene(7)
    model = vision.detector(Outputs(as_outputs(plant(objects))), **options)
    picture = np.zeros((600, 400, 3), np.uint8)
    geometry = model.preprocess.geometry((400, 600))
    expected = geometry.boxes_to_picture(boxes.astype(np.float32))
    check(model(picture), (expected, scores, ids), tolerance=0.02)


@pytest.mark.parametrize("name", PLANTED)
def test_nothing_above_the_threshold_is_an_empty_result(name: str) -> None:
    plant, options, _ = PLANTED[name]
    sizes = [TensorSpec("sizes", np.dtype(np.int64), (-1, 2))] if name == "rt-detr, its authors" else []
    runner = Outputs(as_outputs(plant(scene(1))), more=sizes)
    found = vision.detector(runner, selection=Selection(score_threshold=1.0), **options)(PICTURE)
    assert found.boxes.shape == (0, 4)
    assert found.scores.shape == found.class_ids.shape == (0,)


def noise(kind: str, seed: int) -> np.ndarray:
    """Many overlapping candidates with ties, NaN scores, and NaN and infinite boxes."""
    rng = np.random.default_rng(seed)
    width = 4 + CLASSES + (kind != "yolov8")
    head = np.empty((1, GRID, width), np.float32)
    head[..., :2] = rng.integers(0, 12, (1, GRID, 2)) * 8
    head[..., 2:4] = rng.integers(0, 5, (1, GRID, 2)) * 8  # some have no area
    head[..., 4:] = rng.integers(0, 10, (1, GRID, width - 4)) / 10
    head[0, rng.integers(0, GRID, 12), rng.integers(4, width, 12)] = np.nan
    head[0, rng.integers(0, GRID, 6), rng.integers(0, 4, 6)] = [np.nan, np.inf, -np.inf] * 2
    if kind == "yolox":
        head[..., :4] = rng.uniform(-0.5, 1.5, (1, GRID, 4))
    return head.transpose(0, 2, 1) if kind == "yolov8" else head


SLOW = {"yolov8": heads.slow_v8, "yolov6": heads.slow_objectness, "yolox": heads.slow_yolox}


@pytest.mark.parametrize("kind", SLOW)
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_noise_is_read_as_defined(kind: str, agnostic: bool, seed: int) -> None:
    head = noise(kind, seed)
    selection = Selection(0.33, 0.5, max_detections=10_000, class_agnostic=agnostic)
    with np.errstate(invalid="ignore"):
        expected = heads.slow_nms(SLOW[kind](head, CLASSES, 0.33), 0.5, agnostic)
        found = vision.detector(Outputs({"o": head}), head=kind, selection=selection)(PICTURE)
    assert len(found) == len(expected) > 20
    np.testing.assert_allclose(found.scores, [e[0] for e in expected], rtol=1e-6)
    limits = np.array([*SIZE, *SIZE])
    assert found.class_ids.tolist() == [e[1] for e in expected]
    np.testing.assert_allclose(found.boxes, np.clip([e[2] for e in expected], 0, limits), atol=1e-3)


def test_every_class_above_the_threshold_counts_when_map_is_measured() -> None:
    head = noise("yolov8", 5)
    selection = Selection(0.33, 0.5, max_detections=10_000, multi_label=True)
    with np.errstate(invalid="ignore"):
        expected = heads.slow_nms(heads.slow_v8(head, CLASSES, 0.33, multi=True), 0.5)
        found = vision.detector(Outputs({"o": head}), head="yolov8", selection=selection)(PICTURE)
    assert sorted(zip(found.scores.tolist(), found.class_ids.tolist(), strict=True)) == sorted(
        (e[0], e[1]) for e in expected
    )


def test_all_but_one_are_suppressed_and_the_limit_holds() -> None:
    head = np.zeros((1, 4 + CLASSES, GRID), np.float32)
    head[0, :4] = np.array([60, 40, 30, 20])[:, None]
    head[0, 5] = 0.8
    found = vision.detector(Outputs({"o": head}), head="yolov8")(PICTURE)
    np.testing.assert_allclose(found.boxes, [[45, 30, 75, 50]])
    apart = noise("yolov8", 1)
    selection = Selection(0.33, 0.5, max_detections=7)
    everything = vision.detector(Outputs({"o": apart}), head="yolov8", selection=Selection(0.33, 0.5))(PICTURE)
    some = vision.detector(Outputs({"o": apart}), head="yolov8", selection=selection)(PICTURE)
    np.testing.assert_array_equal(some.boxes, everything.boxes[:7])


def test_half_precision_is_computed_in_single() -> None:
    objects = scene(2)
    head = heads.plant_v8(objects, CLASSES).astype(np.float16)
    found = vision.detector(Outputs({"o": head}))(PICTURE)
    assert found.scores.dtype == np.float32
    np.testing.assert_allclose(found.boxes, objects[0], atol=0.1)


@pytest.mark.parametrize("name", ["yolov8", "yolov10"])
def test_instance_masks(name: str) -> None:
    """Prototype k is 1 on square k and -1 elsewhere; an object's coefficients choose one: its mask is that square."""
    objects = scene(3)
    boxes = objects[0]
    count = len(boxes)
    prototypes = np.full((1, count, SIZE[1] // 4, SIZE[0] // 4), -1, np.float32)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        inner = np.array([x1 + 4, y1 + 4, x2 - 2, y2 - 2])
        left, top, right, bottom = np.rint(inner / 4).astype(int)
        prototypes[0, k, top : max(bottom, top + 1), left : max(right, left + 1)] = 1
    chosen = np.eye(count)
    main = heads.plant_v8(objects, CLASSES, chosen) if name == "yolov8" else end_to_end(objects, chosen)
    model = vision.segmenter(Outputs({"output0": main, "output1": prototypes}), names=NAMES)
    assert model.head.name == name
    found = model(PICTURE)
    check(found, objects)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        for y in range(0, SIZE[1]):
            for x in range(0, SIZE[0], 3):
                # Bilinear between the centres of the prototypes' pixels, by its definition.
                u, v = (x + 0.5) / 4 - 0.5, (y + 0.5) / 4 - 0.5
                i, j = math.floor(u), math.floor(v)
                at = lambda r, c, k=k: prototypes[0, k, min(max(r, 0), 23), min(max(c, 0), 31)]  # noqa: E731
                value = (
                    at(j, i) * (1 - u + i) * (1 - v + j) + at(j, i + 1) * (u - i) * (1 - v + j)
                    + at(j + 1, i) * (1 - u + i) * (v - j) + at(j + 1, i + 1) * (u - i) * (v - j)
                )  # fmt: skip
                inside = x1 <= x + 0.5 < x2 and y1 <= y + 0.5 < y2
                if abs(value) > 0.1:  # the interpolation's fixed point decides closer ones
                    assert found.masks[k, y, x] == (inside and value > 0), (k, x, y, value)
    assert found.masks.any(axis=(1, 2)).all()


def test_poses() -> None:
    boxes, scores, _ = scene(4)
    ids = np.zeros(len(boxes), int)
    points = np.random.default_rng(0).uniform(0, 90, (len(boxes), 17, 3))
    points[..., 2] /= 90
    extra = points.reshape(len(boxes), -1)
    for name, main in {
        "yolov8": heads.plant_v8((boxes, scores, ids), 1, extra),
        "yolov10": end_to_end((boxes, scores, ids), extra),
    }.items():
        model = vision.pose_estimator(Outputs({"output0": main}))
        assert (model.head.name, model.head.keypoint_shape) == (name, (17, 3))
        found = model(PICTURE)
        check(found, (boxes, scores, ids))
        np.testing.assert_allclose(found.keypoints, points[..., :2], atol=1e-3)
        np.testing.assert_allclose(found.keypoint_scores, points[..., 2], atol=1e-6)
        far = model(np.zeros((SIZE[1] * 3, SIZE[0] * 3, 3), np.uint8))
        np.testing.assert_allclose(far.keypoints, points[..., :2] * 3, atol=1e-2)


def slow_probabilistic_iou(a: np.ndarray, b: np.ndarray) -> float:
    """1 - Hellinger distance of two Gaussians, from its definition with matrices."""

    def gaussian(box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y, w, h, angle = (float(v) for v in box)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        return np.array([x, y]), turn @ np.diag([w * w / 12, h * h / 12]) @ turn.T

    (m1, s1), (m2, s2) = gaussian(a), gaussian(b)
    mean = (s1 + s2) / 2
    distance = (m1 - m2) @ np.linalg.inv(mean) @ (m1 - m2) / 8
    distance += math.log(np.linalg.det(mean) / math.sqrt(np.linalg.det(s1) * np.linalg.det(s2))) / 2
    return 1 - math.sqrt(max(0.0, 1 - math.exp(-distance)))


def turned(seed: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack(
        [rng.uniform(20, 80, (count, 2)), rng.uniform(8, 40, (count, 2)), rng.uniform(0, 3.1, count)]
    )


def test_probabilistic_iou_is_that_of_the_paper() -> None:
    a, b = turned(0, 30), turned(1, 20)
    expected = [[slow_probabilistic_iou(x, y) for y in b] for x in a]
    np.testing.assert_allclose(probabilistic_iou(a, b), expected, atol=2e-3)
    assert (np.diag(probabilistic_iou(a, a)) > 0.999).all()


@pytest.mark.parametrize("seed", range(3))
def test_oriented_boxes(seed: int) -> None:
    boxes = turned(seed, 40)
    scores, ids = np.random.default_rng(seed).uniform(0.3, 0.9, 40), np.random.default_rng(seed).integers(0, 3, 40)
    head = heads.plant_v8((boxes, scores, ids), CLASSES, boxes[:, 4:])
    model = vision.task(Outputs({"o": head}), "obb", names=NAMES, selection=Selection(0.25, 0.4))
    found = model(PICTURE)
    order = sorted(range(40), key=lambda i: -np.float32(scores[i]))
    kept: list[int] = []
    for i in order:
        if all(ids[i] != ids[j] or slow_probabilistic_iou(boxes[i], boxes[j]) <= 0.4 for j in kept):
            kept.append(i)
    assert 3 < len(kept) < 40
    np.testing.assert_allclose(found.scores, scores[kept], atol=1e-6)
    for corners, upright, i in zip(found.corners, found.boxes, kept, strict=True):
        x, y, w, h, angle = boxes[i]
        np.testing.assert_allclose(corners.mean(axis=0), [x, y], atol=1e-3)
        side = corners[1] - corners[0]
        np.testing.assert_allclose([np.linalg.norm(side), np.linalg.norm(corners[2] - corners[1])], [w, h], atol=1e-3)
        np.testing.assert_allclose(side, [w * math.cos(angle), w * math.sin(angle)], atol=1e-3)
        expected = np.clip([*corners.min(axis=0), *corners.max(axis=0)], 0, [*SIZE, *SIZE])
        np.testing.assert_allclose(upright, expected, atol=1e-3)


def test_oriented_boxes_without_suppression() -> None:
    boxes = turned(5, 6)
    table = np.zeros((1, 30, 7), np.float32)
    table[0, :6] = np.column_stack([boxes[:, :4], np.linspace(0.9, 0.5, 6), np.arange(6) % 3, boxes[:, 4]])
    found = vision.task(Outputs({"o": table}, {"end2end": "True"}), "obb", names=NAMES)(PICTURE)
    np.testing.assert_allclose(found.corners.mean(axis=1), boxes[:, :2], atol=1e-3)
    np.testing.assert_array_equal(found.class_ids, np.arange(6) % 3)


def test_classification() -> None:
    logits = np.array([[1.0, 3.0, np.nan, 2.0, 3.0]], np.float32)
    found = vision.classifier(Outputs({"o": logits}), names=NAMES, top=3)(PICTURE)
    assert found.class_ids.tolist() == [1, 4, 3]  # of equal ones the first
    powers = [math.exp(v) for v in (1, 3, 2, 3)]
    np.testing.assert_allclose(found.scores, [powers[1] / sum(powers)] * 2 + [powers[2] / sum(powers)], rtol=1e-6)
    assert found.label(0) == "car"
    ready = np.array([[0.1, 0.7, 0.2]], np.float32)
    np.testing.assert_allclose(vision.classifier(Outputs({"o": ready}))(PICTURE).scores, [0.7, 0.2, 0.1])
    again = vision.classifier(Outputs({"o": ready}), activation="softmax")(PICTURE).scores
    np.testing.assert_allclose(again, np.sort(np.exp(ready[0]) / np.exp(ready[0]).sum())[::-1], rtol=1e-6)


def test_a_row_of_nan_does_not_change_the_other_rows() -> None:
    ready = np.array([[0.1, 0.7, 0.2], [np.nan, 0.5, 0.5], [3.0, 1.0, 2.0]], np.float32)
    scores = [found.scores for found in vision.classifier(Outputs({"o": ready}))([PICTURE] * 3)]
    np.testing.assert_allclose(scores[0], [0.7, 0.2, 0.1])
    np.testing.assert_allclose(scores[2], np.exp([3, 2, 1]) / np.exp([3, 2, 1]).sum(), rtol=1e-6)


def test_semantic_maps() -> None:
    """Scores that rise along x for class 1 and fall for class 0 meet in the middle of the picture."""
    ramp = np.tile(np.linspace(-1, 1, 32, dtype=np.float32), (24, 1))
    found = vision.task(Outputs({"o": np.stack([-ramp, ramp, ramp - 5])[None]}), "semantic")(PICTURE)
    assert found.class_ids.shape == PICTURE.shape[:2]
    assert (found.class_ids[:, :64] == 0).all()
    assert (found.class_ids[:, 64:] == 1).all()
    numbers = np.arange(24 * 32).reshape(1, 24, 32)
    for array in (numbers.astype(np.int64), numbers[:, None].astype(np.int32)):
        found = vision.task(Outputs({"o": array}))(PICTURE)
        np.testing.assert_array_equal(found.class_ids, numbers[0].repeat(4, axis=0).repeat(4, axis=1))


def test_mattes() -> None:
    alpha = np.full((1, 1, 24, 32), 0.25, np.float32)
    alpha[..., 16:] = 0.5
    model = vision.task(Outputs({"a": alpha, "b": alpha * 0}))
    assert model.head.task == "matting"
    found = model(PICTURE)
    np.testing.assert_allclose(found.alpha[:, :60], 0.25, atol=1e-6)
    np.testing.assert_allclose(found.alpha[:, 68:], 0.5, atol=1e-6)
    stretched = vision.task(Outputs({"a": alpha}), normalize=True)(PICTURE)
    assert (stretched.alpha.min(), stretched.alpha.max()) == (0, 1)
    assert not vision.task(Outputs({"a": alpha * 0}), normalize=True)(PICTURE).alpha.any()


# Recognition.


def test_ambiguity_lists_the_candidates() -> None:
    runner = Outputs({"o": np.zeros((1, GRID, 6 + CLASSES), np.float32)})
    with pytest.raises(trtrun.InputError) as error:
        vision.detector(runner)
    for candidate in ("yolov6 for detect", "yolox for detect", "yolov8 for detect", "head="):
        assert candidate in str(error.value)
    assert vision.detector(runner, head="yolox").head.name == "yolox"
    told = Outputs({"o": np.zeros((1, GRID, 6 + CLASSES), np.float32)}, {"head": "yolox"})
    assert vision.detector(told).head.name == "yolox"
    assert vision.detector(told, head="yolov6").head.name == "yolov6"
    with pytest.raises(trtrun.InputError, match="yolov8 for detect with 5 classes; yolov8 for obb with 4 classes"):
        vision.task(Outputs({"o": np.zeros((1, 9, GRID), np.float32)}))
    with pytest.raises(trtrun.InputError, match="yolov10 for detect; rtdetr for detect with 2"):
        vision.detector(Outputs({"o": np.zeros((1, 300, 6), np.float32)}))


def test_what_no_head_reads_is_refused() -> None:
    with pytest.raises(trtrun.InputError, match=r"cannot be read for the task 'detect', nor by any.*\(yolov8"):
        vision.detector(Outputs({"o": np.zeros((1, 12, 77), np.float32)}))
    with pytest.raises(trtrun.InputError, match="no head 'yolo'"):
        vision.detector(Outputs({"o": np.zeros((1, 9, GRID), np.float32)}), head="yolo")
    with pytest.raises(trtrun.InputError, match="no task 'find'"):
        vision.task(Outputs({"o": np.zeros((1, 9, GRID), np.float32)}), "find")


@pytest.mark.parametrize("as_text", [True, False])
def test_the_exporters_metadata_decides(as_text: bool) -> None:
    told = {"author": "Ultralytics", "task": "pose", "names": {0: "person"}, "imgsz": [96, 128], "kpt_shape": [17, 3]}
    metadata = {key: str(value) for key, value in told.items()}  # as in ONNX files
    if not as_text:
        metadata = {**told, "names": {"0": "person"}}  # as in front of engines
    runner = Outputs({"o": np.zeros((1, 56, GRID), np.float32)}, metadata, image=(-1, 3, -1, -1))
    model = vision.task(runner)
    assert str(model.head) == "yolov8 for pose with 1 class"
    assert model.head.names == {0: "person"}
    assert model.preprocess.size == SIZE
    with pytest.raises(trtrun.InputError, match="says that it is for 'pose'"):
        vision.detector(runner)


@pytest.mark.parametrize(
    "odd", [{"names": "{'person': 0}"}, {"names": {"null": "a"}}, {"imgsz": "['a', None]"}, {"kpt_shape": [1e999, 3]}]
)
def test_metadata_that_is_written_otherwise_is_refused_in_one_sentence(odd: dict[str, Any]) -> None:
    runner = Outputs({"o": np.zeros((1, 84, GRID), np.float32)}, odd)
    with pytest.raises(trtrun.InputError, match=r"metadata cannot be read \(.*trtrun bundle create --metadata"):
        vision.task(runner)


def test_metadata_that_nothing_reads_may_hold_what_is_no_literal() -> None:
    runner = Outputs({"o": np.zeros((1, 84, GRID), np.float32)}, {"description": "{[1]: 2}"})
    assert str(vision.task(runner, "detect").head) == "yolov8 for detect with 80 classes"


def test_names_of_another_number_than_the_classes_are_said_to_be_why() -> None:
    runner = Outputs({"o": np.zeros((1, 84, GRID), np.float32)})
    with pytest.raises(trtrun.InputError, match="cannot be read for the task 'detect' with 81 class names"):
        vision.task(runner, "detect", names=dict(enumerate("a" * 81)))


def test_names_are_text_that_can_be_drawn() -> None:
    metadata = {"names": {str(i): "\ud800" for i in range(80)}}  # JSON and Python literals can hold it
    runner = Outputs({"o": np.zeros((1, 84, GRID), np.float32)}, metadata)
    assert vision.task(runner, "detect").head.names[0] == "?"


def test_unreadable_names_do_not_matter_where_others_are_given() -> None:
    runner = Outputs({"o": np.zeros((1, 84, GRID), np.float32)}, {"names": "{'person': 0}"})
    with pytest.raises(trtrun.InputError, match="metadata cannot be read"):
        vision.detector(runner)
    assert vision.detector(runner, names=dict(enumerate("a" * 80))).head.names[79] == "a"


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"head": "yolov8"}, "as the head 'yolov8', but as centerface for detect with 1 class. Change the head (head="),
        ({"task": "classify"}, "'classify', but as centerface for detect with 1 class. Change the task (task="),
        ({"task": "obb", "head": "yolox"}, "(task=…; --task, or another command) and the head (head=…, --head)."),
    ],
)
def test_what_is_asked_for_wrongly_is_told_what_can_be_read(asked: dict[str, Any], said: str) -> None:
    faces = Outputs({f"o{n}": np.zeros((1, n, 24, 32), np.float32) for n in (1, 2)} | {
        "p": np.zeros((1, 2, 24, 32), np.float32), "q": np.zeros((1, 10, 24, 32), np.float32)
    })  # fmt: skip
    with pytest.raises(trtrun.InputError) as error:
        vision.task(faces, **{"task": "detect", **asked})
    assert said in str(error.value)
    assert "metadata" not in str(error.value)


def test_another_size_than_the_networks_is_said_before_no_head_is_recognised() -> None:
    runner = Outputs({"o": np.zeros((1, GRID, 6 + CLASSES), np.float32)}, image=(-1, 3, SIZE[1], SIZE[0]))
    with pytest.raises(trtrun.InputError, match="1×3×640×640 do not fit the network's input"):
        vision.detector(runner, head="yolov6", size=(640, 640))


def test_names_of_another_number_leave_the_head() -> None:
    runner = Outputs({"o": np.zeros((1, 300, 9), np.float32)}, {"head": "rtdetr", "names": ["a", "b"]})
    with pytest.raises(trtrun.InputError) as error:
        vision.detector(runner)
    said = "with 2 class names, but as rtdetr for detect with 5 classes. Change the class names (names=…, --labels), or"
    assert said in str(error.value)


def test_no_task_at_all_is_refused() -> None:
    with pytest.raises(trtrun.InputError, match="no task was asked for"):
        vision.task(Outputs({"o": np.zeros((1, 84, GRID), np.float32)}), ())


def test_names_decide_between_heads() -> None:
    runner = Outputs({"o": np.zeros((1, 300, 6), np.float32)}, {"names": "{0: 'a', 1: 'b', 2: 'c'}"})
    assert vision.detector(runner).head.name == "yolov10"
    assert vision.detector(Outputs({"o": np.zeros((1, 300, 9), np.float32)})).head.name == "rtdetr"


def test_thresholds_out_of_range_are_refused() -> None:
    for options in ({"score_threshold": 1.5}, {"iou_threshold": -1.0}, {"max_detections": 0}):
        with pytest.raises(trtrun.InputError):
            Selection(**options)
