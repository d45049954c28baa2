from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trtrun.vision.geometry import Geometry

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(source=SIZES, target=SIZES)
def test_the_picture_lies_centred_inside_the_input(source: tuple[int, int], target: tuple[int, int]) -> None:
    geometry = Geometry.letterbox(source, target)
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
    geometry = Geometry.letterbox(source, target)
    points = np.array(relative, np.float32) * np.array(source, np.float32)
    # fp32 keeps 24 bits of a coordinate of the input; going back multiplies its error by the scale.
    inverse = np.array(source) / np.array(geometry.resized)
    tolerance = 1e-6 * (np.array(target) * inverse + np.array(source)) * 4
    assert (np.abs(geometry.to_picture(geometry.to_input(points)) - points) <= tolerance).all()


def test_the_corners_of_the_picture_are_the_corners_of_its_place() -> None:
    geometry = Geometry.letterbox((1920, 1080), (640, 640))
    assert geometry.resized == (640, 360)
    assert geometry.offset == (0, 140)
    corners = np.array([[0, 0], [1920, 1080], [960, 540]], np.float32)
    np.testing.assert_allclose(geometry.to_input(corners), [[0, 140], [640, 500], [320, 320]])


@pytest.mark.parametrize("source", [(30000, 20), (20, 30000), (1, 1)])
def test_extreme_pictures_keep_at_least_one_pixel(source: tuple[int, int]) -> None:
    geometry = Geometry.letterbox(source, (640, 640))
    whole = np.array([[0, 0, *source]], np.float32)
    np.testing.assert_allclose(
        geometry.boxes_to_picture(geometry.to_input(whole.reshape(2, 2)).reshape(1, 4)), whole, rtol=1e-5, atol=0.01
    )


def test_boxes_are_clipped_to_the_picture() -> None:
    geometry = Geometry.letterbox((100, 50), (200, 200))
    boxes = np.array([[-10, 40, 300, 160], [20, 60, 40, 80]], np.float32)
    np.testing.assert_allclose(geometry.boxes_to_picture(boxes), [[0, 0, 100, 50], [10, 5, 20, 15]])
    assert geometry.boxes_to_picture(np.empty((0, 4), np.float32)).shape == (0, 4)


MODES = [Geometry.letterbox, Geometry.stretch, Geometry.center_crop]


@pytest.mark.parametrize("make", MODES)
@given(source=SIZES, target=SIZES)
def test_boxes_come_back_in_every_mode(make, source: tuple[int, int], target: tuple[int, int]) -> None:
    geometry = make(source, target)
    width, height = source
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height / 2]], np.float32)
    back = geometry.boxes_to_picture(geometry.boxes_to_input(boxes))
    # fp32 keeps 24 bits of the coordinates of the input, which a crop of a long picture makes large.
    tolerance = 4e-7 * (np.abs(geometry.boxes_to_input(boxes)).max() + max(geometry.target)) / geometry.scale.min()
    np.testing.assert_allclose(back, boxes, atol=max(1e-3, tolerance))


@given(source=SIZES, target=SIZES, short=st.integers(1, 600))
def test_a_crop_covers_the_input_and_is_centred(source: tuple[int, int], target: tuple[int, int], short: int) -> None:
    geometry = Geometry.center_crop(source, target, short_side=short)
    for axis in (0, 1):
        assert geometry.resized[axis] >= target[axis]
        beyond = geometry.resized[axis] - target[axis] + geometry.offset[axis]
        assert abs(beyond + geometry.offset[axis]) <= 1
        assert geometry.offset[axis] <= 0


@pytest.mark.parametrize("resolution", [1, 4])
@pytest.mark.parametrize(
    "geometry",
    [
        Geometry.letterbox((200, 120), (64, 64)),
        Geometry.letterbox((50, 120), (64, 96), align="top_left"),
        Geometry.stretch((130, 70), (64, 64)),
        Geometry.center_crop((200, 120), (64, 64), short_side=72),
    ],
    ids=str,
)
def test_maps_are_resampled_at_pixel_centres(geometry: Geometry, resolution: int) -> None:
    """A map that says at each of its pixels where in the input it is says so after mapping, too."""
    width, height = geometry.target[0] // resolution, geometry.target[1] // resolution
    grid = (np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + 0.5) * resolution
    picture = np.stack(np.meshgrid(np.arange(geometry.source[0]), np.arange(geometry.source[1])), axis=-1) + 0.5
    expected = geometry.to_input(picture.astype(np.float32))
    for axis in (0, 1):
        mapped = geometry.map_to_picture(grid[..., axis].astype(np.float32))
        limits = (resolution / 2, geometry.target[axis] - resolution / 2)  # beyond the last centre nothing is known
        np.testing.assert_allclose(mapped, np.clip(expected[..., axis], *limits), atol=resolution / 16)
    part = geometry.map_to_picture(grid[..., 0].astype(np.float32), region=(3, 5, 40, 60))
    whole = geometry.map_to_picture(grid[..., 0].astype(np.float32))
    np.testing.assert_allclose(part, whole[5:60, 3:40], atol=resolution / 16)
