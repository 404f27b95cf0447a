"""Attention: what it gives, beside literal loops and torch's own; lengths, NaN, a prepared memory, refusals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from gatework.nn import (
    AdditiveAttention,
    AttentionPooling,
    LocationAwareAttention,
    MultiHeadAttention,
    MultiplicativeAttention,
)

Q, M, A = 6, 33, 5
MAKERS = {
    "additive": lambda **o: AdditiveAttention(Q, M, A, **o),
    "dot": lambda **o: MultiplicativeAttention(M, M, score="dot", **o),
    "general": lambda **o: MultiplicativeAttention(Q, M, **o),
    "scaled": lambda **o: MultiplicativeAttention(Q, M, scaled=True, **o),
    "location": lambda **o: LocationAwareAttention(Q, M, A, filters=3, kernel_size=5, **o),
    "cumulative": lambda **o: LocationAwareAttention(Q, M, A, filters=3, kernel_size=5, cumulative=True, **o),
    "heads": lambda **o: MultiHeadAttention(Q, M, num_heads=2, **o),
    "heads of one size": lambda **o: MultiHeadAttention(M, M, num_heads=3, **o),
}
KINDS = pytest.mark.parametrize("kind", MAKERS)
LENGTHS = torch.tensor([3, 7, 0, 1])
CLOSE = dict(rtol=0, atol=1e-12)  # float64, numbers of size 1, sums of 33: some 100 roundings of 1e-16

pytestmark = pytest.mark.usefixtures("float64")


def case(kind, queries=4, rows=4, steps=7, **options):
    torch.manual_seed(0)
    attention = MAKERS[kind](**options)
    if isinstance(attention, MultiHeadAttention):
        for bias in (attention.heads.in_proj_bias, attention.heads.out_proj.bias):
            torch.nn.init.normal_(bias)  # torch begins with zeros, which would hide a mistake
    return attention, torch.randn(queries, rows, attention.query_size), torch.randn(steps, rows, M)


def by_hand(attention, queries, memory, lengths):
    """Literal loops over rows, queries and steps; of multi-head attention over heads too."""
    if isinstance(attention, MultiHeadAttention):
        return heads_by_hand(attention, queries, memory, lengths)
    context, weights = torch.zeros(*queries.shape[:2], M), torch.zeros(*queries.shape[:2], len(memory))
    for b, length in enumerate(lengths.tolist()):
        seen = torch.zeros(len(memory))
        for t in range(len(queries) if length else 0):
            scores = [score_by_hand(attention, queries[t, b], memory[s, b], s, seen) for s in range(length)]
            total = sum(math.exp(e) for e in scores)
            for s, e in enumerate(scores):
                weights[t, b, s] = math.exp(e) / total
                context[t, b] += weights[t, b, s] * memory[s, b]
            seen = seen + weights[t, b] if getattr(attention, "cumulative", False) else weights[t, b]
    return context, weights


def score_by_hand(attention, query, step, s, seen):
    if isinstance(attention, MultiplicativeAttention):
        key = step if isinstance(attention.key, torch.nn.Identity) else attention.key.weight @ step
        return float(query @ key) * attention.scale
    total = attention.query.weight @ query + attention.key.weight @ step
    if isinstance(attention, LocationAwareAttention):
        kernel = attention.filters.weight[:, 0]
        around = [seen[j] if 0 <= j < len(seen) else 0.0 for j in range(s - 2, s + 3)]
        found = sum(kernel[:, k] * value for k, value in enumerate(around))
        total = total + attention.key.bias + attention.location.weight @ found
    return float(attention.score.weight[0] @ torch.tanh(total))


def heads_by_hand(attention, queries, memory, lengths):
    """torch's module, row by row without masks; weights and context of a row without steps are zero."""
    context, weights = torch.zeros_like(queries), torch.zeros(*queries.shape[:2], len(memory))
    for b, length in enumerate(lengths.tolist()):
        if length:
            context[:, b], weights[:, b, :length] = attention.heads(
                queries[:, b], memory[:length, b], memory[:length, b])
    return context, weights


@KINDS
@pytest.mark.parametrize(("queries", "rows", "steps", "lengths"), [
    (4, 4, 7, LENGTHS), (1, 1, 1, torch.tensor([1])), (2, 1, 5, torch.tensor([2])), (1, 2, 3, torch.tensor([0, 0]))])
def test_context_and_weights_are_those_of_literal_loops(kind, queries, rows, steps, lengths):
    attention, queries, memory = case(kind, queries, rows, steps)
    context, weights = attention(queries, memory, lengths=lengths)[:2]
    with torch.no_grad():
        expected = by_hand(attention, queries, memory, lengths)
    torch.testing.assert_close(context.detach(), expected[0], **CLOSE)
    torch.testing.assert_close(weights.detach(), expected[1], **CLOSE)


def test_scaled_dot_attention_is_that_of_torch():
    torch.manual_seed(0)
    attention = MultiplicativeAttention(M, M, score="dot", scaled=True, batch_first=True)
    queries, memory = torch.randn(3, 4, M), torch.randn(3, 7, M)
    lengths = torch.tensor([7, 2, 5])
    mask = torch.arange(7) < lengths[:, None, None]
    expected = functional.scaled_dot_product_attention(queries, memory, memory, attn_mask=mask)
    torch.testing.assert_close(attention(queries, memory, lengths)[0], expected, **CLOSE)


@pytest.mark.parametrize("kind", ["heads", "heads of one size"])
def test_multi_head_attention_and_its_gradients_are_those_of_torchs_module(kind):
    attention, queries, memory = case(kind)
    lengths = torch.tensor([3, 7, 2, 1])
    mask = torch.arange(7) >= lengths[:, None]
    results = []
    for ours in (True, False):
        if ours:
            context, weights = attention(queries, memory, lengths)
        else:
            context, weights = attention.heads(queries, memory, memory, key_padding_mask=mask)
            weights = weights.transpose(0, 1)  # torch's are [B, Tq, Tm] always
        attention.zero_grad()
        (context.square().sum() + weights.square().sum()).backward()
        results.append([context, weights, *(p.grad for p in attention.parameters())])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)  # gradients are sums over all of the batch


@KINDS
def test_gradients_are_those_of_finite_differences(kind):
    attention, queries, memory = case(kind, queries=2, rows=3, steps=3)
    names, parameters = zip(*attention.named_parameters()) if list(attention.parameters()) else ((), ())

    def call(queries, memory, *values):
        return torch.func.functional_call(attention, dict(zip(names, values)),
                                          (queries, memory, torch.tensor([3, 0, 2])))[:2]
    inputs = [t.detach().requires_grad_() for t in (queries, memory, *parameters)]
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")  # it says that it is slow
@KINDS
def test_whatever_lies_in_padding_changes_nothing_and_gets_no_gradient(kind):
    attention, queries, memory = case(kind)
    clean = memory.clone()
    for b, length in enumerate(LENGTHS):
        memory[length:, b] = torch.nan
        clean[length:, b] = 0.0
    results = []
    for m in (memory, clean):
        m.requires_grad_()
        attention.zero_grad()
        with torch.autograd.detect_anomaly(check_nan=True):  # no NaN in between either
            context, weights = attention(queries, m, lengths=LENGTHS)[:2]
            (context.square().sum() + weights.square().sum()).backward()
        results.append([context, weights, m.grad, *(p.grad for p in attention.parameters())])
    for with_nan, without in zip(*results):
        assert torch.isfinite(with_nan).all()
        assert torch.equal(with_nan, without)
    for b, length in enumerate(LENGTHS):
        assert not results[0][1][:, b, length:].any()
        assert not results[0][2][length:, b].any()
    assert not results[0][0][:, 2].any()  # a row without steps


@KINDS
def test_nan_in_a_step_of_a_row_makes_that_row_nan_and_no_other(kind):
    attention, queries, memory = case(kind)
    memory[2, 0, 0] = torch.nan
    context, weights = attention(queries, memory, lengths=LENGTHS)[:2]
    assert context[:, 0].isnan().any(-1).all()
    assert weights[:, 0, :3].isnan().all()
    assert context[:, 1:].isfinite().all()
    assert weights[:, 1:].isfinite().all()


@KINDS
def test_step_by_step_over_a_prepared_memory_it_gives_what_a_whole_call_gives(kind):
    attention, queries, memory = case(kind)
    whole = attention(queries, memory, lengths=LENGTHS)
    prepared, state, steps = attention.prepare(memory, LENGTHS), {}, []
    for query in queries:
        *found, last = attention(query, prepared, **state) if len(whole) == 3 else (*attention(query, prepared), None)
        state = {} if last is None else {"state": last}
        steps.append(found)
    for k, name in enumerate(("context", "weights")):
        # one query or several at once: torch may add up in another order
        torch.testing.assert_close(torch.stack([s[k] for s in steps]), whole[k], **CLOSE, msg=lambda m, n=name: n + m)
    if state:
        torch.testing.assert_close(state["state"], whole[2], **CLOSE)


@KINDS
def test_rows_of_a_prepared_memory_are_those_of_the_memory(kind):
    attention, queries, memory = case(kind)
    index = torch.tensor([1, 1, 3, 0, 2, 1])
    ours = attention(queries[:, index], attention.prepare(memory, LENGTHS).rows(index))
    expected = attention(queries[:, index], memory[:, index], lengths=LENGTHS[index])
    for one, other in zip(ours, expected):
        torch.testing.assert_close(one, other, **CLOSE)


@KINDS
def test_batch_first_swaps_rows_and_steps_everywhere(kind):
    attention, queries, memory = case(kind)
    other, *_ = case(kind, batch_first=True)  # the same seed, so the same parameters
    expected = attention(queries, memory, lengths=LENGTHS)
    given = other(queries.transpose(0, 1), memory.transpose(0, 1), lengths=LENGTHS)
    for ours, swapped in zip(expected[:2], given[:2]):
        assert torch.equal(ours.transpose(0, 1), swapped)
    if len(expected) == 3:
        assert torch.equal(expected[2], given[2])  # the state is [B, Tm] in both


def test_location_aware_attention_looks_elsewhere_after_another_state_and_not_at_its_padding():
    attention, queries, memory = case("location")
    state = torch.rand(4, 7)
    weights = attention(queries[0], memory, LENGTHS, state=state)[1]
    assert not torch.allclose(weights, attention(queries[0], memory, LENGTHS)[1])
    spoiled = state.masked_fill(torch.arange(7) >= LENGTHS[:, None], torch.nan)
    assert torch.equal(attention(queries[0], memory, LENGTHS, state=spoiled)[1], weights)


@torch.no_grad()
@pytest.mark.parametrize("batch_first", [False, True])
def test_pooling_is_a_literal_loop(batch_first):
    torch.manual_seed(0)
    pooling, memory = AttentionPooling(M, A, batch_first=batch_first), torch.randn(7, 4, M)
    memory[3:, 0] = torch.nan
    context, weights = pooling(memory.transpose(0, 1) if batch_first else memory, lengths=LENGTHS)
    for b, length in enumerate(LENGTHS.tolist()):
        scores = [math.exp(float(pooling.query.weight[0] @ torch.tanh(pooling.key.weight @ memory[s, b]
                                                                       + pooling.key.bias))) for s in range(length)]
        mean = sum((e / sum(scores) * memory[s, b] for s, e in enumerate(scores)), torch.zeros(M))
        torch.testing.assert_close(context[b], mean, **CLOSE)
        expected = torch.tensor([e / sum(scores) for e in scores])
        torch.testing.assert_close(weights[b, :length], expected, **CLOSE)
        assert not weights[b, length:].any()


def test_pooling_has_the_gradients_of_finite_differences():
    pooling = AttentionPooling(4, 3)
    memory = torch.randn(3, 3, 4, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, *_: pooling(m, torch.tensor([3, 0, 2])), [memory, *pooling.parameters()],
                                    fast_mode=True)


def test_additive_attention_holds_b_tq_tm_a_numbers_once_for_the_backward_pass():
    attention, queries, memory = case("additive")
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: held.append(t) or t, lambda t: t):
        attention(queries.requires_grad_(), memory)
    assert len({t.data_ptr() for t in held if t.numel() == 4 * 4 * 7 * A}) == 1


def test_it_runs_under_autocast_and_in_bfloat16():
    attention, queries, memory = case("general")
    expected = attention(queries, memory, LENGTHS)[0]
    with torch.autocast("cpu", torch.bfloat16):
        cast = attention.float()(queries.float(), memory.float(), LENGTHS)[0]
    low = attention.bfloat16()(queries.bfloat16(), memory.bfloat16(), LENGTHS)[0]
    for given in (cast, low):
        assert given.dtype == torch.bfloat16
        torch.testing.assert_close(given.double(), expected, rtol=0.1, atol=0.1)  # 8 bits, sums of 33


def refusals():
    attention, queries, memory = case("general")
    location = case("location")[0]
    lengths = [[1, 2, 3], [1, 2, 3, 8], [-1, 2, 3, 4]]
    return [
        (lambda: attention(queries[..., :5], memory), ValueError, r"must be \[Tq, B, Q\] or \[B, Q\] with Q = 6"),
        (lambda: attention(queries, memory[0]), ValueError, r"memory must be \[Tm, B, M\] with M = 33"),
        (lambda: attention(queries, memory[:0]), ValueError, "at least one row and step"),
        (lambda: attention(queries, memory.tolist()), TypeError, "list was given"),
        (lambda: attention(queries[:, :3], memory), ValueError, "queries have 3 rows, the memory has 4"),
        (lambda: attention(queries.float(), memory), ValueError, "queries has dtype torch.float32"),
        (lambda: attention(queries, attention.prepare(memory), LENGTHS), TypeError, r"prepare\(memory, lengths\)"),
        (lambda: attention(queries, memory, torch.tensor(lengths[0])), ValueError, "lengths must be 4 whole numbers"),
        (lambda: attention(queries, memory, torch.tensor(lengths[1])), ValueError, "they go from 1 to 8"),
        (lambda: attention(queries, memory, torch.tensor(lengths[2])), ValueError, "they go from -1 to 4"),
        (lambda: location(queries, memory, state=torch.zeros(7, 4)), ValueError, r"needed is \[B, Tm\] = \(4, 7\)"),
        (lambda: AdditiveAttention(Q, M, 0), ValueError, "attention_size must be a whole number of at least 1; 0"),
        (lambda: MultiplicativeAttention(Q, M, "concat"), ValueError, "'dot', 'general'; 'concat' was given"),
        (lambda: MultiplicativeAttention(Q, M, "dot"), ValueError, "score='general' takes any"),
        (lambda: LocationAwareAttention(Q, M, A, kernel_size=4), ValueError, "must be odd"),
        (lambda: MultiHeadAttention(Q, M, 4), ValueError, "num_heads must divide query_size; 4 and 6"),
    ]


@pytest.mark.parametrize("k", range(16))
def test_what_does_not_fit_is_refused_with_what_is_needed(k):
    call, error, message = refusals()[k]
    with pytest.raises(error, match=message):
        call()
