"""Receives the rates of what a layer does at random while it trains, hands on its cells and the masks of a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from torch import Tensor

from ..autograd.ragged import Ragged
from ..compiler import Cell
from ..compiler.expr import order
from ..compiler.roles import multiplied_states, recurrent_matrices
from ..compiler.transform import (
    DROPOUT,
    VARIATIONAL,
    ZONEOUT,
    with_dropout,
    with_expected_zoneout,
    with_variational_dropout,
    with_zoneout,
)

CANDIDATES = ("g", "n")


class Regularisation:
    """Zoneout and dropout within a cell, with a rate from 0 to below 1, or a mapping of names to rates, for each.

    zoneout: of states, all of them for a number. recurrent_dropout: of recorded values, the candidate (recorded as g or
    n) for a number. variational_dropout: of the input and of the states that matrices multiply, all of them for a
    number. weight_dropout: of the weights of the matrices that multiply a state.

    Masks are 1 where torch.rand (of float32) is below how often they are, and drawn in this order: for each layer that
    of its input; then for each direction those of recurrent_dropout, of variational_dropout and of zoneout, in the
    order of the cell, and those of the weights. Sequences have them step by step, all rows of a step together; with
    lengths, of the rows that have the step, the longest first.

    Raises ValueError for rates and names that make no sense for the cell.

    >>> from gatework.cells import lstm
    >>> from gatework.compiler import trace
    >>> random = Regularisation(trace(lstm), {"c": 0.5}, 0.1, 0.0, 0.0)
    >>> list(random.training.inputs), list(random.evaluation.inputs)
    (['x', '.dropout_g', '.zoneout_c'], ['x'])
    >>> [m.shape for m in random.masks(torch.zeros(5, 3, 8), 3, {"I": 8, "H": 16})]
    [torch.Size([5, 3, 16]), torch.Size([5, 3, 16])]
    """

    def __init__(self, cell: Cell, zoneout, recurrent_dropout, variational_dropout, weight_dropout: float):
        main = next(iter(cell.inputs))
        zoned = _rates("zoneout", "states", cell, zoneout, list(cell.states), list(cell.states))
        dropped = _rates("recurrent_dropout", "recorded values", cell, recurrent_dropout, _candidate(cell),
                         list(cell.record))
        multiplied = [main, *multiplied_states(cell)]
        variational = _rates("variational_dropout", "input and states that a matrix multiplies", cell,
                             variational_dropout, multiplied, multiplied)
        read = {e for e in order(cell.next.values()) if e.op != "const"}
        idle = [n for n in dropped if cell.record[n] not in read]
        if idle:
            raise ValueError(f"recurrent_dropout of {', '.join(idle)} would change nothing: no next state of "
                             f"{cell.name} depends on it")
        _check_rate("weight_dropout", weight_dropout)
        matrices = recurrent_matrices(cell)
        if weight_dropout and not matrices:
            raise ValueError(f"weight_dropout drops weights of the matrices that multiply a state; {cell.name} has "
                             "none. Leave it at 0")
        self.input_rate = variational.pop(main, 0.0)
        self.weight_rate = float(weight_dropout)
        self._matrices = [name in matrices for name in cell.families]
        self.training = cell
        if dropped:
            self.training = with_dropout(self.training, tuple(dropped.items()))
        if variational:
            self.training = with_variational_dropout(self.training, tuple(variational.items()))
        if zoned:
            self.training = with_zoneout(self.training, tuple(zoned))
        self.evaluation = with_expected_zoneout(cell, tuple(zoned.items())) if zoned else cell
        ones = ({DROPOUT + n: 1.0 - rate for n, rate in dropped.items()}
                | {VARIATIONAL + n: 1.0 - rate for n, rate in variational.items()}
                | {ZONEOUT + n: rate for n, rate in zoned.items()})
        # Of each mask: how often it is 1, its size, None for a number, and whether it lasts for all steps.
        self._masks = [(ones[n], *(e.dims or (None,)), e.op == "constant")
                       for n, e in self.training.inputs.items() if n in ones]

    def __bool__(self) -> bool:
        return bool(self._masks or self.input_rate or self.weight_rate)

    def drop_input(self, x: Tensor, rows: int, ragged: Ragged | None) -> Tensor:
        """The input of a layer, [T, B, size] or [N, size], with the same features of a row dropped in all steps."""
        if not self.input_rate:
            return x
        keep = 1.0 - self.input_rate
        mask = _drawn((rows, x.shape[-1]), keep, x) / keep
        return x * (mask if ragged is None else mask[_row_of_places(ragged.sizes, len(x), rows).to(x.device)])

    def masks(self, x: Tensor, rows: int, sizes: Mapping[str, int]) -> list[Tensor]:
        """What the training cell takes beside the inputs of the equations, for one direction of one layer."""
        return [_drawn((*((rows,) if lasting else x.shape[:-1]), sizes[size] if size else 1), often, x)
                for often, size, lasting in self._masks]

    def drop_weights(self, parameters: list[Tensor]) -> list[Tensor]:
        """The parameters of one direction, with weights of the recurrent matrices dropped for this call."""
        if not self.weight_rate:
            return parameters
        keep = 1.0 - self.weight_rate
        return [p * (_drawn(p.shape, keep, p) / keep) if recurrent else p
                for p, recurrent in zip(parameters, self._matrices, strict=True)]


def _drawn(shape: Sequence[int], often: float, like: Tensor) -> Tensor:
    """1 with this probability, else 0. By torch.rand, which takes half as long as torch.bernoulli, and in float32: of
    the numbers below 1 that half precision has, too few are below a rate or above it."""
    return torch.rand(shape, dtype=torch.float32, device=like.device).lt_(often).to(like.dtype)


def _row_of_places(sizes: Tensor, places: int, rows: int) -> Tensor:
    """[N], the row that each place of a ragged batch belongs to; any row for places that are not in use."""
    ends = sizes.cumsum(0)
    place = torch.arange(places)
    step = torch.searchsorted(ends, place, right=True).clamp(max=len(sizes) - 1)
    return (place - (ends - sizes)[step]).clamp(max=rows - 1)


def _candidate(cell: Cell) -> list[str]:
    found = [n for n in CANDIDATES if n in cell.record]
    return found if len(found) == 1 else []


def _check_rate(option: str, rate) -> None:
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0.0 <= rate < 1.0:
        raise ValueError(f"{option} is a probability, at least 0 and below 1; {rate!r} was given")


def _rates(option: str, what: str, cell: Cell, given, usual: list[str], known: list[str]) -> dict[str, float]:
    """The rates that are not 0, by name, in the order of `known`; a single number is for the `usual` names."""
    if not isinstance(given, Mapping):
        _check_rate(option, given)
        if given and not usual:
            raise ValueError(f"{option}={given} is for the candidate, one value that is recorded as "
                             f"{' or '.join(CANDIDATES)}; {cell.name} records {', '.join(known) or 'nothing'}. Name "
                             f"what is meant: {option}={{name: {given}}}")
        given = dict.fromkeys(usual, given)
    unknown = [n for n in given if n not in known]
    if unknown:
        raise ValueError(f"{option} names {', '.join(map(repr, unknown))}; the {what} of {cell.name} are "
                         f"{', '.join(known) or 'none'}")
    for name, rate in given.items():
        _check_rate(f"{option} of {name}", rate)
    return {n: float(given[n]) for n in known if given.get(n)}
