"""Which rows a batch has in each step; hands on the timetable that a kernel follows, and index arrays.

A sequence is stored step by step, as [N, width]: N is the sum of the rows over all steps. Rows are sorted, those with
the most steps first, so that row b of step t lies at offset[t] + b. Where all rows are as long this is [T, B, width].
"""

from __future__ import annotations

from functools import cached_property, lru_cache

import numpy as np

from . import threads

# An entry: first row, row after the last one, where the rows of this step, of the turn before and of the turn after
# begin, whether it is the first turn of these rows, and whether it is their last one.
ENTRY_WORDS = 7


class Batch:
    """The rows of every step. `sizes` [T] never grows from one step to the next; `rows` counts those of no step too.

    >>> batch = Batch(np.array([3, 2, 2]), rows=4)
    >>> batch.total, batch.lengths.tolist()
    (7, [3, 3, 1, 0])
    """

    def __init__(self, sizes: np.ndarray, rows: int):
        self.sizes, self.rows, self.steps = np.asarray(sizes, np.int64), rows, len(sizes)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self.total = int(self.offsets[-1])
        self.live = int(self.sizes[0]) if self.steps else 0  # rows that have a step at all
        self.is_dense = self.total == self.steps * rows
        self._tables: dict[tuple[bool, bool], tuple[np.ndarray, np.ndarray]] = {}

    @staticmethod
    @lru_cache(maxsize=64)
    def dense(steps: int, rows: int) -> Batch:
        """The batch in which every row has all steps; made once for shapes that come again."""
        return Batch(np.full(steps, rows), rows)

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

    def timetable(self, from_end: bool, by_end: bool, begin: int, end: int) -> tuple[int, int]:
        """(entries, address) of the turns for the steps from `begin` to `end`, first or last step first.

        `by_end`: rows whose last turn it is have an entry of their own. Rows whose first turn it is always have one.
        """
        if (from_end, by_end) not in self._tables:
            self._tables[from_end, by_end] = self._table(from_end, by_end)
        table, starts = self._tables[from_end, by_end]
        first, last = (self.steps - end, self.steps - begin) if from_end else (begin, end)
        first, last = int(starts[first]), int(starts[last])
        return last - first, table.__array_interface__["data"][0] + first * ENTRY_WORDS * 8

    def _table(self, from_end: bool, by_end: bool) -> tuple[np.ndarray, np.ndarray]:
        """Two entries a turn, those without rows left out; and where the entries of every turn start."""
        t = np.arange(self.steps)
        now, offset = self.sizes, self.offsets[:-1]
        later = np.append(now[1:], 0)  # rows that also have the step after this one
        cut = later if by_end or from_end else np.zeros_like(now)
        entries = np.zeros((self.steps, 2, ENTRY_WORDS), np.int64)
        entries[:, 0, 1] = entries[:, 1, 0] = cut
        entries[:, 1, 1] = now
        entries[:, :, 2] = offset[:, None]
        before, after = np.append(0, offset)[:-1], np.append(offset, 0)[1:]
        begins, ends = np.broadcast_to((t == 0)[:, None], (self.steps, 2)), np.array([[False, True]])
        if not by_end and not from_end:
            ends = (t == self.steps - 1)[:, None]
        if from_end:
            before, after, begins, ends = after, before, ends, begins
        entries[:, :, 3], entries[:, :, 4] = before[:, None], after[:, None]
        entries[:, :, 5], entries[:, :, 6] = begins, ends
        if from_end:
            entries = entries[::-1]
        filled = entries[:, :, 0] < entries[:, :, 1]
        starts = np.concatenate([[0], np.cumsum(filled.sum(1))])
        return np.ascontiguousarray(entries[filled]), starts

    def parts(self, count: int) -> list[tuple[int, int]]:
        """Rows (first, how many) for each of `count` threads, with about as many steps in all."""
        if self.is_dense or count == 1:
            return threads.share(self.rows, count)
        done = np.cumsum(self.lengths)
        bounds = [0, *(int(np.searchsorted(done, self.total * k / count)) for k in range(1, count)), self.rows]
        return [(a, b - a) for a, b in zip(bounds, bounds[1:]) if b > a]

    def chunks(self, most_rows: int) -> list[tuple[int, int]]:
        """The steps in runs (begin, end) of at most so many rows, or of one step."""
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

    @cached_property
    def _step_of(self) -> np.ndarray:
        return np.repeat(np.arange(self.steps), self.sizes)

    def previous(self, reverse: bool) -> np.ndarray:
        """[N]: where the turn before lies in a sequence; 0 for the first turn of a row."""
        step = self._step_of + (1 if reverse else -1)
        place = self.offsets[np.clip(step, 0, self.steps - 1)] + self.row_of
        place[self.start(reverse)] = 0
        return place
