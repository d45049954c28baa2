"""Batches of any size over a model that takes only some: cut into parts, run in turn, put together again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

from .errors import InputError, ShapeError
from .pipeline import Pipeline
from .runner import Done, OutputMode, Pending, Runner, RunnerAbove, check_output_mode
from .tensor_spec import shape_text

Host = np.ndarray[Any, np.dtype[Any]]


class SplitRunner(RunnerAbove):
    """Runs a batch that is larger than the model takes in parts, two in flight.

    Rows must not influence each other, which is true of nearly every network that has a batch and cannot be known
    from the model: so this is asked for, ``load(..., split_batches=True)``. A batch that the model takes as it is goes
    straight through. Where the last part is smaller than the model takes, its last row is repeated, and what comes of
    the repetitions is dropped. Inputs that have no batch dimension go to every part.

    Args:
        runner: what runs the parts; closed with this one.

    Raises ShapeError when no input or not every output has a batch as its first dimension; and at a request whose parts
    give outputs that differ beyond the batch, which nothing can put together.
    """

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        # With a fixed batch the first dimension cannot be told from any other, so it is the one that all share.
        ranges = {
            name: (min(p.min[0] for p in spec.profiles), max(p.max[0] for p in spec.profiles))
            if spec.profiles
            else (spec.shape[0], spec.shape[0])
            for name, spec in runner.inputs.items()
            if spec.shape and spec.location == "device" and (spec.profiles or spec.shape[0] > 0)
        }
        dynamic = {name for name in ranges if runner.inputs[name].shape[0] == -1}
        self._batched = dynamic or set(ranges)
        without = [name for name, spec in runner.outputs.items() if not spec.shape or spec.data_dependent]
        if not self._batched or without:
            raise ShapeError(
                f"batches of this model cannot be split: {'no input' if not self._batched else f'output {without}'} "
                f"has no batch dimension. It takes {runner.inputs!r} and gives {runner.outputs!r}."
            )
        self._low = max(ranges[name][0] for name in self._batched)
        self._high = min(ranges[name][1] for name in self._batched)
        self._pipeline: Pipeline | None = None
        self._lock = threading.Lock()  # while the pipeline is made or closed

    def run(
        self, inputs: Mapping[str, Any], *, outputs: OutputMode = "copy", stream: Any | None = None
    ) -> dict[str, Any]:
        batch = self._batch(inputs)
        if batch is None or self._low <= batch <= self._high:
            return self._runner.run(inputs, outputs=outputs, stream=stream)
        check_output_mode(outputs)
        if outputs == "device" or stream is not None:
            raise InputError(
                f"a batch of {batch} is beyond what the model takes ({self._low} to {self._high}), and parts are put "
                'together on the host. Ask for outputs="copy" without a stream, or pass a smaller batch.'
            )
        return self._run_parts(inputs, batch)

    def enqueue(self, inputs: Mapping[str, Any]) -> Pending:
        batch = self._batch(inputs)
        if batch is None or self._low <= batch <= self._high:
            return self._runner.enqueue(inputs)
        return Done(self._run_parts(inputs, batch))

    def _batch(self, inputs: Mapping[str, Any]) -> int | None:
        """The batch of a request; None where the runner below shall judge it."""
        sizes = {np.shape(inputs[name])[:1] for name in self._batched if name in inputs}
        if len(sizes) != 1:
            return None
        (size,) = sizes
        return size[0] if size and size[0] > 0 else None

    def _run_parts(self, inputs: Mapping[str, Any], batch: int) -> dict[str, Any]:
        self.inputs.check_names(inputs)
        with self._lock:
            self.check_open()
            if self._pipeline is None:
                self._pipeline = Pipeline(self._runner, depth=2)
            pipeline = self._pipeline
        starts = range(0, batch, self._high)
        results: dict[str, Host] = {}
        # Closed on the way out, also by an error: what is in flight gives its slots back.
        with closing(pipeline.map(self._part(inputs, start, batch) for start in starts)) as parts:
            for start, part in zip(starts, parts, strict=True):
                rows = min(self._high, batch - start)
                for name, array in part.items():
                    expected = (max(rows, self._low), *results.get(name, array).shape[1:])
                    if array.shape != expected:
                        raise ShapeError(
                            f"batches of this model cannot be split: output {name!r} has shape "
                            f"{shape_text(array.shape)} for the part that begins at row {start}, where "
                            f"{shape_text(expected)} is needed to put the parts together. Pass batches that the model "
                            f"takes as they are: {self._low} to {self._high} rows."
                        )
                    if name not in results:
                        results[name] = np.empty((batch, *array.shape[1:]), array.dtype)
                    results[name][start : start + rows] = array[:rows]
        return results

    def _part(self, inputs: Mapping[str, Any], start: int, batch: int) -> dict[str, Any]:
        stop = min(start + self._high, batch)
        part = dict(inputs)
        for name in self._batched:
            rows = part[name][start:stop]
            if stop - start < self._low:
                rows = np.concatenate([rows, np.repeat(rows[-1:], self._low - (stop - start), axis=0)])
            part[name] = rows
        return part

    def clone(self) -> Runner:
        return SplitRunner(self._runner.clone())

    def close(self) -> None:
        with self._lock:
            if self._pipeline is not None:
                self._pipeline.close()
            super().close()
