"""The state of several streams: named arrays, one after the other in one piece of memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Layout:
    """Which states a model has: name -> (first value, after the last one) of one stream, and what a stream begins with.

    The memory of S streams holds the states in this order, [S, size] each.
    """

    columns: dict[str, tuple[int, int]]
    initial: np.ndarray  # the states of one stream before its first step


class State(Mapping):
    """The state of S streams: `state["h_l0"]` is [S, size], an array that may be read, written, saved and compared.

    A step never changes the state that it is given. Any other mapping of the same names to arrays is a state as well.
    """

    __slots__ = ("layout", "streams", "memory")

    def __init__(self, layout: Layout, streams: int, memory: np.ndarray):
        self.layout, self.streams, self.memory = layout, streams, memory

    def __getitem__(self, name: str) -> np.ndarray:
        begin, end = self.layout.columns[name]
        return self.memory[begin * self.streams:end * self.streams].reshape(self.streams, end - begin)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.columns)

    def __len__(self) -> int:
        return len(self.layout.columns)

    def __repr__(self) -> str:
        return f"State({', '.join(f'{name} {list(a.shape)}' for name, a in self.items())})"

    def copy(self) -> State:
        """A state of its own, with the same values."""
        return State(self.layout, self.streams, self.memory.copy())

    def reset(self, streams: Sequence[int] | np.ndarray) -> State:
        """A copy in which some streams begin anew; they are given by number, or by a boolean for each stream.

        Raises ValueError or IndexError for what names no stream.
        """
        chosen = np.asarray(streams)
        if chosen.dtype == bool and chosen.shape != (self.streams,):
            raise ValueError(f"the streams to reset are given by number, or by one boolean for each of the "
                             f"{self.streams} streams; given was an array of shape {chosen.shape}")
        if chosen.size == 0:
            return self.copy()
        new = self.copy()
        for name, (begin, end) in self.layout.columns.items():
            new[name][chosen] = self.layout.initial[begin:end]
        return new
