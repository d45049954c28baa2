"""Nothing grows: neither device memory nor host memory, over many runs and many loads."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

import numpy as np
import psutil

import trtrun
from tests.gpu.conftest import memory_in_use
from trtrun.cuda.device import Device
from trtrun.session import Session


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


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
