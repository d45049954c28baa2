"""Quantization: an fp32 ONNX model to one with Q/DQ nodes, its ranges measured on the user's own data.

TensorRT 10 and later take int8 and fp8 only as a graph says it: QuantizeLinear and DequantizeLinear around what shall
be computed so. ONNX Runtime's static quantizer writes them; it comes with the CPU reference, where NVIDIA's ModelOpt
would bring torch with it.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BuildError, InputError, MissingPackageError
from .onnx_check import check_model

Precision = Literal["fp8", "int8"]

# Where the time is spent. TensorRT fuses what stands behind them, so only their inputs are quantized and their outputs
# stay as they are.
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantize(
    model: str | os.PathLike[str] | bytes,
    requests: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    *,
    precision: Precision = "fp8",
    keep: Sequence[str] = (),
) -> bytes:
    """The model with Q/DQ nodes around its convolutions and matrix products, as bytes of an ONNX file.

    Args:
        model: an fp32 ONNX file or its bytes.
        requests: a few hundred typical requests, arrays by input name, on which the ranges of the activations are
            measured with ONNX Runtime on the CPU.
        precision: ``"fp8"`` (e4m3; GPUs from compute capability 8.9 on) or ``"int8"``. TensorRT-RTX 1.6 computes no
            convolution in int8.
        keep: names of nodes that stay in fp32.

    Raises:
        OnnxError, ModelFileError: the model cannot be read. InputError: no request, or one that does not fit.
        BuildError: a name in ``keep`` is no node, or the quantizer fails. MissingPackageError: no ONNX Runtime.
    """
    try:
        import onnx
        from onnxruntime.quantization import (
            CalibrationDataReader,
            CalibrationMethod,
            QuantFormat,
            QuantType,
            quantize_static,
        )
    except ImportError as error:
        raise MissingPackageError(
            f"quantizing needs onnx and onnxruntime ({error}). Run: pip install 'trtrun[onnx]'"
        ) from error
    check_model(model)
    name = "this model" if isinstance(model, bytes) else os.fspath(model)
    proto = onnx.load_model_from_string(model) if isinstance(model, bytes) else onnx.load(os.fspath(model))
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"node_{index}"  # the quantizer tells nodes apart by name
    unknown = sorted(set(keep) - {node.name for node in proto.graph.node})
    if unknown:
        raise BuildError(f"keep names {unknown}; {name} has no such nodes.")
    if not any(node.op_type in _OPERATORS and node.name not in keep for node in proto.graph.node):
        raise BuildError(f"{name} has none of {', '.join(_OPERATORS)} to quantize.")
    initializers = {tensor.name for tensor in proto.graph.initializer}
    inputs = {value.name for value in proto.graph.input} - initializers

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        def __init__(self) -> None:
            self.requests = iter(requests)
            self.count = 0

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            request = next(self.requests, None)
            if request is None:
                return None
            if request.keys() != inputs:
                raise InputError(f"a calibration request has {sorted(request)}, and {name} takes {sorted(inputs)}.")
            self.count += 1
            return {key: np.ascontiguousarray(array) for key, array in request.items()}

    reader = Reader()
    kind = QuantType.QFLOAT8E4M3FN if precision == "fp8" else QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantized.onnx"
        try:
            quantize_static(
                proto,
                target,
                reader,
                quant_format=QuantFormat.QDQ,
                activation_type=kind,
                weight_type=kind,
                # fp8 has one scale per tensor there; a tensor's distribution sets it. int8 cuts the rarest values off.
                calibrate_method=CalibrationMethod.Distribution if precision == "fp8" else CalibrationMethod.Percentile,
                per_channel=precision == "int8",
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_exclude=list(keep),
                extra_options={
                    "ActivationSymmetric": True,  # TensorRT knows no zero points
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
                },
            )
        except InputError:
            raise
        except Exception as error:  # the quantizer's errors share no base
            if reader.count == 0:
                raise InputError(f"there is no request to calibrate {name} with.") from error
            raise BuildError(f"{name} could not be quantized: {error}") from error
        return target.read_bytes()


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what the quantizer prints and advises."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
