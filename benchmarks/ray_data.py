"""Measure Ray Data over one GPU against a pipeline in this process, on the same arrays.

    python benchmarks/ray_data.py [MEMORY_GIB]

Needs ``ray[data]``. With a GPU the model is an engine and the result goes to benchmarks/results/<gpu>.json; without one
it runs in ONNX Runtime on the CPU, and the figure is only printed. MEMORY_GIB (12) is what Ray's object store may take.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from results import compare_rates, environment, store
from serve import DTYPE, GPU, ROW, Models

import trtrun
from trtrun.integrations import ray_data
from trtrun.pipeline import Pipeline

BATCH = 32
BLOCKS, ROWS = (16, 1024) if GPU else (12, 128)  # of the data set: 5 GB and 0.9 GB
PASSES = 4 if GPU else 2  # over it in a round: a GPU is through once in less than a second
ROUNDS = 3


def here(path: Path, blocks: list[np.ndarray]) -> list[float]:
    """Images per second of Pipeline.map."""
    rates = []
    with trtrun.load(path) as runner, Pipeline(runner, depth=None if GPU else 1) as pipeline:
        for _ in range(ROUNDS + 1):
            requests = [block[i : i + BATCH] for block in blocks * PASSES for i in range(0, ROWS, BATCH)]
            start = time.perf_counter()
            for _ in pipeline.map(requests):
                pass
            rates.append(len(requests) * BATCH / (time.perf_counter() - start))
    return rates[1:]  # the first measures the depth


def on_ray(path: Path, blocks: list[np.ndarray], memory: int, gpus: int = int(GPU)) -> list[float]:
    """Images per second of Ray Data with an actor per GPU, from the first block that is done to the last."""
    import ray

    ray.init(
        include_dashboard=False,
        object_store_memory=memory,
        log_to_driver=False,
        num_gpus=gpus,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = 120  # all of them begin together: else the first has the data set for itself
    dataset = ray.data.from_numpy(blocks).rename_columns({"data": "images"}).materialize()
    dataset = dataset.union(*[dataset] * (PASSES - 1))
    rates = []
    for _ in range(ROUNDS):
        results = ray_data.infer(
            dataset,
            path,
            batch_size=ROWS,
            concurrency=max(gpus, 1),
            num_gpus=1 if gpus else 0,
            rows=BATCH,
            depth=4 if gpus else 1,
        )
        times, rows = [], 0
        for batch in results.iter_batches(batch_size=None, prefetch_batches=0):
            times.append(time.perf_counter())
            rows += len(batch["logits"])
        assert rows == PASSES * len(blocks) * ROWS
        # The actors start, and load the engine, before the first block of each; what is done by then does not count.
        first = max(gpus, 1) - 1
        rates.append((len(times) - 1 - first) * ROWS / (times[-1] - times[first]))
    ray.shutdown()
    return rates


def main(memory: int) -> None:
    os.environ.setdefault("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    with tempfile.TemporaryDirectory() as folder:
        path = Models(Path(folder))("resnet50" if GPU else "mobilenet")
        rng = np.random.default_rng()
        one = rng.standard_normal((ROWS, *ROW), np.float32).astype(DTYPE)
        blocks = [np.roll(one, index, axis=0) for index in range(BLOCKS)]
        alone, ray = here(path, blocks), on_ray(path, blocks, memory)
    what = f"{'ResNet-50' if GPU else 'MobileNetV3'}, requests of {BATCH}: Ray Data with one actor / Pipeline.map here"
    record = compare_rates("ray.data.vs_pipeline", what, ray, alone)
    print(f"  {record.id}: {record.ratio} {record.spread}  {record.ours} / {record.reference} {record.unit}")
    if GPU:
        print(store([record], environment()))


if __name__ == "__main__":
    main(int(float(sys.argv[1]) * 2**30) if len(sys.argv) > 1 else 12 << 30 if GPU else 2 << 30)
