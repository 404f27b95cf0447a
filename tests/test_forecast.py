"""Forecasts: better than simple ones on real data; windows, intervals and errors against what others compute."""

from __future__ import annotations

import json
from datetime import datetime, timedelta

import data_forecast
import numpy as np
import polars as pl
import pytest
import torch
from scipy.stats import norm
from sklearn.metrics import mean_absolute_error, mean_pinball_loss, r2_score

from gatework.cells import ea_lstm, gru
from gatework.compiler import trace
from gatework.recipes import RecipeError
from gatework.recipes.baselines.forecast import exponential_smoothing, ridge, seasonal_naive
from gatework.recipes.forecast import Forecast, Settings
from gatework.recipes.forecast_outputs import Gaussian, Quantiles
from gatework.recipes.forecast_results import scores
from gatework.recipes.run import load, train
from gatework.recipes.windows import Columns, Windows, scales_of

HOURS = [str(datetime(2024, 1, 1) + timedelta(hours=k)) for k in range(400)]


def waves(rows: int = 400) -> pl.DataFrame:
    rng, t = np.random.default_rng(0), np.arange(rows)
    return pl.DataFrame({"time": HOURS[:rows], "load": 50 + 10 * np.sin(t / 24 * 2 * np.pi) + rng.normal(size=rows),
                         "wind": rng.normal(size=rows), "holiday": (t // 24 % 7 == 0) * 1.0})


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """A model of a part of ETTh1, its folder and its data."""
    folder = tmp_path_factory.mktemp("forecast")
    settings = Settings(targets=("OT",), window=24, horizon=6, hidden=16, epochs=3, batch_size=64, season=1,
                        learning_rate=0.005)
    data = folder / "data"
    data.mkdir()
    data_forecast.write_ett(data, window=24, rows=400)
    return train(Forecast, data, settings, folder / "model"), folder / "model", data


def test_a_small_model_of_real_data_beats_the_naive_forecast_and_its_interval_holds(transformer):
    model, folder, data = transformer
    figures = json.loads((folder / "model.json").read_text())["figures"]
    assert figures["this model"]["mase"] < figures["seasonal naive"]["mase"]
    assert 0.75 < figures["this model"]["coverage"] <= 1  # asked: 0.9, of 100 forecasts of 6 steps
    assert (folder / "picture.png").stat().st_size > 10_000


def test_a_saved_model_says_the_same(transformer):
    model, folder, data = transformer
    table = model.read_inputs(data / "test.csv", model.settings)
    assert list(load(folder).predict(table)) == list(model.predict(table))


def test_a_forecast_begins_behind_the_last_row(transformer):
    model, _, data = transformer
    table = model.read_inputs(data / "test.csv", model.settings)
    rows = list(model.predict(table))
    last = datetime.fromisoformat(table["time"][-1])
    assert [row["time"] for row in rows] == [str(last + timedelta(hours=k)) for k in range(1, 7)]
    assert all(row["OT low"] <= row["OT"] <= row["OT high"] for row in rows)
    assert rows[0]["row"].split("\t")[0] == rows[0]["time"]
    assert abs(rows[0]["OT"] - table["OT"][-1]) < 3  # degrees, an hour later


def test_a_simulation_of_a_river_beats_the_linear_one(tmp_path):
    data_forecast.write_river(tmp_path, "13331500", window=120)
    weather = ("rain", "warmth", "evaporation")
    settings = Settings(targets=("runoff",), known=weather, horizon=0, window=120, hidden=16, epochs=2, batch_size=32,
                        output="mean", forget_bias=3.0, learning_rate=0.02)
    train(Forecast, tmp_path, settings, tmp_path / "model")
    figures = json.loads((tmp_path / "model" / "model.json").read_text())["figures"]
    assert figures["this model"]["nse"] > figures["linear"]["nse"]
    assert figures["mean"]["nse"] < 0.01  # the mean explains nothing; of training it is not even that of validation


def test_a_simulation_says_every_day_and_needs_no_target(tmp_path):
    table = waves()
    settings = Settings(targets=("load",), known=("wind",), horizon=0, window=30, hidden=4)
    model = Forecast(trace(gru), settings, Forecast.facts_of(table, settings))
    table.drop("load").write_csv(tmp_path / "a.csv")
    rows = list(model.predict(model.read_inputs(tmp_path / "a.csv", settings)))
    assert [row["time"] for row in rows] == HOURS[30:400]


def windows_of(table: pl.DataFrame, columns: Columns, **options) -> Windows:
    options = dict(window=5, ahead=3, stride=1) | options
    return Windows(table, columns, scales_of(table, columns, 1, "error"), **options)


def test_a_window_holds_the_steps_that_a_loop_finds():
    table, columns = waves(60), Columns(("load",), ("wind",), ("holiday",))
    windows = windows_of(table, columns, stride=2, season=2)
    values = {name: (table[name].to_numpy() - table[name].mean()) / table[name].std(ddof=0)
              for name in ("load", "wind", "holiday")}
    assert [origin for _, origin in windows.places] == list(range(5, 58, 2))
    one, origin = windows[4], 13
    offset = (values["load"][11] + values["load"][12]) / 2
    for k in range(5):
        expected = [values["load"][origin - 5 + k] - offset, *(values[n][origin - 5 + k] for n in ("wind", "holiday"))]
        # float32 holds about 7 digits
        assert one.past[k, :3].tolist() == pytest.approx(expected, abs=1e-6)
    for k in range(3):
        assert one.target[k, 0].item() == pytest.approx(values["load"][origin + k], abs=1e-6)
        assert one.base[k, 0].item() == pytest.approx(values["load"][origin - 2 + k % 2], abs=1e-6)
        assert one.future[k, 0].item() == pytest.approx(values["holiday"][origin + k], abs=1e-6)


def test_what_comes_after_the_origin_changes_no_forecast_but_by_known_columns():
    table = waves(100)
    settings = Settings(targets=("load",), past=("wind",), known=("holiday",), window=10, horizon=4, hidden=4)
    facts = Forecast.facts_of(table, settings)
    torch.manual_seed(0)
    model = Forecast(trace(gru), settings, facts)

    def said(column: str) -> np.ndarray:
        later = pl.int_range(pl.len()) >= 10
        other = table.head(14).with_columns(pl.when(later).then(pl.col(column) + 1).otherwise(column).alias(column))
        return model.forecasts(Windows(other, Columns(("load",), ("wind",), ("holiday",)), facts, window=10, ahead=4,
                                       stride=4, season=1))[0]

    assert np.array_equal(said("load"), said("wind"))
    assert not np.allclose(said("load"), said("holiday"))


@pytest.mark.parametrize("options", [
    dict(decoder="direct"), dict(decoder="recursive", output="gaussian", samples=20),
    dict(decoder="recursive", output="mean"), dict(horizon=0, known=("wind",), output="gaussian")])
def test_learning_lowers_the_loss_of_every_kind(options):
    table = waves()
    settings = Settings(**(dict(targets=("load",), window=24, horizon=4, season=24, hidden=8, batch_size=64) | options))
    torch.manual_seed(0)
    model = Forecast(trace(gru), settings, Forecast.facts_of(table, settings))
    batch = next(iter(model.training_batches(table)))
    optimizer, losses = torch.optim.Adam(model.parameters(), 0.02), []
    for _ in range(8):
        total, count = model.loss(batch)
        optimizer.zero_grad()
        (total / count).backward()
        optimizer.step()
        losses.append(total.item() / count)
    assert losses[-1] < losses[0]
    assert np.isfinite(list(model.figures(table).values())).all()


def test_drawn_paths_have_the_mean_and_spread_of_a_random_walk():
    table = waves(60).with_columns(load=pl.Series(np.random.default_rng(0).normal(size=60)))
    settings = Settings(targets=("load",), window=5, horizon=9, hidden=2, decoder="recursive", output="gaussian",
                        samples=4000, difference=False)
    facts = Forecast.facts_of(table, settings) | {"mean": [0.0], "deviation": [1.0], "cycles": []}
    model = Forecast(trace(gru), settings, facts)
    with torch.no_grad():  # every step: mean 0.5, deviation 1
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.5, np.log(np.e - 1)]))
    values = model.forecasts(Windows(table, Columns(("load",)), facts, window=5, ahead=9, stride=50))[0]
    # 4000 draws: the median is off by about 1.25 / sqrt(4000) = 0.02, the ends by twice as much
    assert values[:, 0] == pytest.approx(np.tile([norm.ppf(0.05) + 0.5, 0.5, norm.ppf(0.95) + 0.5], (9, 1)), abs=0.12)


def test_losses_and_intervals_are_those_of_sklearn_and_scipy():
    torch.manual_seed(0)
    truth, numbers = torch.randn(50), torch.randn(50, 5)
    kind = Quantiles(0.8)
    wanted = sum(mean_pinball_loss(truth, numbers[:, k], alpha=a) for k, a in enumerate((0.1, 0.25, 0.5, 0.75, 0.9)))
    assert kind.loss(numbers, truth).mean().item() == pytest.approx(wanted, rel=1e-5)  # float32
    deviation = np.logaddexp(0, numbers[:, 1].numpy()) + 1e-3
    normal = norm(numbers[:, 0].numpy(), deviation)
    assert Gaussian(0.8).loss(numbers[:, :2], truth).numpy() == pytest.approx(-normal.logpdf(truth.numpy()), rel=1e-4)
    assert Gaussian(0.8).interval(numbers[:, :2])[:, 2].numpy() == pytest.approx(normal.ppf(0.9), rel=1e-4)


def test_errors_are_those_of_sklearn_and_of_the_definition_of_mase():
    table = pl.concat([waves(80).with_columns(series=pl.lit(s), load=pl.col("load") * k)
                       for k, s in ((1, "a"), (3, "b"))])
    columns = Columns(("load", "wind"))
    facts = scales_of(table, columns, 24, "error")
    windows = Windows(table, columns, facts, window=24, ahead=4, stride=4)
    rng = np.random.default_rng(0)
    said = [np.sort(rng.normal(40, 20, (4, 2, 3)), -1) for _ in windows]
    found = scores(said, windows, facts)
    truth = {s: table.filter(series=s)[24:80].select(columns.targets).to_numpy() for s in "ab"}
    middle = {s: np.concatenate([one[..., 1] for one, (k, _) in zip(said, windows.places) if k == "ab".index(s)])
              for s in "ab"}
    everything = np.concatenate(list(truth.values())), np.concatenate(list(middle.values()))
    # the windows are float32
    assert found["mae"] == pytest.approx(mean_absolute_error(*everything), rel=1e-5)
    assert found["nse"] == pytest.approx(np.mean([r2_score(truth[s], middle[s]) for s in "ab"]), rel=1e-5)
    naive = [np.mean([abs(table.filter(series=s)[n][t] - table.filter(series=s)[n][t - 24])
                      for s in "ab" for t in range(24, 80)]) for n in columns.targets]
    errors = np.abs(everything[0] - everything[1]).mean(0)
    assert found["mase"] == pytest.approx(np.mean(errors / naive), rel=1e-5)
    low, high = (np.concatenate([one[..., k] for one in said]) for k in (0, 2))
    assert found["coverage"] == pytest.approx(np.mean((low <= everything[0]) & (everything[0] <= high)))


def test_simple_forecasts_are_what_they_are_called():
    table, columns = waves(), Columns(("load",))
    windows = windows_of(table, columns, window=120, ahead=30, stride=60)
    naive = seasonal_naive(windows, 24)
    came = windows.series[0].targets
    for (_, origin), said in zip(windows.places, naive):
        assert said[:, 0].tolist() == [came[origin - 24 + k % 24, 0] for k in range(30)]
    truth = np.concatenate([one.target.numpy() for one in windows])
    linear = ridge(windows_of(table, columns, window=120, ahead=30), windows, 30)
    for smart in (exponential_smoothing(windows, 24), linear):
        assert np.abs(np.concatenate(smart) - truth).mean() < np.abs(np.concatenate(naive) - truth).mean()


def test_attributes_open_the_input_gate_of_the_ea_lstm_and_are_read_by_other_cells():
    table = pl.concat([waves(80).with_columns(series=pl.lit(s), area=pl.lit(a)) for s, a in (("a", 1.0), ("b", 2.0))])
    settings = Settings(targets=("load",), known=("wind",), static=("area",), horizon=0, window=10, hidden=4)
    facts = Forecast.facts_of(table, settings)
    for cell, inputs in ((ea_lstm, 5), (gru, 6)):  # wind and two waves of the day; of 80 hours there is no whole week
        model = Forecast(trace(cell), settings, facts)
        assert model.recurrent.input_size == inputs - 2
        one, other = (model.forecasts(Windows(table.filter(series="a").with_columns(area=pl.lit(area)), Columns(
            ("load",), known=("wind",), static=("area",)), facts, window=10, ahead=10, stride=10, partial=True))
            for area in (1.0, 2.0))
        assert not np.allclose(one[0], other[0])
    with pytest.raises(RecipeError, match="ea_lstm has the inputs x, s"):
        Forecast(trace(ea_lstm), Settings(targets=("load",)), facts)


def test_the_last_tenth_of_each_series_validates_and_the_window_before_is_read(tmp_path):
    table = pl.concat([waves(n).with_columns(series=pl.lit(s)) for n, s in ((200, "a"), (100, "b"))])
    table.write_csv(tmp_path / "a.csv")
    splits = Forecast.read(str(tmp_path / "a.csv"), Settings(targets=("load",), window=24, horizon=5))
    assert splits.train["series"].value_counts().sort("series")["count"].to_list() == [180, 90]
    assert splits.valid["series"].value_counts().sort("series")["count"].to_list() == [44, 34]


def test_rows_ahead_give_what_is_known_of_them(tmp_path):
    settings = Settings(targets=("load",), known=("holiday",), window=24, horizon=5, hidden=4)
    model = Forecast(trace(gru), settings, Forecast.facts_of(waves(), settings))
    late = pl.int_range(pl.len()) >= 95
    table = waves(100).with_columns(load=pl.when(~late).then("load"))
    table.write_csv(tmp_path / "a.csv")
    rows = list(model.predict(model.read_inputs(tmp_path / "a.csv", settings)))
    assert [row["time"] for row in rows] == HOURS[95:100]
    table.with_columns(holiday=pl.when(pl.int_range(pl.len()) != 97).then("holiday")).write_csv(tmp_path / "b.csv")
    with pytest.raises(RecipeError, match="'holiday' has no value at '2024-01-05 01:00:00'"):
        list(model.predict(model.read_inputs(tmp_path / "b.csv", settings)))


def test_missing_values_are_an_error_with_the_line_or_filled_as_asked(tmp_path):
    table = waves(60).with_columns(load=pl.when(~pl.int_range(pl.len()).is_in([30, 31])).then("load"))
    table.write_csv(tmp_path / "a.csv")
    wanted = dict(targets=("load",), window=10, horizon=2)
    with pytest.raises(RecipeError, match="line 32: the column 'load' is blank"):
        Forecast.read(str(tmp_path / "a.csv"), Settings(**wanted))
    left, right = table["load"][29], table["load"][32]
    third = (right - left) / 3
    for way, middle in (("previous", [left, left]), ("interpolate", [left + third, right - third])):
        settings = Settings(**wanted, missing=way)
        columns, whole = Columns(("load",)), Forecast.read(str(tmp_path / "a.csv"), settings).train
        scales = scales_of(whole, columns, 1, way)
        one = Windows(whole, columns, scales, window=10, ahead=2, stride=1, missing=way).series[0].targets[30:32, 0]
        assert one * scales["deviation"][0] + scales["mean"][0] == pytest.approx(middle, rel=1e-5)  # float32


@pytest.mark.parametrize(("change", "message"), [
    (lambda t: t.reverse(), "which is not later. Sort"),
    (lambda t: pl.concat([t, t]), "several series.*--columns.series"),
    (lambda t: t.filter(pl.int_range(pl.len()) != 40), "between '2024-01-02 15:00:00' and '2024-01-02 17:00:00' rows"),
    (lambda t: t.head(11), r"longest series has 11 steps; a forecast needs 10 .* and 2 after"),
])
def test_rows_that_do_not_follow_each_other_are_an_error(change, message):
    table, columns = waves(60), Columns(("load",))
    with pytest.raises(RecipeError, match=message):
        Windows(change(table), columns, scales_of(table, columns, 1, "error"), window=10, ahead=2, stride=1)


@pytest.mark.parametrize("times", ["01.07.2016 10:00", "2016-"])
def test_times_that_cannot_be_read_are_an_error(times):
    with pytest.raises(RecipeError, match=f"'{times}' in the column of the time, in row 1 of a series, cannot be read"):
        windows_of(waves(60).with_columns(time=pl.lit(times)), Columns(("load",)))


def test_times_of_parquet_files_and_with_zones_are_read(tmp_path):
    table = waves(60).with_columns(pl.col("time").str.to_datetime())
    settings = Settings(targets=("load",), window=24, horizon=2)
    for zone, time in ((None, "2024-01-03 12:00:00"), ("UTC", "2024-01-03 12:00:00")):
        table.with_columns(pl.col("time").dt.replace_time_zone(zone)).write_parquet(tmp_path / "a.parquet")
        model = Forecast(trace(gru), settings, Forecast.facts_of(waves(), settings))
        assert next(iter(model.predict(model.read_inputs(tmp_path / "a.parquet", settings))))["time"] == time


@pytest.mark.parametrize("missing", ["error", "previous"])
@pytest.mark.parametrize("option", ["targets", "past", "known"])
def test_a_column_that_is_not_there_is_an_error_with_its_option(tmp_path, option, missing):
    waves(60).write_csv(tmp_path / "a.csv")
    settings = Settings(**({"targets": ("load",)} | {option: ("laod",)}), window=10, missing=missing)
    for read in (Forecast.read, Forecast.read_part, Forecast.read_inputs):
        with pytest.raises(RecipeError, match=f"no column 'laod', did you mean 'load'.*with --{option}"):
            read(str(tmp_path / "a.csv"), settings)


def test_attributes_that_change_are_an_error():
    columns = Columns(("load",), static=("wind",))
    with pytest.raises(RecipeError, match=r"'wind' \(--static\) changes.*--known wind"):
        windows_of(waves(60), columns)


@pytest.mark.parametrize(("wrong", "message"), [
    (dict(targets=()), "--targets names at least one"), (dict(past=("target",)), "no column may be in two"),
    (dict(horizon=0), "--horizon 0 computes each step from --known"), (dict(season=200), "--window must hold a season"),
    (dict(decoder="recursive"), "--output gaussian or mean"),
    (dict(decoder="recursive", output="mean", past=("wind",)), "covariates that are known ahead"),
])
def test_settings_that_contradict_each_other_name_the_options(wrong, message):
    with pytest.raises(RecipeError, match=message):
        Settings(**wrong)


def test_times_are_read_as_days_months_and_hours_and_tell_the_cycles():
    months = [f"{year}-{month:02}" for year in range(2000, 2004) for month in range(1, 13)]
    for times, cycles in ((HOURS, ["day", "week"]), (months, ["year"]), ([str(y) for y in range(1900, 1960)], [])):
        table = pl.DataFrame({"time": times, "load": np.arange(len(times)) * 1.0})
        assert scales_of(table, Columns(("load",)), 1, "error")["cycles"] == cycles
