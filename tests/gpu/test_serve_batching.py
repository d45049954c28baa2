"""Dynamic batching on engines: few sizes of batches, filled from arrays and from shared memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from multiprocessing import shared_memory

import numpy as np
import pytest

import trtrun
from tests.gpu.conftest import TF32
from trtrun.serve.batcher import Batcher, BatchOptions
from trtrun.serve.protocol import Region, from_bytes
from trtrun.serve.shared_memory import SharedMemory

RNG = np.random.default_rng()


@pytest.mark.parametrize("devices", [None, [0, 0]])
def test_what_waits_together_is_answered_rightly(
    devices: list[int] | None, plan: Callable[[str], bytes], reference: Callable
) -> None:
    batches: list[int] = []
    with trtrun.load(plan("affine"), devices=devices) as runner:
        batcher = Batcher(runner, BatchOptions(8, max_queue_time=60), lambda outcome: batches.append(outcome.batch))
        assert batcher.sizes
        assert batcher.sizes[-1] == batcher.max_batch_size
        for size in batcher.sizes:
            batcher.warm_up({"x": np.zeros((size, 12), np.float32)})

        def ask() -> None:
            xs = [RNG.standard_normal((1 + index % 3, 12)).astype(np.float32) for index in range(50)]
            futures = [batcher.submit({"x": x}) for x in xs]
            for x, future in zip(xs, futures, strict=True):
                for name, wanted in reference("affine")(x).items():
                    found = future.result(60)[name]
                    assert found.shape == wanted.shape
                    np.testing.assert_allclose(found, wanted, rtol=TF32, atol=0.02)  # rows may be nearly zero

        failed: list[BaseException] = []

        def kept() -> None:
            try:
                ask()
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=kept) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        batcher.close()
        assert not failed, failed[0]
        assert batcher.failure is None
    assert max(batches) > 3


def test_tensors_in_shared_memory_go_straight_into_staging(plan: Callable[[str], bytes], reference: Callable) -> None:
    xs = RNG.standard_normal((6, 2, 12)).astype(np.float32)
    shared = shared_memory.SharedMemory(create=True, size=xs.nbytes)
    try:
        np.frombuffer(shared.buf, np.float32).reshape(xs.shape)[...] = xs
        memory = SharedMemory(prefix="")
        memory.register("region", shared.name, xs.nbytes)
        with trtrun.load(plan("affine")) as runner:
            batcher = Batcher(runner, BatchOptions(8, max_queue_delay=0.05, instances=1))
            futures = []
            for index, x in enumerate(xs):
                part = memory(Region("region", index * x.nbytes, x.nbytes))
                futures.append(batcher.submit({"x": from_bytes("x", part, np.dtype(np.float32), x.shape)}))
            for x, future in zip(xs, futures, strict=True):
                for name, wanted in reference("affine")(x).items():
                    np.testing.assert_allclose(future.result(60)[name], wanted, rtol=TF32, atol=0.02)
            batcher.close()
    finally:
        shared.close()
        shared.unlink()
