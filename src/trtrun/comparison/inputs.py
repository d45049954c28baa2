"""The same inputs for two models: random in a range, or the caller's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import DtypeError, InputError, InputNameError, ShapeError
from ..tensor_spec import Shape, TensorSpec, TensorSpecs, is_whole, shape_text

Range = tuple[float, float]
Arrays = dict[str, Any]


def make_inputs(
    a: TensorSpecs,
    b: TensorSpecs,
    *,
    values: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    ranges: Mapping[str, Range] | None = None,
    seed: int = 0,
) -> tuple[Arrays, Arrays, dict[str, str]]:
    """One request for each of two models, and in words where each input came from.

    Both models get the same numbers: where their dtypes differ, values are rounded to the narrower one first.

    Args:
        values: arrays by name; every other input is random.
        shapes: shapes of random inputs; needed where a dynamic dimension is not the batch and no profile tells.
        ranges: ``(low, high)`` of random inputs. Unless given, floating-point inputs are uniform in [0, 1), uint8 in
            0 to 255, other integers in 0 to 9, or to what both dtypes hold; integer bounds are inclusive.
        seed: of the random numbers; an input's numbers depend on the seed, its position and its shape only.

    Raises:
        InputNameError: the models' input names differ, or a name given is not among them.
        ShapeError: a shape does not fit, or is needed and not given. DtypeError: values do not fit one of the dtypes.
        InputError: a range is empty, or an input cannot be made up.
    """
    values, shapes, ranges = values or {}, shapes or {}, ranges or {}
    if set(a) != set(b):
        raise InputNameError(
            f"the models have different inputs, {list(a)} and {list(b)}, so one request cannot be given to both. "
            "Export both from the same source, or rename the inputs."
        )
    for given, what in ((values, "values"), (shapes, "a shape"), (ranges, "a range")):
        if unknown := sorted(set(given) - set(a)):
            raise InputNameError(f"{what} given for unknown inputs {unknown}; the models have {list(a)}.")
    for_a: Arrays = {}
    for_b: Arrays = {}
    sources: dict[str, str] = {}
    for index, (name, spec) in enumerate(a.items()):
        other = b[name]
        if is_whole(spec.dtype) != is_whole(other.dtype):
            raise DtypeError(
                f"input {name!r} is {spec.dtype.name} in one model and {other.dtype.name} in the other; "
                "no numbers mean the same in both. Export both with one dtype."
            )
        if len(spec.shape) != len(other.shape) or any(
            one != two for one, two in zip(spec.shape, other.shape, strict=True) if -1 not in (one, two)
        ):
            raise ShapeError(
                f"the models differ: input {name!r} is {shape_text(spec.shape)} in one and {shape_text(other.shape)} "
                "in the other, so one request cannot be given to both. Compare models of the same network, exported "
                "for the same sizes."
            )
        if name in values:
            array = np.asarray(values[name])
            spec.check_dtype(array.dtype)
            sources[name] = "given"
        else:
            rng = np.random.default_rng([seed, index])
            array, sources[name] = _random(spec, other, shapes.get(name), ranges.get(name), rng)
        spec.check_shape(array.shape)
        other.check_shape(array.shape)
        for dtype in (spec.dtype, other.dtype):
            _check_held(name, array, dtype)
        for_b[name] = array.astype(spec.dtype).astype(other.dtype)
        for_a[name] = for_b[name].astype(spec.dtype)
    return for_a, for_b, sources


def _check_held(name: str, array: Any, dtype: np.dtype[Any]) -> None:
    """Raise DtypeError for integers that ``dtype`` wraps around, and finite numbers that it makes infinite or NaN."""
    lost: Any = []
    if not is_whole(dtype):
        with np.errstate(over="ignore"):
            lost = array[np.isfinite(array.astype(np.float64)) & ~np.isfinite(array.astype(dtype))]
    elif array.size:
        low, high = _limits(dtype)
        lost = [value for value in (int(array.min()), int(array.max())) if not low <= value <= high]
    if len(lost):
        raise DtypeError(
            f"input {name!r} is {dtype.name} in one of the models, which does not hold {lost[0]}: that model would get "
            "another number. Give numbers that both hold, or export both models with one dtype."
        )


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and the largest integer of a dtype; 0 and 1 for booleans."""
    return (0, 1) if dtype == np.bool_ else (int(ml_dtypes.iinfo(dtype).min), int(ml_dtypes.iinfo(dtype).max))


def _random(
    spec: TensorSpec, other: TensorSpec, shape: Shape | None, bounds: Range | None, rng: np.random.Generator
) -> tuple[Any, str]:
    if "host" in (spec.location, other.location):
        raise InputError(
            f"input {spec.name!r} is a shape tensor: its values decide the shapes of others and cannot be made up. "
            "Give it: --inputs FILE.npz."
        )
    shape = _shape(spec, other) if shape is None else shape
    if min(shape, default=1) < 0:
        raise ShapeError(f"the shape {list(shape)} given for input {spec.name!r} has a negative dimension.")
    needed, there = 8 * math.prod(shape), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ShapeError(
            f"{needed:,} bytes are needed to make up input {spec.name!r} of shape {list(shape)}, and this machine has "
            f"{there:,}. Give a smaller one: --shape {spec.name}=SHAPE."
        )
    if spec.dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool), "random booleans"
    if is_whole(spec.dtype):
        limits = _limits(spec.dtype), _limits(other.dtype)
        least, most = max(low for low, _ in limits), min(high for _, high in limits)
        low, high = bounds or (0, min(255 if spec.dtype == np.uint8 else 9, most))
        if not least <= low <= high <= most or int(low) != low or int(high) != high:
            dtypes = " and ".join(sorted({spec.dtype.name, other.dtype.name}))
            raise InputError(f"the range {low:g}:{high:g} of input {spec.name!r} holds no {dtypes} numbers.")
        array: Any = rng.integers(int(low), int(high), shape, dtype=np.int64, endpoint=True)
        return array, f"random integers {low:g} to {high:g}"
    low, high = bounds or (0.0, 1.0)
    if not low <= high or not np.isfinite([low, high]).all():
        raise InputError(f"the range {low:g}:{high:g} of input {spec.name!r} is empty: write LOW:HIGH.")
    return (low + (high - low) * rng.random(shape)), f"random in [{low:g}, {high:g})"


def _shape(spec: TensorSpec, other: TensorSpec) -> Shape:
    """The shape an engine was tuned for, else the declared one with a batch of 1."""
    for candidate in (spec, other):
        if candidate.profiles:
            return candidate.profiles[0].opt
    shape = [max(sizes) for sizes in zip(spec.shape, other.shape, strict=True)]  # -1 only where both are dynamic
    if shape and shape[0] < 0:
        shape[0] = 1
    if -1 in shape:
        suggestion = "x".join(str(64 if size < 0 else size) for size in shape)
        raise ShapeError(
            f"input {spec.name!r} has dynamic dimensions beyond the batch, so its shape must be given: "
            f"--shape {spec.name}={suggestion}"
        )
    return tuple(shape)
