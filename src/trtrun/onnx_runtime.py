"""The CPU reference: ONNX Runtime behind the same contract as the TensorRT session."""

from __future__ import annotations

import copy
import math
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from .arrays import Host, as_host_array
from .building.onnx_file import model_name, read_model
from .building.onnx_session import onnx_session
from .errors import BuildError, ExecutionError, NoGpuError, OnnxError, ShapeError, UnsupportedTensorError
from .plan import onnx_metadata
from .runner import (
    Done,
    OutputMode,
    Pending,
    Runner,
    RunnerAbove,
    StatefulRunner,
    check_output_mode,
    check_pairs,
    initial_state,
)
from .staging import Staging
from .tensor_spec import Shape, TensorSpec, TensorSpecs

_DTYPES: dict[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int16)": "int16",
    "tensor(int8)": "int8",
    "tensor(uint64)": "uint64",
    "tensor(uint32)": "uint32",
    "tensor(uint16)": "uint16",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


class OnnxRuntimeSession(Runner):
    """Runs an ONNX model on the CPU, as the reference that engines are compared with.

    Args:
        model: the path of an ONNX file (external data beside it is found), or the bytes of a model.
        input_shapes: replace the shapes that the file declares for these inputs, -1 where dynamic; as the build
            option of the same name does for an engine.
        metadata: more than the file itself says, like a bundle's.

    Raises:
        MissingPackageError: onnxruntime is not installed.
        ModelFileError: the path cannot be read. OnnxError: the model is not valid ONNX.
        UnsupportedTensorError: an input or output that is no tensor, or of a dtype without a NumPy counterpart.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        input_shapes: Mapping[str, Shape] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self._name = model_name(model)
        if input_shapes:
            model = _with_input_shapes(model, self._name, input_shapes)
        self._session: Any = onnx_session(model)
        import onnxruntime  # is there, now that it has made a session

        self._backend = f"ONNX Runtime {onnxruntime.__version__} on the CPU (reference)"
        self._inputs = TensorSpecs(_spec(value) for value in self._session.get_inputs())
        self._dimensions = {value.name: value.shape or () for value in self._session.get_inputs()}  # numbers and names
        self._outputs = TensorSpecs(_spec(value) for value in self._session.get_outputs())
        self._metadata = {**onnx_metadata(self._session.get_modelmeta().custom_metadata_map), **(metadata or {})}
        self._lock = threading.Lock()
        self._in_flight: _InFlight | None = None
        self._executor: ThreadPoolExecutor | None = None
        self._stage()

    def _stage(self) -> None:
        self._filled: dict[str, Host] = {}  # by the caller
        self.staging = Staging(self, self._staging_view)

    @property
    def inputs(self) -> TensorSpecs:
        return self._inputs

    @property
    def outputs(self) -> TensorSpecs:
        return self._outputs

    @property
    def backend(self) -> str:
        return self._backend

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._metadata

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        check_output_mode(outputs)
        if outputs == "device" or stream is not None:
            raise NoGpuError(
                "ONNX Runtime on the CPU has neither device outputs nor CUDA streams. "
                'Use outputs="copy" without a stream, or load an engine on a GPU.'
            )
        feeds = self._prepare(inputs)
        with self._lock:
            self._check_idle()
            return self._run(feeds)

    def enqueue(self, inputs: Mapping[str, Any]) -> _InFlight:
        # Copied, because the caller may change the arrays as soon as this returns.
        feeds = {name: np.array(array, order="C") for name, array in self._prepare(inputs).items()}
        with self._lock:
            self._check_idle()
            if self._executor is None:
                self._executor = ThreadPoolExecutor(1, thread_name_prefix="trtrun-reference")
            self._in_flight = _InFlight(self, self._executor.submit(self._run, feeds))
            return self._in_flight

    def _staging_view(self, name: str, shape: Shape) -> Host:
        with self._lock:
            self._check_idle()
            spec = self._inputs[name]
            spec.check_shape(shape)
            size, array = math.prod(shape), self._filled.get(name)
            if array is None or array.size < size:
                array = self._filled[name] = np.zeros(size, spec.dtype)
            return array[:size].reshape(shape)

    def _check_idle(self) -> None:
        self.check_open()
        if self._in_flight is not None:
            raise ExecutionError(
                "this runner has a request in flight: collect it with result() first, or use a Pipeline, "
                "which keeps several runners busy."
            )

    def _prepare(self, inputs: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
        self.check_open()
        self._inputs.check_names(inputs)
        feeds = {}
        for name, spec in self._inputs.items():
            array = as_host_array(inputs[name], name)
            spec.check_shape(array.shape)
            if array.dtype != spec.dtype:
                spec.check_dtype(array.dtype)
            feeds[name] = np.ascontiguousarray(array, spec.dtype).reshape(array.shape)
        return feeds

    def _run(self, feeds: dict[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        try:
            results = self._session.run(None, feeds)
        except Exception as error:
            said = f"ONNX Runtime failed to run {self._name}: {error}"
            if unequal := self._unequal_dimensions(feeds):
                raise ShapeError(f"{unequal}: the network may want one size for both. {said}") from error
            raise ExecutionError(said) from error
        return dict(zip(self._outputs, results, strict=True))

    def _unequal_dimensions(self, feeds: Mapping[str, np.ndarray[Any, Any]]) -> str:
        """The first dimension with one name and two sizes in a request; asked when it has failed, because exporters
        give one name to what need not be equal."""
        sizes: dict[str, tuple[int, str]] = {}
        for name, array in feeds.items():
            for dimension, size in zip(self._dimensions[name], array.shape, strict=False):
                if isinstance(dimension, str):
                    first, where = sizes.setdefault(dimension, (size, name))
                    if first != size:
                        return f"dimension {dimension!r} is {first} in {where!r} and {size} in {name!r}"
        return ""

    def clone(self) -> OnnxRuntimeSession:
        self.check_open()
        other = copy.copy(self)  # ONNX Runtime's own session runs from several threads at once, so it is shared
        other._lock = threading.Lock()
        other._in_flight = None
        other._executor = None
        other._stage()
        return other

    def state(self, pairs: Mapping[str, str], *, initial: Mapping[str, Any] | None = None) -> StatefulRunner:
        self.check_open()
        return _Stateful(self, pairs, initial)

    @property
    def closed(self) -> bool:
        return self._session is None

    def close(self) -> None:
        with self._lock:
            if self._executor is not None:
                self._executor.shutdown()
                self._executor = None
            self._session = None


def _with_input_shapes(model: str | os.PathLike[str] | bytes, name: str, input_shapes: Mapping[str, Shape]) -> bytes:
    from .building.graph import declare

    proto = read_model(model, external_data=True)
    try:
        declare(proto, input_shapes, name)
    except BuildError as error:
        raise OnnxError(str(error)) from error
    serialized: bytes = proto.SerializeToString()
    return serialized


class _Stateful(StatefulRunner, RunnerAbove):  # StatefulRunner first: its inputs and outputs leave out the state
    """The reference with a state, kept in NumPy arrays."""

    def __init__(self, runner: OnnxRuntimeSession, pairs: Mapping[str, str], initial: Mapping[str, Any] | None) -> None:
        check_pairs(runner.inputs, runner.outputs, pairs)
        self._values = initial_state(runner.inputs, pairs, initial)
        super().__init__(runner.clone())
        self._set_specs(runner.inputs, runner.outputs, pairs)
        self._pairs = dict(pairs)
        self._lock = threading.Lock()

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        with self._lock:
            self._inputs.check_names(inputs)
            results = self._runner.run({**inputs, **self._values}, outputs=outputs, stream=stream)
            self._values = {name: results.pop(output) for name, output in self._pairs.items()}
            return results

    def enqueue(self, inputs: Mapping[str, Any]) -> Pending:
        """The next request needs this one's outputs, so it runs at once."""
        return Done(self.run(inputs))

    def reset(self, initial: Mapping[str, Any] | None = None) -> None:
        with self._lock:
            self._values = initial_state(self._runner.inputs, self._pairs, initial)

    def read_state(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        with self._lock:
            return {name: value.copy() for name, value in self._values.items()}


class _InFlight:
    """A request that was enqueued on the reference."""

    def __init__(self, session: OnnxRuntimeSession, future: Future[dict[str, Any]]) -> None:
        self._session = session
        self._future = future

    def result(self) -> dict[str, Any]:
        try:
            return self._future.result()
        finally:
            self._session._in_flight = None


def _spec(value: Any) -> TensorSpec:
    dtype = _DTYPES.get(value.type)
    if dtype is None:
        raise UnsupportedTensorError(
            f"{value.name!r} is a {value.type}, which the CPU reference cannot exchange with NumPy. "
            "Build an engine and run it on a GPU, or change the model's input or output to a plain tensor."
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape or ())
    return TensorSpec(value.name, np.dtype(dtype), shape)
