"""The limits of the machine, and how much of them the work of a case needs.

The rates are measured in the same run (`probes.py limits`). The work is counted as follows.

Products: 2 operations for each multiplication that a step of one row needs, 4H(I + H) of them for the LSTM; three times
as many in training (the product, the gradient of its operand, the gradient of its weights). Element-wise work is not
counted.

Bytes, the larger of two times: what a call has to read and write at least (input, output and weights; in training their
gradients too); and the recurrent weights, which every step reads anew (in training once forward and once backward).
Both come from the second cache where they fit in, since calls are repeated, and else from beyond it. Weights small
enough for the first cache are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_CACHES = 1e5  # bytes, about what the first caches of two cores hold
GATES = {"lstm": 4, "inference": 4, "gru": 3, "rnn": 1, "peephole": 4, "coupled": 3, "layer-norm": 4,
         "reset-before": 3, "own": 3}


@dataclass(frozen=True)
class Limit:
    """The shortest time that a limit of the machine leaves for the work, and which limit that is."""

    seconds: float
    name: str


def weights(case: str, I: int, H: int) -> tuple[int, int]:
    """Numbers in the matrices that multiply an input, and in those that multiply a state."""
    if case == "projected":
        P = H // 2
        return 4 * H * I, 4 * H * P + P * H
    if case == "two-layers":
        return 4 * H * (I + H), 8 * H * H
    if case == "bidirectional":
        return 8 * H * I, 8 * H * H
    return GATES[case] * H * I, GATES[case] * H * H


def limit(case: str, sizes: tuple[int, int, int, int], rates: dict) -> Limit | None:
    """What the machine allows at best; None for cases that are no plain layer, or where a rate was not measured."""
    cell = case.removesuffix("-bfloat16")
    if cell not in {*GATES, "projected", "two-layers", "bidirectional"}:
        return None
    T, B, I, H = sizes
    bfloat16, training = cell != case, cell != "inference"
    products = rates["bfloat16_products" if bfloat16 else "float32_products"]
    if products is None:
        return None
    inputs, recurrent = weights(cell, I, H)
    operations = 2 * T * B * (inputs + recurrent) * (3 if training else 1)
    size = 2 if bfloat16 else 4
    features = {"projected": H // 2, "bidirectional": 2 * H}.get(cell, H)
    once = (4 * T * B * (I + features) + size * (inputs + recurrent)) * (2 if training else 1)
    every_step = size * recurrent

    def rate(count: float) -> float:
        return rates["near_bytes" if count <= rates["second_caches"] else "far_bytes"]

    near = every_step <= rates["second_caches"]
    again = T * every_step * (2 if training else 1) if every_step > FIRST_CACHES else 0
    found = [Limit(operations / products, "products"),
             Limit(once / rate(once), "memory"),
             Limit(again / rate(every_step),
                   f"recurrent weights from {'the second' if near else 'beyond the second'} cache")]
    return max(found, key=lambda one: one.seconds)
