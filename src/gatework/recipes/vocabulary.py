"""Receives texts, hands on the numbers of their tokens: words, BPE pieces or characters, by the library `tokenizers`.

A tokenizer is kept with a model as text (JSON), read back without running anything.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

PADDING, UNKNOWN, BEGIN, END = range(4)
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def learn(texts: Iterable[str], kind: str, size: int, *, lowercase: bool = False, min_count: int = 1) -> Tokenizer:
    """A tokenizer with at most `size` tokens, learned from texts.

    Args:
        texts: what it learns from; read once.
        kind: "words" (runs of letters and digits, and each other sign), "spaces" (whatever stands between spaces),
            "bpe" (frequent pieces of words, bytes where there are none: nothing is unknown) or "characters".
        size: tokens in all, of which four are <pad> 0, <unk> 1, <s> 2 and </s> 3.
        lowercase: read capital letters as small ones.
        min_count: tokens that are rarer are unknown.

    >>> words = learn(["the cat sat", "the dog"], "words", 100)
    >>> words.encode("the cat flew").ids, words.decode(words.encode("the dog").ids)
    ([4, 5, 1], 'the dog')
    >>> text = "Émile's\\n cat"
    >>> pieces = learn([text], "bpe", 300)
    >>> pieces.decode(pieces.encode(text).ids) == text
    True
    """
    # "<unk>" in a text is the unknown token, so it must not be learned as a word that gets a second number.
    special = pre_tokenizers.Split(Regex("|".join(SPECIAL)), "removed")
    splits = {"words": pre_tokenizers.Whitespace(),
              "spaces": pre_tokenizers.Sequence([special, pre_tokenizers.WhitespaceSplit()]),
              "bpe": pre_tokenizers.ByteLevel(add_prefix_space=False),
              "characters": pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")}
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=max(2, min_count), special_tokens=SPECIAL,
                                      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
        tokenizer.decoder = decoders.ByteLevel()
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        trainer = trainers.WordLevelTrainer(vocab_size=size, min_frequency=min_count, special_tokens=SPECIAL,
                                            show_progress=False)
        if kind == "characters":
            tokenizer.decoder = decoders.Fuse()
    tokenizer.pre_tokenizer = splits[kind]
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
