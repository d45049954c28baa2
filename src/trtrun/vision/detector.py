"""A detector: a runner between preprocessing and a head's decoder."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ..errors import InputError
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
            shape for the engine, so every picture takes the same captured graph. Faces are found from about 20 pixels
            of width in the input, so a larger size finds smaller faces, at a cost that grows with its area.

    Raises:
        InputError: the runner's inputs and outputs are not CenterFace's, or do not take this size.
    """

    def __init__(self, runner: Runner, *, size: tuple[int, int] = (640, 640)) -> None:
        if len(runner.inputs) != 1 or not set(centerface.OUTPUTS) <= set(runner.outputs):
            raise InputError(
                f"this is no CenterFace model: it has inputs {list(runner.inputs)} and outputs {list(runner.outputs)}, "
                f"CenterFace has one input and the outputs {list(centerface.OUTPUTS)}. Load CenterFace."
            )
        if any(length % centerface.SIZE_MULTIPLE or length <= 0 for length in size):
            raise InputError(f"CenterFace takes sizes that are multiples of {centerface.SIZE_MULTIPLE}, got {size}.")
        (spec,) = runner.inputs.values()
        spec.check_shape((1, 3, size[1], size[0]))
        self.runner = runner
        self.size = size

    def detect(self, picture: Picture) -> Detections:
        """The faces of a BGR picture uint8 [H, W, 3], in its pixels."""
        return self.detect_timed(picture)[0]

    def detect_timed(self, picture: Picture) -> tuple[Detections, Timing]:
        """:meth:`detect`, and how long its stages took."""
        start = time.perf_counter()
        images, geometry = letterbox(picture, self.size, centerface.PREPROCESSING)
        prepared = time.perf_counter()
        outputs = self.runner(images)
        inferred = time.perf_counter()
        faces = centerface.decode(outputs, geometry)
        return faces, Timing(prepared - start, inferred - prepared, time.perf_counter() - inferred)
