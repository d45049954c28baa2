from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from trtrun.arrays import CopyPool, as_host_array, copy_out
from trtrun.errors import InputError


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_copy_pool_copies_everything_once(threads: int) -> None:
    pool = CopyPool(threads)
    rng = np.random.default_rng()
    for nbytes in (CopyPool.THRESHOLD - 1, CopyPool.THRESHOLD, 5 * CopyPool.CHUNK + 17):
        source = rng.integers(0, 256, nbytes, np.uint8)
        target = np.full(nbytes, 0xAA, np.uint8)
        done = []
        pool.copy(target, source, lambda start, stop, done=done: done.append((start, stop)))
        np.testing.assert_array_equal(target, source)
        edges = sorted(done)
        assert edges[0][0] == 0
        assert edges[-1][1] == nbytes
        assert all(left[1] == right[0] for left, right in itertools.pairwise(edges))


def test_copy_pool_takes_strided_sources() -> None:
    source = np.random.default_rng().random((600, 1000), np.float32).T
    target = np.empty((1000, 600), np.float32)
    CopyPool(4).copy(target, source)
    np.testing.assert_array_equal(target, source)


def test_copy_pool_raises_what_a_worker_raised_and_stays_usable() -> None:
    pool = CopyPool(3)
    source = np.zeros(8 * CopyPool.CHUNK, np.uint8)

    def fail(start: int, stop: int) -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        pool.copy(np.empty_like(source), source, fail)
    target = np.ones_like(source)
    pool.copy(target, source)
    assert not target.any()


def test_copy_pool_from_several_threads_at_once() -> None:
    pool = CopyPool(3)
    rng = np.random.default_rng()
    sources = [rng.integers(0, 256, 3 * CopyPool.CHUNK, np.uint8) for _ in range(6)]
    targets = [np.zeros_like(source) for source in sources]
    threads = [threading.Thread(target=pool.copy, args=pair) for pair in zip(targets, sources, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for source, target in zip(sources, targets, strict=True):
        np.testing.assert_array_equal(source, target)


def test_copy_out_belongs_to_the_caller() -> None:
    for count in (10, 1 << 20):
        view = np.arange(count, dtype=np.float32)
        result = copy_out(view)
        assert not np.shares_memory(view, result)
        np.testing.assert_array_equal(view, result)


def test_as_host_array() -> None:
    x = np.zeros(3)
    assert as_host_array(x, "x") is x
    assert as_host_array([1, 2], "x").dtype.kind == "i"

    class Bad:
        def __array__(self, *args: object, **options: object) -> np.ndarray:
            raise RuntimeError("not now")

    with pytest.raises(InputError, match=r"Bad.*not now"):
        as_host_array(Bad(), "x")
