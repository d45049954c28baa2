"""Outputs as networks would write them, with objects planted where they are wanted, and slow readings of them.

Each ``plant_*`` is the inverse of a published decoding; noise below the threshold fills the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trtrun.runner import OutputMode, Runner
from trtrun.tensor_spec import TensorSpec, TensorSpecs

SIZE = (128, 96)  # width, height of the input
STRIDES = (8, 16, 32)


class Outputs(Runner):
    """A network that answers every request with the same outputs."""

    def __init__(
        self,
        outputs: Mapping[str, np.ndarray],
        metadata: Mapping[str, Any] | None = None,
        image: Sequence[int] = (-1, 3, SIZE[1], SIZE[0]),
        more: Sequence[TensorSpec] = (),
    ) -> None:
        self.arrays, self.told = outputs, metadata or {}
        self.image, self.more = TensorSpec("images", np.dtype(np.float32), tuple(image)), more
        self.requests: list[Mapping[str, Any]] = []
        self.is_closed = False

    @property
    def inputs(self) -> TensorSpecs:
        return TensorSpecs([self.image, *self.more])

    @property
    def outputs(self) -> TensorSpecs:
        return TensorSpecs([TensorSpec(n, a.dtype, (-1, *a.shape[1:])) for n, a in self.arrays.items()])

    @property
    def backend(self) -> str:
        return "fixed outputs"

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.told

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        self.inputs.check_names(inputs)
        self.requests.append(inputs)
        return dict(self.arrays)

    def enqueue(self, inputs: Mapping[str, Any]) -> Any:
        raise NotImplementedError

    def clone(self) -> Runner:
        return self

    @property
    def closed(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True


def cells(strides: Sequence[int] = STRIDES) -> list[tuple[int, int, int]]:
    """(column, row, stride) of every cell in the order of the heads."""
    return [(x, y, s) for s in strides for y in range(SIZE[1] // s) for x in range(SIZE[0] // s)]


def scene(seed: int, count: int = 6, classes: int = 5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes [N, 4] (x1, y1, x2, y2) apart from each other, falling scores and classes."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(12)[:count]  # one object per 32 × 32 square at most
    corner = np.stack([places % 4 * 32, places // 4 * 32], axis=1) + rng.uniform(1, 8, (count, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 22, (count, 2))], axis=1)
    return boxes, np.sort(rng.uniform(0.4, 0.95, count))[::-1], rng.integers(0, classes, count)


def centers(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def plant_v8(objects: Sequence[Any], classes: int, extra: np.ndarray | None = None, seed: int = 0) -> np.ndarray:
    """[1, 4 + C + E, A]."""
    rng = np.random.default_rng(seed)
    boxes, scores, ids = objects
    width = 0 if extra is None else extra.shape[1]
    head = rng.uniform(0, 0.2, (4 + classes + width, len(cells())))
    head[:4] *= 400
    for i, at in enumerate(rng.permutation(len(cells()))[: len(boxes)]):
        head[:4, at] = centers(boxes)[i] if boxes.shape[1] == 4 else boxes[i, :4]
        head[4 + ids[i], at] = scores[i]
        if extra is not None:
            head[4 + classes :, at] = extra[i]
    return head[None].astype(np.float32)


def plant_objectness(objects: Sequence[Any], classes: int, rows: int, seed: int = 0) -> np.ndarray:
    """[1, A, 5 + C], decoded."""
    rng = np.random.default_rng(seed)
    boxes, scores, ids = objects
    head = rng.uniform(0, 0.4, (rows, 5 + classes))
    head[:, :4] *= 200
    for i, at in enumerate(rng.permutation(rows)[: len(boxes)]):
        head[at, :4] = centers(boxes)[i]
        head[at, 4] = math.sqrt(scores[i])
        head[at, 5 + ids[i]] = math.sqrt(scores[i])
    return head[None].astype(np.float32)


def plant_yolox(objects: Sequence[Any], classes: int, seed: int = 0) -> np.ndarray:
    """[1, A, 5 + C], not decoded: offsets in cells and logarithms."""
    head = plant_objectness(objects, classes, len(cells()), seed).astype(np.float64)
    for at, (column, row, stride) in enumerate(cells()):
        head[0, at, :2] = head[0, at, :2] / stride - (column, row)
        head[0, at, 2:4] = np.log(np.maximum(head[0, at, 2:4], 1e-3) / stride)
    return head.astype(np.float32)


def plant_anchors(objects: Sequence[Any], classes: int, anchors: Any, seed: int = 0) -> dict[str, np.ndarray]:
    """YOLOv5's three maps [1, 3, h, w, 5 + C] before the sigmoid: each object where an anchor reaches it."""
    rng = np.random.default_rng(seed)
    maps = [rng.uniform(-6, -3, (1, 3, SIZE[1] // s, SIZE[0] // s, 5 + classes)) for s in STRIDES]
    boxes, scores, ids = objects
    for (x, y, w, h), score, class_id in zip(centers(boxes), scores, ids, strict=True):
        level, anchor = next(
            (level, a) for level in range(3) for a in range(3)
            if max(w / anchors[level][a][0], h / anchors[level][a][1]) < 3.9
        )  # fmt: skip
        s, (aw, ah) = STRIDES[level], anchors[level][anchor]
        column, row = int(x / s), int(y / s)
        wanted = [(x / s - column + 0.5) / 2, (y / s - row + 0.5) / 2, math.sqrt(w / aw) / 2, math.sqrt(h / ah) / 2]
        values = np.array([*wanted, math.sqrt(score), *[0.01] * classes])
        values[5 + class_id] = math.sqrt(score)
        maps[level][0, anchor, row, column] = np.log(values / (1 - values))
    return {f"map{i}": m.astype(np.float32) for i, m in enumerate(maps)}


# Slow readings, straight from the definitions: score, class and box of each object.

Slow = list[tuple[float, int, list[float]]]


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def slow_nms(found: list[tuple[float, int, list[float]]], threshold: float, agnostic: bool = False) -> list[Any]:
    kept: list[Any] = []
    for one in sorted(found, key=lambda entry: -entry[0]):  # stable: equal scores keep their order
        if all((one[1] != k[1] and not agnostic) or iou(one[2], k[2]) <= threshold for k in kept):
            kept.append(one)
    return kept


def slow_v8(
    head: np.ndarray, classes: int, threshold: float, multi: bool = False
) -> list[tuple[float, int, list[float]]]:
    """Every cell's best class, or all above the threshold."""
    found = []
    for at in range(head.shape[2]):
        x, y, w, h = (float(v) for v in head[0, :4, at])
        scores = [(float(head[0, 4 + c, at]), c) for c in range(classes)]
        passed = [(s, c) for s, c in scores if s > threshold]  # NaN is above nothing
        if not passed or not all(math.isfinite(v) for v in (x, y, w, h)):
            continue
        best = max(s for s, _ in passed)
        for s, c in passed if multi else [next(p for p in passed if p[0] == best)]:
            found.append((s, c, [x - w / 2, y - h / 2, x + w / 2, y + h / 2]))
    return found


def slow_objectness(head: np.ndarray, classes: int, threshold: float) -> Slow:
    product = head.copy()
    scores = head[..., 4:].astype(np.float32)  # the network's precision decides ties
    product[..., 5:] = scores[..., 1 : 1 + classes] * scores[..., :1]
    return slow_v8(np.delete(product, 4, axis=2).transpose(0, 2, 1), classes, threshold)


def slow_yolox(head: np.ndarray, classes: int, threshold: float) -> Slow:
    decoded = head.astype(np.float64)
    for at, (column, row, stride) in enumerate(cells()):
        decoded[0, at, 0] = (head[0, at, 0] + column) * stride
        decoded[0, at, 1] = (head[0, at, 1] + row) * stride
        decoded[0, at, 2:4] = [math.exp(v) * stride for v in head[0, at, 2:4]]
    return slow_objectness(decoded, classes, threshold)
