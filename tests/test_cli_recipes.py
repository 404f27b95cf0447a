"""The commands that train and use recipes, on a small table of texts: options, files, standard input, JSON."""

import csv
import io
import json
import re
import sys
import tomllib

import pytest

from gatework import cli
from gatework.recipes import RECIPES
from gatework.recipes.find import find_recipe

SMALL = ["--hidden", "4", "--embedding", "4", "--cell", "elman", "--epochs", "2"]
COMMANDS = "\n".join(f"{['good', 'bad'][k % 2]} film number {k},{['positive', 'negative'][k % 2]}" for k in range(60))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_text("text,label\n" + COMMANDS + "\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def gatework(monkeypatch, capsys):
    """What a command prints; it must end well."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gatework", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert not stopped.value.code, (stopped.value.code, out, err)
        return out
    return run


@pytest.fixture
def refused(monkeypatch, capsys):
    """What a command says that must fail, without a traceback."""
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["gatework", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        assert stopped.value.code
        assert "Traceback" not in out + err
        return out + err + str(stopped.value.code)
    return run


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_help_of_a_recipe_names_every_setting(recipe, gatework):
    out = " ".join(gatework("train", recipe, "--help").replace("│", " ").split())
    for name in find_recipe(recipe).Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in out, name
    assert all(option in out for option in ("--config", "--resume", "--find-learning-rate", "--tensorboard", "--json"))


def test_settings_come_from_a_file_and_typed_ones_win(gatework, here):
    (here / "c.toml").write_text('hidden = 3\nepochs = 1\ncell = "elman"\nembedding = 2\n[columns]\ntext = "text"\n')
    gatework("train", "classify-text", "reviews.csv", "--config", "c.toml", "--embedding", "5", "--out", "m")
    saved = tomllib.loads((here / "m" / "settings.toml").read_text())
    assert {k: saved[k] for k in ("hidden", "epochs", "cell", "embedding", "dropout")} == dict(
        hidden=3, epochs=1, cell="elman", embedding=5, dropout=0.5)
    assert saved["columns"] == {"text": "text"}
    gatework("train", "classify-text", "reviews.csv", "--config", "m/settings.toml", "--out", "again")
    assert (here / "again" / "model.safetensors").read_bytes() == (here / "m" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("content", "said"), [("hiden = 3\n", "hiden"), ("hidden = 0\n", "at least 1"),
                                               ("hidden = 1.5\n", "must be a whole number; 1.5"),
                                               ("hidden 3", "c.toml|TOML")])
def test_a_file_of_settings_that_cannot_be_used_is_refused(content, said, refused, here):
    (here / "c.toml").write_text(content)
    assert re.search(said, refused("train", "classify-text", "reviews.csv", "--config", "c.toml"))
    assert "none.toml" in refused("train", "classify-text", "reviews.csv", "--config", "none.toml")


def test_train_predict_evaluate_and_describe_print_json_and_nothing_else(gatework, here, monkeypatch):
    trained = json.loads(gatework("train", "classify-text", "reviews.csv", *SMALL, "--json"))
    assert trained["model"] == "reviews-classify-text"
    assert set(trained["figures"]) == {"this model", "bag of words", "majority"}
    (here / "new.txt").write_text("good film\nbad film\n")
    of_file = [json.loads(line) for line in gatework("predict", trained["model"], "new.txt", "--json").splitlines()]
    monkeypatch.setattr(sys, "stdin", io.StringIO("good film\r\nbad film"))
    of_lines = [json.loads(line) for line in gatework("predict", trained["model"], "--json").splitlines()]
    assert [row["label"] for row in of_file] == [row["label"] for row in of_lines]
    assert list(of_file[0]) == ["label", "probabilities"]
    assert gatework("predict", trained["model"], "new.txt").splitlines() == [row["label"] for row in of_file]
    figures = json.loads(gatework("evaluate", trained["model"], "reviews.csv", "--json", "--picture", "p.png"))
    assert set(figures) == {"accuracy", "f1"}
    assert (here / "p.png").read_bytes().startswith(b"\x89PNG")
    described = json.loads(gatework("describe", trained["model"], "--json"))
    assert (described["recipe"], described["cell"], described["settings"]["hidden"]) == ("classify-text", "elman", 4)
    assert described["figures"] == trained["figures"]
    text = gatework("describe", trained["model"])
    assert "h' = " in text
    assert "embedding.weight" in text
    assert "bag of words" in text


def test_a_run_leaves_its_model_its_history_and_two_pictures(gatework, here):
    out = gatework("train", "classify-text", "reviews.csv", *SMALL, "--out", "m")
    assert sorted(p.name for p in (here / "m").iterdir()) == ["history.csv", "learning_curve.png", "model.json",
                                                              "model.safetensors", "picture.png", "settings.toml"]
    rows = (here / "m" / "history.csv").read_text().splitlines()
    assert rows[0].startswith("epoch,step,")
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2"]
    assert "epoch 2 of 2: " in out
    assert "Saved in m. Next:  gatework predict m" in out


def test_curves_for_tensorboard_are_those_of_the_history(gatework, here):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator",
                                            reason="an extra of the user's own")
    gatework("train", "classify-text", "reviews.csv", *SMALL, "--out", "m", "--tensorboard")
    curves = event_accumulator.EventAccumulator(str(here / "m" / "tensorboard")).Reload()
    history = list(csv.DictReader((here / "m" / "history.csv").read_text().splitlines()))
    for name in ("train_loss", "valid_loss", "valid_accuracy"):
        assert [event.value for event in curves.Scalars(name)] == pytest.approx([float(row[name]) for row in history])


def test_the_same_seed_gives_the_same_bits_and_another_one_another_model(gatework, here):
    for out, seed in (("a", 7), ("b", 7), ("c", 8)):
        gatework("train", "classify-text", "reviews.csv", *SMALL, "--out", out, "--seed", str(seed))
    a, b, c = ((here / out / "model.safetensors").read_bytes() for out in "abc")
    assert a == b
    assert a != c


def test_the_learning_rate_finder_suggests_one_between_those_it_tried_and_trains_nothing(gatework, here):
    found = json.loads(gatework("train", "classify-text", "reviews.csv", "--hidden", "8", "--dropout", "0",
                                "--find-learning-rate", "--json"))
    assert 1e-6 <= found["learning_rate"] <= 0.1
    assert (here / found["picture"]).read_bytes().startswith(b"\x89PNG")
    assert not (here / "reviews-classify-text").exists()


@pytest.mark.parametrize(("arguments", "said"), [
    (["train", "clasify-text", "reviews.csv"], "clasify-text"),
    (["train", "classify-text", "none.csv"], "none.csv"),
    (["train", "classify-text", "reviews.csv", "--pooling", "min"], "max|attention"),
    (["train", "classify-text", "reviews.csv", "--cell", "ea_lstm"], "feeds one"),
    (["train", "classify-text", "reviews.csv", "--precision", "8"], "precision"),
    (["train", "classify-text", "reviews.csv", "--hidden", "8.7"], "--hidden must be a whole number; 8.7 was given"),
    (["predict", "nowhere"], "there is no folder nowhere"), (["describe", "."], "there is no file model.json"),
    (["transcribe", "m"], "give one or more sound files"), (["generate", "."], "model.json")],
    ids=lambda p: " ".join(p) if isinstance(p, list) else "")
def test_what_cannot_be_done_is_said_in_a_line(arguments, said, refused):
    assert re.search(said, refused(*arguments))


def test_a_model_that_generates_nothing_says_what_it_does(gatework, refused):
    gatework("train", "classify-text", "reviews.csv", *SMALL, "--out", "m")
    assert "generates nothing; use it with:  gatework predict m" in refused("generate", "m")
