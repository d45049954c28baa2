"""Class scores [B, C] of whole pictures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from ..results import Classification, Names

Array = np.ndarray[Any, Any]
Activation = Literal["auto", "softmax", "none"]


def decode(
    outputs: Mapping[str, Array], *, top: int, names: Names, activation: Activation = "auto"
) -> list[Classification]:
    """The ``top`` likeliest classes of each picture; NaN comes last.

    Args:
        outputs: the role is ``scores``, [B, C] or [B, C, 1, 1].
        activation: what makes the scores probabilities. "auto" looks at each picture's: those that are not negative
            and sum to 1 within 1 % are taken as they are, others get the softmax.
    """
    scores = outputs["scores"].reshape(len(outputs["scores"]), -1).astype(np.float32)
    if activation != "none":
        powers = np.exp(scores - np.nanmax(scores, axis=1, keepdims=True, initial=-np.finfo(np.float32).max))
        softmax = powers / np.nansum(powers, axis=1, keepdims=True)
        # Of each picture alone: one that came out as NaN must not decide for the others of its batch.
        ready = (scores >= 0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1) < 0.01)
        scores = np.where(ready[:, None] & (activation == "auto"), scores, softmax)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [Classification(row.astype(np.int64), values[row], names) for row, values in zip(ids, scores, strict=True)]
