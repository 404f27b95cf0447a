"""Sentiment of film reviews: short snippets, sentences of a treebank, whole reviews."""

from functools import partial

from data_classify_text import write_imdb, write_mr, write_sst

from . import Run

QUICK = {"epochs": 1, "hidden": 32, "embedding": 32}


def test_part(folder):
    return folder / "test.parquet"


RUNS = [
    Run("MR", "classify-text", write_mr, test_part, {}, "accuracy", quick=QUICK,
        published="CNN with random vectors 76.1 %, with pretrained ones 81.5 % (Kim 2014), both from ten-fold "
                  "cross-validation"),
    Run("SST-2", "classify-text", write_sst, test_part, {}, "accuracy", quick=QUICK,
        published="CNN with random vectors 83.5 % (its reimplementation in sent-conv-torch), LSTM of two layers 86.3 % "
                  "(Tai et al. 2015); both also learn from the phrases within sentences and the latter from pretrained "
                  "vectors"),
    Run("SST-5", "classify-text", partial(write_sst, kind="fine"), test_part, {}, "accuracy", quick=QUICK,
        published="CNN with random vectors 42.2 % (sent-conv-torch), LSTM of two layers 46.0 % (Tai et al. 2015)"),
    Run("IMDB, a fifth", "classify-text", write_imdb, test_part,
        {"longest": 3000, "vocabulary": 20_000}, "accuracy", quick=QUICK,
        published="with all 25,000 training reviews: LSTM 86.5 %, LSTM from pretrained vectors 90.0 %, pretrained as a "
                  "language model 92.8 % (Dai and Le 2015)"),
]
