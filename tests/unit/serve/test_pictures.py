"""Image files sent to a vision model: CenterFace on the astronaut, in a real server."""

from __future__ import annotations

import http.client
import itertools
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest

from tests import models
from tests.unit.serve.process import Server
from trtrun import demo
from trtrun.errors import InputError, RequestTooLargeError
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.serve.pictures import _answer, check_size, form_of
from trtrun.serve.repository import Repository
from trtrun.vision import Classification, detector

FACE = (174, 70, 265, 190)  # by eye, where Eileen Collins' is


def centerface() -> bytes:
    """The face detector for batches of 640 × 640."""
    model = onnx.load(demo.model_path())
    for value in model.graph.output:
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_param, dims[2].dim_value, dims[3].dim_value = "N", 640, 640
    return model.SerializeToString()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "faces.onnx").write_bytes(centerface())
    (folder / "affine.onnx").write_bytes(models.affine())
    limits = ["--max-batch-size", "4", "--max-body", "8", "--max-pixels", "4"]
    server = Server("--repository", str(folder), *limits, log=folder / "log")
    yield server
    assert server.stop() == 0


def test_the_head_that_the_server_is_told(tmp_path: Path) -> None:
    (tmp_path / "one.onnx").write_bytes(centerface())
    (tmp_path / "two.onnx").write_bytes(centerface())
    repository = Repository(
        OnnxRuntimeSession, folder=tmp_path, vision={"one": {"head": "centerface"}, "two": {"head": "yolox"}}
    )
    assert repository.load_all() == []
    assert repository.get("one").task().head.name == "centerface"
    with pytest.raises(InputError, match="'yolox'"):
        repository.get("two").task()
    repository.close()


def test_what_pictures_are_read_as_is_said_when_a_model_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("one", "two", "turned"):
        (tmp_path / f"{name}.onnx").write_bytes(centerface())
    (tmp_path / "plain.onnx").write_bytes(models.affine())
    told = onnx.load(tmp_path / "turned.onnx")
    onnx.helper.set_model_props(told, {"task": "detect"})
    onnx.save(told, tmp_path / "turned.onnx")
    asked = {"two": {"task": "classify"}, "turned": {"task": "obb"}}
    repository = Repository(OnnxRuntimeSession, folder=tmp_path, vision=asked)
    with caplog.at_level("INFO", "trtrun.serve"):
        assert repository.load_all() == []
    repository.close()
    levels = {r.getMessage(): r.levelname for r in caplog.records if "pictures" in r.getMessage()}
    said = {name: next(text for text in levels if name in text[:60]) for name in ("one", "two", "turned", "plain")}
    assert said["one"] == "one: pictures are read as centerface for detect with 1 class"
    assert [levels[text] for text in said.values()] == ["INFO", "WARNING", "WARNING", "INFO"]
    assert "cannot be read for the task 'classify', but as centerface for detect" in said["two"]
    assert "metadata says that it is for 'detect'" in said["turned"]


def test_a_model_of_any_size_is_told_one(tmp_path: Path) -> None:
    any_size = onnx.load_from_string(centerface())
    for axis in (2, 3):
        any_size.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    model = tmp_path / "faces.onnx"
    model.write_bytes(any_size.SerializeToString())
    server = Server(str(model), f"untold={model}", "--size", "faces=320x256", log=tmp_path / "log")
    status, _, body = post(server, "/v2/models/faces/predict", encoded())
    assert (status, len(json.loads(body)["results"])) == (200, 1), body
    status, _, body = post(server, "/v2/models/untold/predict", encoded())
    assert status == 400
    assert "--size MODEL=640x640" in json.loads(body)["error"]
    assert server.stop() == 0


def test_a_model_that_can_be_read_in_several_ways_is_told_its_task(tmp_path: Path) -> None:
    model, labels = tmp_path / "yolo.onnx", tmp_path / "labels.txt"
    model.write_bytes(models.small_yolo())
    labels.write_text("ant\nbee\ncat\n")
    told = ["--task", "det=detect", "--labels", f"det={labels}", "--task", "turned=obb", "--head", "turned=yolov8"]
    server = Server(*(f"{name}={model}" for name in ("det", "turned", "untold")), *told, log=tmp_path / "log")
    path = "/v2/models/{}/predict"
    status, _, body = post(server, path.format("det"), encoded())
    assert (status, json.loads(body)["task"]) == (200, "detect"), body
    assert {one["class"] for one in json.loads(body)["results"]} <= {"ant", "bee", "cat"}
    assert json.loads(server.get("/v2/models/turned/config")[1])["parameters"]["task"] == {"string_value": "obb"}
    status, _, body = post(server, path.format("untold"), encoded())
    assert status == 400
    said = json.loads(body)["error"]
    assert "detect with 3 classes; yolov8 for obb with 2 classes" in said
    assert "(--task)" in said
    assert "not pictures" not in said
    assert server.stop() == 0
    unknown = Server.refused(f"det={model}", "--task", "dett=detect")
    assert "name ['dett'], the models are ['det']" in unknown


def post(server: Server, path: str, body: bytes, **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(server.address, timeout=60)
    try:
        connection.request("POST", path, body, {key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def encoded(kind: str = ".jpg") -> bytes:
    return cv2.imencode(kind, demo.pictures()["astronaut"])[1].tobytes()


@pytest.mark.parametrize(
    ("kind", "content_type"),
    [
        *((kind, "image/anything") for kind in (".jpg", ".png", ".webp", ".bmp", ".tiff")),
        (".jpg", "application/octet-stream"),
    ],
)
def test_faces_as_json(kind: str, content_type: str, server: Server) -> None:
    status, media, body = post(server, "/v2/models/faces/predict", encoded(kind), Content_Type=content_type)
    assert (status, media) == (200, "application/json")
    found = json.loads(body)
    assert (found["task"], found["width"], found["height"]) == ("detect", 512, 512)
    with OnnxRuntimeSession(demo.model_path(), input_shapes=demo.INPUT_SHAPES) as session:
        again = cv2.imdecode(np.frombuffer(encoded(kind), np.uint8), cv2.IMREAD_COLOR)
        wanted = detector(session, size=(640, 640))(again)
    (face,) = found["results"]
    np.testing.assert_allclose(face["box"], wanted.boxes[0], atol=0.1)
    np.testing.assert_allclose(face["box"], FACE, atol=25)
    np.testing.assert_allclose(face["keypoints"], wanted.keypoints[0], atol=0.1)


@pytest.mark.parametrize(
    ("path", "accept", "magic"),
    [
        ("", "image/png", b"\x89PNG"),
        ("", "image/jpeg;q=0.9, */*", b"\xff\xd8"),
        ("?annotated=1", "*/*", b"\xff\xd8"),
        ("?annotated=1", "image/png", b"\x89PNG"),
    ],
)
def test_the_annotated_picture(path: str, accept: str, magic: bytes, server: Server) -> None:
    path = f"/v2/models/faces/versions/1/predict{path}"
    status, media, body = post(server, path, encoded(".png"), Content_Type="image/png", Accept=accept)
    assert (status, body[: len(magic)]) == (200, magic)
    assert media == ("image/png" if magic[1:] == b"PNG" else "image/jpeg")
    drawn = cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR).astype(int)
    changed = np.abs(drawn - demo.pictures()["astronaut"]).max(axis=2) > 60
    around = np.s_[FACE[1] - 40 : FACE[3] + 20, FACE[0] - 40 : FACE[2] + 20]
    assert changed[around].sum() > 500
    changed[around] = False
    assert changed.sum() < 500


def bomb(width: int, height: int) -> bytes:
    """A PNG file of a few bytes that says it is this large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("model", "body", "kind", "status", "said"),
    [
        ("faces", b"no picture", "image/jpeg", 400, "BMP, GIF, JPEG, PNG, TIFF, WEBP)."),
        ("faces", b"", "image/jpeg", 400, "no picture"),
        ("faces", encoded()[:4000], "image/jpeg", 400, "cut off"),
        ("faces", bomb(50000, 50000), "image/png", 413, "pixels"),
        ("faces", bomb(4096, 4096), "image/png", 413, "4096 × 4096 pixels"),
        ("faces", bomb(0, 7), "image/png", 400, "picture"),
        ("faces", b"x" * (9 << 20), "image/png", 413, "body is larger"),
        ("faces", encoded(), "text/plain", 415, "text/plain"),
        ("faces", encoded(), "application/x-www-form-urlencoded", 415, "With curl: curl -T picture.jpg -X POST http"),
        ("affine", encoded(), "image/jpeg", 400, "a vision model takes one batch of pictures"),
        ("nothing", encoded(), "image/jpeg", 404, "not served"),
        ("faces/versions/7", encoded(), "image/jpeg", 404, "not served"),
    ],
    ids=itertools.count(),
)
def test_what_cannot_be_answered(model: str, body: bytes, kind: str, status: int, said: str, server: Server) -> None:
    found, media, answer = post(server, f"/v2/models/{model}/predict", body, Content_Type=kind)
    assert (found, media) == (status, "application/json"), answer
    assert said in json.loads(answer)["error"]


def test_pictures_are_requests_like_any_other(server: Server) -> None:
    def count() -> int:
        return json.loads(server.get("/v2/models/faces/stats")[1])["model_stats"][0]["inference_count"]

    before = count()
    for query, status in (
        ("", 200),
        ("?priority=1&timeout=60000000", 200),
        ("?timeout=-1", 400),
        ("?annotated=2", 400),
    ):
        assert post(server, f"/v2/models/faces/predict{query}", encoded())[0] == status
    assert post(server, "/v2/models/faces/predict?priority=" + "9" * 5000, encoded())[0] == 400
    assert count() == before + 2
    config = json.loads(server.get("/v2/models/faces/config")[1])
    assert config["parameters"] == {"task": {"string_value": "detect"}}
    (why,) = json.loads(server.get("/v2/models/affine/config")[1])["parameters"].items()
    assert why[0] == "no_task"
    assert "a vision model takes one batch of pictures" in why[1]["string_value"]


def test_sizes_are_read_without_decoding() -> None:
    check_size(bomb(1000, 1000), 1_000_000)
    with pytest.raises(RequestTooLargeError, match="1000 × 1000"):
        check_size(bomb(1000, 1000), 999_999)
    with pytest.raises(InputError):
        check_size(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", 1 << 30)  # runs Ghostscript


def test_what_clients_accept() -> None:
    assert form_of("", False) == form_of("*/*", False) == form_of("text/html, */*", False) == "json"
    assert form_of("image/png, application/json", False) == "png"
    assert form_of("application/json, image/png", False) == "json"
    assert form_of("application/json", True) == form_of("image/*", False) == "jpeg"


def test_not_a_number_is_an_error_of_its_own() -> None:
    class Named:
        name, version = "m", "1"

    class Task:
        head = type("Head", (), {"task": "classify"})

    result = Classification(np.array([1]), np.float32([np.nan]), {})
    with pytest.raises(InputError, match="NaN"):
        _answer(Named(), Task(), np.zeros((2, 2, 3), np.uint8), result, "json")  # type: ignore[arg-type]
