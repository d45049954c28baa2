"""Which specialized batch sizes a batch can be run in."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from trtrun.batches import Parts, batch_parts, fastest_parts, random_rows, rows_agree
from trtrun.errors import DeviceError, OutOfMemoryError
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
        aliases={},
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


def test_outputs_that_are_written_into_inputs_are_left_alone() -> None:
    aliased = engine(8)
    aliased.aliases = {"y": "x"}
    assert parts(aliased, 5) == []


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.uint8, np.int32, np.int64, np.bool_])
def test_no_row_is_like_another(dtype: Any) -> None:
    dtype = np.dtype(dtype)
    request = np.random.default_rng(3).integers(0, 30_000, (6, 128))
    rows = random_rows(np.random.default_rng(0), dtype, request, (6, 128))
    assert rows.shape == (6, 128)
    as_stored = rows.astype(dtype).astype(np.float64)
    means = np.abs(as_stored).mean(axis=1) if dtype.kind in "fV" else as_stored.mean(axis=1)
    assert np.all(means[1:] > means[:-1])
    assert means[-1] > 2 * means[0]
    if dtype.itemsize > 1 and dtype.kind == "i":
        assert np.isin(rows, [*request.ravel(), 0, 1]).all()  # valid wherever the request's own values are


def test_integers_on_the_gpu_stay_valid_indices() -> None:
    rows = random_rows(np.random.default_rng(0), np.dtype(np.int32), object(), (4, 64))
    assert set(np.unique(rows)) == {0, 1}


def normalized(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return (x - x.mean(axis=0)) / x.std(axis=0)


@pytest.mark.parametrize("parts", [(8,), (4, 1), (1, 1, 1, 1, 1)])
@pytest.mark.parametrize("mixing", [lambda x: x - x.mean(), normalized, lambda x: x / np.abs(x).max(axis=0)])
def test_what_mixes_rows_is_noticed(mixing: Any, parts: tuple[int, ...]) -> None:
    x = random_rows(np.random.default_rng(0), np.dtype(np.float32), None, (5, 64))
    padded = np.concatenate([x, np.full((max(sum(parts) - 5, 0), 64), 1e36, np.float32)])
    pieces = np.split(padded, np.cumsum(parts)[:-1])
    with np.errstate(all="ignore"):
        assert not rows_agree(np.concatenate([mixing(piece) for piece in pieces])[:5], mixing(x))
    assert rows_agree(np.concatenate([np.tanh(piece) for piece in pieces])[:5], np.tanh(x))


def test_rows_are_judged_one_by_one() -> None:
    x = np.float32([[1000, 1000], [1, 1]])
    assert rows_agree(x * 1.01, x)
    assert not rows_agree(x + np.float32([[0, 0], [0.1, 0]]), x)  # lost in the norm of the whole
    assert not rows_agree(x[:1], x)
    assert rows_agree(np.zeros((3, 0)), np.zeros((3, 0)))


def fastest(seconds: dict[Parts | None, float | Exception], rows: Any = np.tanh) -> Parts | None:
    """Of ways that take so long, or raise, and give what ``rows`` makes of each part."""
    x = random_rows(np.random.default_rng(0), np.dtype(np.float32), None, (12, 4))

    def run(parts: Parts | None) -> tuple[float, dict[str, np.ndarray]]:
        took = seconds[parts]
        if isinstance(took, Exception):
            raise took
        pieces = np.split(np.pad(x, ((0, sum(parts) - 12), (0, 0))), np.cumsum(parts)[:-1]) if parts else [x]
        return took, {"y": np.concatenate([rows(piece) for piece in pieces])[:12]}

    return fastest_parts([parts for parts in seconds if parts], run)


@pytest.mark.parametrize(
    ("whole", "padded", "split", "expected"),
    [
        (1.0, 0.9, 0.8, (8, 8)),
        (1.0, 0.8, 0.9, (32,)),
        (1.0, 0.8, 0.79, (32,)),  # less than a measurement varies
        (1.0, 0.96, 0.96, None),
        (1.0, OutOfMemoryError("no room"), 0.8, (8, 8)),
        (1.0, 0.8, OutOfMemoryError("no room"), (32,)),
    ],
)
def test_the_fastest_way_is_taken(whole: float, padded: Any, split: Any, expected: Parts | None) -> None:
    assert fastest({None: whole, (32,): padded, (8, 8): split}) == expected


def test_rows_that_influence_each_other_stay_together() -> None:
    assert fastest({None: 1.0, (8, 8): 0.5}, lambda x: x - x.mean()) is None
    mixed_in_eights = {None: 1.0, (32,): 0.5, (8, 8): 0.6}  # what one way shows speaks against all
    assert fastest(mixed_in_eights, lambda x: x - x.mean() if len(x) == 8 else x) is None


def test_what_the_whole_batch_raises_is_raised() -> None:
    with pytest.raises(OutOfMemoryError, match="no room"):
        fastest({None: OutOfMemoryError("no room"), (8, 8): 0.5})
    with pytest.raises(DeviceError):
        fastest({None: 1.0, (8, 8): DeviceError("sticky")})
