"""The recipe classify-series on sets of the UCR and UEA archives, and the forms in which it reads series."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from data_classify_series import test_of_ucr as official_test
from data_classify_series import write_ucr
from sklearn.metrics import accuracy_score, f1_score

from gatework.compiler import trace
from gatework.recipes import RecipeError
from gatework.recipes.baselines.classify_series import distances, nearest_by_dtw
from gatework.recipes.classify_series import ClassifySeries, Settings, held_back, scores
from gatework.recipes.find_cell import find_cell
from gatework.recipes.reading.series import read_series, table_of
from gatework.recipes.run import evaluate, load, predict, predict_lines, train


@pytest.fixture(scope="module")
def vowels(tmp_path_factory):
    """A folder with the ragged set JapaneseVowels, and one with a small model of it."""
    folder = tmp_path_factory.mktemp("vowels")
    write_ucr(folder, "JapaneseVowels")
    model = train(ClassifySeries, folder, Settings(epochs=8, hidden=32), folder / "model")
    return folder, model


def test_a_small_model_of_ragged_series_beats_the_nearest_neighbour_by_dtw(vowels):
    folder, model = vowels
    # 0.949 is the nearest neighbour by DTW over all channels on the official test set (the next but one test).
    figures = evaluate(folder / "model", official_test(folder, "JapaneseVowels"))
    assert figures["accuracy"] > 0.949


def test_a_saved_model_says_what_it_said_when_it_was_trained(vowels):
    folder, model = vowels
    file = official_test(folder, "JapaneseVowels")
    table = read_series(file, {}, labelled=True)
    again = load(folder / "model", ClassifySeries)
    assert list(again.predict(table)) == list(model.predict(table)) == list(predict(folder / "model", [file]))


def test_series_beside_longer_ones_get_the_answers_they_get_alone(vowels):
    _, model = vowels
    series = [torch.randn(steps, 12).numpy() for steps in (1, 29, 2, 7)]
    together = list(model.predict(table_of(series)))
    for one, answer in zip(series, together):
        alone, = model.predict(table_of([one]))
        for label, probability in alone["probabilities"].items():
            # 1e-5: sums of float32 in another order
            assert math.isclose(probability, answer["probabilities"][label], abs_tol=1e-5)


def test_a_line_of_numbers_is_a_series(vowels):
    folder, _ = vowels
    line = official_test(folder, "JapaneseVowels").read_text().splitlines()[-1].rpartition(":")[0]
    answer, = predict_lines(folder / "model", [line + "\n"])
    *_, expected = predict(folder / "model", [official_test(folder, "JapaneseVowels")])
    assert answer["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)  # float32, other rows


def test_series_with_other_channels_than_the_model_was_trained_on_are_refused(vowels):
    folder, _ = vowels
    with pytest.raises(RecipeError, match="2 channels, those trained on have 12"):
        list(predict_lines(folder / "model", ["1,2:3,4"]))


def test_the_picture_shows_the_confusion_matrix_and_the_gate_that_keeps(vowels):
    _, model = vowels
    figure = model.picture(read_series(Path(vowels[0] / "JapaneseVowels_TRAIN.ts"), {}, labelled=True).head(40))
    labels = [axes.get_ylabel() for axes in figure.axes]
    assert labels[:4] == ["true", "standardised", "units, forward", "units, backward"]
    assert sum(int(text.get_text()) for text in figure.axes[0].texts) == 40
    assert figure.axes[2].images[0].get_array().shape[0] == 32


@pytest.mark.parametrize("cell", ["gru", "elman"])
def test_other_cells_with_stacked_layers_and_frames_learn_too(tmp_path, cell):
    write_ucr(tmp_path, "ItalyPowerDemand")
    settings = Settings(cell=cell, layers=2, hidden=16, frame=5, epochs=20)
    model = train(ClassifySeries, tmp_path, settings, tmp_path / "model")
    test = read_series(official_test(tmp_path, "ItalyPowerDemand"), {}, labelled=True)
    assert model.figures(test)["accuracy"] > 0.85  # half of the series have each label
    assert model.picture(test.head(3))


# Baselines and figures ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("name", "published"), [("ItalyPowerDemand", 0.950), ("BasicMotions", 0.975)])
def test_the_nearest_neighbour_by_dtw_has_the_accuracy_published_for_it(tmp_path, name, published):
    write_ucr(tmp_path, name)
    tables = [read_series(tmp_path / f"{name}_{part}.ts", {}, labelled=True) for part in ("TRAIN", "TEST")]
    known, asked = ([np.array(row["series"]).reshape(-1, row["channels"]) for row in table.iter_rows(named=True)]
                    for table in tables)
    said = nearest_by_dtw(known, list(tables[0]["label"]), asked)
    assert accuracy_score(tables[1]["label"], said) == pytest.approx(published, abs=5e-4)  # three digits are published


def test_dtw_is_the_cheapest_of_all_paths():
    random = np.random.default_rng(0)

    def cheapest(a, b):
        """The least sum over every path from the first pair of steps to the last."""
        def best(i, j):
            cost = ((a[i] - b[j]) ** 2).sum()
            if i == j == 0:
                return cost
            return cost + min(best(i - di, j - dj) for di, dj in ((1, 0), (0, 1), (1, 1)) if i >= di and j >= dj)
        return best(len(a) - 1, len(b) - 1)

    for steps in (1, 2, 5):
        lengths = np.array([1, 6, 3])
        others = random.normal(size=(6, 3, 2))
        series = random.normal(size=(steps, 2))
        expected = [cheapest(series, others[:n, k]) for k, n in enumerate(lengths)]
        assert distances(series, others, lengths) == pytest.approx(expected, rel=1e-12)  # the same sums in float64


def test_figures_are_those_of_scikit_learn():
    said, truth = list("aabcbb"), list("abbcab")
    assert scores(said, truth, ["a", "b", "c"]) == pytest.approx(
        {"accuracy": accuracy_score(truth, said), "f1": f1_score(truth, said, average="macro")}, abs=1e-6)  # float32


def test_standardised_training_series_have_mean_0_and_deviation_1_and_constant_channels_are_0(tmp_path):
    random = np.random.default_rng(0)
    series = [np.stack([random.normal(5, 3, n), np.full(n, 7)], 1) for n in (9, 4, 30)]
    table = table_of(series, ["a", "b", "a"])
    settings = Settings(hidden=2)
    model = ClassifySeries(trace(find_cell("elman")), settings, ClassifySeries.facts_of(table, settings))
    values = torch.cat([model.encode(row)[0] for row in table.iter_rows(named=True)])
    assert values.shape == (43, 4)  # with the differences
    assert values[:, 0].mean().item() == pytest.approx(0, abs=1e-6)  # float32
    assert values[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert values[:, [1, 3]].unique().tolist() == [0.0]


def test_held_back_series_are_the_share_of_each_label_and_no_series_is_in_both():
    table = table_of([np.array([[float(k)]]) for k in range(50)], ["a"] * 40 + ["b"] * 10)
    for seed in (0, 1):
        train, valid = held_back(table, 0.2, seed)
        assert sorted(valid["label"]) == ["a"] * 8 + ["b"] * 2
        assert sorted(v for part in (train, valid) for v, in part["series"]) == list(range(50))
    with pytest.raises(RecipeError, match="leaves 3 to train on and 0 to validate"):
        held_back(table[:3], 0.1, 0)


# Forms of data --------------------------------------------------------------------------------------------------------

SERIES = [(np.array([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]]), "up"), (np.array([[5.0, 1.0]]), "down")]
WANTED = [([1.0, 10.0, 2.0, 20.0, 3.0, 30.0], 2, "up"), ([5.0, 1.0], 2, "down")]


def test_a_ts_file_and_a_table_of_files_and_one_of_steps_give_the_same_series(tmp_path):
    (tmp_path / "a.ts").write_text("# origin\n@problemName x\n@classLabel true up down\n@data\n"
                                   "1,2,3:10,20,30:up\n5:1:down\n")
    rows = [f"{label},{x},{y}" for values, label in SERIES for x, y in values]
    mixed = [f"s{k}," + row for k, row in zip((0, 0, 0, 1), rows)]
    (tmp_path / "steps.csv").write_text("\n".join(["id,label,x,y", mixed[0], mixed[3], *mixed[1:3]]) + "\n")
    for k, (values, _) in enumerate(SERIES):
        pl.DataFrame(values, schema=["x", "y"]).write_csv(tmp_path / f"{k}.csv")
    (tmp_path / "files.tsv").write_text("file\tclass\n0.csv\tup\n1.csv\tdown\n")
    for name in ("a.ts", "steps.csv", "files.tsv"):
        assert read_series(tmp_path / name, {}, labelled=True).rows() == WANTED, name


def test_a_table_of_rows_gives_series_of_one_channel_that_end_where_the_row_is_blank(tmp_path):
    (tmp_path / "wide.csv").write_text("kind,t1,t2,t3\nup,1,2,3\ndown,4,,\n")
    table = read_series(tmp_path / "wide.csv", {"label": "kind"}, labelled=True)
    assert table.rows() == [([1.0, 2.0, 3.0], 1, "up"), ([4.0], 1, "down")]


def test_lines_of_numbers_in_a_text_file_are_series_without_labels(tmp_path):
    (tmp_path / "new.txt").write_text("1,2,3:10,20,30\n5:1\n")
    assert read_series(tmp_path / "new.txt", {}, labelled=False).rows() == [row[:2] for row in WANTED]


TS = "@classLabel true a b\n@data\n"


@pytest.mark.parametrize(("name", "text", "said"), [
    ("x.ts", TS + "1,2:a\n1,?:b\n", r"line 4: '\?' is no number.*filled in"),
    ("x.ts", TS + "1,2:3:a\n", "line 3: the channels of the series have 2, 1 steps"),
    ("x.ts", TS + "1,2:a\n1,2:3,4:b\n", "series 2 has 2 channels, those before have 1"),
    ("x.ts", TS + "1,nan:a\n", "line 3: a value is not finite"),
    ("x.ts", TS + "1,2\n", "line 3: @classLabel true promises a label"),
    ("x.ts", "@data\n1,2\n", "series 1 has no label"),
    ("x.txt", "1,2\n", "series 1 has no label"),
    ("x.txt", "1,2\n\n", "line 2: '' is no number"),
    ("x.ts", "@classLabel false\n1,2\n", "line 2: a .ts file begins with"),
    ("x.ts", "@classLabel true a\n", "no line @data"),
    ("x.ts", TS, "holds no series"),
    ("x.ts", "@timeStamps true\n@data\n", "line 1: @timeStamps true is not supported"),
    ("x.csv", "label,a,b\nup,1,\nup,,3\n", "series 2: a value of step 1 is missing"),
    ("x.csv", "label,a\nup,1\nup,\n", "series 2 has no values"),
    ("x.csv", "kind,a\nup,1\n", "the column 'kind' holds texts.*--columns.label kind"),
    ("x.csv", "id,label,a\n1,up,1\n1,down,2\n", "the series 1 has the labels up and down"),
    ("x.csv", "id,label,a\n1,up,1\n1,up,\n", "series 1: a value of step 2 is missing"),
    ("x.csv", "file,label\nnone.csv,up\n", "none.csv"),
])
def test_data_that_cannot_be_read_are_refused_with_the_place_and_the_remedy(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(RecipeError, match=said):
        read_series(tmp_path / name, {}, labelled=True)


def test_a_folder_is_searched_for_the_names_of_the_splits(tmp_path):
    for name in ("train.ts", "b_DEV.ts", "X_test.ts"):
        (tmp_path / name).write_text(TS + "1,2:a\n3,4:b\n")
    splits = ClassifySeries.read(str(tmp_path), Settings())
    assert [len(table) for table in (splits.train, splits.valid, splits.test)] == [2, 2, 2]
    (tmp_path / "other_train.csv").write_text("label,a\nx,1\n")
    with pytest.raises(RecipeError, match="two of what could be train"):
        ClassifySeries.read(str(tmp_path), Settings())


@pytest.mark.parametrize(("valid", "said"), [(TS + "1,2:c\n", "valid.ts.*'c'.*not one of those trained on"),
                                             (TS + "1,2:1,2:a\n", "valid.ts: its series have 2 channels")])
def test_validation_series_that_the_training_series_do_not_explain_are_refused(tmp_path, valid, said):
    (tmp_path / "train.ts").write_text(TS + "1,2:a\n3,4:b\n")
    (tmp_path / "valid.ts").write_text(valid)
    with pytest.raises(RecipeError, match=said):
        ClassifySeries.read(str(tmp_path), Settings())
