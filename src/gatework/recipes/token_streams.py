"""Receives a text, hands on the numbers of its tokens as steps of parallel streams.

The numbers lie in a file that is mapped, not in memory, so that a text may be larger than that.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, distributed

from . import RecipeError
from .vocabulary import BEGIN, END, PADDING, SPECIAL, UNKNOWN

IGNORED = -100  # the target that torch's cross_entropy leaves out
LONGEST = 2**16  # characters that are numbered at once; longer lines are cut, at a space if there is one
TOGETHER = 2**20  # characters of the lines that are numbered side by side


class TextTokenizer:
    """A tokenizer for running text, in which lines end: with a token of its own, or a character like others.

    Args:
        content: the tokenizer of `vocabulary.learn`, as JSON.
        kind: the kind that it was learned as. The end of a line is END among words.

    >>> from gatework.recipes.vocabulary import learn
    >>> words = TextTokenizer(learn(["the cat sat", "the dog"], "words", 100).to_str(), "words")
    >>> words.encode(["the cat\\n", "the"]), words.decode([4, 5, END, 4])
    ([4, 5, 3, 4], ' the cat\\nthe')
    """

    def __init__(self, content: str, kind: str):
        self.tokenizer = Tokenizer.from_str(content)
        self.size = self.tokenizer.get_vocab_size()
        self.ends_are_tokens = kind in ("words", "spaces")
        self.tokenizer.encode_special_tokens = not self.ends_are_tokens  # "<s>" in a text is three characters
        self.unit = {"bpe": "pieces", "spaces": "words"}.get(kind, kind)  # what the tokens are called
        self.never_written = [PADDING, UNKNOWN, BEGIN, *([] if self.ends_are_tokens else [END])]

    def encode(self, lines: Iterable[str]) -> list[int]:
        """The numbers of the tokens of lines, which come with their ends."""
        return list(chain.from_iterable(self._parts(lines)))

    def encode_to_file(self, lines: Iterable[str]) -> np.ndarray:
        """The same as an array, of a file that has no name, is mapped, and goes with the process."""
        dtype = np.uint16 if self.size <= 2**16 else np.uint32
        with tempfile.TemporaryFile() as file:
            for ids in self._parts(lines):
                np.array(ids, dtype).tofile(file)
            return np.memmap(file, dtype, "r") if file.tell() else np.empty(0, dtype)

    def decode(self, ids: list[int]) -> str:
        """What is written there, words with a space before each that does not begin a line."""
        if not self.ends_are_tokens:
            return self.tokenizer.decode(ids)
        return "".join("\n" if k == END else " " + self.tokenizer.id_to_token(k) for k in ids).replace("\n ", "\n")

    def unknown(self, text: str) -> list[str]:
        """What it does not know of a text, but for ends of lines and what is written as unknown among words."""
        found = self.tokenizer.encode(text)
        tokens = [text[begin:end] for k, (begin, end) in zip(found.ids, found.offsets) if k == UNKNOWN]
        return [token for token in dict.fromkeys(tokens) if token not in ("\n", SPECIAL[UNKNOWN])]

    def _parts(self, lines: Iterable[str]) -> Iterator[list[int]]:
        held: list[str] = []
        size = 0
        for piece in pieces(lines):
            held.append(piece)
            size += len(piece)
            if size >= TOGETHER:
                yield self._encode(held)
                held, size = [], 0
        yield self._encode(held)

    def _encode(self, lines: list[str]) -> list[int]:
        found = self.tokenizer.encode_batch_fast(lines)
        return [k for line, encoding in zip(lines, found)
                for k in encoding.ids + [END] * (self.ends_are_tokens and line.endswith("\n"))]


def pieces(lines: Iterable[str]) -> Iterator[str]:
    """The lines, those that are very long in parts."""
    for line in lines:
        while len(line) > LONGEST:
            space = line.rfind(" ", 1, LONGEST)
            at = space if space > 0 else LONGEST
            yield line[:at]
            line = line[at:]
        yield line


class Chunks:
    """Tokens as consecutive steps (k, inputs [T, B], targets [T, B]), continued by Lightning where a run stopped.

    Stream b reads the b-th part of the text, and what follows a token is its target. The last step may be shorter than
    T; where the last streams have no token left, the target is IGNORED. Of several processes each reads every so
    many-th stream.

    Args:
        ids: the numbers of the tokens [tokens], at least 2.
        streams: B, per process.
        steps: T.
        world: processes that share the text.

    >>> [[x.tolist() for x in (inputs, targets)] for k, inputs, targets in Chunks(np.arange(6), 2, steps=2)]
    [[[[0, 3], [1, 4]], [[1, 4], [2, 5]]], [[[2, 0]], [[3, -100]]]]
    """

    def __init__(self, ids: np.ndarray, streams: int, steps: int, world: int = 1):
        self.ids, self.streams, self.steps, self.world = ids, streams * world, steps, world
        self.length = math.ceil((len(ids) - 1) / self.streams)
        self.position = 0

    def __len__(self) -> int:
        return math.ceil(self.length / self.steps)

    def __iter__(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        rank = distributed.get_rank() if self.world > 1 else 0
        starts, last = np.arange(rank, self.streams, self.world) * self.length, len(self.ids) - 1
        for k in range(self.position, len(self)):
            self.position = (k + 1) % len(self)
            at = starts + np.arange(k * self.steps, min((k + 1) * self.steps, self.length))[:, None]
            inputs = np.where(at < last, self.ids[np.minimum(at, last)], 0).astype(np.int64)
            targets = np.where(at < last, self.ids[np.minimum(at + 1, last)].astype(np.int64), IGNORED)
            yield k, torch.from_numpy(inputs), torch.from_numpy(targets)

    def state_dict(self) -> dict:
        return {"position": self.position, "streams": self.streams}

    def load_state_dict(self, state: dict) -> None:
        if state["streams"] != self.streams:
            raise RecipeError(f"the run read {state['streams']} streams side by side, this one would read "
                              f"{self.streams}; resume it with as many processes as it was started with")
        self.position = state["position"]
