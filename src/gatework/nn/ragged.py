"""Receives the lengths of the rows of a batch, hands on its sequences without their padding, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        rows = len(lengths)
        order = torch.argsort(lengths, descending=True, stable=True)
        step = torch.arange(steps)
        valid = step[:, None] < lengths[order]
        places = order * steps + step[:, None] if batch_first else order + step[:, None] * rows
        if torch.compiler.is_compiling():
            # No shape may depend on the lengths: padding comes too, behind all that is in use.
            places = places.reshape(-1)[torch.argsort(~valid.reshape(-1), stable=True)]
        else:
            places = places[valid]
        order, places = order.to(device), places.to(device)
        return cls(valid.sum(1), order, torch.argsort(order), places)

    @classmethod
    def of_packed(cls, packed: PackedSequence) -> Ragged:
        return cls(packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    def pack(self, padded: Tensor) -> Tensor:
        """[T, B, size], or [B, T, size] where B comes first, to [N, size]."""
        return padded.reshape(-1, padded.shape[2]).index_select(0, self.places)

    def pad(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """[N, size] to [*shape, size], with zeros where there is no step."""
        size = stored.shape[1]
        whole = stored.new_zeros(shape[0] * shape[1], size).index_copy(0, self.places, stored)
        return whole.view(*shape, size)

    def sort(self, rows: Tensor, dim: int) -> Tensor:
        return rows if self.order is None else rows.index_select(dim, self.order)

    def unsort(self, rows: Tensor, dim: int) -> Tensor:
        return rows if self.back is None else rows.index_select(dim, self.back)
