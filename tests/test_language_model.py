"""The language-model recipe: its figures, its settings, its state, what it writes, and what it makes of other cells."""

import json
import math
from collections import Counter
from dataclasses import replace

import data_language_model
import pytest
import torch
from language_models import REFERENCE, TINY, Settings, text_of, train
from torch.nn import functional

from gatework.recipes import RecipeError, language_model, model_folder, run, vocabulary
from gatework.recipes.language_model import LanguageModel
from gatework.recipes.run import evaluate, load


def test_a_model_trained_small_on_tiny_shakespeare_needs_fewer_bits_than_unigram_and_bigram(tmp_path):
    text = data_language_model.write_tiny_shakespeare(tmp_path, 60_000)
    train(text, Settings(hidden=48, embedding=16, epochs=3, batch_size=16, seq_len=32, learning_rate=0.02),
          tmp_path / "m")
    figures = model_folder.describe(tmp_path / "m").figures
    bits = {method: row["bits_per_character"] for method, row in figures.items()}
    assert bits["this model"] < bits["bigram"] < bits["unigram"] < math.log2(65)
    assert figures["this model"]["perplexity"] == pytest.approx(2 ** bits["this model"], rel=1e-6)  # float32


def test_a_model_trained_small_on_words_of_the_penn_treebank_has_a_lower_perplexity_than_unigram_and_bigram(tmp_path):
    data_language_model.write_ptb(tmp_path, lines=600)
    settings = Settings(tokens="spaces", hidden=32, embedding=32, tied=True, epochs=3, batch_size=8, seq_len=20,
                        learning_rate=0.01, min_count=2, dropout=0.2)
    model = train(tmp_path, settings, tmp_path / "m")
    figures = model_folder.describe(tmp_path / "m").figures
    assert figures["this model"]["perplexity"] < figures["unigram"]["perplexity"] < figures["bigram"]["perplexity"]
    counts = Counter((tmp_path / "train.txt").read_text().replace("\n", " \n ").split(" "))
    held_out = [w for w in (tmp_path / "valid.txt").read_text().replace("\n", " \n ").split(" ") if w]
    unknown = sum(word == "<unk>" or counts[word] < 2 for word in held_out) / len(held_out)
    assert figures["this model"]["unknown"] == pytest.approx(unknown) != 0
    assert load(tmp_path / "m").generate("the company", 30, 1.0) == model.generate("the company", 30, 1.0)


def test_the_state_is_carried_so_that_bits_of_many_steps_equal_one_long_sequence(trained, float64):
    model = load(trained[0]).double()
    text = text_of(REFERENCE[30000:31500])  # one stream, six steps
    ids = torch.tensor(model.tokens.encode(text))
    with torch.no_grad():
        logits, _ = model(ids[:-1, None])
    whole = functional.cross_entropy(logits[:, 0], ids[1:]).item()
    # 12 digits: sums of 1499 doubles in another order
    assert model.figures(text)["bits_per_character"] == pytest.approx(whole / math.log(2), rel=1e-12)


def test_bits_per_character_of_pieces_are_those_of_all_pieces_over_the_characters(tmp_path, text):
    model = train(text, replace(TINY, tokens="bpe", vocabulary=300, batch_size=2, seq_len=20), tmp_path / "m")
    figures, ids = model.figures(text_of(REFERENCE[:600])), model.tokens.encode([*text_of(REFERENCE[:600])])
    assert 100 < len(ids) < 600
    assert figures["bits_per_character"] == pytest.approx(math.log2(figures["perplexity"]) * len(ids) / 600, rel=1e-6)


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
    ids = torch.tensor(model.tokens.encode(["The quick"]))[:, None]
    assert torch.equal(load(tmp_path / "m")(ids)[0], model(ids)[0])
    assert str(tmp_path) not in (tmp_path / "m" / "model.json").read_text()


def test_a_projected_cell_trains_and_says_that_it_needs_a_projection(text, tmp_path):
    with pytest.raises(RecipeError, match="--projection"):
        train(text, replace(TINY, cell="projected_lstm"), tmp_path / "m")
    train(text, replace(TINY, cell="projected_lstm", projection=3), tmp_path / "m")
    assert load(tmp_path / "m").decoder.in_features == 3


def new(text, **options):
    settings = replace(TINY, **options)
    return run.new_model(LanguageModel, text_of(text), settings)


def test_a_cell_with_two_inputs_is_refused():
    with pytest.raises(RecipeError, match="language-model feeds one"):
        new(REFERENCE[:600], cell="ea_lstm")


def test_tied_weights_are_one_parameter_that_both_ends_learn_through():
    model, batches = new(REFERENCE[:600], tied=True, hidden=4)
    assert [k for k in model.state_dict() if "decoder" in k or "narrow" in k] == ["decoder.bias"]
    _, inputs, targets = next(iter(batches))
    output = model.eval().recurrent(model.embedding(inputs))[0]
    expected = output @ model.embedding.weight.T + model.decoder.bias
    torch.testing.assert_close(model(inputs)[0], expected, rtol=1e-5, atol=1e-6)  # float32
    assert new(REFERENCE[:600], tied=True)[0].narrow.weight.shape == (4, 8)


def test_embedding_dropout_drops_a_token_wherever_it_stands_and_keeps_the_mean():
    model, _ = new(REFERENCE[:600], embedding_dropout=0.5, dropout=0.0, layers=1)
    seen = []
    model.recurrent.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
    ids = torch.arange(20).repeat(3, 1).T.contiguous()
    model(ids)
    model.eval()(ids)
    dropped, whole = seen
    ratio = (dropped / whole)[:, :, 0]
    assert {*ratio.round(decimals=3).unique().tolist()} == {0.0, 2.0}
    assert torch.equal(ratio[:, 0], ratio[:, 1])


def test_the_step_size_of_sgd_is_that_of_zaremba_et_al():
    model, _ = new(REFERENCE[:600], optimizer="sgd", learning_rate=1.0)
    [optimizer], [schedule] = model.configure_optimizers()
    rates = []
    for _ in range(7):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.25, 0.125]


@pytest.mark.parametrize("options", [
    dict(optimizer="sgd", learning_rate=5.0, clip=0.25), dict(variational_dropout=0.2, weight_dropout=0.3),
    dict(precision="bf16-mixed"), dict(precision="64-true"), dict(tokens="words", batch_size=2, seq_len=20)], ids=str)
def test_every_way_of_training_lowers_the_loss(options, text, tmp_path):
    settings = replace(TINY, cell="lstm", dropout=0.0, epochs=15, learning_rate=0.02)
    train(text, replace(settings, **options), tmp_path / "m")
    losses = [float(line.split(",")[3]) for line in (tmp_path / "m" / "history.csv").read_text().splitlines()[1:]]
    assert losses[-1] < 0.9 * losses[0]
    assert load(tmp_path / "m").generate("The ", 5)


def test_a_generated_text_at_temperature_0_has_the_likeliest_character_of_the_whole_prefix(trained):
    model = load(trained[0])
    found = "The "
    for _ in range(12):
        logits, _ = model(torch.tensor(model.tokens.encode([found]))[:, None])
        logits[-1, 0, :4] = -math.inf
        found += model.tokens.decode([int(logits[-1, 0].argmax())])
    assert model.generate("The ", 12, 0.0) == found


def test_a_generated_text_follows_from_its_seed_and_never_has_the_unknown_character(trained):
    model = load(trained[0])
    with torch.no_grad():
        model.decoder.bias[:4] = 100.0
    first, again, other = (model.generate("T", 80, 1.5, seed) for seed in (0, 0, 1))
    assert first == again != other
    assert len(first) == 81
    assert set(first[1:]) <= set(REFERENCE[:27000])


@pytest.mark.parametrize(("prompt", "said"), [("the cat", "the cat the\nthe"), ("the\n", "the\nthe\nthe")])
def test_words_are_written_with_spaces_between_them_and_lines_end(prompt, said, monkeypatch):
    model, _ = new("the cat\nsat the\n" * 50, tokens="words", batch_size=1, seq_len=5)
    numbers = {"the": model.tokens.encode(["the"])[0], "end": vocabulary.END}
    turns = iter(["the", "end", "the"])

    def forward(ids, state):
        logits = torch.zeros(len(ids), 1, model.tokens.size)
        logits[-1, 0, numbers[next(turns)]] = 1.0
        return logits, state

    monkeypatch.setattr(model, "forward", forward)
    assert model.generate(prompt, 3, 0.0) == said


@pytest.mark.parametrize(("prompt", "length", "temperature", "said"), [
    ("a", 0, 1.0, "--length must be .* at least 1; 0 was"), ("a", 5, -0.1, "--temperature must be .* 0; -0.1 was"),
    ("a", 5, math.nan, "--temperature .* nan was"), ("a\né, ü, é", 5, 1.0, "did not learn 'é', 'ü', .*of --prompt$")])
def test_a_text_that_cannot_be_generated_is_refused(prompt, length, temperature, said, trained):
    with pytest.raises(RecipeError, match=said):
        load(trained[0]).generate(prompt, length, temperature)


def test_among_words_an_unknown_one_is_refused_unless_it_is_written_as_unknown():
    model, _ = new("the cat\nsat the\n" * 50, tokens="spaces", batch_size=1, seq_len=5)
    with pytest.raises(RecipeError, match="did not learn 'dog', .*, or write <unk> for it"):
        model.generate("the dog", 1)
    assert model.generate("the <unk>", 1).startswith("the <unk>")


@pytest.mark.parametrize("tokens", ["characters", "spaces"])
def test_a_blank_prompt_begins_a_line(tokens):
    model, _ = new("the cat\nsat the\n" * 50, tokens=tokens, batch_size=1, seq_len=5)
    assert "\n" + model.generate("", 9) == model.generate("\n", 9)


def test_a_prompt_of_several_lines_is_read_with_their_ends(monkeypatch):
    model, _ = new("the cat\nsat the\n" * 50, tokens="words", batch_size=1, seq_len=5)
    read = []

    def forward(ids, state):
        read.append(ids[:, 0].tolist())
        return torch.zeros(len(ids), 1, model.tokens.size), state

    monkeypatch.setattr(model, "forward", forward)
    model.generate("cat\nthe cat", 1)
    [cat], [the] = (model.tokens.encode([word]) for word in ("cat", "the"))
    assert read == [[cat, vocabulary.END, the, cat]]


def test_a_line_is_given_the_perplexity_of_its_characters_and_end_after_the_end_of_another(trained, tmp_path):
    lines = ["The value of x", "", "qqqq"]
    (tmp_path / "lines.txt").write_text("\n".join(lines))
    model, found = load(trained[0]), list(run.predict(trained[0], [tmp_path / "lines.txt"]))
    for line, row in zip(lines, found, strict=True):
        ids = torch.tensor(model.tokens.encode(["\n", line + "\n"]))
        with torch.no_grad():
            expected = functional.cross_entropy(model(ids[:-1, None])[0][:, 0], ids[1:]).exp().item()
        assert row["perplexity"] == pytest.approx(expected, rel=1e-4)  # float32, summed side by side with other lines
        assert row["tokens"] == len(line) + 1
        assert row["unknown"] == 0
    assert found[0]["perplexity"] < found[2]["perplexity"]


def test_evaluating_tells_the_share_of_unknown_characters(trained, tmp_path):
    (tmp_path / "greek.txt").write_text("The αβγ", encoding="utf-8")
    assert evaluate(trained[0], tmp_path / "greek.txt")["unknown"] == pytest.approx(3 / 7)
    assert next(run.predict(trained[0], [tmp_path / "greek.txt"]))["unknown"] == 3
    (tmp_path / "one.txt").write_text("T")
    with pytest.raises(RecipeError, match="has 1 characters; there is nothing to predict in fewer than two"):
        evaluate(trained[0], tmp_path / "one.txt")


@pytest.mark.parametrize(("content", "said"), [
    (None, "there is no .*t.txt"), (b"", "is empty"), (b"caf\xe9 au lait" * 99, "offset 3 .0xe9., in line 1, does not"),
    (b"a" * 133, "has 120 characters; 4 streams of 30 need 121. Lower --batch-size or --seq-len"),
    (b"a" * 2, "has 2 characters; 4 streams")])
def test_a_text_that_cannot_be_used_is_refused_before_anything_is_written(content, said, tmp_path):
    if content is not None:
        (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        train(tmp_path / "t.txt", TINY, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_shortest_text_that_the_error_names_is_enough(tmp_path):
    (tmp_path / "t.txt").write_text(REFERENCE[:134], encoding="utf-8")
    assert len(REFERENCE[:134]) - 134 // 10 == 121
    train(tmp_path / "t.txt", TINY, tmp_path / "m")


@pytest.mark.parametrize("change", [
    dict(hidden=0), dict(layers=-1), dict(embedding=2**31), dict(epochs=True), dict(dropout=1.0), dict(dropout="x"),
    dict(learning_rate=0.0), dict(learning_rate=math.inf), dict(seq_len=1.5), dict(cell=3), dict(tokens="letters"),
    dict(optimizer="adam"), dict(decay=0.0), dict(weight_dropout=1.0), dict(tied=1)], ids=str)
def test_a_setting_out_of_range_is_refused_by_the_name_of_its_option(change):
    with pytest.raises(RecipeError, match="^--" + next(iter(change)).replace("_", "-")):
        replace(TINY, **change)


def test_n_grams_are_not_counted_in_texts_whose_counts_would_not_fit(monkeypatch):
    texts = text_of(REFERENCE[:3000]), text_of(REFERENCE[3000:3400])
    assert list(LanguageModel.baselines(*texts, TINY)) == ["unigram", "bigram", "5-gram (Kneser-Ney)"]
    monkeypatch.setattr(language_model, "COUNTED", 2999)
    assert list(LanguageModel.baselines(*texts, TINY)) == ["unigram"]


def test_the_picture_has_each_character_at_its_place_with_its_bits(trained):
    model, text = load(trained[0]), text_of("The cat\n\nsat on" + " x" * 46 + "\n")
    axes, _ = model.picture(text).axes
    written = {tuple(map(int, t.get_position())): t.get_text() for t in axes.texts}
    assert "".join(written.get((k, 0), " ") for k in range(6)) == "he cat"
    assert "".join(written.get((k, 2), " ") for k in range(96)) == "sat on" + " x" * 45
    assert written[0, 3] == "x"  # not the space before it
    bits = axes.images[0].get_array()
    assert bits.shape == (4, 96)
    ids = torch.tensor(model.tokens.encode(["The"]))
    expected = model(ids[:-1, None])[0][:, 0].log_softmax(1)[range(2), ids[1:]].neg() / math.log(2)
    assert bits[0, :2].tolist() == pytest.approx(expected.tolist(), rel=1e-5)  # float32
    assert bits.mask[1].all()


def test_facts_are_the_tokenizer_and_nothing_else(trained):
    facts = json.loads((trained[0] / "model.json").read_text())["facts"]
    assert [*facts] == ["tokenizer"]


def test_tokens_begin_small_where_a_softmax_shares_them_or_as_zaremba_et_al_and_else_with_a_variance_of_1():
    spread = {name: new(REFERENCE[:3000], embedding=256, **options)[0].embedding.weight.std().item()
              for name, options in [("tied", dict(tied=True)), ("sgd", dict(optimizer="sgd")), ("adamw", {})]}
    uniform = 0.1 / math.sqrt(3)
    # of more than 10000 draws the standard deviation is known to 1 %
    assert spread == pytest.approx({"tied": uniform, "sgd": uniform, "adamw": 1.0}, rel=0.05)
