"""Objects keep their numbers through a video."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from trtrun.errors import InputError
from trtrun.vision import Detections, Found
from trtrun.vision.results import Matte

pytest.importorskip("trackers", reason="the extra track is not installed")

from trtrun.vision.draw import draw
from trtrun.vision.tracking import track


def boxes(frame: int, order: tuple[int, ...]) -> Detections:
    """Three objects that drift apart, listed in some order; the class tells them apart."""
    at = np.float32([[100 + 3 * frame, 100], [300, 100 + 2 * frame], [200 - 2 * frame, 300]])
    all_boxes = np.concatenate([at, at + 60], axis=1)
    rows = list(order)
    return Detections(all_boxes[rows], np.full(len(rows), 0.3, np.float32), np.array(rows, np.int64))


def frames(name: str, count: int = 12) -> Iterator[Found]:
    rng = np.random.default_rng(0)
    picture = np.zeros((480, 640, 3), np.uint8)
    for frame in range(count):
        order = tuple(int(i) for i in rng.permutation(3)) if frame % 5 != 4 else (0, 2)  # one is missed at times
        yield Found(f"{name}#{frame}", picture, boxes(frame, order), None, 25.0)


def test_numbers_stay_with_their_objects_and_begin_anew_with_each_video(tmp_path: Path) -> None:
    broken = Found("a.mp4#12", None, None, ValueError("damaged"))
    items = list(track([*frames("a.mp4"), broken, *frames("b.mp4")]))
    assert items[12] is broken
    for part in (items[:12], items[13:]):
        numbers: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
        for item in part[2:]:  # two frames until a track is believed
            assert isinstance(item.result, Detections)
            assert item.result.track_ids is not None
            for class_id, number in zip(item.result.class_ids, item.result.track_ids, strict=True):
                numbers[int(class_id)].add(int(number))
        assert all(len(found) == 1 for found in numbers.values())
        assert len({next(iter(found)) for found in numbers.values()}) == 3
        assert -1 not in set.union(*numbers.values())
    last = items[-1].result
    assert isinstance(last, Detections)
    assert {row["track_id"] for row in last.to_json()} == set(map(int, last.track_ids))
    assert list(last.to_supervision().tracker_id) == list(last.track_ids)
    drawn = draw(items[-1].picture, last)
    assert drawn.any()
    cv2.imwrite(str(tmp_path / "tracked.png"), drawn)


def test_single_pictures_are_no_video() -> None:
    items = [Found(f"{name}.jpg", item.picture, item.result) for name, item in zip("abc", frames("x"), strict=False)]
    assert all(a is b for a, b in zip(track(items), items, strict=True))


def test_only_objects_are_tracked() -> None:
    with pytest.raises(InputError, match="Matte holds no objects"):
        list(track([Found("a#0", np.zeros((4, 4, 3), np.uint8), Matte(np.zeros((4, 4), np.float32)))]))
