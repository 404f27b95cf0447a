"""Receives a layer of the reference backend, hands on how far its gradients are from differences of its values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..nn import Recurrent
from .drawn import call, outcome, weights_for

STEP = 1e-6  # between the rounding of values of the order of 1 in float64, 1e-16 / STEP, and the curvature, STEP**2
DIRECTIONS = 2  # a wrong element can hide from one, hardly from two


@dataclass(frozen=True)
class Slope:
    """The derivative along one direction: the gradient's, and the differences' on each side, relative to its size.

    error: how far the gradient is from the central difference; bound: what the differences themselves can be wrong by,
    known by taking them twice as wide. kink: the two sides differ, so that there is no derivative.
    """

    name: str
    error: float
    bound: float
    kink: bool
    sides: tuple[float, float]


def slopes(layer: Recurrent, values: Mapping[str, Tensor]) -> Iterator[Slope]:
    """For every input, first state and parameter, along random directions."""
    def make(layer, values):
        return call(layer, values, record=True)

    found = outcome(make, layer, values)
    leaves = {n: v.clone() for n, v in values.items()}
    weights = weights_for({n: y for n, y in found.items() if not n.startswith("gradient of ")})
    random = torch.Generator().manual_seed(2)

    def sums() -> tuple[float, float]:
        terms = [(y * weights[n]).double() for n, y in make(layer, leaves).items()]
        return sum(t.sum().item() for t in terms), sum(t.abs().sum().item() for t in terms)

    with torch.no_grad():
        here, size = sums()
        rounding = 64 * torch.finfo(torch.float64).eps * size / STEP  # a step loses some, added up over all terms
        for name, leaf in {**leaves, **dict(layer.named_parameters())}.items():
            gradient, before = found[f"gradient of {name}"], leaf.clone()
            for _ in range(DIRECTIONS):
                direction = torch.randn(leaf.shape, generator=random, dtype=leaf.dtype)
                at = {}
                for k in (-2, -1, 1, 2):
                    leaf.copy_(before + k * STEP * direction)
                    at[k] = sums()[0]
                leaf.copy_(before)
                yield _slope(name, (gradient * direction).sum().item(), here, at, rounding,
                             max(1.0, gradient.norm().item()))


def _slope(name: str, slope: float, here: float, at: Mapping[int, float], rounding: float, scale: float) -> Slope:
    central = (at[1] - at[-1]) / (2 * STEP)
    bound = rounding + 4 * abs(central - (at[2] - at[-2]) / (4 * STEP))
    left, right = (here - at[-1]) / STEP, (at[1] - here) / STEP
    # From curvature the sides differ twice as much for a step twice as wide; from a kink, as much.
    gap, wide = abs(right - left), abs(at[2] + at[-2] - 2 * here) / (2 * STEP)
    kink = gap > 10 * rounding + 1e-5 * scale and wide < 1.5 * gap
    return Slope(name, abs(slope - central) / scale, bound / scale, kink, (left, right))
