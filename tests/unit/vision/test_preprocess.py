from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import trtrun
from trtrun import demo
from trtrun.vision.preprocess import Picture, Preprocess, prepare_reference


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
@pytest.mark.parametrize(
    "options",
    [
        {"mode": "letterbox"},
        {"mode": "letterbox", "align": "top_left"},
        {"mode": "stretch"},
        {"mode": "center_crop"},
        {"mode": "center_crop", "short_side": 256},
    ],
    ids=str,
)
def test_bilinear_with_half_pixel_centres_at_its_place(size: tuple[int, int], options: dict) -> None:
    pictures = list(demo.pictures().values())
    how = Preprocess(size, channels="BGR", scale=1, padding=7, **options)
    values, geometries = prepare_reference(pictures, how)  # pictures of different sizes in one batch
    assert values.shape == (len(pictures), 3, size[1], size[0])
    for picture, image, geometry in zip(pictures, values, geometries, strict=True):
        (width, height), (left, top) = geometry.resized, geometry.offset
        expected = np.full((size[1], size[0], 3), 7.0)
        whole = bilinear(picture, width, height)
        for y in range(size[1]):
            if 0 <= y - top < height:
                first, last = max(left, 0), min(left + width, size[0])
                expected[y, first:last] = whole[y - top, first - left : last - left]
        # OpenCV rounds to whole grey levels and uses fixed-point weights.
        assert np.abs(image.transpose(1, 2, 0) - expected).max() <= 1


def noise(*shape: int) -> Picture:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_channels_scale_mean_and_std() -> None:
    picture = noise(32, 32, 3)
    how = Preprocess((32, 32), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    values, _ = prepare_reference([picture], how)
    rgb = picture[..., ::-1].astype(np.float64) / 255
    np.testing.assert_allclose(values[0].transpose(1, 2, 0), (rgb - how.mean) / how.std, rtol=1e-6, atol=1e-7)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    nhwc, _ = prepare_reference([picture], replace(how, layout="NHWC"))
    np.testing.assert_array_equal(nhwc, values.transpose(0, 2, 3, 1))


@pytest.mark.parametrize(
    "fields",
    [
        {"scale": None},
        {"mean": "abc"},
        {"mean": 0.5},
        {"std": (1, None, 1)},
        {"scale": float("nan")},
        {"scale": (1.0, 1.0, 1.0)},
        {"padding": "7"},
        {"padding": (114, 114, 114)},
    ],
)
def test_what_is_no_number_is_refused_before_a_picture_comes(fields: dict[str, Any]) -> None:
    with pytest.raises(trtrun.InputError, match=f"^{next(iter(fields))} is (one|made of) finite number"):
        Preprocess((32, 32), **fields)


@pytest.mark.parametrize(
    ("dtype", "scale", "mean", "expected"),
    [
        ("uint8", 1.0, 0.0, [0, 1, 128, 255]),
        ("uint8", 2.0, 0.0, [0, 2, 255, 255]),
        ("int8", 1.0, 128.0, [-128, -127, 0, 127]),
        ("int8", 0.5, 0.0, [0, 0, 64, 127]),
        ("float16", 1 / 255, 0.5, [-0.5, 1 / 255 - 0.5, 128 / 255 - 0.5, 0.5]),
    ],
)
def test_dtypes(dtype: str, scale: float, mean: float, expected: list[float]) -> None:
    picture = np.repeat(np.array([0, 1, 128, 255], np.uint8).reshape(1, 4, 1), 3, axis=2)
    how = Preprocess((4, 1), scale=scale, mean=(mean,) * 3, dtype=dtype)
    values, _ = prepare_reference([picture], how)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values[0, 0, 0], np.array(expected, np.float64).astype(dtype))


def test_writes_where_it_is_told_to() -> None:
    pictures = [noise(30, 40, 3), noise(50, 20, 3)]
    for dtype in ("float32", "float16", "uint8", "int8"):
        how = Preprocess((64, 32), dtype=dtype)
        out = np.empty((2, 3, 32, 64), dtype)
        batch, _ = prepare_reference(pictures, how, out=out)
        assert batch is out
        np.testing.assert_array_equal(out, prepare_reference(pictures, how)[0])
        np.testing.assert_array_equal(out[1], prepare_reference(pictures[1:], how)[0][0])
    with pytest.raises(trtrun.InputError, match=r"out must be C-contiguous float32 \[1, 3, 32, 64\]"):
        prepare_reference(pictures[:1], Preprocess((64, 32)), out=np.empty((1, 3, 64, 32), np.float32))


def test_grey_networks() -> None:
    values, _ = prepare_reference([np.full((8, 8, 3), (255, 0, 0), np.uint8)], Preprocess((8, 8), channels="GREY"))
    assert values.shape == (1, 1, 8, 8)
    np.testing.assert_allclose(values, 29 / 255, atol=1e-6)  # ITU-R BT.601: 0.114 of blue


def test_strided_pictures_are_read_correctly() -> None:
    picture, how = noise(64, 48, 3), Preprocess((64, 64))
    for view in (picture[::-1], picture[:, ::2], picture[..., ::-1], picture.transpose(1, 0, 2)):
        np.testing.assert_array_equal(prepare_reference([view], how)[0], prepare_reference([view.copy()], how)[0])


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
        prepare_reference([picture], Preprocess((64, 64)))


def test_extreme_pictures() -> None:
    for shape in ((1, 1, 3), (20, 30000, 3), (30000, 20, 3)):
        for mode in ("letterbox", "stretch"):
            assert prepare_reference([noise(*shape)], Preprocess((64, 64), mode=mode))[0].shape == (1, 3, 64, 64)
    with pytest.raises(trtrun.InputError, match="Crop it yourself"):
        prepare_reference([noise(1, 30000, 3)], Preprocess((224, 224), mode="center_crop"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (0, 4)}, r"size is \(width, height\)"),
        ({"std": (1.0, 0.0, 1.0)}, "other than 0"),
        ({"mean": (0.5,)}, "3 means"),
        ({"padding": 300}, "0 to 255"),
        ({"short_side": 256}, "belongs to mode='center_crop'"),
    ],
)
def test_descriptions_that_conflict_are_refused(options: dict, said: str) -> None:
    with pytest.raises(trtrun.InputError, match=said):
        Preprocess(**{"size": (64, 64), **options})
