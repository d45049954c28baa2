"""Facts about a model file as plain data: what its bytes say, and what TensorRT says where it can be asked."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import flavor as flavors
from .bundle import is_bundle, open_bundle
from .errors import TrtrunError
from .plan import identify_file, is_onnx_file
from .tensor_spec import TensorSpecs

if TYPE_CHECKING:
    from .engine import Engine


def inspect(model: str | os.PathLike[str]) -> dict[str, Any]:
    """Facts about a plan, an ONNX file or a bundle, as dictionaries, lists, strings and numbers.

    For a plan, what its own bytes say needs neither a GPU nor TensorRT. Inputs, outputs and memory are read from the
    deserialized engine where a GPU and the right TensorRT are there; ``engine_unavailable`` says why not elsewhere.

    Raises ModelFileError, PlanError, and OnnxError or BundleError for an ONNX file or a bundle that cannot be read.
    """
    if is_bundle(model):
        return {"kind": "bundle", **open_bundle(model).as_json()}
    return _inspect_onnx(model) if is_onnx_file(model) else _inspect_plan(model)


def _inspect_plan(model: str | os.PathLike[str]) -> dict[str, Any]:
    plan = identify_file(model)
    facts: dict[str, Any] = {
        "file": os.fspath(model),
        "kind": "plan",
        "family": plan.family,
        "version": plan.version_text,
        "bytes": plan.size,
        "metadata": plan.metadata,
    }
    if plan.compute_capabilities:
        facts["compute_capabilities"] = list(plan.compute_capabilities)
    try:
        facts["loaded_by"] = flavors.for_plan(plan).title
    except TrtrunError as error:
        facts["loaded_by"] = None
        facts["engine_unavailable"] = error.message
        return facts
    try:
        from .engine import Engine

        with Engine(model) as engine:
            facts["inputs"] = _tensors(engine.inputs)
            facts["outputs"] = _tensors(engine.outputs)
            facts["optimization_profiles"] = engine.num_profiles
            facts["device_memory_bytes"] = engine.device_memory_size
            facts["device"] = engine.device.name
            facts.update(_build_facts(engine))
            if engine.aliases:
                facts["aliased_outputs"] = engine.aliases
            facts["layers"] = _layers(engine)
    except TrtrunError as error:
        facts["engine_unavailable"] = error.message
    return facts


def _build_facts(engine: Engine) -> dict[str, Any]:
    """What the deserialized engine says of how it was built."""
    handle: Any = engine.handle  # some members are newer than the stubs
    capabilities = engine.flavor.capabilities
    facts: dict[str, Any] = {"name": handle.name} if handle.name else {}
    facts |= {
        "number_of_layers": handle.num_layers,
        "hardware_compatibility": handle.hardware_compatibility_level.name.lower(),
        "profiling_verbosity": handle.profiling_verbosity.name.lower(),
        "engine_capability": handle.engine_capability.name.lower(),
        "auxiliary_streams": handle.num_aux_streams,
        "refittable": handle.refittable,
    }
    if capabilities.has_engine_stat:
        facts["weights_bytes"] = handle.get_engine_stat(engine.flavor.module.EngineStat.TOTAL_WEIGHTS_SIZE)
    if capabilities.has_weight_streaming:
        facts["streamable_weights_bytes"] = handle.streamable_weights_size
    return facts


def _layers(engine: Engine) -> list[Any]:
    """What TensorRT's engine inspector says of each layer: names, or everything if built with ``detailed``."""
    if not engine.flavor.capabilities.has_inspector:
        return []
    inspector = engine.handle.create_engine_inspector()
    text = inspector.get_engine_information(engine.flavor.module.LayerInformationFormat.JSON)
    try:
        layers = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return []
    return list(layers)


def _tensors(specs: TensorSpecs) -> list[dict[str, Any]]:
    return [
        {
            "name": spec.name,
            "dtype": spec.dtype.name,
            "shape": list(spec.shape),
            "profiles": [{"min": list(p.min), "opt": list(p.opt), "max": list(p.max)} for p in spec.profiles],
            "location": spec.location,
            "format": spec.format or "row-major linear",
        }
        for spec in specs.values()
    ]


def _inspect_onnx(model: str | os.PathLike[str]) -> dict[str, Any]:
    from .building.onnx_file import proto_metadata, read_model
    from .building.rewrites import graph_inputs
    from .errors import OnnxError

    proto = read_model(model)
    if not proto.graph.node:
        raise OnnxError(f"{os.fspath(model)} is not a usable ONNX model: its graph has no nodes.")
    return {
        "file": os.fspath(model),
        "kind": "onnx",
        "bytes": Path(model).stat().st_size,
        "producer": " ".join(filter(None, [proto.producer_name, proto.producer_version])),
        "ir_version": proto.ir_version,
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in proto.opset_import},
        "inputs": [_onnx_tensor(value) for value in graph_inputs(proto.graph)],
        "outputs": [_onnx_tensor(value) for value in proto.graph.output],
        "nodes": len(proto.graph.node),
        "operators": dict(Counter(node.op_type for node in proto.graph.node).most_common()),
        "parameters": sum(_elements(tensor.dims) for tensor in proto.graph.initializer),
        "metadata": proto_metadata(proto),
    }


def _onnx_tensor(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    return {
        "name": value.name,
        "dtype": {"float": "float32", "double": "float64"}.get(name, name),
        "shape": [dim.dim_param or (dim.dim_value if dim.HasField("dim_value") else "?") for dim in tensor.shape.dim],
    }


def _elements(dims: Any) -> int:
    count = 1
    for size in dims:
        count *= size
    return count
