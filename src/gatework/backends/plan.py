"""Receives a scan and sizes, hands on where every value of a loop lies in memory, for any backend.

A buffer is a sequence [T, B, width], rows [B, width] that each turn overwrites, or a vector parameter [width].
Several values of one size share a buffer, side by side, so that a product outside the loop is one product.

In a `short` loop matrix products multiply bfloat16, and so do sequences hold it whose values go into a product or come
from one. Running gradients, all sums, and states keep the loop's dtype: what is carried on does not forgive rounding. A
state that nothing but products read is rounded by them anyway, and is kept so; its last values are not.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace

from ..compiler import Scan
from ..compiler.expr import Expr, node
from ..compiler.ops import PRODUCTS
from .schedule import Schedule, Stage, schedule


@dataclass(frozen=True)
class Buffer:
    """Memory that the caller provides."""

    name: str
    kind: str  # "sequence", "rows" or "vector"
    width: int
    short: bool = False  # holds bfloat16


@dataclass(frozen=True)
class Place:
    """Where a value lies. In a row's turn that `edge` names ("first", "last") another buffer stands in for this one."""

    buffer: str
    offset: int
    size: int
    turn: int = 0  # of the loop: 0 this one, -1 the one before, 1 the one after
    edge: str = ""


@dataclass
class Pass:
    """One stage with its memory: what it stores."""

    stage: Stage
    size: int
    stores: list[tuple[Expr, Place]] = field(default_factory=list)
    keep: list[Expr] = field(default_factory=list)  # values that a later stage reads from scratch


@dataclass
class Loop:
    """All that the kernel writer needs."""

    sizes: dict[str, int]
    buffers: dict[str, Buffer]
    reads: dict[Expr, Place]
    passes: list[Pass]
    scratch: dict[Expr, int]  # value -> offset in the scratch of its row
    scratch_row: int          # values of scratch in one row
    short: bool = False       # products are of bfloat16

    def size(self, e: Expr) -> int:
        """The features of a value."""
        return self.sizes[e.dims[0]] if e.dims else 1


@dataclass
class Forward:
    """The forward loop; `products` are (buffer, family, rows, leaf): buffer = leaf @ family[rows].T."""

    loop: Loop
    products: list[tuple[str, str, list[str], str]]
    saved: dict[Expr, Place]
    sequences: dict[str, str]  # state -> its sequence buffer
    outputs: dict[str, str]    # what is handed out -> its sequence buffer
    rolling: dict[str, str]    # state -> its rows buffer, where no sequence is kept, or only a rounded one


@dataclass
class Backward:
    """The backward loop; `emitted` is read by the products after it, `carried` holds the running gradients."""

    loop: Loop
    emitted: dict[Expr, Place]
    carried: dict[Expr, str]


class _Layout:
    """Buffers and places of one loop under construction."""

    def __init__(self, scan: Scan, sizes: dict[str, int], align: int, short: bool):
        self.scan, self.sizes, self.align, self.short = scan, sizes, align, short
        self.buffers: dict[str, Buffer] = {}
        self.reads: dict[Expr, Place] = {}
        self.writes: list[tuple[Expr, Place]] = []

    def size(self, e: Expr) -> int:
        return self.sizes[e.dims[0]] if e.dims else 1

    def buffer(self, name: str, kind: str, width: int, short: bool = False) -> str:
        self.buffers[name] = Buffer(name, kind, width, short)
        return name

    def slot(self, name: str, size: int) -> Place:
        """One more value at the end of a shared sequence buffer for values of this size."""
        name = f"{name}_{size}"
        used = self.buffers[name].width if name in self.buffers else 0
        self.buffer(name, "sequence", used + size, self.short)
        return Place(name, used, size)

    def given(self) -> None:
        """Places of what every loop may read: parameters and inputs."""
        for family in self.scan.cell.families.values():
            if family.columns is None:
                size = self.sizes[family.rows]
                name = self.buffer(f"param_{family.name}", "vector", size * len(family.gates))
                self.reads |= {family.parts[g]: Place(name, k * size, size) for k, g in enumerate(family.gates)}
        for name, e in self.scan.cell.inputs.items():
            kind = "sequence" if e.op == "input" else "rows"
            buffer = self.buffer(f"in_{name}", kind, self.size(e), self.short and kind == "sequence")
            self.reads[e] = Place(buffer, 0, self.size(e))

    def before(self) -> list[tuple[str, str, list[str], str]]:
        """Places of the products before the loop: one buffer for each pair of a family and an input."""
        groups: dict[tuple[str, str], dict[str, Expr]] = {}
        for e in self.scan.before:
            (family, gate), name = e.args[0].attr, e.args[1].attr
            groups.setdefault((family, name), {})[gate] = e
        products = []
        for (family, name), of_gate in groups.items():
            gates = [g for g in self.scan.cell.families[family].gates if g in of_gate]
            size = self.size(of_gate[gates[0]])
            kind = "rows" if of_gate[gates[0]].args[1].op == "constant" else "sequence"
            buffer = self.buffer(f"pre_{family}_{name}", kind, size * len(gates), self.short and kind == "sequence")
            self.reads |= {of_gate[g]: Place(buffer, k * size, size) for k, g in enumerate(gates)}
            products.append((buffer, family, gates, name))
        return products

    def finish(self, plan: Schedule) -> Loop:
        passes = [Pass(s, self.sizes[s.dims[0]] if s.dims else 1) for s in plan.stages]
        loop = Loop(self.sizes, self.buffers, self.reads, passes, {}, 0, self.short)
        self._place_stores(loop, plan)
        self._place_scratch(loop, plan)
        self._drop_unused(loop)
        return loop

    def _place_stores(self, loop: Loop, plan: Schedule) -> None:
        busy: dict[str, int] = {}  # rows buffer -> first stage that may overwrite it
        for e, place in self.reads.items():
            if self.buffers[place.buffer].kind == "rows":
                busy[place.buffer] = max(busy.get(place.buffer, 0), plan.free_after(e))
        for e, place in self.writes:
            at = plan.stage_of[e]
            if self.buffers[place.buffer].kind == "rows" and busy.get(place.buffer, 0) > at:
                at = next(k for k, s in enumerate(plan.stages) if s.dims == e.dims and k >= busy[place.buffer])
            loop.passes[at].stores.append((e, place))

    def _place_scratch(self, loop: Loop, plan: Schedule) -> None:
        stored_at = {e: (k, p) for k, s in enumerate(loop.passes) for e, p in s.stores}
        until: dict[Expr, int] = {}  # value in scratch -> the last stage that reads it
        for number, step in enumerate(loop.passes):
            until |= {e: plan.stage_of[e] for e in step.stage.sums}
            needs = {a for e in step.stage.nodes if e.op not in ("contract", "sum") for a in e.args}
            needs |= {v for e in step.stage.products for v in e.args[1::2]} | {e for e, _ in step.stores}
            needs |= {e.args[0] for e in step.stage.sums}
            for e in sorted(needs, key=lambda e: e.born):
                made = plan.stage_of.get(e, number)
                if made == number or e in self.reads:
                    continue
                at, place = stored_at.get(e, (None, None))
                if e not in until and at == made and self._as_it_is(place):
                    self.reads[e] = place  # it lies in memory anyway
                    continue
                if e not in until:
                    loop.passes[made].keep.append(e)
                until[e] = number
        free: list[tuple[int, int, int]] = []  # size and offset in scratch, and the last stage that reads there
        for number, step in enumerate(loop.passes):
            for e in (*step.stage.sums, *step.keep):
                # The vector that is added up is there first, and then its sum.
                size = self.size(e.args[0] if e.op == "sum" else e)
                found = next((f for f in free if f[0] == size and f[2] < number), None)
                if found is None:
                    found = size, loop.scratch_row, number
                    loop.scratch_row += -(-size // self.align) * self.align
                else:
                    free.remove(found)
                loop.scratch[e] = found[1]
                free.append((size, found[1], until[e]))

    def _as_it_is(self, place: Place) -> bool:
        """Whether a value is still there, and not rounded, in a later stage."""
        buffer = self.buffers[place.buffer]
        return buffer.kind == "sequence" and not buffer.short

    def _drop_unused(self, loop: Loop) -> None:
        used = {p.buffer for s in loop.passes for _, p in s.stores}
        for s in loop.passes:
            used |= {self.reads[a].buffer for e in s.stage.nodes for a in e.args if a in self.reads}
            used |= {self.reads[e.args[0]].buffer for e in s.stage.sums if e.args[0] in self.reads}
            used |= {self.reads[e].buffer for e, _ in s.stores if e in self.reads}
        loop.buffers = {n: b for n, b in self.buffers.items() if n in used}


def _computed(e: Expr, given: Set[Expr] = frozenset()) -> Expr:
    """A value that a loop writes must be one that it computes, no leaf and none of those that it is given."""
    return node("copy", e, dims=e.dims) if e.is_leaf or e in given else e


def plan_forward(scan: Scan, sizes: dict[str, int], train: bool, align: int = 1, short: bool = False) -> Forward:
    """Lay out the forward loop; `train` keeps what the backward loop reads. Scratch begins at multiples of `align`."""
    cell = scan.cell
    layout = _Layout(scan, sizes, align, short)
    layout.given()
    products = layout.before()
    saved = list(scan.saved) if train else []
    given = set(scan.before)
    written = [*(cell.next[s] for s in cell.states), *scan.beside.values(), *saved]
    plan = schedule([_computed(e, given) for e in written], given)
    following = dict(zip(cell.states, plan.roots))
    sequences, rolling = {}, {}
    for s, e in cell.states.items():
        size = layout.size(e)
        handed = s in scan.outputs and s not in scan.beside
        if handed or (train and s in scan.stored) or e in plan.multiplied_until:
            rounded = short and _only_multiplied(scan, plan, s)
            sequences[s] = layout.buffer(f"seq_{s}", "sequence", size, rounded)
            layout.reads[e] = Place(sequences[s], 0, size, turn=-1, edge="first")
            layout.writes.append((following[s], Place(sequences[s], 0, size)))
        if s not in sequences or rounded:
            rolling[s] = layout.buffer(f"row_{s}", "rows", size)
            layout.reads.setdefault(e, Place(rolling[s], 0, size))
            layout.writes.append((following[s], Place(rolling[s], 0, size)))
    outputs = {n: sequences.get(n) for n in scan.outputs}
    for (n, value), e in zip(scan.beside.items(), plan.roots[len(cell.states):]):
        outputs[n] = layout.buffer(f"out_{n}", "sequence", layout.size(value))
        layout.writes.append((e, Place(outputs[n], 0, layout.size(value))))
    # What is kept lies over the products before the loop, once those have been read.
    free = {layout.reads[e]: plan.free_after(e) for e in scan.before
            if layout.buffers[layout.reads[e].buffer].kind == "sequence"}
    places = {}
    for original, e in zip(saved, plan.roots[len(cell.states) + len(scan.beside):]):
        fits = (p for p, after in free.items() if p.size == layout.size(e) and after <= plan.stage_of[e])
        places[original] = next(fits, None) or layout.slot("kept", layout.size(e))
        free.pop(places[original], None)
        layout.writes.append((e, places[original]))
    return Forward(layout.finish(plan), products, places, sequences, outputs, rolling)


def _only_multiplied(scan: Scan, plan: Schedule, state: str) -> bool:
    """Whether a state that the forward loop leaves is read by products only, there and in the backward loop."""
    left = {scan.cell.states[state], scan.cell.next[state]}
    read = {a for e in scan.backward.body if e.op not in PRODUCTS for a in e.args}
    return scan.cell.states[state] not in plan.read_until and not left & read


def plan_backward(scan: Scan, sizes: dict[str, int], forward: Forward, align: int = 1) -> Backward:
    """Lay out the backward loop: gradients lie over the kept values that they are made from."""
    cell, backward = scan.cell, scan.backward
    layout = _Layout(scan, sizes, align, forward.loop.short)
    layout.given()
    layout.before()
    # Free from the start. Below, a product that is handed out is read from there, and that must stay as it is.
    occupants = {layout.reads[e]: 0 for e in scan.before if layout.buffers[layout.reads[e].buffer].kind == "sequence"}
    following = {cell.next[s]: s for s in scan.stored}
    known = {*scan.saved, *following, *scan.beside.values()}
    plan = schedule([*backward.emitted, *map(_computed, backward.carried.values())], known)
    for name, b in forward.loop.buffers.items():
        if b.kind == "sequence" and name.startswith(("pre_", "kept_")):
            layout.buffers[name] = b
    layout.reads |= forward.saved
    for n, e in scan.beside.items():
        if not e.is_leaf and e not in following:
            layout.buffers[f"out_{n}"] = forward.loop.buffers[f"out_{n}"]
            layout.reads[e] = Place(f"out_{n}", 0, layout.size(e))
    for s in scan.stored:
        size = layout.size(cell.states[s])
        layout.buffer(f"seq_{s}", "sequence", size)
        layout.reads[cell.states[s]] = Place(f"seq_{s}", 0, size, turn=1, edge="last")
        layout.reads[cell.next[s]] = Place(f"seq_{s}", 0, size)
    for n, e in backward.upstream.items():
        size = layout.size(e)
        # In a row's first turn the gradient of a state also holds that of the last state.
        edge = "" if n in scan.beside else "first"
        layout.reads[e] = Place(layout.buffer(f"up_{n}", "sequence", size, layout.short), 0, size, edge=edge)

    after_loop = {v for pairs in backward.matrices.values() for pair in pairs for v in pair}
    for e, place in forward.saved.items():
        occupants[place] = len(plan.stages) if e in after_loop else plan.free_after(e)
    emitted = {}
    computed = dict(zip(backward.emitted, plan.roots))
    for e in _family_order(scan):
        at = plan.stage_of[computed[e]]
        # A number of a row has its own place: where programs share the units of a row, all of them read and write it.
        fits = (p for p, after in occupants.items() if e.dims and p.size == layout.size(e) and after <= at)
        emitted[e] = _preferred(layout, scan, e, occupants, at) or next(fits, None) or layout.slot("emitted",
                                                                                                  layout.size(e))
        occupants.pop(emitted[e], None)
        layout.writes.append((computed[e], emitted[e]))
    for e, value in backward.lagged.items():
        layout.reads[e] = replace(emitted[value], turn=-1)
    carried = {}
    for (e, _), value in zip(backward.carried.items(), plan.roots[len(backward.emitted):]):
        carried[e] = layout.buffer(f"carry_{len(carried)}", "rows", layout.size(e))
        layout.reads[e] = Place(carried[e], 0, layout.size(e))
        layout.writes.append((value, layout.reads[e]))
    return Backward(layout.finish(plan), emitted, carried)


def _family_order(scan: Scan) -> list[Expr]:
    """The emitted values, those that multiply rows of one matrix side by side."""
    emitted = set(scan.backward.emitted)
    first = [pair[0] for family in scan.cell.families.values() for g in family.gates
             for pair in scan.backward.matrices.get((family.name, g), ()) if pair[0] in emitted]
    return list(dict.fromkeys([*first, *scan.backward.emitted]))


def _preferred(layout: _Layout, scan: Scan, e: Expr, occupants: dict[Place, int], at: int) -> Place | None:
    """The slot of the row block whose gradient this is, if it is free by then."""
    for b in scan.before:
        pairs = scan.backward.matrices.get(b.args[0].attr, ())
        place = layout.reads[b]
        if any(e is d for d, _ in pairs) and place in occupants and occupants[place] <= at:
            return place
    return None
