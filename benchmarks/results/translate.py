"""Captions of pictures, from German into English, with and without attention."""

from data_translate import write_multi30k

from . import Run

QUICK = {"epochs": 1, "hidden": 64, "embedding": 64, "vocabulary": 2000, "beam": 2}
BUDGET = {"vocabulary": 5000, "epochs": 6}


def test_part(folder):
    return folder / "test.parquet"


RUNS = [
    Run("Multi30k de-en", "translate", write_multi30k, test_part, BUDGET, "bleu", seeds=(0,), quick=QUICK,
        published="GRU with additive attention 28.3, without attention 20.6, LSTM without 13.8: greedy, words, small "
                  "letters (bentrevett/pytorch-seq2seq, notebooks 1 to 3); ours are pieces of words, with capitals"),
    Run("Multi30k de-en, additive", "translate", write_multi30k, test_part, BUDGET | {"attention": "additive"}, "bleu",
        seeds=(0,), quick=QUICK),
    Run("Multi30k de-en, without attention", "translate", write_multi30k, test_part,
        BUDGET | {"attention": "none", "copy": False}, "bleu", seeds=(0,), quick=QUICK),
    Run("Multi30k de-en, without copying", "translate", write_multi30k, test_part, BUDGET | {"copy": False}, "bleu",
        seeds=(0,), quick=QUICK),
]
