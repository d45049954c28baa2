"""Processors near a GPU: the kernel's lists, and a thread that moves there and back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from trtrun.cuda.numa import cpus_of, parse_cpus, running_on


def test_the_kernels_list_of_processors() -> None:
    assert parse_cpus("0-2,5,8-9\n") == {0, 1, 2, 5, 8, 9}
    assert parse_cpus("\n") == frozenset()


def test_one_node_alone_is_no_choice(tmp_path: Path) -> None:
    for node, cpus in enumerate(("0-3", "4-7")):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(cpus)
        assert bool(cpus_of(node, tmp_path)) == (node == 1)
    assert cpus_of(0, tmp_path) == {0, 1, 2, 3}
    assert cpus_of(-1, tmp_path) == frozenset()  # the driver does not know
    assert cpus_of(2, tmp_path) == frozenset()
    assert cpus_of(0, tmp_path / "missing") == frozenset()


def test_the_thread_comes_back() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("the process may use one processor alone")
    one = frozenset([min(allowed)])
    with running_on(one):
        assert os.sched_getaffinity(0) == one
    assert os.sched_getaffinity(0) == allowed
    for nothing in (frozenset(), frozenset([10_000]), frozenset(allowed)):
        with running_on(nothing):
            assert os.sched_getaffinity(0) == allowed
