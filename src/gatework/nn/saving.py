"""Receives a layer, hands on a folder that `load` and `gatework.runtime.load` read: its weights, its cell as data."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from ..runtime.description import Description
from ..runtime.folder import DESCRIPTION, FolderError, safetensors
from .recurrent import TORCH_NAMES, Recurrent

# What a layer is made with beside what its description says: options that only training, or a call's form, asks for.
OPTIONS = ("bias", "batch_first", "dropout", "proj_size", "zoneout", "recurrent_dropout", "variational_dropout",
           "weight_dropout", "init", "forget_bias", "chrono_steps", "checkpoint_every", "backend")


def save(layer: Recurrent, folder: str | os.PathLike) -> None:
    """Write a layer into a folder, made if it does not exist: `model.safetensors` and `model.json`.

    Every cell and option is kept, a cell of your own as its graph, without its file. The description is written last,
    so what was interrupted is no model. Raises TypeError for what is no layer of `gatework.nn`, ValueError for one
    whose parameters are not its own any more (parametrised, pruned, or with further ones).

    >>> import gatework, tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> layer = gatework.nn.GRU(8, 16)
    >>> gatework.nn.save(layer, folder)
    >>> x = torch.randn(5, 3, 8)
    >>> torch.equal(gatework.nn.load(folder)(x)[0], layer(x)[0])
    True
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"save takes a layer of gatework.nn; {type(layer).__name__} was given. For a model of several "
                        "layers save each in a folder of its own, or use safetensors.torch.save_model")
    options = {name: dict(value) if isinstance(value := getattr(layer, name), Mapping) else value for name in OPTIONS}
    description = Description(
        layer.cell, layer.evaluation_cell, dict(layer.sizes), {f: TORCH_NAMES.get(f, f) for f in layer.cell.families},
        str(layer.first_parameter.dtype).removeprefix("torch."), layer.num_layers, layer.bidirectional,
        layer.initial_state, options)
    tensors = layer.state_dict()
    needed = dict(description.shapes())
    if tensors.keys() != needed.keys():
        changed = ", ".join(sorted(tensors.keys() ^ needed.keys()))
        raise ValueError(f"the layer's parameters are not those that it was made with: {changed}. Undo what replaces "
                         "or adds them (torch.nn.utils.parametrize.remove_parametrizations) before saving")
    data = safetensors("torch").save({k: v.detach().cpu().clone() for k, v in tensors.items()})
    description.write(Path(folder), data)


def load(folder: str | os.PathLike, device: torch.device | str | None = None) -> Recurrent:
    """Read a layer that `save` wrote, as a `Recurrent` in evaluation mode. Runs nothing that the folder brings.

    Raises FolderError (`gatework.runtime.FolderError`), naming the file and what to do, for a folder that is not whole
    or does not hold together.
    """
    folder = Path(folder)
    description, digest = Description.read(folder)
    tensors = description.tensors(folder, digest, "torch")
    options, dtype = description.options, next(iter(tensors.values())).dtype
    if sorted(options) != sorted(OPTIONS) or not dtype.is_floating_point:
        raise FolderError(f"{folder / DESCRIPTION} describes a layer with the options {', '.join(options)} and weights "
                          f"of {dtype}; this version of gatework knows {', '.join(OPTIONS)}, and floating-point "
                          "weights. Use the version that wrote it")
    further = {n: size for n, size in description.sizes.items() if n not in ("I", "H") and not (
        n == "P" and options["proj_size"])}
    try:
        layer = Recurrent(description.cell, description.sizes["I"], description.sizes["H"], description.num_layers,
                          bidirectional=description.bidirectional, initial_state=description.initial_state,
                          sizes=further, device="meta", dtype=dtype, **options)
        layer.load_state_dict(tensors, strict=True, assign=True)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FolderError(f"{folder / DESCRIPTION} describes a layer that cannot be made: {error}") from error
    return layer.to(device).eval()
