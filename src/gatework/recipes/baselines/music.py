"""How likely each note is in each step of a piece, without a network: as log odds [T, 88] of piano rolls [T, 88]."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def note_frequencies(train: Sequence[Tensor], held_out: Sequence[Tensor]) -> list[Tensor]:
    """Each note as likely as it was in the training pieces, whatever has sounded before."""
    odds = torch.logit(share(torch.cat(list(train))))
    return [odds.expand(roll.shape) for roll in held_out]


def last_step(train: Sequence[Tensor], held_out: Sequence[Tensor]) -> list[Tensor]:
    """The last step again: each note as likely as it was in the training pieces to go on, or to begin.

    In a first step nothing is known to have sounded.
    """
    before, now = torch.cat([roll[:-1] for roll in train]), torch.cat([roll[1:] for roll in train])
    first = torch.logit(share(torch.cat(list(train))))
    goes_on, begins = (torch.logit(share(now, where)) for where in (before > 0, before == 0))
    return [torch.cat([first[None], torch.where(roll[:-1] > 0, goes_on, begins)]) for roll in held_out]


def share(notes: Tensor, where: Tensor | bool = True) -> Tensor:
    """How often each of the notes [N, 88] sounds where it counts, by Laplace's rule of succession: never 0 or 1."""
    notes, where = notes.double(), torch.as_tensor(where).expand(notes.shape).double()
    return ((notes * where).sum(0) + 1) / (where.sum(0) + 2)
