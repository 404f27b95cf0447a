"""An LSTM and a GRU written out by hand, one row and one step at a time, for the tests of layers."""

from __future__ import annotations

import torch


def lstm_step(x, state, p):
    h, c = state
    i, f, g, o = (p["weight_ih"] @ x + p["bias_ih"] + p["weight_hh"] @ h + p["bias_hh"]).chunk(4)
    i, f, g, o = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + i * g
    h = o * torch.tanh(c)
    return [h, c], dict(i=i, f=f, g=g, o=o, h=h, c=c)


def gru_step(x, state, p):
    (h,) = state
    a, b = p["weight_ih"] @ x + p["bias_ih"], p["weight_hh"] @ h + p["bias_hh"]
    (ar, az, an), (br, bz, bn) = a.chunk(3), b.chunk(3)
    r, z = torch.sigmoid(ar + br), torch.sigmoid(az + bz)
    n = torch.tanh(an + r * bn)
    h = (1 - z) * n + z * h
    return [h], dict(r=r, z=z, n=n, h=h)


STEPS = {"lstm": lstm_step, "gru": gru_step}


def run(layer, x, first, lengths, resets):
    """A layer of torch.nn's kind, all of it by hand: x [T, B, I], first states [layers * directions, B, H] or None.

    Each row is cut where `resets` [T, B] says, and each piece is run on its own. Returns the output [T, B, D * H], the
    last states, and every value of the equations by name, padded with zeros; all in torch, for its derivatives.
    """
    step, count, H = STEPS[layer.cell.name], len(layer.cell.states), layer.hidden_size
    T, B = x.shape[:2]
    zero = x.new_zeros(H)
    last, records = [], {}
    rows = [x[:, b] for b in range(B)]
    for number in range(layer.num_layers):
        outputs = []
        for direction in range(1 + layer.bidirectional):
            k = number * (1 + layer.bidirectional) + direction
            suffix = f"_l{number}" + "_reverse" * direction
            p = {n: getattr(layer, n + suffix) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
            initial = [getattr(layer, f"initial_{n}{suffix}") if layer.initial_state else zero for n in "hc"[:count]]
            ends, output, found = [], [], {}
            for b in range(B):
                length = T if lengths is None else int(lengths[b])
                state = initial if first is None else [s[k, b] for s in first]
                cuts = [t for t in range(length) if resets is not None and resets[t, b]]
                if direction == 0 and 0 in cuts:
                    state = initial
                values: list[dict] = [{} for _ in range(T)]
                for t in reversed(range(length)) if direction else range(length):
                    if direction == 0 and t in cuts:
                        state = initial
                    state, values[t] = step(rows[b][t], state, p)
                    if direction == 1 and t in cuts and t > 0:
                        state = initial
                ends.append(state)
                names = dict(i=0, f=0, g=0, o=0, h=0, c=0) if count == 2 else dict(r=0, z=0, n=0, h=0)
                for name in names:
                    found.setdefault(name, []).append(torch.stack([v.get(name, zero) for v in values]))
                output.append(found["h"][b])
            records |= {name + suffix: torch.stack(v, 1) for name, v in found.items()}
            outputs.append(output)
            last.append([torch.stack([e[j] for e in ends]) for j in range(count)])
        rows = [torch.cat(pieces, -1) for pieces in zip(*outputs)]
    return torch.stack(rows, 1), [torch.stack([e[j] for e in last]) for j in range(count)], records
