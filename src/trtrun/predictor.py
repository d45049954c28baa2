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
    profile: int | None = None,
    split_batches: bool = False,
    engine_host_code_allowed: bool = False,
    weight_streaming_budget: int | None = None,
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
        profile: the optimization profile to use for every request; None chooses the tightest for its shapes.
        split_batches: run a batch that is larger than the engine takes in parts; see
            :class:`~trtrun.splitting.SplitRunner`. Off, it raises ShapeError, which names the range.
        engine_host_code_allowed: let the plan run code on the host; see :class:`~trtrun.engine.Engine`.
        weight_streaming_budget: bytes of weights that stay on the GPU; see :class:`~trtrun.engine.Engine`.

    Raises:
        ModelFileError, PlanError, OnnxError, BuildError, MissingPackageError, NoGpuError, OutOfMemoryError,
        PluginError: what each is raised for stands in :mod:`trtrun.errors`.
    """
    plan_options = {
        "device": device,
        "plugins": plugins,
        "engine_host_code_allowed": engine_host_code_allowed,
        "weight_streaming_budget": weight_streaming_budget,
    }
    session_options = {"cuda_graph": cuda_graph, "profile": profile}
    runner = _load(model, build_options, plan_options, session_options)
    if not split_batches:
        return runner
    from .splitting import SplitRunner

    try:
        return SplitRunner(runner)
    except BaseException:
        runner.close()
        raise


def _load(
    model: str | os.PathLike[str] | bytes,
    build_options: BuildOptions | None,
    plan_options: dict[str, Any],
    session_options: dict[str, Any],
) -> Runner:
    from .cuda.device import gpu_count, why_no_gpu

    if isinstance(model, (bytes, bytearray, memoryview)):
        return _load_plan(model, plan_options, session_options)
    if not is_onnx_file(model):
        return _load_plan(model, plan_options, session_options)
    if gpu_count() == 0:
        from .onnx_runtime import OnnxRuntimeSession

        runner = OnnxRuntimeSession(model, input_shapes=build_options.input_shapes if build_options else None)
        _LOG.warning("%s runs on the CPU through ONNX Runtime, not on a GPU: %s.", os.fspath(model), why_no_gpu())
        return runner
    from .building.cache import cached_plan
    from .building.options import BuildOptions

    path, plan = cached_plan(model, build_options or BuildOptions())
    return _load_plan(plan, plan_options, session_options, name=os.fspath(path))


def _load_plan(
    source: Any, plan_options: dict[str, Any], session_options: dict[str, Any], name: str | None = None
) -> Runner:
    from .engine import Engine
    from .session import Session

    engine = Engine(source, **plan_options)
    engine.auto_close = True
    engine.name = name or engine.name
    try:
        return Session(engine, **session_options)
    except BaseException:
        engine.close()
        raise
