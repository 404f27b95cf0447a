"""A loop in words: the same for all loops that are written alike, in any process, and never for two that are not.

Compiled kernels are found by it. Names of a cell do not count, nor do sizes that the loop never sees.
"""

from __future__ import annotations

from ...compiler.expr import Expr
from ..plan import Place
from .shape import Panel, Run, Shaped, Tiled


def described(loop: Shaped) -> str:
    """All that the code of a loop depends on, beside the machine and the bytes of a value."""
    return repr(_Description(loop).words)


class _Description:
    def __init__(self, loop: Shaped):
        self.loop = loop
        self.buffer = {name: k for k, name in enumerate(loop.buffers)}
        self.number: dict[Expr, int] = {}  # of the values, in the order in which they are met
        self.words = [loop.short, loop.parts, loop.on_unit, loop.scratch_row,
                      [(b.kind, b.width, b.short) for b in loop.buffers.values()],
                      [self._pass(step) for step in loop.passes]]
        told = 0
        while told < len(self.number):  # what a value is made of is met with it
            met = list(self.number)[told:]
            self.words += map(self._value, met)
            told += len(met)

    def _pass(self, step: Tiled) -> tuple:
        stage = step.stage
        return (bool(stage.dims), self._all(stage.nodes), self._all(stage.sums), step.size,
                [(self._of(e), self._place(place)) for e, place in step.stores], self._all(step.keep),
                [self._panel(p) for p in step.panels], step.vectors, step.rows, step.wide, step.streamed)

    def _panel(self, panel: Panel) -> tuple:
        pieces = [(length, [how for _, _, how in matrices]) for length, matrices in panel.pieces]
        return (panel.name, panel.slots, panel.begun, [self._run(r) for r in panel.runs], pieces, panel.short,
                panel.paired)

    def _run(self, run: Run) -> tuple:
        source = run.source
        return (self._place(source) if isinstance(source, Place) else self._of(source), run.length, run.skip_first)

    def _place(self, place: Place | None) -> tuple | None:
        return place and (self.buffer.get(place.buffer), place.offset, place.size, place.turn, place.edge)

    def _value(self, e: Expr) -> tuple:
        what = self.loop.sizes[e.attr] if e.op == "size" else None if e.is_leaf and e.op != "const" else e.attr
        return (e.op, what, bool(e.dims), self._all(e.args), self._place(self.loop.reads.get(e)),
                self.loop.scratch.get(e))

    def _of(self, e: Expr) -> int:
        return self.number.setdefault(e, len(self.number))

    def _all(self, values) -> list[int]:
        return [self._of(e) for e in values]
