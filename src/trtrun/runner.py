"""The contract that everything above the engine stands on: specs, run, close.

Two real runners implement it, :class:`trtrun.session.Session` (TensorRT) and
:class:`trtrun.onnx_runtime.OnnxRuntimeSession` (the CPU reference). The same conformance tests run against both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from typing_extensions import Self

from .arrays import as_host_array
from .errors import ClosedError, DtypeError, ExecutionError, InputError, InputNameError, ShapeError
from .tensor_spec import TensorSpecs

if TYPE_CHECKING:
    from .bound import Bound
    from .turns import Turns

OutputMode = Literal["copy", "view", "device"]
_OUTPUT_MODES = get_args(OutputMode)


def check_output_mode(outputs: str) -> None:
    """Raises InputError for what is no OutputMode."""
    if outputs not in _OUTPUT_MODES:
        raise InputError(
            f'outputs={outputs!r} is not known: give "copy", "view" or "device" (DeviceArrays on the GPU).'
        )


class Pending(Protocol):
    """A request that was enqueued and has not been collected."""

    def result(self) -> dict[str, Any]:
        """Wait for the request and return its outputs by name, in engine order. Raises what the request raised."""
        ...


class Memory(Protocol):
    """Memory by name, which grows to the largest request and stays; what grows moves. Names begin with a NUL."""

    def host(self, name: str, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Page-locked memory of at least so many bytes."""
        ...

    def on_gpu(self, name: str, nbytes: int) -> int:
        """The address of at least so many bytes on the GPU."""
        ...


class Step(Protocol):
    """Work on the GPU whose addresses stay the same."""

    def enqueue(self, stream: int) -> None: ...


class Stages(Protocol):
    """Steps on the GPU before and after a model, which join its CUDA graph. A description, which many runners share.

    Attributes:
        inputs, outputs: names of the model's inputs that the steps before write, and of the outputs that those after
            read: these stay on the GPU.
    """

    inputs: frozenset[str]
    outputs: frozenset[str]

    def open(self, device: int, memory: Memory) -> OpenStages:
        """The same for one runner, on the GPU of this ordinal, which is current."""
        ...


class OpenStages(Protocol):
    """The stages of one runner."""

    def fill(
        self, request: Mapping[str, Any], stream: int, *, helpers: bool
    ) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        """Bring a request to the GPU on a stream; with several threads where ``helpers`` says so.

        Returns the shapes of the model's inputs, and the copies (target, source, bytes) that are still to be made,
        which may join the graph. Raises InputError, with nothing done, for a request that cannot be taken.
        """
        ...

    def bind(
        self, inputs: Mapping[str, tuple[int, Any]], outputs: Mapping[str, tuple[int, Any]]
    ) -> tuple[list[Step], list[Step]]:
        """The steps before and after a model whose tensors lie at these addresses and have these shapes."""
        ...

    def results(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """What the last request gave, by name; arrays that belong to the caller."""
        ...


class Done:
    """A request that has run already, as a :class:`Pending`."""

    def __init__(self, results: dict[str, Any]) -> None:
        self._results = results

    def result(self) -> dict[str, Any]:
        return self._results


class Runner(ABC):
    """Runs one request at a time. Safe to call from any thread; calls from several threads take turns.

    Attributes:
        copy_helpers: fill large inputs with several threads, where the runner has such. It makes one request faster;
            where requests overlap anyway, one thread may serve the GPU as well and leave it more of the memory.
        shares_gpu: set by a pipeline before the first request: others compute on the same GPU meanwhile, so its cores
            are left to them. Arrays that are not tiny are copied by the copy engines, which takes a request alone some
            µs longer.
        turns: what the runners share whose requests shall compute a few at a time, where the runner is on a GPU.
    """

    copy_helpers: bool = True
    shares_gpu: bool = False
    turns: Turns | None = None

    @property
    def parallel(self) -> int:
        """How many GPUs the clones of this runner are spread over."""
        return 1

    @property
    def place(self) -> int:
        """On which of the GPUs this runner is that it shares with others."""
        return 0

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

    @property
    def graph_reason(self) -> str | None:
        """Why requests are not replayed as CUDA graphs; None when they are (from the second of a shape on)."""
        return f"{self.backend} has no CUDA graphs"

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

        The arrays in ``inputs`` may be changed as soon as this returns: those on a GPU, too, are copied by then, for
        which it waits until their producer is done with them. Not so a view of this runner's ``staging``, which the GPU
        reads in place. A runner has one request in flight: enqueueing another before ``result()`` raises
        ExecutionError. :class:`~trtrun.pipeline.Pipeline` keeps several runners busy.
        """

    def follow_producers(self, inputs: Mapping[str, Any]) -> None:  # noqa: B027  # on the CPU there is nothing to do
        """Let the legacy default stream wait for what fills the GPU arrays of a request.

        Libraries order an array after the stream that is current in the calling thread. In another thread, where the
        request is enqueued afterwards, that is the legacy default stream.
        """

    @abstractmethod
    def clone(self) -> Runner:
        """Another runner over the same loaded model, with its own buffers and stream."""

    def state(self, pairs: Mapping[str, str], *, initial: Mapping[str, Any] | None = None) -> StatefulRunner:
        """A runner over the same model that remembers: outputs of one request are inputs of the next.

        Args:
            pairs: the inputs that get their value from the request before, each with the name of that output. They
                are no longer given by the caller, nor returned.
            initial: what these inputs are before the first request, by input name. Without a value: zeros, of the
                smallest shape that the model accepts.

        Raises InputNameError, ShapeError or DtypeError where an input and its output do not fit each other.
        """
        raise ExecutionError(f"{self.backend} cannot keep state between requests.")

    def bind(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], *, stream: Any | None = None) -> Bound:
        """A request over GPU arrays that stay the same; see :meth:`~trtrun.session.Session.bind`."""
        raise ExecutionError(f"{self.backend} has no requests over bound GPU arrays; run() takes new ones each time.")

    def staged(self, stages: Stages) -> Runner | None:
        """A runner over the same model with steps of its own on the GPU; None where this runner cannot have any.

        Its requests are what the stages take, its results what they give beside the outputs that they leave. It is
        closed with this runner.
        """
        return None

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


class RunnerAbove(Runner):
    """A runner over another, which it closes with itself and whose properties are its own."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    @property
    def copy_helpers(self) -> bool:
        return self._runner.copy_helpers

    @copy_helpers.setter
    def copy_helpers(self, wanted: bool) -> None:
        self._runner.copy_helpers = wanted

    @property
    def shares_gpu(self) -> bool:
        return self._runner.shares_gpu

    @shares_gpu.setter
    def shares_gpu(self, shared: bool) -> None:
        self._runner.shares_gpu = shared

    @property
    def turns(self) -> Turns | None:
        return self._runner.turns

    @turns.setter
    def turns(self, shared: Turns | None) -> None:
        self._runner.turns = shared

    @property
    def parallel(self) -> int:
        return self._runner.parallel

    @property
    def place(self) -> int:
        return self._runner.place

    @property
    def inputs(self) -> TensorSpecs:
        return self._runner.inputs

    @property
    def outputs(self) -> TensorSpecs:
        return self._runner.outputs

    @property
    def backend(self) -> str:
        return self._runner.backend

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._runner.metadata

    @property
    def graph_reason(self) -> str | None:
        return self._runner.graph_reason

    def follow_producers(self, inputs: Mapping[str, Any]) -> None:
        self._runner.follow_producers(inputs)

    @property
    def closed(self) -> bool:
        return self._runner.closed

    def close(self) -> None:
        self._runner.close()


class StatefulRunner(Runner):
    """A runner whose outputs of one request are inputs of the next: recurrent networks, KV caches.

    Requests are one sequence, in the order of the calls. It cannot be cloned; another sequence is another
    ``state()`` of the runner that it came from. A request that fails after it was started (no memory for its results)
    has advanced the state all the same: do not repeat it, but :meth:`reset`.
    """

    _inputs: TensorSpecs
    _outputs: TensorSpecs

    def _set_specs(self, inputs: TensorSpecs, outputs: TensorSpecs, pairs: Mapping[str, str]) -> None:
        """Leave out what the runner keeps to itself."""
        self._inputs = TensorSpecs(spec for name, spec in inputs.items() if name not in pairs)
        self._outputs = TensorSpecs(spec for name, spec in outputs.items() if name not in pairs.values())

    @property
    def inputs(self) -> TensorSpecs:
        return self._inputs

    @property
    def outputs(self) -> TensorSpecs:
        return self._outputs

    @abstractmethod
    def reset(self, initial: Mapping[str, Any] | None = None) -> None:
        """Begin a new sequence with these values, by input name; zeros for those without one."""

    @abstractmethod
    def read_state(self) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
        """A copy of the state on the host, by input name: what the next request will see."""

    def state(self, pairs: Mapping[str, str], *, initial: Mapping[str, Any] | None = None) -> StatefulRunner:
        raise ExecutionError("this runner keeps state already. Name all pairs in one state() of the runner below it.")

    def clone(self) -> Runner:
        raise ExecutionError(
            "a runner that keeps state runs one sequence and cannot be cloned; a pipeline would mix the order of its "
            "requests. For another sequence call state() of the runner that it came from."
        )


def check_pairs(inputs: TensorSpecs, outputs: TensorSpecs, pairs: Mapping[str, str]) -> None:
    """Raise unless every pair names an input and an output of one dtype and rank, each once."""
    for name, output in pairs.items():
        if name not in inputs or output not in outputs:
            raise InputNameError(f"state {name!r} <- {output!r}: the model takes {inputs!r} and gives {outputs!r}.")
        source, target = outputs[output], inputs[name]
        if source.dtype != target.dtype:
            raise DtypeError(
                f"state {name!r} <- {output!r}: the input is {target.dtype.name}, the output {source.dtype.name}."
            )
        if len(source.shape) != len(target.shape) or any(
            given != taken for given, taken in zip(source.shape, target.shape, strict=True) if -1 not in (given, taken)
        ):
            raise ShapeError(f"state {name!r} <- {output!r}: the shapes never fit, {target} and {source}.")
        if source.location != "device" or target.location != "device" or source.format or target.format:
            raise InputError(
                f"state {name!r} <- {output!r} would not stay on the GPU: {target} and {source}. Pass it yourself."
            )
    if len(set(pairs.values())) < len(pairs):
        raise InputNameError(f"one output feeds several inputs: {dict(pairs)}. Each output can feed one.")


def initial_state(
    inputs: TensorSpecs, pairs: Mapping[str, str], initial: Mapping[str, Any] | None
) -> dict[str, np.ndarray[Any, np.dtype[Any]]]:
    """The state before the first request: what the caller gave, checked, or zeros of the smallest shape."""
    given = dict(initial or {})
    unknown = sorted(given.keys() - pairs.keys())
    if unknown:
        raise InputNameError(f"{unknown} are not among the state's inputs {sorted(pairs)}.")
    arrays = {}
    for name in pairs:
        spec = inputs[name]
        if name in given:
            array = as_host_array(given[name], name)
            spec.check_shape(array.shape)
            spec.check_dtype(array.dtype)
            arrays[name] = np.ascontiguousarray(array, spec.dtype).reshape(array.shape)
        else:
            shape = spec.profiles[0].min if spec.profiles else tuple(max(size, 0) for size in spec.shape)
            arrays[name] = np.zeros(shape, spec.dtype)
    return arrays
