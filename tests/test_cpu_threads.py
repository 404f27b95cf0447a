"""The kernels of the CPU backend under threads and in pieces: the same bits, however the work is shared."""

from __future__ import annotations

from array import array

import pytest
import torch
from examples import CELLS, Example, assert_same_bits

from gatework import autograd
from gatework.backends.batch import Batch
from gatework.backends.cpu import jit, kernel, threads
from gatework.backends.cpu.ir import Function, Module
from gatework.backends.cpu.target import target

STEPS, INPUT, HIDDEN = 4, 1, 37
COUNTS = [1, 2, 3]


def name_of(cell) -> str:
    return cell.name


@pytest.fixture
def restore_threads():
    count = torch.get_num_threads()
    yield
    torch.set_num_threads(count)


def loops(example: Example, count: int, reverse: bool = False) -> dict[str, torch.Tensor]:
    """What the loops write, with this many threads: states, and gradients of states; no product of BLAS is behind it.

    The products before the loop have one term each (the input has one feature), those after it are left out.
    """
    torch.set_num_threads(count)
    parts, xp, upstream = example.flat(), autograd.Torch(example.inputs[0]), example.upstream
    batch = Batch.dense(*example.inputs[0].shape[:2])
    k = kernel.kernel_for(example.cell, example.sizes, example.inputs[0].element_size())
    (output,), last, kept = k.forward(xp, batch, *parts, reverse, True)
    found = {"output": output.clone()} | {f"last {n}": v.clone() for n, v in enumerate(last)}
    found |= {f"kept {n}": v.clone() for n, v in enumerate(kept)}
    k.backward(xp, batch, [upstream[0].flatten(0, 1)], upstream[1:], *parts, [output], kept, reverse,
               [False] * len(example.tensors))
    return found | {f"emitted {n}": v for n, v in enumerate(kept)}  # the backward loop writes over what was kept


@pytest.fixture
def share_rows(monkeypatch):
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", 1 << 60)


@pytest.fixture
def share_units(monkeypatch):
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", 0)
    monkeypatch.setattr(kernel, "MOST_PANEL", 0)


@pytest.fixture
def taken(monkeypatch):
    """The numbers of parts and the ways of sharing of all calls."""
    seen, run = set(), threads.run

    def spy(code, arguments, parts, together=False):
        seen.add((len(parts), together))
        run(code, arguments, parts, together)

    monkeypatch.setattr(threads, "run", spy)
    return seen


@pytest.mark.usefixtures("restore_threads", "share_rows")
@pytest.mark.parametrize("B", [1, 2, 3, 20])
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_threads_that_share_rows_write_the_same_bits(cell, B, taken):
    example = Example(cell, STEPS, B, INPUT, HIDDEN)
    expected = loops(example, 1)
    for count in COUNTS[1:]:
        taken.clear()
        assert_same_bits(loops(example, count), expected)
        assert {parts for parts, _ in taken} >= {min(B, count)}
        assert not any(together for _, together in taken)


@pytest.mark.usefixtures("restore_threads", "share_units")
@pytest.mark.parametrize("B", [1, 2, 3, 20])
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_threads_that_share_units_write_the_same_bits(cell, B, taken):
    example = Example(cell, STEPS, B, INPUT, HIDDEN)
    expected = loops(example, 1)
    for count in COUNTS[1:]:
        taken.clear()
        assert_same_bits(loops(example, count), expected)
        # The projection to 7 is a single block: that loop shares rows.
        assert threads.team() is not None
        assert ((count, True) in taken) == (cell.name != "projected_lstm")


@pytest.mark.usefixtures("restore_threads", "share_rows")
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_python_threads_write_the_same_bits_as_one_thread(cell, monkeypatch):
    example = Example(cell, STEPS, 5, INPUT, HIDDEN)
    expected = loops(example, 1)
    monkeypatch.setattr(threads, "team", lambda: None)
    for count in COUNTS[1:]:
        assert_same_bits(loops(example, count), expected)


@pytest.mark.usefixtures("restore_threads", "share_units")
def test_more_threads_than_cores_and_than_blocks_of_units_write_the_same_bits():
    example = Example(CELLS[0], 40, 3, INPUT, HIDDEN)
    expected = loops(example, 1)
    for count in (4, 7):
        assert_same_bits(loops(example, count), expected)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS, ids=name_of)
def test_a_sequence_in_pieces_gives_the_same_bits_as_in_one(cell, reverse, train, monkeypatch):
    example = Example(cell, 7, 3, INPUT, HIDDEN)
    torch.set_num_threads(1)

    def run():
        k = kernel.kernel_for(cell, example.sizes, 8)
        handed, last, kept = k.forward(autograd.Torch(example.inputs[0]), Batch.dense(7, 3), *example.flat(), reverse,
                                       train)
        return dict(enumerate([*handed, *last, *kept]))

    expected = run()
    for rows in (3, 6, 9):  # one step at a time, two (and one at the end), three
        monkeypatch.setattr(kernel, "AT_ONCE", 64)
        monkeypatch.setattr(kernel, "ROWS_AT_ONCE", rows)
        assert_same_bits(run(), expected)


@pytest.mark.usefixtures("restore_threads")
def test_a_piece_of_a_sequence_shares_units_where_the_whole_one_does(taken, monkeypatch):
    example = Example(CELLS[0], 9, 1, INPUT, HIDDEN)
    torch.set_num_threads(2)
    k = kernel.kernel_for(example.cell, example.sizes, 8)
    monkeypatch.setattr(kernel, "WORTH_A_THREAD", 1)
    # What each of two threads has to do in a step of one row is just enough.
    monkeypatch.setattr(kernel, "WORTH_A_MEETING", k._inference[1].by_vectors.multiplications // 2 - 1)
    for rows in (9, 3):  # steps at a time
        monkeypatch.setattr(kernel, "AT_ONCE", 64)
        monkeypatch.setattr(kernel, "ROWS_AT_ONCE", rows)
        taken.clear()
        k.forward(autograd.Torch(example.inputs[0]), Batch.dense(9, 1), *example.flat(), False, False)
        assert (2, True) in taken


def meetings(turns: int) -> str:
    """IR in which each member writes down the turn, meets, and counts whom it finds elsewhere; one waits now and then.

    The arguments: a word for each member's turn and one for what it has counted, each on lines of its own.
    """
    module = Module(target(), 4)
    module.functions.append(threads.waiting(module.target))
    f = Function(module, "turns", threads.SIGNATURE, internal=False)
    mine = f.at("%arguments", f.integer("mul", "%me", 256))
    with f.loop("0", turns) as turn:
        late = f.value(f"icmp eq i64 {f.integer('urem', turn, '%all')}, %me")
        with f.loop("0", f.value(f"select i1 {late}, i64 2000, i64 0")) as k:
            f.line(f"store volatile i64 {k}, ptr {f.at(mine, 128)}")
        f.line(f"store atomic i64 {turn}, ptr {mine} monotonic, align 8")
        threads.meet(f)
        with f.loop("0", "%all") as k:
            seen = f.value(f"load atomic i64, ptr {f.at('%arguments', f.integer('mul', k, 256))} monotonic, align 8")
            wrong = f.value(f"zext i1 {f.value(f'icmp ne i64 {seen}, {turn}')} to i64")
            total = f.integer("add", f.load_word(mine, 8), wrong)
            f.line(f"store i64 {total}, ptr {f.at(mine, 64)}")
        threads.meet(f)
    f.finish()
    return module.text()


def found_elsewhere(members: int, turns: int) -> int:
    kernel = jit.load(f"meetings {turns}", lambda: meetings(turns), target())
    words = array("q", [0] * (32 * members))
    threads.run(kernel.function("turns", *threads.KINDS), threads.address_of(words), [(0, 0, 0, 0)] * members, True)
    assert all(words[32 * k] == turns - 1 for k in range(members))
    return sum(words[32 * k + 8] for k in range(members))


@pytest.mark.parametrize("members", [2, 3, 5])
def test_who_has_met_finds_all_others_in_the_same_turn(members):
    assert found_elsewhere(members, 500) == 0
