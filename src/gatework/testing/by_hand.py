"""What a layer does with lengths, resets and steps, said once more in plain calls: one row and one piece at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..nn import Recurrent
from .drawn import call


def cut(layer: Recurrent, values: Mapping[str, Tensor], lengths: Sequence[int], resets: Tensor,
        record: bool) -> dict[str, Tensor]:
    """The results of a bidirectional layer for rows of these lengths, each cut in front of every step of a reset."""
    steps = len(values[next(iter(layer.cell.inputs))])
    rows = [_pieces(layer, values, b, n, resets[:, b], record) for b, n in enumerate(lengths)]
    template = next(pieces[0] for pieces in rows if pieces)
    made = {}
    for name, like in template.items():
        if name.startswith("last "):
            first = values[name.replace("last", "first")]
            # forward ends in the last piece, reverse in the first one; a row without steps ends where it begins
            ends = [torch.stack([pieces[-1][name][0], pieces[0][name][1]]) if pieces else first[:, b:b + 1]
                    for b, pieces in enumerate(rows)]
        else:
            ends = [torch.cat([*(piece[name] for piece in pieces), like.new_zeros(steps - n, *like.shape[1:])])
                    for pieces, n in zip(rows, lengths)]
        made[name] = torch.cat(ends, 1)
    return made


def _pieces(layer: Recurrent, values: Mapping[str, Tensor], b: int, length: int, resets: Tensor,
            record: bool) -> list[dict[str, Tensor]]:
    """The results for each piece of row `b`."""
    bounds = [0, *(t for t in range(1, length) if resets[t]), length] if length else []
    pieces = []
    for begin, end in zip(bounds, bounds[1:]):
        piece = {n: values[n][b:b + 1] if e.op == "constant" else values[n][begin:end, b:b + 1]
                 for n, e in layer.cell.inputs.items()}
        goes_on = begin == 0 and not resets[0], end == length
        for s in layer.cell.states:
            given = values[f"first {s}"]
            piece[f"first {s}"] = torch.stack([given[d, b:b + 1] if goes_on[d] else _initial(layer, s, d, given)
                                               for d in (0, 1)])
        pieces.append(call(layer, piece, record=record))
    return pieces


def _initial(layer: Recurrent, state: str, direction: int, like: Tensor) -> Tensor:
    """[1, size]: what a direction begins with where nothing is given."""
    if not layer.initial_state:
        return torch.zeros_like(like[0, :1])
    return getattr(layer, f"initial_{state}_l0{('', '_reverse')[direction]}").unsqueeze(0)


def step_by_step(layer: Recurrent, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The results of a layer of one direction, by one call of its `step` after the other."""
    main, *further = layer.cell.inputs
    constant = {n for n, e in layer.cell.inputs.items() if e.op == "constant"}
    state, outputs = tuple(values[f"first {s}"] for s in layer.cell.states), []
    for t, x in enumerate(values[main]):
        y, state = layer.step(x, state, **{n: values[n] if n in constant else values[n][t] for n in further})
        outputs.append(y)
    last = [state] if isinstance(state, Tensor) else state
    return {"output": torch.stack(outputs)} | {f"last {s}": v for s, v in zip(layer.cell.states, last)}
