"""Kernels that start before the one ahead of them is done, and those that must not.

On GPUs since Hopper a kernel may be launched while the one ahead still runs, if it waits inside before it reads what
that one writes (programmatic dependent launch). The convolutions and matrix products which TensorRT-RTX 1.6.1 has from
cuDNN wait before they read their first operand, but not before they read a tensor that they add to the product. Where
that tensor is still being written, as in a residual block, results are wrong at random. On an H200 ResNet-50 in fp32
was off by 0.14 (relative, L2) in ten of ten bare runs; in fp16 88 of 26,280 requests were wrong, with four in flight.

In a captured graph such a start is an edge of type PROGRAMMATIC. A kernel that reads beside its first operand what a
kernel ahead may write gets an ordinary edge from that one, several kernels ahead as it may be: a kernel may let the
next one start before it waits itself. (In the code that was looked at, warps that load wait, and warps that multiply
let the next start; so it seems they do not. Nothing says that it stays so.) Beside the early start such an edge costs
next to nothing where that kernel has long been done; from the kernel just ahead it takes the early start's place, and
costs about a microsecond. When a kernel is done, so are all ahead of it: it waits itself, before it writes anything,
or is one that is not known to (some of cuDNN's do not), and is given ordinary edges alone.

What a kernel reads and writes its parameters tell: these kernels take what they wait for first and the output last. How
many bytes that is :mod:`.cudnn_kernels` knows of most. Where it does not, a tensor may be a part of another that was
split or put together in place; so all of the piece of memory that it begins in counts.
"""

from __future__ import annotations

import ctypes
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cuda.bindings import driver

from .check import check

_PROGRAMMATIC = int(driver.CUgraphDependencyType.CU_GRAPH_DEPENDENCY_TYPE_PROGRAMMATIC)
HOLDS_A_POINTER = {8, 64, 128}  # bytes of a parameter: a pointer, or a descriptor of a tensor, which begins with one
_LEAST_ADDRESS = 1 << 32  # what is less is a number
_WAITS = b"cudnn_generated_fort_native"  # names of kernels whose code has the wait, before the first operand

Edge = tuple[int, int]  # from, to
Place = tuple[int, int]  # address, bytes
# Of a kernel's name and its parameters: the bytes of what each points to, 0 where that is nothing; None: unknown.
Sizes = Callable[[bytes, Sequence[bytes]], "Sequence[int | None] | None"]


@dataclass(frozen=True)
class Kernel:
    """The places that a kernel's parameters point to, in their order, none if unknown.

    ``waits``: it is known to wait before it reads the first; the last is what it writes.
    """

    operands: tuple[Place, ...]
    waits: bool = False

    def reads_early(self, other: Kernel) -> bool:
        """Whether it may read what the other may write, before it waits; with unknown operands it always may.

        All but the other's first operand may be written: outputs, several or in place, and workspaces.
        """
        if not self.operands or not other.operands:
            return True
        writes = other.operands[1:] if other.waits and len(other.operands) > 1 else other.operands
        return any(
            a < start + nbytes and start < a + length for a, length in self.operands[1:-1] for start, nbytes in writes
        )


def hold_back(graph: Any, memory: Collection[Place], sizes: Sizes) -> int:
    """Add ordinary edges to a captured ``CUgraph`` where kernels could read too early; how many.

    Args:
        memory: pieces of device memory that tensors lie in.
        sizes: see there.
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
    found = too_early(list(early), {handle: _kernel(node, pieces, sizes) for handle, node in nodes.items()})
    for edge in found:
        source, target = nodes[edge[0]], nodes[edge[1]]
        for datum in early.get(edge, ()):
            check(driver.cuGraphRemoveDependencies(graph, [source], [target], [datum], 1), "remove an edge of a graph")
        if edge not in ordinary:
            check(driver.cuGraphAddDependencies(graph, [source], [target], None, 1), "add an edge to a graph")
    return len(found)


def too_early(edges: Sequence[Edge], kernels: Mapping[int, Kernel]) -> list[Edge]:
    """Between which kernels of a graph with these programmatic edges an ordinary one must stand.

    To each from the nearest of those ahead, as far as the next ordinary edge, that may write what it reads without
    waiting; and in place of each programmatic edge to a kernel that is not known to wait at all.
    """
    ahead: dict[int, list[int]] = {}
    for source, target in edges:
        ahead.setdefault(target, []).append(source)
    found: dict[Edge, None] = {}
    for target, sources in ahead.items():
        kernel = kernels[target]
        seen, look = {target}, list(sources)
        while look:
            node = look.pop()
            if node in seen:
                continue
            seen.add(node)
            if not kernel.waits or kernel.reads_early(kernels[node]):
                found[node, target] = None
            else:
                look += [other for other in ahead.get(node, ()) if (other, node) not in found]
    return list(found)


def piece_of(address: int, memory: Sequence[Place]) -> Place:
    """The piece of sorted memory that holds this address; one byte there where none does."""
    index = bisect_right(memory, address, key=lambda place: place[0]) - 1
    if index >= 0 and address < sum(memory[index]):
        return memory[index]
    return address, 1


def _kernel(node: Any, memory: Sequence[Place], sizes: Sizes) -> Kernel:
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
    if code != driver.CUresult.CUDA_SUCCESS or not int(launch.kernelParams):
        return Kernel(())  # without a name; or the parameters were passed in one piece
    values = ctypes.cast(int(launch.kernelParams), ctypes.POINTER(ctypes.c_void_p))
    parameters: list[bytes] = []
    while True:
        code, _, size = parameter_of(function, len(parameters))
        if code == driver.CUresult.CUDA_ERROR_INVALID_VALUE:  # there are no more
            return kernel_of(name, parameters, memory, sizes)
        check((code,), "read a kernel's parameters")
        parameters.append(ctypes.string_at(values[len(parameters)], size))


def kernel_of(name: bytes, parameters: Sequence[bytes], memory: Sequence[Place], sizes: Sizes) -> Kernel:
    """What is known of a kernel of this name, launched with these parameters."""
    waits = name.startswith(_WAITS)
    addresses = [int.from_bytes(value[:8], "little") if len(value) in HOLDS_A_POINTER else 0 for value in parameters]
    known = [size for size in sizes(name, parameters) or () if size is not None]
    if len(known) == len(parameters):
        if any(size and at < _LEAST_ADDRESS for at, size in zip(addresses, known, strict=True)):
            return Kernel(())  # a tensor, but no address
        return Kernel(tuple((at, size) for at, size in zip(addresses, known, strict=True) if size), waits)
    if not waits and any(len(value) > 8 and len(value) not in HOLDS_A_POINTER for value in parameters):
        return Kernel(())  # there may be addresses inside
    return Kernel(tuple(piece_of(at, memory) for at in addresses if at >= _LEAST_ADDRESS), waits)
