"""Several processes that train one model do together what one does with batches as large as all of theirs."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import polars
import pytest
import torch
from data_classify_text import write_mr
from hypothesis import given, settings
from hypothesis import strategies as st
from language_models import REFERENCE
from safetensors.torch import load_file
from torch import distributed

from gatework.recipes import RecipeError, batches, run
from gatework.recipes.batches import Batches
from gatework.recipes.find import find_recipe
from gatework.recipes.settings import Settings


def texts(folder: Path) -> Path:
    """83 rows, five batches of 16 and one of 3, for two processes 2 and 1; 10 to validate."""
    write_mr(folder, 104)
    polars.read_parquet(folder / "train.parquet").head(83).write_parquet(folder / "train.parquet")
    return folder


def running_text(folder: Path) -> Path:
    """Streams of 1350 characters that end in the middle of a step, and two of them to validate."""
    (folder / "text.txt").write_text(REFERENCE[:24000], encoding="utf-8")
    return folder / "text.txt"


SMALL = ["--hidden", "8", "--embedding", "8", "--dropout", "0", "--precision", "64-true",
         "--learning-rate", "0.01", "--cell", "elman"]
ENDLESS = find_recipe("classify-text").Settings(hidden=8, embedding=8, epochs=1000, dropout=0.0, learning_rate=0.01,
                                                precision="64-true", cell="elman")  # the same as options
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.parametrize(("launcher", "name", "data", "more"), [
    (TORCHRUN, "classify-text", texts, ["--word-dropout", "0"]),
    ([], "language-model", running_text, ["--seq-len", "100"])], ids=["torchrun", "Lightning's launcher"])
def test_two_processes_end_with_the_losses_and_weights_of_one_with_twice_the_batch(launcher, name, data, more,
                                                                                   tmp_path):
    source = data(tmp_path)
    arguments = ["train", name, str(source), *SMALL, *more, "--epochs", "2"]
    command = [sys.executable, *launcher, "-m", "gatework", *arguments, "--batch-size", "8", "--devices", "2"]
    two = subprocess.run([*command, "--out", "two"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
                         capture_output=True, text=True)
    assert two.returncode == 0, two.stderr
    for line in ("to validate", "epoch 2 of 2", "this model", "Saved in two"):
        assert two.stdout.count(line) == 1, two.stdout
    recipe = find_recipe(name)
    used = run.load(tmp_path / "two").settings
    run.train(recipe, source, recipe.Settings(**asdict(used) | dict(batch_size=16, devices=1)), tmp_path / "one")
    # Doubles, added up in another order over some dozen steps of AdamW, which divides by the size of the gradient.
    one, other = (list(csv.DictReader((tmp_path / f / "history.csv").read_text().splitlines())) for f in ("one", "two"))
    for row, same in zip(one, other, strict=True):
        assert {k: float(v) for k, v in same.items()} == pytest.approx({k: float(v) for k, v in row.items()}, rel=1e-9)
    weights, same = (load_file(tmp_path / folder / "model.safetensors") for folder in ("one", "two"))
    assert weights.keys() == same.keys()
    for tensor in weights:
        torch.testing.assert_close(same[tensor], weights[tensor], rtol=0, atol=1e-8)


@settings(deadline=None, max_examples=60)
@given(count=st.integers(3, 60), size=st.integers(1, 4), world=st.integers(2, 3), seed=st.none() | st.integers(0, 9),
       pool=st.integers(1, 4))
def test_the_batches_of_all_processes_are_those_of_one_with_larger_batches(count, size, world, seed, pool):
    examples = [(k, k * 7 % 10) for k in range(count)]

    def of(rank, world, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "get_rank", lambda: rank)
            patch.setattr(batches, "POOL", pool)
            made = Batches(examples, list, size, length=lambda e: e[1], seed=seed, world=world)
            return [list(made) for _ in range(2)], len(made)

    shares, lengths = zip(*(of(rank, world, size) for rank in range(world)))
    assert len(set(lengths)) == 1
    for epoch in zip(*shares, strict=True):
        assert all(len(of_rank) == lengths[0] for of_rank in epoch)
        for parts in zip(*epoch, strict=True):
            assert all(parts), "a process without rows would wait for ever"
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
        assert sorted(e for of_rank in epoch for part in of_rank for e in part) == examples
    if count % (size * world) not in range(1, world):  # else the rest joins the batch before
        whole, _ = of(0, 1, size * world)
        together = [[sorted(sum(parts, [])) for parts in zip(*epoch)] for epoch in zip(*shares)]
        assert together == [[sorted(batch) for batch in epoch] for epoch in whole]


def test_fewer_rows_than_processes_are_refused():
    with pytest.raises(RecipeError, match="there are 2 examples for 3 processes; each needs one"):
        Batches([1, 2], list, 1, world=3)


@pytest.mark.parametrize(("environment", "said"), [
    ({"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}, "torchrun started 2 processes, --devices 1 on --nodes 1 are 1"),
    ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 processes, --devices 1 on --nodes 1 are 1")],
    ids=["torchrun", "srun"])
def test_processes_that_would_each_train_a_model_of_their_own_are_refused(environment, said, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match=said):
        run.check_processes(Settings())


def test_sigterm_ends_two_processes_at_once_and_their_run_is_not_resumed_by_one(tmp_path):
    # Lightning's own answer makes each wait for the others, which wait for it.
    source = texts(tmp_path)
    command = [sys.executable, "-m", "gatework", "train", "classify-text", str(source), *SMALL, "--devices", "2",
               "--batch-size", "4", "--out", "out"]
    where = dict(cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"})
    endless = subprocess.Popen([*command, "--epochs", "1000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                               **where)
    checkpoint, until = tmp_path / "out" / "last.ckpt", time.monotonic() + 300
    while not checkpoint.exists() and endless.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    endless.send_signal(signal.SIGTERM)
    assert endless.wait(60) == -signal.SIGTERM
    with pytest.raises(RecipeError, match="another number of processes: 2 then, 1 now"):
        run.train(find_recipe("classify-text"), source, replace(ENDLESS, batch_size=4), tmp_path / "out", resume=True)
    assert torch.load(checkpoint, weights_only=True)["global_step"] > 0


def test_seeds_up_to_the_largest_give_torch_a_seed_it_takes():
    torch.manual_seed(Settings(seed=2**31 - 1).seed * 2**32 + 2**30 * 2**10 + 1023)  # steps, processes
