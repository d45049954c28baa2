"""Foreground against background: one ``alpha`` map [B, 1, h, w], as of U²-Net (Qin et al., arXiv:2005.09007)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..geometry import Geometry
from ..results import Matte

Array = np.ndarray[Any, Any]


def decode(outputs: Mapping[str, Array], geometries: Sequence[Geometry], *, normalize: bool = False) -> list[Matte]:
    """How much of each pixel of each picture is foreground.

    With ``normalize`` each map is stretched to 0 … 1 first, as U²-Net's authors do; a flat map becomes 0.
    """
    mattes = []
    for values, geometry in zip(outputs["alpha"], geometries, strict=False):
        alpha = values.reshape(values.shape[-2:]).astype(np.float32)
        if normalize:
            low, high = float(alpha.min()), float(alpha.max())
            alpha = (alpha - low) / (high - low) if high > low else np.zeros_like(alpha)
        mattes.append(Matte(np.clip(geometry.map_to_picture(alpha), 0, 1)))
    return mattes
