"""The language-model recipe: its data, its numbers, its settings, and what it makes of other cells."""

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from language_models import REFERENCE, TINY
from torch.nn import functional

from gatework.recipes import RecipeError, language_model
from gatework.recipes.language_model import Chunks, baselines, count_pairs, encode, evaluate, load, sample, train


def test_a_trained_model_needs_fewer_bits_than_unigram_and_bigram_on_text_it_has_not_seen(trained):
    model = load(trained[0])
    held_out = encode(REFERENCE[27000:30000], model.vocabulary)
    bits = language_model.evaluate_ids(model, held_out)
    assert bits["this model"] < bits["bigram"] < bits["unigram"] < math.log2(len(model.vocabulary) + 1)


@pytest.mark.parametrize(("length", "streams", "steps"), [(6, 1, 5), (97, 4, 7), (10, 9, 3), (5, 4, 3), (2, 3, 1)],
                         ids=["N6-B1-T5", "N97-B4-T7", "N10-B9-T3", "N5-B4-T3", "N2-B3-T1"])
def test_every_character_but_the_first_is_a_target_once_and_follows_its_input(length, streams, steps):
    targets, stream_text = [], {}
    for _, x, y in Chunks(torch.arange(length), streams, steps):
        assert x.shape == y.shape == (min(len(x), steps), streams)
        kept = y != language_model.PADDING
        assert torch.equal(y[kept], x[kept] + 1)
        targets += y[kept].tolist()
        for stream in range(streams):
            stream_text.setdefault(stream, []).extend(x[:, stream][kept[:, stream]].tolist())
    assert sorted(targets) == list(range(1, length))
    assert [c for stream in range(streams) for c in stream_text[stream]] == list(range(length - 1))


def test_unigram_and_bigram_bits_equal_counting_by_hand():
    fitted, other, vocabulary = "abracadabra", "cabbage", "abcdr"
    ids, size = encode(fitted, vocabulary), len(vocabulary) + 1
    found = baselines(*count_pairs(ids, size), size, encode(other, vocabulary))
    known = [c if c in vocabulary else "?" for c in other]
    ones, twos = Counter(fitted[1:]), Counter(zip(fitted, fitted[1:]))
    unigram = [-math.log2((ones[c] + 1) / (10 + 6)) for c in known[1:]]
    bigram = [-math.log2((twos[a, b] + 1) / (sum(twos[a, c] for c in vocabulary) + 6))
              for a, b in zip(known, known[1:])]
    # 12 digits: the same few double-precision operations in another order
    assert found["unigram"] == pytest.approx(sum(unigram) / 6, rel=1e-12)
    assert found["bigram"] == pytest.approx(sum(bigram) / 6, rel=1e-12)


def test_the_state_is_carried_so_that_bits_of_many_steps_equal_one_long_sequence(trained, float64):
    model = load(trained[0]).double()
    ids = encode(REFERENCE[30000:31500], model.vocabulary)  # one stream, six steps
    with torch.no_grad():
        logits, _ = model(ids[:-1, None])
    whole = functional.cross_entropy(logits[:, 0], ids[1:]).item() / math.log(2)
    # Lightning adds the steps up in float32
    assert language_model.evaluate_ids(model, ids)["this model"] == pytest.approx(whole, rel=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(text, tmp_path):
    first, again = (train(text, TINY, tmp_path / name).decoder.weight for name in "ab")
    other = train(text, replace(TINY, seed=1), tmp_path / "c").decoder.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_cell_of_ones_own_trains_and_its_model_loads_without_its_file(text, tmp_path):
    file = tmp_path / "own.py"
    file.write_text("from gatework.compiler import Bias, Input, Matrix, State, sigmoid, tanh\n"
                    "def leaky(x: Input, h: State, W: Matrix, U: Matrix, b: Bias):\n"
                    "    a = sigmoid(W.a @ x + U.a @ h + b.a)\n"
                    "    return dict(h=a * h + (1.0 - a) * tanh(W.n @ x + b.n))\n")
    model = train(text, replace(TINY, cell=f"{file}:leaky"), tmp_path / "m").eval()
    file.unlink()
    ids = encode("The quick", model.vocabulary)[:, None]
    assert torch.equal(load(tmp_path / "m")(ids)[0], model(ids)[0])
    assert str(tmp_path) not in (tmp_path / "m" / "model.json").read_text()


def test_a_projected_cell_trains_and_says_that_it_needs_a_projection(text, tmp_path):
    with pytest.raises(RecipeError, match="--projection"):
        train(text, replace(TINY, cell="projected_lstm"), tmp_path / "m")
    train(text, replace(TINY, cell="projected_lstm", projection=3), tmp_path / "m")
    assert load(tmp_path / "m").decoder.in_features == 3


def test_a_sample_at_temperature_0_equals_the_likeliest_character_of_the_whole_prefix(trained):
    model = load(trained[0])
    found = "The "
    for _ in range(12):
        logits, _ = model(encode(found, model.vocabulary)[:, None])
        found += model.vocabulary[logits[-1, 0, 1:].argmax()]
    assert sample(model, "The ", 12, 0.0, seed=0) == found


def test_a_sample_follows_from_its_seed_and_never_has_the_unknown_character(trained):
    model = load(trained[0])
    with torch.no_grad():
        model.decoder.bias[language_model.UNKNOWN] = 100.0
    first, again, other = (sample(model, "é", 80, 1.5, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 81
    assert set(first[1:]) <= set(model.vocabulary)


@pytest.mark.parametrize(("prompt", "length", "temperature"), [
    ("", 5, 1.0), ("a", 0, 1.0), ("a", 5, -0.1), ("a", 5, math.nan)])
def test_a_sample_that_cannot_be_drawn_is_refused(prompt, length, temperature, trained):
    with pytest.raises(RecipeError, match="at least one character"):
        sample(load(trained[0]), prompt, length, temperature, seed=0)


def test_evaluating_counts_unknown_characters_and_says_so(trained, tmp_path, capsys):
    (tmp_path / "greek.txt").write_text("The αβγ", encoding="utf-8")
    assert set(evaluate(trained[0], tmp_path / "greek.txt")) == {"unigram", "bigram", "this model"}
    assert "7 characters, 3 of them not in the training text" in capsys.readouterr().out


@pytest.mark.parametrize(("content", "said"), [
    (None, "there is no text file"), (b"", "is empty"), (b"caf\xe9 au lait" * 99, "offset 3 .0xe9. does not fit"),
    (b"a" * 134, "has 134 characters; a batch of 4 streams with 30 .* at least 135. Lower --batch-size or --seq-len")])
def test_a_text_that_cannot_be_used_is_refused_before_anything_is_written(content, said, tmp_path):
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        train(tmp_path / "t.txt", TINY, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_shortest_text_that_the_error_names_is_enough(tmp_path):
    (tmp_path / "t.txt").write_text(REFERENCE[:135], encoding="utf-8")
    train(tmp_path / "t.txt", TINY, tmp_path / "m")


@pytest.mark.parametrize("change", [
    dict(hidden=0), dict(layers=-1), dict(embedding=2**31), dict(epochs=True), dict(dropout=1.0), dict(dropout="x"),
    dict(learning_rate=0.0), dict(learning_rate=math.inf), dict(seq_len=1.5), dict(cell=3)], ids=str)
def test_a_setting_out_of_range_is_refused_by_the_name_of_its_option(change):
    with pytest.raises(RecipeError, match="^--" + next(iter(change)).replace("_", "-")):
        replace(TINY, **change)
