"""Which rows a batch has in each step; hands on the words by which a kernel finds them, and index arrays.

A sequence is stored step by step, as [N, width]: N is the sum of the rows over all steps. Rows are sorted, those with
the most steps first, so that row b of step t lies at offset[t] + b. Where all rows are as long this is [T, B, width].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np


def share(rows: int, threads: int) -> list[tuple[int, int]]:
    """Cut rows into at most `threads` parts (first, count) that differ by one at the most."""
    threads = max(1, min(rows, threads))
    bounds = [rows * k // threads for k in range(threads + 1)]
    return [(a, b - a) for a, b in zip(bounds, bounds[1:])]


@dataclass(frozen=True)
class Padding:
    """Where stored places lie in a padded batch, [N], and rows in the caller's order: which one comes first, second,
    ..., [B], and where each has gone, [B]. Arrays, or what stands for them while a walk is recorded."""

    places: Any
    order: Any
    back: Any


class Batch:
    """The rows of every step. `sizes` [T] never grows from one step to the next; `rows` counts those of no step too.

    >>> batch = Batch(np.array([3, 2, 2]), rows=4)
    >>> batch.total, batch.lengths.tolist()
    (7, [3, 3, 1, 0])
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, rows: int):
        self.rows, self.steps = rows, len(sizes)
        # One array, as the kernel reads it: any number, where each step begins and the last one ends, the rows of each
        # step, 0.
        self._words = np.zeros(2 * self.steps + 3, np.int64)
        self.offsets, self.sizes = self._words[1:self.steps + 2], self._words[self.steps + 2:-1]
        self.sizes[:] = sizes
        np.cumsum(self.sizes, out=self.offsets[1:])
        self.total = int(self.offsets[-1])
        self._address = self._words.ctypes.data + 8  # of the offsets
        self.live = int(self.sizes[0]) if self.steps else 0  # rows that have a step at all
        self.is_dense = self.total == self.steps * rows
        self.padding: Padding | None = None  # of the batch that this one is taken from
        self._previous: dict[bool, np.ndarray] = {}
        self._parts: dict[int, list[tuple[int, int]]] = {}

    @staticmethod
    @lru_cache(maxsize=16)
    def dense(steps: int, rows: int) -> Batch:
        """The batch in which every row has all steps; made once for shapes that come again."""
        return Batch(np.full(steps, rows), rows)

    @staticmethod
    @lru_cache(maxsize=4)
    def ragged(sizes: tuple[int, ...], rows: int) -> Batch:
        """The batch of these sizes; made once for all layers and directions of a call."""
        return Batch(sizes, rows)

    @cached_property
    def lengths(self) -> np.ndarray:
        """[B]: the steps of every row."""
        return np.searchsorted(-self.sizes, -np.arange(self.rows), side="left")

    def slice(self, begin: int, end: int) -> Batch:
        """The steps from `begin` to `end`, of the same rows."""
        if self.is_dense:
            return Batch.dense(end - begin, self.rows)
        return Batch(self.sizes[begin:end], self.rows)

    # ---- what the kernel reads

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the offsets lie, and where the sizes."""
        return self._address, self._address + 8 * (self.steps + 1)

    def turns(self, from_end: bool, begin: int, end: int) -> tuple[int, int, int, int, int]:
        """The turns for the steps from `begin` to `end`, the last one first with `from_end`.

        Words: how many turns, the step of the first one, 1 or -1, where the offsets lie, and where the sizes.
        """
        first, direction = (end - 1, -1) if from_end else (begin, 1)
        return end - begin, first, direction, *self.addresses

    def place(self, step: int) -> int:
        """Where a step begins in a sequence."""
        return step * self.rows if self.is_dense else int(self.offsets[step])

    def parts(self, count: int) -> list[tuple[int, int]]:
        """Rows (first, how many) for each of `count` threads, with about as many steps in all."""
        if self.is_dense or count == 1:
            return share(self.rows, count)
        if count not in self._parts:
            self._parts[count] = self._cut(count)
        return self._parts[count]

    def _cut(self, count: int) -> list[tuple[int, int]]:
        done = np.concatenate([[0], np.cumsum(self.lengths)])  # by so many rows
        bounds = [0, *(int(np.abs(done - self.total * k / count).argmin()) for k in range(1, count)), self.rows]
        return [(a, b - a) for a, b in zip(bounds, bounds[1:]) if b > a]

    def chunks(self, most_rows: int) -> list[tuple[int, int]]:
        """The steps in runs (begin, end) of at most so many rows, or of one step."""
        if 0 < self.total <= most_rows:
            return [(0, self.steps)]
        if self.is_dense:
            length = max(1, most_rows // self.rows)
            return [(t, min(t + length, self.steps)) for t in range(0, self.steps, length)]
        runs, begin = [], 0
        while begin < self.steps:
            end = int(np.searchsorted(self.offsets, self.offsets[begin] + most_rows, side="right")) - 1
            runs.append((begin, max(end, begin + 1)))
            begin = runs[-1][1]
        return runs

    # ---- where things lie

    def end(self, reverse: bool) -> slice | np.ndarray:
        """Where the last turn of every live row lies in a sequence, for a loop in this direction."""
        if reverse:
            return slice(0, self.live)
        if self.is_dense:
            return slice(self.total - self.rows, self.total)
        return self._last_step

    def start(self, reverse: bool) -> slice | np.ndarray:
        """Where the first turn of every live row lies in a sequence."""
        return self.end(not reverse)

    @cached_property
    def _last_step(self) -> np.ndarray:
        return self.offsets[self.lengths[:self.live] - 1] + np.arange(self.live)

    @cached_property
    def row_of(self) -> np.ndarray:
        """[N]: the row of every place in a sequence."""
        return np.arange(self.total) - np.repeat(self.offsets[:-1], self.sizes)

    def previous(self, reverse: bool) -> np.ndarray:
        """[N]: where the turn before lies in a sequence; 0 for the first turn of a row."""
        if reverse not in self._previous:
            self._previous[reverse] = self._find_previous(reverse)
        return self._previous[reverse]

    def _find_previous(self, reverse: bool) -> np.ndarray:
        # Forward a row has moved by the rows of the step before, in reverse by those of its own.
        moved = self.sizes if reverse else -np.concatenate([[0], self.sizes[:-1]])
        place = np.arange(self.total) + np.repeat(moved, self.sizes)
        place[self.start(reverse)] = 0
        return place
