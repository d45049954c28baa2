"""Where pictures come from: files, folders, videos, cameras, arrays; decoded ahead, one item at a time."""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any, Literal

import numpy as np

from ..errors import InputError, TrtrunError
from .decoding import Decode, decode_jpeg, frames, is_jpeg, require
from .preprocess import NV12, Picture, import_cv2, import_pillow

Source = Any  # see read()

PICTURE_SUFFIXES = frozenset(
    [".avif", ".bmp", ".dib", ".exr", ".gif", ".hdr", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm",
     ".ppm", ".tif", ".tiff", ".webp"]
)  # fmt: skip
VIDEO_SUFFIXES = frozenset(
    [".avi", ".flv", ".m4v", ".mjpeg", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv", ".y4m"]
)
_STREAMS = ("rtsp://", "rtsps://", "rtmp://", "udp://")
_TIFFS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the latter two beyond 4 GB
# Kind, width, height and the largest value of a PGM or PPM file, between which comments may stand.
_PNM = re.compile(rb"P([2356])" + rb"(?:\s|#[^\n]*\n)+(\d{1,6})" * 3 + rb"\s")
_AHEAD = 8  # pictures that wait decoded: 50 MB of 1080p ones


@dataclass(frozen=True)
class Item:
    """One picture of a source, BGR uint8 [H, W, 3] or NV12, or why there is none."""

    name: str  # the path; for a frame of a video with #NUMBER behind it
    picture: Picture | NV12 | None
    error: Exception | None = None
    frames_per_second: float | None = None  # of a video or a camera


Allocate = Callable[[int, int], Picture]  # height, width -> an uninitialised picture


def read(source: Source | Iterable[Item], *, empty: Allocate | None = None, decode: Decode = "CPU") -> Iterator[Item]:
    """The pictures of a source in order, decoded ahead in threads.

    Args:
        source: the path of a picture or a video, a folder of pictures, a glob; the number of a camera; an address
            (rtsp, rtmp, udp); a NumPy array, BGR [H, W, 3] or grey [H, W], also with alpha or of 16 bits; NV12; a PIL
            image; a torch tensor, RGB [3, H, W] uint8 or from 0 to 1; a sequence of any of these; or items themselves.
        empty: what gives the memory that pictures and the frames of a video come in; None leaves it to OpenCV.
        decode: "GPU" decodes JPEG files with nvImageCodec and video files, as NV12, with PyNvVideoCodec. OpenCV decodes
            what is of another kind.

    Pictures come as people see them: turned as their EXIF data say, grey and CMYK as colours, the upper 8 of 16 bits.
    Alpha is dropped, as data loaders do. A file that is empty, corrupt or cut off, and a camera that cannot be read,
    become items with an error, and the rest goes on. Raises InputError for a source that does not exist, and
    MissingPackageError where the packages to decode it are missing.
    """
    if isinstance(source, Iterator):
        require(decode, videos=False)
        return _items(source, empty, decode)
    entries = _entries(source)
    require(
        decode,
        pictures=any(isinstance(entry, Path) for entry in entries),
        videos=any(isinstance(entry, _Video) and entry.is_file for entry in entries),
    )
    if any(isinstance(entry, (Path, _Video)) for entry in entries):
        import_cv2()  # once, here: later its error would be each picture's
    return _decoded(entries, empty, decode)


def length(source: Source) -> int | None:
    """How many pictures a source has; None where only reading it will tell. Raises what :func:`read` raises."""
    entries = _entries(source)
    return None if any(isinstance(entry, _Video) for entry in entries) else len(entries)


def files(source: Source) -> list[Path]:
    """The files that a source is read from. Raises what :func:`read` raises."""
    videos = [
        Path(str(entry.address)) if isinstance(entry, _Video) and entry.is_file else entry for entry in _entries(source)
    ]
    return [entry for entry in videos if isinstance(entry, Path)]


def encodable(name: str) -> bool:
    """Whether this is text: other file names come with surrogates, on which OpenCV's video functions crash."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _entries(source: Source) -> list[Any]:
    """What the source consists of: paths of pictures, videos (as _Video), arrays."""
    if isinstance(source, (str, os.PathLike)):
        return _paths(os.fspath(source))
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool):
        return [_Video(int(source), f"camera {source}")]
    if isinstance(source, np.ndarray) and source.ndim == 4:
        return list(source)
    if isinstance(source, (np.ndarray, NV12)) or _is_pil(source) or _is_torch(source):
        if _is_torch(source) and source.ndim == 4:
            return list(source)
        return [source]
    if isinstance(source, Sequence) and not isinstance(source, (bytes, bytearray, memoryview)):
        return [entry for part in source for entry in _entries(part)]
    raise InputError(
        f"cannot read pictures from a {type(source).__name__}. Pass a path, glob, folder, camera number, address, "
        "NumPy array, PIL image, torch tensor, or a sequence of these."
    )


def _paths(text: str) -> list[Any]:
    if text.isdecimal() and not os.path.exists(text):
        return [_Video(int(text), f"camera {text}")]
    if text.lower().startswith(_STREAMS):
        return [_Video(text, text)]
    if re.match(r"(?i)https?://", text):
        raise InputError(f"{text} is not downloaded. Fetch it first, or give an rtsp address.")
    path = Path(text)
    if path.is_dir():
        found: list[Path] = sorted(
            (entry for entry in path.iterdir() if entry.suffix.lower() in PICTURE_SUFFIXES | VIDEO_SUFFIXES),
            key=lambda entry: natural_key(entry.name),
        )
        if not found:
            raise InputError(f"there is no picture or video in the folder {text!r}. Give a glob for those below it.")
    elif path.exists():
        found = [path]
    else:
        found = [
            Path(name) for name in sorted(glob.glob(text, recursive=True), key=natural_key) if os.path.isfile(name)
        ]
        if not found:
            raise InputError(f"there is no file {text!r}, nor anything that matches it.")
    return [_Video(str(p), str(p)) if p.suffix.lower() in VIDEO_SUFFIXES else p for p in found]


def natural_key(name: str) -> list[Any]:
    """Sorts frame2 before frame10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name)]


def _items(source: Iterator[Any], empty: Allocate | None, decode: Decode) -> Iterator[Item]:
    for index, entry in enumerate(source):
        yield entry if isinstance(entry, Item) else _load(entry, f"picture {index}", empty, decode)


def _decoded(entries: Sequence[Any], empty: Allocate | None, decode: Decode) -> Iterator[Item]:
    """Items in the order of the entries, up to ``_AHEAD`` of them decoded before they are asked for."""
    waiting: deque[Future[Item] | _Video] = deque()
    numbered = iter(enumerate(entries))
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="trtrun-decode") as threads:
        try:
            while True:
                while len(waiting) < _AHEAD and (following := next(numbered, None)) is not None:
                    index, entry = following
                    name = str(entry) if isinstance(entry, Path) else f"picture {index}"
                    video = isinstance(entry, _Video)
                    waiting.append(entry if video else threads.submit(_load, entry, name, empty, decode))
                if not waiting:
                    return
                first = waiting.popleft()
                if isinstance(first, _Video):
                    yield from first.items(empty, decode)
                else:
                    yield first.result()
        finally:
            for pending in waiting:
                if isinstance(pending, Future):
                    pending.cancel()


def _load(entry: Any, name: str, empty: Allocate | None, decode: Decode) -> Item:
    try:
        if isinstance(entry, (str, os.PathLike)):
            picture = read_picture(entry, decode=decode)
            if empty is not None:  # here, in a thread that decodes ahead: OpenCV takes no memory to decode a file into
                place = empty(*picture.shape[:2])
                place[...] = picture
                picture = place
            return Item(os.fspath(entry), picture)
        return Item(name, entry if isinstance(entry, NV12) else as_picture(entry))
    except (TrtrunError, OSError) as error:  # page-locked memory that has run out is one, and costs this picture alone
        return Item(name, None, error)


def read_picture(path: str | os.PathLike[str], *, decode: Decode = "CPU") -> Picture:
    """The picture in a file. Raises InputError when there is none in it, or not all of one, and OSError."""
    return decode_picture(Path(path).read_bytes(), repr(os.fspath(path)), decode=decode)


def decode_picture(data: bytes | bytearray, name: str, *, decode: Decode = "CPU") -> Picture:
    """The picture in the bytes of a file; ``name`` is what messages call it. Raises as :func:`read_picture`.

    OpenCV decodes, but for what it decodes to other colours or another way up: TIFF files of 8 bits with alpha, which
    it multiplies with the colours, and AVIF files, which it does not turn, are Pillow's; and it takes the values of PGM
    and PPM files as they are, whatever their header says is the largest.
    """
    cv2 = import_cv2()
    if not data:
        raise InputError(f"{name} is empty: 0 bytes.")
    _check_whole(data, name)
    if decode == "GPU" and is_jpeg(data):
        return decode_jpeg(data, name)
    if (image := _left_to_pillow(data, name)) is not None:
        return _decode_with_pillow(image, name)
    largest = _unusual_maximum(data)
    try:
        picture = cv2.imdecode(
            np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | (cv2.IMREAD_ANYDEPTH if largest else 0)
        )
    except cv2.error as error:  # larger than OpenCV takes
        raise InputError(f"{name} cannot be decoded: {error.err}.") from error
    if picture is None:
        raise InputError(f"{name} ({len(data):,} bytes) is no picture that OpenCV can read, or a damaged one.")
    result: Picture = picture
    if largest:
        values = np.arange(np.iinfo(picture.dtype).max + 1)
        result = np.rint(np.minimum(values, largest) * (255 / largest)).astype(np.uint8)[picture]
    return result


def _left_to_pillow(data: bytes | bytearray, name: str) -> Any | None:
    """A TIFF file of 8 bits with alpha or an AVIF file, opened with Pillow but not decoded; None for any other.

    TIFF files of 16 bits stay with OpenCV, which leaves their colours alone.
    """
    tiff = data[:4] in _TIFFS
    if not tiff and data[4:8] != b"ftyp":
        return None
    module = import_pillow()
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        if tiff:
            header = TiffImageFile(io.BytesIO(data))  # unlike open(), of any size: OpenCV takes larger ones
            if header.mode != "RGBA" or set(header.tag_v2.get(258, ())) != {8}:
                return None
        return module.open(io.BytesIO(data), formats=("TIFF", "AVIF"))
    except (module.DecompressionBombError, module.DecompressionBombWarning) as error:
        raise InputError(f"{name} cannot be decoded: {error}") from error
    except Exception:  # Pillow raises what comes to hand for damaged files, and may lack AVIF: OpenCV decides
        return None


def _decode_with_pillow(image: Any, name: str) -> Picture:
    from PIL import ImageOps

    try:
        ImageOps.exif_transpose(image, in_place=True)
        pixels = np.asarray(image)
    except Exception as error:  # Pillow raises what comes to hand for damaged files
        raise InputError(f"{name} cannot be decoded, or is damaged: {str(error).rstrip('.')}.") from error
    return np.ascontiguousarray(pixels[..., 2::-1])


def _unusual_maximum(data: bytes | bytearray) -> int | None:
    """The value that a PGM or PPM file calls white, where OpenCV takes another for it."""
    if (header := _PNM.match(data)) is None:
        return None
    largest = int(header[4])
    plain = header[1] in b"23"  # whose values OpenCV scales up to 255 by itself
    return largest if 255 < largest < 65535 or (0 < largest < 255 and not plain) else None


def _check_whole(data: bytes | bytearray, name: str) -> None:
    """Raise InputError for a JPEG or PNG file that lacks its end, of which OpenCV would fill the rest with grey.

    What stands behind the end (the video of a Motion Photo, further pictures of an MPO file) is not looked at.
    """
    if data[:2] == b"\xff\xd8":
        found = _walk_jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        found = _walk_png(data)
    else:
        return
    if found == "cut off":
        raise InputError(f"{name} is cut off: the file ends before the picture does. Copy or download it again.")
    if found == "damaged":
        raise InputError(f"{name} is damaged: it has markers where JPEG allows none. Copy or download it again.")


_Walked = Literal["whole", "cut off", "damaged"]
# What may come behind the first scan: the tables of the next, DNL, the next, the end, application data, a comment.
_BEHIND = frozenset([0xC4, 0xCC, 0xDA, 0xDB, 0xD9, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE])


def _walk_jpeg(data: bytes | bytearray) -> _Walked:
    """From segment to segment to the end marker: those of a thumbnail, inside a segment, are not met."""
    values = np.frombuffer(data, np.uint8)
    places = np.flatnonzero(values[:-1] == 0xFF)
    codes = values[places + 1]
    # Stuffed zeros and restart markers belong to the scan, further 0xFF to the marker behind them.
    places = places[(codes != 0) & (codes != 0xFF) & (codes & 0xF8 != 0xD0)]
    place, scanned, in_scan = 2, False, False
    while (index := int(np.searchsorted(places, place))) < len(places):
        found = int(places[index])
        marker = data[found + 1]
        # Between the segments behind a scan there is nothing.
        if scanned and (marker not in _BEHIND or (not in_scan and data[place:found].strip(b"\xff"))):
            return "damaged"
        place = found + 2
        if marker == 0xD9:
            return "whole"
        if marker not in (0x01, 0xD8):  # which have no segment
            place += int.from_bytes(data[place : place + 2], "big")
        in_scan = marker == 0xDA
        scanned |= in_scan
    return "cut off"


def _walk_png(data: bytes | bytearray) -> _Walked:
    place = 8
    while place + 8 <= len(data):
        if data[place + 4 : place + 8] == b"IEND":
            return "whole"
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    return "cut off"


def as_picture(value: Any) -> Picture:
    """A NumPy array, PIL image or torch tensor as BGR uint8 [H, W, 3]. Raises InputError for anything else."""
    if _is_pil(value):
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(value)
        if upright.mode.startswith("I;16"):
            return as_picture(np.asarray(upright).astype(np.uint16))
        if upright.mode in ("I", "F"):
            raise InputError(f"a PIL image of mode {upright.mode!r} has no fixed range. Scale it to 8 bits first.")
        return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[..., ::-1])
    if _is_torch(value):
        return _from_planes(value.detach().cpu().numpy())
    if not isinstance(value, np.ndarray):
        raise InputError(f"cannot read a picture from a {type(value).__name__}.")
    array = value
    if array.dtype == np.uint16:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 2:
        array = array[..., None]
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise InputError(
            f"a picture must be [height, width], or [height, width, channels] with 1, 3 (BGR) or 4 (BGRA) channels, of "
            f"uint8 or uint16, got {value.dtype.name} {list(value.shape)}."
        )
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else array[..., :3]


def _from_planes(planes: np.ndarray[Any, Any]) -> Picture:
    """RGB or grey [C, H, W], uint8 or floats from 0 to 1."""
    if planes.ndim != 3 or planes.shape[0] not in (1, 3) or planes.dtype.kind not in "uf":
        raise InputError(
            f"a tensor must be RGB [3, H, W] or grey [1, H, W], uint8 or from 0 to 1, got {planes.dtype.name} "
            f"{list(planes.shape)}."
        )
    if planes.dtype.kind == "f":
        if planes.size and not (planes.min() >= 0 and planes.max() <= 1):  # also false for NaN
            raise InputError("a tensor of floats must lie between 0 and 1. Undo its normalization first.")
        planes = np.rint(planes * 255).astype(np.uint8)
    return as_picture(np.ascontiguousarray(planes[::-1].transpose(1, 2, 0)))


def _is_pil(value: Any) -> bool:
    return type(value).__module__.startswith("PIL.")


def _is_torch(value: Any) -> bool:
    return type(value).__module__.split(".")[0] == "torch"


class _Video:
    """A video file, camera or address, read by a thread of its own."""

    def __init__(self, address: str | int, name: str) -> None:
        self.address, self.name = address, name

    def items(self, empty: Allocate | None, decode: Decode) -> Iterator[Item]:
        ready: Queue[Item | None] = Queue(_AHEAD)
        stop = threading.Event()

        def put(item: Item | None) -> None:
            while not stop.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return
                except Full:
                    continue

        def work() -> None:
            try:
                if not encodable(self.name):
                    raise InputError(
                        f"{self.name!r} is no name in UTF-8, and videos of others cannot be opened. Rename it."
                    )
                for item in self._read_on_gpu() if decode == "GPU" and self.is_file else self._read(empty):
                    put(item)
                    if stop.is_set():
                        return
            except Exception as error:  # in its turn, like any other
                put(Item(self.name, None, error))
            put(None)

        thread = threading.Thread(target=work, name="trtrun-video", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    item = ready.get(timeout=0.5)
                except Empty:
                    if thread.is_alive():
                        continue
                    return
                if item is None:
                    return
                yield item
        finally:
            stop.set()
            thread.join()

    @property
    def is_file(self) -> bool:
        return isinstance(self.address, str) and os.path.isfile(self.address)

    def _read_on_gpu(self) -> Iterator[Item]:
        count = 0
        for frame, rate in frames(str(self.address)):
            yield Item(f"{self.name}#{count:06d}", frame, None, rate if 0 < rate < 1000 else None)
            count += 1
        if count == 0:
            yield Item(self.name, None, InputError(f"{self.name!r} ends after 0 frames."))

    def _read(self, empty: Allocate | None) -> Iterator[Item]:
        cv2 = import_cv2()
        if self.is_file and os.path.getsize(self.address) == 0:
            yield Item(self.name, None, InputError(f"{self.name!r} is empty: 0 bytes."))
            return
        capture = cv2.VideoCapture(self.address)
        try:
            if not capture.isOpened():
                why = "it is missing, damaged, in use, or of a kind that OpenCV cannot read"
                yield Item(self.name, None, InputError(f"{self.name!r} cannot be opened: {why}."))
                return
            rate = float(capture.get(cv2.CAP_PROP_FPS))
            expected = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            count = 0
            frame: Picture | None = None
            while True:
                # OpenCV takes memory of the right size, which the frame before tells, and else makes its own.
                good, frame = capture.read(None if empty is None or frame is None else empty(*frame.shape[:2]))
                if not good:
                    break
                yield Item(f"{self.name}#{count:06d}", frame, None, rate if 0 < rate < 1000 else None)
                count += 1
            # Containers may count a frame or two too many; more than that was lost.
            if count == 0 or (expected > 0 and expected - count > max(2, expected // 50)):
                of = f" of {expected}" if expected > 0 else ""
                yield Item(self.name, None, InputError(f"{self.name!r} ends after {count}{of} frames."))
        finally:
            capture.release()
