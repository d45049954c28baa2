"""Batches between specialized sizes: the ways to run them, which is fastest, and if it gives what the batch gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Host, nbytes_of
from .errors import ExecutionError, OutOfMemoryError, ShapeError
from .tensor_spec import Shape

if TYPE_CHECKING:
    from .engine import Engine

_MAX_PARTS = 4  # more launches of a small batch never beat fewer of a large one
_FASTER = 0.95  # of the time: less is within what a measurement varies

Parts = tuple[int, ...]  # batch sizes that are run one after another; the last may be padded


def batch_parts(engine: Engine, key: tuple[Shape, ...]) -> list[Parts]:
    """Ways to run this batch in specialized batch sizes: padded up to one, or split into several.

    A specialized batch size is an optimization profile of one shape that differs from the key in the batch alone.
    Empty when there are none, when the batch has a profile of its own, and when an input or output has no batch.
    """
    inputs, outputs = engine.inputs.values(), engine.outputs.values()
    batches = {shape[0] if shape else -1 for shape in key}
    if (
        len(batches) != 1
        or engine.aliases  # the output would have to lie where its input does, part by part
        or any(spec.shape[:1] != (-1,) or spec.location == "host" or spec.format for spec in (*inputs, *outputs))
        or any(-1 in spec.shape[1:] for spec in outputs)
    ):
        return []
    (batch,) = batches
    sizes = sorted(
        low[0][0]
        for profile in range(engine.num_profiles)
        if (low := [spec.profiles[profile].min for spec in inputs]) == [spec.profiles[profile].max for spec in inputs]
        and all(a[0] == low[0][0] and a[1:] == shape[1:] for a, shape in zip(low, key, strict=True))
    )
    if batch in sizes or batch < 1:
        return []
    ways: list[Parts] = []
    larger = [size for size in sizes if size > batch]
    if larger:
        ways.append((larger[0],))
    for size in (size for size in sizes if size < batch):
        # Whole parts of one size, and the smallest that holds the rest behind them.
        whole, rest = divmod(batch, size)
        way = (size,) * whole + ((min(s for s in sizes if s >= rest),) if rest else ())
        if len(way) <= _MAX_PARTS and _aligned(engine, key, way):
            ways.append(way)
    return ways


def _aligned(engine: Engine, key: tuple[Shape, ...], parts: Parts) -> bool:
    """True when each part's rows begin at an address that TensorRT accepts: a multiple of 256 bytes."""
    rows = [nbytes_of(shape[1:], spec.dtype) for spec, shape in zip(engine.inputs.values(), key, strict=True)]
    return all(sum(parts[:index]) * row % 256 == 0 for index in range(len(parts)) for row in rows)


def fastest_parts(
    candidates: Sequence[Parts], run: Callable[[Parts | None], tuple[float, Mapping[str, Host]]]
) -> Parts | None:
    """The fastest of these ways to run a batch; None where that is the batch as a whole, or its rows are no rows.

    Args:
        run: runs the same :func:`random_rows` in these parts, or as a whole (None), and returns seconds and outputs.

    Raises what ``run`` raises for the whole; what cannot be run in parts is not faster so.
    """
    least, expected = run(None)
    best = None
    for parts in candidates:
        try:
            seconds, results = run(parts)
        except (ExecutionError, OutOfMemoryError, ShapeError):
            continue
        if not all(rows_agree(results[name], expected[name]) for name in expected):
            return None  # rows influence each other, so a batch is more than its rows
        if seconds < _FASTER * least:
            least, best = seconds, parts
    return best


def random_rows(rng: np.random.Generator, dtype: np.dtype[Any], request: Any, shape: Shape) -> Host:
    """Random values for an input in which no row is like another, so that an engine that mixes rows gives itself away.

    Floating-point rows lie in [-0.5, 1) times a scale that grows from a quarter to four along the batch. Integers may
    be indices, so they are drawn from those in the ``request`` where it is on the host, and from 0 and 1; which of
    them come often changes along the batch.
    """
    steps = (shape[0], *(1 for _ in shape[1:]))
    if dtype.kind not in "iub":
        scales = np.geomspace(0.25, 4, shape[0], dtype=np.float32)
        return (rng.random(shape, np.float32) * 1.5 - 0.5) * scales.reshape(steps)
    pool = np.arange(2)
    if dtype.kind != "b" and dtype.itemsize == 1:  # pictures, not indices
        pool = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1)
    elif dtype.kind != "b" and isinstance(request, np.ndarray):
        pool = np.unique([*request.flat[:: 1 + request.size // 4096], 0, 1])
    powers = np.geomspace(4, 0.25, shape[0]).reshape(steps)
    drawn: Host = pool[(rng.random(shape) ** powers * len(pool)).astype(np.intp)]
    return drawn


def rows_agree(actual: Host, expected: Host) -> bool:
    """True when two ways of computing a batch differ in no row by more than rounding does."""
    if actual.shape != expected.shape:
        return False
    actual, expected = (array.astype(np.float64).reshape(len(array), -1) for array in (actual, expected))
    size = np.linalg.norm(expected, axis=1)
    # The second term: a row of zeros may come out as what is zero beside the others.
    return bool(np.all(np.linalg.norm(actual - expected, axis=1) <= 2e-2 * size + 1e-6 * size.max(initial=0)))
