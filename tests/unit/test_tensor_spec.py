from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trtrun.errors import InputNameError, ShapeError
from trtrun.tensor_spec import ShapeRange, TensorSpec, TensorSpecs, can_cast_exactly

IMAGES = TensorSpec(
    "images",
    np.dtype(np.float32),
    (-1, 3, 224, 224),
    (ShapeRange((1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224)), ShapeRange(*[(64, 3, 224, 224)] * 3)),
)

NUMBERS = [
    "bool",
    "int8",
    "uint8",
    "int16",
    "uint16",
    "int32",
    "uint32",
    "int64",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def test_printing_shows_ranges() -> None:
    assert str(IMAGES) == (
        "images: float32 -1×3×224×224 (1×3×224×224…8×3×224×224…32×3×224×224; 64×3×224×224…64×3×224×224…64×3×224×224)"
    )
    assert str(TensorSpec("k", np.dtype(np.int64), (), location="host")) == "k: int64 scalar on the host"


def test_max_shape() -> None:
    assert IMAGES.max_shape == (64, 3, 224, 224)
    assert TensorSpec("x", np.dtype(np.int8), (2, 2)).max_shape == (2, 2)
    assert TensorSpec("x", np.dtype(np.int8), (-1,)).max_shape is None


@pytest.mark.parametrize("batch", [1, 32, 64])
def test_shapes_inside_any_profile_pass(batch: int) -> None:
    IMAGES.check_shape((batch, 3, 224, 224))


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((33, 3, 224, 224), "outside every optimization profile.*profile 0.*profile 1"),
        ((0, 3, 224, 224), "outside every"),
        ((1, 1, 224, 224), "dimension 1 must be 3, not 1"),
        ((3, 224, 224), r"batch dimension: array\[None\]"),
        ((), "rank 0"),
    ],
)
def test_shapes_outside_are_refused(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        IMAGES.check_shape(shape)


def test_specs_are_a_mapping_in_order_that_binds() -> None:
    specs = TensorSpecs([TensorSpec(name, np.dtype(np.float32), ()) for name in "cab"])
    assert list(specs) == ["c", "a", "b"]
    assert specs.bind((1, 2), {"b": 3}) == {"c": 1, "a": 2, "b": 3}
    with pytest.raises(InputNameError, match="twice"):
        specs.bind((1,), {"c": 2})
    with pytest.raises(InputNameError, match=r"missing: \['a', 'b'\]"):
        specs.check_names({"c": 3})


@given(st.sampled_from(NUMBERS), st.sampled_from(NUMBERS), st.data())
def test_what_casts_exactly_keeps_every_value(source: str, target: str, data: st.DataObject) -> None:
    if can_cast_exactly(np.dtype(source), np.dtype(target)):
        values = data.draw(hnp.arrays(source, 20))
        back = values.astype(target).astype(source)
        np.testing.assert_array_equal(back, values)


@pytest.mark.parametrize(
    ("source", "target", "exact"),
    [
        ("int64", "float64", False),
        ("int32", "float32", False),
        ("int32", "float64", True),
        ("int16", "float32", True),
        ("uint8", "float16", True),
        ("float64", "float32", False),
        ("int64", "int32", False),
        ("bool", "float32", True),
        ("float32", "float32", True),
    ],
)
def test_exact_casts(source: str, target: str, exact: bool) -> None:
    assert can_cast_exactly(np.dtype(source), np.dtype(target)) is exact


def test_extended_dtypes_cast_to_wider_ones_only() -> None:
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    assert can_cast_exactly(bfloat16, np.dtype(np.float32))
    assert not can_cast_exactly(np.dtype(np.float32), bfloat16)


@pytest.mark.parametrize(
    ("wanted", "given", "says"),
    [
        ((-1, 3, 224, 224), (1, 224, 224, 3), r"array\.transpose\(0, 3, 1, 2\)\."),
        ((-1, 224, 224, 3), (1, 3, 224, 224), r"array\.transpose\(0, 2, 3, 1\)\."),
        ((-1, 3, 224, 224), (224, 224, 3), r"array\[None\]\.transpose\(0, 3, 1, 2\)\."),
        ((-1, 3, 224, 224), (3, 224, 224), r"array\[None\]\.$"),
        ((-1, 3, 224, 224), (1, 1, 224, 224), "Resize the array"),
    ],
)
def test_channels_in_another_place_are_moved_and_not_reshaped(
    wanted: tuple[int, ...], given: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ShapeError, match=says):
        TensorSpec("x", np.dtype(np.float32), wanted).check_shape(given)


def test_a_range_out_of_order() -> None:
    for bounds in [((8, 3), (4, 3), (1, 3)), ((1,), (1, 2), (1, 2))]:
        with pytest.raises(ShapeError, match="min <= opt <= max"):
            ShapeRange(*bounds)
