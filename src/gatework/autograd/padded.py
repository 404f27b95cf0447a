"""Receives a kernel and a padded batch whose rows have lengths of their own, hands on calls that leave the padding out.

Packed, run and padded by functions of their own, such a batch passes through autograd's graph four times, which copies
what lies between them once more. Here that is part of the walk through the kernel, and of the program that repeats it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..backends.batch import Batch, Padding
from ..backends.kernel import Kernel
from .calls import Call
from .ragged import Ragged


class Padded(Call):
    """A call whose inputs and outputs are padded, with rows in the caller's order."""

    keeps_outputs = False  # but the stored ones, so that the caller may write into those that are padded

    def __init__(self, kernel: Kernel, ragged: Ragged, shape: tuple[int, int], batch_first: bool):
        batch = Batch(ragged.sizes.numpy(), shape[0 if batch_first else 1])
        batch.padding = Padding(*(t.numpy() for t in (ragged.places, ragged.order, ragged.back)))
        super().__init__(kernel, batch, shape, False)
        self.batch_first, self._ragged = batch_first, ragged

    def _front(self, batch: Batch) -> tuple[int, ...]:
        return (batch.rows, batch.steps) if self.batch_first else (batch.steps, batch.rows)

    def _walk_forward(self, xp, batch: Batch, given: list, train: bool) -> tuple[list, list, list]:
        handed, last, kept = super()._walk_forward(xp, batch, self._packed(xp, batch, given), train)
        return ([self._pad(xp, batch, y) for y in handed], [xp.take(s, batch.padding.back) for s in last],
                [*handed, *kept] if train else [])

    def backward(self, upstream: Sequence[Tensor | None], last: Sequence[Tensor | None], tensors: Sequence[Tensor],
                 handed: Sequence[Tensor], kept: Sequence[Tensor], needs: tuple[bool, ...]) -> list[Tensor | None]:
        return super().backward(upstream, last, tensors, kept[:self.handed], kept[self.handed:], needs)

    def _walk_backward(self, xp, batch: Batch, upstream: list, last: list, tensors: list, handed: list, kept: list,
                       needs: tuple[bool, ...]) -> list:
        padding = batch.padding
        made = super()._walk_backward(
            xp, batch, [None if d is None else xp.take(d, padding.places) for d in upstream],
            [None if d is None else xp.take(d, padding.order) for d in last], self._packed(xp, batch, tensors), handed,
            kept, needs)
        inputs, states, parameters = self._apart(made)
        return [*(None if d is None else self._pad(xp, batch, d) for d in inputs),
                *(None if d is None else xp.take(d, padding.back) for d in states), *parameters]

    def differentiable(self, tensors: Sequence[Tensor], upstream: Sequence[Tensor | None],
                       last: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor | None]:
        ragged, (inputs, states, parameters) = self._ragged, self._apart(tensors)
        packed = [*map(ragged.pack, inputs), *(ragged.sort(s, 0) for s in states), *parameters]
        made = super().differentiable(packed, [None if d is None else ragged.pack(d) for d in upstream],
                                      [None if d is None else ragged.sort(d, 0) for d in last], needs)
        inputs, states, parameters = self._apart(made)
        return [*(None if d is None else ragged.pad(d, self.shape) for d in inputs),
                *(None if d is None else ragged.unsort(d, 0) for d in states), *parameters]

    def _packed(self, xp, batch: Batch, given: list) -> list:
        """Inputs, first states and parameters as the kernel takes them."""
        inputs, states, parameters = self._apart(given)
        return [*(xp.take(x, batch.padding.places) for x in inputs), *(xp.take(s, batch.padding.order) for s in states),
                *parameters]

    def _pad(self, xp, batch: Batch, stored):
        return xp.spread(stored, batch.padding.places, batch.steps * batch.rows)

    def _apart(self, given: Sequence) -> tuple[Sequence, Sequence, Sequence]:
        """Inputs, states and parameters."""
        a, b = len(self.kernel.cell.inputs), len(self.kernel.cell.inputs) + len(self.kernel.states)
        return given[:a], given[a:b], given[b:]
