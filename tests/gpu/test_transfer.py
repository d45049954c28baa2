"""The kernel and the copy engine move exactly the bytes they are told to."""

from __future__ import annotations

import numpy as np
import pytest

from tests.gpu.conftest import memcpy_nodes
from trtrun.cuda.device import Device
from trtrun.cuda.graph import capture
from trtrun.cuda.memory import DeviceMemory, PinnedMemory
from trtrun.cuda.stream import create_stream
from trtrun.cuda.transfer import KERNEL_LIMIT, SHARED_KERNEL_LIMIT, Transfers

SIZES = [1, 15, 16, 17, 4096, 16384, 16385, 100_003, 262_144, KERNEL_LIMIT, KERNEL_LIMIT + 1, 3, 65_536]


@pytest.mark.parametrize("offset", [0, 16, 1, 10])
@pytest.mark.parametrize("count", [1, 8, 9, len(SIZES)])
@pytest.mark.parametrize("shares_gpu", [False, True])
def test_there_and_back(count: int, offset: int, shares_gpu: bool) -> None:
    device = Device()
    sizes = SIZES[:count]
    rng = np.random.default_rng()
    with device:
        stream = create_stream(device)
        room = 64  # bytes behind each piece that nobody may touch
        sources = [PinnedMemory(device, size + room).array for size in sizes]
        targets = [PinnedMemory(device, size + room + offset).array[offset:] for size in sizes]
        on_gpu = [DeviceMemory(device, size) for size in sizes]
        there = Transfers(
            device,
            [(m.address, s.ctypes.data, n) for m, s, n in zip(on_gpu, sources, sizes, strict=True)],
            shares_gpu=shares_gpu,
        )
        back = Transfers(
            device,
            [(t.ctypes.data, m.address, n) for m, t, n in zip(on_gpu, targets, sizes, strict=True)],
            shares_gpu=shares_gpu,
        )
        for _ in range(3):
            for source, target in zip(sources, targets, strict=True):
                source[:] = rng.integers(0, 256, source.shape, np.uint8)
                target[:] = 0xA5
            there.enqueue(int(stream.handle))
            back.enqueue(int(stream.handle))
            stream.sync()
            for source, target, size in zip(sources, targets, sizes, strict=True):
                np.testing.assert_array_equal(target[:size], source[:size])
                assert (target[size:] == 0xA5).all()
        for memory in on_gpu:
            memory.close()
        stream.close()


@pytest.mark.parametrize(
    ("nbytes", "alone", "shared"),
    [(4096, 0, 0), (SHARED_KERNEL_LIMIT, 0, 0), (SHARED_KERNEL_LIMIT + 1, 0, 1), (KERNEL_LIMIT + 1, 1, 1)],
)
def test_the_copy_engine_copies_more_where_the_gpu_is_shared(nbytes: int, alone: int, shared: int) -> None:
    device = Device()
    with device:
        stream = create_stream(device)
        source, target = PinnedMemory(device, nbytes), DeviceMemory(device, nbytes)
        counts = []
        for shares_gpu in (False, True):
            transfers = Transfers(device, [(target.address, source.address, nbytes)], shares_gpu=shares_gpu)
            transfers.enqueue(int(stream.handle))  # loads the kernel
            stream.sync()
            capture(int(stream.handle), transfers.enqueue, lambda graph: counts.append(memcpy_nodes(graph))).close()
        assert counts == [alone, shared]
        target.close()
        stream.close()
