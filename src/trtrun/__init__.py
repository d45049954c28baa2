"""Run TensorRT engines from Python, at the full speed of the GPU.

    with trtrun.load("model.engine") as pred:
        outputs = pred(images)

Importing this package loads no GPU library and no optional one; each public name is resolved when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .building import BuildOptions, build
    from .comparison import Comparison, Tolerance, compare
    from .cuda.device_array import DeviceArray
    from .engine import Engine
    from .errors import (
        BuildError,
        BundleError,
        ClosedError,
        DeviceError,
        DtypeError,
        ExecutionError,
        InputError,
        InputNameError,
        MediaTypeError,
        MissingPackageError,
        ModelFileError,
        ModelNotFoundError,
        NoGpuError,
        OnnxError,
        OutOfMemoryError,
        PlanError,
        PlanMismatchError,
        PluginError,
        RefitError,
        RequestStalledError,
        RequestTimeoutError,
        RequestTooLargeError,
        ServerBusyError,
        ShapeError,
        TrtrunError,
        UnsupportedTensorError,
        VerificationError,
        WorkerError,
    )
    from .inspection import inspect
    from .onnx_runtime import OnnxRuntimeSession
    from .pipeline import Pipeline
    from .plan import identify_file as identify
    from .predictor import load
    from .runner import Runner
    from .session import Session
    from .tensor_spec import ShapeRange, TensorSpec, TensorSpecs

# Public name -> module, and the name there when it differs.
_HOMES: dict[str, str] = {
    "BuildError": "errors",
    "BundleError": "errors",
    "BuildOptions": "building.options",
    "ClosedError": "errors",
    "Comparison": "comparison",
    "DeviceArray": "cuda.device_array",
    "DeviceError": "errors",
    "DtypeError": "errors",
    "Engine": "engine",
    "ExecutionError": "errors",
    "InputError": "errors",
    "InputNameError": "errors",
    "MediaTypeError": "errors",
    "MissingPackageError": "errors",
    "ModelFileError": "errors",
    "ModelNotFoundError": "errors",
    "NoGpuError": "errors",
    "OnnxError": "errors",
    "OnnxRuntimeSession": "onnx_runtime",
    "OutOfMemoryError": "errors",
    "Pipeline": "pipeline",
    "PlanError": "errors",
    "PlanMismatchError": "errors",
    "PluginError": "errors",
    "RefitError": "errors",
    "RequestStalledError": "errors",
    "RequestTimeoutError": "errors",
    "RequestTooLargeError": "errors",
    "Runner": "runner",
    "Session": "session",
    "ServerBusyError": "errors",
    "ShapeError": "errors",
    "ShapeRange": "tensor_spec",
    "TensorSpec": "tensor_spec",
    "TensorSpecs": "tensor_spec",
    "Tolerance": "comparison",
    "TrtrunError": "errors",
    "UnsupportedTensorError": "errors",
    "VerificationError": "errors",
    "WorkerError": "errors",
    "build": "building",
    "compare": "comparison",
    "identify": "plan:identify_file",
    "inspect": "inspection",
    "load": "predictor",
}

__all__ = [
    "BuildError",
    "BuildOptions",
    "BundleError",
    "ClosedError",
    "Comparison",
    "DeviceArray",
    "DeviceError",
    "DtypeError",
    "Engine",
    "ExecutionError",
    "InputError",
    "InputNameError",
    "MediaTypeError",
    "MissingPackageError",
    "ModelFileError",
    "ModelNotFoundError",
    "NoGpuError",
    "OnnxError",
    "OnnxRuntimeSession",
    "OutOfMemoryError",
    "Pipeline",
    "PlanError",
    "PlanMismatchError",
    "PluginError",
    "RefitError",
    "RequestStalledError",
    "RequestTimeoutError",
    "RequestTooLargeError",
    "Runner",
    "ServerBusyError",
    "Session",
    "ShapeError",
    "ShapeRange",
    "TensorSpec",
    "TensorSpecs",
    "Tolerance",
    "TrtrunError",
    "UnsupportedTensorError",
    "VerificationError",
    "WorkerError",
    "build",
    "compare",
    "identify",
    "inspect",
    "load",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    value = getattr(importlib.import_module(f".{module}", __name__), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
