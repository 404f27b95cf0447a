"""Polyphonic music as a user would have it: one JSON file with the parts train, valid and test."""

from __future__ import annotations

import bz2
import gzip
import json
from pathlib import Path

import real_data


def write_jsb(folder: Path, pieces: int | None = None) -> Path:
    """Bach's chorales in steps of a quarter: 229 to train on, 76 to validate and 77 to test; or that many of each."""
    text = gzip.decompress((real_data.needed("polyphonic_music") / "jsb-chorales-quarter.json.gz").read_bytes())
    return write(folder / "jsb.json", text, pieces)


def write_nottingham(folder: Path, pieces: int | None = None) -> Path:
    """1,037 folk tunes with chords: 694 to train on, 173 to validate and 170 to test; or that many of each."""
    text = bz2.decompress((real_data.needed("polyphonic_music") / "nottingham.json.bz2").read_bytes())
    return write(folder / "nottingham.json", text, pieces)


def write(file: Path, text: bytes, pieces: int | None) -> Path:
    file.write_text(json.dumps({part: found[:pieces] for part, found in json.loads(text).items()}), encoding="utf-8")
    return file
