"""The recipe caption: reads strings of handwritten digits better than equal slices do, and looks where they are."""

import nltk
import numpy as np
import polars as pl
import pytest
import torch
from data_caption import string_of, write_digits
from PIL import Image

from gatework.recipes import RecipeError
from gatework.recipes.baselines.caption import equal_slices, nearest_picture
from gatework.recipes.caption import Caption, Settings, scores
from gatework.recipes.pictures import columns_of
from gatework.recipes.run import evaluate, figures_of, load, new_model, train
from gatework.recipes.vocabulary import BEGIN, END, PADDING, UNKNOWN

SMALL = Settings(hidden=48, height=16, epochs=5, batch_size=16, learning_rate=0.005, dropout=0.0)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 1000 strings of one or two digits, and the folder of its data."""
    folder = write_digits(tmp_path_factory.mktemp("digits"), 1000, 150, 100, longest=2)
    train(Caption, folder, SMALL, folder / "model")
    return folder / "model", folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A table of pictures of noise, of all widths, with texts."""
    folder, random = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    rows = []
    for k, (width, text) in enumerate([(40, "ab"), (7, "b"), (93, "abcab"), (1, "c")]):
        Image.fromarray(random.integers(0, 256, (16, width), np.uint8)).save(folder / f"{k}.png")
        rows.append((str(folder / f"{k}.png"), text))
    return pl.DataFrame(rows, schema=["image", "text"], orient="row")


def model_of(table, **settings):
    torch.manual_seed(0)
    return new_model(Caption, table, Settings(hidden=10, height=16, embedding=5, **settings))[0].eval()


def batch_of(model, table):
    return model.collate([model.encode(row) for row in table.iter_rows(named=True)])


def test_a_small_model_of_handwritten_digits_beats_equal_slices(trained):
    figures = figures_of(trained[0])
    # 0.69 and 0.50 when this was written
    assert figures["this model"]["accuracy"] > figures["equal slices"]["accuracy"] + 0.1
    assert figures["equal slices"]["accuracy"] > figures["majority"]["accuracy"] + 0.1


def test_a_model_read_back_answers_as_before_for_a_table_and_for_a_picture(trained):
    model, folder = trained
    test = Caption.read_part(folder / "test" / "metadata.csv", SMALL)
    first, second = (list(load(model).predict(test[:20])) for _ in range(2))
    assert first == second
    assert evaluate(model, folder / "test" / "metadata.csv")["accuracy"] == pytest.approx(
        np.mean([a["text"] == b for a, b in zip(load(model).predict(test), test["text"])]))
    picture = Caption.read_inputs(folder / "test" / "00007.png", SMALL)
    # alone, where products have other shapes
    assert next(load(model).predict(picture))["score"] == pytest.approx(first[7]["score"], abs=1e-5)


def test_it_looks_at_the_second_digit_to_the_right_of_the_first(trained):
    model, folder = trained
    rows = [row for row in load(model).predict(Caption.read_part(folder / "test" / "metadata.csv", SMALL))
            if len(row["text"]) == 2]
    middles = []
    for row in rows:
        weights = torch.tensor(row["looked"])  # [tokens, rows, columns]
        torch.testing.assert_close(weights.sum((1, 2)), torch.ones(2))
        middles.append((weights.sum(1) * torch.arange(weights.shape[2])).sum(1) / weights.shape[2])
    left, right = torch.stack(middles).unbind(1)
    assert len(rows) > 20
    assert (left < right).float().mean() > 0.9


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman", "min_gru"])
def test_a_picture_is_read_the_same_alone_and_beside_wider_ones(pictures, cell):
    model = model_of(pictures, cell=cell, layers=2)
    pixels, widths, before, _ = batch_of(model, pictures)
    together, _ = model(model.look(pixels, widths), before)
    for k in range(len(pictures)):
        pixels, widths, before, _ = batch_of(model, pictures[k:k + 1])
        alone, _ = model(model.look(pixels, widths), before)
        # float32, products of other shapes
        torch.testing.assert_close(alone[:, 0], together[:len(alone), k], rtol=0, atol=2e-6)


def test_the_loss_is_the_negative_logarithm_of_the_probability_of_the_texts_and_their_ends(pictures):
    model = model_of(pictures)
    total, count = model.loss(batch_of(model, pictures))
    expected = 0.0
    for k, text in enumerate(pictures["text"]):
        pixels, widths, _, _ = batch_of(model, pictures[k:k + 1])
        ids = model.tokenizer.encode(text).ids
        for n, following in enumerate([*ids, END]):
            logits, _ = model(model.look(pixels, widths), torch.tensor([[BEGIN, *ids[:n]]]).T)
            expected -= logits[-1, 0].log_softmax(0)[following].item()
    assert count == sum(len(text) + 1 for text in pictures["text"])
    assert total.item() == pytest.approx(expected, rel=1e-5)  # float32


def test_what_is_written_with_a_beam_of_one_is_the_likeliest_token_each_time(pictures):
    model = model_of(pictures, beam=1)
    longest = 2 * (5 + 1)  # of the longest text and its end
    for k, row in enumerate(model.predict(pictures)):
        pixels, widths, _, _ = batch_of(model, pictures[k:k + 1])
        ids, chance = [BEGIN], 0.0
        while len(ids) <= longest and ids[-1] != END:
            chances = model(model.look(pixels, widths), torch.tensor([ids]).T)[0][-1, 0].log_softmax(0)
            chances[[PADDING, UNKNOWN, BEGIN]] = -torch.inf
            ids.append(int(chances.argmax()))
            chance += chances.max().item()
        assert row["ended"] == (ids[-1] == END)
        assert row["tokens"] == [model.tokenizer.id_to_token(i) for i in ids[1:] if i != END]
        assert row["score"] == pytest.approx(chance / (len(ids) - 1), rel=1e-4)
        columns = (10, 2, 24, 1)[k]  # of widths 40, 7, 93 and 1
        _, weights = model(model.look(pixels, widths), torch.tensor([ids[:-1]]).T)
        expected = [[[w[c * 2 + r].item() for c in range(columns)] for r in range(2)] for w in weights[:, 0]]
        np.testing.assert_allclose(row["looked"], expected[:len(row["tokens"])], atol=1e-5)  # float32


def test_a_model_works_in_float64_and_learns_under_autocast(pictures):
    model = model_of(pictures)
    batch = batch_of(model, pictures)
    single, _ = model.loss(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = model.loss(batch)
    half.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    assert half.item() == pytest.approx(single.item(), rel=2e-2)  # bfloat16 has 8 bits
    double, _ = model.double().loss(batch)
    assert double.dtype == torch.float64
    assert double.item() == pytest.approx(single.item(), rel=1e-5)


def test_colours_and_words_are_read_and_written(tmp_path):
    rows = []
    for k, color in enumerate(["red", "blue"] * 4):
        Image.new("RGB", (16 + k, 16), color).save(tmp_path / f"{k}.png")
        rows.append((str(tmp_path / f"{k}.png"), f"a {color} wall"))
    table = pl.DataFrame(rows, schema=["image", "text"], orient="row")
    # Grey, red (76) and blue (29) would differ too; these are the same in grey and can only be told by colour.
    Image.new("RGB", (16, 16), (76, 76, 76)).save(tmp_path / "grey.png")
    grey, red = (columns_of(tmp_path / name, 16, False) for name in ("grey.png", "0.png"))
    assert torch.equal(grey, red)
    model = model_of(table, color=True, tokens="spaces", dropout=0.0).train()
    optimizer, batch = torch.optim.Adam(model.parameters(), 0.01), batch_of(model, table)
    for _ in range(40):
        optimizer.zero_grad()
        model.loss(batch)[0].backward()
        optimizer.step()
    assert model.figures(table) == {"accuracy": 1.0, "error_rate": 0.0}


def test_scores_are_those_of_a_distance_of_edits():
    said, truth = ["123", "12", "", "99"], ["123", "21", "7", "9"]
    found = scores(said, truth)
    assert found["accuracy"] == 0.25
    assert found["error_rate"] == pytest.approx(sum(map(nltk.edit_distance, said, truth)) / 7)


def test_baselines_read_what_they_can():
    bars = {k: np.uint8(255) * drawn for k, drawn in (("0", np.zeros((16, 12), np.uint8)),
                                                      ("1", np.ones((16, 12), np.uint8)),
                                                      ("2", np.eye(16, 12, dtype=np.uint8)))}
    texts = [a + b * n for a in bars for b in bars for n in range(3) if a != b]
    drawn = [np.concatenate([bars[c] for c in text], 1) for text in texts]
    assert equal_slices(drawn, texts, drawn) == texts
    assert nearest_picture(drawn, texts, drawn[::-1]) == texts[::-1]


@pytest.mark.parametrize("color", [False, True])
def test_pixels_are_those_of_the_picture_column_by_column(tmp_path, color):
    random = np.random.default_rng(1)
    pixels = random.integers(0, 256, (24, 9, 3), np.uint8)
    Image.fromarray(pixels if color else pixels[..., 0]).save(tmp_path / "a.png")
    expected = pixels if color else pixels[..., :1]
    np.testing.assert_array_equal(columns_of(tmp_path / "a.png", 24, color).numpy(), expected.transpose(1, 2, 0))
    assert columns_of(tmp_path / "a.png", 48, color).shape == (18, 3 if color else 1, 48)
    Image.new("L", (1, 50)).save(tmp_path / "thin.png")
    assert columns_of(tmp_path / "thin.png", 8, color).shape == (1, 3 if color else 1, 8)


def test_what_is_transparent_is_white(tmp_path):
    Image.new("RGBA", (3, 8), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert (columns_of(tmp_path / "a.png", 8, False) == 255).all()


def test_what_is_no_picture_and_what_cannot_be_used_is_refused(tmp_path, pictures):
    (tmp_path / "a.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(RecipeError, match="a.png is no picture that can be read"):
        columns_of(tmp_path / "a.png", 8, False)
    Image.fromarray(np.full((8, 8), 40000, np.uint16)).save(tmp_path / "b.png")
    with pytest.raises(RecipeError, match="more than 8 bits per pixel"):
        columns_of(tmp_path / "b.png", 8, False)
    with pytest.raises(RecipeError, match="--height must be a multiple of 8; 20 was given"):
        Settings(height=20)
    with pytest.raises(RecipeError, match="caption feeds one"):
        model_of(pictures, cell="ea_lstm")


def test_strings_of_digits_hold_their_digits_in_order():
    digits = np.stack([np.full((28, 28), value, np.uint8) for value in (50, 100, 150)])
    for seed in range(20):
        picture = string_of(digits, np.random.default_rng(seed))
        first = [int(np.flatnonzero((picture == value).any(0))[0]) for value in (50, 100, 150)]
        assert picture.shape[0] == 32
        assert first == sorted(first)


def test_the_picture_has_a_panel_for_the_image_and_one_for_each_token(pictures):
    assert len(model_of(pictures, color=True).picture(pictures[:2]).axes) % 2 == 0
