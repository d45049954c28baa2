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

from ..errors import BuildError, DtypeError, InputError, MissingPackageError
from .onnx_check import check_model
from .onnx_file import model_name, read_model
from .onnx_session import onnx_session
from .precision import at_least_opset, drop_defaults, drop_unused
from .rewrites import attribute_of, copied, free_name, scopes, value_names

Precision = Literal["fp8", "int8"]

# Where the time is spent. TensorRT fuses what stands behind them, so only their inputs are quantized and their outputs
# stay as they are.
_FP8_MAX = 448.0  # of e4m3
_OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def quantize(
    model: str | os.PathLike[str] | bytes,
    requests: Iterable[Mapping[str, np.ndarray[Any, Any]]],
    *,
    precision: Precision = "fp8",
    keep: Sequence[str] = (),
    files: Sequence[str] = (),
) -> bytes:
    """The model with Q/DQ nodes around its convolutions and matrix products, as bytes of an ONNX file.

    Args:
        model: an fp32 ONNX file or its bytes.
        requests: a few hundred typical requests, arrays by input name, on which the ranges of the activations are
            measured with ONNX Runtime on the CPU.
        precision: ``"fp8"`` (e4m3; GPUs from compute capability 8.9 on) or ``"int8"``. TensorRT-RTX 1.6 computes no
            convolution in int8.
        keep: names of nodes that stay in fp32.
        files: which the requests came from, one each, for the errors; without them they are numbered.

    Raises:
        OnnxError, ModelFileError: the model cannot be read. InputError: no request, or one that the model cannot be
        run with; DtypeError: an array of another dtype than its input. BuildError: the model is quantized
        already, a name in ``keep`` is no node, the model cannot be brought to the operator set that the precision needs
        (13, fp8 19), all weights of a node are zero and it is to be fp8, or the quantizer fails.
        MissingPackageError: no ONNX Runtime.
    """
    try:
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
    name = model_name(model)
    proto = read_model(model, external_data=True)
    if any(node.op_type == "QuantizeLinear" for node in proto.graph.node):
        raise BuildError(
            f"{name} is quantized already: it holds QuantizeLinear, and would be quantized twice. "
            "Quantize the model of floats that it was made from."
        )
    called = {node.name for node in proto.graph.node}
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or free_name(f"node_{index}", called)  # the quantizer tells nodes apart by name
    unknown = sorted(set(keep) - {node.name for node in proto.graph.node})
    if unknown:
        raise BuildError(f"keep names {unknown}; {name} has no such nodes.")
    if not any(node.op_type in _OPERATORS and node.name not in keep for node in proto.graph.node):
        raise BuildError(f"{name} has none of {', '.join(_OPERATORS)} to quantize.")
    drop_defaults(proto, [])
    # Where fp8 began, and scales per channel.
    proto = at_least_opset(proto, 19 if precision == "fp8" else 13, name, precision)
    _scale_biases(proto)
    largest = _Largest(proto, keep, name)
    if precision == "fp8" and (zero := largest.of_zeros()):
        raise BuildError(
            f"all weights of {', '.join(zero)} in {name} are zero, and fp8 has no scale for them. Leave these nodes in "
            f"fp32: keep={zero} ({' '.join(f'--keep {node}' for node in zero)})."
        )

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
        """Requests from files, one at a time: all activations of all requests at once would fill the memory."""

        def __init__(self, files: Sequence[Path]) -> None:
            self.files = files
            self.todo = iter(files)

        def __len__(self) -> int:
            return len(self.files)

        def set_range(self, start_index: int, end_index: int) -> None:
            self.todo = iter(self.files[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            file = next(self.todo, None)
            return None if file is None else _stored(file, largest.inputs)

    kind = QuantType.QFLOAT8E4M3FN if precision == "fp8" else QuantType.QInt8
    with tempfile.TemporaryDirectory() as folder, _quiet():
        stored = []
        for index, request in enumerate(requests):
            largest.see(files[index] if files else f"calibration request {index}", request)
            stored.append(Path(folder) / f"{index}.npz")
            np.savez(stored[-1], *(request[key] for key in largest.inputs))
        if not stored:
            raise InputError(f"there is no request to calibrate {name} with.")
        target = Path(folder) / "quantized.onnx"
        try:
            quantize_static(
                proto,
                target,
                Reader(stored),
                quant_format=QuantFormat.QDQ,
                activation_type=kind,
                weight_type=kind,
                # fp8 has one scale per tensor there; a tensor's distribution sets it, and it is widened afterwards to
                # what was seen. int8 cuts the rarest values off.
                calibrate_method=CalibrationMethod.Distribution if precision == "fp8" else CalibrationMethod.Percentile,
                per_channel=precision == "int8",
                op_types_to_quantize=list(_OPERATORS),
                nodes_to_exclude=list(keep),
                extra_options={
                    "ActivationSymmetric": True,  # TensorRT knows no zero points
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    "OpTypesToExcludeOutputQuantization": list(_OPERATORS),
                    "CalibStridedMinMax": 1,  # requests at a time, whatever the method
                },
            )
        except Exception as error:  # the quantizer's errors share no base
            raise BuildError(f"{name} could not be quantized: {error}") from error
        return largest.widen(read_model(target)) if precision == "fp8" else target.read_bytes()


def _scale_biases(proto: Any) -> None:
    """Multiply constant biases of Gemm by its beta, in place.

    ONNX Runtime's quantizer sets beta to 1, since it would put it into the bias that it quantizes, and here it leaves
    biases as they are. Each gets a tensor of its own: others may read the old one, or scale it differently.
    """
    from onnx import numpy_helper

    ((_, constants), *_) = scopes(proto.graph, {})
    taken = value_names(proto.graph)
    scaled = False
    for node in proto.graph.node:
        beta = attribute_of(node, "beta", 1.0)
        if node.op_type != "Gemm" or beta == 1 or len(node.input) < 3 or node.input[2] not in constants:
            continue
        bias = numpy_helper.to_array(constants[node.input[2]])
        name = free_name(f"{node.output[0]}/bias", taken)
        proto.graph.initializer.append(numpy_helper.from_array((bias * beta).astype(bias.dtype), name))
        node.CopyFrom(copied(node, [*node.input[:2], name], [*node.output], beta=None))
        scaled = True
    if scaled:
        drop_unused(proto)


def _stored(file: Path, names: Sequence[str]) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(file) as arrays:
        return {name: arrays[f"arr_{index}"] for index, name in enumerate(names)}


class _Largest:
    """Runs the model on every request, and keeps the largest magnitude of what is quantized, so that fp8 holds it.

    ONNX Runtime takes an fp8 scale from the standard deviation around the mean, as if all were distributed normally.
    That cuts off whatever has a mean that is large against its spread, pooled features for one, and the largest
    weights: those of CenterFace's depthwise convolutions at a sixth.
    """

    def __init__(self, proto: Any, keep: Sequence[str], name: str) -> None:
        import onnx

        ((_, constants), *_) = scopes(proto.graph, {})
        given = [value.name for value in proto.graph.input]
        self.inputs = sorted(given)
        self._dtypes = {
            value.name: onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
            for value in proto.graph.input
            if value.type.HasField("tensor_type")
        }
        self._name = name
        self._nodes = {
            node.name: node.input[:2]
            for node in proto.graph.node
            if node.op_type in _OPERATORS and node.name not in keep
        }
        quantized = {tensor for tensors in self._nodes.values() for tensor in tensors}
        # Read now: the quantizer moves what is large to a file of its own.
        fixed = {tensor: onnx.numpy_helper.to_array(constants[tensor]) for tensor in quantized & constants.keys()}
        stored = {tensor.name for tensor in proto.graph.initializer}
        self._weights = {tensor: values for tensor, values in fixed.items() if tensor in stored}
        self._names = sorted(quantized - constants.keys())
        self._values = dict.fromkeys(self._names, 0.0)
        # Of Constant nodes: to the quantizer they are activations.
        self._values |= {name: float(np.abs(fixed[name]).max(initial=0)) for name in fixed.keys() - stored}
        self._computed = [tensor for tensor in self._names if tensor not in given]
        shown = onnx.ModelProto()
        shown.CopyFrom(proto)
        known = {value.name for value in shown.graph.output}
        shown.graph.output.extend(onnx.ValueInfoProto(name=tensor) for tensor in self._computed if tensor not in known)
        self._session = onnx_session(shown.SerializeToString())

    def of_zeros(self) -> list[str]:
        """Names of the nodes to quantize whose weights are all zero."""
        zero = {tensor for tensor, weights in self._weights.items() if not weights.any()}
        return [node for node, tensors in self._nodes.items() if zero.intersection(tensors)]

    def see(self, source: str, request: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Raises InputError for a request that the model cannot be run with, saying where it came from."""
        if sorted(request) != self.inputs:
            raise InputError(f"{source} has {sorted(request)}, and {self._name} takes {self.inputs}.")
        for key, dtype in self._dtypes.items():
            if request[key].dtype != dtype:
                raise DtypeError(
                    f"{source} has {request[key].dtype} for input {key!r}, and {self._name} takes {dtype}. Convert it: "
                    f"array.astype({dtype.name!r})."
                )
        arrays = {key: np.ascontiguousarray(array) for key, array in request.items()}
        try:
            computed = self._session.run(self._computed or None, arrays)
        except Exception as error:  # onnxruntime's errors share no base
            raise InputError(f"{self._name} cannot be run with {source}: {error}") from error
        arrays |= zip(self._computed, computed, strict=False)
        for tensor in self._names:
            self._values[tensor] = max(self._values[tensor], float(np.abs(arrays[tensor]).max(initial=0)))

    def widen(self, quantized: Any) -> bytes:
        """The quantized model, with every scale at least so large that the largest value is fp8's largest."""
        import ml_dtypes
        from onnx import numpy_helper

        found = {tensor.name: tensor for tensor in quantized.graph.initializer}

        def widened(tensor: str, largest: float) -> np.float32 | None:
            """The tensor's new scale, where the old one was too small."""
            scale = found.get(f"{tensor}_scale")
            needed: np.float32 = np.float32(largest / _FP8_MAX) or np.float32(1)  # zeros have any scale but 0
            if scale is None or numpy_helper.to_array(scale) >= needed:
                return None
            scale.CopyFrom(numpy_helper.from_array(np.full(tuple(scale.dims), needed), scale.name))
            return needed

        for tensor, largest in self._values.items():
            widened(tensor, largest)
        for tensor, weights in self._weights.items():
            scale = widened(tensor, float(np.abs(weights).max(initial=0)))
            if scale is not None:
                rounded = (weights / scale).astype(ml_dtypes.float8_e4m3fn)
                found[f"{tensor}_quantized"].raw_data = rounded.tobytes()
        data: bytes = quantized.SerializeToString()
        return data


@contextlib.contextmanager
def _quiet() -> Any:
    """Without what the quantizer prints and advises, and what its sessions log: of weights that no node reads."""
    import onnxruntime

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(4)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        onnxruntime.set_default_logger_severity(2)  # its default; what it was cannot be asked
        root.setLevel(level)
