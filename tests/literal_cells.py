"""One step of each cell in numpy, for one example, written from the papers and not from our equations.

A step takes the inputs, the states and the stacked parameters by name, and returns the next states. The letters given
to `cut` are the order in which the row blocks are stored.
"""

from __future__ import annotations

import functools

import numpy as np

from gatework import cells


def sigma(a):
    return 1.0 / (1.0 + np.exp(-a))


def cut(stacked, names):
    """The row blocks of a stacked parameter, by name."""
    return dict(zip(names, np.split(stacked, len(names)), strict=True))


def odyssey(x, h, c, p, variant="", gates="ifgo", peepholes="ifo"):
    """Greff et al. 2017, section II: the vanilla LSTM y = o * h(c), and what each variant changes."""
    W, U, b, P = (*(cut(p[k], gates) for k in "WUb"), cut(p["p"], peepholes))
    a = {k: W[k] @ x + U[k] @ h + b[k] for k in gates}
    z = a["g"] if variant == "NIAF" else np.tanh(a["g"])
    i = 1.0 if variant == "NIG" else sigma(a["i"] + P["i"] * c)
    f = 1.0 if variant == "NFG" else 1.0 - i if variant == "CIFG" else sigma(a["f"] + P["f"] * c)
    c = z * i + c * f
    o = 1.0 if variant == "NOG" else sigma(a["o"] + P["o"] * c)
    return o * (c if variant == "NOAF" else np.tanh(c)), c


def full_gate_recurrence(x, h, c, i, f, o, p):
    W, U, b, P = (*(cut(p[k], "ifgo") for k in "WUb"), cut(p["p"], "ifo"))
    R = cut(p["R"], ["ii", "fi", "oi", "if", "ff", "of", "io", "fo", "oo"])
    a = {k: W[k] @ x + U[k] @ h + b[k] for k in "ifgo"}
    a |= {k: a[k] + R["i" + k] @ i + R["f" + k] @ f + R["o" + k] @ o for k in "ifo"}
    i, f = sigma(a["i"] + P["i"] * c), sigma(a["f"] + P["f"] * c)
    c = np.tanh(a["g"]) * i + c * f
    o = sigma(a["o"] + P["o"] * c)
    return o * np.tanh(c), c, i, f, o


def ea_lstm(x, s, h, c, p):
    """Kratzert et al. 2019, equations 7 to 12."""
    W, U, b = cut(p["W"], "fgo"), cut(p["U"], "fgo"), cut(p["b"], "ifgo")
    i = sigma(p["V"] @ s + b["i"])
    f, g, o = (W[k] @ x + U[k] @ h + b[k] for k in "fgo")
    c = sigma(f) * c + i * np.tanh(g)
    return sigma(o) * np.tanh(c), c


def minimal_gated_unit(x, h, p):
    """Zhou et al. 2016: both matrices act on [h, x], one beside the other."""
    W, U, b = (cut(p[k], "fn") for k in "WUb")
    f = sigma(np.hstack([U["f"], W["f"]]) @ np.concatenate([h, x]) + b["f"])
    new = np.tanh(np.hstack([U["n"], W["n"]]) @ np.concatenate([f * h, x]) + b["n"])
    return ((1.0 - f) * h + f * new,)


def indrnn(x, h, p):
    return (np.maximum(p["W"] @ x + p["u"] * h + p["b"], 0.0),)


def by_head(stored, h):
    """A block-diagonal product: each head's features times its own square matrix."""
    D = stored.shape[1]
    heads = [stored[k:k + D] @ h[k:k + D] for k in range(0, len(h), D)]
    return np.concatenate(heads)


def slstm(x, h, c, n, m, p, forget=sigma):
    """Beck et al. 2024, equations 8 to 14, without the stabiliser: the states kept are those divided by exp(m)."""
    W, R, b = (cut(p[k], "ifzo") for k in "WRb")
    a = {k: W[k] @ x + by_head(R[k], h) + b[k] for k in "ifzo"}
    i, f, z, o = np.exp(a["i"]), forget(a["f"]), np.tanh(a["z"]), sigma(a["o"])
    c, n = f * c * np.exp(m) + i * z, f * n * np.exp(m) + i
    m = np.where(n == i, a["i"], np.maximum(np.log(f) + m, a["i"]))  # n == i: there was nothing before
    return o * c / n, c / np.exp(m), n / np.exp(m), m


def recurrent_highway(x, h, p, depth=2):
    """Zilly et al. 2017, equations 6 to 8, with c = 1 - t."""
    names = [f"{kind}{layer}" for layer in range(1, depth + 1) for kind in "nt"]
    W, U, b = cut(p["W"], ["n1", "t1"]), cut(p["U"], names), cut(p["b"], names)
    for layer in range(1, depth + 1):
        n, t = f"n{layer}", f"t{layer}"
        first = layer == 1
        new = np.tanh((W[n] @ x if first else 0.0) + U[n] @ h + b[n])
        transform = sigma((W[t] @ x if first else 0.0) + U[t] @ h + b[t])
        h = new * transform + h * (1.0 - transform)
    return (h,)


def block_gru(x, h, p):
    """DreamerV3's dynamics with one block-linear hidden layer: normalised, SiLU, then the gates of its GRU."""
    b, V = cut(p["b"], "arnu"), cut(p["V"], "rnu")
    a = p["W"] @ x + by_head(p["R"], h) + b["a"]
    a = a / np.sqrt(np.square(a).sum() / len(a) + 1e-4) * p["gain"]
    a = a / (1.0 + np.exp(-a))
    reset, cand, update = (by_head(V[k], a) + b[k] for k in "rnu")
    cand, update = np.tanh(sigma(reset) * cand), sigma(update - 1.0)
    return (update * cand + (1.0 - update) * h,)


def leaky_rnn(x, h, p, leak=0.2):
    return (h + leak * (np.tanh(p["W"] @ x + p["U"] @ h + p["b"]) - h),)


def ct_rnn(x, dt, h, p, tau=1.0):
    """The solution of tau dh/dt = n - h over dt, from h."""
    n = np.tanh(p["W"] @ x + p["U"] @ h + p["b"])
    return (h - (n - h) * np.expm1(-dt / (tau * np.exp(p["p"]))),)


def min_gru(x, h, p):
    W, b = cut(p["W"], "zn"), cut(p["b"], "zn")
    z = sigma(W["z"] @ x + b["z"])
    return ((1.0 - z) * h + z * (W["n"] @ x + b["n"]),)


def min_lstm(x, h, p):
    """Feng et al. 2024: gates by themselves, then divided by their sum."""
    W, b = cut(p["W"], "fin"), cut(p["b"], "fin")
    f, i = sigma(W["f"] @ x + b["f"]), sigma(W["i"] @ x + b["i"])
    return (f / (f + i) * h + i / (f + i) * (W["n"] @ x + b["n"]),)


def norm(a):
    return (a - a.mean()) / np.sqrt(a.var() + 1e-5)


def layer_norm_lstm(x, h, c, p):
    """Ba et al. 2016, equations 20 to 22: one norm over all four gates for each product."""
    b = cut(p["b"], "ifgoc")
    a = p["gx"] * norm(p["W"] @ x) + p["gh"] * norm(p["U"] @ h) + p["b"][:len(p["W"])]
    i, f, g, o = np.split(a, 4)
    c = sigma(f) * c + sigma(i) * np.tanh(g)
    return sigma(o) * np.tanh(p["gc"] * norm(c) + b["c"]), c


def layer_norm_gru(x, h, p):
    """Ba et al. 2016, in the supplement: one norm for the two gates and one for the candidate, for each product."""
    H = len(h)
    Wx, Uh = p["W"] @ x, p["U"] @ h
    Wx, Uh = (np.concatenate([norm(a[:2 * H]), norm(a[2 * H:])]) for a in (Wx, Uh))
    Wx, Uh = p["gx"] * Wx + p["b"], p["gh"] * Uh
    r, z = np.split(sigma(Wx[:2 * H] + Uh[:2 * H]), 2)
    n = np.tanh(Wx[2 * H:] + r * (Uh[2 * H:] + p["d"]))
    return ((1.0 - z) * h + z * n,)


P = functools.partial
LITERAL = [
    (cells.lstm_no_input_gate, P(odyssey, variant="NIG", gates="fgo", peepholes="fo")),
    (cells.lstm_no_forget_gate, P(odyssey, variant="NFG", gates="igo", peepholes="io")),
    (cells.lstm_no_output_gate, P(odyssey, variant="NOG", gates="ifg", peepholes="if")),
    (cells.lstm_no_input_activation, P(odyssey, variant="NIAF")),
    (cells.lstm_no_output_activation, P(odyssey, variant="NOAF")),
    (cells.coupled_peephole_lstm, P(odyssey, variant="CIFG", gates="igo", peepholes="io")),
    (cells.lstm_full_gate_recurrence, full_gate_recurrence),
    (cells.ea_lstm, ea_lstm), (cells.minimal_gated_unit, minimal_gated_unit), (cells.indrnn, indrnn),
    (cells.slstm, slstm), (P(cells.slstm, forget="exp"), P(slstm, forget=np.exp)),
    (cells.recurrent_highway, recurrent_highway), (P(cells.recurrent_highway, depth=1), P(recurrent_highway, depth=1)),
    (P(cells.recurrent_highway, depth=3), P(recurrent_highway, depth=3)), (cells.block_gru, block_gru),
    (cells.leaky_rnn, leaky_rnn), (P(cells.leaky_rnn, leak=0.5), P(leaky_rnn, leak=0.5)), (cells.ct_rnn, ct_rnn),
    (P(cells.ct_rnn, tau=3.0), P(ct_rnn, tau=3.0)), (cells.min_gru, min_gru), (cells.min_lstm, min_lstm),
    (cells.layer_norm_lstm, layer_norm_lstm), (cells.layer_norm_gru, layer_norm_gru),
]
