"""``trtrun detect``, ``classify``, ``segment``, ``pose`` and ``ocr``: pictures and video in, results out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import AsJson, Device, Plugins

if TYPE_CHECKING:
    from ..runner import Runner
    from ..vision.preprocess import Picture
    from ..vision.task import Found

_SOURCE = typer.Argument(help="A picture, video, folder, glob, camera number or rtsp address.", show_default=False)
_ITEM_ROWS = 5  # lines of the table per picture

Source = Annotated[str, _SOURCE]
Model = Annotated[Path, typer.Option("--model", "-m", help="A plan, an ONNX file or a bundle.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the annotated pictures.")]
ShowTable = Annotated[bool, typer.Option("--show-table", help="Print what was found, picture by picture.")]
SaveVideo = Annotated[bool, typer.Option("--save-video", help="Write videos as one file, not frame by frame.")]
HeadName = Annotated[str | None, typer.Option("--head", help="The decoder, where outputs and metadata do not say.")]
InputSize = Annotated[str | None, typer.Option("--size", help="WIDTHxHEIGHT of an input that takes several.")]
Score = Annotated[float | None, typer.Option("--score", min=0, max=1, help="Lowest score of an object.")]
Iou = Annotated[float | None, typer.Option("--iou", min=0, max=1, help="Overlap from which the worse is dropped.")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Pictures per request.")]
Track = Annotated[bool, typer.Option("--track", help="Number the objects of a video through its frames.")]
Labels = Annotated[Path | None, typer.Option("--labels", help="Text file with one class name per line.")]


@dataclass(frozen=True)
class _Wishes:
    """What the commands share."""

    source: str
    model: Path
    out: Path | None
    show_table: bool
    as_json: bool
    save_video: bool
    size: str | None
    batch: int
    device: int
    plugin: list[Path] | None
    head: str | None = None
    score: float | None = None
    iou: float | None = None
    labels: Path | None = None
    track: bool = False


def detect(
    source: Source,
    model: Model,
    out: Out = None,
    show_table: ShowTable = False,
    as_json: AsJson = False,
    save_video: SaveVideo = False,
    track: Track = False,
    oriented: Annotated[bool, typer.Option("--oriented", help="The model finds oriented boxes.")] = False,
    head: HeadName = None,
    size: InputSize = None,
    score: Score = None,
    iou: Iou = None,
    batch: Batch = 1,
    labels: Labels = None,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Find objects: boxes with a class and a score."""
    wishes = _Wishes(
        source,
        model,
        out,
        show_table,
        as_json,
        save_video,
        size,
        batch,
        device,
        plugin,
        head,
        score,
        iou,
        labels,
        track,
    )
    _run("obb" if oriented else "detect", wishes)


def segment(
    source: Source,
    model: Model,
    out: Out = None,
    show_table: ShowTable = False,
    as_json: AsJson = False,
    save_video: SaveVideo = False,
    track: Track = False,
    kind: Annotated[
        str | None, typer.Option("--kind", help="segment (objects), semantic (pixels) or matting (foreground).")
    ] = None,
    head: HeadName = None,
    size: InputSize = None,
    score: Score = None,
    iou: Iou = None,
    batch: Batch = 1,
    labels: Labels = None,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Find what every pixel belongs to: objects, classes, or foreground and background."""
    if kind not in (None, "segment", "semantic", "matting"):
        raise typer.BadParameter("choose segment, semantic or matting", param_hint="--kind")
    wishes = _Wishes(
        source,
        model,
        out,
        show_table,
        as_json,
        save_video,
        size,
        batch,
        device,
        plugin,
        head,
        score,
        iou,
        labels,
        track,
    )
    _run(kind, wishes)


def pose(
    source: Source,
    model: Model,
    out: Out = None,
    show_table: ShowTable = False,
    as_json: AsJson = False,
    save_video: SaveVideo = False,
    track: Track = False,
    head: HeadName = None,
    size: InputSize = None,
    score: Score = None,
    iou: Iou = None,
    batch: Batch = 1,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Find people or other things with keypoints."""
    wishes = _Wishes(
        source, model, out, show_table, as_json, save_video, size, batch, device, plugin, head, score, iou, track=track
    )
    _run("pose", wishes)


def classify(
    source: Source,
    model: Model,
    out: Out = None,
    show_table: ShowTable = False,
    as_json: AsJson = False,
    save_video: SaveVideo = False,
    top: Annotated[int, typer.Option("--top", min=1, help="How many classes per picture.")] = 5,
    size: InputSize = None,
    batch: Batch = 1,
    labels: Labels = None,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Say what whole pictures show."""
    wishes = _Wishes(source, model, out, show_table, as_json, save_video, size, batch, device, plugin, labels=labels)
    _run("classify", wishes, top=top)


def ocr(
    source: Source,
    detector: Annotated[Path, typer.Option("--detector", help="PP-OCR's text detector.")],
    recognizer: Annotated[Path, typer.Option("--recognizer", help="PP-OCR's text recognizer.")],
    out: Out = None,
    show_table: ShowTable = False,
    as_json: AsJson = False,
    save_video: SaveVideo = False,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the detector's input.")] = "960x960",
    labels: Annotated[Path | None, typer.Option("--characters", help="A character per line; else the model's.")] = None,
    device: Device = 0,
    plugin: Plugins = None,
) -> None:
    """Read text with two networks: one finds the lines, one reads them."""
    from ..predictor import load
    from ..vision.ocr import TextReader

    with ExitStack() as stack:
        runners = [stack.enter_context(load(p, device=device, plugins=plugin or ())) for p in (detector, recognizer)]
        characters = None if labels is None else read_labels(labels)
        reader = TextReader(*runners, size=parse_size(size), characters=characters)
        wishes = _Wishes(source, detector, out, show_table, as_json, save_video, size, 1, device, plugin)
        _report(reader.stream(source), runners[0], "ocr", wishes)


def _run(task: str | None, wishes: _Wishes, **options: Any) -> None:
    from .. import vision
    from ..predictor import load

    with load(wishes.model, device=wishes.device, plugins=wishes.plugin or ()) as runner:
        names = None if wishes.labels is None else dict(enumerate(read_labels(wishes.labels)))
        size = None if wishes.size is None else parse_size(wishes.size)
        work = vision.task(runner, task, head=wishes.head, size=size, names=names, **options)
        chosen: dict[str, Any] = {"score_threshold": wishes.score, "iou_threshold": wishes.iou}
        work.selection = replace(work.selection, **{name: v for name, v in chosen.items() if v is not None})
        # On the CPU requests in flight only share its cores.
        depth = 1 if runner.backend.startswith("ONNX Runtime") else None
        found: Iterable[Found] = work.stream(wishes.source, batch=wishes.batch, depth=depth)
        if wishes.track:
            from ..vision.tracking import track

            found = track(found)
        _report(found, runner, str(work.head), wishes)


def _report(found: Iterable[Found], runner: Runner, what: str, wishes: _Wishes) -> None:
    """Write, print and count what comes; exit code 1 when an item failed."""
    from rich.console import Console
    from rich.table import Table

    from ..vision.draw import draw

    console = Console(stderr=wishes.as_json)  # so that --json leaves stdout to the data
    table = (
        Table("picture", "size", "found", box=None, pad_edge=False)
        if wishes.show_table and not wishes.as_json
        else None
    )
    rows: list[dict[str, Any]] = []
    failed = done = 0
    start = time.perf_counter()
    with _Writer(wishes.out, wishes.save_video) as writer:
        for item in _with_progress(found, wishes.source, console):
            row: dict[str, Any] = {"name": item.name}
            if item.error is not None or item.picture is None or item.result is None:
                failed += 1
                row["error"] = str(item.error)
                console.print(
                    f"[red]{_escape(item.name)}[/]: {_escape(str(item.error))}", highlight=False, soft_wrap=True
                )
            else:
                done += 1
                height, width = item.picture.shape[:2]
                row |= {"width": width, "height": height, "results": item.result.to_json()}
                if wishes.out is not None:
                    row["file"] = str(writer.write(item, draw(item.picture, item.result)))
                if table is not None:
                    table.add_row(_escape(item.name), f"{width}×{height}", "\n".join(_lines(row["results"])))
            if wishes.as_json:
                rows.append(row)
        seconds = time.perf_counter() - start
    if wishes.as_json:
        typer.echo(json.dumps({"backend": runner.backend, "head": what, "items": rows}, indent=2))
    if table is not None:
        console.print(table)
    rate = f", {done / seconds:.1f} pictures/s" if done else ""
    where = f"; written to {wishes.out}" if wishes.out is not None and done else ""
    console.print(
        f"{what} on {runner.backend}: {done} pictures in {seconds:.2f} s{rate}, {failed} failed{where}",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    if failed:
        raise typer.Exit(1)


def _with_progress(found: Iterable[Found], source: str, console: Any) -> Iterator[Found]:
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
    """Annotated pictures as files; the frames of a video as one video where that is wanted."""

    def __init__(self, folder: Path | None, save_video: bool) -> None:
        self.folder, self.save_video = folder, save_video
        self._video: Any = None
        self._path: Path | None = None
        self._taken: set[Path] = set()

    def write(self, item: Found, drawn: Picture) -> Path:
        from ..errors import InputError
        from ..vision.preprocess import import_cv2

        cv2 = import_cv2()
        assert self.folder is not None
        self.folder.mkdir(parents=True, exist_ok=True)
        name, _, frame = item.name.rpartition("#")
        is_frame = bool(name) and frame.isdecimal()
        stem = "".join(c if c.isalnum() or c in "._-" else "_" for c in Path(name if is_frame else item.name).stem)
        if self.save_video and is_frame:
            path = self.folder / f"{stem or 'video'}.mp4"
            if path != self._path:
                self.close()
                height, width = drawn.shape[:2]
                rate = item.frames_per_second or 25.0
                self._video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), rate, (width, height))
                if not self._video.isOpened():
                    raise InputError(f"OpenCV cannot write {str(path)!r}. Leave out --save-video for pictures.")
                self._path = path
            self._video.write(drawn)
            return path
        path = self.folder / (f"{stem}_{frame}.jpg" if is_frame else f"{stem}.jpg")
        for number in range(2, 1_000_000):  # pictures of one name from several folders
            if path not in self._taken:
                break
            path = self.folder / f"{stem}_{number}.jpg"
        self._taken.add(path)
        # Encoded first and then written, because imwrite only returns False when the disk is full.
        path.write_bytes(cv2.imencode(".jpg", drawn, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
        return path

    def close(self) -> None:
        if self._video is not None:
            self._video.release()
            self._video = None

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _lines(results: list[dict[str, Any]]) -> list[str]:
    """A few lines about one picture's results."""
    lines = []
    for row in results[:_ITEM_ROWS]:
        label = row.get("text", row.get("class", row.get("class_id", "foreground")))
        amount = f"{row['score']:.2f}" if "score" in row else f"{100 * row['share']:.1f} %"
        box = " ".join(f"{v:.0f}" for v in row["box"]) if "box" in row else ""
        lines.append(_escape(f"{label} {amount}  {box}".rstrip()))
    if len(results) > _ITEM_ROWS:
        lines.append(f"… and {len(results) - _ITEM_ROWS} more")
    return lines or ["nothing"]


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def parse_size(text: str) -> tuple[int, int]:
    """``WIDTHxHEIGHT`` as numbers. Raises InputError, showing the text."""
    from ..errors import InputError

    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise InputError(f"cannot read --size {text!r}: write WIDTHxHEIGHT, like 640x480.")
    return int(width), int(height)


def read_labels(path: Path) -> list[str]:
    """The lines of a text file. Raises InputError when it cannot be read."""
    from ..errors import InputError

    try:
        return path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the names in {str(path)!r}: {error}.") from error
