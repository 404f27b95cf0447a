"""Receives a planned loop and a machine, hands on its tiles and the panels of packed weights that they multiply."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from ...compiler.expr import Expr
from ..plan import Loop, Pass, Place
from .target import Target

# On a matrix unit a tile is 16 rows of 16 sums, or of 32 values to multiply. Of its eight registers four hold sums, two
# by two, so that what is loaded is used twice.
TILE_ROWS, TILE_VALUES, TILES = 16, 32, 2
CHUNK = 2 * TILE_VALUES  # bytes of one row of a tile
# Bytes of the panels of a stage that are more than first caches hold, of one thread or of two.
FIRST_CACHES = 1 << 17


@dataclass(frozen=True)
class Run:
    """Operands that lie side by side: one walk of an inner product. `skip_first`: nothing to multiply in turn 0."""

    source: Place | Expr  # an Expr is a value of this step in the scratch of its row
    length: int
    skip_first: bool


@dataclass(frozen=True)
class Panel:
    """A packed matrix [block][k][slot][vector][lane]: what one block of units needs, in the order of reading.

    `pieces` lists, in order of k, (length, one matrix per slot); a matrix is (family, row, "N" or "T").
    """

    name: str
    slots: tuple[int, ...]
    begun: tuple[bool, ...]  # per slot: whether an earlier panel of the stage has left a sum there
    runs: tuple[Run, ...]
    pieces: tuple[tuple[int, tuple[tuple[str, str, str], ...]], ...]
    short: bool = False      # holds bfloat16, though it is multiplied as float32
    paired: bool = False     # k counts pairs of bfloat16, in whole chunks of the operands

    @property
    def length(self) -> int:
        return sum(n for n, _ in self.pieces)

    @property
    def chunks(self) -> int:
        """The same in tiles, each piece rounded up."""
        return sum(in_tiles(n) for n, _ in self.pieces)

    @property
    def steps(self) -> int:
        """Steps of an inner product with all of it."""
        return sum(self.steps_of(n) for n, _ in self.pieces)

    def steps_of(self, length: int) -> int:
        """Steps of an inner product with so much of it."""
        return in_tiles(length) * TILE_VALUES // 2 if self.paired else length


def in_tiles(length: int) -> int:
    """Tiles that hold so many values of each row."""
    return -(-length // TILE_VALUES)


@dataclass
class Tiled(Pass):
    """A pass with the slots of its products and the shape of its tiles."""

    panels: list[Panel] = field(default_factory=list)
    vectors: int = 1                                      # vectors of units in one block
    rows: int = 8                                         # rows in one tile, at the most
    wide: dict[int, int] = field(default_factory=dict)    # rows -> blocks at once, where few rows leave registers free
    streamed: bool = False                                # its panels come from the second caches or from beyond them


@dataclass
class Shaped(Loop):
    """A loop whose passes are tiled.

    `parts`: 0, operands are multiplied as they are; 1, rounded to bfloat16; 3, float32 as sums of three such. The
    latter two are for a matrix unit, where there is one (`on_unit`), else 1 is for vectors.
    """

    parts: int = 0
    on_unit: bool = False

    @property
    def panels(self) -> list[Panel]:
        return [p for s in self.passes for p in s.panels]


def shape(loop: Loop, target: Target, lanes: int, parts: int = 0, short_weights: bool = False) -> Shaped:
    """Choose tiles and panels for a machine with vectors of so many values, or for its matrix unit.

    `short_weights`: panels hold bfloat16 that vectors multiply as float32.
    """
    parts = parts or int(loop.short)
    on_unit = bool(parts) and target.tiles
    loop = Shaped(**vars(loop) | dict(passes=[Tiled(**vars(step)) for step in loop.passes]), parts=parts,
                  on_unit=on_unit)
    for number, step in enumerate(loop.passes):
        if step.stage.products:
            across = TILES if on_unit else 4 if target.registers >= 32 else 2  # vectors of a panel row
            chunk = _set_width(step, lanes, across)
            if on_unit:
                step.rows = TILES * TILE_ROWS
            else:
                _set_rows(step, target, lanes, chunk)
            _panels(loop, step, number, across)
            step.panels = [replace(p, short=short_weights, paired=bool(parts) and not on_unit) for p in step.panels]
            walked = sum(p.steps * len(p.slots) for p in step.panels) * -(-step.size // lanes)  # vectors
            step.streamed = walked * target.bits // 8 > FIRST_CACHES * (1 + short_weights)
            if step.streamed:  # of fewer blocks at once the next turn, which comes from the other end, finds more
                step.wide = {rows: min(2, wide) for rows, wide in step.wide.items()}
    return loop


def _set_rows(step: Tiled, target: Target, lanes: int, chunk: int) -> None:
    """Choose the tile: accumulators, one panel row and one operand must fit the register file."""
    registers, width = target.registers, chunk * step.vectors
    step.rows = min(8, (registers - 1 - width) // width)
    blocks = -(-step.size // (lanes * step.vectors))
    for rows in (1, 2, 3):
        wide = min(4, (registers - 8 if registers >= 32 else registers - 4) // (rows * width), blocks)
        if wide > 1:
            step.wide[rows] = wide


def _set_width(step: Tiled, lanes: int, across: int) -> int:
    """Choose the vectors of a block; returns the slots that share a panel row of at most `across` vectors."""
    slots, blocks = len(step.stage.products), -(-step.size // lanes)
    chunk = -(-slots // -(-slots // across))
    # Of the widths that fill the registers, the one that leaves the fewest units of the last block empty.
    widths = [w for w in (across // chunk, across // chunk - 1) if 0 < w <= blocks] or [1]
    step.vectors = min(widths, key=lambda w: -(-blocks // w) * w)
    return chunk


def _panels(loop: Shaped, step: Tiled, number: int, across: int) -> None:
    groups: dict[tuple[int, ...], list[tuple[Expr, dict]]] = {}
    for v, of_slot in step.stage.by_operand():
        matrices = {slot: (*matrix.attr, flag) for slot, (matrix, flag) in of_slot.items()}
        groups.setdefault(tuple(sorted(matrices)), []).append((v, matrices))
    chunk = max(1, across // step.vectors)
    for slots, operands in groups.items():
        operands.sort(key=partial(_address, loop))
        count = -(-len(slots) // chunk)
        for part in (slots[k * len(slots) // count:(k + 1) * len(slots) // count] for k in range(count)):
            pieces = tuple((loop.size(v), tuple(m[s] for s in part)) for v, m in operands)
            begun = tuple(any(s in p.slots for p in step.panels) for s in part)
            step.panels.append(Panel(f"{number}_{len(step.panels)}", part, begun, _runs(loop, operands), pieces))


def _address(loop: Loop, operand: tuple[Expr, dict]) -> tuple:
    place = loop.reads.get(operand[0])
    return (place.buffer, place.turn, place.offset) if place else ("", 0, operand[0].born)


def _runs(loop: Shaped, operands: list[tuple[Expr, dict]]) -> tuple[Run, ...]:
    runs: list[Run] = []
    for v, _ in operands:
        place, size = loop.reads.get(v), loop.size(v)
        last = runs[-1] if runs else None
        if (last and place and isinstance(last.source, Place) and not loop.parts  # each run fills its own chunks
                and replace(place, offset=0, size=0) == replace(last.source, offset=0, size=0)
                and last.source.offset + last.length == place.offset):
            runs[-1] = replace(last, length=last.length + size)
        else:
            runs.append(Run(place or v, size, v.op == "lag"))
    return tuple(runs)


# ---- operands that are rounded to bfloat16, in rows of chunks


def lies_ready(loop: Shaped, run: Run) -> bool:
    """Whether an operand can be read where it is: bfloat16 already, and in whole chunks."""
    return isinstance(run.source, Place) and loop.buffers[run.source.buffer].short and run.length % TILE_VALUES == 0


def rounded(loop: Shaped, step: Tiled) -> list[tuple[Run, int]]:
    """The operands of a stage that must be rounded, and where in a row of such ones each begins, in bytes."""
    found, at = [], 0
    for run in {r.source: r for p in step.panels for r in p.runs}.values():
        if not lies_ready(loop, run):
            found.append((run, at))
            at += in_tiles(run.length) * loop.parts * CHUNK
    return found


def row_bytes(loop: Shaped, step: Tiled) -> int:
    """Bytes from one row of rounded operands to the next.

    An odd number of lines: rows at a power of two would push each other out of the first cache.
    """
    return sum(in_tiles(run.length) for run, _ in rounded(loop, step)) * loop.parts * CHUNK | CHUNK
