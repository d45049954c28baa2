"""The commands on a small real model in ONNX Runtime, on good and bad files."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import trtrun
from tests import models
from trtrun import demo
from trtrun.cli import app

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
    done = RUN.invoke(app, ["classify", str(pictures / "*" / "*.png"), "-m", str(brightness), "--show-table"])
    assert done.exit_code == 0
    assert "6 pictures" in done.stdout
    assert "0 failed" in done.stdout
    assert "green" in done.stdout


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


def test_eval_on_folders(brightness: Path, pictures: Path) -> None:
    done = RUN.invoke(app, ["eval", str(pictures), "-m", str(brightness), "--json"])
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout)["metrics"]
    assert metrics == {"top1": 1.0, "top5": 1.0, "pictures": 6, "unreadable": 0}


def test_detect_finds_faces(tmp_path: Path) -> None:
    source = tmp_path / "group.png"
    cv2.imwrite(str(source), demo.pictures()["group"])
    import onnx

    model = onnx.load(demo.model_path())
    for axis, size in enumerate((1, 3, 640, 640)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    for output in model.graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
        for axis in (2, 3):
            output.type.tensor_type.shape.dim[axis].dim_value = 160
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "faces.onnx")
    done = RUN.invoke(app, ["detect", str(source), "-m", str(tmp_path / "faces.onnx"), "--json"])
    assert done.exit_code == 0, done.output
    (item,) = json.loads(done.stdout)["items"]
    assert [row["class"] for row in item["results"]] == ["face"] * 3
    again = RUN.invoke(app, ["detect", str(source), "-m", str(tmp_path / "faces.onnx"), "--json", "--score", "0.999"])
    assert json.loads(again.stdout)["items"][0]["results"] == []


def test_ocr_says_what_is_no_text_detector(brightness: Path, pictures: Path) -> None:
    arguments = ["--detector", str(brightness), "--recognizer", str(brightness), "--json"]
    done = RUN.invoke(app, ["ocr", str(pictures / "red"), *arguments])
    assert done.exit_code == 1
    assert isinstance(done.exception, trtrun.TrtrunError | SystemExit)
    assert "recognizer" in f"{done.exception}{done.output}"


@pytest.mark.parametrize("command", ["detect", "classify", "segment", "pose", "ocr", "eval"])
def test_every_command_has_help(command: str) -> None:
    assert RUN.invoke(app, [command, "--help"]).exit_code == 0
