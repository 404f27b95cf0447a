"""Questions about a text: the twenty tasks of bAbI, with a word as the answer, and SQuAD, with a span."""

from functools import partial

from data_answer import write_babi, write_squad

from . import Run

# Accuracy in percent of the LSTM of Weston et al. 2015, one model for each task with 1,000 questions
LSTM = (50, 20, 20, 61, 70, 48, 49, 45, 64, 44, 72, 74, 94, 27, 21, 23, 51, 52, 8, 91)
BABI = {"epochs": 40, "dropout": 0.1}


def babi_test(folder):
    return folder / "test.tsv"


def squad_test(folder):
    return folder / "test.json"


RUNS = [
    *(Run(f"bAbI {task}", "answer", partial(write_babi, task=task), babi_test, BABI, "exact_match",
          quick={"epochs": 2}, published=f"LSTM {figure} % (Weston et al. 2015)")
      for task, figure in enumerate(LSTM, start=1)),
    Run("bAbI 2, ten times the questions", "answer", partial(write_babi, task=2, size="en-10k"), babi_test,
        {"epochs": 15, "dropout": 0.1}, "exact_match", quick={"epochs": 1},
        published="over all tasks LSTM 63.6 % (from memory), MemN2N 95.8 % (Sukhbaatar et al. 2015)"),
    Run("SQuAD, a tenth", "answer", write_squad, squad_test, {"epochs": 8, "dropout": 0.4}, "exact_match",
        quick={"epochs": 1, "hidden": 16, "embedding": 16},
        published="with ten times the questions, other ones to test on, and pretrained vectors: logistic regression "
                  "40.1 %, Match-LSTM 67.6 % (Wang and Jiang 2016)"),
]
