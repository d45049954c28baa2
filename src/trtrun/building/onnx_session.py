"""How ONNX Runtime opens a model, wherever it computes one: the CPU reference, comparisons, calibration."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from ..errors import MissingPackageError, OnnxError
from ..plan import ModelFile, pieces
from .onnx_check import check_model
from .onnx_file import model_name, not_onnx, read_model
from .rewrites import scopes

# It leaves out a Relu or Clip that a QuantizeLinear does the work of. These two rules of its extended optimizations
# (1.32) know the zero points of 8- and 16-bit integers only: before another one a Relu is left out at any zero point,
# and a Clip fails.
_RULES = ["ReluQuantRewrite", "ClipQuantRewrite"]
_KNOWN = (2, 3, 4, 5)  # of TensorProto.DataType: UINT8, INT8, UINT16, INT16
_QUANTIZE = b"QuantizeLinear"


def onnx_session(model: str | os.PathLike[str] | bytes) -> Any:
    """An ``onnxruntime.InferenceSession`` on the CPU, without the optimizations that change what the model computes.

    Raises:
        MissingPackageError: onnxruntime is not installed, or onnx, which looks into models with QuantizeLinear.
        ModelFileError: the file cannot be read. OnnxError: ONNX Runtime cannot load the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            f"ONNX Runtime cannot be imported ({error}). Run: pip install 'trtrun[onnx]'"
        ) from error
    data = model if isinstance(model, bytes) else ModelFile(model)
    name = model_name(model)
    disabled = _RULES if _mentions_quantize(data) and _has_unknown_zero_point(model) else None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised too; its warnings speak of optimizations, not of answers
    try:
        return onnxruntime.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=disabled,
        )
    except onnxruntime.capi.onnxruntime_pybind11_state.InvalidProtobuf as error:
        raise not_onnx(name, data[:64], error) from error
    except Exception as error:  # onnxruntime's exceptions share no base below Exception
        with suppress(MissingPackageError):
            check_model(model)  # says better what is missing or malformed
        raise OnnxError(f"ONNX Runtime cannot load {name}: {error}") from error


def _mentions_quantize(data: bytes | ModelFile) -> bool:
    """Whether the name stands anywhere: a tenth of the time that ONNX Runtime takes, and no import of onnx."""
    tail = b""
    for piece in pieces(data):
        read = tail + piece
        if _QUANTIZE in read:
            return True
        tail = read[-len(_QUANTIZE) :]
    return False


def _has_unknown_zero_point(model: str | os.PathLike[str] | bytes) -> bool:
    """Whether a QuantizeLinear has a zero point that is not known to be of a type that the rules know."""
    try:
        proto = read_model(model)
    except OnnxError:  # ONNX Runtime says what is wrong
        return False
    if proto.functions:
        import onnx.inliner

        proto = onnx.inliner.inline_local_functions(proto)
    for graph, constants in scopes(proto.graph, {}):
        for node in graph.node:
            if node.op_type == "QuantizeLinear" and len(node.input) > 2 and node.input[2]:
                zero = constants.get(node.input[2])
                if zero is None or zero.data_type not in _KNOWN:
                    return True
    return False
