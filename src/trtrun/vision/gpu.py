"""Preprocessing and non-maximum suppression on the GPU, as stages of a runner: one CUDA graph with the engine.

Pictures go to the GPU as they are, uint8, of a picture that is made much smaller only the rows that count: from
page-locked memory of :meth:`VisionStages.empty` by the GPU alone, else by way of such memory, in parts, each sent while
the next is copied. What comes back are the objects that were kept.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import COPY_POOL
from ..cuda.device import Device
from ..cuda.kernel import Grid, Launch
from ..cuda.memory import DeviceMemory, PinnedPool, RowsCopy, address_of, copy_async, copy_now
from ..cuda.transfer import Copy
from ..errors import InputError
from ..runner import Memory, Step
from ..tensor_spec import Shape, TensorSpecs
from .geometry import Geometry
from .heads import Head
from .postprocess import centerface
from .postprocess.candidates import Candidates, Selection
from .postprocess.yolo_objectness import STRIDES
from .preprocess import NV12, Picture, Preprocess

Array = np.ndarray[Any, Any]
Places = Mapping[str, tuple[int, Shape]]  # of outputs on the GPU, by role: address and shape

IN_BGR, IN_RGB, IN_NV12 = 1, 2, 3  # as in preprocess.cu; 0 is no picture
_COLUMNS, _ROWS = 64, 16  # of the input that one block of threads prepares; as in preprocess.cu
_THREADS = 256
_SUPPRESS_THREADS = 1024  # as in postprocess.cu
_LIMIT = 1024
_KINDS = {"yolov8": 0, "yolov5": 1, "yolov6": 1, "yolox": 2}
_ORIENTED = 3
_MANY_THREADS = 4 << 20  # bytes of a request from which several threads copy: one moves about 10 GB/s
_PART = 256 << 10  # bytes from which a part is sent while the next is copied,
_PARTS = 8  # and how many parts there are at most
# Bytes up to which the kernel reads page-locked pictures over PCIe itself. It takes as long as a copy and the kernel
# after it (one 1080p picture on an H200: 57 µs, 46 + 11), and the host has nothing to enqueue. With more, the copies of
# one request overlap with the network of another.
_STRAIGHT = 4 << 20
_MAX_PASSAGES = 256
_GROWTH = 1 << 20  # bytes; memory for pictures grows in such steps, because what grows is captured anew

_STAGING, _SCRATCH, _KEPT = "\0pictures", "\0candidates", "\0kept"


class PictureStruct(ctypes.Structure):
    """``Picture`` in preprocess.cu."""

    _fields_ = (
        ("pixels", ctypes.c_uint64),
        ("chroma", ctypes.c_uint64),
        ("scale_x", ctypes.c_double),
        ("scale_y", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("pitch", "chroma_pitch", "width", "height", "left", "top")),
        *((name, ctypes.c_int32) for name in ("resized_width", "resized_height", "format", "packed", "padding")),
        ("reserved", ctypes.c_int32),
    )


_DESCRIPTOR = ctypes.sizeof(PictureStruct)


class _Target(ctypes.Structure):
    _fields_ = (
        ("batch", ctypes.c_uint64),
        ("table", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("width", "height", "channels", "rgb", "interleaved")),
    )


class _Head(ctypes.Structure):
    _fields_ = (
        ("values", ctypes.c_uint64),
        *((name, ctypes.c_int64) for name in ("picture", "row", "column")),
        *((name, ctypes.c_int32) for name in ("rows", "classes", "extras", "first")),
        *((name, ctypes.c_int32) for name in ("kind", "width", "height", "levels")),
        ("threshold", ctypes.c_float),
    )


class _Faces(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("heat", "scale", "offset")),
        ("cells", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("threshold", ctypes.c_float),
    )


class _Candidates(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("scores", "boxes", "classes", "angles"))


class _Kept(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("counts", "boxes", "scores", "classes", "rows", "extras", "scratch")),
        ("most", ctypes.c_int32),
        ("agnostic", ctypes.c_int32),
        ("threshold", ctypes.c_float),
    )


def target(batch: int, table: int, how: Preprocess, count: int) -> tuple[Any, Grid, Grid]:
    """Where the kernel writes ``count`` pictures, and its grid and block; see :func:`preparation`."""
    width, height = how.size
    struct = _Target(batch, table, width, height, how.depth, how.channels == "RGB", how.layout == "NHWC")
    return struct, (-(-width // _COLUMNS), -(-height // _ROWS), count), (_THREADS, 1, 1)


def preparation(device: Device, pictures: int, batch: int, table: int, how: Preprocess, count: int) -> Launch:
    """The launch that prepares ``count`` pictures, of descriptors at an address, into the batch at another.

    ``table`` is the address of ``how.table()`` on the GPU.
    """
    struct, grid, block = target(batch, table, how, count)
    name = f"prepare_{np.dtype(how.dtype).itemsize}"
    return Launch(device, "preprocess", name, grid, block, ctypes.c_uint64(pictures), struct)


def describe(
    geometry: Geometry, pixels: int, pitch: int, padding: int, *, kind: int = IN_BGR, packed: int = 0, chroma: int = 0
) -> PictureStruct:
    """The descriptor of a picture whose first row is at an address on the GPU; NV12's chroma has the same pitch."""
    (width, height), (resized_width, resized_height) = geometry.source, geometry.resized
    # The inverse of the inverse, as OpenCV computes it: it decides how ties are rounded.
    scale = 1 / (resized_width / width), 1 / (resized_height / height)
    place = width, height, *geometry.offset, resized_width, resized_height
    return PictureStruct(pixels, chroma, *scale, pitch, pitch, *place, kind, packed, padding)


def _describe_whole(geometry: Geometry, pixels: int, array: Array, padding: int) -> PictureStruct:
    """The descriptor of a C-contiguous picture [H, W, 3], or of NV12's planes, at an address on the GPU."""
    width = array.shape[1]
    if array.ndim == 2:
        return describe(geometry, pixels, width, padding, kind=IN_NV12, chroma=pixels + geometry.source[1] * width)
    return describe(geometry, pixels, 3 * width, padding)


@functools.lru_cache(maxsize=64)
def rows_that_count(geometry: Geometry) -> tuple[int, Array | None]:
    """How many rows of the picture each row of the input needs, and which, in turn; (0, None): all rows are sent.

    The arithmetic of ``taps`` in preprocess.cu.
    """
    height, resized = geometry.source[1], geometry.resized[1]
    top = geometry.offset[1]
    shown = np.arange(max(-top, 0), min(resized, geometry.target[1] - top))
    fraction = ((shown + 0.5) * (1 / (resized / height)) - 0.5).astype(np.float32)
    first = np.floor(fraction).astype(np.int64)
    second_counts = np.rint((fraction - first.astype(np.float32)) * np.float32(2048)) != 0
    rows = np.stack([first, first + 1], axis=1).clip(0, height - 1)
    needed = 2 if second_counts.any() else 1
    if needed * len(shown) > 0.9 * height:
        return 0, None
    return needed, rows[:, :needed].ravel()


class Passage:
    """How C-contiguous pictures of one geometry get to the GPU.

    Attributes:
        rows: which of their rows are sent; None: all.
        step: the pieces of ``needed`` rows, of which the first begins at row ``start``, are so many rows apart; 0 where
            they are not all equally far apart.
        height: how many rows are sent.
        nbytes: how many bytes.
    """

    def __init__(self, geometry: Geometry, padding: int) -> None:
        width, height = geometry.source
        self.needed, self.rows = rows_that_count(geometry)
        self.height = height if self.rows is None else len(self.rows)
        self.pitch = 3 * width
        self.nbytes = self.height * self.pitch
        self.start = self.step = 0
        if self.rows is not None:
            pieces = self.rows.reshape(-1, self.needed)
            steps, extents = np.diff(pieces[:, 0]), pieces[:, -1] - pieces[:, 0]
            self.start = int(pieces[0, 0])
            if len(steps) and (steps == steps[0]).all() and (extents == self.needed - 1).all():
                self.step = int(steps[0])
                self.copy = RowsCopy(self.needed * self.pitch, len(pieces), self.step * self.pitch)
        self._descriptor = describe(geometry, 0, self.pitch, padding)

    def describe(self, pixels: int, packed: int) -> PictureStruct:
        """The descriptor of a picture at this address of the GPU; the same object each time."""
        self._descriptor.pixels, self._descriptor.packed = pixels, packed
        return self._descriptor

    def parts(self, start: int, target: Array, picture: Picture, count: int) -> list[_Part]:
        """The copies of the rows that are sent into flat memory, ``count`` of about equal size where that can be."""
        if self.rows is not None and not self.step:
            view = target.reshape(self.height, *picture.shape[1:])
            # mode="raise" would go through a buffer
            return [_Part(start, self.nbytes, functools.partial(np.take, picture, self.rows, 0, view, "clip"))]
        width = self.pitch * (self.needed or 1)
        pieces = self.nbytes // width
        strides = (self.step * self.pitch if self.step else width, 1)
        given: Array = np.ndarray((pieces, width), np.uint8, picture, self.start * self.pitch, strides)
        to = target.reshape(pieces, width)
        each = -(-pieces // count)
        return [
            _Part(start + i * width, view.nbytes, functools.partial(np.copyto, view, given[i : i + each]))
            for i in range(0, pieces, each)
            for view in (to[i : i + each],)
        ]


class _Part(NamedTuple):
    """What is copied at once: where in the staging memory it begins, its bytes, and the call that copies it there."""

    start: int
    nbytes: int
    copy: Callable[[], object]


class VisionStages:
    """What happens to pictures before a network, and to its output behind it.

    Args:
        image: the network's input.
        how: how pictures are brought into it.
        least: the smallest batch that the network takes; what a request lacks is zeros.
        head: whose candidates are suppressed on the GPU; None leaves the outputs as they are.
        selection: which of them are kept.
        dtype: of the head's output, float32 or float16.

    A request is {"pictures": BGR uint8 [H, W, 3] or NV12, "geometries": where each lies in the input}. Those in memory
    of :meth:`empty` must stay as they are until the results are there; others may be changed at once. With a head the
    results are ``counts`` int32 [B], ``boxes`` float32 [B, M, 4] (x1, y1, x2, y2 in pixels of the input; of oriented
    ones centre and size), ``scores`` float32 [B, M], ``class_ids`` int32 [B, M] and ``extra`` float32 [B, M, E] (of
    oriented ones the angle), of which each picture's first are valid, best first.
    """

    def __init__(
        self,
        image: str,
        how: Preprocess,
        least: int,
        head: Head | None = None,
        selection: Selection | None = None,
        dtype: str = "float32",
    ) -> None:
        self.how, self.least, self.head, self.selection = how, least, head, selection or Selection()
        self.dtype = dtype
        self.inputs = frozenset([image])
        self.outputs = frozenset() if head is None else frozenset(head.roles[role] for role in roles_read(head))
        self._pools: dict[int, PinnedPool] = {}

    def open(self, device: int, memory: Memory) -> OpenVisionStages:
        if device not in self._pools:
            self._pools[device] = PinnedPool(Device(device))
        return OpenVisionStages(self, Device(device), memory)

    def kept(self, results: Mapping[str, Array], index: int) -> Candidates:
        """What was kept on one picture."""
        found = candidates_of(results, index)
        if self.head is not None and self.head.task == "obb":  # the angle is the first of what the head says beside
            boxes = np.concatenate([found.boxes, found.extra[:, :1]], axis=1)
            return Candidates(boxes, found.scores, found.class_ids, found.extra[:, 1:])
        return found

    def empty(self, height: int, width: int) -> Picture:
        """An uninitialised picture in page-locked memory. To be called after :meth:`open`."""
        pool = next(iter(self._pools.values()))
        return pool.empty(height * width * 3).reshape(height, width, 3)

    @staticmethod
    def lent(array: Array) -> bool:
        """Whether this is memory of :meth:`empty`."""
        return PinnedPool.lent(array)


class OpenVisionStages:
    """:class:`VisionStages` of one runner."""

    def __init__(self, stages: VisionStages, device: Device, memory: Memory) -> None:
        self._stages, self._device, self._memory = stages, device, memory
        self._table = constant(device, stages.how.table())
        self._kept: dict[int, KeptObjects] = {}  # by batch, each bound with the route of that batch
        self._batch = 0  # of the last request
        self._passages: dict[Geometry, Passage] = {}
        self._host: Array | None = None  # the page-locked memory, its address, and its head as descriptors
        self._host_address = self._described = 0
        self._at_host: Any = None

    def fill(
        self, request: Mapping[str, Any], stream: int, *, helpers: bool
    ) -> tuple[tuple[Shape, ...], tuple[Copy, ...]]:
        pictures: Sequence[Picture | NV12] = request["pictures"]
        geometries: Sequence[Geometry] = request["geometries"]
        self._batch = count = max(self._stages.least, len(pictures))
        header = _up(count * _DESCRIPTOR, 256)
        jobs: list[tuple[Picture, Passage | None, bool]] = []
        straight = 0
        for picture, geometry in zip(pictures, geometries, strict=True):
            planes = isinstance(picture, NV12)
            array = picture.planes if isinstance(picture, NV12) else picture
            passage = self._passage(geometry) if array.flags.c_contiguous and not planes else None
            locked = (planes or passage is not None) and PinnedPool.lent(array)
            jobs.append((array, passage, locked))
            straight += passage.nbytes if locked and passage is not None and passage.rows is not None else _STRAIGHT + 1
        if straight <= _STRAIGHT:
            address, host = self._reserve(header, header)
            descriptors = self._descriptors(host, count)
            for index, (picture, passage, _) in enumerate(jobs):
                assert passage is not None
                descriptors[index] = passage.describe(picture.__array_interface__["data"][0], 0)
        else:
            address, host = self._copy(jobs, geometries, header, stream, helpers)
            descriptors = self._descriptors(host, count)
        if count > len(pictures):
            ctypes.memset(
                ctypes.byref(descriptors, len(pictures) * _DESCRIPTOR), 0, (count - len(pictures)) * _DESCRIPTOR
            )
        return (self._stages.how.shape(count),), ((address, self._host_address, header),)

    def _reserve(self, on_gpu: int, on_host: int) -> tuple[int, Array]:
        """The address of so much memory for pictures on the GPU, and so much on the host."""
        address = self._memory.on_gpu(_STAGING, _up(on_gpu, _GROWTH))
        host = self._memory.host(_STAGING, _up(on_host, _GROWTH))
        if host is not self._host:
            self._host, self._host_address = host, address_of(host)
            self._described = 0
        return address, host

    def _descriptors(self, host: Array, count: int) -> Any:
        """The first bytes of the host memory as so many descriptors."""
        if count != self._described:
            self._described, self._at_host = count, (PictureStruct * count).from_buffer(host.data)
        return self._at_host

    def _copy(
        self,
        jobs: Sequence[tuple[Picture, Passage | None, bool]],
        geometries: Sequence[Geometry],
        header: int,
        stream: int,
        helpers: bool,
    ) -> tuple[int, Array]:
        """Enqueue the copies of the pictures, and describe them at their places on the GPU."""
        how = self._stages.how
        used = on_host = header
        starts = []
        for picture, passage, locked in jobs:
            starts.append(used)
            # The copy engine takes rows that are equally far apart.
            nbytes = passage.nbytes if passage is not None and (passage.step or not locked) else picture.nbytes
            used = _up(used + nbytes, 256)
            if not locked:
                on_host = used
        address, host = self._reserve(used, on_host)
        source = self._host_address
        descriptors = self._descriptors(host, self._batch)
        staged = on_host - header
        several = max(1, min(_PARTS, staged // _PART) // len(jobs))
        parts: list[_Part] = []
        for index, (start, (picture, passage, locked)) in enumerate(zip(starts, jobs, strict=True)):
            target = address + start
            if passage is None and not locked:
                described = _describe_whole(geometries[index], target, picture, how.padding)
                view = host[start : start + picture.nbytes].reshape(picture.shape)
                parts.append(_Part(start, picture.nbytes, functools.partial(np.copyto, view, picture)))
            elif passage is not None and not locked:
                described = passage.describe(target, passage.needed)
                parts += passage.parts(start, host[start : start + passage.nbytes], picture, several)
            elif passage is not None and passage.step:
                described = passage.describe(target, passage.needed)
                passage.copy.enqueue(target, address_of(picture) + passage.start * passage.pitch, stream)
            else:
                described = _describe_whole(geometries[index], target, picture, how.padding)
                copy_async(target, address_of(picture), picture.nbytes, stream)
            descriptors[index] = described

        def send(index: int) -> None:
            start, nbytes, _ = parts[index]
            copy_async(address + start, source + start, nbytes, stream)

        if len(parts) > 1 and (helpers or staged >= _MANY_THREADS):
            COPY_POOL.run([part.copy for part in parts], send)
        else:
            for index, part in enumerate(parts):
                part.copy()
                send(index)
        return address, host

    def _passage(self, geometry: Geometry) -> Passage:
        found = self._passages.get(geometry)
        if found is None:
            if len(self._passages) >= _MAX_PASSAGES:
                self._passages.clear()
            found = self._passages[geometry] = Passage(geometry, self._stages.how.padding)
        return found

    def bind(
        self, inputs: Mapping[str, tuple[int, Shape]], outputs: Mapping[str, tuple[int, Shape]]
    ) -> tuple[list[Step], list[Step]]:
        stages, memory = self._stages, self._memory
        (batch, shape), *_ = inputs.values()
        pictures = memory.on_gpu(_STAGING, 0)
        before: list[Step] = [preparation(self._device, pictures, batch, self._table.address, stages.how, shape[0])]
        if stages.head is None:
            return before, []
        by_role: dict[str, tuple[int, Shape]] = {}
        for role in roles_read(stages.head):
            name = stages.head.roles[role]
            if name not in outputs:
                raise InputError(f"the shape of output {name!r} is known only after running. Turn postprocessing off.")
            by_role[role] = outputs[name]
        kept = self._kept[shape[0]] = KeptObjects(
            self._device, memory, stages.head, stages.selection, stages.how, by_role, stages.dtype
        )
        return before, kept.steps

    def results(self) -> dict[str, Array]:
        return self._kept[self._batch].suppression.read() if self._kept else {}


def constant(device: Device, values: Array) -> DeviceMemory:
    """These values on the GPU."""
    memory = DeviceMemory(device, values.nbytes)
    with device:
        copy_now(memory.address, values)
    return memory


def roles_read(head: Head) -> tuple[str, ...]:
    """The outputs that the kernels read."""
    return tuple(centerface.ROLES) if head.name == "centerface" else ("predictions",)


def why_not(head: Head, selection: Selection, outputs: TensorSpecs) -> str | None:
    """Why this head's objects are not found on the GPU; None when they are."""
    if head.name not in (*_KINDS, "centerface"):
        return f"{head} has no kernel"
    if selection.multi_label:
        return "several labels for one box are chosen on the CPU"
    if selection.max_detections > _LIMIT:
        return f"the GPU keeps at most {_LIMIT} objects of a picture"
    specs = [outputs[head.roles[role]] for role in roles_read(head)]
    if len({spec.dtype for spec in specs}) > 1 or specs[0].dtype.name not in ("float32", "float16"):
        return f"{', '.join(map(str, specs))} are not all of float32 or all of float16"
    return None


class Suppression:
    """Non-maximum suppression of candidates in memory on the GPU: float scores (0: none), boxes and int32 classes.

    With angles besides, boxes are oriented and compared by probabilistic IoU.

    What is kept is written to page-locked memory by the kernel itself: nothing else crosses PCIe.

    Attributes:
        step: the launch.
        kept: addresses of what is kept.
        host: the page-locked memory.
    """

    def __init__(
        self, device: Device, memory: Memory, candidates: tuple[int, ...], shape: tuple[int, int], extras: int,
        selection: Selection,
    ) -> None:  # fmt: skip
        batch, rows = shape
        most = selection.max_detections
        shapes: dict[str, tuple[str, tuple[int, ...]]] = {
            "counts": ("int32", (batch,)),
            "boxes": ("float32", (batch, most, 4)),
            "scores": ("float32", (batch, most)),
            "class_ids": ("int32", (batch, most)),
            "extra": ("float32", (batch, most, extras)),
        }
        self._views: list[tuple[str, tuple[int, ...], np.dtype[Any], int]] = []  # name, shape, dtype, offset
        nbytes = 0
        for name, (dtype, size) in shapes.items():
            self._views.append((name, size, np.dtype(dtype), nbytes))
            nbytes = _up(nbytes + 4 * math.prod(size), 16)
        self.host = memory.host(_KEPT, nbytes)[:nbytes]
        counts, boxes, scores, class_ids, extra = (address_of(self.host) + offset for *_, offset in self._views)
        rows_kept = memory.on_gpu(_KEPT, 4 * batch * most)
        sort = memory.on_gpu(_SCRATCH + "\0sort", 16 * batch * rows)
        self.kept = _Kept(
            counts, boxes, scores, class_ids, rows_kept, extra, sort, most, selection.class_agnostic,
            selection.iou_threshold,
        )  # fmt: skip
        self.candidates = _Candidates(*candidates)
        block = (_SUPPRESS_THREADS, 1, 1)
        name = "suppress_oriented" if self.candidates.angles else "suppress"
        self.step = Launch(
            device, "postprocess", name, (batch, 1, 1), block, self.candidates, ctypes.c_int32(rows), self.kept
        )

    def read(self) -> dict[str, Array]:
        """What is kept, once the launch has run: arrays that belong to the caller."""
        copy = self.host.copy()
        return {name: np.ndarray(shape, dtype, copy, offset) for name, shape, dtype, offset in self._views}


class KeptObjects:
    """The steps from a head's raw output to the objects that are kept, in page-locked memory.

    Attributes:
        steps: to enqueue in this order.
        suppression: whose results they give.
    """

    def __init__(
        self, device: Device, memory: Memory, head: Head, selection: Selection, how: Preprocess, outputs: Places,
        dtype: str,
    ) -> None:  # fmt: skip
        name, raw, rest = (_faces if head.name == "centerface" else _dense)(head, selection, how, outputs)
        batch, rows = next(iter(outputs.values()))[1][0], rest.rows
        total = batch * rows
        found = memory.on_gpu(_SCRATCH, total * 28)
        places = found + 16 * total, found, found + 20 * total, found + 24 * total if head.task == "obb" else 0
        suppression = self.suppression = Suppression(device, memory, places, (batch, rows), rest.extras, selection)
        suffix = {"float16": "f16", "float32": "f32"}[dtype]
        block = (_THREADS, 1, 1)
        grid = (-(-rows // _THREADS), batch, 1)
        self.steps: list[Step] = [
            Launch(device, "postprocess", f"{name}_{suffix}", grid, block, raw, suppression.candidates),
            suppression.step,
        ]
        if rest.extras:
            self.steps.append(
                Launch(device, "postprocess", f"gather_{suffix}", (batch, 1, 1), block, rest, suppression.kept)
            )


def _dense(head: Head, selection: Selection, how: Preprocess, outputs: Places) -> tuple[str, _Head, _Head]:
    """The kernel that selects from one output [B, P, Q], what it takes, and what the one takes that gathers."""
    ((address, shape),) = outputs.values()
    kind = _ORIENTED if head.task == "obb" else _KINDS[head.name]
    _, first, second = shape
    # All others are channels-last.
    channels_first = head.name == "yolov8" and not head.channels_last
    rows, numbers = (second, first) if channels_first else (first, second)
    before = head.classes + (4 if head.name == "yolov8" else 5)
    width, height = how.size
    cells = sum((width // stride) * (height // stride) for stride in STRIDES)
    levels = len(STRIDES) + (rows != cells)
    strides = (first * second, 1, second) if channels_first else (first * second, second, 1)
    raw = _Head(
        address, *strides, rows, head.classes, numbers - before, before, kind, width, height, levels,
        selection.score_threshold,
    )  # fmt: skip
    return "select", raw, raw


def _faces(head: Head, selection: Selection, how: Preprocess, outputs: Places) -> tuple[str, _Faces, _Head]:
    """The same for CenterFace's maps."""
    (heat, shape), (scale, _), (offset, _), (marks, (_, extras, *_)) = (outputs[role] for role in centerface.ROLES)
    cells = shape[2] * shape[3]
    raw = _Faces(heat, scale, offset, cells, shape[3], selection.score_threshold)
    return "select_faces", raw, _Head(marks, extras * cells, 1, cells, cells, 0, extras)


def candidates_of(results: Mapping[str, Array], index: int) -> Candidates:
    """What was kept on one picture."""
    count = int(results["counts"][index])
    return Candidates(*(results[name][index, :count] for name in ("boxes", "scores", "class_ids", "extra")))


def _up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
