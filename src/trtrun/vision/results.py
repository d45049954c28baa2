"""What a vision task found, as validated arrays in pixels of the original picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import InputError, MissingPackageError

Array = np.ndarray[Any, Any]
Names = Mapping[int, str]


class _Result:
    """Checks and freezes the arrays of a result."""

    def _freeze(self, name: str, dtype: type[np.generic], shape: tuple[int | str, ...]) -> None:
        """Raise InputError unless the array is of this dtype and shape, a letter standing for any size."""
        array = getattr(self, name)
        fits = (
            isinstance(array, np.ndarray)
            and array.dtype == dtype
            and array.ndim == len(shape)
            and all(isinstance(want, str) or want == got for want, got in zip(shape, array.shape, strict=True))
        )
        if not fits:
            got = f"{array.dtype.name} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"{name} must be {np.dtype(dtype).name} [{' × '.join(map(str, shape))}], got {got}.")
        view = array.view()  # the caller's own array keeps its flags
        view.flags.writeable = False
        object.__setattr__(self, name, view)


@dataclass(frozen=True, eq=False)  # arrays have no single truth value to compare by
class Detections(_Result):
    """Objects of one picture, best first. The arrays are read-only; InputError is raised when they do not fit together.

    Attributes:
        boxes: float32 [N, 4], x1, y1, x2, y2 in pixels of the original picture.
        scores: float32 [N], from 0 to 1.
        class_ids: int64 [N].
        names: what the classes are called; a class without a name is shown by its number.
        masks: bool [N, H, W] over the picture, or None for heads without.
        keypoints: float32 [N, K, 2], x and y in pixels, or None.
        keypoint_scores: float32 [N, K], how sure each is or whether it is visible, or None.
        corners: float32 [N, 4, 2], the corners in order around an oriented box, or None; ``boxes`` then enclose them.
        track_ids: int64 [N], the number of an object through a video, -1 without one yet; None without tracking.
    """

    boxes: Array
    scores: Array
    class_ids: Array
    names: Names = field(default_factory=dict)
    masks: Array | None = None
    keypoints: Array | None = None
    keypoint_scores: Array | None = None
    corners: Array | None = None
    track_ids: Array | None = None

    def __post_init__(self) -> None:
        count = len(self.boxes)
        self._freeze("boxes", np.float32, (count, 4))
        self._freeze("scores", np.float32, (count,))
        self._freeze("class_ids", np.int64, (count,))
        if self.masks is not None:
            self._freeze("masks", np.bool_, (count, "H", "W"))
        if self.keypoints is not None:
            self._freeze("keypoints", np.float32, (count, "K", 2))
        if self.keypoint_scores is not None:
            if self.keypoints is None:
                raise InputError("keypoint_scores without keypoints: give both.")
            self._freeze("keypoint_scores", np.float32, (count, self.keypoints.shape[1]))
        if self.corners is not None:
            self._freeze("corners", np.float32, (count, 4, 2))
        if self.track_ids is not None:
            self._freeze("track_ids", np.int64, (count,))

    @classmethod
    def unchecked(cls, boxes: Array, scores: Array, class_ids: Array, names: Names) -> Detections:
        """The same from arrays that are known to fit together, and that the result takes over."""
        found = object.__new__(cls)
        for array in (boxes, scores, class_ids):
            array.flags.writeable = False
        found.__dict__.update(boxes=boxes, scores=scores, class_ids=class_ids, names=names)
        return found

    def __len__(self) -> int:
        return len(self.boxes)

    def label(self, index: int) -> str:
        """The class of one detection in words."""
        class_id = int(self.class_ids[index])
        return self.names.get(class_id, str(class_id))

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary of plain numbers per detection, pixels to two decimals; masks as COCO's run lengths."""
        rows = []
        for index in range(len(self)):
            row: dict[str, Any] = {
                "box": _pixels(self.boxes[index]),
                "score": round(float(self.scores[index]), 4),
                "class_id": int(self.class_ids[index]),
            }
            if self.names:
                row["class"] = self.label(index)
            if self.track_ids is not None and self.track_ids[index] >= 0:
                row["track_id"] = int(self.track_ids[index])
            if self.corners is not None:
                row["corners"] = [_pixels(point) for point in self.corners[index]]
            if self.keypoints is not None:
                row["keypoints"] = [_pixels(point) for point in self.keypoints[index]]
            if self.keypoint_scores is not None:
                row["keypoint_scores"] = [round(float(v), 4) for v in self.keypoint_scores[index]]
            if self.masks is not None:
                row["mask"] = run_lengths(self.masks[index])
            rows.append(row)
        return rows

    def to_coco(self, image_id: int | str, category_ids: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
        """The rows of COCO's results format: ``bbox`` x, y, width, height; ``segmentation`` as run lengths.

        Args:
            image_id: the picture's id in the data set.
            category_ids: the data set's category per class of the network; without it they are the same numbers.
        """
        rows = []
        for index in range(len(self)):
            x1, y1, x2, y2 = (float(v) for v in self.boxes[index])
            class_id = int(self.class_ids[index])
            row: dict[str, Any] = {
                "image_id": image_id,
                "category_id": category_ids[class_id] if category_ids is not None else class_id,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "score": float(self.scores[index]),
            }
            if self.masks is not None:
                row["segmentation"] = run_lengths(self.masks[index])
            if self.keypoints is not None:
                scores = self.keypoint_scores
                marks = np.ones(self.keypoints.shape[1]) if scores is None else scores[index]
                row["keypoints"] = np.column_stack([self.keypoints[index], marks]).ravel().astype(float).tolist()
            rows.append(row)
        return rows

    def to_supervision(self) -> Any:
        """The same as ``supervision.Detections``; keypoints are in ``data["keypoints"]``, [N, K, 2]."""
        sv = import_supervision()
        data: dict[str, Any] = {"class_name": np.array([self.label(index) for index in range(len(self))], dtype=str)}
        if self.corners is not None:
            data[sv.config.ORIENTED_BOX_COORDINATES] = np.array(self.corners)
        if self.keypoints is not None:
            data["keypoints"] = np.array(self.keypoints)
        masks = None if self.masks is None else np.array(self.masks)
        return sv.Detections(
            np.array(self.boxes),
            mask=masks,
            confidence=np.array(self.scores),
            class_id=np.array(self.class_ids),
            tracker_id=None if self.track_ids is None else np.array(self.track_ids),
            data=data,
        )


@dataclass(frozen=True, eq=False)
class Classification(_Result):
    """The likeliest classes of one picture, best first.

    Attributes:
        class_ids: int64 [K].
        scores: float32 [K], probabilities.
        names: what the classes are called.
    """

    class_ids: Array
    scores: Array
    names: Names = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._freeze("class_ids", np.int64, (len(self.class_ids),))
        self._freeze("scores", np.float32, (len(self.class_ids),))

    def __len__(self) -> int:
        return len(self.class_ids)

    def label(self, index: int) -> str:
        """The class at this rank in words."""
        class_id = int(self.class_ids[index])
        return self.names.get(class_id, str(class_id))

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"class_id": int(self.class_ids[i]), "class": self.label(i), "score": round(float(self.scores[i]), 4)}
            for i in range(len(self))
        ]


@dataclass(frozen=True, eq=False)
class SegmentationMap(_Result):
    """The class of every pixel.

    Attributes:
        class_ids: int32 [H, W] over the picture.
        names: what the classes are called.
    """

    class_ids: Array
    names: Names = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._freeze("class_ids", np.int32, ("H", "W"))

    def to_json(self) -> list[dict[str, Any]]:
        """One dictionary per class in the picture, the largest first: its share of the pixels, and its run lengths."""
        ids, counts = np.unique(self.class_ids, return_counts=True)
        return [
            {
                "class_id": int(ids[i]),
                "class": self.names.get(int(ids[i]), str(ids[i])),
                "share": round(float(counts[i]) / self.class_ids.size, 4),
                "mask": run_lengths(self.class_ids == ids[i]),
            }
            for i in np.argsort(-counts, kind="stable")
        ]


@dataclass(frozen=True, eq=False)
class Matte(_Result):
    """How much of every pixel belongs to the foreground.

    Attributes:
        alpha: float32 [H, W] over the picture, from 0 to 1.
    """

    alpha: Array

    def __post_init__(self) -> None:
        self._freeze("alpha", np.float32, ("H", "W"))

    def to_json(self) -> list[dict[str, Any]]:
        """The foreground: its share of the pixels, and the run lengths of where alpha is above a half."""
        mask = self.alpha > 0.5
        return [{"share": round(float(mask.mean()), 4), "mask": run_lengths(mask)}]


@dataclass(frozen=True, eq=False)
class Text(_Result):
    """Lines of text, in reading order.

    Attributes:
        lines: what each says.
        scores: float32 [N], the mean probability of its characters.
        corners: float32 [N, 4, 2], from the top left of the text clockwise, in pixels of the picture.
    """

    lines: tuple[str, ...]
    scores: Array
    corners: Array

    def __post_init__(self) -> None:
        self._freeze("scores", np.float32, (len(self.lines),))
        self._freeze("corners", np.float32, (len(self.lines), 4, 2))

    def __len__(self) -> int:
        return len(self.lines)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {"text": line, "score": round(float(score), 4), "corners": [_pixels(point) for point in corners]}
            for line, score, corners in zip(self.lines, self.scores, self.corners, strict=True)
        ]


Result = Detections | Classification | SegmentationMap | Matte | Text


def box_iou(a: Array, b: Array) -> Array:
    """Intersection over union of boxes [N, 4] with boxes [M, 4]: float [N, M]; 0 where both are empty."""
    # Column by column: a reduction over the last axis of two would take five times as long.
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a.T[..., None], b.T[:, None]
    width = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0)
    height = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0)
    intersection = width * height
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection
    iou: Array = np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)
    return iou


def run_lengths(mask: Array) -> dict[str, Any]:
    """A mask [H, W] in COCO's uncompressed form: runs of 0 and 1 in turn, column by column, 0 first."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat.size and flat[0] else counts}


def import_supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise MissingPackageError(
            f"supervision cannot be imported ({error}). Run: pip install 'trtrun[vision]'"
        ) from error
    return supervision


def _pixels(point: Array) -> list[float]:
    return [round(float(v), 2) for v in point]
