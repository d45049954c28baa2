from __future__ import annotations

import numpy as np
import pytest

import trtrun
from trtrun import demo
from trtrun.vision.preprocess import Picture, Preprocessing, letterbox


def bilinear(picture: Picture, width: int, height: int) -> np.ndarray:
    """Bilinear interpolation with half-pixel centres and replicated edges, straight from its definition."""

    def taps(size: int, source: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        centre = (np.arange(size) + 0.5) * source / size - 0.5
        low = np.floor(centre).astype(int)
        return np.clip(low, 0, source - 1), np.clip(low + 1, 0, source - 1), centre - low

    top, bottom, down = taps(height, picture.shape[0])
    left, right, along = taps(width, picture.shape[1])
    values = picture.astype(np.float64)
    rows = values[top] * (1 - down)[:, None, None] + values[bottom] * down[:, None, None]
    return rows[:, left] * (1 - along)[None, :, None] + rows[:, right] * along[None, :, None]


@pytest.mark.parametrize("size", [(640, 640), (320, 320), (224, 416)])
def test_letterbox_is_bilinear_with_half_pixel_centres(size: tuple[int, int]) -> None:
    for picture in demo.pictures().values():
        values, geometry = letterbox(picture, size, Preprocessing(channels="BGR", scale=1, padding=7))
        (width, height), (left, top) = geometry.resized, geometry.offset
        assert values.shape == (1, 3, size[1], size[0])
        place = np.zeros(values.shape[2:], bool)
        place[top : top + height, left : left + width] = True
        assert (values[:, :, ~place] == 7).all()
        inside = values[0, :, top : top + height, left : left + width].transpose(1, 2, 0)
        # OpenCV rounds to whole grey levels and uses fixed-point weights.
        assert np.abs(inside - bilinear(picture, width, height)).max() <= 1


def test_channels_scale_mean_and_std() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    how = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    values, _ = letterbox(picture, (32, 32), how)
    rgb = picture[..., ::-1].astype(np.float64) / 255
    np.testing.assert_allclose(values[0].transpose(1, 2, 0), (rgb - how.mean) / how.std, rtol=1e-5, atol=1e-6)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous


def test_strided_pictures_are_read_correctly() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    for view in (picture[::-1], picture[:, ::2], picture[..., ::-1], picture.transpose(1, 0, 2)):
        np.testing.assert_array_equal(letterbox(view, (64, 64))[0], letterbox(view.copy(), (64, 64))[0])


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (None, "NoneType.*cv2.imread returns None"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\]"),
        (np.zeros((8, 8, 3), np.uint16), r"uint16 \[8, 8, 3\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
    ],
)
def test_other_arrays_are_refused(picture: Picture, said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        letterbox(picture, (64, 64))
