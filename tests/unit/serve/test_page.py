"""The web page, driven in a real browser: a picture is dropped, and its faces are marked."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests import models
from tests.unit.serve.process import Server
from tests.unit.serve.test_pictures import FACE, centerface, encoded

# What a person does who lets a file go over the page, or pastes one.
TRANSFER = """([data, name, type, kind]) => {
  const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const how = { dataTransfer: transfer, clipboardData: transfer, bubbles: true, cancelable: true };
  const event = kind === "drop" ? new DragEvent("drop", how) : new ClipboardEvent("paste", how);
  document.getElementById("drop").dispatchEvent(event);
}"""
# The canvas as a person sees it, whatever its size.
PIXELS = """() => new Promise(resolve => document.getElementById("canvas").toBlob(blob => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result.split(",")[1]);
  reader.readAsDataURL(blob);
}, "image/png"))"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "faces.onnx").write_bytes(centerface())
    (folder / "affine.onnx").write_bytes(models.affine())
    served = [f"{name}={folder / name}.onnx" for name in ("faces", "affine")]
    server = Server(*served, "--max-pixels", "1", log=folder / "log")
    yield server
    assert server.stop() == 0


@pytest.fixture
def page(browser: Any, server: Server) -> Iterator[Any]:
    page = browser.new_page(viewport={"width": 1280, "height": 1050})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("#model option", state="attached", timeout=15_000)
    yield page
    assert all(url.startswith((f"http://{server.address}/", "blob:", "data:")) for url in asked), asked
    page.close()
    assert not [text for text in problems if "413" not in text], problems  # the browser notes failed requests itself


def file(name: str = "astronaut.jpg", data: bytes | None = None, kind: str = "drop") -> list[str]:
    return [base64.b64encode(encoded() if data is None else data).decode(), name, "image/jpeg", kind]


def wait(page: Any, condition: str) -> None:
    """Playwright's own way evaluates text inside the page, which its policy forbids."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"not within 30 s: {condition}")


def canvas(page: Any) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(page.evaluate(PIXELS)), np.uint8), cv2.IMREAD_COLOR)


def test_a_dropped_picture_gets_its_boxes(page: Any, server: Server) -> None:
    assert not page.is_visible("#login")
    page.evaluate(TRANSFER, file())
    page.wait_for_selector("#results li", timeout=30_000)
    assert page.locator("#results li").count() == 1
    assert page.locator("#found").inner_text() == "1 · detect"
    assert "512 × 512" in page.locator("#said").inner_text()
    drawn = canvas(page).astype(int)
    plain = cv2.imdecode(np.frombuffer(encoded(), np.uint8), cv2.IMREAD_COLOR)
    found = json.loads(server.get("/v2/models/faces/predict", encoded(), **{"Content-Type": "image/jpeg"})[1])
    x1, y1, x2, y2 = (round(value) for value in found["results"][0]["box"])
    for x, y in ((x1, (y1 + y2) // 2), (x2, (y1 + y2) // 2), ((x1 + x2) // 2, y2)):
        nearest = np.abs(drawn[y - 2 : y + 3, x - 2 : x + 3] - (85, 158, 31)).max(axis=2).min()
        assert nearest < 20, f"no line of the box at {x}, {y}"
    changed = np.abs(drawn - plain).max(axis=2) > 60
    around = np.s_[FACE[1] - 50 : FACE[3] + 20, FACE[0] - 40 : FACE[2] + 40]
    assert changed[around].sum() > 500
    changed[around] = False
    assert changed.sum() < 500
    for tile in ("#p50", "#p99"):
        assert "ms" in page.locator(tile).inner_text()
    page.check("#repeat")
    wait(page, "Number(document.getElementById('count').textContent) > 5")
    wait(page, "Number(document.getElementById('rate').textContent) > 0")
    if folder := os.environ.get("TRTRUN_SCREENSHOTS"):
        page.wait_for_timeout(4000)
        page.screenshot(path=f"{folder}/page.png", full_page=True)
        page.emulate_media(color_scheme="dark")
        page.screenshot(path=f"{folder}/page-dark.png", full_page=True)
        page.set_viewport_size({"width": 400, "height": 800})
        page.screenshot(path=f"{folder}/page-small.png", full_page=True)
    page.uncheck("#repeat")
    rows = page.locator("#models tr").all_inner_texts()
    assert [row.split("\t")[:3] for row in rows] == [
        ["affine · 1", "ready", "tensors"],
        ["faces · 1", "ready", "detect"],
    ]


def test_pasted_and_chosen_pictures(page: Any) -> None:
    page.evaluate(TRANSFER, file(kind="paste"))
    wait(page, "document.getElementById('count').textContent === '1'")
    page.set_input_files("#file", {"name": "a.png", "mimeType": "image/png", "buffer": encoded(".png")})
    wait(page, "document.getElementById('count').textContent === '2'")
    assert page.locator("#results li").count() == 1


def test_what_is_no_picture_is_said(page: Any, server: Server) -> None:
    def found() -> None:
        page.evaluate(TRANSFER, file())
        wait(page, "document.querySelectorAll('#results li').length === 1")

    nothing = (
        "!document.getElementById('found').textContent && !document.querySelectorAll('#results li').length"
        " && !document.getElementById('drop').classList.contains('full')"
    )
    found()
    page.evaluate(TRANSFER, file("broken.jpg", b"no picture"))
    page.wait_for_selector("#said.bad")
    assert "broken.jpg is no picture" in page.locator("#said").inner_text()
    wait(page, nothing)  # of the picture before
    found()
    page.evaluate(TRANSFER, [*file("text.txt")[:2], "text/plain", "drop"])
    wait(page, "document.getElementById('said').textContent === 'That is no picture.'")
    wait(page, nothing)
    found()
    # One that the browser shows and the server does not take: the server's own words.
    page.evaluate(TRANSFER, file("large.jpg", cv2.imencode(".jpg", np.zeros((1100, 1100, 3), np.uint8))[1].tobytes()))
    wait(page, "document.getElementById('said').textContent.includes('1100 × 1100 pixels')")
    wait(page, nothing)
    found()
    assert json.loads(server.get("/v2/health/live")[1]) == {"live": True}


def test_where_no_model_takes_pictures_the_page_says_what_there_is(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    (tmp_path / "yolo.onnx").write_bytes(models.small_yolo())
    server = Server(*(str(tmp_path / f"{name}.onnx") for name in ("affine", "yolo")), log=tmp_path / "log")
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("#none", state="visible")
    assert not page.is_visible("#model")
    assert not page.is_visible("#drop")
    assert page.locator("#empty").inner_text() == "None of the loaded models takes pictures"
    affine, yolo = page.locator("#takes li").all_inner_texts()
    assert affine.startswith("affine takes x FP32 [any, 12]")
    assert yolo.startswith("yolo takes images FP32 [any, 3, 128, 128]")
    assert "several ways" in yolo
    assert "--task" in yolo
    if folder := os.environ.get("TRTRUN_SCREENSHOTS"):
        page.screenshot(path=f"{folder}/page-none.png", full_page=True)
    for name in ("affine", "yolo"):
        assert server.get(f"/v2/repository/models/{name}/unload", b"")[0] == 200
    wait(page, "document.getElementById('empty').textContent === 'No model is loaded'")
    page.close()
    assert server.stop() == 0


def test_the_page_asks_for_the_token(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "affine.onnx").write_bytes(models.affine())
    (tmp_path / "token").write_text("secret")
    server = Server(str(tmp_path / "affine.onnx"), "--token-file", str(tmp_path / "token"), log=tmp_path / "log")
    page = browser.new_page()
    page.goto(f"http://{server.address}/")
    page.wait_for_selector("#login", state="visible")
    assert page.locator("#models tr").count() == 0
    page.wait_for_timeout(2500)
    assert server.log.read_text().count('"status": 401') == 1  # it waits for the token, and does not ask again
    page.fill("#token", "secret")
    page.press("#token", "Enter")
    page.wait_for_selector("#models tr")
    assert not page.is_visible("#login")
    page.close()
    assert server.stop() == 0


def test_the_interface_is_shown(server: Server, browser: Any) -> None:
    page = browser.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(f"http://{server.address}/docs")
    infer = page.locator("details", has_text="/v2/models/{model}/infer").first
    infer.locator("summary").click()
    assert "Content-Encoding" in infer.inner_text()
    assert '"inputs"' in infer.inner_text()
    assert page.locator("details").count() > 25
    assert not problems
    page.close()
