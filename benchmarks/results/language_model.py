"""Words of the Penn Treebank, as Zaremba et al. and regularised, and characters of Shakespeare's plays."""

from data_language_model import write_ptb, write_tiny_shakespeare

from . import Run

ZAREMBA = {"tokens": "spaces", "hidden": 200, "embedding": 200, "layers": 2, "batch_size": 20, "seq_len": 20,
           "optimizer": "sgd", "learning_rate": 20.0, "clip": 0.25, "epochs": 13}
QUICK = {"hidden": 64, "layers": 1, "epochs": 1}

RUNS = [
    Run("PTB words", "language-model", write_ptb, lambda folder: folder / "test.txt", ZAREMBA, "perplexity", seeds=(0,),
        quick=QUICK | {"embedding": 64, "batch_size": 100},
        published="valid 120.7, test 114.5, the small model of the same settings (Zaremba et al. 2014, quoted from "
                  "memory)"),
    Run("Tiny Shakespeare", "language-model", write_tiny_shakespeare, None,
        {"dropout": 0.1, "seq_len": 64, "epochs": 6}, "bits_per_character", quick=QUICK,
        published="about 2.12 bits (1.47 nats), a transformer of 10.7 million parameters (nanoGPT), on the same last "
                  "tenth; 2.0 to 2.2 for tuned LSTMs of char-rnn, on a last twentieth; both quoted from memory"),
]
