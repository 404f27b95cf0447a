"""Labels of series from the series that looks most alike when both may be stretched in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LARGEST = 2 * 10**10  # products of lengths, over all pairs: some minutes of work


def nearest_by_dtw(train: Sequence[np.ndarray], labels: Sequence[str], held_out: Sequence[np.ndarray]) -> list[str]:
    """The label of the nearest training series by dynamic time warping, the first of those that are as near.

    Args:
        train: series [steps, channels] with labels.
        held_out: series [steps, channels] to label.
    """
    lengths = np.array([len(series) for series in train])
    padded = np.zeros((lengths.max(), len(train), train[0].shape[1]))
    for k, series in enumerate(train):
        padded[:len(series), k] = series
    return [labels[int(distances(series, padded, lengths).argmin())] for series in held_out]


def work(train: Sequence[np.ndarray], held_out: Sequence[np.ndarray]) -> int:
    """How many pairs of steps `nearest_by_dtw` compares, to be held against LARGEST."""
    return sum(len(series) for series in held_out) * max(map(len, train)) * len(train)


def distances(series: np.ndarray, others: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Dynamic time warping (Sakoe & Chiba, 1978) with squared Euclidean costs, without a window.

    Args:
        series: [steps, channels].
        others: [T, N, channels], of which row n has lengths[n] steps.

    Returns the sums of the costs along the cheapest paths, [N].

    >>> others = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 0.0]])[:, :, None]
    >>> distances(np.array([[0.0], [0.0], [1.0], [2.0]]), others, np.array([3, 2])).tolist()
    [0.0, 3.0]
    """
    steps, (longest, rows, _) = len(series), others.shape
    # An antidiagonal i + j = d depends on the two before it, so it is computed at once. Index i + 1, and a row of
    # infinity in front, for what lies outside.
    before, last = np.full((2, steps + 1, rows), np.inf)
    result = np.empty(rows)
    for d in range(steps + longest - 1):
        low, high = max(0, d - longest + 1), min(d, steps - 1) + 1
        costs = ((series[low:high, None] - others[d - np.arange(low, high)]) ** 2).sum(2)
        now = np.full_like(last, np.inf)
        cheapest = np.minimum(np.minimum(last[low:high], last[low + 1:high + 1]), before[low:high])
        now[low + 1:high + 1] = costs + (cheapest if d else 0.0)
        at_end = lengths + steps - 2 == d
        result[at_end] = now[steps, at_end]
        before, last = last, now
    return result
