"""The contract that everything above the engine stands on: specs, run, close.

Two real runners implement it, :class:`trtrun.session.Session` (TensorRT) and
:class:`trtrun.onnx_runtime.OnnxRuntimeSession` (the CPU reference). The same conformance tests run against both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Literal, Protocol

from typing_extensions import Self

from .errors import ClosedError
from .tensor_spec import TensorSpecs

OutputMode = Literal["copy", "view", "device"]


class Pending(Protocol):
    """A request that was enqueued and has not been collected."""

    def result(self) -> dict[str, Any]:
        """Wait for the request and return its outputs by name, in engine order. Raises what the request raised."""
        ...


class Runner(ABC):
    """Runs one request at a time. Safe to call from any thread; calls from several threads take turns."""

    @property
    @abstractmethod
    def inputs(self) -> TensorSpecs:
        """Specs of the inputs, by name in engine order."""

    @property
    @abstractmethod
    def outputs(self) -> TensorSpecs:
        """Specs of the outputs, by name in engine order."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """What computes, in one line: ``"TensorRT-RTX 1.6.1.120 on NVIDIA H200"``."""

    @property
    @abstractmethod
    def metadata(self) -> Mapping[str, Any]:
        """What the model's exporter wrote beside it: Ultralytics' names, stride, task; ONNX metadata_props."""

    @abstractmethod
    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        """Run one request and return the outputs by name, in engine order.

        Args:
            inputs: one array per input name. NumPy-compatible arrays of any strides; a runner on a GPU also takes
                anything with DLPack or ``__cuda_array_interface__`` without a host copy.
            outputs: ``"copy"`` returns NumPy arrays that belong to the caller. ``"view"`` returns views of the
                runner's own buffers, overwritten by its next request. ``"device"`` returns
                :class:`~trtrun.arrays.DeviceArray` objects that stay on the GPU.
            stream: a CUDA stream of the caller's. With it the request starts after the work already on that stream and
                later work on that stream waits for it. With GPU arrays in and ``outputs="device"`` the call does not
                block then.

        Raises:
            InputError: names, shapes or dtypes do not fit.
            ExecutionError: the backend failed.
            ClosedError: the runner is closed.
        """

    @abstractmethod
    def enqueue(self, inputs: Mapping[str, Any]) -> Pending:
        """Start one request and return without waiting for it.

        The arrays in ``inputs`` may be changed as soon as this returns. A runner has one request in flight:
        enqueueing another before ``result()`` raises ExecutionError. :class:`~trtrun.pipeline.Pipeline` keeps
        several runners busy.
        """

    @abstractmethod
    def clone(self) -> Runner:
        """Another runner over the same loaded model, with its own buffers and stream."""

    @property
    @abstractmethod
    def closed(self) -> bool: ...

    @abstractmethod
    def close(self) -> None:
        """Release everything this runner created, in reverse order. Calling it again does nothing."""

    def __call__(self, *arrays: Any, **named: Any) -> dict[str, Any]:
        """Run one request: arrays in engine order, or by input name."""
        return self.run(self.inputs.bind(arrays, named))

    def __enter__(self) -> Self:
        self.check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check_open(self) -> None:
        if self.closed:
            raise ClosedError(f"this {type(self).__name__} is closed. Load the model again to run it.")

    def __repr__(self) -> str:
        state = " (closed)" if self.closed else ""
        return f"<{type(self).__name__} {self.backend}{state}: {self.inputs!r} -> {self.outputs!r}>"
