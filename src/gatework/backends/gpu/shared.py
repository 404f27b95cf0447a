"""Receives the plan of a loop, hands on Triton source: as in `resident.py`, but several programs share the units.

The members of a group own the same rows, and each some of the units: their columns of the weights stay on its
processor, and what goes from turn to turn element by element in its registers. A vector that a matrix multiplies is
handed to the others through memory, in the type of the weights, and so is each member's part of a sum over features.
Then all of them meet:

    load a share of the weights, first states; hand over what will be multiplied; meet
    for each turn of the loop
        for each stage: loads, products of what was handed over, and equations, then the stores
            hand over what later stages multiply or add up; meet
        hand over what the next turn multiplies; meet
    store what was carried

Memory for handing over has two sides, for even and for odd turns. Whoever writes to one has met all the others since
they read from it, a turn ago. Members wait for each other, so all of a launch must run at once: it is a cooperative
one, which fails where they cannot.
"""

from __future__ import annotations

from ...compiler import Cell
from ...compiler.expr import Expr
from ..plan import Loop, Pass, Place
from .maths import FUNCTIONS
from .memory import handed, side_by_side, sums
from .resident import Resident
from .source import LEAST, name_of, padded

# A counter only grows, so nobody can mistake one meeting for another; each has a line of the caches.
COUNTER = 16  # int64
MEET = '''@triton.jit
def meet(counter, arrived):
    tl.debug_barrier()  # what all threads of this program wrote comes before
    tl.atomic_add(counter, 1, sem="release")
    seen = tl.atomic_add(counter, 0, sem="acquire")
    while seen < arrived:
        seen = tl.atomic_add(counter, 0, sem="acquire")
    tl.debug_barrier()'''


def write(loop: Loop, cell: Cell, members: int, longest: int, accurate: str = "float32") -> str:
    """The source of `run` for groups of `members`, a power of two, with operands in pieces of `longest` values.

    It takes, behind what `Resident` does, (handed, totals, counters, rows of earlier launches): memory for
    `handed_width` values of the weights' type and a number for each of its sums, for each row and side, and a counter
    of 0 for each group, `COUNTER` apart.
    """
    return _Shared(loop, cell, members, longest, accurate).text()


def handed_width(loop: Loop) -> int:
    """Values that are handed over, for each row."""
    return sum(loop.size(v) for v in handed(loop).values())


def most_members(loop: Loop) -> int:
    """So many have units of the longest vector."""
    return max((padded(size) for size in loop.sizes.values()), default=LEAST) // LEAST


class _Shared(Resident):
    """Writes `run` for one member."""

    further = ("handed", "totals", "counters", "first_row")
    constants = (*Resident.constants, "MEMBERS")

    def __init__(self, loop: Loop, cell: Cell, members: int, longest: int, accurate: str):
        super().__init__(loop, cell, accurate, ahead=True)
        self.members, self.longest = members, longest
        self.handed = handed(loop)
        self.begin, self.width = side_by_side({key: loop.size(v) for key, v in self.handed.items()})
        self.number = {e: k for k, e in enumerate(sums(loop))}
        self.pieces: dict[Expr, list[tuple[str, int, int]]] = {}

    def functions(self) -> str:
        return f"{FUNCTIONS}\n\n{MEET}"

    def block(self, size: int) -> int:
        return max(LEAST, padded(size) // self.members)

    def first_unit(self, block: int) -> str:
        return f"member * {block} + "

    def rows(self) -> list[str]:
        lines = ["member = tl.program_id(1)",
                 "slot = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]  # where rows are handed over",
                 "row = (first_row + slot).to(tl.int64)",
                 "there = row < rows",
                 f"counter = counters + tl.program_id(0) * {COUNTER}",
                 "met = tl.full([], 0, tl.int64)"]
        if self.handed:
            lines.append(f"handed_side = tl.num_programs(0) * ROWS * {self.width}")
        if self.number:
            lines.append(f"totals_side = tl.num_programs(0) * ROWS * {len(self.number) * self.members}")
        return lines

    def _meet(self) -> list[str]:
        return ["met += MEMBERS", "meet(counter, met)"]

    def _at(self, key: object, side: str, unit: str) -> str:
        return f"handed + {side} * handed_side + slot * {self.width} + {self.begin[key]} + {unit}"

    def _hand_over(self, key: object, value: str, side: str) -> str:
        e = self.handed[key]
        return f"tl.store({self._at(key, side, f'u_{e.dims[0]}')}, {value}, mask=there{self.in_range(e)})"

    def _carried_over(self, side: str) -> list[str]:
        return [self._hand_over(key, self.env[e], side) for key, e in self.handed.items() if key is not e]

    def before_turns(self) -> list[str]:
        lines = self._carried_over("1")
        return [*lines, *self._meet()] if lines else []

    def after_turn(self) -> list[str]:
        lines = self._carried_over("(turn % 2)")
        return [*lines, *self._meet()] if lines else []

    def stage(self, step: Pass) -> None:
        super().stage(step)
        lines = [self._hand_over(e, self.whole(e), "(turn % 2)") for e in step.stage.nodes if e in self.handed]
        lines += [f"tl.store({self._total(e)} + member, tl.sum({self.whole(e.args[0])}, 1)[:, None], mask=there)"
                  for e in step.stage.sums]
        if lines:
            self.lines += [*lines, *self._meet()]

    def operands(self, v: Expr, depth: int) -> list[tuple[str, int, int]]:
        if v not in self.pieces:
            length = min(self.longest, depth)
            self.pieces[v] = [self._piece(v, begin, begin + length) for begin in range(0, depth, length)]
        return self.pieces[v]

    def _piece(self, v: Expr, begin: int, end: int) -> tuple[str, int, int]:
        """A value of all members, some units of it."""
        name, unit = self.fresh(), f"tl.arange({begin}, {end})[None, :]"
        if v in self.handed:
            at, rows = self._at(v, "(turn % 2)", unit), "there"
        else:
            at, rows = self._in_memory(self.loop.reads[v], unit)
        self.lines.append(f'{name} = tl.load({at}, mask={rows} & ({unit} < {self.loop.size(v)}), other=0.0, '
                          'cache_modifier=".cg")')
        return name, begin, end

    def _in_memory(self, place: Place, unit: str) -> tuple[str, str]:
        """Where whole vectors lie that nobody computes in this turn, and the rows that have them."""
        base, key = name_of(place.buffer), (place.buffer, place.offset)
        rows = self.loop.buffers[place.buffer].kind == "rows"
        if key in self.handed and (rows or place.turn == -1):
            return self._at(key, "((turn + 1) % 2)", unit), "there"
        # Nothing stands in for these at an edge: the loop copies what comes from outside before it multiplies that. And
        # nobody writes over them in the loop: the gradient of the matrix is a product of them, after it.
        if rows:
            return f"{base} + row * {self.loop.buffers[place.buffer].width} + {place.offset} + {unit}", "there"
        return f"{base} + here * {base}_stride + {place.offset} + {unit}", "live"

    def _total(self, e: Expr) -> str:
        """Where the members' parts of a sum begin."""
        return f"totals + (turn % 2) * totals_side + (slot * {len(self.number)} + {self.number[e]}) * MEMBERS"

    def sum(self, e: Expr) -> str:
        return (f'tl.sum(tl.load({self._total(e)} + tl.arange(0, MEMBERS)[None, :], mask=there, other=0.0, '
                'cache_modifier=".cg"), 1)[:, None]')
