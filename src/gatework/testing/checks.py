"""Receives a cell, runs what a layer offers in two ways each, hands on a report of how far apart the ways come out."""

from __future__ import annotations

import linecache
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..backends import reference
from ..compiler import Cell, CellError, Expr, trace
from ..compiler.expr import order
from ..compiler.text import fingerprint, from_json, to_json
from .by_hand import cut, step_by_step
from .drawn import Drawn, call, outcome
from .report import VERDICTS, Check, Report
from .slopes import slopes

STEPS, ROWS = 5, 3
LENGTHS = (5, 0, 3, 1)  # in no order, a row without steps among them
RESETS = ((1, 1, 1, 0), (0, 0, 0, 0), (1, 0, 1, 0), (1, 1, 0, 0), (0, 0, 0, 0))  # [T, B]: at once, and in a row
# Sums are added up in another order and functions have roundings of their own: some more than the plain loop loses.
MARGIN = 32
NEIGHBOURS = 4  # of the drawn values, on which the plain loop runs too
MOST_ROUNDINGS = 1e5  # of float64 that are believed, however ill-conditioned the cell
TELLS = 1e-2  # a wider bound says nothing
NAMES = ("finite", "gradients", "float64", "float32", "recorded", "lengths", "resets", "step", "checkpoint_every",
         "text")


def check_cell(cell: Callable | Cell, sizes: Mapping[str, int] | None = None, *, scale: float = 1.0, seed: int = 0,
               positive: Collection[str] = ()) -> Report:
    """Check that a cell of your own has everything that a layer offers; takes seconds, and changes no random state.

    Args:
        cell: a function of equations, or a traced `Cell`.
        sizes: lengths of the cell's sizes, by name; else I is 7, H 33, D a divisor of H, and any other 5.
        scale: what all drawn inputs and parameters are multiplied by.
        seed: another seed, other numbers.
        positive: names of inputs and parameters that are drawn above 0, where the equations need that.

    The checks: `finite`, all values and gradients are numbers, else the equation is named; `gradients`, the reference
    backend against differences in float64; `float64` and `float32`, the fused kernels against the reference backend,
    in both directions, also for one step and for one row; `recorded`, the same for all recorded values; `lengths`,
    rows of different lengths against each row alone; `resets`, against sequences cut by hand, from zero and from
    learned first states; `step`, step by step against the whole sequence; `checkpoint_every`, against keeping
    everything; `text`, the cell read back from its JSON. Results, last states, and gradients of all inputs, first
    states and parameters are compared.

    The bounds come from the cell: what the plain loop loses in float32 against float64, with the drawn values or close
    to them, is what it does to roundings. A check is "unclear" where that leaves no useful bound, or where a value lies
    on a kink (relu at 0), so that there is no derivative to compare with.

    Raises CellError for equations that cannot be used, DrawError for names and sizes that the cell does not have.

    >>> from gatework.cells import elman
    >>> from gatework.testing import check_cell
    >>> report = check_cell(elman, sizes={"H": 5})
    >>> report.passed, report["resets"].verdict
    (True, 'passed')
    """
    traced = trace(cell)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():  # layers draw parameters before they get ours
        settings = f"seed {seed}, scale {scale:g}" + (f", positive {', '.join(positive)}" if positive else "")
        return _Checks(Drawn(traced, sizes or {}, scale, seed, positive)).report(settings)


@dataclass(frozen=True)
class _Case:
    """One comparison of a check."""

    quantity: str
    measured: float
    bound: float
    verdict: str = ""
    reason: str = ""

    @property
    def judged(self) -> str:
        return self.verdict or ("failed" if not self.measured <= self.bound else
                                "unclear" if self.bound > TELLS else "passed")

    @property
    def rank(self) -> tuple[int, float]:
        return VERDICTS.index(self.judged), self.measured / self.bound


class _Checks:
    """All checks of one cell, with the numbers drawn for it."""

    def __init__(self, drawn: Drawn):
        self.drawn, self.cell, self.roundings = drawn, drawn.cell, 1.0

    def report(self, settings: str) -> Report:
        trouble = self._not_finite()
        if trouble:
            checks = [Check("finite", "failed", "all values and gradients are numbers", reason=trouble)]
            checks += [Check(name, "unclear", "not compared") for name in NAMES[1:]]
        else:
            self.roundings = self._lost_in_float32()
            checks = [Check("finite", "passed", "all values and gradients are numbers")]
            checks += [getattr(self, f"_{name}")() for name in NAMES[1:]]
        sizes = ", ".join(f"{s} {n}" for s, n in self.drawn.sizes.items())
        return Report(self.cell.name, f"{sizes}; T {STEPS}, B {ROWS}; {settings}", tuple(checks))

    # ---- what is compared

    def _gradients(self) -> Check:
        layer = self.drawn.layer("reference", bidirectional=False, initial_state=False)
        cases = []
        for slope in slopes(layer, self._off_kinks(self._one_direction())):
            reason = (f"there is a kink or a jump, with slopes {slope.sides[0]:.4g} and {slope.sides[1]:.4g} on its "
                      "sides, so there is no derivative to compare with. Another seed= may draw away from it")
            cases.append(_Case(f"gradient of {slope.name}", slope.error, slope.bound,
                               *(("unclear", reason) if slope.kink else ())))
        return self._worst("gradients", "reference backend, central differences in float64", cases, "the differences' "
                           "own error, by rounding and by a step twice as wide")

    def _float64(self) -> Check:
        return self._backends("float64", torch.float64)

    def _float32(self) -> Check:
        return self._backends("float32", torch.float32)

    def _backends(self, name: str, dtype: torch.dtype) -> Check:
        cases = []
        fused, loop = self.drawn.layer(dtype=dtype), self.drawn.layer("reference")
        for steps, rows in ((STEPS, ROWS), (1, ROWS), (STEPS, 1)):
            values = self.drawn.values(steps, rows)
            cases.append(self._case(outcome(call, fused, values), outcome(call, loop, values), dtype,
                                    f" at T {steps}, B {rows}"))
        return self._worst(name, f"kernels in {name}, reference backend in float64", cases, self._why(dtype))

    def _recorded(self) -> Check:
        values = self.drawn.values(STEPS, ROWS)
        case = self._case(outcome(_recording, self.drawn.layer(), values),
                          outcome(_recording, self.drawn.layer("reference"), values))
        return self._worst("recorded", "record=True: kernels, reference backend", [case], self._why())

    def _lengths(self) -> Check:
        values, layer = self.drawn.values(STEPS, len(LENGTHS)), self.drawn.layer()
        none = torch.zeros(STEPS, len(LENGTHS), dtype=torch.bool)
        case = self._case(outcome(lambda layer, v: call(layer, v, lengths=LENGTHS, record=True), layer, values),
                          outcome(lambda layer, v: cut(layer, v, LENGTHS, none, True), layer, values))
        return self._worst("lengths", f"lengths={list(LENGTHS)}, each row alone", [case], self._why())

    def _resets(self) -> Check:
        values, resets, cases = self.drawn.values(STEPS, len(LENGTHS)), torch.tensor(RESETS) == 1, []
        for learned, says in ((True, " with learned first states"), (False, "")):
            layer = self.drawn.layer(initial_state=learned)
            for lengths, more in (((STEPS,) * len(LENGTHS), ""), (LENGTHS, f" and lengths={list(LENGTHS)}")):
                how = dict(resets=resets, record=True) | (dict(lengths=lengths) if more else {})
                cases.append(self._case(
                    outcome(lambda layer, v, how=how: call(layer, v, **how), layer, values),
                    outcome(lambda layer, v, n=lengths: cut(layer, v, n, resets, True), layer, values),
                    where=says + more))
        return self._worst("resets", "resets=, the sequence cut by hand", cases, self._why())

    def _step(self) -> Check:
        values, layer = self._one_direction(), self.drawn.layer(bidirectional=False)
        case = self._case(outcome(step_by_step, layer, values), outcome(call, layer, values))
        return self._worst("step", "step by step, the whole sequence", [case], self._why())

    def _checkpoint_every(self) -> Check:
        values, cases = self.drawn.values(STEPS, len(LENGTHS)), []
        for how in ({}, {"lengths": LENGTHS}):
            kept, again = (outcome(lambda layer, v, how=how: call(layer, v, record=True, **how), layer, values)
                           for layer in (self.drawn.layer(), self.drawn.layer(checkpoint_every=2)))
            cases.append(self._case(again, kept, where=f" with {next(iter(how))}=" if how else ""))
        return self._worst("checkpoint_every", "checkpoint_every=2, all kept", cases, self._why())

    def _text(self) -> Check:
        compared = "the cell, the same read back from its JSON"
        try:
            read = from_json(to_json(self.cell))
        except CellError as error:
            return Check("text", "failed", compared, reason=str(error))
        values, layer = self.drawn.values(STEPS, ROWS), self.drawn.layer("reference")
        parts = ([values[n] for n in self.cell.inputs], [values[f"first {s}"][0] for s in self.cell.states],
                 [reference.dense(f, w) for f, w in zip(self.cell.families.values(), layer.all_weights[0])])
        names = tuple(dict.fromkeys([*self.cell.record, *self.cell.next]))
        own, found = ({n: y.detach() for n, y in zip(names, reference.run(c, *parts, outputs=names)[0])}
                      for c in (self.cell, read))
        if fingerprint(read) != fingerprint(self.cell):
            return Check("text", "failed", compared, reason="the fingerprint is another one")
        name, measured = _largest(found, own)
        return self._worst("text", compared, [_Case(name, measured, torch.finfo(torch.float64).eps)],
                           "the same operations in the same order round alike")

    # ---- how it is judged

    def _one_direction(self) -> dict[str, Tensor]:
        return {n: v[:1] if n.startswith("first ") else v for n, v in self.drawn.values(STEPS, ROWS).items()}

    def _off_kinks(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """With first states a little farther from 0: relu leaves them there, and the next step may have a kink at 0."""
        def moved(v: Tensor) -> Tensor:
            far = 1e-3 * (1.0 + torch.rand(v.shape, generator=self.drawn.random))
            return v + torch.where(v < 0, -far, far)

        return {n: moved(v) if n.startswith("first ") else v for n, v in values.items()}

    def _case(self, found, expected, dtype: torch.dtype = torch.float64, where: str = "") -> _Case:
        name, measured = _largest(found, expected)
        return _Case(name + where, measured, self._bound(dtype))

    def _bound(self, dtype: torch.dtype) -> float:
        most = MOST_ROUNDINGS if dtype == torch.float64 else float("inf")
        return MARGIN * min(self.roundings, most) * torch.finfo(dtype).eps

    def _why(self, dtype: torch.dtype = torch.float64) -> str:
        if self._bound(dtype) == float("inf"):
            return "the plain loop gives what is no number in float32, so the bound is infinite"
        return (f"the bound is {MARGIN} times what the plain loop loses by rounding, {self.roundings:.3g} units in "
                f"the last place of {str(dtype).removeprefix('torch.')}")

    def _worst(self, name: str, compared: str, cases: Iterable[_Case], reason: str) -> Check:
        worst = max(cases, key=lambda case: case.rank)
        if worst.judged == "unclear" and not worst.reason:
            reason += ", too wide to tell: with these numbers the cell is ill-conditioned. Try a smaller scale="
        return Check(name, worst.judged, compared, worst.measured, worst.bound, worst.quantity, worst.reason or reason)

    def _lost_in_float32(self) -> float:
        """How many units in the last place the plain loop loses in float32, at the most; infinite where it overflows.

        Where a cell makes roundings grow, a single loop loses fifty times more or less by chance, so it runs on
        neighbours of the values too.
        """
        values, eps = self.drawn.values(STEPS, ROWS), torch.finfo(torch.float32).eps
        single, double = (self.drawn.layer("reference", d) for d in (torch.float32, torch.float64))
        random, lost = torch.Generator().manual_seed(0), 1.0
        for n in range(NEIGHBOURS + 1):
            beside = {k: (v * (1.0 + n * eps * torch.randn(v.shape, dtype=v.dtype, generator=random))).float().double()
                      for k, v in values.items()}  # numbers that both dtypes have
            away = _largest(outcome(_recording, single, beside), outcome(_recording, double, beside))[1]
            lost = max(lost, away / eps)
        return lost

    def _not_finite(self) -> str:
        """Which equation first gives what is no number, from zero or from a state that the cell reaches; else ""."""
        layer = self.drawn.layer("reference", initial_state=False)
        for values in (self.drawn.inputs(2 * STEPS, ROWS), self.drawn.values(STEPS, ROWS)):
            values = dict(values)
            for s, e in self.cell.states.items():
                values.setdefault(f"first {s}", torch.zeros(2, ROWS, self.drawn.sizes[e.dims[0]], dtype=torch.float64))
            made = outcome(_recording, layer, values)
            wrong = [n for n, y in made.items() if not y.isfinite().all()]
            if wrong and not wrong[0].startswith("gradient of "):
                return _first_without_number(self.cell, values, layer) or f"{wrong[0]} is not finite"
            if wrong:
                return (f"{wrong[0]} is not finite though all values are: a derivative does not exist (sqrt at 0), or "
                        "the side that a where() does not take overflows")
        return ""


def _recording(layer, values) -> dict[str, Tensor]:
    return call(layer, values, record=True)


def _largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[str, float]:
    """What differs most, relative to the largest value of it or to 1; infinitely where one is no number."""
    differences = {}
    for name, value in expected.items():
        difference = ((found[name] - value).abs().max() / value.abs().max().clamp(min=1.0)).item()
        differences[name] = difference if difference == difference else float("inf")
    name = max(differences, key=differences.__getitem__)
    return name, differences[name]


def _first_without_number(cell: Cell, values: Mapping[str, Tensor], layer) -> str:
    """The equation that turns numbers into none, in either direction: file, line, and what it was given."""
    own: dict[Expr, str] = {}  # all vectors and scalars but those that are made of numbers alone
    for e in order([*cell.next.values(), *cell.record.values()]):
        made_here = e.op not in ("const", "size") if e.is_leaf else e.op == "matvec" or any(a in own for a in e.args)
        if made_here and len(e.dims) < 2:
            own[e] = f"value{len(own)}"
    every = replace(cell, record={n: e for e, n in own.items()})
    for direction, weights in enumerate(layer.all_weights):
        weights = [reference.dense(f, w) for f, w in zip(cell.families.values(), weights)]
        with torch.no_grad():
            made, _ = reference.run(every, [values[n] for n in cell.inputs],
                                    [values[f"first {s}"][direction] for s in cell.states], weights, direction == 1,
                                    list(own.values()))
        sequences = dict(zip(own, made))
        for t in range(len(made[0]))[::(1, -1)[direction]]:
            for e, sequence in sequences.items():
                if not sequence[t].isfinite().all():
                    return _told(e, t, [sequences[a][t] for a in e.args if a in sequences])
    return ""


def _told(e: Expr, t: int, arguments: list[Tensor]) -> str:
    path, _, line = e.source.rpartition(":")
    text = linecache.getline(path, int(line)).strip() if line.isdigit() else ""
    given = " and ".join(f"{a.min().item():.4g} to {a.max().item():.4g}" for a in arguments)
    return (f"in step {t} {e.op} gives what is no number, at {os.path.basename(e.source)}"
            f"{': ' + text if text else ''} (given: {given})")
