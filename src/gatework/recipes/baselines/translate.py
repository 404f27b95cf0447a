"""Translations that somebody else wrote: that of the most similar sentence of the training data."""

from __future__ import annotations

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.neighbors import NearestNeighbors


def most_similar(sources: list[str], targets: list[str], held_out: list[str]) -> list[str]:
    """For each held-out sentence the target of the source with the smallest angle between their words (tf-idf)."""
    words = TfidfVectorizer(token_pattern=r"\w+")
    nearest = NearestNeighbors(n_neighbors=1, metric="cosine").fit(words.fit_transform(sources))
    return [targets[k] for k in nearest.kneighbors(words.transform(held_out), return_distance=False)[:, 0]]
