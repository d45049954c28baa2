"""Pictures to results: geometry, preprocessing, postprocessing (one file per head), results, drawing, sources.

    with trtrun.load("yolov8n.engine") as runner:
        detect = vision.detector(runner)
        found = detect(cv2.imread("street.jpg"))

Knows only the Runner contract, and Pipeline above it.
"""

from .draw import draw
from .geometry import Geometry
from .heads import HEADS, TASKS, Head
from .postprocess.candidates import Selection
from .preprocess import NV12, Preprocess
from .results import Classification, Detections, Matte, SegmentationMap, Text
from .sources import Item, read
from .task import Found, Timing, VisionTask, classifier, detector, pose_estimator, segmenter, task

__all__ = [
    "HEADS",
    "NV12",
    "TASKS",
    "Classification",
    "Detections",
    "Found",
    "Geometry",
    "Head",
    "Item",
    "Matte",
    "Preprocess",
    "SegmentationMap",
    "Selection",
    "Text",
    "Timing",
    "VisionTask",
    "classifier",
    "detector",
    "draw",
    "pose_estimator",
    "read",
    "segmenter",
    "task",
]
