"""Abstracts of papers in one sentence."""

from data_summarise import write_scitldr

from . import Run


def test_part(folder):
    return folder / "test.jsonl"


RUNS = [
    Run("SciTLDR-A", "summarise", write_scitldr, test_part, {}, "rouge1", quick={"epochs": 1, "hidden": 16},
        published="43.3 for BART, pretrained on other texts (Cachola et al. 2020, from memory); no network trained on "
                  "these abstracts alone is published there"),
    Run("SciTLDR-A, in words", "summarise", write_scitldr, test_part,
        {"output": "words", "hidden": 128, "embedding": 128, "dropout": 0.3, "epochs": 8}, "rouge1", seeds=(0,),
        quick={"epochs": 1, "hidden": 16, "beam": 1}),
]
