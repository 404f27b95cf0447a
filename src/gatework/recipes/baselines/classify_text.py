"""Labels of texts from which words and pairs of words they hold, without their order."""

from __future__ import annotations

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def bag_of_words(texts: list[str], labels: list[str], held_out: list[str]) -> list[str]:
    """The labels of held-out texts by logistic regression on the counts of words and pairs of words (tf-idf)."""
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+"),
                          LogisticRegression(C=10.0, max_iter=1000))
    return model.fit(texts, labels).predict(held_out).tolist()
