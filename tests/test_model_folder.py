"""The folder of a language model: written whole or not at all, and refused where it is spoilt or hostile."""

import json
import math
import os
import pickle
from hashlib import sha256

import pytest
import safetensors.torch
import torch
from language_models import Payload

from gatework.recipes import model_folder, run, vocabulary
from gatework.recipes.model_folder import ModelFolderError
from gatework.recipes.run import figures_of, load


@pytest.fixture
def folder(trained, tmp_path):
    """A copy of the trained model that a test may spoil."""
    for name in ("model.json", "model.safetensors"):
        (tmp_path / name).write_bytes((trained[0] / name).read_bytes())
    return tmp_path


def test_a_folder_read_back_gives_exactly_the_model_that_was_saved(trained, tmp_path):
    model = load(trained[0])
    run.save(model, tmp_path / "copy", figures_of(trained[0]))
    again = load(tmp_path / "copy")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert again.facts == model.facts
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
    "other recipe": (lambda f: edit(f, recipe="tagger"), "no recipe 'tagger'"),
    "unknown entry": (lambda f: edit(f, run="rm"), "unknown entries .'run'"),
    "facts a list": (lambda f: edit(f, facts=["a"]), "'facts' must be of type dict"),
    "facts empty": (lambda f: edit(f, facts={}), "model.json .* KeyError"),
    "tokenizer spoilt": (lambda f: edit(f, facts={"tokenizer": "{"}), "model.json is no usable part"),
    "vocabulary short": (lambda f: edit(f, facts={"tokenizer": vocabulary.learn("ab", "characters", 9).to_str()}),
                         "asks for"),
    "cell a string": (lambda f: edit(f, cell="os.system"), "'cell' must be of type dict"),
    "cell empty": (lambda f: edit(f, cell={}), "its cell cannot be used"),
    "cell lies": (lie_in_the_graph, "its cell cannot be used .* unknown operation"),
    "setting unknown": (lambda f: edit_settings(f, path="../x"), "settings path are unknown"),
    "setting wrong type": (lambda f: edit_settings(f, hidden="48"), "--hidden must be a whole number"),
    "setting wrong size": (lambda f: edit_settings(f, hidden=49), "asks for"),
    "setting huge": (lambda f: edit_settings(f, hidden=2**31 - 1), "model.json|asks for"),
    "layers huge": (lambda f: edit_settings(f, layers=2**31 - 1), "more layers than its tensors hold"),
    "tensor missing": (lambda f: replace_tensors(f, **{"decoder.bias": None}), "'decoder.bias' is missing"),
    "tensor with a path": (lambda f: replace_tensors(f, **{"../../x": torch.zeros(1)}),
                           "'../../x' .* asks for missing"),
    "tensor of another type": (lambda f: replace_tensors(f, **{"decoder.bias": torch.zeros(3, dtype=torch.float16)}),
                               "torch.float16"),
    "tensor not finite": (lambda f: replace_tensors(f, **{"embedding.weight": torch.full((94, 16), math.nan)}),
                          "not finite"),
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
        run.save(model, tmp_path / "m", {})
    with pytest.raises(ModelFolderError, match="there is no file"):
        load(tmp_path / "m")
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(OSError, match="no space"):
        model_folder.write_whole(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
