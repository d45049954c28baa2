"""load(): a plan or an ONNX file in, the right runner out."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .plan import is_onnx_file
from .runner import Runner

if TYPE_CHECKING:
    from .building.options import BuildOptions

_LOG = logging.getLogger("trtrun")


def load(
    model: str | os.PathLike[str] | bytes,
    *,
    device: int = 0,
    plugins: Sequence[str | os.PathLike[str]] = (),
    build_options: BuildOptions | None = None,
    cuda_graph: bool = True,
) -> Runner:
    """Load a model and return what runs it; close it, or use it in a ``with`` block.

    A plan (``.engine``, ``.plan``, ``.trt``; recognised by its bytes) becomes a :class:`~trtrun.session.Session` on
    the GPU. An ONNX file is built into an engine once, cached, and then loaded like one. On a machine without a GPU
    an ONNX file runs through ONNX Runtime on the CPU instead, and a warning says so; a plan cannot run there.

    Args:
        model: the path of a plan or an ONNX file, or the bytes of a plan.
        device: ordinal of the GPU.
        plugins: paths of plugin libraries that the engine needs.
        build_options: how to build the engine when ``model`` is an ONNX file.
        cuda_graph: replay requests as CUDA graphs; see :class:`~trtrun.session.Session`.

    Raises:
        ModelFileError, PlanError, OnnxError, BuildError, MissingPackageError, NoGpuError, OutOfMemoryError,
        PluginError: what each is raised for stands in :mod:`trtrun.errors`.
    """
    from .cuda.device import gpu_count, why_no_gpu

    if isinstance(model, (bytes, bytearray, memoryview)):
        return _load_plan(model, device, plugins, cuda_graph)
    if not is_onnx_file(model):
        return _load_plan(model, device, plugins, cuda_graph)
    if gpu_count() == 0:
        from .onnx_runtime import OnnxRuntimeSession

        runner = OnnxRuntimeSession(model, input_shapes=build_options.input_shapes if build_options else None)
        _LOG.warning("%s runs on the CPU through ONNX Runtime, not on a GPU: %s.", os.fspath(model), why_no_gpu())
        return runner
    from .building.cache import cached_plan
    from .building.options import BuildOptions

    path, plan = cached_plan(model, build_options or BuildOptions())
    return _load_plan(plan, device, plugins, cuda_graph, name=os.fspath(path))


def _load_plan(
    source: Any, device: int, plugins: Sequence[str | os.PathLike[str]], cuda_graph: bool, name: str | None = None
) -> Runner:
    from .engine import Engine
    from .session import Session

    engine = Engine(source, device=device, plugins=plugins)
    engine.auto_close = True
    engine.name = name or engine.name
    try:
        return Session(engine, cuda_graph=cuda_graph)
    except BaseException:
        engine.close()
        raise
