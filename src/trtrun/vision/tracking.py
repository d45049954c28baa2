"""Objects followed through the frames of a video, by ByteTrack (Zhang et al., ECCV 2022) as ``trackers`` has it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError, MissingPackageError
from .results import Detections, import_supervision
from .task import Found


class Tracker:
    """Gives the objects of one video numbers that stay.

    Args:
        frames_per_second: of the video; a track that is lost is kept for one second.
        score: an object that is as sure begins a track. ByteTrack's authors begin at 0.7; Ultralytics, whose objects
            begin at 0.25 as ours do, takes this value.
    """

    def __init__(self, frames_per_second: float = 30.0, *, score: float = 0.25) -> None:
        try:
            from trackers import ByteTrackTracker
        except ImportError as error:
            raise MissingPackageError(f"tracking needs trackers ({error}). Run: pip install 'trtrun[track]'") from error
        self._tracker: Any = ByteTrackTracker(
            frame_rate=frames_per_second, track_activation_threshold=score, high_conf_det_threshold=score
        )

    def update(self, found: Detections) -> Detections:
        """The objects of the next frame with ``track_ids``; -1 for those that were seen once and may be a mistake."""
        sv = import_supervision()
        # Only what tracking needs, and where each came from: trackers reorder.
        plain = sv.Detections(
            np.array(found.boxes),
            confidence=np.array(found.scores),
            class_id=np.array(found.class_ids),
            data={"row": np.arange(len(found))},
        )
        tracked = self._tracker.update(plain)
        ids = np.full(len(found), -1, np.int64)
        if len(tracked):
            ids[tracked.data["row"]] = tracked.tracker_id
        return replace(found, track_ids=ids)


def track(stream: Iterable[Found]) -> Iterator[Found]:
    """The items of :meth:`VisionTask.stream`, the objects of each video or camera numbered by a tracker of its own.

    Single pictures, whose names end in no frame number, are left as they are.

    Raises InputError for results that are no objects.
    """
    video, tracker = None, None
    for item in stream:
        if item.result is None:
            yield item
            continue
        if not isinstance(item.result, Detections):
            raise InputError(
                f"{type(item.result).__name__} holds no objects that could be tracked. Leave out tracking."
            )
        name, _, frame = item.name.rpartition("#")
        if not name or not frame.isdecimal():
            yield item
            continue
        if tracker is None or name != video:
            video, tracker = name, Tracker(item.frames_per_second or 30.0)
        yield replace(item, result=tracker.update(item.result))
