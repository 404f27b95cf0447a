"""The engine of `translate` and `summarise`: an encoder reads a text, a decoder with attention writes another.

    encoder    embedded pieces of the source, a bidirectional recurrent layer of any cell
    decoder    embedded pieces of what is written so far; begins with the last states of the encoder's reverse direction
    attention  each step of the decoder looks at all steps of the encoder (Luong et al., 2015)
    second     a recurrent layer over what the decoder says and what it found, so that it knows what was found before
    softmax    over the vocabulary, with the embedding as its weights (Press & Wolf, 2017)
    pointer    or, with a learned probability in each step, a piece of the source that is attended to is written as it
               stands (See et al., 2017)

Both texts are read and written in pieces of words (BPE) of one vocabulary. Pieces go down to bytes, so no word is
unknown, and a name that was never seen is copied piece by piece. What attention finds goes up, into the second layer,
and not back into the decoder: so in training both run over whole targets in their fused kernels.
"""

# No `from __future__ import annotations`: other recipes inherit the settings with their types (see settings.py).

from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from gatework.compiler import Cell
from gatework.compiler.roles import keeping_gates
from gatework.nn import AdditiveAttention, MultiplicativeAttention, Recurrent
from gatework.recipes import RecipeError, settings, vocabulary
from gatework.recipes.batches import pad
from gatework.recipes.beam_search import Found, beam_search
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.settings import number
from gatework.recipes.vocabulary import BEGIN, END, PADDING, UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a model that reads a text and writes another."""

    hidden: int = number(256, least=1)
    """Hidden units H of every layer and direction."""
    dropout: float = number(0.3, least=0, below=1)
    """Probability of dropping a value after the embedding, between layers and before the softmax, while training."""
    batch_size: int = number(64, least=1)
    """Pairs of texts that are read side by side, per process."""
    learning_rate: float = number(0.002, above=0)
    """Step size of AdamW at the start; it falls to zero along a cosine."""
    embedding: int = number(256, least=1)
    """Numbers by which a piece of a word is described."""
    vocabulary: int = number(8000, least=261)
    """Different pieces of words at most, in both texts together; 260 are bytes and signs."""
    attention: Literal["multiplicative", "additive", "none"] = "multiplicative"
    """How the decoder compares its state with the steps of the source; none: it sees only the encoder's last state."""
    copy: bool = True
    """Let pieces of the source, such as those of names, be written as they stand. Needs attention."""
    longest: int = number(1000, least=1)
    """Pieces that a text may have; a longer one is an error."""
    beam: int = number(5, least=1)
    """Beginnings that are pursued side by side when a text is written; 1 takes the likeliest piece each time."""
    length_penalty: float = number(1.0, least=0)
    """0 favours short texts; 1 compares the mean log-probability of pieces."""


class TextToText(Recipe):
    """The model. A recipe adds its roles, source first and target second, its figures and its picture."""

    @classmethod
    def facts_of(cls, train, settings: Settings) -> dict:
        if settings.copy and settings.attention == "none":
            raise RecipeError("copying needs attention, which tells what to copy; add --no-copy, or choose --attention "
                              "multiplicative")
        source, target = (role.name for role in cls.roles[:2])
        tokenizer = vocabulary.learn((" " + text for name in (source, target) for text in train[name]), "bpe",
                                     settings.vocabulary)
        longest = max(len(e.ids) for e in tokenizer.encode_batch([" " + text for text in train[target]]))
        return {"tokenizer": tokenizer.to_str(), "longest_target": longest}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokenizer = Tokenizer.from_str(facts["tokenizer"])
        self.embedding = torch.nn.Embedding(self.tokenizer.get_vocab_size(), settings.embedding)
        # The softmax uses it too: logits are to begin small.
        torch.nn.init.normal_(self.embedding.weight, std=settings.embedding**-0.5)
        self.encoder = self.recurrent(settings.embedding, settings.layers, bidirectional=True)
        self.dropout = torch.nn.Dropout(settings.dropout)
        self.make_writer()

    def recurrent(self, features: int, layers: int, bidirectional: bool = False) -> Recurrent:
        """Recurrent layers that read so many features."""
        return Recurrent(self.cell, features, self.settings.hidden, layers, bidirectional=bidirectional,
                         dropout=self.settings.dropout if layers > 1 else 0.0,
                         forget_bias=1.0 if keeping_gates(self.cell) else None)

    def make_writer(self) -> None:
        """All that comes after the encoder."""
        self.decoder = self.recurrent(self.settings.embedding, self.settings.layers)
        queries, memory = self.decoder.output_size, self.encoder.output_size
        self.attention = {"multiplicative": lambda: MultiplicativeAttention(queries, memory, scaled=True),
                          "additive": lambda: AdditiveAttention(queries, memory, self.settings.hidden),
                          "none": lambda: None}[self.settings.attention]()
        found = queries if self.attention is None else queries + memory
        self.second = self.recurrent(found, 1)
        known = found + self.second.output_size
        self.combine = torch.nn.Linear(known, self.settings.embedding)
        self.bias = torch.nn.Parameter(torch.zeros(self.embedding.num_embeddings))
        self.pointer = torch.nn.Linear(known, 1) if self.settings.copy else None

    def pieces(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(" " + text).ids  # a word has the same pieces wherever it stands
        if len(ids) > self.settings.longest:
            raise RecipeError(f"a text has {len(ids)} pieces of words: {text[:60]!r}...; raise --longest or cut the "
                              "text")
        return ids

    def encode(self, row: dict) -> tuple[Tensor, Tensor]:
        source, target = (role.name for role in self.roles[:2])
        written = [*self.pieces(row[target]), END] if target in row else [END]
        return torch.tensor(self.pieces(row[source])), torch.tensor([BEGIN, *written])

    def collate(self, examples: list) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        sources, targets = zip(*examples)
        return *pad(sources, PADDING), *pad(targets, PADDING)

    def read_source(self, source: Tensor, lengths: Tensor) -> tuple:
        """Source [Tm, B] as the memory [Tm, B, 2 H], and the decoder's first states."""
        memory, last = self.encoder(self.embed(source), lengths=lengths)
        first = tuple(s[1::2].contiguous() for s in ((last,) if isinstance(last, Tensor) else last))
        return memory, first[0] if isinstance(last, Tensor) else first

    def embed(self, ids: Tensor) -> Tensor:
        return self.dropout(self.embedding(ids) * self.settings.embedding**0.5)

    def look(self, output: Tensor, memory, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """What the decoder says in each step, beside what it found, and the weights [..., Tm]."""
        if self.attention is None:
            return output, None
        context, weights = self.attention(output, memory, lengths)
        return torch.cat([output, context], -1), weights

    def logits(self, known: Tensor) -> Tensor:
        combined = self.dropout(torch.tanh(self.combine(known)))
        return functional.linear(combined, self.embedding.weight, self.bias)

    def forward(self, source: Tensor, lengths: Tensor, target: Tensor, target_lengths: Tensor):
        """For targets [T + 1, B], what is known in each of the T steps, [T, B, ...], and the weights [T, B, Tm]."""
        memory, state = self.read_source(source, lengths)
        output, _ = self.decoder(self.embed(target[:-1]), state, lengths=target_lengths - 1)
        found, weights = self.look(output, memory, lengths)
        output, _ = self.second(self.dropout(found), lengths=target_lengths - 1)
        return torch.cat([found, output], -1), weights

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        source, lengths, target, target_lengths = batch
        known, weights = self(*batch)
        wanted = torch.arange(len(known))[:, None] < target_lengths - 1
        truth = target[1:][wanted]
        chances = -functional.cross_entropy(self.logits(known[wanted]), truth, reduction="none")
        if self.pointer is not None:
            same = (target[1:, :, None] == source.T)[wanted]
            copied = (weights[wanted] * same).sum(-1)
            chances = mixture(self.pointer(known[wanted])[:, 0], chances, copied)
        return -chances.sum(), len(truth)

    def next_chances(self, known: Tensor, weights: Tensor | None, source: Tensor) -> Tensor:
        """Log-probabilities [B, vocabulary] of the next piece; source is [B, Tm]."""
        chances = self.logits(known).log_softmax(-1)
        if self.pointer is not None:
            copied = torch.zeros_like(chances).scatter_add_(1, source, weights.to(chances.dtype))
            chances = mixture(self.pointer(known), chances, copied)
        return chances.index_fill(1, torch.tensor([PADDING, UNKNOWN, BEGIN]), -torch.inf)

    def write(self, source: Tensor, lengths: Tensor) -> Found:
        """What the model writes for sources [Tm, B]."""
        beam, rows = self.settings.beam, len(lengths)
        memory, state = self.read_source(source, lengths)
        several = torch.arange(rows).repeat_interleave(beam)
        prepared = None if self.attention is None else self.attention.prepare(memory, lengths).rows(several)
        source = source.T[several]

        def step(tokens: Tensor, states):
            output, first = self.decoder.step(self.embed(tokens), states[0])
            found, weights = self.look(output, prepared)
            output, second = self.second.step(found, states[1])
            return self.next_chances(torch.cat([found, output], -1), weights, source), (first, second)

        def choose(state, rows: Tensor):
            return state[:, rows] if isinstance(state, Tensor) else tuple(choose(s, rows) for s in state)

        first = (choose(state, several), None)
        return beam_search(step, first, choose, rows, beam, 2 * self.facts["longest_target"],
                           self.settings.length_penalty)

    def answers(self, batch: Any) -> list[dict]:
        source, lengths, *_ = batch
        found = self.write(source, lengths)
        return [{self.roles[1].name: self.tokenizer.decode(ids).strip(), "score": score, "ended": ended}
                for ids, score, ended in zip(found.best(), found.scores[:, 0].tolist(), found.ended[:, 0].tolist())]


def mixture(gate: Tensor, written: Tensor, copied: Tensor) -> Tensor:
    """log(sigmoid(gate) * exp(written) + sigmoid(-gate) * copied), where `copied` may be 0."""
    written, can = functional.logsigmoid(gate) + written, copied > 0
    pointed = functional.logsigmoid(-gate) + torch.where(can, copied, 1.0).log()
    return torch.where(can, torch.logaddexp(written, pointed), written)
