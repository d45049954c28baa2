"""load(): a plan or an ONNX file in, the right runner out."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

from .bundle import is_bundle, open_bundle
from .errors import BundleError, InputError, MissingPackageError, NoGpuError, PluginError, TrtrunError
from .flavor import for_plan
from .plan import is_onnx_file, read_model_file
from .runner import Runner

if TYPE_CHECKING:
    from .building.options import BuildOptions

_LOG = logging.getLogger("trtrun")


def load(
    model: str | os.PathLike[str] | bytes,
    *,
    device: int = 0,
    devices: Literal["all"] | Sequence[int] | None = None,
    plugins: Sequence[str | os.PathLike[str]] = (),
    build_options: BuildOptions | None = None,
    cuda_graph: bool = True,
    profile: int | None = None,
    split_batches: bool = False,
    engine_host_code_allowed: bool = False,
    weight_streaming_budget: int | None = None,
    trusted_key: str | os.PathLike[str] | None = None,
) -> Runner:
    """Load a model and return what runs it; close it, or use it in a ``with`` block.

    A plan (``.engine``, ``.plan``, ``.trt``; recognised by its bytes) becomes a :class:`~trtrun.session.Session` on
    the GPU. An ONNX file is built into an engine once, cached, and then loaded like one. On a machine without a GPU
    an ONNX file runs through ONNX Runtime on the CPU instead, and a warning says so; a plan cannot run there.
    A bundle (:mod:`trtrun.bundle`) gives the first of its engines that fits, or else the ONNX model inside.

    Args:
        model: the path of a plan, an ONNX file or a bundle, or the bytes of a plan.
        device: ordinal of the GPU.
        devices: ordinals of several GPUs instead, or ``"all"`` of them: the model is loaded on each, and requests are
            spread over them; see :class:`~trtrun.multi_gpu.MultiGpuRunner`. One that is named twice is loaded twice.
        plugins: paths of plugin libraries that the engine needs.
        build_options: how to build the engine when ``model`` is an ONNX file; see :class:`~trtrun.BuildOptions`.
        cuda_graph: replay requests as CUDA graphs; see :class:`~trtrun.session.Session`.
        profile: the optimization profile to use for every request; None chooses the tightest for its shapes.
        split_batches: run a batch that is larger than the engine takes in parts; see
            :class:`~trtrun.splitting.SplitRunner`. Off, it raises ShapeError, which names the range.
        engine_host_code_allowed: let the plan run code on the host; see :class:`~trtrun.engine.Engine`.
        trusted_key: an Ed25519 public key (PEM file) that a bundle must be signed with.
        weight_streaming_budget: bytes of weights that stay on the GPU; see :class:`~trtrun.engine.Engine`.

    Raises:
        ModelFileError, PlanError, OnnxError, BuildError, MissingPackageError, NoGpuError, OutOfMemoryError,
        PluginError, BundleError, InputError: what each is raised for stands in :mod:`trtrun.errors`.
    """
    from .building.options import BuildOptions

    build_options = BuildOptions.of(build_options)
    _check(device, devices, plugins, build_options.plugins)
    plan_options = {
        "plugins": plugins,
        "engine_host_code_allowed": engine_host_code_allowed,
        "weight_streaming_budget": weight_streaming_budget,
    }
    session_options = {"cuda_graph": cuda_graph, "profile": profile}

    def load_on(device: int) -> Runner:
        on_device = {**plan_options, "device": device}
        if not isinstance(model, (bytes, bytearray, memoryview)) and is_bundle(model):
            return _load_bundle(model, trusted_key, build_options, on_device, session_options)
        return _load(model, build_options, on_device, session_options)

    runner = load_on(device) if devices is None else _load_on_several(devices, load_on)
    if not split_batches:
        return runner
    from .splitting import SplitRunner

    try:
        return SplitRunner(runner)
    except BaseException:
        runner.close()
        raise


def _check(device: Any, devices: Any, plugins: Any, of_builds: Sequence[str | os.PathLike[str]]) -> None:
    """Refuse without a GPU too what could be loaded on none: there nothing else looks at these options."""
    if devices is not None and devices != "all" and (isinstance(devices, str) or not isinstance(devices, Sequence)):
        raise InputError(f'devices is {devices!r}. Pass ordinals of GPUs, like devices=[0, 1], or devices="all".')
    for ordinal in [device, *(devices if devices not in (None, "all") else ())]:
        if isinstance(ordinal, bool) or not isinstance(ordinal, Integral):
            raise InputError(f"{ordinal!r} is no ordinal of a GPU. Pass a whole number: 0 is the first, 1 the second.")
    if isinstance(plugins, (str, os.PathLike)) or not isinstance(plugins, Sequence):
        raise InputError(f"plugins is {plugins!r}. Pass a list of paths, also of one: plugins=['libmine.so'].")
    for plugin in (*plugins, *of_builds):
        if not os.path.isfile(plugin):
            raise PluginError(f"the plugin library {os.fspath(plugin)!r} does not exist. Pass the path of its file.")


def _load_on_several(devices: Literal["all"] | Sequence[int], load_on: Callable[[int], Runner]) -> Runner:
    from .cuda.device import gpu_count

    ordinals = list(devices) if devices != "all" else list(range(gpu_count()))
    if devices != "all" and not ordinals:
        raise NoGpuError('devices= names no GPU: give ordinals, like devices=[0, 1], or devices="all".')
    if gpu_count() == 0 or len(ordinals) == 1:
        return load_on(ordinals[0] if ordinals else 0)
    from .multi_gpu import MultiGpuRunner

    with ExitStack() as undo:
        runners = []
        for ordinal in ordinals:
            runners.append(load_on(ordinal))
            undo.callback(runners[-1].close)
        undo.pop_all()
    return MultiGpuRunner(runners)


def _load(
    model: str | os.PathLike[str] | bytes,
    build_options: BuildOptions,
    plan_options: dict[str, Any],
    session_options: dict[str, Any],
) -> Runner:
    from .cuda.device import gpu_count, why_no_gpu

    if isinstance(model, (bytes, bytearray, memoryview)):
        return _load_plan(model, plan_options, session_options)
    if not is_onnx_file(model):
        return _load_plan(model, plan_options, session_options)
    if gpu_count() == 0:
        runner = _load_on_cpu(model, os.fspath(model), build_options)
        _LOG.warning("%s runs on the CPU through ONNX Runtime, not on a GPU: %s.", os.fspath(model), why_no_gpu())
        return runner
    from .building.cache import cached_plan

    path, plan = cached_plan(model, build_options)
    return _load_plan(plan, plan_options, session_options, name=os.fspath(path))


def _load_bundle(
    path: str | os.PathLike[str],
    trusted_key: str | os.PathLike[str] | None,
    build_options: BuildOptions,
    plan_options: dict[str, Any],
    session_options: dict[str, Any],
) -> Runner:
    from .cuda.device import Device, gpu_count, why_no_gpu

    bundle = open_bundle(path)
    if trusted_key is not None:
        bundle.check_signature(read_model_file(trusted_key))
    reasons: list[str] = []
    if gpu_count():
        capability = ".".join(map(str, Device(plan_options["device"]).compute_capability))
        # An engine for just this GPU before those that run on many.
        for engine in sorted(bundle.engines, key=lambda engine: engine.compute_capability is None):
            if engine.compute_capability not in (None, capability):
                reasons.append(f"{engine.file} is for compute capability {engine.compute_capability}")
                continue
            try:
                for_plan(engine.plan)
            except TrtrunError as error:
                reasons.append(f"{engine.file}: {error.message}")
                continue
            name = f"{os.fspath(path)}:{engine.file}"
            runner = _load_plan(bundle.open(engine), plan_options, session_options, name, bundle.metadata)
            try:
                bundle.check_interface(engine, runner.inputs, runner.outputs)
            except BaseException:
                runner.close()
                raise
            return runner
    else:
        reasons.append(why_no_gpu())
    if bundle.onnx is None:
        raise BundleError(
            f"no engine of {os.fspath(path)} can run here, and it holds no ONNX model to build one from: "
            f"{'; '.join(reasons)}."
        )
    model = bundle.read(bundle.onnx)
    _LOG.warning("%s: its ONNX model is used, because no engine fits: %s.", os.fspath(path), "; ".join(reasons))
    if not gpu_count():
        return _load_on_cpu(model, f"{os.fspath(path)}:{bundle.onnx.file}", build_options, bundle.metadata)
    from .building.cache import cached_plan

    _, plan = cached_plan(model, build_options)
    return _load_plan(plan, plan_options, session_options, f"{os.fspath(path)}:{bundle.onnx.file}", bundle.metadata)


def _load_on_cpu(
    model: str | os.PathLike[str] | bytes,
    name: str,
    build_options: BuildOptions,
    metadata: Mapping[str, Any] | None = None,
) -> Runner:
    from .cuda.device import why_no_gpu
    from .onnx_runtime import OnnxRuntimeSession

    try:
        return OnnxRuntimeSession(model, input_shapes=build_options.input_shapes, metadata=metadata)
    except MissingPackageError as error:
        raise MissingPackageError(
            f"{name} would run through ONNX Runtime on the CPU, because {why_no_gpu()}; and {error.message}"
        ) from error


def _load_plan(
    source: Any,
    plan_options: dict[str, Any],
    session_options: dict[str, Any],
    name: str | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Runner:
    from .engine import Engine
    from .session import Session

    engine = Engine(source, **plan_options)
    engine.auto_close = True
    engine.name = name or engine.name
    if metadata:
        engine.plan = replace(engine.plan, metadata={**engine.plan.metadata, **metadata})
    try:
        return Session(engine, **session_options)
    except BaseException:
        engine.close()
        raise
