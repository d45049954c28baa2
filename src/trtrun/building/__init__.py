"""ONNX to engine: options, the builder, and the cache of engines built before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BuildError
from ..plan import header_of, model_file_error
from .builder import Progress, build_plan
from .files import check_target, write_atomic
from .header import metadata_of
from .onnx_check import check_model
from .options import BuildOptions

if TYPE_CHECKING:
    import torch

__all__ = ["BuildOptions", "build", "build_plan"]


def build(
    model: str | os.PathLike[str] | bytes | torch.nn.Module,
    output: str | os.PathLike[str] | None = None,
    *,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
    check: Callable[[bytes], None] | None = None,
    example_inputs: Sequence[Any] | None = None,
    header: bool = True,
) -> Path:
    """Build a model into an engine file and return its path.

    Args:
        model: an ONNX file, its bytes, or a ``torch.nn.Module``, which is exported with torch's exporter first.
        output: the file to write; beside an ONNX file, with the suffix ``.engine``, unless given.
        options: see :class:`BuildOptions`.
        progress: called with the builder's phase, the steps done in it and its steps in all.
        check: is given the engine before it is written, and may raise.
        example_inputs: for a torch module: one tensor per argument of ``forward``, its batch larger than 1.
        header: write the ONNX file's metadata in front of the plan, as Ultralytics does, where tasks of vision read it
            (``task``, ``names``, ``imgsz``, …). trtrun and Ultralytics read such a file; trtexec and TensorRT's own
            runtime take the plan alone, without a header.

    The file is written atomically, and not at all when ``check``, which is given the engine first, raises; see
    :func:`trtrun.comparison.build_verified`. Raises what :func:`trtrun.building.builder.build_plan` raises, and
    BuildError, before anything is built, for an output that is the model or its external data, or no regular file.
    """
    options = BuildOptions.of(options)
    if not isinstance(model, (str, os.PathLike, bytes)):
        if example_inputs is None:
            raise BuildError(
                f"to build a {type(model).__name__}, give example_inputs: a tensor per argument of forward."
            )
        from .torch_export import export_module

        model = export_module(model, example_inputs)
    if output is None and isinstance(model, bytes):
        raise BuildError("a model that is not a file needs the path of the engine: build(model, 'model.engine').")
    if not isinstance(model, bytes) and os.path.isdir(model):
        raise model_file_error(model, IsADirectoryError())
    path = Path(output) if output is not None else Path(os.fspath(model)).with_suffix(".engine")  # type: ignore[arg-type]
    if not isinstance(model, bytes):
        check_target(path, [model, *(check_model(model) if path.exists() else ())])
    else:
        check_target(path)
    check_model(model)
    front = header_of(metadata_of(model)) if header else b""  # before: what is built is what it was read from
    plan = front + build_plan(model, options, progress=progress)
    if check is not None:
        check(plan)
    write_atomic(path, plan)
    return path
