"""The benchmark: it refuses what is wrong, asks its processes, counts work, and says which goals are reached."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

import chart  # noqa: E402
import contestants  # noqa: E402
import turns  # noqa: E402
from groups import CASES, CELLS, GROUPS, ONE_THREAD, ONEDNN_OFF, OURS, RUNTIME, Group, sizes_of  # noqa: E402
from limits import limit  # noqa: E402
from report import as_data, goal_table, goals, rows, table  # noqa: E402
from scaling import slope  # noqa: E402
from sequences import SEQUENCES  # noqa: E402

SMALL = (5, 3, 4, 6)
RATES = {"float32_products": 2e11, "bfloat16_products": 2e12, "near_bytes": 1e11, "far_bytes": 1e10,
         "second_caches": 4e6}
CONTESTANTS = contestants.CASES | SEQUENCES


@pytest.fixture
def array():
    return np.random.default_rng(0).standard_normal((20, 30)).astype(np.float32)


class Fake:
    """A worker that has its results already."""

    def __init__(self, name: str, value: np.ndarray | None):
        self.name, self.value = name, value

    def build(self, sizes: tuple) -> dict:
        return {"once": 1.0, "seconds": 1.0} if self.value is not None else {"not_measured": "no C++ compiler"}

    def results(self) -> list[np.ndarray]:
        return [self.value]

    def worked(self) -> tuple[int, bool]:
        return 0, False


def test_a_peer_with_wrong_results_is_not_timed_and_the_table_says_why(array):
    wrong = array.copy()
    wrong[3] *= 1.01
    made = turns.prepare("lstm", SMALL, [Fake(OURS, array), Fake("right", array + 1e-7), Fake("wrong", wrong),
                                         Fake("absent", None)])
    assert made["right"] == made[OURS] == {"once": 1.0, "seconds": 1.0}
    assert "the output is" in made["wrong"]["not_measured"]
    assert made["absent"] == {"not_measured": "no C++ compiler"}


@pytest.mark.parametrize("spoilt", [lambda a: a * 1.001, lambda a: np.where(a > 2, np.nan, a), lambda a: a[:-1]])
def test_where_nobody_agrees_with_gatework_nothing_is_timed(array, spoilt):
    with pytest.raises(turns.WrongResults, match="nobody agrees"):
        turns.prepare("lstm", SMALL, [Fake(OURS, spoilt(array)), Fake("a", array), Fake("b", array)])


def test_another_way_of_our_own_is_nobody_who_agrees(array):
    ours, wrong = [Fake(OURS, array), Fake(RUNTIME, array)], Fake("a", 1.1 * array)
    with pytest.raises(turns.WrongResults, match="nobody agrees"):
        turns.prepare("inference", SMALL, [*ours, wrong])
    made = turns.prepare("inference", SMALL, [*ours, wrong, Fake("b", array)])
    assert [name for name, one in made.items() if "not_measured" in one] == ["a"]


def test_gatework_that_cannot_run_ends_the_run():
    with pytest.raises(turns.WrongResults, match=r"gatework, lstm \(5, 3, 4, 6\): no C\+\+ compiler"):
        turns.prepare("lstm", SMALL, [Fake(OURS, None)])


def test_bfloat16_has_a_tolerance_of_its_own(array):
    rounded = torch.from_numpy(array).bfloat16().float().numpy()
    assert turns.differs("lstm-bfloat16", [rounded], [array]) == ""
    assert turns.differs("lstm", [rounded], [array]) != ""
    assert turns.differs("lstm-bfloat16", [array * 1.1], [array]) != ""


def test_contestants_in_processes_of_their_own_give_the_same_results_and_times(tmp_path):
    workers = {name: turns.Worker("lstm", name, tmp_path) for name in (OURS, "torch.nn")}
    try:
        made = turns.prepare("lstm", SMALL, list(workers.values()))
        timed = turns.interleave(workers, {name: one["once"] for name, one in made.items()}, 0.01)
        missing = workers[OURS].build((5, 3, 4, 0))
    finally:
        for worker in workers.values():
            worker.end()
    assert all(one["repetitions"] >= turns.LEAST_ROUNDS and 0 < one["lower_quartile"] <= one["median"]
               for one in timed.values())
    assert missing["not_measured"].startswith("ValueError: ")
    assert not list(tmp_path.glob("*.npz"))


def test_a_process_that_ends_is_told_and_started_anew(tmp_path):
    worker = turns.Worker("no such case", OURS, tmp_path)
    try:
        assert worker.build(SMALL)["not_measured"].startswith("KeyError")
        worker.process.kill()
        assert worker.ask({"run": 1})["not_measured"] == "its process ended with status -9"
        assert worker.process is None
        worker.start()
        worker.wait_until_ready()
        worker.process.send_signal(signal.SIGSTOP)  # it cannot answer
        assert worker.ask({"build": SMALL}, limit=0.0)["not_measured"] == "not made within 0 s"
        assert worker.process is None
    finally:
        worker.end()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells what a process does")
def test_a_turn_waits_for_what_others_still_do_after_they_have_answered(tmp_path, monkeypatch):
    monkeypatch.setattr(turns, "QUIET_LIMIT", 20)
    late = tmp_path / "late"
    code = (f"import time\nprint('answer', flush=True)\nend = time.monotonic() + 0.2\n"
            f"while time.monotonic() < end: pass\nopen({str(late)!r}, 'w')\ntime.sleep(60)")
    worker = turns.Worker("lstm", OURS, tmp_path)
    worker.process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    worker.process.stdout.readline()
    turns.wait_for_quiet([worker])
    there = late.exists()
    worker.end()
    assert there


@pytest.mark.parametrize("cell", CELLS)
def test_loops_beside_which_cells_are_timed_compute_the_same(cell):
    ours, loop = (CONTESTANTS[cell][name](SMALL) for name in (OURS, "eager loop"))
    assert turns.differs(cell, ours.results(), loop.results()) == ""
    assert all(s > 0 for s in loop.run(2))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(("case", "name"), [
    ("projected", "torch.nn"), ("two-layers", "torch.nn"), ("bidirectional", "torch.nn"), ("inference", "torch.nn"),
    ("lstm-bfloat16", "torch.nn"), ("inference-bfloat16", "torch.nn"), ("ragged", "torch.nn, packed"),
    ("resets", "torch.nn, step by step"), ("record", "eager loop"), ("checkpoints", "gatework, all kept"),
    ("streaming", "torch.nn.LSTMCell"), ("large-step", ONE_THREAD), ("large-step-bfloat16", ONE_THREAD)])
def test_peers_of_torch_compute_the_same(case, name):
    if "bfloat16" in case and name == "torch.nn" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("torch has no LSTM in bfloat16 on this CPU")
    ours, theirs = (CONTESTANTS[case][n](SMALL) for n in (OURS, name))
    assert turns.differs(case, ours.results(), theirs.results()) == ""


def test_long_loops_are_not_unrolled():
    with pytest.raises(contestants.NotMeasured, match="unrolls"):
        CONTESTANTS["own"]["torch.compile"]((1000, 1, 4, 4))


def test_without_a_compiler_torch_compile_says_so(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(contestants.NotMeasured, match=r"no C\+\+ compiler"):
        CONTESTANTS["own"]["torch.compile"](SMALL)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.title)
def test_groups_name_contestants_that_there_are(group):
    known = {name for case in group.cases for name in CONTESTANTS[case]}
    assert {*group.peers, *group.beside, *group.ways} <= known
    assert all(OURS in CONTESTANTS[case] for case in group.cases)
    assert all(sizes_of(case, quick) for case in group.cases for quick in (False, True))


def test_every_case_is_in_a_group():
    assert set(CASES) == set(CONTESTANTS)


def times(**medians: float) -> dict:
    return {name: {"median": m, "lower_quartile": m, "upper_quartile": 1.2 * m, "first_call": 60.0}
            for name, m in medians.items()}


MADE_UP = {"lstm": {"100,1,64,64": times(gatework=1.0, a=2.0, b=3.0, c=0.5),
                    "100,16,64,64": times(gatework=2.0, a=16.0, c=1.0) | {"b": {"not_measured": "no compiler"}}}}


def test_ratios_are_over_the_best_peer_that_counts():
    group = Group("Made up", ("lstm",), ("a", "b"), each=2.5, mean=2.5, beside=("c",))
    lines = rows(group, MADE_UP, None)
    assert [line.best for line in lines] == [2.0, 8.0]
    data = as_data(group, lines)
    assert data["geometric_mean"] == pytest.approx(4.0)
    assert data["geometric_means"] == pytest.approx({"a": 4.0, "b": 3.0, "c": 0.5})
    mean, each = goals(group, lines)
    assert (mean["value"], mean["reached"]) == (pytest.approx(4.0), True)
    assert (each["value"], each["reached"], each["where"]) == (2.0, False, "lstm (100, 1, 64, 64)")
    assert json.loads(json.dumps(data))["rows"][1]["best"] == 8.0


def test_the_fastest_of_our_ways_is_ours_and_all_are_shown():
    group = Group("Made up", ("lstm",), ("a",), each=3.0, mean=None, ways=("c",))
    lines = rows(group, MADE_UP, RATES)
    assert [line.best for line in lines] == [4.0, 16.0]
    text = table(group, lines)
    assert "| gatework (ms) | c (ms) | share of the limit |" in text
    assert "| lstm | 100, 1, 64, 64 | 1000 ± 100 | 500 ± 50 | 0% | 4.00 | 4.00 |" in text
    assert lines[0].share == pytest.approx(2 * rows(replace(group, ways=()), MADE_UP, RATES)[0].share)


def test_ratios_of_time_take_the_slowest():
    group = Group("Made up", ("lstm",), ("a", "b"), each=0.4, mean=None, ratio="time")
    lines = rows(group, MADE_UP, None)
    assert [line.best for line in lines] == [0.5, 0.125]
    assert [g["reached"] for g in goals(group, lines)] == [False]


def test_tables_show_every_peer_its_mean_and_what_was_not_measured():
    group = Group("Made up", ("lstm",), ("a", "b"), 1.0, 1.0, beside=("c",))
    text = table(group, rows(group, MADE_UP, RATES))
    assert "| lstm | 100, 1, 64, 64 | 1000 ± 100 | 0% | 2.00 | 2.00 | 3.00 | 0.50 |" in text
    assert "**4.00** | 4.00 | 3.00 | 0.50 |" in text
    assert "- b: not measured: no compiler: lstm (100, 16, 64, 64)" in text


def test_a_table_without_any_peer_that_counts_has_no_mean_over_the_best():
    group = Group("Made up", ("lstm",), ("a",), 1.0, 1.0, beside=("c",))
    text = table(group, rows(group, {"lstm": {"100,1,64,64": times(gatework=1.0, c=2.0)}}, RATES))
    assert "|  | geometric mean |  | 0% |  | 2.00 |" in text


def test_a_goal_that_is_missed_is_shown_with_the_share_of_the_limit():
    T, B, I, H = 100, 32, 256, 256
    seconds = 2 * limit("lstm", (T, B, I, H), RATES).seconds
    measured = {"lstm": {f"{T},{B},{I},{H}": times(gatework=seconds) | times(a=seconds)}}
    group = Group("Made up", ("lstm",), ("a",), each=1.05, mean=0.9)
    text = goal_table(goals(group, rows(group, measured, RATES)))
    assert "| Made up: geometric mean | at least 0.9 | 1 |  | yes |" in text
    assert "**no**, at 50% of the limit (products)" in text


def test_limits_count_products_and_bytes():
    T, B, I, H = 100, 32, 256, 256
    assert limit("inference", (T, B, I, H), RATES).seconds == pytest.approx(2 * T * B * 4 * H * (I + H) / 2e11)
    assert limit("lstm", (T, B, I, H), RATES).seconds == pytest.approx(6 * T * B * 4 * H * (I + H) / 2e11)
    one = limit("inference", (T, 1, H, H), RATES)
    assert one.name == "recurrent weights from the second cache"
    assert one.seconds == pytest.approx(T * 4 * H * H * 4 / 1e11)
    single = limit("inference", (1, 1, H, H), RATES)  # 2 MB of weights, which stay in the second caches
    assert single.seconds == pytest.approx((8 * H * H * 4 + 8 * H) / 1e11)
    assert single.name == "memory"
    large = limit("inference-bfloat16", (T, 1, 1024, 1024), RATES)
    assert large.seconds == pytest.approx(T * 4 * 1024 ** 2 * 2 / 1e10)
    assert limit("streaming", (1, 1, 64, 64), RATES) is None
    without = RATES | {"bfloat16_products": None}  # a processor that does not multiply it
    assert limit("lstm-bfloat16", (T, B, I, H), without) is None
    assert limit("lstm", (T, B, I, H), without) == limit("lstm", (T, B, I, H), RATES)


def test_slopes_are_those_of_the_upper_half():
    sizes = [1, 2, 4, 8, 16, 32]
    assert slope(sizes, [1.0] * 3 + [float(n) for n in sizes[3:]]) == pytest.approx(1.0)
    assert slope([1, 10], [2.0, 200.0]) == pytest.approx(2.0)


def test_the_chart_shows_every_case_with_its_means(tmp_path):
    group = Group("Made up", ("lstm",), ("torch.nn", ONEDNN_OFF), 1.0, 1.0)
    loops = Group("Cells", ("own",), ("eager loop", "JAX scan"), 1.0, 1.0)
    measured = {"lstm": {"100,1,64,64": times(**{OURS: 1.0, "torch.nn": 3.0, ONEDNN_OFF: 2.0})},
                "own": {"100,32,512,512": times(**{OURS: 1.0, "eager loop": 9.0, "JAX scan": 5.0})}}
    machine = {"cpu": "a processor", "threads": 2, "date": "2026-01-01T00:00:00"}
    results = {"machine": machine, "groups": [as_data(g, rows(g, measured, None)) for g in (group, loops)]}
    with matplotlib.rc_context(chart.STYLE | {"backend": "agg"}):
        chart.save(chart.chart(results), tmp_path / "bench")
    drawn = (tmp_path / "bench.svg").read_text()
    shown = ("LSTM, training", "a user's own cell, training", "3.0×", "2.0×", "9.0×", "5.0×")
    assert [text for text in shown if f">{text}<" not in drawn] == []
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_an_empty_run_has_no_chart():
    with pytest.raises(SystemExit, match="no case"):
        chart.chart({"groups": []})
