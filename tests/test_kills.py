"""Runs that are killed at any moment and go on: what they end with has the bits of a run that nothing happened to."""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from data_classify_text import write_mr
from language_models import REFERENCE

from gatework.recipes import checkpoints, language_model, run
from gatework.recipes.classify_text import ClassifyText, Settings
from gatework.recipes.language_model import LanguageModel
from gatework.recipes.model_folder import DESCRIPTION
from gatework.recipes.recipe import Recipe
from gatework.recipes.settings import Settings as AnySettings

STEPS = 5  # between checkpoints


@dataclass(frozen=True)
class Job:
    recipe: type[Recipe]
    source: Path
    settings: AnySettings


class Texts(ClassifyText):
    """Without what comes after the training and takes most of the time."""

    picture = Recipe.picture
    baselines = Recipe.baselines


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Small runs of 7 or 8 batches per epoch; one of them stops by itself, and its best epoch is not the last."""
    texts = tmp_path_factory.mktemp("texts")
    write_mr(texts, 66)
    running = texts.with_suffix(".txt")
    running.write_text(REFERENCE[:500], encoding="utf-8")
    plain = Settings(cell="gru", hidden=8, embedding=8, batch_size=8, epochs=3, learning_rate=0.02)
    return {"plain": Job(Texts, texts, plain),
            "stops early": Job(Texts, texts, replace(plain, epochs=9, patience=1, seed=1)),
            "running text": Job(LanguageModel, running, language_model.Settings(
                hidden=8, embedding=4, batch_size=4, seq_len=16, epochs=2, variational_dropout=0.2, optimizer="sgd",
                learning_rate=1.0, steady=1)),
            "bf16": Job(Texts, texts, replace(plain, precision="bf16-mixed", epochs=2))}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    # More threads add up in other orders from run to run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STEPS", STEPS)
    yield
    torch.set_num_threads(threads)


def go(job: Job, out: Path) -> None:
    """Train, or go on where there is a checkpoint."""
    run.train(job.recipe, job.source, job.settings, out, resume=(out / checkpoints.CHECKPOINT).exists())


def files(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in out.iterdir() if p.suffix != ".part"}


def differing(found: dict[str, bytes], expected: dict[str, bytes]) -> list[str]:
    return [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]


# Every checkpoint.


@pytest.mark.parametrize(("name", "steps"), [
    ("plain", [5, 7, 10, 14, 15, 20, 21]),  # in the middle and at the end of each epoch, and at the end of the run
    ("stops early", [5, 7, 10]),  # not at the end of the epoch in which it is decided to stop
    ("running text", [5, 8, 10, 15, 16]), ("bf16", [5, 7, 10, 14])])
def test_from_each_checkpoint_on_a_run_ends_with_the_same_bits_though_its_folder_was_moved(name, steps, jobs, tmp_path,
                                                                                           monkeypatch):
    write, kept = checkpoints.WholeCheckpoints.save_checkpoint, []

    def keep(self, checkpoint, path, storage_options=None):
        write(self, checkpoint, path)
        if path.name == checkpoints.CHECKPOINT:
            kept.append(checkpoint["global_step"])
            shutil.copytree(path.parent, tmp_path / f"after {kept[-1]}")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.WholeCheckpoints, "save_checkpoint", keep)
        go(jobs[name], tmp_path / "whole")
    assert kept == steps
    expected = files(tmp_path / "whole")
    for step in steps:
        go(jobs[name], tmp_path / f"after {step}")
        assert differing(files(tmp_path / f"after {step}"), expected) == [], f"after {step}"


def test_the_run_that_stops_early_keeps_the_weights_of_its_best_epoch(jobs, tmp_path):
    job = jobs["stops early"]
    go(job, tmp_path / "out")
    history = list(csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines()))
    assert len(history) < job.settings.epochs
    best = max(range(len(history)), key=lambda k: float(history[k]["valid_accuracy"]))
    assert best < len(history) - 1
    model = run.load(tmp_path / "out", Texts)
    table = Texts.read(str(job.source), job.settings).valid
    assert model.figures(table)["accuracy"] == pytest.approx(float(history[best]["valid_accuracy"]), abs=1e-6)


def test_bf16_mixed_lowers_the_loss_and_keeps_weights_of_float32(jobs, tmp_path):
    job = jobs["bf16"]
    go(replace(job, settings=replace(job.settings, epochs=6, dropout=0.0, learning_rate=0.05)), tmp_path / "out")
    first, *_, last = csv.DictReader((tmp_path / "out" / "history.csv").read_text().splitlines())
    assert float(last["train_loss"]) < 0.9 * float(first["train_loss"])
    assert {p.dtype for p in run.load(tmp_path / "out", Texts).parameters()} == {torch.float32}


def test_sigterm_writes_a_checkpoint_of_the_step_and_the_run_goes_on_from_it(jobs, tmp_path, monkeypatch):
    go(jobs["plain"], tmp_path / "whole")
    loss = Texts.loss

    def told_to_end(self, batch):
        if self.training and self.global_step == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Texts, "loss", told_to_end)
        with pytest.raises(KeyboardInterrupt):
            go(jobs["plain"], tmp_path / "out")
    assert torch.load(tmp_path / "out" / checkpoints.CHECKPOINT, weights_only=True)["global_step"] == 9
    go(jobs["plain"], tmp_path / "out")
    assert differing(files(tmp_path / "out"), files(tmp_path / "whole")) == []


# Any moment.


def work(job: Job, out: Path, moment: tuple[str, float], spent) -> None:
    """Train or go on, and die at a moment: ("seconds", s) after s seconds of computing, wherever that is; ("write", n)
    at the n-th beginning or end of what brings a file to the disk. `spent` is what a whole run takes of both."""
    torch.set_num_threads(1)
    checkpoints.CHECKPOINT_STEPS = STEPS
    kind, when = moment
    spent[:] = [0, 0]

    def watched(function):
        def call(*args):
            for act in (lambda: None, lambda: function(*args)):
                act()
                spent[1] += 1
                if kind == "write" and spent[1] == when:
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    os.fsync, os.replace = map(watched, (os.fsync, os.replace))
    if kind == "seconds":
        # Nobody handles this signal: the process ends there and then, in the middle of a kernel too. It goes by the
        # clock of the processor, so that a busy machine changes nothing.
        signal.setitimer(signal.ITIMER_PROF, when)
    begin = time.process_time()
    go(job, out)
    spent[0] = time.process_time() - begin


@pytest.fixture(scope="module")
def attempt():
    """Runs `work` in a fork of a process that has imported everything; returns its exit code and what it spent."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gatework.recipes.run", "gatework.recipes.classify_text", "pytest", "hypothesis",
                                    "matplotlib.figure", "matplotlib.backends.backend_agg"])
    spent = context.Array("d", 2, lock=False)

    def start(job: Job, out: Path, moment: tuple[str, float] = ("never", 0)) -> tuple[int, list[float]]:
        process = context.Process(target=work, args=(job, out, moment, spent))
        process.start()
        process.join()
        return process.exitcode, list(spent)

    return start


@pytest.fixture(scope="module")
def whole(attempt, jobs, tmp_path_factory):
    """What a run leaves that nothing happens to, and what it spends."""
    out = tmp_path_factory.mktemp("whole") / "out"
    code, spent = attempt(jobs["plain"], out)
    assert code == 0
    return files(out), spent


@pytest.mark.parametrize("seed", range(int(os.environ.get("GATEWORK_KILLS", 3))))  # more, to search for a bad moment
def test_a_run_killed_at_random_moments_ends_with_the_bits_of_one_that_was_not(seed, attempt, jobs, whole, tmp_path):
    expected, (seconds, writes) = whole
    draw, moments, out = random.Random(seed), [], tmp_path / "out"
    for _ in range(3):  # deaths
        moments.append(draw.choice([("seconds", draw.uniform(0, seconds)), ("write", draw.randrange(1, int(writes)))]))
        code, _ = attempt(jobs["plain"], out, moments[-1])
        if code == 0:
            break  # what was left was too short to die in
        assert code in (-signal.SIGKILL, -signal.SIGPROF)
        if (out / DESCRIPTION).exists() and not (out / checkpoints.CHECKPOINT).exists():
            (out / checkpoints.BEST).unlink(missing_ok=True)  # which is all that was left to do
            break
    else:
        assert attempt(jobs["plain"], out)[0] == 0
    assert differing(files(out), expected) == [], moments
