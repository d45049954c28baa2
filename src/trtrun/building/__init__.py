"""ONNX to engine: options, the builder, and the cache of engines built before."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from .builder import Progress, build_plan
from .cache import write_atomic
from .options import BuildOptions

__all__ = ["BuildOptions", "build", "build_plan"]


def build(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    check: Callable[[bytes], None] | None = None,
) -> Path:
    """Build an ONNX file into an engine file, by default beside it with the suffix ``.engine``; returns its path.

    The file is written atomically, and not at all when ``check``, which is given the engine first, raises; see
    :func:`trtrun.comparison.build_verified`. Raises what :func:`trtrun.building.builder.build_plan` raises.
    """
    path = Path(output) if output is not None else Path(model).with_suffix(".engine")
    plan = build_plan(model, options, progress=progress)
    if check is not None:
        check(plan)
    write_atomic(path, plan)
    return path
