"""The folder of a saved layer: written whole or not at all, and refused where it is spoilt, hostile, or cannot run."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import shutil
import subprocess
import sys
from hashlib import sha256

import pytest
import safetensors.torch
import torch
from language_models import Payload

import gatework.runtime
from gatework import cells, nn
from gatework.compiler import Input, Matrix, State, tanh
from gatework.nn import saving
from gatework.runtime import FolderError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    nn.save(nn.LSTM(5, 12, num_layers=2, initial_state=True), folder)
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy that a test may spoil."""
    return shutil.copytree(made, tmp_path / "copy")


def edit(folder, **changes):
    content = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(content | changes))


def edit_within(folder, entry, **changes):
    edit(folder, **{entry: json.loads((folder / "model.json").read_text())[entry] | changes})


def replace_tensors(folder, **changes):
    """Change tensors and, as someone who wants to deceive would, the digest."""
    data = safetensors.torch.load_file(folder / "model.safetensors") | changes
    claim_bytes(folder, safetensors.torch.save({k: v for k, v in data.items() if v is not None}))


def claim_bytes(folder, data):
    (folder / "model.safetensors").write_bytes(data)
    edit(folder, tensors_sha256=sha256(data).hexdigest())


def lie_in_the_graph(folder):
    cell = json.loads((folder / "model.json").read_text())["evaluation_cell"]
    cell["values"][0]["op"] = "system"
    edit(folder, evaluation_cell=cell)


def other_gates(folder):
    """An evaluation cell of more rows than the tensors hold: read on trust, it would read beyond their end."""
    edit(folder, evaluation_cell=gatework.runtime.folder.cell_as_data(gatework.trace(cells.peephole_lstm)))


SPOILT = {
    "no description": (lambda f: (f / "model.json").unlink(), "no file .*model.json"),
    "no tensors": (lambda f: (f / "model.safetensors").unlink(), "no file .*model.safetensors"),
    "tensors cut off": (lambda f: os.truncate(f / "model.safetensors", 5000), "model.safetensors .* cut off"),
    "description cut off": (lambda f: os.truncate(f / "model.json", 500), "model.json .* not JSON"),
    "description nested": (lambda f: (f / "model.json").write_text("[" * 10**6), "model.json .* not JSON"),
    "cell nested": (lambda f: edit(f, cell=json.loads('{"a":' * 900 + "1" + "}" * 900)), "its cell cannot be used"),
    "later format": (lambda f: edit(f, format=2), "format version 2; .* reads version 1"),
    "a recipe's": (lambda f: edit(f, recipe="language-model"), "unknown entries .'recipe'"),
    "no cell": (lambda f: edit(f, cell=None), "'cell' must be of type dict; `gatework.nn.save` writes one"),
    "cell lies": (lie_in_the_graph, "its evaluation_cell cannot be used .* unknown operation"),
    "other cell": (other_gates, "its evaluation_cell has other parameters"),
    "size huge": (lambda f: edit_within(f, "sizes", H=10**12), "size H must be a whole number from 1 to"),
    "size wrong": (lambda f: edit_within(f, "sizes", H=13), "'bias_hh_l0' has shape .48,., .* asks that .* .52,."),
    "size a text": (lambda f: edit_within(f, "sizes", H="12"), "'12' was given"),
    "size missing": (lambda f: edit(f, sizes={"H": 12}), "its cell has the sizes I, H; given are H"),
    "layers huge": (lambda f: edit(f, num_layers=2**62), "it has 12 tensors, too few"),
    "layers none": (lambda f: edit(f, num_layers=0), "num_layers must be at least 1"),
    "layers fewer": (lambda f: edit(f, num_layers=1), "asks that it is missing"),
    "one name twice": (lambda f: edit_within(f, "parameters", U="weight_ih"), "two parameters one name"),
    "name of nothing": (lambda f: edit_within(f, "parameters", V="x"), "must name those of the cell, W, U, b, d"),
    "name a number": (lambda f: edit_within(f, "parameters", U=1), "must name those of the cell"),
    "tensor missing": (lambda f: replace_tensors(f, bias_ih_l1=None), "'bias_ih_l1' is missing"),
    "tensor with a path": (lambda f: replace_tensors(f, **{"../x": torch.zeros(1)}), "'../x' .* that it is missing"),
    "two dtypes": (lambda f: replace_tensors(f, bias_ih_l1=torch.zeros(48, dtype=torch.float64)),
                   "'bias_ih_l1' has dtype .*float64, .* asks for float32"),
    "other dtype": (lambda f: edit(f, dtype="float64"), "has dtype .*float32, .* asks for float64"),
    "no bytes": (lambda f: claim_bytes(f, b""), "not a safetensors file"),
    "huge header": (lambda f: claim_bytes(f, (2**62).to_bytes(8, "little")), "not a safetensors file"),
    "a pickle": (lambda f: claim_bytes(f, pickle.dumps(Payload(f / "marker"))), "not a safetensors file"),
}


def sized_as_the_input(x: Input, m: Input, h: State, W: Matrix, U: Matrix):
    return dict(h=tanh(W.x @ x + W.m @ m + U @ h))


@pytest.mark.parametrize("load", [gatework.runtime.load, nn.load], ids=["runtime", "nn"])
@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_spoilt_or_hostile_folder_is_refused_and_runs_nothing(spoil, said, load, folder):
    spoil(folder)
    with pytest.raises(FolderError, match=f"(?s){said}"):
        load(folder)
    assert not (folder / "marker").exists()


def test_options_that_make_no_layer_are_refused(folder):
    edit_within(folder, "options", dropout=7)
    with pytest.raises(FolderError, match="cannot be made: dropout is a probability"):
        nn.load(folder)
    edit_within(folder, "options", path="../x")
    with pytest.raises(FolderError, match="with the options .*path"):
        nn.load(folder)


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FolderError, match="there is no folder .*nowhere; give .* `gatework.nn.save`"):
        gatework.runtime.load(tmp_path / "nowhere")


def test_what_the_runtime_cannot_run_is_refused_and_stays_readable_in_torch(tmp_path):
    nn.save(nn.GRU(5, 12, bidirectional=True), tmp_path / "both")
    with pytest.raises(ValueError, match="bidirectional layer, .* cannot go step by step"):
        gatework.runtime.load(tmp_path / "both")
    assert nn.load(tmp_path / "both").bidirectional
    for dtype in (torch.bfloat16, torch.float16):
        nn.save(nn.GRU(5, 12, dtype=dtype), tmp_path / "half")
        with pytest.raises(ValueError, match=f"weights of {dtype}; .* float32 or float64".replace("torch.", "")):
            gatework.runtime.load(tmp_path / "half")
        assert nn.load(tmp_path / "half").weight_ih_l0.dtype == dtype


def test_a_further_input_that_cannot_fit_all_layers_is_refused(tmp_path):
    nn.save(nn.Recurrent(sized_as_the_input, 5, 12, num_layers=2), tmp_path)
    with pytest.raises(FolderError, match="inputs of 5 and 12 features, but m must have the size I in all"):
        gatework.runtime.load(tmp_path)


def test_only_layers_with_their_own_parameters_are_saved(tmp_path):
    with pytest.raises(TypeError, match="layer of gatework.nn; LSTM was given"):
        nn.save(torch.nn.LSTM(5, 12), tmp_path)
    layer = nn.LSTM(5, 12)
    torch.nn.utils.parametrizations.weight_norm(layer, "weight_hh_l0")
    with pytest.raises(ValueError, match="parametrizations.weight_hh_l0"):
        nn.save(layer, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("files_written", [0, 1])
def test_saving_that_fails_halfway_leaves_no_model(files_written, tmp_path, monkeypatch):
    calls = []

    def full_disk(handle):
        calls.append(handle)
        if len(calls) > files_written:
            raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        nn.save(nn.LSTM(5, 12), tmp_path)
    with pytest.raises(FolderError, match="there is no file"):
        gatework.runtime.load(tmp_path)


def test_a_missing_safetensors_is_answered_with_what_to_type(folder):
    code = ("import sys, gatework.runtime; sys.modules['safetensors'] = sys.modules['safetensors.numpy'] = None\n"
            "try: gatework.runtime.load(sys.argv[1])\nexcept ImportError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert "pip install 'gatework[runtime]'" in done.stdout


def test_every_option_of_a_layer_is_in_the_description():
    elsewhere = {"self", "cell", "input_size", "hidden_size", "num_layers", "bidirectional", "device", "dtype", "sizes",
                 "initial_state"}
    assert set(inspect.signature(gatework.nn.Recurrent.__init__).parameters) - elsewhere == set(saving.OPTIONS)
