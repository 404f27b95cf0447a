"""Receives labels that were said and the true ones, draws how often each was taken for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix


def draw_confusion(axes: Any, said: Tensor, truth: Tensor, names: Sequence[str]) -> None:
    """A row for each true label, a column for each that was said, as numbers [n] into `names`.

    The colour is the share of the row, so that a rare label shows like a frequent one.

    >>> import torch; from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> draw_confusion(axes, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ["cat", "dog"])
    >>> [text.get_text() for text in axes.texts]
    ['1', '1', '1']
    """
    counts = multiclass_confusion_matrix(said, truth, len(names))
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    size = max(4, min(10, 110 / len(names)))  # points, so that many labels have room
    axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    upright = dict(rotation=90) if max(map(len, names)) > 3 else {}
    axes.set_xticks(range(len(names)), names, fontsize=size, **upright)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set(xlabel="said", ylabel="true", title="how often (colour: share of the row)")
    for i, j in counts.nonzero().tolist():
        axes.text(j, i, int(counts[i, j]), ha="center", va="center", fontsize=size,
                  color="white" if shares[i, j] > 0.5 else "black")
