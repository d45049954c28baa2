"""Engines that are kept only if they compute what their ONNX file computes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..building import BuildOptions, build
from ..building.builder import Progress
from ..cuda.device import gpu_count, why_no_gpu
from ..errors import NoGpuError, VerificationError
from ..tensor_spec import Shape
from .comparer import compare
from .inputs import Range
from .metrics import Tolerance
from .report import Comparison


def build_verified(
    model: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    tolerance: Tolerance | None = None,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    ranges: Mapping[str, Range] | None = None,
    seed: int = 0,
    device: int = 0,
    header: bool = True,
) -> tuple[Path, Comparison]:
    """Build as :func:`trtrun.build` does, and write the engine only if it agrees with ONNX Runtime.

    The engine is loaded and given one request, which :func:`trtrun.compare` describes with its arguments of the same
    names. Returns the engine's path and the comparison.

    Raises:
        NoGpuError: there is no GPU to run the engine on; raised before anything is built.
        VerificationError: an output misses the tolerance; says which, and nothing is written.
        Others as build and compare raise them.
    """
    if gpu_count() == 0:
        engine = Path(model).with_suffix(".engine") if output is None else output
        raise NoGpuError(
            f"verifying an engine means running it, and {why_no_gpu()}. Build without --verify and compare on the "
            f"machine where it will run: trtrun compare {shlex.join([os.fspath(model), os.fspath(engine)])}"
        )
    kept: list[Comparison] = []

    def check(plan: bytes) -> None:
        result = compare(
            model,
            plan,
            inputs=inputs,
            shapes=shapes,
            ranges=ranges,
            seed=seed,
            tolerance=tolerance,
            build_options=options,
            device=device,
            plugins=options.plugins if options else (),
        )
        refuse(result)
        kept.append(result)

    path = build(model, output, options=options, progress=progress, check=check, header=header)
    return path, kept[0]


def refuse(result: Comparison) -> None:
    """Raise VerificationError for a comparison that misses its tolerance, naming the outputs and the first layer."""
    if result.within:
        return
    lines = [
        f"  {o.name}: " + (o.problem or f"relative L2 {o.l2:.3g}, cosine {o.cosine:.6f}, max abs {o.max_abs:.3g}")
        for o in result.outputs
        if not o.within
    ]
    first = result.first_divergence
    where = f"The first layer that misses it is {first.layer}.\n" if first else ""
    raise VerificationError(
        f"the engine misses the tolerance ({result.tolerance}) against {result.models[0]} and was not kept:\n"
        + "\n".join(lines)
        + f"\n{where}Build with --no-tf32, keep sensitive layers in fp32, or allow more if the task does."
    )
