"""JSON in pieces: the same values as the standard library's, and others get their turn meanwhile."""

from __future__ import annotations

import json
import threading
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trtrun.serve import json_text

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.sampled_from(['],["', "[", 'x,"y', "é"]),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=60,
)
SPACING = st.sampled_from([(",", ":"), (", ", ": "), (" , ", " : ")])


@settings(deadline=None, max_examples=300)
@given(value=VALUES, spacing=SPACING, at=st.integers(0, 400), put=st.sampled_from(["", *'[],"1 ']))
def test_the_same_as_the_standard_library(value: Any, spacing: tuple[str, str], at: int, put: str) -> None:
    before, json_text.PIECE = json_text.PIECE, 24
    try:
        text = json.dumps(value, separators=spacing)
        assert json_text.loads(text.encode()) == value
        damaged = text[: at % (len(text) + 1)] + put + text[at % (len(text) + 1) + 1 :]
        try:
            wanted = json.loads(damaged)
        except ValueError:
            with pytest.raises(ValueError, match="line 1"):
                json_text.loads(damaged.encode())
        else:
            assert json_text.loads(damaged.encode()) == wanted
    finally:
        json_text.PIECE = before


@pytest.mark.parametrize("bad", ["[1,2,]", "[,1]", "[1,,2]", "[", "[1", "[" * 100_000, "[" + "1," * 40_000 + "]"])
def test_what_is_no_json(bad: str) -> None:
    with pytest.raises((ValueError, RecursionError)):
        json_text.loads((" " * json_text.PIECE + bad).encode())


@pytest.mark.parametrize("shape", [(300_000,), (100_000, 3), (3, 100_000), (2, 3, 224, 224)])
def test_tensors(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng().standard_normal(shape)
    text = json.dumps(array.tolist()).encode()
    np.testing.assert_array_equal(json_text.to_array(json_text.loads(text), np.asarray), array)
    assert json.loads(json_text.numbers(array.reshape(-1))) == array.reshape(-1).tolist()


def longest_pause(work: Callable[[], object]) -> float:
    """For how long, in seconds, another thread that does next to nothing did not get its turn."""
    longest, stop = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            longest[0] = max(longest[0], now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    stop.set()
    thread.join()
    return longest[0]


def test_others_get_their_turn() -> None:
    array = np.random.default_rng().standard_normal(1_500_000)
    text = json.dumps(array.tolist()).encode()
    in_pieces = min(longest_pause(lambda: json_text.to_array(json_text.loads(text), np.asarray)) for _ in range(3))
    assert in_pieces < 0.5 * longest_pause(lambda: json.loads(text))
    in_pieces = min(longest_pause(lambda: json_text.numbers(array)) for _ in range(3))
    assert in_pieces < 0.5 * longest_pause(lambda: json.dumps(array.tolist()))


@pytest.mark.parametrize(
    "unit", ["0,", "0.123456789,", "[0],", "[],", "[[[[[0]]]]],", "{},", '{"a":0},', '"a",', '"é",', "null,"]
)
def test_reading_takes_no_more_memory_than_is_counted(unit: str) -> None:
    text = f"[{(unit * (1_200_000 // len(unit)))[:-1]}]".encode()
    tracemalloc.start()
    value = json_text.loads(text)
    with suppress(ValueError, TypeError):
        json_text.to_array(value, lambda piece: np.asarray(piece, np.float64))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < json_text.weight(text, len(text))
    assert json_text.weight(text, 100) < 100 * 110
