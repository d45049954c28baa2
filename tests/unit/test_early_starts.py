"""Which kernels may start early, from their operands alone; what CUDA says of them is in tests/gpu."""

from __future__ import annotations

from trtrun.cuda.early_starts import Edge, Kernel, kernel_of, piece_of
from trtrun.cuda.early_starts import too_early as too_early_of

SIZE = 50  # bytes of each tensor but weights, which begin below 100


def too_early(edges: list[Edge], operands: dict[int, list[int]]) -> list[Edge]:
    """Of kernels that all have cuDNN's order of operands."""
    kernels = {
        node: Kernel(tuple((at, SIZE if at > 99 else 1) for at in found), True) for node, found in operands.items()
    }
    return too_early_of(edges, kernels)


# One residual block and the next: what each kernel reads first, its weights, what it adds, and what it writes.
X, SHORT, H1, H2, Y1, G1, Y2 = range(1000, 1700, 100)
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


def test_a_kernel_waits_for_the_one_that_writes_what_it_adds() -> None:
    assert too_early(CHAIN, OPERANDS) == [(MAIN, SHORTCUT), (SHORTCUT, LAST)]


def test_for_the_nearest_of_several() -> None:
    operands = OPERANDS | {NEXT: [Y1, 5, Y1 + SIZE - 1]}  # writes the last byte of what is added
    assert too_early(CHAIN, operands) == [(MAIN, SHORTCUT), (NEXT, LAST)]
    operands = OPERANDS | {NEXT: [Y1, 5, Y1 + SIZE]}
    assert too_early(CHAIN, operands) == [(MAIN, SHORTCUT), (SHORTCUT, LAST)]


def test_no_further_than_to_the_next_ordinary_edge() -> None:
    # Between the two kernels stands an edge that is no early start.
    without = [edge for edge in CHAIN if edge != (SHORTCUT, NEXT)]
    assert too_early(without, OPERANDS) == [(MAIN, SHORTCUT)]
    # Or one that takes an early start's place.
    operands = OPERANDS | {NEXT: [X, SHORT, G1]}
    assert too_early(CHAIN, operands) == [(MAIN, SHORTCUT), (SHORTCUT, NEXT)]


def test_the_first_operand_and_the_output_are_waited_for_by_the_kernel_itself() -> None:
    assert too_early([(0, 1)], {0: [X, 1, H1], 1: [H1, 2, H2]}) == []
    assert too_early([(0, 1)], {0: [X, 1, H1], 1: [H2, 2, H1]}) == []


def test_an_only_operand_is_written() -> None:
    assert too_early([(0, 1)], {0: [Y1], 1: [X, Y1, Y2]}) == [(0, 1)]


def test_adding_in_place_is_reading() -> None:
    assert too_early([(0, 1)], {0: [X, 1, Y1], 1: [H2, 2, Y1, Y1]}) == [(0, 1)]


def test_unknown_operands_wait_and_are_waited_for() -> None:
    assert too_early([(0, 1), (1, 2)], {0: [X, 1, H1], 1: [], 2: [H2, 2, Y1]}) == [(0, 1), (1, 2)]
    assert too_early([(0, 1)], {0: [X], 1: []}) == [(0, 1)]
    assert too_early([(0, 1), (1, 2)], {0: [], 1: [X, 1, H1], 2: [H1, 2, Y1]}) == [(0, 1)]


def test_a_kernel_that_is_not_known_to_wait_starts_after_the_one_ahead() -> None:
    # So that whoever waits for it has waited for all.
    resize = Kernel(((SHORT, SIZE), (X, SIZE)))  # writes its first operand
    add = Kernel(((H1, SIZE), (1, 1), (SHORT, SIZE), (Y1, SIZE)), waits=True)
    assert too_early_of([(0, 1)], {0: resize, 1: add}) == [(0, 1)]
    assert too_early_of([(0, 1)], {0: add, 1: Kernel(((Y2, SIZE), (G1, SIZE)))}) == [(0, 1)]


def test_no_edges_and_a_graph_that_forks() -> None:
    assert too_early([], {}) == []
    assert too_early([(0, 2), (1, 2)], {0: [X, H1], 1: [X, H2], 2: [H1, H2, Y1]}) == [(1, 2)]


def test_a_tensor_of_unknown_size_takes_all_of_the_piece_of_memory_that_it_begins_in() -> None:
    memory = [(1000, 50), (1050, 50), (2000, 0)]
    found = [piece_of(at, memory) for at in (999, 1000, 1049, 1050, 1099, 1100, 2000)]
    assert found == [(999, 1), (1000, 50), (1000, 50), (1050, 50), (1050, 50), (1100, 1), (2000, 1)]
    assert piece_of(7, []) == (7, 1)


def test_a_launch_and_its_parameters() -> None:
    at, number = (1 << 40).to_bytes(8, "little"), (3).to_bytes(8, "little")
    descriptor = at + bytes(56)
    name, memory = b"cudnn_generated_fort_native_x", [((1 << 40) - 10, 100)]

    def unknown(name: bytes, parameters: object) -> None:
        return None

    kernel = kernel_of(name, [bytes(244), descriptor, number, at], memory, unknown)
    assert kernel == Kernel((memory[0], memory[0]), waits=True)
    assert kernel_of(name, [at + bytes(120), at], memory, unknown) == kernel  # CUtensorMap
    kernel = kernel_of(name, [bytes(244), descriptor, number, at], memory, lambda *_: (0, 7, 0, 9))
    assert kernel == Kernel(((1 << 40, 7), (1 << 40, 9)), waits=True)
    assert kernel_of(name, [number, at], memory, lambda *_: (0, None)) == Kernel((memory[0],), waits=True)
    other = b"cudnn_generated_resample_fwd"  # sizes are known of some kernels that do not wait
    assert kernel_of(other, [at, at], memory, lambda *_: (7, 9)) == Kernel(((1 << 40, 7), (1 << 40, 9)), waits=False)
    assert kernel_of(name, [number, at], memory, lambda *_: (7, 9)) == Kernel(())  # a tensor without an address
    assert kernel_of(name, [at + bytes(8), at], memory, lambda *_: (7, 9)) == Kernel(())
    assert kernel_of(b"another", [at, number], memory, unknown) == Kernel((memory[0],))
    assert kernel_of(b"another", [bytes(244), at], memory, unknown) == Kernel(())
