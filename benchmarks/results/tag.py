"""Accents restored in French captions, and how the words of German ones are written."""

from data_tag import write_french, write_german_writing

from . import Run

QUICK = {"epochs": 1, "hidden": 48, "layers": 1, "learning_rate": 0.01}

RUNS = [
    Run("French accents", "tag", write_french, lambda folder: folder / "test.txt", {"task": "accents"}, "accuracy",
        quick=QUICK, published="none on this data"),
    Run("German capitals and commas", "tag", write_german_writing, lambda folder: folder / "test.conll", {}, "accuracy",
        quick=QUICK, published="none on this data"),
]
