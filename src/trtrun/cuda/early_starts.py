"""Kernels that start before the one ahead of them is done, and those that must not.

On GPUs since Hopper a kernel may be launched while the one ahead still runs, if it waits inside before it reads what
that one writes (programmatic dependent launch). The convolutions and matrix products which TensorRT-RTX 1.6.1 has from
cuDNN wait before they read their first operand, but not before they read a tensor that they add to the product. Where
that tensor is still being written, as in a residual block, results are wrong at random. On an H200 ResNet-50 in fp32
was off by 0.14 (relative, L2) in ten of ten bare runs; in fp16 88 of 26,280 requests were wrong, with four in flight.

In a captured graph such a start is an edge of type PROGRAMMATIC. Made an ordinary edge, the kernel starts when the one
ahead is done. That costs about a microsecond, so it is done for kernels alone that read beside their first operand what
a kernel ahead may write, be it several kernels ahead: each lets the next one start before it waits itself (PREEXIT
stands before ACQBULK in the code of all sixty that were looked at). Their parameters tell: these kernels take what they
wait for first and the output last. Of others nothing is taken for granted; some of cuDNN's do not wait at all. How far
a tensor reaches is not told, and one may be a part of another that was split or put together in place; so addresses in
the same piece of memory count as the same.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver

from .check import check

_PROGRAMMATIC = int(driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
_HOLDS_A_POINTER = {8, 64, 128}  # bytes of a parameter: a pointer, or a descriptor of a tensor, which begins with one
_LEAST_ADDRESS = 1 << 32  # what is less is a number
_WAITS = b"cudnn_generated_fort_native"  # names of kernels whose code has the wait, before the first operand

Edge = tuple[int, int]  # from, to
Place = tuple[int, int]  # address, bytes


@dataclass(frozen=True)
class Kernel:
    """The addresses among a kernel's parameters in their order; ``ordered`` where it is known, see above."""

    operands: tuple[int, ...]
    ordered: bool = False

    @property
    def reads_at_once(self) -> frozenset[int]:
        """What it may read, or write, before the kernel ahead is done."""
        return frozenset(self.operands[1:-1] if self.ordered else self.operands)

    @property
    def may_write(self) -> frozenset[int]:
        return frozenset(self.operands[1:] if self.ordered else self.operands)


def hold_back(graph: Any, memory: Collection[Place]) -> int:
    """Make early starts in a captured ``CUgraph`` ordinary edges where they could read too early; how many there were.

    ``memory``: pieces of device memory that tensors lie in. Addresses in the same one count as the same.
    """
    count = check(driver.cuGraphGetEdges(graph), "count a graph's edges")[-1]
    sources, targets, data, _ = check(driver.cuGraphGetEdges(graph, count), "list a graph's edges")
    early: dict[Edge, list[Any]] = {}
    ordinary: set[Edge] = set()
    nodes: dict[int, Any] = {}
    for source, target, datum in zip(sources, targets, data, strict=True):
        edge = int(source), int(target)
        if datum.type == _PROGRAMMATIC:
            early.setdefault(edge, []).append(datum)
            nodes[edge[0]], nodes[edge[1]] = source, target
        else:
            ordinary.add(edge)
    pieces = sorted(memory)
    found = too_early(list(early), {handle: _kernel(node, pieces) for handle, node in nodes.items()})
    for edge in found:
        source, target = nodes[edge[0]], nodes[edge[1]]
        for datum in early[edge]:
            check(driver.cuGraphRemoveDependencies(graph, [source], [target], [datum], 1), "remove an edge of a graph")
        if edge not in ordinary:
            check(driver.cuGraphAddDependencies(graph, [source], [target], None, 1), "add an edge to a graph")
    return len(found)


def too_early(edges: Sequence[Edge], kernels: Mapping[int, Kernel]) -> list[Edge]:
    """Those of the programmatic edges whose target must wait for its source.

    A target must where it reads without waiting what a kernel ahead may write, up to the next ordinary edge. One whose
    operands are unknown must wait, and is waited for.
    """
    ahead: dict[int, list[int]] = {}
    for source, target in edges:
        ahead.setdefault(target, []).append(source)
    waiting: set[Edge] = set()
    for source, target in edges:
        reads = kernels[target].reads_at_once
        seen, look = {target}, [source]
        while look:
            node = look.pop()
            seen.add(node)
            known = kernels[target].operands and kernels[node].operands
            if not known or not reads.isdisjoint(kernels[node].may_write):
                waiting.add((source, target))
                break
            look += [other for other in ahead.get(node, ()) if other not in seen and (other, node) not in waiting]
    return [edge for edge in edges if edge in waiting]


def start_of(address: int, memory: Sequence[Place]) -> int:
    """Where the piece of sorted memory begins that holds this address; the address itself where none does."""
    index = bisect_right(memory, address, key=lambda place: place[0]) - 1
    if index >= 0 and address < sum(memory[index]):
        return memory[index][0]
    return address


def _kernel(node: Any, memory: Sequence[Place]) -> Kernel:
    """What is known of a node of a captured graph."""
    if check(driver.cuGraphNodeGetType(node), "tell what a graph's node is") != (
        driver.CUgraphNodeType.CU_GRAPH_NODE_TYPE_KERNEL
    ):
        return Kernel(())
    launch = check(driver.cuGraphKernelNodeGetParams(node), "read a kernel's parameters")
    name_of: Any = driver.cuFuncGetName
    parameter_of: Any = driver.cuFuncGetParamInfo
    function: Any = launch.func
    if not int(function):
        name_of, parameter_of, function = driver.cuKernelGetName, driver.cuKernelGetParamInfo, launch.kern
    code, name = name_of(function)
    ordered = code == driver.CUresult.CUDA_SUCCESS and name.startswith(_WAITS)
    if not int(launch.kernelParams):
        return Kernel(())  # they were passed in one piece
    values = ctypes.cast(int(launch.kernelParams), ctypes.POINTER(ctypes.c_void_p))
    operands: list[int] = []
    index = 0
    while True:
        code, _, size = parameter_of(function, index)
        if code == driver.CUresult.CUDA_ERROR_INVALID_VALUE:  # there are no more
            return Kernel(tuple(operands), ordered)
        check((code,), "read a kernel's parameters")
        if size in _HOLDS_A_POINTER:
            address = ctypes.cast(values[index], ctypes.POINTER(ctypes.c_uint64))[0]
            if address >= _LEAST_ADDRESS:
                operands.append(start_of(address, memory))
        elif size > 8 and not ordered:
            return Kernel(())  # there may be addresses inside
        index += 1
