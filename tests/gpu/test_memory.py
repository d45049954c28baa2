"""Nothing grows: neither device memory nor host memory, over many runs and many loads."""

from __future__ import annotations

import ctypes
import gc
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import psutil
import pytest

import trtrun
from tests.gpu.conftest import memory_in_use
from trtrun.cuda.device import Device
from trtrun.session import Session


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def settled() -> int:
    """Bytes of host memory in use, without what the C library keeps for its next allocations."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return resident()


def test_ten_thousand_runs_grow_nothing(open_session: Callable[..., Session]) -> None:
    session = open_session("affine")
    inputs = [np.random.default_rng().standard_normal((batch, 12)).astype(np.float32) for batch in (1, 4, 64)]
    for _ in range(100):
        for x in inputs:
            session(x)
    device = Device()
    tracemalloc.start()
    before = memory_in_use(device), resident(), tracemalloc.get_traced_memory()[0]
    for i in range(10_000):
        session(inputs[i % 3])
    after = memory_in_use(device), resident(), tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert after[0] == before[0]
    assert after[1] - before[1] < 2 << 20
    # tracemalloc's own bookkeeping and interned integers stay; a leak of one object a run would be 500 kB.
    assert after[2] - before[2] < 16 << 10


def test_two_hundred_loads_grow_nothing(plan: Callable[[str], bytes]) -> None:
    data = plan("affine")
    device = Device()
    x = np.ones((4, 12), np.float32)

    def cycle() -> None:
        with trtrun.load(data) as session:
            for _ in range(3):
                session(x)

    for _ in range(20):
        cycle()
    before = memory_in_use(device), resident()
    for _ in range(200):
        cycle()
    after = memory_in_use(device), resident()
    assert after[0] <= before[0]
    assert after[1] - before[1] < 8 << 20


def test_results_on_the_device_are_returned(open_session: Callable[..., Session]) -> None:
    session = open_session("convolution")
    x = np.ones((4, 3, 64, 64), np.float32)
    for _ in range(10):
        session.run({"x": x}, outputs="device")
    device = Device()
    before = memory_in_use(device)
    for _ in range(500):
        session.run({"x": x}, outputs="device")
    assert memory_in_use(device) <= before


SHAPE_BOUND = 32 << 10  # bytes that a shape may leave, on the host and on the GPU: less than its compiled kernel
SLACK = 16 << 20
PLANS_BOUND = 16 << 20  # bytes that 100 plans may leave: 160 kB each, a third of what one execution context takes


def test_two_thousand_shapes_through_one_session_stay_within_bounds() -> None:
    """A service whose requests hardly ever have the same shape twice; as many as come through in half a minute."""
    networks = pytest.importorskip("tests.networks")
    rng = np.random.default_rng()
    shapes = [(1 + int(i) // 64, 1 + int(i) % 64) for i in rng.permutation(64 * 64)[:2000]]
    device = Device()
    start = time.monotonic()
    before, count = (0, 0), 0
    with trtrun.load(networks.squared(64)) as session:
        session(np.ones((64, 64), np.float32))  # the largest: buffers grow no more
        for count, shape in enumerate(shapes):
            if count == 100:
                before = settled(), memory_in_use(device)
            if count >= 150 and time.monotonic() - start > 30:
                break
            x = rng.standard_normal(shape).astype(np.float32)
            np.testing.assert_allclose(session(x)["y"], x * x, rtol=1e-6)
        after = settled(), memory_in_use(device)
    grown = [b - a for a, b in zip(before, after, strict=True)]
    print(f"{count} shapes in {time.monotonic() - start:.0f} s: {grown} bytes on the host and on the GPU")
    assert all(growth < (count - 100) * SHAPE_BOUND + SLACK for growth in grown), (count, grown)


def test_a_hundred_plans_loaded_one_after_another_stay_within_bounds() -> None:
    """A service that is given ever new models. The plans are different ones: nothing of one is of use to another."""
    networks = pytest.importorskip("tests.networks")
    device = Device()
    held = []
    for count in range(1, 141):
        plan = networks.identity(networks.trt.float32, (2, count))
        x = np.random.default_rng().standard_normal((2, count)).astype(np.float32)
        with trtrun.load(plan) as session:
            for _ in range(3):
                np.testing.assert_array_equal(session(x)["y"], x)
        if count >= 40 and count % 50 == 40:
            held.append((settled(), memory_in_use(device)))
    assert len(held) == 3
    print("MB on the host, MB on the GPU, after each 50 plans:", [(a >> 20, b >> 20) for a, b in held])
    assert held[-1][0] - held[0][0] < PLANS_BOUND, held
    assert held[-1][1] - held[0][1] < PLANS_BOUND, held
