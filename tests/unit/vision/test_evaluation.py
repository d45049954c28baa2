"""mAP and top-k on data sets that are made so that the answer is known."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

import trtrun
from trtrun.vision.evaluation import match_categories, mean_average_precision, read_annotations, top_k
from trtrun.vision.results import Classification, Detections
from trtrun.vision.task import Found


class Known:
    """A task whose answers are known by file name."""

    def __init__(self, answers: dict[str, Any], task: str, names: dict[int, str], classes: int) -> None:
        self.answers, self.head = answers, SimpleNamespace(task=task, names=names, classes=classes)

    def stream(self, source: list[Any], *, batch: int = 1, depth: int | None = None) -> Iterator[Found]:
        for path in source:
            result = self.answers[Path(path).name]
            yield Found(str(path), None, result, None if result is not None else ValueError("unreadable"))


def detections(*rows: tuple[float, ...]) -> Detections:
    table = np.array(rows, np.float32).reshape(-1, 6)
    return Detections(table[:, :4].copy(), table[:, 4].copy(), table[:, 5].astype(np.int64))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Two pictures with an object of each of the categories 3 (cat) and 8 (dog)."""
    boxes = {1: [(10, 10, 50, 40, 3), (100, 20, 60, 60, 8)], 2: [(30, 30, 80, 80, 3), (5, 5, 40, 20, 8)]}
    rows = [
        {"id": 10 * i + k, "image_id": i, "category_id": c, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        for i, found in boxes.items()
        for k, (x, y, w, h, c) in enumerate(found)
    ]
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), np.zeros((200, 200, 3), np.uint8))
    data = {
        "images": [{"id": i, "file_name": f, "width": 200, "height": 200} for i, f in ((1, "a.png"), (2, "b.png"))],
        "annotations": rows,
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(data))
    return path


PERFECT = {
    "a.png": detections((10, 10, 60, 50, 0.9, 0), (100, 20, 160, 80, 0.8, 1)),
    "b.png": detections((30, 30, 110, 110, 0.7, 0), (5, 5, 45, 25, 0.6, 1)),
}


@pytest.mark.parametrize("names", [{}, {0: "Cat", 1: "dog"}])
def test_perfect_answers_have_a_map_of_one(coco: Path, names: dict[int, str]) -> None:
    metrics = mean_average_precision(Known(PERFECT, "detect", names, 2), coco, coco.parent)
    assert metrics == {
        "mAP": pytest.approx(1),
        "mAP50": pytest.approx(1),
        "mAP75": pytest.approx(1),
        "pictures": 2,
        "unreadable": 0,
    }


def test_a_miss_a_wrong_class_and_an_unreadable_picture_cost(coco: Path) -> None:
    half = {"a.png": PERFECT["a.png"], "b.png": None}
    metrics = mean_average_precision(Known(half, "detect", {}, 2), coco, coco.parent)
    assert metrics["unreadable"] == 1
    assert metrics["mAP"] == pytest.approx(51 / 101)  # recall reaches a half: 51 of COCO's 101 points
    swapped = mean_average_precision(Known(PERFECT, "detect", {0: "dog", 1: "cat"}, 2), coco, coco.parent)
    assert swapped["mAP"] == 0
    nothing = mean_average_precision(Known(dict.fromkeys(PERFECT, detections()), "detect", {}, 2), coco, coco.parent)
    assert nothing["mAP"] == 0


def test_categories_and_files_that_do_not_fit(coco: Path) -> None:
    with pytest.raises(trtrun.InputError, match="5 classes and the data set 2 categories"):
        mean_average_precision(Known(PERFECT, "detect", {}, 5), coco, coco.parent)
    with pytest.raises(trtrun.InputError, match="2 of 2 pictures are not there"):
        mean_average_precision(Known(PERFECT, "detect", {}, 2), coco, coco.parent / "elsewhere")
    with pytest.raises(trtrun.InputError, match="no measure for the task 'classify'"):
        mean_average_precision(Known({}, "classify", {}, 2), coco, coco.parent)
    (coco.parent / "bad.json").write_text("{}")
    with pytest.raises(trtrun.InputError, match="as COCO annotations"):
        mean_average_precision(Known({}, "detect", {}, 2), coco.parent / "bad.json", coco.parent)
    more = Known({}, "detect", {0: "cat", 1: "bird"}, 2)
    assert match_categories(more, {3: "cat", 8: "dog"}) == {0: 3, 1: None}


def spoil(coco: Path, key: str, number: int, **changes: Any) -> Path:
    data = json.loads(coco.read_text())
    row = data[key][number]
    row.update(changes)
    data[key][number] = {name: value for name, value in row.items() if value is not None}
    path = coco.parent / "spoilt.json"
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("key", "changes", "said"),
    [
        ("images", {"file_name": "clip.mp4"}, "1 of 2 images .* number 1.*'clip.mp4' is a video"),
        ("images", {"file_name": None}, "no file_name"),
        ("images", {"id": 1}, "the id 1 is there twice"),
        ("images", {"id": [1]}, r"its id \[1\] is no whole number"),
        ("categories", {"id": 3}, "the id 3 is there twice"),
        ("categories", {"name": None}, "it has no name"),
        ("annotations", {"bbox": None}, r"1 of 4 annotations .* number 1.*its bbox is not \[x"),
        ("annotations", {"bbox": [1, 2, 3]}, "its bbox"),
        ("annotations", {"bbox": [1, 2, float("nan"), 3]}, "its bbox"),
        ("annotations", {"bbox": "1234"}, "its bbox"),
        ("annotations", {"image_id": None}, "its image_id None is unknown"),
        ("annotations", {"image_id": 9}, "its image_id 9 is unknown"),
        ("annotations", {"category_id": 9}, "its category_id 9 is unknown"),
        ("annotations", {"category_id": [3]}, r"its category_id \[3\] is unknown"),
    ],
)
def test_rows_that_cannot_be_used(coco: Path, key: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        mean_average_precision(Known(PERFECT, "detect", {}, 2), spoil(coco, key, 1, **changes), coco.parent)


def test_annotations_that_are_none(coco: Path) -> None:
    bad = coco.parent / "bad.json"
    data = json.loads(coco.read_text())
    for content, said in (
        (bytes(range(256)) * 40, "as COCO annotations"),
        (b"[" * 100_000, "as COCO annotations"),
        (b"[1, 2]", "no list of images"),
        (json.dumps(data | {"images": "x"}).encode(), "no list of images"),
        (json.dumps(data | {"annotations": [5]}).encode(), "it is no object"),
        (json.dumps(data | {"annotations": []}).encode(), "no list of annotations"),
    ):
        bad.write_bytes(content)
        with pytest.raises(trtrun.InputError, match=said) as caught:
            mean_average_precision(Known(PERFECT, "detect", {}, 2), bad, coco.parent)
        assert len(str(caught.value)) < 400


def test_what_is_not_needed_may_be_missing(coco: Path) -> None:
    path = spoil(coco, "annotations", 0, area=None, iscrowd=None, id=None)
    data = json.loads(path.read_text())
    data["annotations"][1]["id"] = 0  # which COCO's code takes for "no match"
    path.write_text(json.dumps(data))
    assert mean_average_precision(Known(PERFECT, "detect", {}, 2), path, coco.parent)["mAP"] == pytest.approx(1)


@pytest.mark.parametrize(
    "segmentation", [None, "x", [], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], {"counts": "x"}]
)
def test_segmentations_that_are_none(coco: Path, segmentation: Any) -> None:
    with pytest.raises(trtrun.InputError, match="neither polygons nor run lengths"):
        read_annotations(spoil(coco, "annotations", 0, segmentation=segmentation), "segm")


def ranked(*ids: int) -> Classification:
    return Classification(np.array(ids), np.linspace(0.5, 0.1, len(ids)).astype(np.float32))


@pytest.mark.parametrize(
    ("folders", "names"), [(("cat", "dog"), {0: "cat", 1: "dog"}), (("0", "1"), {}), (("x", "y"), {})], ids=str
)
def test_top_k(tmp_path: Path, folders: tuple[str, str], names: dict[int, str]) -> None:
    for folder, files in zip(folders, (("a.png", "b.png"), ("c.png", "d.png")), strict=True):
        (tmp_path / folder).mkdir()
        for name in files:
            (tmp_path / folder / name).write_bytes(b"")
    answers = {"a.png": ranked(0, 1), "b.png": ranked(1, 0), "c.png": ranked(1, 0), "d.png": None}
    metrics = top_k(Known(answers, "classify", names, 2), tmp_path)
    assert metrics == {"top1": 0.5, "top5": 0.75, "pictures": 4, "unreadable": 1}
    (tmp_path / folders[0]).rename(tmp_path / "strange")
    with pytest.raises(trtrun.InputError, match="2 folders and the network 9 classes"):
        top_k(Known(answers, "classify", {}, 9), tmp_path)
