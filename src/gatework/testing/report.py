"""Receives what the checks of a cell have found, hands it on as text that says what to look at."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

WIDTH = 100
VERDICTS = ("passed", "unclear", "failed")  # the later one counts where cases of one check differ
_LOOK = {
    "finite": "Where the equations allow only some numbers, draw others: positive= names what must be above 0, a "
              "smaller scale= keeps exp from overflowing.",
    "gradients": "torch's derivative of the reference backend does not fit the values. Look for a jump: a condition "
                 "that decides between values which differ.",
}
_LOOK |= dict.fromkeys(("float64", "float32", "recorded"),
                       "The fused kernels differ from the equations, which no equations may cause: report it, with the "
                       "cell. The stages derivative and loop of `gatework show` are where it comes from.")
_LOOK |= dict.fromkeys(("lengths", "resets", "step", "checkpoint_every", "text"),
                       "No equations may cause this: report it, with the cell.")


@dataclass(frozen=True)
class Check:
    """One thing that was compared.

    name: what was checked. verdict: "passed", "failed", or "unclear" where this cell and these numbers cannot tell.
    measured: the largest difference, relative to the largest value of its kind, or to 1 where all are smaller; bound:
    what it may be. quantity: what differs most, of the bound. compared: the two sides. reason: why the bound is this
    one, or what has been found instead of a difference.
    """

    name: str
    verdict: str
    compared: str
    measured: float = float("nan")
    bound: float = float("nan")
    quantity: str = ""
    reason: str = ""

    def __str__(self):
        figures = f"{self.measured:8.1e} of {self.bound:7.1e}" if self.quantity else " " * 19
        line = f"{self.verdict:8}{self.name:17}{figures}  {self.compared}"
        more = []
        if self.verdict != "passed" and self.reason:
            more.append(f"{self.quantity}: {self.reason}" if self.quantity else self.reason)
        if self.verdict == "failed":
            more.append(_LOOK[self.name])
        indent = dict(initial_indent=" " * 8, subsequent_indent=" " * 8)
        return "\n".join([line, *(textwrap.fill(text, WIDTH, **indent) for text in more)])


@dataclass(frozen=True)
class Report:
    """All checks of a cell. `str(report)` is a table; below each line that did not pass stands what to look at."""

    cell: str
    drawn: str  # sizes and settings, to find the numbers again
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed. One that is unclear says nothing against the cell."""
        return all(c.verdict != "failed" for c in self.checks)

    def __getitem__(self, name: str) -> Check:
        """The check of this name."""
        return {c.name: c for c in self.checks}[name]

    def raise_if_failed(self) -> None:
        """Raise AssertionError, with the whole report, if a check failed."""
        if not self.passed:
            raise AssertionError(str(self))

    def __str__(self):
        counts = {v: [c.verdict for c in self.checks].count(v) for v in VERDICTS}
        end = ", ".join(f"{n} {v}" for v, n in counts.items() if n)
        head = f"{'':8}{'':17}{'differs':>8} {'bound':>10}"
        return "\n".join([f"{self.cell}: {self.drawn}", head, *map(str, self.checks), f"{self.cell}: {end}"])
