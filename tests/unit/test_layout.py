from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from trtrun.layout import Layout, PackedLayout, StridedLayout

RNG = np.random.default_rng(3)


def there_and_back(layout: Layout, array: np.ndarray) -> np.ndarray:
    memory = np.full(layout.nbytes + 32, 0xA5, np.uint8)
    layout.write(memory, array)
    assert (memory[layout.nbytes :] == 0xA5).all()
    read = layout.read(memory)
    assert read.dtype == array.dtype
    assert read.shape == array.shape
    np.testing.assert_array_equal(read.view(np.uint8), np.ascontiguousarray(array).view(np.uint8))
    return memory[: layout.nbytes]


@pytest.mark.parametrize("dtype", [ml_dtypes.int4, ml_dtypes.float4_e2m1fn])
@pytest.mark.parametrize("shape", [(2, 8), (3, 5), (), (0, 4)])
def test_four_bit_values(dtype: type, shape: tuple[int, ...]) -> None:
    array = RNG.integers(-6, 7, shape).astype(dtype)
    memory = there_and_back(PackedLayout(shape, np.dtype(dtype)), np.asarray(array, dtype))
    assert memory.size == (array.size + 1) // 2


def test_the_first_of_two_is_in_the_low_half() -> None:
    memory = np.zeros(1, np.uint8)
    PackedLayout((2,), np.dtype(ml_dtypes.int4)).write(memory, np.array([1, -2], ml_dtypes.int4))
    assert memory[0] == 0xE1


def test_channels_last() -> None:
    """kHWC: no vectors, the strides of [N, H, W, C]."""
    array = RNG.standard_normal((2, 3, 4, 5)).astype(np.float32)
    memory = there_and_back(StridedLayout((2, 3, 4, 5), array.dtype, (60, 1, 15, 3)), array)
    np.testing.assert_array_equal(memory.view(np.float32), array.transpose(0, 2, 3, 1).reshape(-1))


def test_channels_last_in_vectors_of_eight() -> None:
    """kHWC8: one element of eight channels per pixel, padded with zeros."""
    array = RNG.standard_normal((2, 3, 4, 5)).astype(np.float16)
    memory = there_and_back(StridedLayout((2, 3, 4, 5), array.dtype, (20, 1, 5, 1), 1, 8), array)
    pixels = memory.view(np.float16).reshape(2, 4, 5, 8)
    np.testing.assert_array_equal(pixels[..., :3], array.transpose(0, 2, 3, 1))
    assert not pixels[..., 3:].any()


@pytest.mark.parametrize("channels", [1, 4, 6, 32, 40])
@pytest.mark.parametrize("vector", [2, 4, 32])
def test_channels_in_vectors(channels: int, vector: int) -> None:
    """kCHW2, kCHW4, kCHW32: [N, C / v, H, W, v]."""
    array = RNG.integers(-100, 100, (2, channels, 3, 5)).astype(np.int8)
    groups = -(-channels // vector)
    memory = there_and_back(StridedLayout(array.shape, array.dtype, (groups * 15, 15, 5, 1), 1, vector), array)
    lanes = memory.view(np.int8).reshape(2, groups, 3, 5, vector)
    np.testing.assert_array_equal(lanes[:, 0, :, :, 0], array[:, 0])
    if channels > vector:
        np.testing.assert_array_equal(lanes[:, 1, 2, 4, 0], array[:, vector, 2, 4])


def test_rows_with_gaps() -> None:
    array = RNG.standard_normal((3, 5)).astype(np.float32)
    there_and_back(StridedLayout((3, 5), array.dtype, (8, 1)), array)
    there_and_back(StridedLayout((0, 5), array.dtype, (8, 1)), array[:0])
