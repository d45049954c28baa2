"""Pictures to models of vision: decoded within bounds, prepared, run like any other request, and answered."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from ..errors import InputError, RequestTooLargeError, ServerBusyError
from ..vision.draw import draw
from ..vision.preprocess import Picture, import_cv2, import_pillow
from ..vision.results import Result
from ..vision.sources import decode_picture
from ..vision.task import VisionTask
from .aside import result_of
from .repository import Model

# The kinds that both Pillow, which reads the size, and OpenCV, which decodes, tell by the same first bytes.
_KINDS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_THREADS = 4  # a picture of the largest size takes 0.2 GB in each, 0.8 GB as a TIFF file with alpha
_MASKS = 1 << 32  # bytes: instance masks take one per pixel and object
_HELD = 64  # pictures that are decoded or drawn, or wait for it

Form = Literal["json", "jpeg", "png"]
T = TypeVar("T")


class Pictures:
    """Answers pictures with what models find on them.

    Args:
        max_pixels: of a picture at most; its header says how many it has, before any are decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="trtrun-picture")
        self._held = 0

    async def predict(
        self,
        model: Model,
        data: bytes | bytearray,
        form: Form,
        wait: Callable[[Future[Any]], Awaitable[Any]] = result_of,
        *,
        priority: int = 0,
        timeout: float | None = None,
    ) -> tuple[bytes, str]:
        """The answer to an image file, and its media type.

        Args:
            model: one that :meth:`~trtrun.serve.repository.Model.task` recognises.
            form: the result as JSON, or drawn on the picture.
            wait: for the model's outputs.
            priority, timeout: see :meth:`~trtrun.serve.batcher.Batcher.submit`.

        Raises InputError for what is no picture or no vision model, RequestTooLargeError for more pixels than are
        taken, and what submitting and running raise.
        """
        task = model.task()
        model.batcher.check_room(priority)  # before the work that decoding is
        picture, inputs, geometries = await self._in_thread(lambda: self._prepare(task, data))
        outputs = await wait(model.batcher.submit(inputs, priority=priority, timeout=timeout))
        return await self._in_thread(lambda: _answer(model, task, picture, task.decode(outputs, geometries)[0], form))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._held >= _HELD:
            raise ServerBusyError(f"{self._held} pictures are being decoded or drawn already. Come back later.")
        self._held += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._held -= 1

    def _prepare(self, task: VisionTask, data: bytes | bytearray) -> tuple[Picture, Any, Any]:
        most = self._max_pixels
        if task.head.task == "segment":
            most = min(most, _MASKS // task.selection.max_detections)
        check_size(data, most)
        picture = decode_picture(data, "the body")
        inputs, geometries = task.request([picture])
        return picture, inputs, geometries


def check_size(data: bytes | bytearray, most: int) -> None:
    """Read a picture's size from its header, and decode nothing.

    Raises InputError for what is no picture, RequestTooLargeError for one of more than ``most`` pixels.
    """
    module = import_pillow()
    try:
        with module.open(io.BytesIO(data), formats=_KINDS) as image:
            width, height = image.size
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise RequestTooLargeError(f"the picture is larger than {most:,} pixels. Send a smaller one.") from error
    except module.UnidentifiedImageError as error:  # whose text names the object that it read from
        raise InputError(f"the body is no picture of a kind that is read ({', '.join(_KINDS)}).") from error
    except Exception as error:  # Pillow raises what comes to hand for damaged files
        raise InputError(f"the body is no picture of a kind that is read ({', '.join(_KINDS)}): {error}") from error
    if width * height > most:
        raise RequestTooLargeError(
            f"the picture has {width} × {height} pixels, and {most:,} are taken. Send a smaller one."
        )


def _answer(model: Model, task: VisionTask, picture: Picture, result: Result, form: Form) -> tuple[bytes, str]:
    if form != "json":
        good, encoded = import_cv2().imencode(f".{form}", draw(picture, result))
        if not good:
            raise InputError(f"the picture cannot be written as {form}; ask for JSON.")
        return encoded.tobytes(), f"image/{form}"
    height, width = picture.shape[:2]
    found = {
        "model_name": model.name,
        "model_version": model.version,
        "task": task.head.task,
        "width": width,
        "height": height,
        "results": result.to_json(),
    }
    try:
        return json.dumps(found, allow_nan=False).encode(), "application/json"
    except ValueError as error:
        raise InputError("the network gave NaN or infinities for this picture, which JSON cannot say.") from error


def form_of(accept: str, annotated: bool) -> Form:
    """What a request wants: its ``Accept`` header, or ``?annotated=1``, which is a JPEG unless it accepts only PNG."""
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    forms: dict[str, Form] = {"application/json": "json", "image/jpeg": "jpeg", "image/png": "png", "image/*": "jpeg"}
    wanted = [forms[kind] for kind in kinds if kind in forms]
    if annotated:
        return next((form for form in wanted if form != "json"), "jpeg")
    return wanted[0] if wanted else "json"
