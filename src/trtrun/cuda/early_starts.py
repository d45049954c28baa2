"""Kernels that start before the one ahead of them is done, and those that must not.

On GPUs since Hopper a kernel may be launched while the one ahead still runs, if it waits inside before it reads what
that one writes (programmatic dependent launch). The convolutions and matrix products which TensorRT-RTX 1.6.1 has from
cuDNN wait before they read their first operand, but not before they read a tensor that they add to the product. Where
that tensor is written by the kernel just ahead, as in a residual block whose shortcut has a convolution of its own,
results are wrong at random: fp32 ResNet-50 on an H200 was off by 0.14 (relative, L2) in ten of ten bare runs.

In a captured graph such a start is an edge of type PROGRAMMATIC. Made an ordinary edge, the kernel starts when the one
ahead is done. That costs about a microsecond, so it is done for kernels alone that read beside their first operand what
a kernel ahead may write. Their parameters tell: the operands come first, the output last.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

from cuda.bindings import driver

from .check import check

_PROGRAMMATIC = int(driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
_HOLDS_A_POINTER = {8, 64, 128}  # bytes of a parameter: a pointer, or a descriptor of a tensor, which begins with one
_LEAST_ADDRESS = 1 << 32  # what is less is a number

Operands = Sequence[int]  # the addresses among a kernel's parameters, in their order
Edge = tuple[int, int]  # from, to


def hold_back(graph: Any, *, far: bool) -> int:
    """Make early starts in a captured ``CUgraph`` ordinary edges where they could read too early; how many there were.

    ``far`` as for :func:`too_early`.
    """
    count = check(driver.cuGraphGetEdges(graph), "count a graph's edges")[-1]
    sources, targets, data, _ = check(driver.cuGraphGetEdges(graph, count), "list a graph's edges")
    early = {
        (int(source), int(target)): (source, target, datum)
        for source, target, datum in zip(sources, targets, data, strict=True)
        if datum.type == _PROGRAMMATIC
    }
    nodes = {int(node): node for source, target, _ in early.values() for node in (source, target)}
    found = too_early(list(early), {handle: _operands(node) for handle, node in nodes.items()}, far=far)
    for edge in found:
        source, target, datum = early[edge]
        check(driver.cuGraphRemoveDependencies(graph, [source], [target], [datum], 1), "remove an edge of a graph")
        check(driver.cuGraphAddDependencies(graph, [source], [target], None, 1), "add an edge to a graph")
    return len(found)


def too_early(edges: Sequence[Edge], operands: Mapping[int, Operands | None], *, far: bool) -> list[Edge]:
    """Those of the programmatic edges whose target must wait for its source.

    A target must where it reads, beside its first operand and its output, what the source may write, which is all but
    its own first operand. A kernel whose operands are unknown (None) must wait, and is waited for.

    With ``far`` also what stands further ahead counts, up to the next ordinary edge: then nothing is taken for granted
    about when a kernel that waits itself lets the next one start.
    """
    ahead: dict[int, list[int]] = {}
    for source, target in edges:
        ahead.setdefault(target, []).append(source)
    waiting: set[Edge] = set()
    for source, target in edges:
        reads = operands[target]
        seen, look = {target}, [source]
        while look:
            node = look.pop()
            seen.add(node)
            touched = operands[node]
            if reads is None or touched is None or not set(reads[1:-1]).isdisjoint(touched[1:] or touched):
                waiting.add((source, target))
                break
            if far:
                look += [other for other in ahead.get(node, ()) if other not in seen and (other, node) not in waiting]
    return [edge for edge in edges if edge in waiting]


def _operands(node: Any) -> Operands | None:
    """The addresses among the parameters of a kernel node; None where they cannot be told."""
    if check(driver.cuGraphNodeGetType(node), "tell what a graph's node is") != (
        driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    ):
        return None
    launch = check(driver.cuGraphKernelNodeGetParams(node), "read a kernel's parameters")
    if not int(launch.kernelParams):
        return None  # they were passed in one piece
    values = ctypes.cast(int(launch.kernelParams), ctypes.POINTER(ctypes.c_void_p))
    found: list[int] = []
    index = 0
    while True:
        if int(launch.func):
            code, _, size = driver.cuFuncGetParamInfo(launch.func, index)
        else:
            code, _, size = driver.cuKernelGetParamInfo(launch.kern, index)
        if code == driver.CUresult.CUDA_ERROR_INVALID_VALUE:  # there are no more
            return found
        check((code,), "read a kernel's parameters")
        if size in _HOLDS_A_POINTER:
            address = ctypes.cast(values[index], ctypes.POINTER(ctypes.c_uint64))[0]
            if address >= _LEAST_ADDRESS:
                found.append(address)
        index += 1
