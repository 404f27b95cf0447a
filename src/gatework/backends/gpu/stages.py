"""Receives the plan of a loop, hands on Triton source: kernels for each stage of a turn, for weights of any size.

A program has some rows and some units, goes through the weights of those units, and evaluates what the products make
possible; what the others must know of it lies in memory when the next kernel begins:

    for each turn of the loop
        for each stage
            stage(turn): loads, products of what was handed over, and equations, then the stores

Products are made four at a time, by warps of their own: of an operand and a matrix each, or of a part of their depth.
Memory for what goes from turn to turn has two sides, for even and for odd turns.

With OVERLAP, which NVIDIA's GPUs have from compute capability 9 on, a kernel begins while the one before it runs, and
waits for its end where it first reads what that may write.

What a kernel works on it finds in a table in memory, so a recorded graph of launches can be replayed for other tensors,
other lengths and as many rows as its programs have. `told_0` reads the table and goes on as `stage_0`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...compiler import Cell
from ...compiler.expr import Expr
from ..plan import Loop, Pass, Place
from .maths import FUNCTIONS
from .memory import DEPTH, Layout, carried, filled
from .source import EDGE_LINES, Writer, name_of, taken_apart

ENTRIES = 4  # products at once
CONSTANTS = ("FROM_END", "ROWS", "UNITS", "MEMBERS", "STAGES", "PRECISION", "OVERLAP")


def joined(loop: Loop) -> Loop:
    """The same with numbers of a row computed in the stage after them, by all programs: cheaper than a launch."""
    passes: list[Pass] = []
    for step in reversed(loop.passes):
        if passes and not step.stage.dims:
            after = passes[0]
            stage = replace(after.stage, nodes=step.stage.nodes + after.stage.nodes)
            passes[0] = replace(after, stage=stage, stores=step.stores + after.stores, keep=step.keep + after.keep)
        else:
            passes.insert(0, step)
    return replace(loop, passes=passes)


def edges(loop: Loop) -> list[str]:
    """Sequences for which something stands in at a row's edge, but those of the turn before: these begin so."""
    return [n for n in loop.buffers if any(p.edge and p.buffer == n and p.turn != -1 for p in loop.reads.values())]


def signature(loop: Loop) -> dict[str, str]:
    """What all stages take before the turn -> "words", "given" or "accurate" for memory of such values, or "number".

    `given` is the type of the tensors, `accurate` that of the sums. A sequence does not move where it is the same row
    in all steps.
    """
    rolling = {name for name, _ in carried(loop)}
    sequences = [n for n, b in loop.buffers.items() if b.kind == "sequence"]
    return {"offsets": "words", "sizes": "words", "first": "number", "rows": "number",
            **{name_of(n): "given" for n, b in loop.buffers.items() if b.kind != "rows" or n not in rolling},
            **{f"{name_of(n)}_moves": "number" for n in sequences},
            **{f"{name_of(n)}_edge": "given" for n in edges(loop)},
            "weights": "given", "handed": "given", "carried": "accurate", "totals": "accurate", "scratch": "accurate"}


def write(loop: Loop, cell: Cell, given: str, accurate: str = "float32") -> str:
    """The source of `tell`, `told_0`, `told_1`, ... and `advance`, for tensors of the type `given`.

    `tell` writes what `signature` says, addresses and numbers, into a table, with a turn of 0 at its end. Each stage
    takes the table, how many turns after that one it is, `CONSTANTS`, and of how many bytes addresses of values are
    multiples. `advance` adds to the turn.
    """
    takes = len(signature(loop))
    words = [f"w{k}" for k in range(takes)]
    specialised = ", ".join(f'"{name}"' for name in words)
    typed = ", ".join(f'{name}: "i64"' for name in words)
    tell = [f"@triton.jit(do_not_specialize=[{specialised}])", f"def tell(told, {typed}):",
            *(f"    tl.store(told + {k}, {name})" for k, name in enumerate([*words, "0"])), ""]
    advance = ['@triton.jit(do_not_specialize=["turns"])', "def advance(told, turns):",
               f"    tl.store(told + {takes}, tl.load(told + {takes}) + turns)", ""]
    stages = [f"{_Stage(loop, cell, given, accurate).text(number, step)}\n\n{_told(loop, number, given, accurate)}"
              for number, step in enumerate(loop.passes)]
    parts = [f"import triton\nimport triton.language as tl\n\n\n{FUNCTIONS}", "\n".join(tell), *stages,
             "\n".join(advance)]
    return "\n\n".join(parts)


def _told(loop: Loop, number: int, given: str, accurate: str) -> str:
    types = {"given": given, "accurate": accurate}
    found = [f"tl.load(told + {k}).to(tl.int32)" if kind == "number" else
             f"tl.load(told + {k}).to(tl.pointer_type(tl.int64))" if kind == "words" else
             f"tl.multiple_of(tl.load(told + {k}).to(tl.pointer_type(tl.{types[kind]})), ALIGNED)"
             for k, kind in enumerate([*signature(loop).values(), "number"])]
    found[-1] += " + ahead"
    constants = ", ".join(f"{name}: tl.constexpr" for name in (*CONSTANTS, "ALIGNED"))
    return "\n".join(['@triton.jit(do_not_specialize=["ahead"])', f"def told_{number}(told, ahead, {constants}):",
                      f"    stage_{number}(", *(f"        {one}," for one in (*found, *CONSTANTS)), "    )", ""])


@dataclass(frozen=True)
class _Pair:
    """One product of the sum `of`."""

    of: Expr
    matrix: Expr
    flag: str  # "T": the transposed matrix
    operand: Expr


class _Stage(Writer):
    """Writes the kernel of one stage."""

    def __init__(self, loop: Loop, cell: Cell, given: str, accurate: str):
        super().__init__(loop, cell, accurate)
        self.given = f"tl.{given}"
        self.layout = Layout(loop)
        self.number = {e: k for k, e in enumerate(self.layout.sums)}
        self.added: dict[Expr, list[str]] = {}  # a sum of products -> variables that add up to it

    def text(self, number: int, step: Pass) -> str:
        names = [*signature(self.loop), "turn", *(f"{name}: tl.constexpr" for name in CONSTANTS)]
        self.indices()
        self._equations(step, {(p.buffer, p.offset) for s in self.loop.passes[:number] for _, p in s.stores})
        head = ["member = tl.program_id(1)",
                "row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]",
                "there = row < rows",
                "t = first - turn if FROM_END else first + turn",
                "begin = tl.load(offsets + t)",
                "live = row < tl.load(sizes + t)",
                "here = begin + row"]
        head += [f"{name_of(n)}_stride = {b.width} * {name_of(n)}_moves" for n, b in self.loop.buffers.items()
                 if b.kind == "sequence"]
        if edges(self.loop):
            head += EDGE_LINES
        for name, width in (("handed", self.layout.handed_width), ("carried", self.layout.carried_width),
                            ("totals", len(self.number))):
            if width:
                members = " * MEMBERS" if name == "totals" else ""
                side = f"tl.num_programs(0).to(tl.int64) * ROWS * {width}{members}"
                head += [f"{name}_before = ((turn + 1) % 2) * {side}", f"{name}_now = (turn % 2) * {side}"]
        if self.number:
            head.append("part = tl.arange(0, MEMBERS)[None, :]")
        if step.stage.products:
            head += [f"entry = tl.arange(0, {ENTRIES})[:, None, None]",
                     "some = tl.load(sizes + t) - tl.program_id(0).to(tl.int64) * ROWS  # rows with this step",
                     "some = tl.minimum(tl.maximum(some, 0), ROWS).to(tl.int32)"]
        lines = [f"    {line}" for line in (*head, *self.outside, *self.lines)]
        return "\n".join(["@triton.jit", f"def stage_{number}({', '.join(names)}):", *lines, ""])

    def block(self, size: int) -> str:
        return "UNITS"

    def first_unit(self, block: object) -> str:
        return f"member * {block} + "

    # ---- one stage

    def _equations(self, step: Pass, written: set) -> None:
        """`written` are places that earlier stages of the turn write to."""
        made = set(step.stage.nodes)
        leaves = [a for e in step.stage.nodes if e.op not in ("contract", "sum") for a in e.args
                  if a not in made and (a in self.loop.reads or a in self.loop.scratch)]
        # What memory holds is asked for before the products, and comes meanwhile.
        for a in leaves:
            place = self.loop.reads.get(a)
            if place is not None and not self._is_carried(place) and (place.buffer, place.offset) not in written:
                self.value(a)
        self.lines += ["if OVERLAP:  # the kernel before this one may still run: all that it writes is read below",
                       "    tl.extra.cuda.gdc_wait()",
                       "    tl.extra.cuda.gdc_launch_dependents()"]
        for a in leaves:
            self.value(a)
        for pairs in self._bundles(step):
            self._multiply(pairs)
        for e in step.stage.nodes:
            value, name = self.computed(e), self.fresh()
            self.lines.append(f"{name} = {value}")
            self.env[e] = name
        self._store(step)

    def _store(self, step: Pass) -> None:
        stores = [(place, e, self.value(e)) for e, place in step.stores]
        old = {place: self.value(e) for e, place in self.loop.reads.items() if place in {p for p, _, _ in stores}
               and self.loop.buffers[place.buffer].kind == "rows"}
        kept = [(e, self.value(e)) for e in step.keep]
        parts = [(e, f"tl.sum({self.whole(e.args[0])}, 1)[:, None]") for e in step.stage.sums]
        if any(place in self.loaded for place, _, _ in stores):
            self.lines.append("tl.debug_barrier()  # what was read there has been read by all")
        for place, e, value in stores:
            key = place.buffer, place.offset
            if place in old:  # rows that have no such step keep what they had
                value = f"tl.where(live, {value}, {old[place]})"
                self._put(self._carried("now", key, e), value, e, "there")
            else:
                self.lines.append(self.store(e, place, value, "live"))
                if key in self.layout.carried:
                    self._put(self._carried("now", key, e), value, e, "live")
            if key in self.layout.handed:
                self._put(self._handed("now", key, e), value, e, "live")
        for e in step.stage.nodes:
            if e in self.layout.handed:
                self._put(self._handed("now", e, e), self.env[e], e, "live")
        for e, value in kept:
            self._put(self._scratch(e), value, e, "live")
        for e, value in parts:
            self.lines.append(f"tl.store({self._total(e)} + member, {value}, mask=live)")

    def _put(self, at: str, value: str, e: Expr, mask: str) -> None:
        self.lines.append(f"tl.store({at}, {value}, mask={mask}{self.in_range(e)})")

    # ---- where things lie

    def _unit(self, e: Expr) -> str:
        return f" + u_{e.dims[0]}" if e.dims else ""

    def _handed(self, side: str, key: object, e: Expr) -> str:
        at = self.layout.handed_at[key]
        return f"handed + handed_{side} + row * {self.layout.handed_width} + {at}{self._unit(e)}"

    def _carried(self, side: str, key: tuple[str, int], e: Expr) -> str:
        at = self.layout.carried_at[key]
        return f"carried + carried_{side} + row * {self.layout.carried_width} + {at}{self._unit(e)}"

    def _scratch(self, e: Expr) -> str:
        return f"scratch + row * {self.loop.scratch_row} + {self.loop.scratch[e]}{self._unit(e)}"

    def _total(self, e: Expr) -> str:
        """Where the members' parts of a sum begin."""
        return f"totals + totals_now + (row * {len(self.number)} + {self.number[e]}) * MEMBERS"

    def _is_carried(self, place: Place) -> bool:
        """Whether it is read where the turn before left it."""
        return (place.buffer, place.offset) in self.layout.carried and (
            place.turn == -1 or self.loop.buffers[place.buffer].kind == "rows")

    def read(self, e: Expr) -> str:
        place = self.loop.reads.get(e)
        if place is not None and self._is_carried(place):
            at, mask = self._carried("before", (place.buffer, place.offset), e), "there"
        elif place is not None:
            return super().read(e)
        elif e not in self.number:
            at, mask = self._scratch(e), "live"
        name = self.fresh(e if e.is_leaf else None)
        if e in self.number:
            self.lines.append(f"{name} = {self.sum(e)}")
            return name
        self.lines.append(f"{name} = tl.load({at}, mask={mask}{self.in_range(e)}, other=0.0)")
        return name

    def sum(self, e: Expr) -> str:
        return (f"tl.sum(tl.load({self._total(e)} + part, mask=live & (part < tl.num_programs(1)), other=0.0), 1)"
                "[:, None]")

    # ---- products

    def product(self, e: Expr) -> str:
        return " + ".join(self.added[e])

    def _bundles(self, step: Pass) -> list[list[_Pair]]:
        """Products that can be made at once: of matrices of one shape, by operands that lie side by side, or by one."""
        alike: dict[tuple, list[_Pair]] = {}
        for e in step.stage.products:
            for m, v, flag in zip(e.args[::2], e.args[1::2], e.attr):
                alike.setdefault((m.dims, flag, self._side(v) or v), []).append(_Pair(e, m, flag, v))
        return [pairs[k:k + ENTRIES] for pairs in alike.values() for k in range(0, len(pairs), ENTRIES)]

    def _key(self, v: Expr) -> object:
        """What it is handed over as."""
        return v if v in self.layout.handed else (self.loop.reads[v].buffer, self.loop.reads[v].offset)

    def _side(self, v: Expr) -> str:
        """The side where it is handed over; none for what lies in memory as it was given."""
        if v in self.layout.handed:
            return "now"
        place = self.loop.reads[v]
        before = place.turn == -1 or self.loop.buffers[place.buffer].kind == "rows"
        return "before" if before and self._key(v) in self.layout.handed else ""

    def _multiply(self, pairs: list[_Pair]) -> None:
        """Emit the loop over the depth of some products, and take their sums apart."""
        n, first = next(self.numbers), pairs[0]
        parts = {1: 4, 2: 2}.get(len(pairs), 1)  # of the depth of each
        sizes = [self.loop.sizes[d] for d in first.matrix.dims]
        out, inner = first.matrix.dims if first.flag == "N" else first.matrix.dims[::-1]
        entry = "entry" if parts == 1 else f"(entry // {parts})"
        depth, deep = filled(self.loop.sizes[inner]), DEPTH // parts
        unit = f"tl.arange(0, {deep})" if parts == 1 else f"(entry % {parts}) * {deep} + tl.arange(0, {deep})"
        a, loaded = self._operand(pairs, entry, f"k{n}", unit, parts == 1)
        down = f"k{n} + {unit}[None, :, None]"
        at = (f"u_{out}[None] * {filled(sizes[1])} + ({down})" if first.flag == "N" else
              f"({down}) * {filled(sizes[1])} + u_{out}[None]")
        busy = "" if parts * len(pairs) == ENTRIES else f", mask=entry < {len(pairs)}, other=0.0"
        begin = self._chosen(entry, [self.layout.matrix_at[p.matrix] for p in pairs])
        self.lines += [f"a{n} = {a}", f"w{n} = weights + {begin}",
                       f"v{n} = tl.zeros([{ENTRIES}, ROWS, UNITS], {self.accurate})",
                       f"end{n} = tl.minimum({depth} * some * (member * UNITS < {self.loop.sizes[out]}), {depth})",
                       f"for k{n} in tl.range(0, end{n}, {DEPTH}, num_stages=STAGES):",
                       f"    v{n} = tl.dot({loaded.format(f'a{n}')}, tl.load(w{n} + {at}{busy}), v{n}, "
                       f"input_precision=PRECISION, out_dtype={self.accurate})"]
        self._take_apart(f"v{n}", [p.of for p in pairs for _ in range(parts)])

    def _operand(self, pairs: list[_Pair], entry: str, k: str, unit: str, whole: bool) -> tuple[str, str]:
        """Where what is multiplied begins; and how some of its values are read there, [ENTRIES, ROWS, values]."""
        v, side = pairs[0].operand, self._side(pairs[0].operand)
        alike = whole and all(p.operand is v for p in pairs)
        across, axis = (f"{unit}[None, :]", "") if alike else (f"{unit}[None, None, :]", "[None]")
        if side:
            begin = self._chosen(entry, [self.layout.handed_at[self._key(p.operand)] for p in pairs])
            at, mask = f"handed + handed_{side} + {begin} + row{axis} * {self.layout.handed_width}", ""
        else:
            # Nothing stands in for these at an edge: the loop copies what comes from outside before it multiplies that.
            # And nobody writes over them in the loop: the gradient of the matrix is a product of them, after it.
            place = self.loop.reads[v]
            name, rows = name_of(place.buffer), self.loop.buffers[place.buffer].kind == "rows"
            row, stride, live = (("row", self.loop.buffers[place.buffer].width, "there") if rows else
                                 ("here", f"{name}_stride", "live"))
            at = f"{name} + {row}{axis} * {stride} + {place.offset}"
            mask = f", mask={live}{axis} & ({k} + {across} < {place.size}), other=0.0"
        loaded = f"tl.load({{}} + {k} + {across}{mask})"
        return at, f"tl.broadcast_to({loaded}[None], [{ENTRIES}, ROWS, {DEPTH}])" if alike else loaded

    def _chosen(self, entry: str, values: list[int]) -> str:
        """The number of each entry, in terms of which the compiler sees the divisors."""
        others = [f" + ({entry} == {k}).to(tl.int32) * {value - values[0]}" for k, value in enumerate(values)]
        return str(values[0]) + "".join(text for text, value in zip(others, values) if value != values[0])

    def _take_apart(self, name: str, owners: list[Expr]) -> None:
        """Say which sum of products each entry belongs to. (`tl.sum` over entries has eight times as many barriers.)"""
        names = [f"{name}_{k}" for k in range(ENTRIES)]
        self.lines += taken_apart(names, f"tl.permute({name}, (1, 2, 0))", "UNITS")
        for e, one in zip(owners, names):
            self.added.setdefault(e, []).append(one)
