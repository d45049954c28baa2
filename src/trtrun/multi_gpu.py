"""One model on several GPUs: requests go to the one with least to do, and a GPU that fails is taken out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .errors import DeviceError, ExecutionError, InputError, NoGpuError, OutOfMemoryError
from .runner import OutputMode, Pending, Runner, RunnerAbove, StatefulRunner, check_output_mode
from .tensor_spec import TensorSpecs

_LOG = logging.getLogger("trtrun")
_T = TypeVar("_T")


class _Gpu:
    """One GPU's runner and what it has to do."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.requests = 0  # in progress through MultiGpuRunner.run
        self.taken = 0  # begun in all
        self.clones = 0
        self.sequences = 0  # begun in all
        self.failure: DeviceError | None = None


class MultiGpuRunner(Runner):
    """Runs a model on several GPUs, each of which has loaded it.

    ``run`` may be called from any number of threads; each call takes the GPU with the fewest calls in progress,
    and of several such the one that has taken the fewest. :class:`~trtrun.pipeline.Pipeline` over it has its slots on
    all GPUs, and the slot that is free takes the next request, so a slower GPU is given fewer; a sequence of ``state``
    stays on one. Arrays are on the host: for arrays on a GPU and for streams load the model there.

    A GPU on which CUDA fails is taken out, with a warning in the log. ``run`` repeats its request on another one; of a
    pipeline those requests fail that the GPU had in flight, because their arrays belong to the caller again. Slots on
    the failed GPU move to the others. When none is left, requests raise DeviceError.

    Args:
        runners: one per GPU, of the same model; closed with this one.
    """

    def __init__(self, runners: Sequence[Runner]) -> None:
        if not runners:
            raise ValueError("a MultiGpuRunner needs at least one runner")
        self._gpus = [_Gpu(runner) for runner in runners]
        self._lock = threading.Lock()
        self._in_flight = False
        self._closed = False

    @property
    def inputs(self) -> TensorSpecs:
        return self._gpus[0].runner.inputs

    @property
    def outputs(self) -> TensorSpecs:
        return self._gpus[0].runner.outputs

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self._gpus[0].runner.metadata

    @property
    def backend(self) -> str:
        return ", ".join(gpu.runner.backend + (" (failed)" if gpu.failure else "") for gpu in self._gpus)

    @property
    def graph_reason(self) -> str | None:
        """Why requests are not replayed as CUDA graphs, on the first of the GPUs where they are not; None if none."""
        return next((reason for gpu in self._gpus if (reason := gpu.runner.graph_reason) is not None), None)

    @property
    def parallel(self) -> int:
        return max(1, sum(gpu.failure is None for gpu in self._gpus))

    @property
    def failures(self) -> dict[int, DeviceError]:
        """What the GPUs failed with that were taken out, by their place among the runners."""
        return {index: gpu.failure for index, gpu in enumerate(self._gpus) if gpu.failure is not None}

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        check_output_mode(outputs)
        if outputs != "copy" or stream is not None:
            raise InputError(
                "a runner over several GPUs takes and gives arrays on the host: any of the GPUs may answer. For "
                f"outputs={outputs!r} or stream= load the model on one: load(..., device=N)."
            )
        while True:
            self.check_open()
            gpu = self._least_busy()
            try:
                return gpu.runner.run(inputs)
            except DeviceError as error:
                self.take_out(gpu, error)  # raises what is no failure of the GPU
            finally:
                with self._lock:
                    gpu.requests -= 1

    def _least_busy(self) -> _Gpu:
        with self._lock:
            self._check_idle()
            gpu = min(self._working(), key=lambda gpu: (gpu.requests, gpu.taken))
            gpu.requests += 1
            gpu.taken += 1
            return gpu

    def _working(self) -> list[_Gpu]:
        working = [gpu for gpu in self._gpus if gpu.failure is None]
        if not working:
            raise DeviceError(
                f"all {len(self._gpus)} GPUs have failed; the last with: {self._gpus[-1].failure}. Restart the process."
            ) from self._gpus[-1].failure
        return working

    def take_out(self, gpu: _Gpu, error: DeviceError) -> None:
        """Give this GPU nothing more to do. Raises ``error`` when it does not mean that the GPU has failed."""
        if isinstance(error, (NoGpuError, OutOfMemoryError)):
            raise error
        with self._lock:
            if gpu.failure is not None:
                return
            gpu.failure = error
            left = sum(other.failure is None for other in self._gpus)
        _LOG.warning("%s was taken out, %d of %d are left: %s", gpu.runner.backend, left, len(self._gpus), error)

    def enqueue(self, inputs: Mapping[str, Any]) -> Pending:
        self.check_open()
        with self._lock:
            self._check_idle()
            gpu = self._working()[0]
            self._in_flight = True
        try:  # without the lock: the first request of a shape compiles
            return _Pending(self, gpu, gpu.runner.enqueue(inputs), self._collected)
        except BaseException:
            self._in_flight = False
            raise

    def _check_idle(self) -> None:
        if self._in_flight:
            raise ExecutionError(
                "this runner has a request in flight: collect it with result() first, or use a Pipeline."
            )

    def _collected(self) -> None:
        self._in_flight = False

    def clone(self) -> Runner:
        """A runner on the GPU that has the fewest clones, which moves to another when that one fails."""
        self.check_open()
        return _Clone(self, *self.new_runner())

    def state(self, pairs: Mapping[str, str], *, initial: Mapping[str, Any] | None = None) -> StatefulRunner:
        self.check_open()
        with self._lock:
            gpu = min(self._working(), key=lambda gpu: gpu.sequences)
            gpu.sequences += 1
        return gpu.runner.state(pairs, initial=initial)

    def new_runner(self) -> tuple[_Gpu, Runner]:
        """A new runner on the working GPU with the fewest clones."""
        with self._lock:
            gpu = min(self._working(), key=lambda gpu: gpu.clones)
            gpu.clones += 1
        try:
            return gpu, gpu.runner.clone()
        except BaseException:
            self.displace(gpu)
            raise

    def place_of(self, gpu: _Gpu) -> int:
        return self._gpus.index(gpu)

    def displace(self, gpu: _Gpu) -> None:
        with self._lock:
            gpu.clones -= 1

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        for gpu in reversed(self._gpus):
            _close(gpu, gpu.runner)


def _close(gpu: _Gpu, runner: Runner) -> None:
    try:
        runner.close()
    except DeviceError:
        if gpu.failure is None:  # what a GPU that has failed says to it is no news
            raise


class _Clone(RunnerAbove):
    """A clone on one GPU, until that one fails."""

    def __init__(self, parent: MultiGpuRunner, gpu: _Gpu, runner: Runner) -> None:
        super().__init__(runner)
        self._parent = parent
        self._gpu = gpu

    @property
    def staging(self) -> Any:
        """The page-locked input buffers on the GPU that is used now; None where its runner has none.

        Should that GPU fail, what was put there stays in memory, and the next one takes the request from there.
        """
        if self._gpu.failure is not None:
            self._move()
        return getattr(self._runner, "staging", None)

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        return self._working(lambda: self._runner.run(inputs, outputs=outputs, stream=stream))

    def enqueue(self, inputs: Mapping[str, Any]) -> Pending:
        pending = self._working(lambda: self._runner.enqueue(inputs))
        return _Pending(self._parent, self._gpu, pending)

    @property
    def place(self) -> int:
        return self._parent.place_of(self._gpu)

    def _working(self, call: Callable[[], _T]) -> _T:
        """Call on a GPU that works, and on the next one if it fails meanwhile."""
        while True:
            if self._gpu.failure is not None:
                self._move()
            try:
                return call()
            except DeviceError as error:
                self._parent.take_out(self._gpu, error)

    def _move(self) -> None:
        gpu, runner = self._parent.new_runner()
        runner.shares_gpu = self._runner.shares_gpu
        runner.copy_helpers = self._runner.copy_helpers  # and no turns: those of the GPU that failed are not there
        self._release()
        self._gpu, self._runner = gpu, runner

    def _release(self) -> None:
        self._parent.displace(self._gpu)
        _close(self._gpu, self._runner)

    def clone(self) -> Runner:
        return self._parent.clone()

    def close(self) -> None:
        if not self._runner.closed:
            self._release()


class _Pending:
    """A request that was enqueued on one of the GPUs."""

    def __init__(
        self, parent: MultiGpuRunner, gpu: _Gpu, pending: Pending, collected: Callable[[], None] | None = None
    ) -> None:
        self._parent = parent
        self._gpu = gpu
        self._pending = pending
        self._collected = collected

    def result(self) -> dict[str, Any]:
        try:
            return self._pending.result()
        except DeviceError as error:
            self._parent.take_out(self._gpu, error)
            raise
        finally:
            if self._collected is not None:
                self._collected()
