"""Receives examples one by one, hands on batches: shuffled, of similar lengths, the same again after an interruption.

torch's DataLoader forgets where in an epoch it was; a run that is killed there could not end as if it never had been.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed

from . import RecipeError

POOL = 50  # so many batches are sorted by length together: enough for little padding, few enough to stay random
KEPT = 2**30  # so many bytes of encoded examples are kept; further ones are encoded anew whenever they are needed
TENSOR = 700  # bytes that torch takes for a tensor, besides its values


class Examples(Sequence):
    """The rows of a table, encoded when they are asked for. Those that fit into KEPT bytes are encoded once.

    >>> import polars
    >>> examples = Examples(polars.DataFrame({"text": ["a", "bc"]}), lambda row: len(row["text"]))
    >>> len(examples), examples[1]
    (2, 2)
    """

    def __init__(self, table, encode: Callable[[dict], Any]):
        self.table, self.encode = table, encode
        self.kept: dict[int, Any] = {}
        self.room = KEPT

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, k: int) -> Any:
        if k in self.kept:
            return self.kept[k]
        example = self.encode(self.table.row(k, named=True))
        size = bytes_of(example)
        if size <= self.room:
            self.kept[k] = example
            self.room -= size
        return example


def bytes_of(example: Any) -> int:
    """About how much memory an example takes.

    >>> bytes_of(torch.zeros(80, 100)), bytes_of([torch.zeros(80, 100), "two words"])
    (32700, 32830)
    """
    if isinstance(example, torch.Tensor):
        return example.nbytes + TENSOR
    parts = example.values() if isinstance(example, dict) else example if isinstance(example, list | tuple) else ()
    return sys.getsizeof(example) + sum(map(bytes_of, parts))


class Batches:
    """Batches of examples, as Lightning reads them; what it saves of a run holds the place in the epoch.

    Args:
        examples: anything with a length and [k].
        collate: what makes a batch of a list of examples.
        batch_size: examples per process.
        length: the length of an example; those of similar length come together. None: no matter.
        seed: the order is drawn from it and the epoch. None: the order of the examples.
        world: processes that share a batch. Of each batch of `world * batch_size` examples, a process gets every
            `world`-th, so that together they do what one with a larger batch does.

    Raises RecipeError if there are fewer examples than processes.

    >>> list(Batches([5, 6, 7], list, batch_size=2))
    [[5, 6], [7]]
    """

    def __init__(self, examples: Sequence, collate: Callable[[list], Any], batch_size: int, *,
                 length: Callable[[Any], int] | None = None, seed: int | None = None, world: int = 1):
        if len(examples) < world:
            raise RecipeError(f"there are {len(examples)} examples for {world} processes; each needs one. Give more "
                              "data, or lower --devices and --nodes")
        self.examples, self.collate, self.length, self.seed = examples, collate, length, seed
        self.size, self.world = batch_size * world, world
        self.epoch = self.position = 0

    def __len__(self) -> int:
        # The last batch is not smaller than the number of processes: what is left over joins the one before.
        full, left = divmod(len(self.examples), self.size)
        return max(1, full + (left >= self.world))

    def __iter__(self) -> Iterator:
        rank = distributed.get_rank() if self.world > 1 else 0
        batches = len(self)
        random = torch.Generator().manual_seed(0 if self.seed is None else self.seed * 2**20 + self.epoch)
        count = len(self.examples)
        order = torch.arange(count) if self.seed is None else torch.randperm(count, generator=random)
        start, pool = self.position, POOL if self.seed is not None and self.length is not None else 1
        for first in range(0, batches, pool):
            last = min(first + pool, batches)
            members = order[first * self.size:last * self.size if last < batches else None].tolist()
            mixed = torch.randperm(last - first, generator=random).tolist() if pool > 1 else [0]
            if last <= start:
                continue
            if pool > 1:
                members.sort(key=lambda k: self.length(self.examples[k]))
            for at, of in enumerate(mixed, start=first):
                if at < start:
                    continue
                # The last of a pool takes what is left over.
                end = (of + 1) * self.size if of + 1 < last - first else None
                rows = members[of * self.size:end][rank::self.world]
                self.epoch, self.position = (self.epoch, at + 1) if at + 1 < batches else (self.epoch + 1, 0)
                yield self.collate([self.examples[k] for k in rows])

    def state_dict(self) -> dict:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def pad(sequences: Sequence[torch.Tensor], value: float = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences [length, ...] side by side, [T, B, ...], and their lengths, int64 [B].

    >>> pad([torch.tensor([1, 2, 3]), torch.tensor([4])])
    (tensor([[1, 4],
            [2, 0],
            [3, 0]]), tensor([3, 1]))
    """
    return (torch.nn.utils.rnn.pad_sequence(list(sequences), padding_value=value),
            torch.tensor([len(s) for s in sequences]))

