"""ONNX to engine with TensorRT's own parser and builder, on a machine with or without a GPU."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import flavor as flavors
from ..errors import BuildError, NoGpuError, OnnxError
from ..tensor_spec import Shape, ShapeRange, to_shape
from .files import write_atomic
from .graph import prepare
from .onnx_check import check_model
from .onnx_file import model_name
from .options import BuildOptions, Profile, closest

_LOG = logging.getLogger("trtrun")
_CHANGES = logging.getLogger("trtrun.building")  # what was changed in the graph, which the command shows

Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all

# Measured on an H200: 1.6.1 runs there what it built for all GPUs, 1.7.1 refuses the GPU.
_HOPPER = (
    " TensorRT-RTX 1.6.1 is the last that runs on compute capability 9.0, and has no name for it: build with that "
    "version (pip install 'tensorrt-rtx-cu13==1.6.1.120') and without compute capabilities."
)
_EXPORT = "Export the model with a dynamic dimension there (torch.onnx.export: dynamic_shapes=…)."
_DEFAULT_BATCH = (1, 8, 32)  # min, opt, max of a batch dimension that nobody gave a range


def build_plan(
    model: str | os.PathLike[str] | bytes, options: BuildOptions | None = None, *, progress: Progress | None = None
) -> bytes:
    """Build an ONNX model into a serialized engine, as TensorRT's own runtime takes it: without metadata in front.

    Args:
        model: the path of an ONNX file, whose external data is found beside it, or the bytes of a model.
        options: profiles, target and limits.
        progress: called with the builder's phase, the steps done in it and its steps in all.

    Raises:
        ModelFileError: the path cannot be read.
        OnnxError: the model is malformed or does not parse; names each node, its operator and why.
        BuildError: the options do not fit the model, or the builder refuses the network; with its log.
        MissingPackageError: no builder is installed, or no onnx.
        NoGpuError: this builder needs a GPU and there is none.
        KeyboardInterrupt: Ctrl-C cancels the build.
    """
    options = BuildOptions.of(options)
    flavor = flavors.for_building(options.flavor)
    name = model_name(model)
    if not flavor.capabilities.can_build_without_gpu:
        from ..cuda.device import gpu_count, why_no_gpu

        if gpu_count() == 0:  # the full builder must not be called without a driver
            raise NoGpuError(
                f"{flavor.title} builds engines only on a machine with a GPU, and {why_no_gpu()}. "
                "Build there, or with TensorRT-RTX: pip install 'trtrun[rtx]'."
            )
    check_model(model)
    changed, changes = prepare(model, options, flavor.capabilities)
    for change in changes:
        _CHANGES.info("%s: %s.", name, change)
    flavor.initialize_plugins(options.plugins)
    trt = flavor.module
    with _interruptible() as interrupt, flavor.logger.capture() as lines:
        builder = trt.Builder(flavor.logger.handle)
        flags = 0
        if flavor.capabilities.has_strongly_typed_flag:
            flags |= 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(flags)
        parser = trt.OnnxParser(network, flavor.logger.handle)
        if not _parse(parser, model, changed):
            raise OnnxError(_describe(parser, name, flavor), log=lines)
        config = builder.create_builder_config()
        _configure(flavor, config, network, options, name)
        timings = _full_flavor_only(flavor, config, options)
        profiles = _profiles(network, options, name)
        for profile in (*_specialized(profiles, options, name), *profiles):
            _add_profile(builder, config, network, profile, name)
        if flavor.capabilities.has_progress_monitor:
            config.progress_monitor = _monitor(trt, progress, interrupt)
        plan = builder.build_serialized_network(network, config)
    if plan is not None and timings is not None:
        _keep_timings(config, timings)
    if plan is None:
        if layers := sorted(set(re.findall(r"(\S+) has no runners that implement it", "\n".join(lines)))):
            raise BuildError(f"{name} cannot be built: {_without('layer', layers, flavor)}", log=lines)
        if options.input_shapes and any("reshape would change volume" in line for line in lines):
            raise BuildError(
                f"{name} cannot be built with the input_shapes (--input-shape) {_plain(options.input_shapes)}: a "
                "reshape inside the graph holds the sizes that the file declares, so to declare others is not enough. "
                f"{_EXPORT} Or build it as it is.",
                log=lines,
            )
        if options.refittable and flavor.capabilities.name == "tensorrt_rtx":
            raise BuildError(
                f"{flavor.title} could not build a refittable engine from {name}: 1.6.1 builds none with the driver of "
                'CUDA 13.0, or without a GPU. Build it without refittable (--refittable), or with flavor="tensorrt".',
                log=lines,
            )
        raise BuildError(
            f"{flavor.title} could not build an engine from {name}. Its messages say which layer or option it refuses.",
            log=lines,
        )
    return bytes(plan)


def _parse(parser: Any, model: str | os.PathLike[str] | bytes, changed: bytes | None) -> bool:
    if isinstance(model, bytes):
        return bool(parser.parse(model if changed is None else changed))
    if changed is None:
        return bool(parser.parse_from_file(os.fspath(model)))
    return bool(parser.parse(changed, os.fspath(model)))  # the path says where the external data is


def _describe(parser: Any, name: str, flavor: flavors.Flavor) -> str:
    errors = []
    lacking: set[str] = set()
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator, said = error.node_operator(), error.desc()
        # The three ways in which the parser says that it has none: of its own, of this edition, or as a plugin.
        no_checker = error.func() == f"check{operator}" and said == "false"
        if no_checker or "is not supported in TensorRT" in said or "was not found in plugin registry" in said:
            lacking.add(operator)
        where = f"node {error.node()} {error.node_name()!r} ({operator})" if error.node() >= 0 else "model"
        errors.append(f"  {where}: {said} [{error.code().name}, {os.path.basename(error.file())}:{error.line()}]")
    text = "\n".join(errors) or "  the parser gave no reason; the file may not be ONNX at all"
    remedy = "Check the model with onnx.checker, or export it with another opset."
    if lacking:
        remedy = _without("operator", sorted(lacking), flavor)
    return f"{name} cannot be parsed:\n{text}\n{remedy}"


def _without(kind: str, names: list[str], flavor: flavors.Flavor) -> str:
    """That a flavour has no implementation of these operators or layers, and what to do."""
    them = "them" if len(names) > 1 else "it"
    other = f"load the plugin that implements {them} (--plugin)"
    if flavor.capabilities.name == "tensorrt_rtx":  # which has no plugin layers
        other = 'build it with full TensorRT, flavor="tensorrt" (--flavor), which takes plugins too'
    return (
        f"{flavor.title} has no implementation of {kind} {', '.join(names)}. Export the model without {them}, end it "
        f"before {them} with outputs=… (--outputs), or {other}."
    )


def _configure(flavor: flavors.Flavor, config: Any, network: Any, options: BuildOptions, name: str) -> None:
    trt = flavor.module
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if options.refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if options.weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    if options.detailed:
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.debug_tensors:
        _mark_debug(network, options.debug_tensors, name)
    if options.compute_capabilities:
        is_rtx = flavor.capabilities.name == "tensorrt_rtx"
        config.num_compute_capabilities = len(options.targets)
        for index, text in enumerate(options.targets):
            capability = getattr(trt.ComputeCapability, text.replace("_", "").upper(), None)
            if capability is None:
                known = sorted(
                    m.lower().replace("sm", "sm_") for m in trt.ComputeCapability.__members__ if m[:2] == "SM"
                )
                raise BuildError(
                    f"unknown compute capability {text!r}; this builder knows {known}."
                    + (_HOPPER if is_rtx and text == "sm_90" else "")
                )
            config.set_compute_capability(capability, index)


def _full_flavor_only(flavor: flavors.Flavor, config: Any, options: BuildOptions) -> Path | None:
    """Set what only full TensorRT has; returns the file of the timing cache, if one is wanted."""
    asked = {
        "version_compatible": options.version_compatible,
        "hardware_compatible": options.hardware_compatible,
        "timing_cache": options.timing_cache,
    }
    wanted = [option for option, value in asked.items() if value]
    if not wanted:
        return None
    if flavor.capabilities.name != "tensorrt":
        raise BuildError(
            f"{', '.join(wanted)}: {flavor.title} does not have this. Its plans run on the version that built them, on "
            "every GPU that it knows unless compute_capabilities says otherwise, and it times no kernels. Build with "
            'flavor="tensorrt", or without.'
        )
    trt = flavor.module
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        levels = trt.HardwareCompatibilityLevel.__members__
        level = levels.get(options.hardware_compatible.upper())
        if level is None:
            raise BuildError(f"hardware_compatible={options.hardware_compatible!r}: choose of {sorted(levels)}.")
        config.hardware_compatibility_level = level
    if options.timing_cache is None:
        return None
    path = Path(options.timing_cache)
    config.set_timing_cache(config.create_timing_cache(path.read_bytes() if path.exists() else b""), False)
    return path


def _keep_timings(config: Any, path: Path) -> None:
    write_atomic(path, bytes(config.get_timing_cache().serialize()))


def _mark_debug(network: Any, wanted: tuple[str, ...], name: str) -> None:
    tensors = {}
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            tensor = layer.get_output(output)
            if tensor is not None:
                tensors[tensor.name] = tensor
    unknown = sorted(set(wanted) - tensors.keys())
    if unknown:
        raise BuildError(f"{name} has no tensors named {unknown} to debug; {closest(unknown, tensors)}.")
    for tensor_name in wanted:
        network.mark_debug(tensors[tensor_name])


def _profiles(network: Any, options: BuildOptions, name: str) -> tuple[Profile, ...]:
    """The profiles asked for, or the one that everybody means when only the batch is dynamic."""
    dynamic: dict[str, Shape] = {}
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = to_shape(tensor.shape)
        if -1 in shape:
            dynamic[tensor.name] = shape
    given = options.profiles
    names = [network.get_input(index).name for index in range(network.num_inputs)]
    for profile in given:
        if unknown := sorted(profile.keys() - set(names)):
            hint = f" Give {_suggest(dynamic)}." if dynamic.keys() - profile.keys() else ""
            raise BuildError(f"{name} has no input {', '.join(map(repr, unknown))}; it has {names}.{hint}")
        missing = dynamic.keys() - profile.keys()
        if missing:
            raise BuildError(
                f"the profile gives no shapes for the dynamic input(s) {sorted(missing)} of {name}. "
                f"Add {_suggest({n: dynamic[n] for n in sorted(missing)})}."
            )
    if given or not dynamic:
        return given
    if any(-1 in shape[1:] for shape in dynamic.values()):
        raise BuildError(
            f"{name} has dynamic dimensions beyond the batch, so trtrun cannot know their range. Give it, as in "
            f"{_suggest(dynamic)}."
        )
    low, opt, high = _DEFAULT_BATCH
    high = max(high, *options.specialize) if options.specialize else high
    _LOG.warning(
        "%s has a dynamic batch and no profile: built for batches %d to %d, tuned for %d.", name, low, high, opt
    )
    return ({n: ShapeRange((low, *s[1:]), (opt, *s[1:]), (high, *s[1:])) for n, s in dynamic.items()},)


def _specialized(profiles: tuple[Profile, ...], options: BuildOptions, name: str) -> tuple[Profile, ...]:
    """A profile per batch size to specialize for: the first profile with its batch fixed.

    TensorRT compiles a profile whose minimum is its maximum as it compiles a static network: measured on TensorRT-RTX
    1.6.1, ResNet-50 at batch 1 ran in 366 µs under such a profile, 363 µs as a static engine, 804 µs under a range.
    """
    if not options.specialize:
        return ()
    if not profiles or any(not r.min or r.min[0] == r.max[0] for r in profiles[0].values()):
        raise BuildError(f"{name} has no dynamic batch to specialize for {list(options.specialize)}.")
    for input_name, shapes in profiles[0].items():
        outside = [batch for batch in options.specialize if not shapes.min[0] <= batch <= shapes.max[0]]
        if outside:
            raise BuildError(
                f"specialize names {outside}, and the first profile gives input {input_name!r} batches of "
                f"{shapes.min[0]} to {shapes.max[0]}. Widen it, or leave them out."
            )
    return tuple(
        {n: ShapeRange(*((batch, *s[1:]) for s in (r.min, r.opt, r.max))) for n, r in profiles[0].items()}
        for batch in options.specialize
    )


def _suggest(dynamic: dict[str, Shape]) -> str:
    """A profile for these inputs, as it is written in Python and for the command."""

    def sizes(shape: Shape, factor: int) -> Shape:
        return tuple((factor if axis == 0 else 64 * factor) if d < 0 else d for axis, d in enumerate(shape))

    ranges = {name: [sizes(shape, factor) for factor in (1, 4, 16)] for name, shape in dynamic.items()}
    python = ", ".join(f"{name!r}: ShapeRange({', '.join(map(str, shapes))})" for name, shapes in ranges.items())
    command = " ".join(
        f"--shape {name}={':'.join('x'.join(map(str, shape)) for shape in shapes)}" for name, shapes in ranges.items()
    )
    return f"profiles=({{{python}}},) ({command})"


def _plain(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"{name}={'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _add_profile(builder: Any, config: Any, network: Any, profile: Profile, name: str) -> None:
    inputs = {network.get_input(i).name: network.get_input(i) for i in range(network.num_inputs)}
    made = builder.create_optimization_profile()
    for input_name, shapes in profile.items():
        tensor = inputs[input_name]
        if tensor.is_shape_tensor:
            made.set_shape_input(input_name, shapes.min, shapes.opt, shapes.max)
            continue
        wanted = to_shape(tensor.shape)
        for shape in (shapes.min, shapes.opt, shapes.max):
            fixed = [axis for axis, (w, d) in enumerate(zip(wanted, shape, strict=False)) if w not in (-1, d)]
            if len(shape) == len(wanted) and not fixed:
                continue
            remedy = "Give as many dimensions as it has."
            if len(shape) == len(wanted):
                declared = (*(-1 if axis in fixed else size for axis, size in enumerate(wanted)),)
                what = "the batch" if fixed == [0] else f"dimension {', '.join(map(str, fixed))}"
                remedy = (
                    f"The file fixes {what}. {_EXPORT} Where nothing inside the graph holds the number, it is enough "
                    f"to declare another: input_shapes={{{input_name!r}: {declared}}} "
                    f"(--input-shape {_plain({input_name: declared})})."
                )
            raise BuildError(
                f"input {input_name!r} of {name} has shape {list(wanted)}; the profile gives {list(shape)}. {remedy}"
            )
        made.set_shape(input_name, shapes.min, shapes.opt, shapes.max)
    if config.add_optimization_profile(made) < 0:
        raise BuildError(f"TensorRT refused the optimization profile {dict(profile)} for {name}.")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C inside sets the event, which cancels the build, and is raised after the block.

    Python would raise it where it next runs: in a callback of TensorRT's, which takes the exception and builds on.
    """
    interrupt = threading.Event()
    ours = threading.current_thread() is threading.main_thread()  # the only one that signals reach
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, lambda *_: interrupt.set())
    try:
        yield interrupt
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.is_set():
        raise KeyboardInterrupt


def _monitor(trt: Any, progress: Progress | None, interrupt: threading.Event) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # the base is known only at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._report(phase_name, step + 1)
            return not interrupt.is_set()

        def phase_finish(self, phase_name: str) -> None:
            self._report(phase_name, self.steps.get(phase_name, 1))

        def _report(self, phase: str, step: int) -> None:
            if progress is None:
                return
            # Nothing may be raised through the builder's C++ frames; an interrupt cancels the build instead.
            try:
                progress(phase, step, self.steps.get(phase, 1))
            except KeyboardInterrupt:
                interrupt.set()
            except Exception:
                _LOG.exception("the progress callback failed")

    return Monitor()
