from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtrun.vision.geometry import Letterbox

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(source=SIZES, target=SIZES)
def test_the_picture_lies_centred_inside_the_input(source: tuple[int, int], target: tuple[int, int]) -> None:
    geometry = Letterbox(source, target)
    for axis in (0, 1):
        assert 1 <= geometry.resized[axis] <= target[axis]
        beyond = target[axis] - geometry.resized[axis] - geometry.offset[axis]
        assert beyond - geometry.offset[axis] in (0, 1)
    assert any(geometry.resized[axis] == target[axis] for axis in (0, 1))


@given(
    source=SIZES,
    target=SIZES,
    relative=st.lists(st.tuples(st.floats(-1, 2), st.floats(-1, 2)), min_size=1, max_size=5),
)
def test_points_come_back(
    source: tuple[int, int], target: tuple[int, int], relative: list[tuple[float, float]]
) -> None:
    geometry = Letterbox(source, target)
    points = np.array(relative, np.float32) * np.array(source, np.float32)
    # fp32 keeps 24 bits of a coordinate of the input; going back multiplies its error by the scale.
    inverse = np.array(source) / np.array(geometry.resized)
    tolerance = 1e-6 * (np.array(target) * inverse + np.array(source)) * 4
    assert (np.abs(geometry.to_picture(geometry.to_input(points)) - points) <= tolerance).all()


def test_the_corners_of_the_picture_are_the_corners_of_its_place() -> None:
    geometry = Letterbox((1920, 1080), (640, 640))
    assert geometry.resized == (640, 360)
    assert geometry.offset == (0, 140)
    corners = np.array([[0, 0], [1920, 1080], [960, 540]], np.float32)
    np.testing.assert_allclose(geometry.to_input(corners), [[0, 140], [640, 500], [320, 320]])


@pytest.mark.parametrize("source", [(30000, 20), (20, 30000), (1, 1)])
def test_extreme_pictures_keep_at_least_one_pixel(source: tuple[int, int]) -> None:
    geometry = Letterbox(source, (640, 640))
    whole = np.array([[0, 0, *source]], np.float32)
    np.testing.assert_allclose(
        geometry.boxes_to_picture(geometry.to_input(whole.reshape(2, 2)).reshape(1, 4)), whole, rtol=1e-5, atol=0.01
    )


def test_boxes_are_clipped_to_the_picture() -> None:
    geometry = Letterbox((100, 50), (200, 200))
    boxes = np.array([[-10, 40, 300, 160], [20, 60, 40, 80]], np.float32)
    np.testing.assert_allclose(geometry.boxes_to_picture(boxes), [[0, 0, 100, 50], [10, 5, 20, 15]])
    assert geometry.boxes_to_picture(np.empty((0, 4), np.float32)).shape == (0, 4)
