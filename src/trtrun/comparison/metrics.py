"""How far one tensor is from another, and how far it may be."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..tensor_spec import is_whole, shape_text


@dataclass(frozen=True)
class Tolerance:
    """How far a tensor may be from the reference. Every bound that is given must hold.

    The default holds for fp32 engines with TF32, whose operands have 10 bits of mantissa: 1.2e-3 was measured after two
    convolutions. Integer and boolean tensors must be equal unless ``max_abs`` allows otherwise.
    """

    l2: float | None = 1e-2  # relative L2; 1e-2 is a cosine of 0.99995
    cosine: float | None = None  # cosine similarity at least
    max_abs: float | None = None  # largest absolute difference
    max_rel: float | None = None  # largest relative difference
    atol: float = 1e-6  # a tensor with no absolute difference above this is within, whatever its relative errors

    def __str__(self) -> str:
        bounds = [
            (self.l2, "relative L2 ≤ "),
            (self.cosine, "cosine ≥ "),
            (self.max_abs, "max abs ≤ "),
            (self.max_rel, "max rel ≤ "),
        ]
        said = " and ".join(f"{title}{bound:g}" for bound, title in bounds if bound is not None)
        return f"{said or 'no bound'}, or max abs ≤ {self.atol:g}"


@dataclass(frozen=True)
class TensorError:
    """The difference of one tensor between a reference and another model.

    Numbers are computed in float64 over the elements that are finite in both; differences of integers are exact before.
    """

    name: str
    dtypes: tuple[str, str]  # of the reference, of the other
    shape: tuple[int, ...]
    max_abs: float  # max |a - b|
    max_rel: float  # max |a - b| / |a| where |a| exceeds a millionth of the largest |a|; 0 when there is none
    l2: float  # ‖a - b‖₂ / max(‖a‖₂, ‖b‖₂): 0 when equal, at most 2
    cosine: float  # a·b / (‖a‖₂ ‖b‖₂); 1 when both are zero, 0 when one is
    nonfinite: tuple[int, int]  # NaN and infinite elements of the reference, of the other
    nonfinite_differ: int  # elements that are non-finite in one only, or differently in both
    within: bool
    problem: str | None = None  # why there are no numbers: another shape, missing in one model, or nothing to compare

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def missing(name: str, problem: str) -> TensorError:
    """A tensor that cannot be compared, which is never within a tolerance."""
    return TensorError(name, ("", ""), (), 0.0, 0.0, 0.0, 0.0, (0, 0), 0, False, problem)


def tensor_error(name: str, reference: Any, other: Any, tolerance: Tolerance) -> TensorError:
    """Compare two arrays of one shape; of different shapes, the result says so in ``problem``.

    Arrays without one element that is finite in both agree on nothing, and are not within any tolerance.
    """
    reference, other = np.asarray(reference), np.asarray(other)
    if reference.shape != other.shape:
        return missing(name, f"shapes differ: {shape_text(reference.shape)} and {shape_text(other.shape)}")
    exact = is_whole(reference.dtype) and is_whole(other.dtype)
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    finite_a, finite_b = np.isfinite(a), np.isfinite(b)
    both = finite_a & finite_b
    nonfinite = (int(np.count_nonzero(~finite_a)), int(np.count_nonzero(~finite_b)))
    differ = 0
    if any(nonfinite):
        alike = both | ((~finite_a & ~finite_b) & ((a == b) | (np.isnan(a) & np.isnan(b))))
        differ = int(np.count_nonzero(~alike))
        a, b = a[both], b[both]
    max_abs = max_rel = l2 = 0.0
    cosine = 1.0
    problem = None if a.size else "it has no elements" if not reference.size else "no element is finite in both"
    if a.size:
        size_a, size_b = np.abs(a), np.abs(b)
        difference = np.abs(a - b)
        if exact and (large := np.maximum(size_a, size_b) >= 2**53).any():  # beyond which float64 skips integers
            # As Python's integers, which do not overflow where int64 meets uint64.
            whole_a, whole_b = (array.ravel()[large].astype(object) for array in (reference, other))
            difference[large] = np.abs(whole_a - whole_b)
        max_abs = float(difference.max())
        counted = size_a > 1e-6 * size_a.max()
        if counted.any():
            max_rel = float((difference[counted] / size_a[counted]).max())
        scale = max(float(size_a.max()), float(size_b.max())) or 1.0  # squares of large numbers would overflow
        norm_a, norm_b = float(np.linalg.norm(a / scale)), float(np.linalg.norm(b / scale))
        if norm_a and norm_b:
            cosine = max(-1.0, min(1.0, float((a / scale / norm_a) @ (b / scale / norm_b))))
        elif norm_a or norm_b:
            cosine = 0.0
        l2 = float(np.linalg.norm(difference / scale)) / (max(norm_a, norm_b) or 1.0)
    return TensorError(
        name,
        (reference.dtype.name, other.dtype.name),
        tuple(reference.shape),
        max_abs,
        max_rel,
        l2,
        cosine,
        nonfinite,
        differ,
        problem is None and differ == 0 and _within(max_abs, max_rel, l2, cosine, exact, tolerance),
        problem,
    )


def _within(max_abs: float, max_rel: float, l2: float, cosine: float, exact: bool, tolerance: Tolerance) -> bool:
    if not math.isfinite(max_abs):  # the difference of two finite numbers overflowed
        return False
    if exact and tolerance.max_abs is None:
        return max_abs == 0
    if exact and tolerance.max_abs is not None:
        return max_abs <= tolerance.max_abs
    if max_abs <= tolerance.atol:
        return True
    return (
        (tolerance.l2 is None or l2 <= tolerance.l2)
        and (tolerance.cosine is None or cosine >= tolerance.cosine)
        and (tolerance.max_abs is None or max_abs <= tolerance.max_abs)
        and (tolerance.max_rel is None or max_rel <= tolerance.max_rel)
    )
