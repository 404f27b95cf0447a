"""The language-model recipe going on after an interruption, and what it refuses to go on from."""

import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from language_models import REFERENCE, TINY, Payload, Settings, train

from gatework.recipes import RecipeError, checkpoints, run
from gatework.recipes.language_model import LanguageModel
from gatework.recipes.run import load


def train_until(step, monkeypatch, *arguments, **options):
    """Train, and stop with an error before a step."""
    original = LanguageModel.training_step

    def stopping(self, batch, index):
        if self.global_step == step:
            raise InterruptedError(f"before step {step}")
        return original(self, batch, index)

    monkeypatch.setattr(LanguageModel, "training_step", stopping)
    with pytest.raises(InterruptedError):
        train(*arguments, **options)
    monkeypatch.setattr(LanguageModel, "training_step", original)


# An epoch has 5 steps, the run 15: before, at and after a checkpoint and the end of an epoch.
@pytest.mark.parametrize(("every", "step"), [(1, 1), (1, 5), (1, 9), (2, 4), (2, 7), (3, 11), (5, 10), (5, 14)],
                         ids=lambda n: str(n))
def test_a_resumed_run_ends_with_exactly_the_weights_of_one_that_never_stopped(every, step, text, tmp_path, monkeypatch,
                                                                              float64):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STEPS", every)
    whole = train(text, TINY, tmp_path / "whole").state_dict()
    train_until(step, monkeypatch, text, TINY, tmp_path / "stopped")
    assert not (tmp_path / "stopped" / "model.json").exists()
    resumed = train(text, TINY, tmp_path / "stopped", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_run_stopped_after_its_last_step_resumes_to_the_same_model(text, tmp_path, monkeypatch, float64):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STEPS", 5)
    whole = train(text, TINY, tmp_path / "whole").state_dict()
    with monkeypatch.context() as patch:
        patch.setattr(run, "save", lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            train(text, TINY, tmp_path / "stopped")
    resumed = train(text, TINY, tmp_path / "stopped", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert {"last.ckpt", "best.ckpt"}.isdisjoint(os.listdir(tmp_path / "stopped"))


def test_a_run_killed_by_sigkill_goes_on_with_resume(tmp_path):
    (tmp_path / "text.txt").write_text(REFERENCE[:30000], encoding="utf-8")
    settings = Settings(hidden=16, embedding=8, epochs=3, batch_size=8, seq_len=32)
    code = ("import pathlib; from gatework.recipes import checkpoints, run\n"
            "from gatework.recipes.language_model import LanguageModel, Settings\n"
            "checkpoints.CHECKPOINT_STEPS = 5\n"
            f"run.train(LanguageModel, 'text.txt', {settings!r}, pathlib.Path('model'))")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoint, until = tmp_path / "model" / "last.ckpt", time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "model" / "model.json").exists()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    model = train(tmp_path / "text.txt", settings, tmp_path / "model", resume=True)
    assert 0 < step < model.total_steps
    assert load(tmp_path / "model").facts == model.facts


@pytest.mark.parametrize(("change", "said"), [(dict(hidden=9), "hidden: 8 then, 9 now"), (dict(cell="lstm"), "cell")])
def test_a_run_is_not_resumed_with_other_settings(change, said, text, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STEPS", 1)
    train_until(2, monkeypatch, text, TINY, tmp_path / "m")
    with pytest.raises(RecipeError, match=said):
        train(text, replace(TINY, **change), tmp_path / "m", resume=True)
    with pytest.raises(RecipeError, match="go on with --resume"):
        train(text, TINY, tmp_path / "m")
    text.write_text(REFERENCE[1:601], encoding="utf-8")
    with pytest.raises(RecipeError, match="another data"):
        train(text, TINY, tmp_path / "m", resume=True)


def test_resume_without_a_checkpoint_and_training_over_a_model_are_refused(text, tmp_path):
    with pytest.raises(RecipeError, match="Leave out --resume"):
        train(text, TINY, tmp_path / "m", resume=True)
    train(text, TINY, tmp_path / "m")
    with pytest.raises(RecipeError, match="is finished"):
        train(text, TINY, tmp_path / "m", resume=True)
    with pytest.raises(RecipeError, match="finished model; choose another --out"):
        train(text, TINY, tmp_path / "m")


def hostile_checkpoint(path, marker):
    torch.save({"started_with": Payload(marker)}, path)


@pytest.mark.parametrize("write", [
    hostile_checkpoint, lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    lambda path, marker: path.write_bytes(b""), lambda path, marker: path.write_bytes(b"PK\3\4 cut off"),
    lambda path, marker: torch.save([1], path)], ids=["hostile zip", "hostile pickle", "empty", "truncated", "other"])
def test_a_spoilt_or_hostile_checkpoint_is_refused_and_runs_nothing(write, text, tmp_path):
    (tmp_path / "m").mkdir()
    write(tmp_path / "m" / "last.ckpt", tmp_path / "marker")
    with pytest.raises(RecipeError, match="is no checkpoint of a recipe"):
        train(text, TINY, tmp_path / "m", resume=True)
    assert not (tmp_path / "marker").exists()
