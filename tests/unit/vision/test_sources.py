"""Real files of every kind, good and bad, through the same door."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import trtrun
from tests import models
from trtrun import vision
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.vision.preprocess import Preprocess
from trtrun.vision.sources import Item, as_picture, decode_picture, natural_key, read, read_picture
from trtrun.vision.sources import _from_planes as from_planes


@pytest.fixture
def scene() -> np.ndarray:
    """BGR: blue at the top left, red at the bottom right, grey between."""
    picture = np.full((60, 80, 3), 128, np.uint8)
    picture[:20, :30] = (255, 0, 0)
    picture[40:, 50:] = (0, 0, 255)
    return picture


def close(a: np.ndarray, b: np.ndarray, tolerance: float = 3) -> bool:
    return a.shape == b.shape and float(np.abs(a.astype(float) - b).mean()) < tolerance


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".webp", ".tiff", ".ppm"])
def test_formats(tmp_path: Path, scene: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    cv2.imwrite(str(path), scene)
    assert close(read_picture(path), scene, 8)


def test_pictures_are_turned_as_the_camera_was(tmp_path: Path, scene: np.ndarray) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(scene[..., ::-1]).save(path, exif=exif, quality=95)
    upright = np.rot90(scene, -1)
    assert close(read_picture(path), upright, 8)
    assert close(as_picture(Image.open(path)), upright, 8)


def test_grey_alpha_deep_and_print_colours(tmp_path: Path, scene: np.ndarray) -> None:
    grey = scene[..., 0]
    cv2.imwrite(str(tmp_path / "grey.png"), grey)
    assert close(read_picture(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, axis=2), 0.1)
    alpha = np.dstack([scene, np.full(scene.shape[:2], 90, np.uint8)])
    cv2.imwrite(str(tmp_path / "alpha.png"), alpha)
    assert close(read_picture(tmp_path / "alpha.png"), scene, 0.1)
    cv2.imwrite(str(tmp_path / "deep.png"), scene.astype(np.uint16) * 257)
    assert close(read_picture(tmp_path / "deep.png"), scene, 0.1)
    cv2.imwrite(str(tmp_path / "deep_grey.tiff"), grey.astype(np.uint16) * 257)
    assert close(read_picture(tmp_path / "deep_grey.tiff"), np.repeat(grey[..., None], 3, axis=2), 0.6)
    Image.fromarray(scene[..., ::-1]).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    assert close(read_picture(tmp_path / "print.jpg"), scene, 12)
    Image.fromarray(scene[..., ::-1]).quantize(8).save(tmp_path / "palette.png")
    assert close(read_picture(tmp_path / "palette.png"), scene, 12)


def encoded(picture: np.ndarray, kind: str, **options: Any) -> bytes:
    """A file as Pillow writes it, of RGB(A)."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}])
def test_alpha_of_tiff_files_is_dropped_and_not_multiplied(scene: np.ndarray, options: dict) -> None:
    rgba = np.dstack([scene[..., ::-1], np.tile(np.arange(80, dtype=np.uint8), (60, 1))])
    file = encoded(rgba, "TIFF", **options)
    decoded = decode_picture(file, "t")
    np.testing.assert_array_equal(decoded, scene)
    assert decoded.flags.c_contiguous
    exif = Image.Exif()
    exif[0x0112] = 6
    np.testing.assert_array_equal(decode_picture(encoded(rgba, "TIFF", exif=exif, **options), "t"), np.rot90(scene, -1))
    deep = cv2.imencode(".tiff", np.dstack([scene, rgba[..., 3]]).astype(np.uint16) * 257)[1].tobytes()
    np.testing.assert_array_equal(decode_picture(deep, "t"), scene)
    with pytest.raises(trtrun.InputError, match=r"^t .*damaged"):
        decode_picture(file[: len(file) // 3], "t")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_files_are_turned_as_the_camera_was(scene: np.ndarray, orientation: int) -> None:
    files = {}
    for kind in ("AVIF", "PNG"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        files[kind] = encoded(scene[..., ::-1], kind, exif=exif, quality=95)
    assert close(decode_picture(files["AVIF"], "t"), decode_picture(files["PNG"], "t"), 4)


def test_avif_without_support_in_pillow_and_damaged(scene: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    file = encoded(scene[..., ::-1], "AVIF", quality=95)
    for damaged in (file[:200], file[:-100], b"\0\0\0 ftypheic" + bytes(50)):
        with pytest.raises(trtrun.InputError, match=r"^t .*(damaged|cannot be decoded)"):
            decode_picture(damaged, "t")
    monkeypatch.setattr("PIL.AvifImagePlugin.SUPPORTED", False)
    with pytest.warns(UserWarning, match="AVIF"):
        assert close(decode_picture(file, "t"), scene, 4)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_files_larger_than_pillow_takes(scene: np.ndarray, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(trtrun.InputError, match=r"t cannot be decoded: Image size \(4800 pixels\) exceeds limit"):
        decode_picture(encoded(np.dstack([scene, scene[..., 0]]), kind), "t")
    np.testing.assert_array_equal(decode_picture(encoded(scene[..., ::-1], "TIFF"), "t"), scene)  # OpenCV's


@pytest.mark.parametrize("largest", [1, 15, 100, 255, 300, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_white_is_what_pgm_and_ppm_files_call_white(kind: int, largest: int) -> None:
    colours = 3 if kind in (3, 6) else 1
    values = np.random.default_rng(kind).integers(0, largest, (5, 7, colours), endpoint=True)
    values[0, 0] = largest
    if kind < 4:
        body = " ".join(map(str, values.flat)).encode() + b"\n"
    else:
        body = values.astype("u1" if largest < 256 else ">u2").tobytes()
    decoded = decode_picture(f"P{kind}\n# from a camera\n7 5\n#\n{largest}\n".encode() + body, "t")
    assert decoded.dtype == np.uint8
    np.testing.assert_allclose(decoded[..., ::-1], np.broadcast_to(values * 255 / largest, (5, 7, 3)), atol=1)


def test_arrays_and_images(scene: np.ndarray) -> None:
    grey = scene[..., 0]
    as_grey = np.repeat(grey[..., None], 3, axis=2)
    for value, expected in [
        (scene, scene),
        (grey, as_grey),
        (grey[..., None], as_grey),
        (np.dstack([scene, grey]), scene),
        (scene.astype(np.uint16) * 257, scene),
        (Image.fromarray(scene[..., ::-1]), scene),
        (Image.fromarray(grey), as_grey),
        (Image.fromarray(grey.astype(np.uint16) * 257), as_grey),
    ]:
        np.testing.assert_array_equal(as_picture(value), expected)
    rgb = scene[..., ::-1].transpose(2, 0, 1)
    np.testing.assert_array_equal(from_planes(rgb), scene)
    np.testing.assert_array_equal(from_planes(rgb.astype(np.float32) / 255), scene)
    for bad, said in [
        (rgb.astype(np.float32), "between 0 and 1"),
        (rgb.astype(np.float32) * np.nan, "between 0 and 1"),
        (rgb[:2], r"\[2, 60, 80\]"),
    ]:
        with pytest.raises(trtrun.InputError, match=said):
            from_planes(bad)
    for bad in (scene.astype(np.float32), np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 2), np.uint8), "x"):
        with pytest.raises(trtrun.InputError):
            as_picture(bad)


def damaged(folder: Path, scene: np.ndarray) -> dict[str, str]:
    """Files that must be reported, with what is said of each."""
    (folder / "0_empty.jpg").write_bytes(b"")
    (folder / "1_text.png").write_text("no picture")
    large = cv2.resize(scene, (800, 600), interpolation=cv2.INTER_NEAREST)
    noisy = large ^ np.random.default_rng(0).integers(0, 64, large.shape, dtype=np.uint8)
    for name, suffix in (("2_cut.jpg", ".jpg"), ("3_cut.png", ".png")):
        data = cv2.imencode(suffix, noisy)[1].tobytes()
        (folder / name).write_bytes(data[: len(data) // 2])
    (folder / "4_head.jpg").write_bytes(cv2.imencode(".jpg", noisy)[1].tobytes()[:30])
    return {
        "0_empty.jpg": "0 bytes",
        "1_text.png": "no picture",
        "2_cut.jpg": "cut off",
        "3_cut.png": "",
        "4_head.jpg": "",
    }


def test_bad_files_are_reported_and_the_rest_goes_on(tmp_path: Path, scene: np.ndarray) -> None:
    said = damaged(tmp_path, scene)
    for name in ("2_good.png", "9_good.png", "10_good.png"):
        cv2.imwrite(str(tmp_path / name), scene)
    (tmp_path / "notes.txt").write_text("not looked at")
    items = list(read(tmp_path))
    assert [Path(item.name).name for item in items] == [
        *list(said)[:3],
        "2_good.png",
        *list(said)[3:],
        "9_good.png",
        "10_good.png",
    ]
    for item in items:
        name = Path(item.name).name
        if name in said:
            assert item.picture is None
            assert said[name] in str(item.error)
            assert name in str(item.error)
        else:
            assert item.error is None
            np.testing.assert_array_equal(item.picture, scene)


def test_a_thumbnail_does_not_hide_that_the_rest_is_missing(tmp_path: Path, scene: np.ndarray) -> None:
    thumbnail = cv2.imencode(".jpg", scene)[1].tobytes()
    whole = cv2.imencode(".jpg", cv2.resize(scene, (800, 600)))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    data = whole[:2] + segment + whole[2:]
    (tmp_path / "whole.jpg").write_bytes(data + b"trailing bytes of a camera")
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) - 900])
    assert read_picture(tmp_path / "whole.jpg").shape == (600, 800, 3)
    with pytest.raises(trtrun.InputError, match="cut off"):
        read_picture(tmp_path / "cut.jpg")


def test_what_stands_behind_a_picture_is_not_looked_at(tmp_path: Path, scene: np.ndarray) -> None:
    """A Motion Photo has a video there, in which any bytes occur, markers of JPEG too."""
    noise = np.random.default_rng(0).integers(0, 256, 1 << 20, np.uint8).tobytes() + b"\xff\xda" + bytes(9)
    for suffix, options in (
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
        (".png", []),
    ):
        path = tmp_path / f"picture{suffix}"
        data = cv2.imencode(suffix, cv2.resize(scene, (800, 600)), options)[1].tobytes()
        for behind in (noise, b"\xff\xd8" + noise, data[: len(data) // 2]):
            path.write_bytes(data + behind)
            assert read_picture(path).shape == (600, 800, 3)
        for cut in (1, 12, 100, len(data) // 2, len(data) - 9):
            if (suffix, cut) == (".png", 1):  # in the checksum of the last chunk, which has nothing
                continue
            path.write_bytes(data[:-cut])
            with pytest.raises(trtrun.InputError):
                read_picture(path)


def test_a_jpeg_with_other_bytes_in_its_middle_is_damaged(tmp_path: Path, scene: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    noisy = cv2.resize(scene, (800, 600)) ^ rng.integers(0, 64, (600, 800, 3), dtype=np.uint8)
    data = bytearray(cv2.imencode(".jpg", noisy)[1].tobytes())
    data[20_000:24_096] = rng.integers(0, 256, 4096, np.uint8).tobytes()
    (tmp_path / "damaged.jpg").write_bytes(data)
    with pytest.raises(trtrun.InputError, match=r"damaged\.jpg' is (damaged|cut off)"):
        read_picture(tmp_path / "damaged.jpg")


def test_names_that_are_not_utf8(tmp_path: Path, scene: np.ndarray) -> None:
    """OpenCV's VideoCapture crashes on them; pictures are read by Python."""
    write_video(tmp_path / "clip.avi", 3)
    cv2.imwrite(str(tmp_path / "good.png"), scene)
    for name, copy in ((b"a\xff.avi", "clip.avi"), (b"b\xff.png", "good.png")):
        (tmp_path / os.fsdecode(name)).write_bytes((tmp_path / copy).read_bytes())
    items = list(read(tmp_path))
    assert [item.error is None for item in items] == [False, True, True, True, True, True]
    assert "UTF-8" in str(items[0].error)


def test_a_generator_may_fill_one_buffer_again_and_again(scene: np.ndarray) -> None:
    def frames(kind: type) -> Any:
        buffer = np.zeros((60, 80, 3) if kind is np.ndarray else (90, 80), np.uint8)
        for level in range(5):
            buffer[:] = level
            yield buffer if kind is np.ndarray else vision.NV12(buffer)

    with OnnxRuntimeSession(models.small_yolo()) as runner:
        task = vision.detector(runner)
        for batch in (1, 4):
            found = list(task.stream(frames(np.ndarray), batch=batch, depth=2))
            assert [item.picture[0, 0, 0] for item in found] == list(range(5))
            found = list(task.stream(frames(vision.NV12), batch=batch, depth=2))
            assert [item.picture.planes[0, 0] for item in found] == list(range(5))


def test_globs_lists_and_generators(tmp_path: Path, scene: np.ndarray) -> None:
    for name in ("a1.png", "a10.png", "a2.png", "b.png"):
        cv2.imwrite(str(tmp_path / name), scene)
    assert [Path(i.name).name for i in read(str(tmp_path / "a*.png"))] == ["a1.png", "a2.png", "a10.png"]
    mixed = [tmp_path / "b.png", scene, Image.fromarray(scene)]
    assert [i.name for i in read(mixed)] == [str(tmp_path / "b.png"), "picture 1", "picture 2"]
    assert [i.name for i in read(np.stack([scene, scene]))] == ["picture 0", "picture 1"]
    assert [i.name for i in read(iter([scene, Item("mine", scene)]))] == ["picture 0", "mine"]
    assert sorted(["f10", "f9", "f"], key=natural_key) == ["f", "f9", "f10"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.jpg", "no file 'nowhere.jpg'"),
        ("*.nothing", "anything that matches"),
        ("https://example.com/cat.jpg", "is not downloaded"),
        (3.5, "from a float"),
        (None, "from a NoneType"),
        (b"pics", "from a bytes"),
        (bytearray(b"12"), "from a bytearray"),
        ([None], "from a NoneType"),
    ],
)
def test_sources_that_are_none(source: object, said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        read(source)


def test_without_opencv_a_folder_has_one_error(
    tmp_path: Path, scene: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    cv2.imwrite(str(tmp_path / "a.png"), scene)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(trtrun.MissingPackageError, match="OpenCV cannot be imported"):
        read(tmp_path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(trtrun.InputError, match="no picture or video"):
        read(tmp_path)


def write_video(path: Path, frames: int) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), index * 5, np.uint8))
    writer.release()


def test_videos(tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    write_video(path, 30)
    items = list(read(path))
    assert [i.name for i in items] == [f"{path}#{index:06d}" for index in range(30)]
    assert items[0].frames_per_second == 25
    for index, item in enumerate(items):
        assert abs(float(item.picture.mean()) - index * 5) < 3
    data = path.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video")
    for name in ("cut.avi", "empty.mp4", "text.mp4"):
        last = list(read(tmp_path / name))[-1]
        assert last.picture is None, name
        assert name in str(last.error)


def test_a_stopped_reader_leaves_no_thread(tmp_path: Path, scene: np.ndarray) -> None:
    write_video(tmp_path / "clip.avi", 40)
    before = set(threading.enumerate())  # other tests' helpers stay
    for _ in range(3):
        items = read(tmp_path / "clip.avi")
        next(items)
        items.close()
        pictures = read([scene] * 50)
        next(pictures)
        pictures.close()
    assert not [t for t in set(threading.enumerate()) - before if t.name.startswith("trtrun-")]


def test_a_camera_that_is_not_there_is_reported() -> None:
    (item,) = read(97)
    assert item.picture is None
    assert "camera 97" in str(item.error)


def test_frames_are_decoded_into_memory_that_is_given(tmp_path: Path) -> None:
    write_video(tmp_path / "clip.avi", 10)
    given: list[np.ndarray] = []

    def empty(height: int, width: int) -> np.ndarray:
        given.append(np.empty((height, width, 3), np.uint8))
        return given[-1]

    items = list(read(tmp_path / "clip.avi", empty=empty))
    assert len(items) == 10
    for index, item in enumerate(items[1:], 1):
        assert np.shares_memory(item.picture, given[index - 1])
        assert abs(float(item.picture.mean()) - index * 5) < 3


def test_files_come_in_memory_that_is_given(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (20 + index, 30, 3), np.uint8) for index in range(6)]
    for index, picture in enumerate(pictures):
        cv2.imwrite(str(tmp_path / f"{index}.png"), picture)
    (tmp_path / "3.png").write_bytes(b"")
    given: list[np.ndarray] = []

    def empty(height: int, width: int) -> np.ndarray:
        given.append(np.empty((height, width, 3), np.uint8))
        return given[-1]

    items = list(read(tmp_path, empty=empty))
    assert [item.picture is None for item in items] == [False, False, False, True, False, False]
    assert len(given) == 5
    for item, picture in zip(items, pictures, strict=True):
        if item.picture is not None:
            np.testing.assert_array_equal(item.picture, picture)
            assert sum(item.picture is place for place in given) == 1


def test_memory_that_runs_out_costs_one_picture(tmp_path: Path) -> None:
    for index in range(4):
        cv2.imwrite(str(tmp_path / f"{index}.png"), np.zeros((20 + index, 30, 3), np.uint8))

    def empty(height: int, width: int) -> np.ndarray:
        if height == 22:
            raise trtrun.OutOfMemoryError("no page-locked memory is left")
        return np.empty((height, width, 3), np.uint8)

    items = list(read(tmp_path, empty=empty))
    assert [item.picture is None for item in items] == [False, False, True, False]
    assert isinstance(items[2].error, trtrun.OutOfMemoryError)


EXTREMES = [(1, 1), (20, 30_000), (30_000, 20), (1, 500), (3, 2)]


@pytest.mark.parametrize(("height", "width"), EXTREMES)
@pytest.mark.parametrize("mode", ["letterbox", "stretch"])
def test_extreme_shapes_go_through_a_task(tmp_path: Path, height: int, width: int, mode: Any) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "extreme.png"), picture)
    with OnnxRuntimeSession(models.small_yolo()) as runner:
        how = Preprocess((128, 128), mode=mode)
        task = vision.detector(runner, preprocess=how, selection=vision.Selection(score_threshold=0.01))
        (found,) = task.stream(tmp_path / "extreme.png")
        assert found.error is None
        assert isinstance(found.result, vision.Detections)
        assert (found.result.boxes <= np.array([width, height] * 2)).all()
        drawn = vision.draw(picture, found.result)
        assert drawn.shape == picture.shape


def test_every_kind_of_picture_in_one_stream(tmp_path: Path, scene: np.ndarray) -> None:
    said = damaged(tmp_path, scene)
    cv2.imwrite(str(tmp_path / "5_grey.png"), scene[..., 0])
    cv2.imwrite(str(tmp_path / "5_alpha.png"), np.dstack([scene, scene[..., 0]]))
    cv2.imwrite(str(tmp_path / "5_deep.png"), scene.astype(np.uint16) * 257)
    Image.fromarray(scene[..., ::-1]).convert("CMYK").save(tmp_path / "5_print.jpg")
    cv2.imwrite(str(tmp_path / "5_dot.png"), scene[:1, :1])
    write_video(tmp_path / "6_clip.avi", 50)
    data = (tmp_path / "6_clip.avi").read_bytes()
    (tmp_path / "7_cut.avi").write_bytes(data[: len(data) // 2])
    with OnnxRuntimeSession(models.small_yolo()) as runner:
        found = list(vision.detector(runner).stream(tmp_path, batch=3))
    failed = {Path(item.name.split("#")[0]).name for item in found if item.error is not None}
    assert failed == {*said, "7_cut.avi"}
    names = [Path(item.name.split("#")[0]).name for item in found if item.error is None]
    assert names[:5] == sorted(names[:5])
    assert names.count("6_clip.avi") == 50
    assert 0 < names.count("7_cut.avi") < 50
