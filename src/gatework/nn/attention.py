"""Receives queries and a memory of steps, hands on what the queries find in it, and where they looked.

All of these modules are called alike, with shapes in which V is the size of what is found:

    attention(queries [Tq, B, Q], memory [Tm, B, M], lengths=[B]) -> context [Tq, B, V], weights [Tq, B, Tm]
    attention(query [B, Q], memory, lengths=[B]) -> context [B, V], weights [B, Tm]

With batch_first the batch comes before the time, in queries, memory, context and weights. `lengths` are the steps that
each row of the memory has, in any order. Weights behind them are 0, whatever lies there, NaN too, and it gets no
gradient. A row without steps has weights 0 and the context 0, so its weights do not add up to 1. NaN within the steps
of a row makes its weights and its context NaN.

`prepared = attention.prepare(memory, lengths)` does once what does not depend on the queries, and is given in the place
of the memory; `prepared.rows(index)` chooses, repeats or reorders rows, as beam search needs it.

Wrong sizes, dtypes and devices raise ValueError or TypeError, naming what was given and what is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Linear, functional

from .arguments import check_kind, check_lengths

SCORES = ("dot", "general")


@dataclass(frozen=True)
class Prepared:
    """A memory as one attention needs it, made by its `prepare`: the batch comes first in all of it.

    keys: what queries are compared with. values: what is found. padding: [B, 1, Tm], true behind the steps of a row.
    blocked: the same, but all false in rows without steps, which a softmax could not serve.
    """

    keys: Tensor
    values: Tensor
    padding: Tensor
    blocked: Tensor

    def rows(self, index: Tensor) -> Prepared:
        """The rows of the batch that `index` [N], of whole numbers, names, in its order."""
        return Prepared(*(t.index_select(0, index) for t in (self.keys, self.values, self.padding, self.blocked)))


def _prepared(memory: Tensor, lengths, project) -> Prepared:
    """From memory [B, Tm, M]; `project` makes keys and values of it, once its padding is 0."""
    rows, steps = memory.shape[:2]
    padding = memory.new_zeros(rows, 1, steps, dtype=torch.bool)
    if lengths is not None:
        lengths = check_lengths(lengths, rows, steps)
        if lengths.min() < 0 or lengths.max() > steps:
            raise ValueError(f"lengths must be from 0 to the {steps} steps of the memory; they go from "
                             f"{int(lengths.min())} to {int(lengths.max())}")
        padding = torch.arange(steps, device=memory.device) >= lengths.to(memory.device)[:, None, None]
    keys, values = project(memory.masked_fill(padding.mT, 0.0))
    return Prepared(keys, values, padding, padding & ~padding.all(-1, keepdim=True))


def _weights(scores: Tensor, prepared: Prepared) -> Tensor:
    """Softmax of scores [B, Tq, Tm] over the steps of each row."""
    return scores.masked_fill(prepared.blocked, -torch.inf).softmax(-1).masked_fill(prepared.padding, 0.0)


class _OverMemory(torch.nn.Module):
    """What is common to all that reads a memory: its size, its layout, and the checks of both."""

    def __init__(self, memory_size: int, batch_first: bool, **sizes: int):
        super().__init__()
        for name, size in dict(memory_size=memory_size, **sizes).items():
            if type(size) is not int or size < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; {size!r} was given")
        self.memory_size, self.batch_first = memory_size, batch_first

    @property
    def first_parameter(self) -> Tensor:
        return next(self.parameters())

    def prepare(self, memory: Tensor, lengths: Tensor | None = None) -> Prepared:
        """Do once what does not depend on queries: memory [Tm, B, M], lengths [B]; see the module's docstring."""
        self._check("memory", memory, self.memory_size, (3,))
        return _prepared(memory if self.batch_first else memory.transpose(0, 1), lengths, self._project)

    def _prepare_unless_done(self, memory: Tensor | Prepared, lengths) -> Prepared:
        if not isinstance(memory, Prepared):
            return self.prepare(memory, lengths)
        if lengths is not None:
            raise TypeError("a prepared memory knows its lengths; give them to prepare(memory, lengths)")
        return memory

    def _check(self, name: str, value: Tensor, size: int, dims: tuple[int, ...]) -> None:
        letter, time = name[0].upper(), "Tm" if name == "memory" else "Tq"
        forms = {2: f"[B, {letter}]", 3: f"[B, {time}, {letter}]" if self.batch_first else f"[{time}, B, {letter}]"}
        form = " or ".join(forms[d] for d in reversed(dims))
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor {form}; {type(value).__name__} was given")
        if value.dim() not in dims or value.shape[-1] != size or 0 in value.shape:
            raise ValueError(f"{name} must be {form} with {letter} = {size} and at least one row and step; the shape "
                             f"is {tuple(value.shape)}. Rows without steps are said by lengths=")
        if next(self.parameters(), None) is not None:
            check_kind(self, name, value)


class _Attention(_OverMemory):
    """Queries, scored against keys. What a subclass adds is `_project`, and `_scores` or all of `_attend`."""

    def __init__(self, query_size: int, memory_size: int, batch_first: bool, **sizes: int):
        super().__init__(memory_size, batch_first, query_size=query_size, **sizes)
        self.query_size = query_size

    def forward(self, queries: Tensor, memory: Tensor | Prepared, lengths: Tensor | None = None):
        prepared = self._prepare_unless_done(memory, lengths)
        return self._arrange(queries, self._attend(self._batch_first(queries, prepared), prepared))

    def _batch_first(self, queries: Tensor, prepared: Prepared) -> Tensor:
        """[B, Tq, Q]; one step is a Tq of 1."""
        self._check("queries", queries, self.query_size, (2, 3))
        if queries.dim() == 2:
            queries = queries[:, None]
        elif not self.batch_first:
            queries = queries.transpose(0, 1)
        if len(queries) != len(prepared.padding):
            raise ValueError(f"queries have {len(queries)} rows, the memory has {len(prepared.padding)}; they belong "
                             "together row by row (prepared.rows(index) repeats or reorders those of the memory)")
        return queries

    def _arrange(self, queries: Tensor, found: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Each [B, Tq, ...], in the layout of the queries."""
        if queries.dim() == 2:
            return tuple(t[:, 0] for t in found)
        return found if self.batch_first else tuple(t.transpose(0, 1) for t in found)

    def _attend(self, queries: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        """Context [B, Tq, V] and weights [B, Tq, Tm]."""
        weights = _weights(self._scores(queries, prepared.keys), prepared)
        return weights @ prepared.values, weights


class AdditiveAttention(_Attention):
    """score = v . tanh(W query + U memory), of Bahdanau, Cho & Bengio, "Neural machine translation by jointly learning
    to align and translate", 2015.

    Args: query_size: Q. memory_size: M, and the size V of the context. attention_size: A, that of the sum.
    batch_first: see the module.

    Called as `gatework.nn.attention` tells. Every query is added to every step of the memory: a call makes, and keeps
    for the backward pass, B * Tq * Tm * A numbers, which for 32 rows of 1000 steps each and A = 256 are 33 GB in
    float32. Query by query it is as much in sum while gradients are wanted, and only the Tq-th part without.
    MultiplicativeAttention needs B * Tq * Tm.

    >>> import torch, gatework
    >>> attention = gatework.nn.AdditiveAttention(query_size=8, memory_size=16, attention_size=32)
    >>> memory, lengths = torch.randn(7, 3, 16), torch.tensor([7, 2, 0])
    >>> context, weights = attention(torch.randn(5, 3, 8), memory, lengths=lengths)
    >>> context.shape, weights.shape
    (torch.Size([5, 3, 16]), torch.Size([5, 3, 7]))
    >>> prepared = attention.prepare(memory, lengths)
    >>> context, weights = attention(torch.randn(3, 8), prepared)  # one step
    >>> weights.sum(-1).round(decimals=4).tolist()
    [1.0, 1.0, 0.0]
    """

    def __init__(self, query_size: int, memory_size: int, attention_size: int, batch_first: bool = False):
        super().__init__(query_size, memory_size, batch_first, attention_size=attention_size)
        self.query = Linear(query_size, attention_size, bias=False)
        self.key = Linear(memory_size, attention_size, bias=False)
        self.score = Linear(attention_size, 1, bias=False)

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory), memory

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return self.score(torch.tanh(self.query(queries)[:, :, None] + keys[:, None]))[..., 0]


class MultiplicativeAttention(_Attention):
    """score = query . memory ("dot"), or query . W memory ("general"), of Luong, Pham & Manning, "Effective approaches
    to attention-based neural machine translation", 2015.

    Args: query_size: Q. memory_size: M, and the size V of the context; "dot" needs M = Q. score: "dot" or "general".
    scaled: divide scores by the square root of Q, so that they do not grow with it (Vaswani et al., 2017).
    batch_first: see the module.

    Called as `gatework.nn.attention` tells.

    >>> import torch, gatework
    >>> attention = gatework.nn.MultiplicativeAttention(8, 16, score="general")
    >>> context, weights = attention(torch.randn(5, 3, 8), torch.randn(7, 3, 16))
    >>> context.shape, weights.shape
    (torch.Size([5, 3, 16]), torch.Size([5, 3, 7]))
    """

    def __init__(self, query_size: int, memory_size: int, score: str = "general", scaled: bool = False,
                 batch_first: bool = False):
        super().__init__(query_size, memory_size, batch_first)
        if score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(map(repr, SCORES))}; {score!r} was given. The additive "
                             "one is AdditiveAttention")
        if score == "dot" and query_size != memory_size:
            raise ValueError(f"score='dot' needs queries and memory of one size; query_size={query_size} and "
                             f"memory_size={memory_size} were given. score='general' takes any")
        self.key = Linear(memory_size, query_size, bias=False) if score == "general" else torch.nn.Identity()
        self.scale = query_size**-0.5 if scaled else 1.0

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory), memory

    def _scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        return (queries * self.scale) @ keys.mT


class LocationAwareAttention(_Attention):
    """score = v . tanh(W query + U memory + L (F * previous weights) + b), of Chorowski et al., "Attention-based models
    for speech recognition", 2015: filters F along the time tell where the step before has looked.

    Args: query_size: Q. memory_size: M, and the size V of the context. attention_size: A. filters: how many there are
    (10 in the paper). kernel_size: their width in steps, odd (201 in the paper, with frames of 10 ms). cumulative:
    carry the sum of all weights so far instead of the last ones. batch_first: see the module.

    Called as `gatework.nn.attention` tells, with `state` [B, Tm] beside it: what earlier steps looked at, nothing
    (zeros) if not given. Returns context, weights, and the state for the next call. A call goes query by query, so it
    gives the same for Tq queries as Tq calls for one each. Memory is that of AdditiveAttention.

    >>> import torch, gatework
    >>> attention = gatework.nn.LocationAwareAttention(8, 16, attention_size=32, kernel_size=5)
    >>> prepared, state = attention.prepare(torch.randn(7, 3, 16)), None
    >>> for query in torch.randn(2, 3, 8):
    ...     context, weights, state = attention(query, prepared, state=state)
    >>> context.shape, torch.equal(weights, state)
    (torch.Size([3, 16]), True)
    """

    def __init__(self, query_size: int, memory_size: int, attention_size: int, filters: int = 10, kernel_size: int = 31,
                 cumulative: bool = False, batch_first: bool = False):
        super().__init__(query_size, memory_size, batch_first, attention_size=attention_size, filters=filters,
                         kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to reach as far back as ahead; {kernel_size} was given")
        self.query = Linear(query_size, attention_size, bias=False)
        self.key = Linear(memory_size, attention_size)
        self.filters = torch.nn.Conv1d(1, filters, kernel_size, padding=kernel_size // 2, bias=False)
        self.location = Linear(filters, attention_size, bias=False)
        self.score = Linear(attention_size, 1, bias=False)
        self.cumulative = cumulative

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(memory), memory

    def forward(self, queries: Tensor, memory: Tensor | Prepared, lengths: Tensor | None = None,
                state: Tensor | None = None):
        prepared = self._prepare_unless_done(memory, lengths)
        projected = self.query(self._batch_first(queries, prepared))
        state, all_weights = self._first_state(state, prepared), []
        for query in projected.unbind(1):
            location = self.location(self.filters(state[:, None]).mT)
            scores = self.score(torch.tanh(query[:, None] + prepared.keys + location)).mT
            weights = _weights(scores, prepared)
            state = state + weights[:, 0] if self.cumulative else weights[:, 0]
            all_weights.append(weights)
        weights = torch.cat(all_weights, 1)
        return *self._arrange(queries, (weights @ prepared.values, weights)), state

    def _first_state(self, state: Tensor | None, prepared: Prepared) -> Tensor:
        padding = prepared.padding[:, 0]
        if state is None:
            return prepared.values.new_zeros(padding.shape)
        if not isinstance(state, Tensor) or state.shape != padding.shape:
            given = f"shape {tuple(state.shape)}" if isinstance(state, Tensor) else f"type {type(state).__name__}"
            raise ValueError(f"state has {given}; needed is [B, Tm] = {tuple(padding.shape)}, what the last call "
                             "returned third")
        check_kind(self, "state", state)
        return state.masked_fill(padding, 0.0)


class MultiHeadAttention(_Attention):
    """`torch.nn.MultiheadAttention` of Vaswani et al., "Attention is all you need", 2017, called like the others.

    Args: query_size: Q, and the size V of the context. memory_size: M. num_heads: a divisor of Q. batch_first: see the
    module.

    Called as `gatework.nn.attention` tells; weights are the mean over the heads. torch's own module, with its
    parameters, is `attention.heads`; it is not called itself, as it would project the memory in every call and give NaN
    for rows without steps.

    >>> import torch, gatework
    >>> attention = gatework.nn.MultiHeadAttention(8, 16, num_heads=2)
    >>> context, weights = attention(torch.randn(5, 3, 8), torch.randn(7, 3, 16))
    >>> context.shape, weights.shape
    (torch.Size([5, 3, 8]), torch.Size([5, 3, 7]))
    """

    def __init__(self, query_size: int, memory_size: int, num_heads: int, batch_first: bool = False):
        super().__init__(query_size, memory_size, batch_first, num_heads=num_heads)
        if query_size % num_heads:
            raise ValueError(f"num_heads must divide query_size; {num_heads} and {query_size} were given")
        self.heads = torch.nn.MultiheadAttention(query_size, num_heads, kdim=memory_size, vdim=memory_size)

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        h = self.heads
        of_keys, of_values = ((h.k_proj_weight, h.v_proj_weight) if h.in_proj_weight is None
                              else h.in_proj_weight.chunk(3)[1:])
        bias = h.in_proj_bias.chunk(3)
        return functional.linear(memory, of_keys, bias[1]), functional.linear(memory, of_values, bias[2])

    def _attend(self, queries: Tensor, prepared: Prepared) -> tuple[Tensor, Tensor]:
        h = self.heads
        keys, values = (t.unflatten(-1, (h.num_heads, h.head_dim)).transpose(1, 2).flatten(0, 1)
                        for t in (prepared.keys, prepared.values))
        # torch projects the memory that it is given before it takes what is projected already: give it none.
        nothing = queries.new_empty(0, len(queries), self.memory_size)
        context, weights = functional.multi_head_attention_forward(
            queries.transpose(0, 1), nothing, nothing, h.embed_dim, h.num_heads, h.in_proj_weight, h.in_proj_bias,
            None, None, False, 0.0, h.out_proj.weight, h.out_proj.bias, self.training, prepared.blocked[:, 0],
            use_separate_proj_weight=h.in_proj_weight is None, q_proj_weight=h.q_proj_weight,
            k_proj_weight=h.k_proj_weight, v_proj_weight=h.v_proj_weight, static_k=keys, static_v=values)
        empty = prepared.padding.all(-1, keepdim=True)
        return context.transpose(0, 1).masked_fill(empty, 0.0), weights.masked_fill(prepared.padding, 0.0)


class AttentionPooling(_OverMemory):
    """A sequence as one vector, for classifiers: score = u . tanh(W memory + b) with a learned query u, of Yang et al.,
    "Hierarchical attention networks for document classification", 2016.

    Args: memory_size: M, and the size of what is returned. attention_size: A, that of u. batch_first: see the module.

    Called with memory [Tm, B, M] and lengths [B]; returns the mean [B, M] of its steps, weighted, and the weights
    [B, Tm], by the rules of `gatework.nn.attention`.

    >>> import torch, gatework
    >>> pooling = gatework.nn.AttentionPooling(16, attention_size=32)
    >>> context, weights = pooling(torch.randn(7, 3, 16), lengths=torch.tensor([7, 2, 0]))
    >>> context.shape, weights.shape
    (torch.Size([3, 16]), torch.Size([3, 7]))
    """

    def __init__(self, memory_size: int, attention_size: int, batch_first: bool = False):
        super().__init__(memory_size, batch_first, attention_size=attention_size)
        self.key = Linear(memory_size, attention_size)
        self.query = Linear(attention_size, 1, bias=False)

    def _project(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.key(memory)), memory

    def forward(self, memory: Tensor | Prepared, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        prepared = self._prepare_unless_done(memory, lengths)
        weights = _weights(self.query(prepared.keys).mT, prepared)
        return (weights @ prepared.values)[:, 0], weights[:, 0]
