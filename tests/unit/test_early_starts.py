"""Which kernels may start early, from their operands alone; what CUDA says of them is in tests/gpu."""

from __future__ import annotations

from trtrun.cuda.early_starts import Edge, Kernel, start_of
from trtrun.cuda.early_starts import too_early as too_early_of


def too_early(edges: list[Edge], operands: dict[int, list[int]]) -> list[Edge]:
    """Of kernels that all have cuDNN's order of operands."""
    return too_early_of(edges, {node: Kernel(tuple(found), True) for node, found in operands.items()})


# One residual block and the next: what each kernel reads first, its weights, what it adds, and what it writes.
X, SHORT, H1, H2, Y1, G1, Y2 = range(100, 107)
REDUCE, CONV, MAIN, SHORTCUT, NEXT, LAST = range(6)
OPERANDS = {
    REDUCE: [X, 1, H1],
    CONV: [H1, 2, H2],
    MAIN: [H2, 3, SHORT],
    SHORTCUT: [X, 4, SHORT, Y1],  # adds what the kernel just ahead writes
    NEXT: [Y1, 5, G1],
    LAST: [G1, 6, Y1, Y2],  # adds what was written two kernels ahead
}
CHAIN = [(REDUCE, CONV), (CONV, MAIN), (MAIN, SHORTCUT), (SHORTCUT, NEXT), (NEXT, LAST)]


def test_a_kernel_that_adds_what_is_still_being_written_waits() -> None:
    assert too_early(CHAIN, OPERANDS) == [(MAIN, SHORTCUT), (NEXT, LAST)]


def test_no_further_than_to_the_next_ordinary_edge() -> None:
    # Between the two kernels stands an edge that is no early start.
    without = [edge for edge in CHAIN if edge != (SHORTCUT, NEXT)]
    assert too_early(without, OPERANDS) == [(MAIN, SHORTCUT)]


def test_the_first_operand_and_the_output_are_waited_for_by_the_kernel_itself() -> None:
    assert too_early([(0, 1)], {0: [X, 1, H1], 1: [H1, 2, H2]}) == []
    assert too_early([(0, 1)], {0: [X, 1, H1], 1: [H2, 2, H1]}) == []


def test_adding_in_place_is_reading() -> None:
    assert too_early([(0, 1)], {0: [X, 1, Y1], 1: [H2, 2, Y1, Y1]}) == [(0, 1)]


def test_unknown_operands_wait() -> None:
    assert too_early([(0, 1), (1, 2)], {0: [X, 1, H1], 1: [], 2: [H2, 2, Y1]}) == [(0, 1), (1, 2)]
    assert too_early([(0, 1)], {0: [X], 1: []}) == [(0, 1)]


def test_of_other_kernels_no_order_is_taken_for_granted() -> None:
    resize = Kernel((SHORT, X))  # writes its first operand
    add = Kernel((H1, 1, SHORT, Y1), ordered=True)
    assert too_early_of([(0, 1)], {0: resize, 1: add}) == [(0, 1)]
    assert too_early_of([(0, 1)], {0: add, 1: Kernel((Y1, G1))}) == [(0, 1)]


def test_no_edges_and_a_graph_that_forks() -> None:
    assert too_early([], {}) == []
    assert too_early([(0, 2), (1, 2)], {0: [X, H1], 1: [X, H2], 2: [H1, H2, Y1]}) == [(1, 2)]


def test_addresses_in_the_same_piece_of_memory_are_one() -> None:
    memory = [(1000, 50), (1050, 50), (2000, 0)]
    assert [start_of(at, memory) for at in (999, 1000, 1049, 1050, 1099, 1100, 2000)] == [
        999, 1000, 1000, 1050, 1050, 1100, 2000,
    ]  # fmt: skip
    assert start_of(7, []) == 7
