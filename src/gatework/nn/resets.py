"""Where sequences are cut: what the loops read of resets, and the states that rows then begin with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def after_steps(resets: Tensor, reverse: bool, dtype: torch.dtype) -> Tensor:
    """[T, B]: 1 in a step after which the row begins anew, else 0.

    A reset cuts the sequence in front of step t: forward that is after step t - 1, in reverse after step t. What comes
    after the last step is no step, so the state is handed out as it is.
    """
    after = (resets if reverse else resets.roll(-1, 0)).to(dtype)
    after[0 if reverse else -1] = 0.0
    return after


def begin_anew(at_once: Tensor, anew: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """The states [B, size] that rows begin with: anew where step 0 is a reset, else the given ones."""
    return [torch.where(at_once[:, None], *pair) for pair in zip(anew, given)]
