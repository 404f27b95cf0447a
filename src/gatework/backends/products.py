"""Receives what a backward loop has written, hands on the gradients: the large products after the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..compiler import Scan
from ..compiler.expr import Expr
from .batch import Batch
from .plan import Backward, Place


class Products:
    """The large products after the backward loop, whole sequences at once, by the array library's BLAS.

    What multiplies what is settled once per kernel; `gradients` only walks the lists.
    """

    def __init__(self, scan: Scan, sizes: dict[str, int], saved: dict[Expr, Place], plan: Backward):
        self.scan, self.cell, self.sizes, self.saved, self.plan = scan, scan.cell, sizes, saved, plan
        after = scan.backward
        self.of_input = {n: self._joined(t.products) for n, t in after.inputs.items()}
        self.of_state = {s: self._joined(t.products) for s, t in after.states.items()}
        self.of_matrix = {n: self._outer_products(n) for n, f in self.cell.families.items() if f.columns}
        self.of_vector = {n: self._sums(n) for n, f in self.cell.families.items() if not f.columns}

    # ---- settled once

    def place(self, e: Expr) -> Place:
        return self.plan.emitted.get(e) or self.saved.get(e) or self.plan.loop.reads[e]

    def _block(self, family: str) -> int:
        return self.sizes[self.cell.families[family].rows]

    def _runs(self, items: list[tuple[str, str, Place]]) -> list[tuple[str, slice, Place]]:
        """Join (family, row, place) whose rows and places both follow each other: fewer, larger products."""
        runs: list[tuple[str, int, int, Place]] = []
        for family, gate, place in sorted(items, key=lambda i: (i[0], self.cell.families[i[0]].gates.index(i[1]))):
            begin = self.cell.families[family].gates.index(gate) * self._block(family)
            end = begin + self._block(family)
            if runs:
                known, start, stop, joined = runs[-1]
                follows = joined.buffer == place.buffer and joined.offset + joined.size == place.offset
                if known == family and stop == begin and follows:
                    runs[-1] = (family, start, end, Place(place.buffer, joined.offset, joined.size + place.size))
                    continue
            runs.append((family, begin, end, place))
        return [(family, slice(begin, end), place) for family, begin, end, place in runs]

    def _joined(self, products) -> list[tuple[str, slice, Place]]:
        return self._runs([(*matrix.attr, self.plan.emitted[d]) for matrix, d in products])

    def _outer_products(self, name: str) -> list[tuple[slice, Place | None, Expr | None, bool]]:
        """(rows, values, operand, whether to add to what the rows hold); no place: nothing reaches these rows."""
        rounds: dict[tuple[int, Expr], list] = {}
        result = []
        for k, gate in enumerate(self.cell.families[name].gates):
            pairs = self.scan.backward.matrices[name, gate]
            if not pairs:
                result.append((slice(k * self._block(name), (k + 1) * self._block(name)), None, None, False))
            for number, (d, operand) in enumerate(pairs):
                rounds.setdefault((number, operand), []).append((name, gate, self.place(d)))
        for (number, operand), items in sorted(rounds.items(), key=lambda r: r[0][0]):
            result += [(rows, place, operand, number > 0) for _, rows, place in self._runs(items)]
        return result

    def _sums(self, name: str) -> list[tuple[slice, str, slice]]:
        """(rows, buffer to add up, its columns)."""
        items = []
        for gate in self.cell.families[name].gates:
            e = self.scan.backward.vectors[name, gate]
            carried = self.plan.carried.get(e)
            items.append((name, gate, Place(carried, 0, self._block(name)) if carried else self.place(e)))
        return [(rows, place.buffer, slice(place.offset, place.offset + place.size))
                for _, rows, place in self._runs(items)]

    # ---- for every call

    def gradients(self, xp, batch: Batch, arrays, inputs, first, last, parameters, reverse: bool,
                  needs: Sequence[bool]) -> list:
        call = _Call(self, xp, batch, arrays, inputs, first, last, parameters, reverse)
        wanted = [*((call.input, n) for n in self.cell.inputs), *((call.state, s) for s in self.cell.states),
                  *((call.matrix if f.columns else call.vector, n) for n, f in self.cell.families.items())]
        return [make(name) if need else None for (make, name), need in zip(wanted, needs, strict=True)]


@dataclass
class _Call:
    """One walk over the products."""

    plan: Products
    xp: Any
    batch: Batch
    arrays: dict[str, Any]
    inputs: dict[str, Any]
    first: dict[str, Any]
    last: dict[str, Any]
    parameters: dict[str, Any]
    reverse: bool
    sums: dict[str, Any] = field(default_factory=dict)

    def _sequence(self, place: Place):
        """The values of a place, [N, size]; a view."""
        a = self.arrays[place.buffer]
        return a if a.shape[1] == place.size else a[:, place.offset:place.offset + place.size]

    def _at(self, sequence, at):
        return sequence[at] if isinstance(at, slice) else self.xp.take(sequence, at)

    def _over_steps(self, sequence):
        """The sum over the steps of every row, [B, size]."""
        if self.batch.is_dense:
            return sequence.reshape(self.batch.steps, self.batch.rows, -1).sum(0)
        return self.xp.sum_by(sequence, self.batch.row_of, self.batch.rows)

    def _multiply(self, products, values, out) -> None:
        """out = sum of values of a place times the matrix rows."""
        for number, (family, rows, place) in enumerate(products):
            w = self.parameters[family]
            w = w if rows.stop - rows.start == w.shape[0] else w[rows]
            if number:
                self.xp.add_product(out, values(place), w)
            else:
                self.xp.matmul(values(place), w, out=out)
        if not products:
            out[...] = 0

    def input(self, name: str):
        e, rest = self.plan.cell.inputs[name], self.plan.scan.backward.inputs[name].rest
        out = self.xp.lasting(*self.inputs[name].shape, short=self.plan.plan.loop.short and e.op == "input")
        if e.op == "constant":
            self._multiply(self.plan.of_input[name], lambda p: self._over_steps(self._sequence(p)), out)
        else:
            self._multiply(self.plan.of_input[name], self._sequence, out)
        if rest is not None:
            carried = self.plan.plan.carried.get(rest)
            out += self.arrays[carried] if carried else self._sequence(self.plan.place(rest))
        return out

    def state(self, name: str):
        at, live = self.batch.start(self.reverse), self.batch.live
        out = self.xp.zeros(*self.first[name].shape)
        self._multiply(self.plan.of_state[name], lambda p: self._at(self._sequence(p), at), out[:live])
        end = self.last.get(f"{name} without steps")
        if end is not None:
            out[live:] = end[live:]
        for e, buffer in self.plan.plan.carried.items():
            if e.op == "carry" and e.attr == f"d{name}":
                out += self.arrays[buffer]
        return out

    def matrix(self, name: str):
        out = self.xp.lasting(*self.parameters[name].shape)
        for rows, place, operand, more in self.plan.of_matrix[name]:
            target = out if rows.stop - rows.start == out.shape[0] else out[rows]
            if place is None:
                target[...] = 0
                continue
            for a, b in self._pairs(self._sequence(place), operand):
                if a.shape[0] == 0 and more:
                    continue
                if more:
                    self.xp.add_product(target, a.T, b)
                else:
                    self.xp.matmul(a.T, b, out=target)
                more = True
        return out

    def _pairs(self, d, operand: Expr) -> list[tuple]:
        """The sequences whose outer products add up, for values d [N, size] and what they multiply."""
        if operand.op == "state":
            # The state before step t is what step t - 1 wrote, or the first state.
            before, first = map(self.xp.factor, (self.arrays[f"seq_{operand.attr}"], self.first[operand.attr]))
            rows = self.batch.rows
            if not self.batch.is_dense:
                start = self.batch.start(self.reverse)
                earlier = self.xp.take(before, self.batch.previous(self.reverse))
                earlier[start] = first[:self.batch.live]
                return [(d, earlier)]
            if self.plan.plan.loop.short:  # copying costs less there than a small product beside the large one
                return [(d, self.xp.after_each_other(*((before[rows:], first) if self.reverse else
                                                       (first, before[:-rows]))))]
            return ([(d[:-rows], before[rows:]), (d[-rows:], first)] if self.reverse else
                    [(d[rows:], before[:-rows]), (d[:rows], first)])
        if operand.op == "constant":
            return [(self._over_steps(d), self.inputs[operand.attr])]
        if operand.op == "input":
            return [(d, self.inputs[operand.attr])]
        for s in self.plan.scan.stored:
            if self.plan.cell.next[s] is operand:
                return [(d, self.arrays[f"seq_{s}"])]
        return [(d, self._sequence(self.plan.place(operand)))]

    def vector(self, name: str):
        pieces = self.plan.of_vector[name]
        if len(pieces) == 1:
            return self.xp.copy(self._sum(pieces[0][1])[pieces[0][2]])  # two biases may share one sum
        out = self.xp.lasting(*self.parameters[name].shape)
        for rows, buffer, columns in pieces:
            out[rows] = self._sum(buffer)[columns]
        return out

    def _sum(self, buffer: str):
        """The sum of a whole buffer over steps and rows, made once."""
        if buffer not in self.sums:
            a = self.arrays[buffer]
            self.sums[buffer] = self.xp.sum_of_rows(a)
        return self.sums[buffer]
