"""The sentence of a text that is most like the whole of it."""

from __future__ import annotations

from sklearn.feature_extraction.text import TfidfVectorizer


def most_central(training_texts: list[str], texts: list[list[str]]) -> list[str]:
    """Of each text, given as its sentences, the one whose words make the smallest angle with those of all (tf-idf)."""
    words = TfidfVectorizer(stop_words="english").fit(training_texts)
    chosen = []
    for sentences in texts:
        likeness = words.transform(sentences) @ words.transform([" ".join(sentences)]).T
        chosen.append(sentences[likeness.toarray()[:, 0].argmax()])
    return chosen
