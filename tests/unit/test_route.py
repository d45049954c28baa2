"""Which specialized batch sizes a batch can be run in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from trtrun.route import batch_parts
from trtrun.tensor_spec import ShapeRange, TensorSpec, TensorSpecs


def engine(
    *sizes: int, row: tuple[int, ...] = (64,), output: tuple[int, ...] = (-1, 5), location: str = "device"
) -> Any:
    """What an engine says that has a range of batches and a profile of its own for each of these sizes."""
    profiles = [ShapeRange(*(((size, *row),) * 3)) for size in sizes]
    profiles.append(ShapeRange((1, *row), (8, *row), (64, *row)))
    return SimpleNamespace(
        inputs=TensorSpecs([TensorSpec("x", np.dtype(np.float32), (-1, *row), tuple(profiles))]),
        outputs=TensorSpecs([TensorSpec("y", np.dtype(np.float32), output, location=location)]),  # type: ignore[arg-type]
        num_profiles=len(profiles),
    )


def parts(engine: Any, batch: int, row: tuple[int, ...] = (64,)) -> list[tuple[int, ...]]:
    return batch_parts(engine, ((batch, *row),))


def test_padded_to_the_next_size_or_split_into_smaller_ones() -> None:
    assert parts(engine(1, 8, 32), 5) == [(8,)]  # five of one would be more parts than pay
    assert parts(engine(1, 8, 32), 9) == [(32,), (8, 1)]
    assert parts(engine(1, 8, 32), 12) == [(32,), (8, 8)]
    assert parts(engine(1, 8, 32), 40) == [(32, 8)]
    assert parts(engine(1, 8), 3) == [(8,), (1, 1, 1)]


def test_nothing_to_choose() -> None:
    assert parts(engine(1, 8, 32), 8) == []  # has a profile of its own
    assert parts(engine(), 5) == []
    assert parts(engine(8, row=(3, 32)), 5, row=(3, 64)) == []  # specialized for other rows


def test_rows_that_begin_between_aligned_addresses_are_not_split() -> None:
    assert parts(engine(1, 8, row=(12,)), 9, row=(12,)) == []  # 8 x 48 bytes


@pytest.mark.parametrize("options", [{"output": (5,)}, {"output": (-1, -1)}, {"location": "host"}])
def test_only_outputs_with_a_batch_and_nothing_else_unknown(options: Any) -> None:
    assert parts(engine(8, **options), 5) == []


def test_inputs_of_different_batches_are_left_alone() -> None:
    both = engine(8)
    assert batch_parts(both, ((5, 64), (6, 64))) == []
