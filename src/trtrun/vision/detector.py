"""A detector: a runner between preprocessing and a head's decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..runner import Runner
from .postprocess import centerface
from .preprocess import Picture, letterbox
from .results import Detections


@dataclass(frozen=True)
class Timing:
    """Seconds that the stages of one picture took."""

    preprocess: float
    inference: float
    postprocess: float


class FaceDetector:
    """Finds faces with CenterFace on any runner.

    Args:
        runner: a CenterFace engine or ONNX model, with one input [1, 3, H, W].
        size: (width, height) that pictures are letterboxed to, multiples of 32. One size for all pictures means one
            shape for the engine, so every picture takes the same captured graph.
    """

    def __init__(self, runner: Runner, *, size: tuple[int, int] = (640, 640)) -> None:
        self.runner = runner
        self.size = size

    def detect(self, picture: Picture) -> Detections:
        """The faces of a BGR picture uint8 [H, W, 3], in its pixels."""
        return self.detect_timed(picture)[0]

    def detect_timed(self, picture: Picture) -> tuple[Detections, Timing]:
        start = time.perf_counter()
        images, geometry = letterbox(picture, self.size, centerface.PREPROCESSING)
        prepared = time.perf_counter()
        outputs = self.runner(images)
        inferred = time.perf_counter()
        faces = centerface.decode(outputs, geometry)
        return faces, Timing(prepared - start, inferred - prepared, time.perf_counter() - inferred)
