"""From Triton source to callable kernels, and what every kernel is told of a batch."""

from __future__ import annotations

import linecache
from functools import lru_cache
from importlib.abc import InspectLoader
from importlib.util import module_from_spec, spec_from_loader
from types import ModuleType

import torch

from ..batch import Batch


@lru_cache(maxsize=16)
def words(batch: Batch, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Where each step begins and the last one ends, and the rows of each step with a 0 behind them."""
    sizes = torch.nn.functional.pad(torch.from_numpy(batch.sizes), (0, 1))
    offsets = torch.nn.functional.pad(torch.from_numpy(batch.offsets), (1, 0))  # what lies before the first is read
    return offsets.to(device)[1:], sizes.to(device)


class _Source(InspectLoader):
    """A module that is a text. The names in it are checked where it is written."""

    def __init__(self, text: str):
        self.text = text

    def get_source(self, fullname: str) -> str:
        return self.text

    def get_code(self, fullname: str):
        return self.source_to_code(self.text, fullname)


def load(source: str) -> ModuleType:
    """The kernels of a source text. Triton reads it again, so Python must find it."""
    name = f"<gatework kernel {abs(hash(source)):x}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    loader = _Source(source)
    module = module_from_spec(spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
