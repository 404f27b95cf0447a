"""Receives a text file, hands on its characters as steps of parallel streams.

Beside it, what needs no network: how well counts of characters and of pairs of characters predict a text.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from . import RecipeError
from .settings import LanguageModelSettings

UNKNOWN = 0  # stands for every character that the vocabulary does not have
PADDING = -100  # the target that cross_entropy leaves out


def read_text(file: Path) -> str:
    """The content of a UTF-8 text file. Raises RecipeError if it is missing, empty, or not UTF-8."""
    if not file.is_file():
        raise RecipeError(f"there is no text file {file}; give the path of a file in UTF-8")
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not UTF-8: the byte at offset {error.start} (0x{error.object[error.start]:02x}) "
                          f"does not fit. If it is Latin-1, convert it with: iconv -f latin1 -t utf-8 {file}"
                          ) from error
    if not text:
        raise RecipeError(f"{file} is empty; give a text")
    return text


def split_text(file: Path, text: str, settings: LanguageModelSettings) -> tuple[str, str]:
    """The first nine tenths to train on, the last tenth to validate. Raises RecipeError if it is too short for that."""
    one_batch = settings.batch_size * settings.seq_len + 1
    needed = max(math.ceil(one_batch * 10 / 9), 20)
    if len(text) < needed:
        raise RecipeError(f"{file} has {len(text)} characters; a batch of {settings.batch_size} streams with "
                          f"{settings.seq_len} characters each needs a text of at least {needed}. Lower --batch-size "
                          "or --seq-len, or give a longer text")
    end = len(text) - len(text) // 10
    return text[:end], text[end:]


def encode(text: str, vocabulary: str) -> Tensor:
    """The numbers of the characters, int64 [characters]; 0 for a character that the vocabulary does not have."""
    number = {c: k for k, c in enumerate(vocabulary, start=1)}
    return torch.tensor([number.get(c, UNKNOWN) for c in text], dtype=torch.int64)


class Chunks:
    """A text as consecutive steps (k, inputs [T, B], targets [T, B]), continued by Lightning where a run stopped.

    Stream b reads the b-th part of the text, and what follows a character is its target. The last step may be shorter
    than T; where the last streams have no character left, the target is PADDING.

    >>> [[x.tolist() for x in (inputs, targets)] for k, inputs, targets in Chunks(torch.arange(6), 2, steps=2)]
    [[[[0, 3], [1, 4]], [[1, 4], [2, 5]]], [[[2, 0]], [[3, -100]]]]
    """

    def __init__(self, ids: Tensor, streams: int, steps: int):
        length = math.ceil((len(ids) - 1) / streams)
        pad = (0, streams * length - len(ids) + 1)
        self.inputs = functional.pad(ids[:-1], pad).view(streams, length).t().contiguous()
        self.targets = functional.pad(ids[1:], pad, value=PADDING).view(streams, length).t().contiguous()
        self.steps, self.position = steps, 0

    def __len__(self) -> int:
        return math.ceil(len(self.inputs) / self.steps)

    def __iter__(self):
        for k in range(self.position, len(self)):
            self.position = (k + 1) % len(self)
            part = slice(k * self.steps, (k + 1) * self.steps)
            yield k, self.inputs[part], self.targets[part]

    def state_dict(self) -> dict:
        return {"position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.position = state["position"]


def validation_chunks(ids: Tensor) -> Chunks:
    # A stream begins without knowing what came before: not more than one such guess in 1000 characters.
    return Chunks(ids, streams=max(1, min(32, len(ids) // 1000)), steps=256)


def count_pairs(ids: Tensor, vocabulary_size: int) -> tuple[Tensor, Tensor]:
    """Which characters follow each other (first * vocabulary_size + second, rising), and how often."""
    return torch.unique(ids[:-1] * vocabulary_size + ids[1:], return_counts=True)


def baselines(pairs: Tensor, counts: Tensor, vocabulary_size: int, ids: Tensor) -> dict[str, float]:
    """Bits per character of the unigram and the bigram model with these counts, add-one smoothed, on another text."""
    def total(by: Tensor) -> Tensor:
        return torch.zeros(vocabulary_size, dtype=torch.int64).index_add(0, by, counts)

    unigram = (total(pairs % vocabulary_size)[ids[1:]] + 1).double() / (counts.sum() + vocabulary_size)
    wanted = ids[:-1] * vocabulary_size + ids[1:]
    at = torch.searchsorted(pairs, wanted).clamp(max=len(pairs) - 1)
    seen = torch.where(pairs[at] == wanted, counts[at], 0)
    bigram = (seen + 1).double() / (total(pairs // vocabulary_size)[ids[:-1]] + vocabulary_size)
    return {"unigram": -unigram.log2().mean().item(), "bigram": -bigram.log2().mean().item()}
