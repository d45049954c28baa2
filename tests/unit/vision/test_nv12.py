"""Pictures as video decoders give them, and decoding on the GPU where its packages are missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import trtrun
from tests import models
from trtrun import vision
from trtrun.onnx_runtime import OnnxRuntimeSession
from trtrun.pipeline import _nbytes
from trtrun.vision import NV12, decoding


def planes(height: int = 96, width: int = 128) -> Any:
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8), (5, 5), 2)
    flat = cv2.cvtColor(picture, cv2.COLOR_BGR2YUV_I420)
    u, v = flat[height:].reshape(2, -1)
    return np.concatenate([flat[:height].ravel(), np.stack([u, v], axis=1).ravel()]).reshape(-1, width)


def test_a_task_takes_nv12_like_the_picture_that_it_is() -> None:
    frame = NV12(planes())
    assert frame.shape == (96, 128, 3)
    bgr = cv2.cvtColor(frame.planes, cv2.COLOR_YUV2BGR_NV12)
    with OnnxRuntimeSession(models.small_yolo()) as runner:
        detect = vision.detector(runner, selection={"score_threshold": 0.6})
        expected = detect(bgr)
        assert len(expected) > 0
        for found in (detect(frame), *detect([frame, bgr]), *(item.result for item in detect.stream([frame, bgr]))):
            np.testing.assert_array_equal(found.boxes, expected.boxes)
        np.testing.assert_array_equal(vision.draw(frame, expected), vision.draw(bgr, expected))


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((3, 4), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((3, 3), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((3, 4, 3), np.uint8),
        None,
    ],
    ids=str,
)
def test_what_is_no_nv12_is_refused(bad: Any) -> None:
    with pytest.raises(trtrun.InputError, match="NV12 is uint8"):
        NV12(bad)


def test_strided_planes_are_copied() -> None:
    given = planes()
    wide = np.zeros((given.shape[0], 300), np.uint8)
    wide[:, :128] = given
    np.testing.assert_array_equal(NV12(wide[:, :128]).to_bgr(), NV12(given).to_bgr())


def test_selection_takes_some_fields() -> None:
    with OnnxRuntimeSession(models.small_yolo()) as runner:
        usual, asked = vision.detector(runner), vision.detector(runner, selection={"iou_threshold": 0.1})
        assert asked.selection == vision.Selection(usual.selection.score_threshold, 0.1)
        with pytest.raises(AttributeError):
            asked.selection = usual.selection  # type: ignore[misc]


def test_decoding_on_the_gpu_names_the_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, read in (
        ("nvidia.nvimgcodec", "picture.jpg", decoding._pictures),
        ("PyNvVideoCodec", "video.mp4", decoding._videos),
    ):
        (tmp_path / name).write_bytes(b"anything")
        monkeypatch.setitem(sys.modules, module, None)
        read.cache_clear()
        with pytest.raises(trtrun.MissingPackageError, match=rf"{module} cannot.*pip install 'trtrun\[decode\]'"):
            vision.read(tmp_path / name, decode="GPU")
    (item,) = vision.read([np.zeros((4, 4, 3), np.uint8)], decode="GPU")  # nothing to decode
    assert item.error is None
    with pytest.raises(trtrun.InputError, match="'CPU' or 'GPU'"):
        vision.read([], decode="NPU")  # type: ignore[arg-type]


def test_a_jpeg_is_known_by_its_first_bytes() -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    assert decoding.is_jpeg(cv2.imencode(".jpg", picture)[1].tobytes())
    assert not decoding.is_jpeg(cv2.imencode(".png", picture)[1].tobytes())


def test_a_request_of_nv12_has_its_bytes() -> None:
    """Large requests are tuned differently."""
    frame = NV12(np.zeros((1620, 1920), np.uint8))
    assert (
        _nbytes({"pictures": [frame, np.zeros((4, 4, 3), np.uint8)], "more": np.zeros(2, np.int64)}) == 1620 * 1920 + 64
    )
