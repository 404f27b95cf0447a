"""Receives the lengths of the rows of a batch, hands on its sequences without their padding, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


@dataclass
class Ragged:
    """How a batch of rows of different lengths is stored: step by step, in each step the rows that have it.

    sizes: [T], the rows of every step, on the CPU. order: [B], which row comes first, second, ...; back: [B], where
    each row has gone. Both are None where rows stay where they are. places: [N], where every stored place lies in the
    padded batch, seen as [T * B, ...] (or [B * T, ...] where B comes first); None where nobody asks for padding.
    """

    sizes: Tensor
    order: Tensor | None
    back: Tensor | None
    places: Tensor | None = None

    @classmethod
    def of_lengths(cls, lengths: Tensor, steps: int, batch_first: bool, device: torch.device) -> Ragged:
        """From [B] lengths in any order, on the CPU."""
        if torch.compiler.is_compiling():
            # No shape may depend on the lengths: all places come, those of padding behind those in use.
            sizes, *where = torch.ops.gatework.ragged(lengths, steps, batch_first)
        else:
            sizes, *where = _layout(lengths, steps, batch_first, padding=False)
        return cls(sizes, *(w.to(device) for w in where))

    @classmethod
    def of_packed(cls, packed: PackedSequence) -> Ragged:
        return cls(packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, size], or [B, T, size] where B comes first, to [N, size]."""
        return padded.reshape(-1, padded.shape[2]).index_select(0, self.places)

    def pad(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """[N, size] to [*shape, size], with zeros where there is no step."""
        size = stored.shape[1]
        return stored.new_zeros(shape[0] * shape[1], size).index_copy_(0, self.places, stored).view(*shape, size)

    def sort(self, rows: Tensor, dim: int) -> Tensor:
        return rows if self.order is None else rows.index_select(dim, self.order)

    def unsort(self, rows: Tensor, dim: int) -> Tensor:
        return rows if self.back is None else rows.index_select(dim, self.back)


def _layout(lengths: Tensor, steps: int, batch_first: bool, padding: bool = True) -> list[Tensor]:
    """sizes [T], order [B], back [B], and places [N], or [T * B] with those of padding behind those in use."""
    of_row = lengths.numpy()
    rows = len(of_row)
    if of_row.min() < 0 or of_row.max() > steps:
        raise ValueError(f"lengths must be {rows} whole numbers, one for each row of the batch, from 0 to the {steps} "
                         f"steps; they go from {of_row.min()} to {of_row.max()}")
    order = np.argsort(-of_row, kind="stable")
    longest = of_row[order]
    back = np.empty_like(order)
    back[order] = np.arange(rows)
    step = np.arange(steps)
    sizes = np.searchsorted(-longest, -step, side="left")  # the rows that are longer
    valid = step[:, None] < longest
    places = order * steps + step[:, None] if batch_first else order + step[:, None] * rows
    used = places[valid]
    if padding:
        used = np.concatenate([used, places[~valid]])
    return [torch.from_numpy(a) for a in (sizes, order, back, used)]


_library = torch.library.Library("gatework", "FRAGMENT")
_library.define("ragged(Tensor lengths, SymInt steps, bool batch_first) -> Tensor[]")
torch.library.impl("gatework::ragged", "CPU", _layout, lib=_library)


@torch.library.register_fake("gatework::ragged", lib=_library)
def _layout_shapes(lengths: Tensor, steps: int, batch_first: bool) -> list[Tensor]:
    rows = lengths.shape[0]
    return [lengths.new_empty(n) for n in (steps, rows, rows, steps * rows)]
