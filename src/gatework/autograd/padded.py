"""Receives a kernel and a padded batch whose rows have lengths of their own, hands on calls that leave the padding out.

Packed, run and padded by functions of their own, such a batch passes through autograd's graph four times, which copies
what lies between them once more. Here that is part of the walk through the kernel, and of the program that repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..backends.batch import Batch, Padding
from ..backends.kernel import Kernel
from .arrays import arrays_of
from .calls import Call, flat, parts_of
from .ragged import Ragged


class Padded(Call):
    """A call whose inputs and outputs are padded, with rows in the caller's order."""

    keeps_outputs = False  # but the stored ones, so that the caller may write into those that are padded

    def __init__(self, kernel: Kernel, ragged: Ragged, shape: tuple[int, int], batch_first: bool):
        batch = Batch(ragged.sizes.numpy(), shape[0 if batch_first else 1])
        batch.padding = Padding(*(t.numpy() for t in (ragged.places, ragged.order, ragged.back)))
        super().__init__(kernel, batch, shape, False)
        self.batch_first = batch_first

    def _front(self, batch: Batch) -> tuple[int, ...]:
        return (batch.rows, batch.steps) if self.batch_first else (batch.steps, batch.rows)

    def _walk_forward(self, xp, batch: Batch, given: list, train: bool) -> tuple[list, list, list]:
        padding = batch.padding
        handed, last, kept = super()._walk_forward(xp, batch, self._packed(xp, padding, given), train)
        return ([xp.spread(y, padding.places, batch.steps * batch.rows) for y in handed],
                [xp.take(s, padding.back) for s in last], [*handed, *kept] if train else [])

    def backward(self, upstream: Sequence[Tensor | None], last: Sequence[Tensor | None], tensors: Sequence[Tensor],
                 handed: Sequence[Tensor], kept: Sequence[Tensor], needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(upstream, last, tensors, kept[:self.handed], kept[self.handed:], needs)

    def _walk_backward(self, xp, batch: Batch, upstream: list, last: list, tensors: list, handed: list, kept: list,
                       needs: tuple[bool, ...]) -> list:
        padding = batch.padding
        outside = _taken(xp, upstream, padding.places), _taken(xp, last, padding.order)
        made = super()._walk_backward(xp, batch, *outside, self._packed(xp, padding, tensors), handed, kept, needs)
        return self._padded(xp, batch, made)

    def differentiable(self, tensors: Sequence[Tensor], upstream: Sequence[Tensor | None],
                       last: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        # What lies in memory that comes back has no derivative, what is made for inference has.
        xp, padding = arrays_of(self.kernel, tensors[0], train=False), self.batch.padding
        outside = (_taken(xp, [None if d is None else flat(d) for d in upstream], padding.places),
                   _taken(xp, last, padding.order))
        made = super().differentiable(self._packed(xp, padding, list(map(flat, tensors))), *outside, needs)
        return [None if d is None else d.view(t.shape) for t, d in zip(tensors, self._padded(xp, self.batch, made))]

    def _packed(self, xp, padding: Padding, given: list) -> list:
        """Inputs, first states and parameters as the kernel takes them."""
        inputs, states, parameters = parts_of(self.kernel.cell, given)
        return [*_taken(xp, inputs, padding.places), *_taken(xp, states, padding.order), *parameters]

    def _padded(self, xp, batch: Batch, made: list) -> list:
        """Gradients of these, as the caller lays them out."""
        inputs, states, parameters = parts_of(self.kernel.cell, made)
        return [*(None if d is None else xp.spread(d, batch.padding.places, batch.steps * batch.rows) for d in inputs),
                *_taken(xp, states, batch.padding.back), *parameters]


def _taken(xp, given: Sequence, rows) -> list:
    """The rows of each, where there is one."""
    return [None if a is None else xp.take(a, rows) for a in given]
