"""NUMA nodes: page-locked memory lies in the part of the host's memory that its GPU is wired to.

The driver takes pages of the node on which the allocating thread runs, so the thread runs there meanwhile. Across
nodes a copy passes the processors' own link, which several GPUs share.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_NODES = Path("/sys/devices/system/node")


def parse_cpus(text: str) -> frozenset[int]:
    """The kernel's list of processors, like ``0-15,32-47``."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def cpus_of(node: int, nodes: Path = _NODES) -> frozenset[int]:
    """The processors of a node; none where the machine has one node alone, or does not say."""
    try:
        if node < 0 or len(list(nodes.glob("node[0-9]*"))) < 2:
            return frozenset()
        return parse_cpus((nodes / f"node{node}" / "cpulist").read_text())
    except OSError:
        return frozenset()


@contextmanager
def running_on(cpus: frozenset[int]) -> Iterator[None]:
    """The calling thread runs on these processors inside the block, as far as the process may use them."""
    allowed = os.sched_getaffinity(0) if cpus else set()
    near = allowed & cpus
    if not near or near == allowed:
        yield
        return
    os.sched_setaffinity(0, near)
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)
