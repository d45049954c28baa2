"""compare(): two models, one request, and where they part."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ..building.graph import choose_outputs, declare, prepare
from ..building.onnx_check import check_model
from ..building.onnx_file import read_model
from ..building.options import BuildOptions
from ..cuda.device import Device, gpu_count, why_no_gpu
from ..errors import InputError, NoGpuError
from ..onnx_runtime import OnnxRuntimeSession
from ..plan import is_onnx_file
from ..predictor import load
from ..runner import Runner
from ..tensor_spec import Shape, ShapeRange
from .inputs import Arrays, Range, make_inputs
from .layers import MarkedModel, values_in_batches
from .metrics import TensorError, Tolerance, missing, tensor_error
from .report import Comparison, LayerError

Model = str | os.PathLike[str] | bytes


def compare(
    a: Model,
    b: Model | None = None,
    *,
    build: bool = False,
    inputs: Mapping[str, Any] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    ranges: Mapping[str, Range] | None = None,
    seed: int = 0,
    tolerance: Tolerance | None = None,
    layers: bool = False,
    build_options: BuildOptions | None = None,
    device: int = 0,
    plugins: Sequence[str | os.PathLike[str]] = (),
) -> Comparison:
    """Give two models the same request and compare their outputs; where they differ, compare every layer.

    An ONNX file runs through ONNX Runtime on the CPU, an engine on the GPU. Where the outputs miss the tolerance or
    hold non-finite values, and a model is an ONNX file, every intermediate tensor that both have by the same name is
    compared as well: ``first_divergence`` of the result is the first layer in topological order that misses it. An
    engine's own intermediate tensors cannot be read, so for them an engine is built from the ONNX file of the other
    side by ``build_options``, with these tensors marked as outputs. Where these options ask for fp16 or bf16, the whole
    model is converted first, as for the engine, and the tensors of what comes out are marked.

    Args:
        a: the reference: the path of an ONNX file or an engine, or the bytes of an engine.
        b: what is compared with it; ``a`` itself built into an engine unless given.
        build: build ``b``, an ONNX file, into an engine instead of running it through ONNX Runtime.
        inputs: arrays by input name; every other input is random.
        shapes, ranges, seed: of random inputs, see :func:`trtrun.comparison.inputs.make_inputs`.
        tolerance: how far outputs and layers may differ.
        layers: compare the layers also when the outputs agree.
        build_options: for engines that are built, and how an engine was built whose layers are to be compared;
            ``input_shapes`` and ``outputs`` apply to ONNX Runtime too.
        device: ordinal of the GPU. plugins: paths of plugin libraries that an engine needs.

    Raises:
        InputError: the request does not fit the models, or ``build`` was asked for what is no ONNX file.
        NoGpuError: an engine is to be built or run and there is no GPU.
        Others as :func:`trtrun.load` raises them.
    """
    tolerance = tolerance or Tolerance()
    options = BuildOptions.of(build_options)
    first = _Side(a, "onnxruntime" if _is_onnx(a) else "engine", options, device, plugins)
    if b is None or build:
        source = a if b is None else b
        if not _is_onnx(source):
            raise InputError(f"{_label(source)} is an engine already: name an ONNX file to build, or a second model.")
        second = _Side(source, "built", options, device, plugins)
    else:
        second = _Side(b, "onnxruntime" if _is_onnx(b) else "engine", options, device, plugins)
    sides = (first, second)
    with ExitStack() as stack:
        try:
            runner_a, runner_b = (stack.enter_context(side.open()) for side in sides)
        except NoGpuError as error:
            if gpu_count():
                raise
            engines = "; ".join(side.label for side in sides if side.kind != "onnxruntime")
            raise NoGpuError(
                f"comparing runs both models, and {why_no_gpu()}, which this needs: {engines}. Compare on a "
                "machine with a GPU; two ONNX files are compared without one: trtrun compare a.onnx b.onnx."
            ) from error
        for_a, for_b, sources = make_inputs(
            runner_a.inputs, runner_b.inputs, values=inputs, shapes=shapes, ranges=ranges, seed=seed
        )
        outputs = _outputs(runner_a.run(for_a), runner_b.run(for_b), tolerance)
        result = Comparison(
            models=(first.label, second.label),
            backends=(runner_a.backend, runner_b.backend),
            inputs={name: (array.dtype.name, array.shape, sources[name]) for name, array in for_a.items()},
            seed=seed,
            tolerance=tolerance,
            outputs=outputs,
        )
        dynamic = {name: for_a[name].shape for name, spec in runner_b.inputs.items() if spec.is_dynamic}
        dynamic |= {name: for_a[name].shape for name, spec in runner_a.inputs.items() if spec.is_dynamic}
    wanted = layers or not result.within or any(any(output.nonfinite) for output in outputs)
    return _with_layers(result, sides, (for_a, for_b), dynamic) if wanted else result


@dataclasses.dataclass(frozen=True)
class _Side:
    model: Model
    kind: str  # "onnxruntime", "built" or "engine"
    options: BuildOptions
    device: int
    plugins: Sequence[str | os.PathLike[str]]

    @property
    def label(self) -> str:
        return _label(self.model) + (", built" if self.kind == "built" else "")

    def open(self) -> Runner:
        if self.kind == "onnxruntime":
            assert not isinstance(self.model, bytes)
            if self.options.outputs:
                return OnnxRuntimeSession(_with_outputs(self.model, self.options))
            return OnnxRuntimeSession(self.model, input_shapes=self.options.input_shapes)
        if self.kind == "built":
            Device(self.device)  # raises without a GPU: load() would run the ONNX file through ONNX Runtime then
        return load(self.model, device=self.device, plugins=self.plugins, build_options=self.options)

    def run_marked(self, path: Path, arrays: Arrays, dynamic: Mapping[str, Shape]) -> dict[str, Any]:
        """The outputs of a marked model, run as this side is run."""
        runner: Runner
        if self.kind == "onnxruntime":
            runner = OnnxRuntimeSession(path, input_shapes=None if self.options.outputs else self.options.input_shapes)
        else:
            from ..building.builder import build_plan

            profile = {name: ShapeRange(shape, shape, shape) for name, shape in dynamic.items()}
            options = dataclasses.replace(
                self.options, **_CONVERTED, profiles=(profile,) if profile else (), specialize=()
            )
            runner = load(build_plan(path, options), device=self.device, plugins=self.plugins)
        with runner:
            return runner.run({name: arrays[name] for name in runner.inputs})

    def marked(self, source: str | os.PathLike[str], folder: Path) -> MarkedModel:
        """The graph whose tensors this side computes, to be marked: chosen and converted as its engine was."""
        graph: bytes | None = None
        check_model(source)
        if self.kind != "onnxruntime":  # what tf32=False does is done to each marked graph
            graph, _ = prepare(source, dataclasses.replace(self.options, tf32=True))
        elif self.options.outputs:  # the layers that these need, and the inputs
            graph = _with_outputs(source, self.options)
        return MarkedModel(source, folder, graph)


# What is done to the whole model before its tensors are marked is not done to a marked one again.
_CONVERTED: dict[str, Any] = {
    "input_shapes": {},
    "outputs": (),
    "simplify": False,
    "fp16": False,
    "bf16": False,
    "keep_io": True,
    "keep_fp32": (),
}


def _with_outputs(model: str | os.PathLike[str], options: BuildOptions) -> bytes:
    """With the input shapes too: in what is left there may be no such input."""
    name = os.fspath(model)
    proto = read_model(model, external_data=True)
    declare(proto, options.input_shapes, name)
    data: bytes = choose_outputs(proto, options.outputs, name, []).SerializeToString()
    return data


def _is_onnx(model: Model) -> bool:
    return not isinstance(model, (bytes, bytearray, memoryview)) and is_onnx_file(model)


def _label(model: Model) -> str:
    return "this plan" if isinstance(model, (bytes, bytearray, memoryview)) else os.fspath(model)


def _outputs(a: Mapping[str, Any], b: Mapping[str, Any], tolerance: Tolerance) -> tuple[TensorError, ...]:
    found = [
        tensor_error(name, value, b[name], tolerance) if name in b else missing(name, "only the reference has it")
        for name, value in a.items()
    ]
    return (*found, *(missing(name, "the reference does not have it") for name in b if name not in a))


def _with_layers(
    result: Comparison, sides: tuple[_Side, _Side], requests: tuple[Arrays, Arrays], dynamic: Mapping[str, Shape]
) -> Comparison:
    graphs = [side.model for side in sides if side.kind != "engine"]
    if not graphs:
        return dataclasses.replace(result, notes=("Layers were not compared: neither model is an ONNX file.",))
    notes: list[str] = []
    if any(side.kind == "engine" for side in sides):
        label = "bf16" if sides[0].options.bf16 else "fp16" if sides[0].options.fp16 else ""
        how = f"converted to {label}" if label else "in its own precision (--fp16 or --bf16 say another)"
        notes.append(
            f"Layers of the engine are those of an engine built from the ONNX file, {how}: an engine's own "
            "intermediate tensors cannot be read."
        )
    with tempfile.TemporaryDirectory(prefix="trtrun-compare-") as folder:
        marked = []
        for index, side in enumerate(sides):
            source = graphs[0] if side.kind == "engine" else side.model
            assert not isinstance(source, bytes)
            marked.append(side.marked(source, Path(folder) / str(index)))
        layers = {layer.tensor: layer for layer in marked[0].layers}
        others = {layer.tensor for layer in marked[1].layers}
        common = [name for name in layers if name in others]
        if alone := len(layers) + len(others) - 2 * len(common):
            notes.append(f"{alone} intermediate tensors are in one of the two graphs only and were not compared.")
        failures: dict[str, str] = {}
        run_a, run_b = (
            lambda path, side=side, arrays=arrays: side.run_marked(path, arrays, dynamic)
            for side, arrays in zip(sides, requests, strict=True)
        )
        found = tuple(
            LayerError(layers[name], tensor_error(name, value_a, value_b, result.tolerance))
            for name, value_a, value_b in values_in_batches(common, (marked[0], run_a), (marked[1], run_b), failures)
            if value_a.size or value_b.size  # as the regions of interest that Resize is given, and does not read
        )
    return dataclasses.replace(result, layers=found, layer_failures=failures, notes=tuple(notes))
