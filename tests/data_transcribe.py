"""Spoken digits (FSDD) as a user would have speech: folders of wav with tables of what was said."""

from __future__ import annotations

import io
import random
import zipfile
from pathlib import Path

import numpy as np
import soundfile
from real_data import needed

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RATE = 8000  # samples per second
TEST = range(5)  # the takes, of the 50 of each digit and speaker, that the data set's authors keep for the test


def takes(speakers=SPEAKERS, which=range(50)) -> list[tuple[str, int, int]]:
    """(speaker, digit, take) of recordings, in their order."""
    return [(s, digit, take) for s in speakers for digit in range(10) for take in which]


def recordings():
    """A function that gives the bytes of the wav of a (speaker, digit, take)."""
    archive = zipfile.ZipFile(needed("speech/fsdd") / "recordings.zip")
    return lambda key: archive.read("recordings/{1}_{0}_{2}.wav".format(*key))


def write_table(folder: Path, part: str, rows: list[tuple[bytes, str]]) -> Path:
    """`part`.tsv with the columns audio and text, and the sounds in the folder wav beside it."""
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    lines = ["audio\ttext"]
    for k, (wav, text) in enumerate(rows):
        (folder / "wav" / f"{part}_{k:04}.wav").write_bytes(wav)
        lines.append(f"wav/{part}_{k:04}.wav\t{text}")
    (folder / f"{part}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / f"{part}.tsv"


def write_digits(folder: Path, part: str, keys: list[tuple[str, int, int]]) -> Path:
    """Recordings of single digits, spelled out."""
    wav = recordings()
    return write_table(folder, part, [(wav(key), WORDS[key[1]]) for key in keys])


def write_strings(folder: Path, part: str, keys: list[tuple[str, int, int]], count: int, seed: int) -> Path:
    """`count` strings of one to five digits of one speaker, 0.05 to 0.3 s of silence between them."""
    wav, draw = recordings(), random.Random(seed)
    by_speaker = {s: [key for key in keys if key[0] == s] for s in dict.fromkeys(key[0] for key in keys)}
    rows = []
    for _ in range(count):
        said = draw.choices(by_speaker[draw.choice(list(by_speaker))], k=draw.randint(1, 5))
        parts = []
        for key in said:
            parts += [soundfile.read(io.BytesIO(wav(key)), dtype="float32")[0],
                      np.zeros(int(draw.uniform(0.05, 0.3) * RATE), np.float32)]
        joined = io.BytesIO()
        soundfile.write(joined, np.concatenate(parts[:-1]), RATE, format="WAV", subtype="PCM_16")
        rows.append((joined.getvalue(), " ".join(WORDS[key[1]] for key in said)))
    return write_table(folder, part, rows)


def write_official(folder: Path) -> Path:
    """The authors' split, in which all speakers are known; a tenth of their training data validates."""
    write_digits(folder / "training", "train", takes(which=range(10, 50)))
    write_digits(folder / "training", "valid", takes(which=range(5, 10)))
    return folder / "training"


def write_official_test(folder: Path) -> Path:
    return write_digits(folder / "test", "test", takes(which=TEST))


def write_unknown_speaker(folder: Path, held_out: str) -> Path:
    """All speakers but one."""
    others = [speaker for speaker in SPEAKERS if speaker != held_out]
    write_digits(folder / "training", "train", takes(others, range(5, 50)))
    write_digits(folder / "training", "valid", takes(others, TEST))
    return folder / "training"


def write_unknown_speaker_test(folder: Path, held_out: str) -> Path:
    """Every recording of that one."""
    return write_digits(folder / "test", "test", takes([held_out]))


def write_unknown_speaker_strings(folder: Path, held_out: str) -> Path:
    others = [speaker for speaker in SPEAKERS if speaker != held_out]
    write_strings(folder / "training", "train", takes(others, range(5, 50)), 2000, seed=1)
    write_strings(folder / "training", "valid", takes(others, TEST), 200, seed=2)
    return folder / "training"


def write_unknown_speaker_strings_test(folder: Path, held_out: str) -> Path:
    return write_strings(folder / "test", "test", takes([held_out]), 300, seed=3)
