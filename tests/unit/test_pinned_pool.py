"""Page-locked memory that is lent: which arrays are over it, and how much it is more than asked for."""

from __future__ import annotations

import numpy as np
import pytest

from trtrun.cuda.memory import PinnedPool, _Lent, rounded_up


@pytest.mark.parametrize("nbytes", [1, 4096, 4097, 1080 * 1920 * 3, 10**7, 123_456_789])
def test_sizes_are_rounded_up_to_few(nbytes: int) -> None:
    size = rounded_up(nbytes)
    assert nbytes <= size <= max(nbytes * 9 / 8, nbytes + 4096)
    assert size % 4096 == 0
    assert rounded_up(size) == size


def test_views_of_lent_memory_are_known() -> None:
    class Memory:  # what PinnedMemory shows of itself
        __array_interface__ = np.empty(rounded_up(600), np.uint8).__array_interface__

    picture = np.asarray(_Lent(Memory()))[:600].reshape(10, 20, 3)  # type: ignore[arg-type]
    assert PinnedPool.lent(picture)
    assert PinnedPool.lent(picture[2:4])
    assert PinnedPool.lent(picture.reshape(-1)[:60].reshape(4, 5, 3))
    assert not PinnedPool.lent(picture.copy())
    assert not PinnedPool.lent(np.empty((10, 20, 3), np.uint8))
