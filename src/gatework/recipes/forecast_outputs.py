"""What a forecast is made of: quantiles, the mean and deviation of a Gaussian, or a mean alone.

Each kind turns the last numbers of a network, [..., size], into a loss per step and into the low, middle and high
value of the interval that holds a share `coverage` of what comes.
"""

from __future__ import annotations

from statistics import NormalDist

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional


class Quantiles:
    """Five quantiles, learned by the pinball loss (Koenker & Bassett, 1978); sorted where they would cross.

    >>> Quantiles(0.9).interval(torch.tensor([[0.0, 3.0, 2.0, 4.0, 5.0]]))
    tensor([[0., 3., 5.]])
    """

    def __init__(self, coverage: float):
        self.levels = ((1 - coverage) / 2, 0.25, 0.5, 0.75, (1 + coverage) / 2)
        self.size = len(self.levels)

    def loss(self, numbers: Tensor, truth: Tensor) -> Tensor:
        """The loss [...] of numbers [..., 5] where `truth` [...] came."""
        error, levels = truth[..., None] - numbers, numbers.new_tensor(self.levels)
        return torch.maximum(levels * error, (levels - 1) * error).sum(-1)

    def interval(self, numbers: Tensor) -> Tensor:
        """Low, middle and high value, [..., 3]."""
        return numbers.sort(-1).values[..., [0, 2, 4]]


class Gaussian:
    """A mean and the logarithm of a deviation, learned by the likelihood."""

    size = 2

    def __init__(self, coverage: float):
        self.reach = NormalDist().inv_cdf((1 + coverage) / 2)

    def loss(self, numbers: Tensor, truth: Tensor) -> Tensor:
        return -self._normal(numbers).log_prob(truth)

    def interval(self, numbers: Tensor) -> Tensor:
        normal = self._normal(numbers)
        return torch.stack([normal.mean + k * self.reach * normal.stddev for k in (-1, 0, 1)], -1)

    def draw(self, numbers: Tensor) -> Tensor:
        return self._normal(numbers).sample()

    def _normal(self, numbers: Tensor) -> Normal:
        # softplus, and a least deviation of a thousandth of the training values': a likelihood has no upper bound
        return Normal(numbers[..., 0], functional.softplus(numbers[..., 1]) + 1e-3, validate_args=False)


class Mean:
    """A mean, learned by the squared error; it has no interval."""

    size = 1

    def __init__(self, coverage: float):
        pass

    def loss(self, numbers: Tensor, truth: Tensor) -> Tensor:
        return (numbers[..., 0] - truth).square()

    def interval(self, numbers: Tensor) -> Tensor:
        return numbers

    def draw(self, numbers: Tensor) -> Tensor:
        return numbers[..., 0]


OUTPUTS = {"quantile": Quantiles, "gaussian": Gaussian, "mean": Mean}
