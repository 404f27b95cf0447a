"""A language model: embedding, recurrent layers of any cell, softmax over the next character, word or piece of a word.

The text is cut into B streams that are read side by side, T tokens per step. The state at the end of a step is where
the next one starts, without a gradient (truncated backpropagation through time), so what is remembered may reach
further back than T. Every token but the first is predicted once per epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gatework.compiler import Cell
from gatework.nn import Recurrent
from gatework.recipes import RecipeError, running_text, settings, vocabulary
from gatework.recipes.baselines.language_model import bigram, kneser_ney, unigram
from gatework.recipes.batches import pad
from gatework.recipes.reading import Role, Splits
from gatework.recipes.recipe import Recipe, one_input
from gatework.recipes.running_text import Text
from gatework.recipes.settings import number
from gatework.recipes.surprises import surprises
from gatework.recipes.token_streams import IGNORED, Chunks, TextTokenizer, pieces

COUNTED = 2**24  # tokens up to which n-grams of a text are counted, about 10 GB of memory at most


@dataclass(frozen=True, kw_only=True)
class Settings(settings.Settings):
    """The choices of a language model."""

    hidden: int = number(256, least=1)
    """Hidden units H of every layer."""
    dropout: float = number(0.0, least=0, below=1)
    """Probability of dropping a value after the embedding, between layers and before the softmax, while training."""
    batch_size: int = number(32, least=1)
    """Streams B into which the text is cut for each process; they are read side by side."""
    learning_rate: float = number(0.003, above=0)
    """Step size at the start; AdamW's falls to zero along a cosine, for SGD see --steady and --decay."""
    tokens: Literal["characters", "words", "spaces", "bpe"] = "characters"
    """What the model reads: characters, words and signs, whatever stands between spaces, or pieces of words."""
    vocabulary: int = number(30_000, least=5)
    """Different tokens at most; all others are read as one that is unknown."""
    min_count: int = number(1, least=1)
    """Tokens that are rarer in the training text are unknown."""
    lowercase: bool = False
    """Read capital letters as small ones."""
    embedding: int = number(64, least=1)
    """Numbers by which a token is described, the input size I of the first layer."""
    tied: bool = False
    """Describe tokens by the weights of the softmax (Press and Wolf, 2017), through a matrix if sizes differ."""
    projection: int = number(0, least=0)
    """Size P of the projected state; only for a cell that has one, such as projected_lstm."""
    seq_len: int = number(128, least=1)
    """Tokens T per stream and step; gradients reach back that far, the state is carried on."""
    embedding_dropout: float = number(0.0, least=0, below=1)
    """Probability of dropping a token wherever it stands in a step, while training (Gal and Ghahramani, 2016)."""
    variational_dropout: float = number(0.0, least=0, below=1)
    """Probability of dropping a feature of a layer's input or state in all of a step's tokens, while training."""
    weight_dropout: float = number(0.0, least=0, below=1)
    """Probability of dropping a recurrent weight, while training (Merity et al., 2018)."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or plain stochastic gradient descent with the decay of Zaremba et al. (2014)."""
    steady: int = number(4, least=0)
    """Epochs of SGD before its step size falls."""
    decay: float = number(0.5, above=0)
    """What the step size of SGD is multiplied by before each epoch after those."""


class LanguageModel(Recipe):
    name, use, unit = "language-model", "generate", "characters"
    Settings = Settings
    roles = (Role("text", str, ("content", "document", "article", "sentence")),)

    @classmethod
    def read(cls, source: str, settings: Settings) -> Splits:
        return running_text.read_splits(source, cls.roles, settings.columns)

    @classmethod
    def read_part(cls, file: Path, settings: Settings) -> Text:
        return running_text.read_file(Path(file), cls.roles, settings.columns)

    @classmethod
    def facts_of(cls, train: Text, settings: Settings) -> dict:
        return {"tokenizer": vocabulary.learn(pieces(train), settings.tokens, settings.vocabulary,
                                              lowercase=settings.lowercase, min_count=settings.min_count).to_str()}

    def __init__(self, cell: Cell, settings: Settings, facts: dict):
        super().__init__(one_input(cell, self.name), settings, facts)
        self.tokens = TextTokenizer(facts["tokenizer"], settings.tokens)
        width = settings.embedding
        self.embedding = torch.nn.Embedding(self.tokens.size, width)
        if settings.tied or settings.optimizer == "sgd":
            # Small enough for a softmax that shares it, and what Zaremba et al. began with. AdamW learns faster from 1.
            torch.nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        try:
            self.recurrent = Recurrent(cell, width, settings.hidden, settings.layers, proj_size=settings.projection,
                                       dropout=settings.dropout if settings.layers > 1 else 0.0,
                                       variational_dropout=settings.variational_dropout,
                                       weight_dropout=settings.weight_dropout)
        except ValueError as error:
            raise RecipeError(f"{error} (options are --hidden, --projection, --variational-dropout and "
                              "--weight-dropout)") from error
        self.dropout, features = torch.nn.Dropout(settings.dropout), self.recurrent.output_size
        self.narrow = torch.nn.Linear(features, width) if settings.tied and features != width else torch.nn.Identity()
        self.decoder = torch.nn.Linear(width if settings.tied else features, self.tokens.size)
        if settings.tied:
            self.decoder.weight = None  # it is the embedding's, and kept once
        self.carried: dict[bool, Any] = {True: None, False: None}  # the states in training and in validation
        self.numbered: dict[Text, np.ndarray] = {}

    def ids(self, text: Text) -> np.ndarray:
        """The numbers of the tokens of a text, made once."""
        if text not in self.numbered:
            self.numbered[text] = self.tokens.encode_to_file(text)
        return self.numbered[text]

    def training_batches(self, table: Text) -> Chunks:
        ids, world = self.ids(table), self.settings.devices * self.settings.nodes
        streams, steps = self.settings.batch_size, self.settings.seq_len
        if len(ids) < streams * world * steps + 1:
            raise RecipeError(f"the text to train on has {len(ids):,} {self.tokens.unit}; {streams * world} streams of "
                              f"{steps} need {streams * world * steps + 1:,}. Lower --batch-size or --seq-len, or give "
                              "a longer text")
        return Chunks(ids, streams, steps, world)

    def validation_batches(self, table: Text, world: int | None = None) -> Chunks:
        ids, world = self.ids(table), world or self.settings.devices * self.settings.nodes
        if len(ids) < 2:
            raise RecipeError(f"the text to evaluate on has {len(ids)} {self.tokens.unit}; there is nothing to predict "
                              "in fewer than two. Give a longer one")
        # A stream begins without knowing what came before: not more than one such guess in 1000 tokens.
        return Chunks(ids, math.ceil(min(32, max(1, len(ids) // 1000)) / world), 256, world)

    def forward(self, ids: Tensor, state=None) -> tuple[Tensor, Any]:
        """The logits [T, B, vocabulary] of what follows each of the tokens [T, B], and the state after them; `state`
        is that before them, None at the beginning of a text."""
        x, rate = self.embedding(ids), self.settings.embedding_dropout
        if self.training and rate:
            x = x * functional.dropout(x.new_ones(self.tokens.size), rate)[ids][..., None]
        output, state = self.recurrent(self.dropout(x), state)
        weight = self.embedding.weight if self.settings.tied else self.decoder.weight
        return functional.linear(self.narrow(self.dropout(output)), weight, self.decoder.bias), state

    def loss(self, batch: Any) -> tuple[Tensor, int]:
        k, inputs, targets = batch
        logits, state = self(inputs, None if k == 0 else self.carried[self.training])
        self.carried[self.training] = state.detach() if isinstance(state, Tensor) else tuple(s.detach() for s in state)
        return nats(logits, targets).sum(), int((targets != IGNORED).sum())

    def configure_optimizers(self):
        if self.settings.optimizer == "adamw":
            return super().configure_optimizers()
        optimizer = torch.optim.SGD(self.parameters(), self.learning_rate)
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: self.settings.decay ** max(0, epoch + 1 - self.settings.steady))]

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["carried"] = self.all_gather(self.carried[True])  # of several processes, one after the other

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        state = checkpoint["carried"]
        if self.trainer.world_size > 1:
            state = state[self.global_rank] if isinstance(state, Tensor) else tuple(s[self.global_rank] for s in state)
        self.carried[True] = state

    @torch.no_grad()
    def figures(self, table: Text) -> dict[str, float]:
        self.eval()
        sums, counts = zip(*((float(s), count) for s, count in map(self.loss, self.validation_batches(table, world=1))))
        ids = self.ids(table)
        return figures_of(sum(sums) / sum(counts), self.tokens, len(ids) / len(table)) | {
            "unknown": float((ids == vocabulary.UNKNOWN).mean())}

    @classmethod
    def baselines(cls, train: Text, held_out: Text, settings: Settings) -> dict[str, dict[str, float]]:
        tokens = TextTokenizer(cls.facts_of(train, settings)["tokenizer"], settings.tokens)
        ids, others = tokens.encode_to_file(train), tokens.encode_to_file(held_out)
        methods = {"unigram": unigram, "bigram": bigram, "5-gram (Kneser-Ney)": kneser_ney}
        return {name: figures_of(method(ids, others, tokens.size), tokens, len(others) / len(held_out))
                for name, method in methods.items() if len(ids) <= COUNTED or method is unigram}

    # Use: lines are given their perplexity, a prompt is continued

    def encode(self, row: dict) -> Tensor:
        """The tokens of a line, from the end of the line before it to its own."""
        return torch.tensor(self.tokens.encode(["\n", row["text"] + "\n"]))

    def collate(self, examples: list) -> Tensor:
        return pad(examples, IGNORED)[0]

    def answers(self, batch: Tensor) -> list[dict]:
        bits = nats(self(batch[:-1].clamp(min=0))[0], batch[1:]).sum(0) / math.log(2)
        counts, unknown = (batch[1:] != IGNORED).sum(0), (batch[1:] == vocabulary.UNKNOWN).sum(0)
        return [{"perplexity": 2 ** (b / n), "bits": b, "tokens": n, "unknown": u}
                for b, n, u in zip(bits.tolist(), counts.tolist(), unknown.tolist())]

    @torch.no_grad()
    def generate(self, prompt: str, length: int = 400, temperature: float = 0.8, seed: int = 0) -> str:
        """The prompt, continued by `length` tokens: drawn from the model's distribution with its logits divided by the
        temperature, or the likeliest ones at temperature 0. Never the unknown one. A blank prompt begins a line."""
        if length < 1:
            raise RecipeError(f"--length must be a whole number of at least 1; {length} was given")
        if not 0 <= temperature < math.inf:
            raise RecipeError(f"--temperature must be a number of at least 0; {temperature} was given")
        if unknown := self.tokens.unknown(prompt):
            instead = f", or write {vocabulary.SPECIAL[vocabulary.UNKNOWN]} for it" * self.tokens.ends_are_tokens
            raise RecipeError(f"the model did not learn {', '.join(map(repr, unknown))}, not in its text or too rare "
                              f"there; leave it out of --prompt{instead}")
        self.eval()
        generator, state, written = torch.Generator().manual_seed(seed), None, []
        read = self.tokens.encode(prompt.splitlines(keepends=True)) or self.tokens.encode(["\n"])
        for _ in range(length):
            logits, state = self(torch.tensor(read)[:, None], state)
            logits = logits[-1, 0].double()
            logits[self.tokens.never_written] = -math.inf
            best = logits.argmax() if temperature == 0 else torch.multinomial(
                ((logits - logits.max()) / temperature).softmax(0), 1, generator=generator)
            read = [int(best)]
            written += read
        text = self.tokens.decode(written)
        return prompt + (text.removeprefix(" ") if self.tokens.ends_are_tokens and not prompt[-1:].strip() else text)

    @torch.no_grad()
    def picture(self, table: Text):
        """The beginning of a text, each token the darker the more it surprised the model."""
        ids = torch.from_numpy(self.ids(table)[:2000].astype(np.int64))
        bits = nats(self(ids[:-1, None])[0], ids[1:, None])[:, 0] / math.log(2)
        return surprises([(self.tokens.decode([k]), b) for k, b in zip(ids[1:].tolist(), bits.tolist())])


def nats(logits: Tensor, targets: Tensor) -> Tensor:
    """What each target [T, B] costs, 0 where it is ignored; in float32 at least."""
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return functional.cross_entropy(precise.flatten(0, 1), targets.flatten(), ignore_index=IGNORED,
                                    reduction="none").view(targets.shape)


def figures_of(nats: float, tokens: TextTokenizer, per_character: float) -> dict[str, float]:
    """Of nats per token. Bits per character only where no token is one for many a word, the unknown one."""
    perplexity = {"perplexity": float(torch.tensor(nats).exp())}
    if tokens.ends_are_tokens:
        return perplexity
    return {"bits_per_character": float(nats / math.log(2) * per_character)} | perplexity
