"""The language-model recipe: its data, its numbers, going on after an interruption, and the folder it saves."""

import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from hashlib import sha256
from pydoc_data.topics import topics

import pytest
import safetensors.torch
import torch
from torch.nn import functional

from gatework.recipes import RecipeError, checkpoints, language_model, model_folder
from gatework.recipes.language_model import Chunks, baselines, count_pairs, encode, evaluate, load, sample, train
from gatework.recipes.model_folder import ModelFolderError
from gatework.recipes.settings import LanguageModelSettings

REFERENCE = "\n\n".join(topics.values())
TINY = LanguageModelSettings(cell="gru", hidden=8, layers=2, embedding=4, dropout=0.3, epochs=3, batch_size=4,
                             seq_len=30)


@pytest.fixture
def float64():
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def text(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text(REFERENCE[:600], encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model of 30000 characters of real text, and that text."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(REFERENCE[:30000], encoding="utf-8")
    settings = LanguageModelSettings(cell="peephole_lstm", hidden=48, embedding=16, epochs=4, batch_size=16, seq_len=32,
                                     learning_rate=0.02)
    train(folder / "text.txt", settings, folder / "model")
    return folder / "model", folder / "text.txt"


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the trained model that a test may spoil."""
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    return tmp_path


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


def train_until(step, monkeypatch, *arguments, **options):
    """Train, and stop with an error before a step."""
    original = language_model.LanguageModel.training_step

    def stopping(self, batch, index):
        if self.global_step == step:
            raise InterruptedError(f"before step {step}")
        return original(self, batch, index)

    monkeypatch.setattr(language_model.LanguageModel, "training_step", stopping)
    with pytest.raises(InterruptedError):
        train(*arguments, **options)
    monkeypatch.setattr(language_model.LanguageModel, "training_step", original)


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
        patch.setattr(language_model, "save", lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            train(text, TINY, tmp_path / "stopped")
    resumed = train(text, TINY, tmp_path / "stopped", resume=True).state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert sorted(os.listdir(tmp_path / "stopped")) == ["model.json", "model.safetensors"]


def test_a_run_killed_by_sigkill_goes_on_with_resume(tmp_path):
    (tmp_path / "text.txt").write_text(REFERENCE[:30000], encoding="utf-8")
    settings = LanguageModelSettings(hidden=16, embedding=8, epochs=3, batch_size=8, seq_len=32)
    code = ("import sys, pathlib; from gatework.recipes import checkpoints, language_model, settings\n"
            "checkpoints.CHECKPOINT_STEPS = 5\n"
            f"language_model.train(pathlib.Path('text.txt'), settings.{settings!r}, pathlib.Path('model'))")
    run = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.DEVNULL)
    checkpoint, until = tmp_path / "model" / "last.ckpt", time.monotonic() + 60
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not (tmp_path / "model" / "model.json").exists()
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    model = train(tmp_path / "text.txt", settings, tmp_path / "model", resume=True)
    assert 0 < step < model.total_steps
    assert load(tmp_path / "model").vocabulary == model.vocabulary


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(text, tmp_path):
    first, again = (train(text, TINY, tmp_path / name).decoder.weight for name in "ab")
    other = train(text, replace(TINY, seed=1), tmp_path / "c").decoder.weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("change", "said"), [(dict(hidden=9), "hidden: 8 then, 9 now"), (dict(cell="lstm"), "cell")])
def test_a_run_is_not_resumed_with_other_settings(change, said, text, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STEPS", 1)
    train_until(2, monkeypatch, text, TINY, tmp_path / "m")
    with pytest.raises(RecipeError, match=said):
        train(text, replace(TINY, **change), tmp_path / "m", resume=True)
    with pytest.raises(RecipeError, match="go on with --resume"):
        train(text, TINY, tmp_path / "m")
    text.write_text(REFERENCE[1:601], encoding="utf-8")
    with pytest.raises(RecipeError, match="another text"):
        train(text, TINY, tmp_path / "m", resume=True)


def test_resume_without_a_checkpoint_and_training_over_a_model_are_refused(text, tmp_path):
    with pytest.raises(RecipeError, match="Leave out --resume"):
        train(text, TINY, tmp_path / "m", resume=True)
    train(text, TINY, tmp_path / "m")
    with pytest.raises(RecipeError, match="is finished"):
        train(text, TINY, tmp_path / "m", resume=True)
    with pytest.raises(RecipeError, match="finished model; choose another --out"):
        train(text, TINY, tmp_path / "m")


class Payload:
    """Unpickled, it would write a file."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def hostile_checkpoint(path, marker):
    torch.save({"started_with": Payload(marker)}, path)


@pytest.mark.parametrize("write", [
    hostile_checkpoint, lambda path, marker: path.write_bytes(pickle.dumps(Payload(marker))),
    lambda path, marker: path.write_bytes(b""), lambda path, marker: path.write_bytes(b"PK\3\4 cut off"),
    lambda path, marker: torch.save([1], path)], ids=["hostile zip", "hostile pickle", "empty", "truncated", "other"])
def test_a_spoilt_or_hostile_checkpoint_is_refused_and_runs_nothing(write, text, tmp_path):
    (tmp_path / "m").mkdir()
    write(tmp_path / "m" / "last.ckpt", tmp_path / "marker")
    with pytest.raises(RecipeError, match="is no checkpoint of this recipe"):
        train(text, TINY, tmp_path / "m", resume=True)
    assert not (tmp_path / "marker").exists()


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


def test_a_folder_read_back_gives_exactly_the_model_that_was_saved(trained, tmp_path):
    model = load(trained[0])
    language_model.save(model, tmp_path / "copy")
    again = load(tmp_path / "copy")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.vocabulary == model.vocabulary
    assert again.settings == model.settings
    assert not again.training
    for name in ("model.json", "model.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (trained[0] / name).read_bytes()


def edit(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | changes))


def edit_settings(folder, **changes):
    edit(folder, settings=json.loads((folder / "model.json").read_text())["settings"] | changes)


def replace_tensors(folder, **changes):
    """Change tensors and, as someone who wants to deceive would, the digest."""
    data = safetensors.torch.load_file(folder / "model.safetensors") | changes
    data = safetensors.torch.save({k: v for k, v in data.items() if v is not None})
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, tensors_sha256=sha256(data).hexdigest())


def claim_bytes(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, tensors_sha256=sha256(data).hexdigest())


def header(entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def lie_in_the_graph(folder):
    cell = json.loads((folder / "model.json").read_text())["cell"]
    cell["values"][0]["op"] = "system"
    edit(folder, cell=cell)


HUGE = {"decoder.weight": dict(dtype="F32", shape=[2**40, 2**20], data_offsets=[0, 2**62])}
SPOILT = {
    "no description": (lambda f: (f / "model.json").unlink(), "model.json"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "tensors cut off": (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors .* cut off"),
    "description cut off": (lambda f: os.truncate(f / "model.json", 500), "model.json .* not JSON"),
    "description empty": (lambda f: os.truncate(f / "model.json", 0), "model.json .* not JSON"),
    "description binary": (lambda f: (f / "model.json").write_bytes(b"\xff\xfe\0"), "model.json .* not JSON"),
    "description nested": (lambda f: (f / "model.json").write_text("[" * 10**6), "model.json .* not JSON"),
    "description a list": (lambda f: (f / "model.json").write_text("[]"), "no format version"),
    "later format": (lambda f: edit(f, format=2), "format version 2; .* reads version 1"),
    "other recipe": (lambda f: edit(f, recipe="tagger"), "recipe 'tagger'"),
    "unknown entry": (lambda f: edit(f, run="rm"), "unknown entries .'run'"),
    "vocabulary a list": (lambda f: edit(f, vocabulary=["a"]), "'vocabulary' must be of type str"),
    "vocabulary short": (lambda f: edit(f, vocabulary="ab"), "asks for"),
    "cell a string": (lambda f: edit(f, cell="os.system"), "'cell' must be of type dict"),
    "cell empty": (lambda f: edit(f, cell={}), "its cell cannot be used"),
    "cell lies": (lie_in_the_graph, "its cell cannot be used .* unknown operation"),
    "setting unknown": (lambda f: edit_settings(f, path="../x"), "unexpected keyword argument 'path'"),
    "setting wrong type": (lambda f: edit_settings(f, hidden="48"), "--hidden must be a whole number"),
    "setting wrong size": (lambda f: edit_settings(f, hidden=49), "asks for"),
    "setting huge": (lambda f: edit_settings(f, hidden=2**31 - 1), "more than its tensors hold"),
    "layers huge": (lambda f: edit_settings(f, layers=2**31 - 1), "more than its tensors hold"),
    "tensor missing": (lambda f: replace_tensors(f, **{"decoder.bias": None}), "'decoder.bias' is missing"),
    "tensor with a path": (lambda f: replace_tensors(f, **{"../../x": torch.zeros(1)}),
                           "'../../x' .* asks for missing"),
    "tensor of another type": (lambda f: replace_tensors(f, **{"decoder.bias": torch.zeros(3, dtype=torch.float16)}),
                               "torch.float16"),
    "tensor not finite": (lambda f: replace_tensors(f, **{"embedding.weight": torch.full((91, 16), math.nan)}),
                          "not finite"),
    "no counts": (lambda f: replace_tensors(f, pairs=None), "pairs"),
    "counts too large": (lambda f: replace_tensors(f, pairs=torch.tensor([10**9]), counts=torch.tensor([1])),
                         "not those of a text"),
    "no bytes": (lambda f: claim_bytes(f, b""), "not a safetensors file"),
    "huge header": (lambda f: claim_bytes(f, (2**62).to_bytes(8, "little")), "not a safetensors file"),
    "huge tensor": (lambda f: claim_bytes(f, header(HUGE)), "not a safetensors file"),
    "a pickle": (lambda f: claim_bytes(f, pickle.dumps(Payload(f / "marker"))), "not a safetensors file"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_or_hostile_folder_is_refused_and_runs_nothing(spoil, said, folder):
    spoil(folder)
    with pytest.raises(ModelFolderError, match=f"(?s){said}"):
        load(folder)
    assert not (folder / "marker").exists()


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ModelFolderError, match="there is no folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("files_written", [0, 1])
def test_saving_that_fails_halfway_leaves_no_model_and_an_old_file_as_it_was(files_written, trained, tmp_path,
                                                                             monkeypatch):
    model, calls = load(trained[0]), []

    def full_disk(handle):
        calls.append(handle)
        if len(calls) > files_written:
            raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        language_model.save(model, tmp_path / "m")
    with pytest.raises(ModelFolderError, match="there is no file"):
        load(tmp_path / "m")
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(OSError, match="no space"):
        model_folder.write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
