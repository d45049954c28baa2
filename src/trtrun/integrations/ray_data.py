"""Ray Data: a data set through a model, by actors that have a GPU each.

results = ray_data.infer(dataset, "resnet50.onnx", keep=["path"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import InputNameError
from ..pipeline import Pipeline
from ..predictor import load
from ..runner import Runner
from ..splitting import SplitRunner
from .shared_model import Model, SharedModel, import_ray, local_path

__all__ = ["Inference", "SharedModel", "infer"]

Batch = Mapping[str, np.ndarray[Any, np.dtype[Any]]]


class Inference:
    """Runs batches of columns: the class to give to ``Dataset.map_batches``, of which each actor makes one.

    An ONNX file is built into an engine by the first actor of a node; the others wait for it and take it from the
    cache. A batch is cut into requests, which overlap. Calls from several threads are fine.

    Args:
        model: a path that exists on every node, or a :class:`~trtrun.integrations.shared_model.SharedModel`.
        columns: the column of each input, by input name; equal names need none.
        keep: columns that are given on beside the outputs.
        rows: of a request; None takes what the optimization profiles hold at most, or the whole batch.
        depth: see :class:`~trtrun.pipeline.Pipeline`.
        options: of :func:`trtrun.load`.
    """

    def __init__(
        self,
        model: Model,
        *,
        columns: Mapping[str, str] | None = None,
        keep: Sequence[str] = (),
        rows: int | None = None,
        depth: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        runner = load(local_path(model), **(options or {}))
        most = _most_rows(runner)
        self._runner = SplitRunner(runner) if most else runner  # it fills what is left of a batch up where need be
        self._rows = rows or most
        self._keep = tuple(keep)
        self._columns = {name: (columns or {}).get(name, name) for name in runner.inputs}
        self._pipeline = Pipeline(self._runner, depth=depth)

    def __call__(self, batch: Batch) -> dict[str, Any]:
        """The outputs as columns, a row for each of the batch's. Raises InputNameError for a column that is not there.

        Args:
            batch: a NumPy array per column, as ``batch_format="numpy"`` gives them.
        """
        missing = sorted({*self._columns.values(), *self._keep} - set(batch))
        if missing:
            raise InputNameError(
                f"the data set has no column {missing}; it has {sorted(batch)}. Name the inputs' columns: "
                f"columns={{{next(iter(self._columns))!r}: COLUMN}}."
            )
        arrays = {name: batch[column] for name, column in self._columns.items()}
        count = len(next(iter(arrays.values())))
        step = self._rows or max(count, 1)
        requests = ({name: a[i : i + step] for name, a in arrays.items()} for i in range(0, count, step))
        parts = list(self._pipeline.map(requests))
        outputs: dict[str, Any] = {}
        for name in self._runner.outputs if parts else ():
            outputs[name] = np.concatenate([part[name] for part in parts])
        return {**{name: batch[name] for name in self._keep}, **outputs}


def infer(
    dataset: Any,
    model: Model,
    *,
    columns: Mapping[str, str] | None = None,
    keep: Sequence[str] = (),
    batch_size: int = 256,
    concurrency: int | None = None,
    num_gpus: float = 1,
    **inference: Any,
) -> Any:
    """``dataset.map_batches(Inference, …)`` with its resources declared.

    Args:
        dataset: a ``ray.data.Dataset`` with an array per row in each input's column.
        batch_size: rows that an actor gets at once. Large ones overlap more requests, and take more memory.
        concurrency: actors; None is one for each GPU of the cluster.
        num_gpus: of each actor; 0 where the model runs on the CPU.
        inference: ``rows``, ``depth`` and ``options`` of :class:`Inference`.

    Returns the lazy data set of the outputs and of the columns in ``keep``.
    """
    ray = import_ray()
    if concurrency is None:
        concurrency = max(int(ray.cluster_resources().get("GPU", 0) / num_gpus), 1) if num_gpus else 1
    return dataset.map_batches(
        Inference,
        fn_constructor_args=(model,),
        fn_constructor_kwargs={"columns": columns, "keep": keep, **inference},
        batch_size=batch_size,
        batch_format="numpy",
        zero_copy_batch=True,
        # Two calls at once: the next batch runs while the last one's outputs are stored.
        compute=ray.data.ActorPoolStrategy(
            size=concurrency, max_concurrent_calls_per_actor=2, enable_true_multi_threading=True
        ),
        num_gpus=num_gpus,
    )


def _most_rows(runner: Runner) -> int | None:
    """Rows of the largest batch, or None where the model sets no limit."""
    limits = [max(p.max[0] for p in spec.profiles) for spec in runner.inputs.values() if spec.profiles and spec.shape]
    limits += [spec.shape[0] for spec in runner.inputs.values() if spec.shape and spec.shape[0] > 0]
    return min(limits, default=None)
