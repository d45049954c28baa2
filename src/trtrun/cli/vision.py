"""``trtrun detect``, ``classify``, ``segment``, ``pose`` and ``ocr``: pictures and video in, results out."""

from __future__ import annotations

import functools
import glob
import inspect
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from .console import plain_console
from .options import (
    AsJson,
    Batch,
    Device,
    HeadName,
    InputShapes,
    InputSize,
    Labels,
    Model,
    Plugins,
    load_model,
    parse_size,
    read_labels,
)

if TYPE_CHECKING:
    from ..runner import Runner
    from ..vision.preprocess import Picture
    from ..vision.task import Found

_SEGMENT = ("segment", "semantic", "matting")
_ITEM_ROWS = 5  # lines of the table per picture
_SUMMARY_ROWS = 20  # of a video
_FAR_SMALLER = 8  # times: an input in which hardly anything is left of such a picture


@dataclass(frozen=True)
class Wishes:
    """The options that the commands share, as they are on the command line."""

    source: Annotated[
        list[str],
        typer.Argument(help="Pictures, videos, folders, globs, camera numbers or rtsp addresses.", show_default=False),
    ]
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the annotated pictures.")] = None
    show_table: Annotated[
        bool,
        typer.Option(
            "--show-table",
            help="Print what was found, picture by picture. Without --out and --json that is printed anyway, for "
            "videos a summary.",
        ),
    ] = False
    as_json: AsJson = False
    save_video: Annotated[bool, typer.Option("--save-video", help="Write videos as one file, not frame by frame.")] = (
        False
    )
    track: Annotated[bool, typer.Option("--track", help="Number the objects of a video through its frames.")] = False
    head: HeadName = None
    size: InputSize = None
    input_shape: InputShapes = None
    score: Annotated[float | None, typer.Option("--score", min=0, max=1, help="Lowest score of an object.")] = None
    iou: Annotated[
        float | None, typer.Option("--iou", min=0, max=1, help="Overlap from which the worse is dropped.")
    ] = None
    batch: Batch = 1
    decode_on_gpu: Annotated[
        bool, typer.Option("--decode-on-gpu", help="Decode JPEG and video files with nvImageCodec and PyNvVideoCodec.")
    ] = False
    labels: Labels = None
    device: Device = 0
    plugin: Plugins = None


def _takes_wishes(*without: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command whose first parameter is ``Wishes``: on the command line its own, and their fields but for some."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        types = get_type_hints(Wishes, include_extras=True) | get_type_hints(command, include_extras=True)
        shared = [field for field in fields(Wishes) if field.name not in without]
        _, *own = inspect.signature(command).parameters.values()
        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=types[p.name]) for p in own]
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if field.default is MISSING else field.default,
                annotation=types[field.name],
            )
            for field in shared
        ]

        def run(**options: Any) -> None:
            command(Wishes(**{field.name: options.pop(field.name) for field in shared}), **options)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


@_takes_wishes()
def detect(
    wishes: Wishes,
    model: Model,
    oriented: Annotated[bool, typer.Option("--oriented", help="The model finds oriented boxes.")] = False,
) -> None:
    """Find objects: boxes with a class and a score."""
    _run("obb" if oriented else "detect", model, wishes)


@_takes_wishes()
def segment(
    wishes: Wishes,
    model: Model,
    kind: Annotated[
        str | None, typer.Option("--kind", help="segment (objects), semantic (pixels) or matting (foreground).")
    ] = None,
) -> None:
    """Find what every pixel belongs to: objects, classes, or foreground and background."""
    if kind not in (None, *_SEGMENT):
        raise typer.BadParameter("choose segment, semantic or matting", param_hint="--kind")
    _run(kind or _SEGMENT, model, wishes)


@_takes_wishes("labels")
def pose(wishes: Wishes, model: Model) -> None:
    """Find people or other things with keypoints."""
    _run("pose", model, wishes)


@_takes_wishes("track", "head", "score", "iou")
def classify(
    wishes: Wishes,
    model: Model,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes per picture.")] = 5,
) -> None:
    """Say what whole pictures show."""
    _run("classify", model, wishes, top=top)


@_takes_wishes("track", "head", "size", "input_shape", "score", "iou", "batch", "decode_on_gpu", "labels")
def ocr(
    wishes: Wishes,
    detector: Annotated[Path, typer.Option("--detector", help="PP-OCR's text detector.")],
    recognizer: Annotated[Path, typer.Option("--recognizer", help="PP-OCR's text recognizer.")],
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the detector's input.")] = "960x960",
    labels: Annotated[Path | None, typer.Option("--characters", help="A character per line; else the model's.")] = None,
) -> None:
    """Read text with two networks: one finds the lines, one reads them."""
    from ..predictor import load
    from ..vision.ocr import TextReader

    _check(wishes)
    with ExitStack() as stack:
        runners = [
            stack.enter_context(load(p, device=wishes.device, plugins=wishes.plugin or ()))
            for p in (detector, recognizer)
        ]
        characters = None if labels is None else read_labels(labels)
        reader = TextReader(*runners, size=(wanted := parse_size(size)), characters=characters)
        _report(reader.stream(wishes.source), runners[0], "ocr", wanted, wishes)


def _run(task: str | tuple[str, ...], model: Path, wishes: Wishes, **options: Any) -> None:
    from .. import vision

    _check(wishes)
    size = None if wishes.size is None else parse_size(wishes.size)
    with load_model(model, wishes.device, wishes.plugin, wishes.input_shape, size) as runner:
        names = None if wishes.labels is None else dict(enumerate(read_labels(wishes.labels)))
        asked = {"score_threshold": wishes.score, "iou_threshold": wishes.iou}
        selection = {name: value for name, value in asked.items() if value is not None}
        work = vision.task(runner, task, head=wishes.head, size=size, names=names, selection=selection, **options)
        # On the CPU requests in flight only share its cores.
        depth = 1 if runner.backend.startswith("ONNX Runtime") else None
        decode: Any = "GPU" if wishes.decode_on_gpu else "CPU"
        found: Iterable[Found] = work.stream(wishes.source, batch=wishes.batch, depth=depth, decode=decode)
        if wishes.track:
            from ..vision.tracking import track

            found = track(found)
        _report(found, runner, str(work.head), work.preprocess.size, wishes)


def _check(wishes: Wishes) -> None:
    """Refuse what would be ignored, what would write over a file and a folder that nothing can be written to."""
    from ..building.files import check_folder
    from ..errors import InputError
    from ..vision.sources import length

    if wishes.save_video and wishes.out is None:
        raise InputError("--save-video says how --out is written. Give --out, a folder.")
    if wishes.out is not None:
        check_folder(wishes.out)
        _Writer(wishes.out, wishes.save_video, wishes.source).check()
    if wishes.track and length(wishes.source) is not None:
        sources = ", ".join(map(repr, wishes.source))
        raise InputError(f"--track follows objects through the frames of a video, and {sources} has none.")


def _report(found: Iterable[Found], runner: Runner, what: str, size: tuple[int, int], wishes: Wishes) -> None:
    """Write, print and count what comes; exit code 1 when an item failed.

    ``size`` is that of the network's input: a file that was exported for 32×32 runs at that, and finds little.
    """
    from rich.table import Table
    from rich.text import Text

    from ..vision.draw import draw
    from ..vision.results import Classification
    from ..vision.sources import length
    from ..vision.task import image_input

    console = plain_console(stderr=wishes.as_json)  # so that --json leaves stdout to the data
    shown = not wishes.as_json and (wishes.show_table or wishes.out is None)
    each = wishes.show_table or length(wishes.source) is not None  # a video has thousands of frames
    table = Table(*(("picture", "size", "found") if each else ("found", "frames", "at most")), box=None, pad_edge=False)
    frames: Counter[str] = Counter()  # on which something was found, by what it is
    most: Counter[str] = Counter()  # of it on one frame
    rows: list[dict[str, Any]] = []
    failed = done = 0
    found_any, largest = False, (0, 0)
    start = time.perf_counter()
    with _Writer(wishes.out or Path(), wishes.save_video, wishes.source) as writer:
        for item in _with_progress(found, wishes.source, console):
            row: dict[str, Any] = {"name": item.name}
            if item.error is not None or item.picture is None or item.result is None:
                failed += 1
                row["error"] = str(item.error)
                console.print(Text.assemble((item.name, "red"), f": {item.error}"), soft_wrap=True)
            else:
                done += 1
                height, width = item.picture.shape[:2]
                row |= {"width": width, "height": height, "results": item.result.to_json()}
                found_any, largest = found_any or bool(row["results"]), max(largest, (width, height), key=max)
                if wishes.out is not None:
                    row["file"] = str(writer.write(item, draw(item.picture, item.result)))
                if shown and each:
                    table.add_row(item.name, f"{width}×{height}", "\n".join(_lines(row["results"])))
                elif shown:
                    # Of classes that are ranked only the first is what the picture shows.
                    first = 1 if isinstance(item.result, Classification) else None
                    counts = Counter(_label(one) for one in row["results"][:first])
                    frames.update(counts.keys())
                    most |= counts
            if wishes.as_json:
                rows.append(row)
        seconds = time.perf_counter() - start
    if wishes.as_json:
        typer.echo(json.dumps({"backend": runner.backend, "head": what, "size": size, "items": rows}, indent=2))
    if shown:
        for label, count in frames.most_common(_SUMMARY_ROWS):
            table.add_row(label, str(count), str(most[label]))
        if len(frames) > _SUMMARY_ROWS:
            table.add_row(f"… and {len(frames) - _SUMMARY_ROWS} more")
        if done and not table.row_count:
            table.add_row("nothing")
        if table.row_count:
            console.print(table)
    rate = f", {done / seconds:.1f} pictures/s" if done else ""
    where = f"; written to {wishes.out}" if wishes.out is not None and done else ""
    console.print(
        f"{what} at {size[0]}×{size[1]} on {runner.backend}: "
        f"{done} picture{'s' * (done != 1)} in {seconds:.2f} s{rate}, {failed} failed{where}",
        soft_wrap=True,
    )
    if done and not found_any and max(largest) >= _FAR_SMALLER * max(size):
        name = image_input(runner).name
        console.print(
            f"nothing was found, and pictures of {largest[0]}×{largest[1]} were shrunk to {size[0]}×{size[1]}. Choose "
            f"a larger size: --size 640x640; where an ONNX file fixes it, --input-shape {name}=1x3x640x640",
            soft_wrap=True,
        )
    if failed:
        raise typer.Exit(1)


def _with_progress(found: Iterable[Found], source: list[str], console: Any) -> Iterator[Found]:
    """The items as they come, under a bar that says how fast and how long still; gone when it is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..vision.sources import length

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("pictures", total=length(source), rate="")
        start = time.perf_counter()
        for index, item in enumerate(found, 1):
            progress.update(bar, completed=index, rate=f"{index / (time.perf_counter() - start):.1f}/s")
            yield item


class _Writer:
    """Annotated pictures as files; the frames of a video as one video where that is wanted.

    Names that several items would get are numbered. Raises InputError before it writes over a file of the source, or
    one that is no drawing.
    """

    def __init__(self, folder: Path, save_video: bool, source: list[str]) -> None:
        self.folder, self.save_video, self._source = folder, save_video, source
        self._video: Any = None
        self._path = folder  # of the video
        self._writing: object = None  # which video, and the size of its frames
        self._taken: set[Path] = set()

    def write(self, item: Found, drawn: Picture) -> Path:
        from ..vision.draw import encode

        name, _, frame = item.name.rpartition("#")
        is_frame = bool(name) and frame.isdecimal()
        stem = _stem(name if is_frame else item.name)
        if self.save_video and is_frame:
            return self._write_frame(name, stem or "video", item.frames_per_second or 25.0, drawn)
        # Encoded first and then written, because imwrite only returns False when the disk is full.
        suffix, data = encode(drawn)
        path = self._free(f"{stem}_{frame}" if is_frame else stem, suffix)
        path.write_bytes(data)
        return path

    def _write_frame(self, video: str, stem: str, rate: float, drawn: Picture) -> Path:
        from ..errors import InputError
        from ..vision.preprocess import import_cv2
        from ..vision.sources import encodable

        cv2 = import_cv2()
        height, width = drawn.shape[:2]
        # mp4v has whole blocks of colour: of odd sizes the last row and column would be lost.
        even = cv2.copyMakeBorder(drawn, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        if self._writing != (video, even.shape):
            self.close()
            path = self._free(stem, ".mp4")
            if not encodable(str(path)):
                raise InputError(f"{str(path)!r} is no name in UTF-8, and OpenCV writes no such video. Choose another.")
            video_writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, even.shape[1::-1])
            if not video_writer.isOpened():
                raise InputError(f"OpenCV cannot write {str(path)!r}. Leave out --save-video for pictures.")
            self._video, self._writing, self._path = video_writer, (video, even.shape), path
        self._video.write(even)
        return self._path

    def check(self) -> None:
        """Raise InputError where a file would be written over, as far as the source tells the names beforehand."""
        from ..vision.sources import VIDEO_SUFFIXES, files

        paths: set[Path] = set()
        for file in files(self._source):
            stem = _stem(str(file))
            if file.suffix.lower() not in VIDEO_SUFFIXES:
                paths.add(self._numbered(stem, ".jpg", paths))
            elif self.save_video:
                paths.add(self._numbered(stem, ".mp4", paths))
            else:
                paths.update(self.folder.glob(f"{glob.escape(stem)}_{'[0-9]' * 6}.jpg"))
        self._refuse(sorted(paths))

    def _free(self, stem: str, suffix: str) -> Path:
        """A path in the folder that nothing was written to, and that is no file to be kept."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._numbered(stem, suffix, self._taken)
        self._taken.add(path)
        self._refuse([path])
        return path

    def _numbered(self, stem: str, suffix: str, taken: Container[Path]) -> Path:
        names = itertools.chain([f"{stem}{suffix}"], (f"{stem}_{number}{suffix}" for number in itertools.count(2)))
        return next(path for name in names if (path := self.folder / name) not in taken)

    def _refuse(self, paths: Iterable[Path]) -> None:
        from ..errors import InputError
        from ..vision.draw import is_drawing

        existing = [path for path in paths if path.exists()]
        if read := [path for path in existing if _identity(path) in self._sources]:
            raise InputError(
                f"{_first_of(read)} a file of the source, and would be written over. Choose another --out."
            )
        if foreign := [path for path in existing if not is_drawing(path)]:
            raise InputError(
                f"{_first_of(foreign)} no drawing of an earlier run, and would be written over. Choose another --out, "
                "or move away what shall be kept."
            )

    @functools.cached_property
    def _sources(self) -> set[tuple[int, int]]:
        """The files that are read, where they are links what those lead to."""
        from ..vision.sources import files

        return {_identity(path) for path in files(self._source) if path.exists()}

    def close(self) -> None:
        from ..vision.draw import mark_video

        if self._video is not None:
            self._video.release()
            self._video = None
            mark_video(self._path)

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _stem(name: str) -> str:
    """What the drawing of an item is called, without its suffix."""
    return "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(name).stem)


def _first_of(paths: list[Path]) -> str:
    return f"{str(paths[0])!r} is" if len(paths) == 1 else f"{str(paths[0])!r} and {len(paths) - 1} more are each"


def _identity(path: Path) -> tuple[int, int]:
    """What is the same for all names of one file."""
    found = path.stat()
    return found.st_dev, found.st_ino


def _lines(results: list[dict[str, Any]]) -> list[str]:
    """A few lines about one picture's results."""
    lines = []
    for row in results[:_ITEM_ROWS]:
        amount = f"{row['score']:.2f}" if "score" in row else f"{100 * row['share']:.1f} %"
        box = " ".join(f"{v:.0f}" for v in row["box"]) if "box" in row else ""
        number = f"#{row['track_id']} " if "track_id" in row else ""  # as on the picture
        lines.append(f"{number}{_label(row)} {amount}  {box}".rstrip())
    if len(results) > _ITEM_ROWS:
        lines.append(f"… and {len(results) - _ITEM_ROWS} more")
    return lines or ["nothing"]


def _label(row: dict[str, Any]) -> str:
    return str(row.get("text", row.get("class", row.get("class_id", "foreground"))))
