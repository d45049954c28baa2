"""Rounds of a new engine whose first requests come from many threads at once, so that shapes are bound, kernels are
compiled and graphs are captured and replayed side by side. A process of its own: what goes wrong there kills it.

    python -m tests.gpu.first_requests SEED SECONDS     prints the number of rounds that were right
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time

import numpy as np
import onnx
import torch
from onnx import numpy_helper

import trtrun
from tests import models
from tests.gpu.conftest import SHAPES, TF32, relative_error
from trtrun.building.builder import build_plan
from trtrun.building.options import BuildOptions, parse_shapes
from trtrun.pipeline import Pipeline

THREADS = 6
REQUESTS = 14


def network(rng: np.random.Generator) -> bytes:
    """The convolution with other weights, so that no kernel of another engine's cache is of use."""
    model = onnx.load_model_from_string(models.convolution())
    for weights in model.graph.initializer:
        shape = tuple(weights.dims)
        weights.CopyFrom(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) / 5, weights.name))
    return model.SerializeToString()


def one_round(rng: np.random.Generator) -> None:
    model = network(rng)
    plan = build_plan(model, BuildOptions(profiles=parse_shapes(SHAPES["convolution"])))
    shapes = [(int(n), 3, int(h), int(w)) for n, h, w in rng.integers((1, 8, 8), (5, 65, 65), (6, 3))]
    reference = trtrun.OnnxRuntimeSession(model)
    failures: list[BaseException] = []
    with trtrun.load(plan) as session, Pipeline(session, depth=4) as pipeline:
        seeds = rng.integers(1 << 30, size=THREADS)

        def work(thread: int) -> None:
            own = np.random.default_rng(seeds[thread])
            try:
                for turn in range(REQUESTS):
                    x = own.standard_normal(shapes[own.integers(len(shapes))]).astype(np.float32)
                    array = torch.from_numpy(x).cuda() if (turn + thread) % 2 else x
                    out = pipeline.submit(array).result()
                    for name, wanted in reference(x).items():
                        assert relative_error(out[name], wanted) <= TF32
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failures:
        raise failures[0]


def main(seed: int, seconds: float) -> None:
    faulthandler.enable()
    rng = np.random.default_rng(seed)
    rounds, until = 0, time.monotonic() + seconds
    while time.monotonic() < until:
        one_round(rng)
        rounds += 1
        print(rounds, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
