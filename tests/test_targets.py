"""Machines that the tests do not run on: their code can be made here, not tried."""

import llvmlite.binding as llvm
import my_cells
import pytest

from gatework import cells
from gatework.backends.cpu import jit
from gatework.backends.cpu.emit import emit
from gatework.backends.cpu.shape import shape
from gatework.backends.cpu.target import Target
from gatework.backends.plan import plan_backward, plan_forward
from gatework.compiler import split, trace

NEON = Target("neon", 128, 32, "neoverse-n1", "")


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
        assert {name for name in called if not name.startswith("dot_")} <= {"meet", "sched_yield", "memset", "memcpy"}
        assert "v0." in text  # vector registers are in use
