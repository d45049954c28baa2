"""The choice among ways, with times made up."""

from __future__ import annotations

import pytest

from trtrun import filling
from trtrun.filling import Choice, Way


@pytest.mark.parametrize("fastest", [filling.driver, filling.chunks, filling.threads, filling.inside])
def test_the_fastest_by_median_is_kept(fastest: Way) -> None:
    choice = Choice(2 << 20)
    tried = []
    while not choice.settled:
        way = choice.next()
        tried.append(way)
        # A hiccup in each way, and among the slow ones one request that was quick.
        odd = len(tried) > 11 and len(tried) % 7 == 0
        choice.note(way, (1.0 if way is fastest else 1.1) * (1.5 if odd else 1.0))
        assert len(tried) < 100
    assert choice.best is choice.next() is fastest
    assert tried[:4] == [filling.driver, filling.chunks, filling.threads, filling.inside]  # in turns
    choice.note(filling.driver, 0.0)  # a request that was under way meanwhile
    assert choice.best is fastest


def test_the_first_guess_depends_on_the_size() -> None:
    assert Choice(1 << 20).best is filling.driver
    assert Choice(16 << 20).best is filling.threads
