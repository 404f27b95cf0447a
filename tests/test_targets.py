"""Machines that the tests do not run on: their code can be made here, not tried."""

import platform

import llvmlite.binding as llvm
import my_cells
import pytest

from gatework import cells
from gatework.backends.cpu import jit
from gatework.backends.cpu.emit import emit
from gatework.backends.cpu.shape import shape
from gatework.backends.cpu.target import Target, _known
from gatework.backends.plan import plan_backward, plan_forward
from gatework.compiler import split, trace

NEON = Target("neon", 128, 32, "neoverse-n1", "")


@pytest.mark.parametrize(("cpu", "wider"), [("znver4", True), ("znver5", True), ("sapphirerapids", False)])
def test_only_amds_vectors_of_512_bits_are_wider_than_those_of_mkl(cpu, wider, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    found = _known(cpu, dict.fromkeys(("avx512f", "avx512vl", "avx512dq", "avx2", "fma"), True))
    assert {name: t.wider_than_blas for name, t in found.items()} == {"avx512": wider, "avx2": False, "sse2": False}


@pytest.fixture(scope="module")
def arm():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    return target.create_target_machine(cpu=NEON.cpu, features=NEON.features, opt=2)


@pytest.mark.parametrize("size", [4, 8], ids=["float32", "float64"])
@pytest.mark.parametrize("cell", [*(getattr(cells, n) for n in cells.__all__), *my_cells.CELLS],
                         ids=lambda c: getattr(c, "__name__", str(c)))
def test_loops_become_neon_code_without_calls_into_a_maths_library(cell, size, arm):
    scan = split(trace(cell))
    sizes = dict.fromkeys(scan.cell.sizes, 33)
    lanes = NEON.lanes(size)
    forward = plan_forward(scan, sizes, True, lanes)
    backward = plan_backward(scan, sizes, forward, lanes)
    for loop in (forward.loop, backward.loop):
        text = arm.emit_assembly(jit.optimise(emit(shape(loop, NEON, lanes), NEON, size), arm))
        called = {line.split()[1] for line in text.splitlines() if line.strip().startswith("bl\t")}
        ours = {"meet", "look"} | {name for name in called if name.startswith("dot_")}
        assert called - ours <= {"sched_yield", "memset", "memcpy"}
        assert "v0." in text  # vector registers are in use


@pytest.mark.parametrize("cell", [cells.elman, cells.gru, cells.lstm, cells.layer_norm_lstm, my_cells.heads])
def test_loops_of_bfloat16_become_code_of_the_matrix_unit_on_every_machine_that_compiles(cell):
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    unit = Target("avx512", 512, 32, "sapphirerapids", "", tiles=True)
    machine = llvm.Target.from_triple("x86_64-unknown-linux-gnu").create_target_machine(cpu=unit.cpu, opt=2)
    scan = split(trace(cell))
    forward = plan_forward(scan, dict.fromkeys(scan.cell.sizes, 33), True, 16, short=True)
    for loop in (forward.loop, plan_backward(scan, forward.loop.sizes, forward, 16).loop):
        text = machine.emit_assembly(jit.optimise(emit(shape(loop, unit, 16), unit, 4), machine))
        assert "tdpbf16ps" in text
        assert "vcvtneps2bf16" in text


@pytest.mark.parametrize("machine", [NEON, Target("avx2", 256, 16, "haswell", ""),
                                     Target("avx512", 512, 32, "skylake-avx512", "")], ids=lambda m: m.name)
@pytest.mark.parametrize("cell", [cells.elman, cells.gru, cells.lstm, cells.slstm])
def test_sums_of_a_tile_with_a_row_of_weights_and_an_operand_fit_the_registers(cell, machine):
    scan, lanes = split(trace(cell)), machine.lanes(4)
    forward = plan_forward(scan, dict.fromkeys(scan.cell.sizes, 64), True, lanes)
    loops = forward.loop, plan_backward(scan, forward.loop.sizes, forward, lanes).loop
    for step in (s for loop in loops for s in shape(loop, machine, lanes).passes if s.panels):
        for rows, blocks in [(step.rows, 1), *step.wide.items()]:
            across = max(len(panel.slots) for panel in step.panels) * step.vectors
            assert rows * blocks * across + across + 1 <= machine.registers


@pytest.mark.parametrize(("cell", "machine", "forward", "backward"), [
    (cells.lstm, Target("avx512", 512, 32, "", ""), 4, 4),  # two steps of four vectors are eight lines
    (cells.lstm, Target("avx2", 256, 16, "", ""), 1, 1),    # two steps of two vectors are two lines
    (cells.gru, Target("avx512", 512, 32, "", ""), 3, 4),
    (cells.elman, Target("avx2", 256, 16, "", ""), 1, 1),
    (cells.lstm, NEON, 1, 1)], ids=lambda v: getattr(v, "name", getattr(v, "__name__", str(v))))
def test_each_of_two_tiles_calls_for_half_of_the_next_block_and_no_more(cell, machine, forward, backward):
    scan = split(trace(cell))
    lanes = machine.lanes(4)
    plan = plan_forward(scan, dict.fromkeys(scan.cell.sizes, 64), True, lanes)
    for loop, lines in ((plan.loop, forward), (plan_backward(scan, plan.loop.sizes, plan, lanes).loop, backward)):
        functions = emit(shape(loop, machine, lanes), machine, 4).split("define ")
        products = [f for f in functions if "@dot_" in f.partition("(")[0]]
        assert products
        assert {f.count("@llvm.prefetch") for f in products} == {lines}
