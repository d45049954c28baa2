"""A vision task: a runner between preprocessing and a head's decoder."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import InputError, ShapeError
from ..pipeline import Pipeline
from ..runner import Runner
from ..tensor_spec import Shape, TensorSpec, shape_text
from .decoding import Decode
from .geometry import Geometry, Size
from .heads import Head, read_metadata, recognise
from .postprocess.candidates import Selection
from .postprocess.centerface import SIZE_MULTIPLE
from .postprocess.classification import Activation
from .preprocess import NV12, Picture, Preprocess, check_picture, check_size, prepare_reference
from .results import Names, Result
from .sources import Item, Source, read

_LOG = logging.getLogger("trtrun")

_MAX_SIZES = 256  # sizes of pictures of which it is remembered where they lie in the input
_IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class Timing:
    """Seconds that the stages of one call took."""

    preprocess: float
    inference: float
    postprocess: float


@dataclass(frozen=True)
class Found:
    """One item of a stream: what was found on it, or why it could not be read or run."""

    name: str
    picture: Picture | NV12 | None
    result: Result | None
    error: Exception | None = None
    frames_per_second: float | None = None  # of a video or a camera


class VisionTask:
    """Pictures in, results out, on any runner. Made by :func:`task` and its siblings; it does not close the runner.

    Attributes:
        runner: what computes.
        head: how its outputs are read.
        preprocess: how pictures are brought into its input.
        selection: which objects are kept.
        preprocess_on, postprocess_on: "GPU" where it joins the network's CUDA graph, else "CPU".
    """

    def __init__(
        self,
        runner: Runner,
        head: Head,
        preprocess: Preprocess,
        selection: Selection,
        *,
        top: int = 5,
        activation: Activation = "auto",
        normalize: bool = False,
        gpu: bool = True,
    ) -> None:
        self.runner, self.head, self.preprocess, self._selection = runner, head, preprocess, selection
        self._options: dict[str, Any] = {"top": top, "activation": activation, "normalize": normalize}
        self._image = image_input(runner)
        self._sizes = next((spec for spec in runner.inputs.values() if spec.name != self._image.name), None)
        self._least, self.batch_limit = _batch_limits(self._image)
        _check_shape(self._image, preprocess.shape(self._least))
        self.preprocess_on = self.postprocess_on = "CPU"
        self._stages: Any = None
        self._staged = self._join() if gpu else None
        self._geometries: dict[Size, Geometry] = {}

    @property
    def selection(self) -> Selection:
        return self._selection  # the kernels have it too, so it stays

    def _join(self) -> Runner | None:
        """The runner whose graph prepares pictures and, where there are kernels for its head, finds the objects."""
        try:
            from . import gpu
        except ImportError as error:
            _LOG.info("%s: pictures are prepared and read on the CPU: %s", self, error)
            return None
        reason = gpu.why_not(self.head, self.selection, self.runner.outputs)
        if reason is None:
            dtype = self.runner.outputs[self.head.roles[gpu.roles_read(self.head)[0]]].dtype.name
            stages = gpu.VisionStages(self._image.name, self.preprocess, self._least, self.head, self.selection, dtype)
        else:
            stages = gpu.VisionStages(self._image.name, self.preprocess, self._least)
        staged = self.runner.staged(stages)
        self._stages = stages
        if staged is None:
            _LOG.info("%s: pictures are prepared and read on the CPU: the runner takes no stages on a GPU.", self)
            return None
        self.preprocess_on = "GPU"
        if reason is None:
            self.postprocess_on = "GPU"
        else:
            _LOG.info("%s: outputs are read on the CPU: %s.", self, reason)
        return staged

    def __call__(self, pictures: Picture | NV12 | Sequence[Picture | NV12]) -> Any:
        """The result of one picture, BGR uint8 [H, W, 3] or NV12, or the list of results of several, of any sizes.

        More pictures than the network takes at once are run in parts; one that insists on more gets zeros
        beside them. Raises InputError for what is no picture.
        """
        return self.timed(pictures)[0]

    def timed(self, pictures: Picture | NV12 | Sequence[Picture | NV12]) -> tuple[Any, Timing]:
        """The same, and how long the stages took."""
        # Anything else is one picture, or is refused as one: None, which cv2.imread returns for a missing file.
        several = pictures.ndim == 4 if isinstance(pictures, np.ndarray) else isinstance(pictures, Sequence)
        waiting: list[Any] = [*pictures] if several else [pictures]  # type: ignore[misc]  # it is a sequence
        results: list[Result] = []
        preprocess = inference = postprocess = 0.0
        step = self.batch_limit or max(len(waiting), 1)
        for start in range(0, len(waiting), step):
            began = time.perf_counter()
            request, geometries = self._request(waiting[start : start + step])
            prepared = time.perf_counter()
            outputs = (self._staged or self.runner).run(request)
            ran = time.perf_counter()
            results += self._results(outputs, geometries)
            preprocess += prepared - began
            inference += ran - prepared
            postprocess += time.perf_counter() - ran
        return results if several else results[0], Timing(preprocess, inference, postprocess)

    def _request(self, pictures: Sequence[Picture | NV12]) -> tuple[dict[str, Any], list[Geometry]]:
        """What goes to the runner that is used, and where each picture lies in the input."""
        if self._staged is None:
            return self.request(pictures)
        geometries = [self._geometry(picture) for picture in pictures]
        return {"pictures": pictures, "geometries": geometries}, geometries

    def _geometry(self, picture: Picture | NV12) -> Geometry:
        check_picture(picture)
        size = picture.shape[1], picture.shape[0]
        found = self._geometries.get(size)
        if found is None:
            if len(self._geometries) >= _MAX_SIZES:
                self._geometries.clear()
            found = self._geometries[size] = self.preprocess.geometry(size)
        return found

    def empty(self, height: int, width: int) -> Picture:
        """An uninitialised picture uint8 [height, width, 3] to decode into: ``camera.read(task.empty(1080, 1920))``.

        Where pictures are prepared on the GPU it lies in page-locked memory, from which they get there without another
        copy on the host; leave such a picture as it is until its result has come.
        """
        return np.empty((height, width, 3), np.uint8) if self._staged is None else self._stages.empty(height, width)

    def _own(self, entry: Any) -> Any:
        """What an iterator yielded, so that it stays as it is."""
        planes = entry.planes if isinstance(entry, NV12) else entry
        if not isinstance(planes, np.ndarray) or (self._staged is not None and self._stages.lent(planes)):
            return entry
        return NV12(planes.copy()) if isinstance(entry, NV12) else planes.copy()

    def _results(self, outputs: dict[str, Any], geometries: Sequence[Geometry]) -> list[Result]:
        if self.postprocess_on == "CPU":
            return self.decode(outputs, geometries)
        kept = [self._stages.kept(outputs, index) for index in range(len(geometries))]
        return list(self.head.finish(kept, geometries, outputs))

    def request(self, pictures: Sequence[Picture | NV12]) -> tuple[dict[str, Any], list[Geometry]]:
        """The runner's inputs for these pictures, and where each lies in them."""
        how = self.preprocess
        batch = np.empty(how.shape(max(self._least, len(pictures))), how.dtype)
        batch[len(pictures) :] = 0
        _, geometries = prepare_reference(pictures, how, out=batch[: len(pictures)])
        request: dict[str, Any] = {self._image.name: batch}
        if self._sizes is not None:
            # RT-DETR and D-FINE scale their boxes to this size; the geometry takes them from there to the picture.
            request[self._sizes.name] = np.array([self.preprocess.size] * len(batch), self._sizes.dtype)
        return request, geometries

    def decode(self, outputs: dict[str, Any], geometries: Sequence[Geometry]) -> list[Result]:
        """One result per picture, from the runner's outputs."""
        return self.head.decode(outputs, geometries, selection=self.selection, **self._options)

    def stream(
        self,
        source: Source | Iterable[Item],
        *,
        batch: int = 1,
        depth: int | None = None,
        decode: Decode = "CPU",
    ) -> Iterator[Found]:
        """Everything in a source, in order, with decoding, preprocessing and several requests under way at once.

        An item that cannot be read or run comes with its error in its turn, and the rest goes on.

        Args:
            source: see :func:`trtrun.vision.sources.read`. Arrays that an iterator yields are copied, because it may
                fill one buffer again and again; those of :meth:`empty` and in items are taken as they are.
            batch: pictures per request.
            depth: requests in flight; see :class:`~trtrun.pipeline.Pipeline`, which measures the best without it.
            decode: where files are decoded; see :func:`trtrun.vision.sources.read`.
        """
        if batch < 1 or (self.batch_limit is not None and batch > self.batch_limit):
            most = "any number of" if self.batch_limit is None else f"at most {self.batch_limit}"
            raise InputError(
                f"batch {batch} does not fit: the network takes {most} pictures at once. Leave out batch (--batch), or "
                "build the network for more."
            )
        if isinstance(source, Iterator):
            source = map(self._own, source)
        items = iter(read(source, empty=None if self._staged is None else self.empty, decode=decode))
        order: deque[Found | tuple[list[Item], list[Geometry]]] = deque()

        def requests() -> Iterator[dict[str, Any]]:
            ready: list[Item] = []
            for item in items:
                if item.picture is not None:
                    ready.append(item)
                    if len(ready) == batch:
                        yield from prepared(ready)
                        ready = []
                else:
                    # In its turn: after those that came before it.
                    if ready:
                        yield from prepared(ready)
                        ready = []
                    order.append(Found(item.name, None, None, item.error))
            if ready:
                yield from prepared(ready)

        def prepared(ready: list[Item]) -> Iterator[dict[str, Any]]:
            try:
                request, geometries = self._request([item.picture for item in ready if item.picture is not None])
            except InputError as error:  # one that no preprocessing can take; alone it would fail alone
                if len(ready) > 1:
                    for item in ready:
                        yield from prepared([item])
                else:
                    order.append(Found(ready[0].name, ready[0].picture, None, error))
                return
            order.append((ready, geometries))
            yield request

        with Pipeline(self._staged or self.runner, depth=depth) as pipeline:
            for outputs in pipeline.map(requests(), return_exceptions=True):
                while isinstance(entry := order.popleft(), Found):
                    yield entry
                ready, geometries = entry
                if isinstance(outputs, Exception):
                    yield from (Found(item.name, item.picture, None, outputs) for item in ready)
                    continue
                results = self._results(outputs, geometries)
                yield from (
                    Found(item.name, item.picture, r, None, item.frames_per_second)
                    for item, r in zip(ready, results, strict=True)
                )
            yield from (entry for entry in order if isinstance(entry, Found))

    def __repr__(self) -> str:
        width, height = self.preprocess.size
        return f"<VisionTask {self.head} at {width}×{height} on {self.runner.backend}>"


def task(
    runner: Runner,
    task: str | tuple[str, ...] | None = None,
    *,
    head: str | None = None,
    size: Size | None = None,
    preprocess: Preprocess | None = None,
    selection: Selection | Mapping[str, Any] | None = None,
    names: Names | None = None,
    keypoint_shape: tuple[int, int] | None = None,
    top: int = 5,
    activation: Activation = "auto",
    normalize: bool = False,
    gpu: bool = True,
) -> VisionTask:
    """What finds things on pictures with this network.

    Args:
        runner: with one input for pictures; close it yourself.
        task: "detect", "segment", "pose", "obb", "classify", "semantic" or "matting", or several of which it must be
            one; None takes what the exporter's metadata or the outputs say.
        head: the decoder, one of :data:`trtrun.vision.heads.HEADS`; None recognises it.
        size: (width, height) of the input, where the network takes several; None takes the exporter's ``imgsz``, or
            what the engine was tuned for.
        preprocess: how pictures are brought into the input; None takes what the head's authors trained with.
        selection: which objects are kept; a mapping gives some of the fields, the others are the head's own.
        names: what the classes are called, by number; None takes the exporter's.
        keypoint_shape: points per object and numbers per point, for poses without metadata.
        top: how many classes a classification holds.
        activation: see :func:`trtrun.vision.postprocess.classification.decode`.
        normalize: stretch each matte to 0 … 1, as U²-Net's authors do.
        gpu: prepare pictures and find objects in the network's own CUDA graph, where it runs on a GPU.

    Raises InputError when the network's inputs or outputs cannot be those of the task, or are those of several.
    """
    if not isinstance(runner, Runner):
        raise InputError(
            f"a task takes what load() returns, got {type(runner).__name__}: vision.detector(trtrun.load('m.engine'))"
        )
    image = image_input(runner)
    if size is not None:
        check_size(size)
        size = int(size[0]), int(size[1])
    size = preprocess.size if preprocess else size or _size(runner, image)
    # First: with another size heads are not recognised.
    _check_shape(image, preprocess.shape(_batch_limits(image)[0]) if preprocess else _sized(image, size))
    found = recognise(runner, size=size, task=task, head=head, names=names, keypoint_shape=keypoint_shape)
    if found.name == "centerface" and any(length % SIZE_MULTIPLE for length in size):
        raise InputError(
            f"CenterFace takes sizes that are multiples of {SIZE_MULTIPLE}, got {size}. Choose another size (--size)."
        )
    how = preprocess or default_preprocess(found, runner, size)
    chosen = selection if isinstance(selection, Selection) else replace(found.selection(), **(selection or {}))
    return VisionTask(runner, found, how, chosen, top=top, activation=activation, normalize=normalize, gpu=gpu)


def detector(runner: Runner, **options: Any) -> VisionTask:
    """:func:`task` for boxes."""
    return task(runner, "detect", **options)


def segmenter(runner: Runner, **options: Any) -> VisionTask:
    """:func:`task` for masks of objects."""
    return task(runner, "segment", **options)


def pose_estimator(runner: Runner, **options: Any) -> VisionTask:
    """:func:`task` for keypoints."""
    return task(runner, "pose", **options)


def classifier(runner: Runner, **options: Any) -> VisionTask:
    """:func:`task` for whole pictures."""
    return task(runner, "classify", **options)


def image_input(runner: Runner) -> TensorSpec:
    """The input that takes pictures. Raises InputError unless there is one, and no other but the sizes of RT-DETR."""
    images = [spec for spec in runner.inputs.values() if len(spec.shape) == 4]
    others = [spec for spec in runner.inputs.values() if len(spec.shape) != 4]
    sizes = all(len(spec.shape) == 2 and spec.shape[1] == 2 for spec in others)
    if len(images) != 1 or len(others) > 1 or not sizes:
        raise InputError(
            f"this network takes {runner.inputs!r}; a vision model takes one batch of pictures of rank 4, and beside "
            "it at most their sizes [N, 2]. Prepare its inputs yourself and call the runner."
        )
    if images[0].dtype.name not in ("float32", "float16", "uint8", "int8"):
        raise InputError(f"pictures cannot be prepared for {images[0]}. Build the network with a float32 input.")
    return images[0]


def is_nhwc(shape: Sequence[int]) -> bool:
    """Whether the pictures of an input [N, H, W, C] or [N, C, H, W] have their channels last."""
    return shape[3] in (1, 3) and shape[1] not in (1, 3)


def default_preprocess(head: Head, runner: Runner, size: Size) -> Preprocess:
    """What the head's authors trained with; exports with their own normalization need a ``Preprocess`` of their own."""
    image = image_input(runner)
    nhwc = is_nhwc(image.shape)
    told = read_metadata(runner.metadata)
    options: dict[str, Any] = {"layout": "NHWC" if nhwc else "NCHW", "dtype": image.dtype.name}
    if image.shape[3 if nhwc else 1] == 1:
        options["channels"] = "GREY"
    if head.name == "yolox":
        options |= {"align": "top_left", "channels": "BGR", "scale": 1.0}
    elif head.name == "centerface":
        options |= {"scale": 1.0, "padding": 0}
    elif head.name == "rtdetr":
        options |= {"mode": "stretch"}
    elif head.task == "classify":
        options |= {"mode": "center_crop"}
        if not told.ultralytics:
            options |= {"short_side": round(min(size) * 256 / 224), **_IMAGENET}
    elif head.task in ("semantic", "matting"):
        options |= {"mode": "stretch", **_IMAGENET}
    asked = {key: tuple(value) if isinstance(value, list) else value for key, value in told.preprocess.items()}
    unknown = sorted(
        asked.keys() - {field.name for field in fields(Preprocess)} | asked.keys() & {"dtype", "layout", "size"}
    )
    if unknown:
        raise InputError(f"the model's metadata 'preprocess' says {unknown}, which is nothing that could be chosen.")
    if image.dtype.name == "int8" and not asked:
        raise InputError(f"what {image} stands for is not known. Say it: preprocess=Preprocess(size, scale=…, mean=…).")
    if image.dtype.name == "uint8":  # the network normalizes by itself
        options |= {"scale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    try:
        return Preprocess(**{"size": size, **options, **asked})
    except TypeError as error:
        raise InputError(
            f"the model's metadata 'preprocess' is {dict(asked)}, and that does not fit: {error}"
        ) from error


def _size(runner: Runner, image: TensorSpec) -> Size:
    shape = image.shape if not image.profiles else image.profiles[0].opt
    height, width = shape[1:3] if is_nhwc(image.shape) else shape[2:4]
    if -1 not in (height, width):
        return width, height
    if (told := read_metadata(runner.metadata).size) is not None:
        return told
    raise InputError(
        f"the network takes pictures of any size ({image}). Say which: size=(640, 640), --size 640x640 (trtrun serve: "
        "--size MODEL=640x640), or imgsz in the model's metadata."
    )


def _sized(image: TensorSpec, size: Size) -> Shape:
    """The smallest batch of RGB or of what the network says, in this size."""
    batch, width, height = _batch_limits(image)[0], *size
    if is_nhwc(image.shape):
        return batch, height, width, image.shape[3]
    channels = (image.profiles[0].opt if image.profiles else image.shape)[1]
    return batch, 3 if channels == -1 else channels, height, width


def _check_shape(image: TensorSpec, shape: Shape) -> None:
    """Raise InputError unless the network takes pictures as they were prepared."""
    try:
        image.check_shape(shape)
    except ShapeError as error:
        size = (shape[2], shape[1]) if is_nhwc(image.shape) else (shape[3], shape[2])
        example = "x".join(map(str, (1, *_sized(image, size)[1:])))
        raise InputError(
            f"pictures prepared as {shape_text(shape)} do not fit the network's input {image}. Choose a size "
            "that it takes (size=(width, height), --size) or leave it out. For another one an ONNX file's input is "
            f"given another shape, BuildOptions(input_shapes=…) or --input-shape {image.name}={example}, and an engine "
            "is built anew; where the graph itself holds the size, export it again."
        ) from error


def _batch_limits(image: TensorSpec) -> tuple[int, int | None]:
    """The smallest batch that the network takes, and the largest, or None where there is no bound."""
    if image.shape[0] != -1:
        return image.shape[0], image.shape[0]
    if not image.profiles:
        return 1, None
    return min(profile.min[0] for profile in image.profiles), max(profile.max[0] for profile in image.profiles)
