"""The stages of a turn: what is computed where, and what has to be kept from one stage to another."""

from __future__ import annotations

import pytest

from gatework import cells
from gatework.backends.plan import Loop, plan_backward, plan_forward
from gatework.compiler import split, trace
from gatework.compiler.expr import Expr, order

NAMES = cells.__all__


def loops(name: str) -> list[Loop]:
    scan = split(trace(getattr(cells, name)))
    sizes = dict.fromkeys(scan.cell.sizes, 8)
    forward = plan_forward(scan, sizes, train=True)
    return [plan_forward(scan, sizes, train=False).loop, forward.loop, plan_backward(scan, sizes, forward).loop]


@pytest.mark.parametrize("name", NAMES)
def test_a_vector_made_of_memory_alone_is_computed_where_it_is_first_read(name):
    for loop in loops(name):
        computed = {e for step in loop.passes for e in step.stage.nodes}
        for number, step in enumerate(loop.passes):
            here = {a for e in step.stage.nodes if e.op not in ("contract", "sum") for a in e.args}
            here |= {e.args[0] for e in step.stage.sums} | {e for e, _ in step.stores}
            later = {a for other in loop.passes[number:] for e in other.stage.products for a in e.args}
            for e in step.keep:
                behind = order([e], known=set(loop.reads) - computed)
                in_turn = any(a.op in ("contract", "sum") for a in behind)
                assert in_turn or e in here | later or not e.dims, e


@pytest.mark.parametrize("name", NAMES)
def test_a_scalar_that_is_spread_over_a_vector_is_kept_as_a_scalar(name):
    for loop in loops(name):
        whole = {a for step in loop.passes for e in step.stage.nodes if e.op in ("contract", "sum") for a in e.args}
        assert not [e for step in loop.passes for e in step.keep if e.op == "expand" and e not in whole]


@pytest.mark.parametrize("name", NAMES)
def test_every_value_comes_before_those_that_read_it(name):
    for loop in loops(name):
        before: set[Expr] = set()
        for step in loop.passes:
            kept, here = {*loop.reads, *loop.scratch}, set()
            for e in step.stage.nodes:
                for a in e.args if e.op != "sum" else ():  # added up by a stage before
                    assert a in here or (a in kept and (a in before or a in loop.reads)) or not a.args or a.dims[1:], a
                here.add(e)
            before |= here


@pytest.mark.parametrize("name", ["layer_norm_lstm", "layer_norm_gru"])
def test_a_layer_norm_goes_back_through_one_stage_more_for_each_norm_behind_another(name):
    stages = {step.stage.level for step in loops(name)[2].passes}
    assert len(stages) == (3 if name == "layer_norm_lstm" else 2)
