"""SciTLDR as a user would have it: JSON lines of text and summary."""

from __future__ import annotations

import bz2
import json
from pathlib import Path

import real_data


def write_scitldr(folder: Path, train_rows: int | None = None, valid_rows: int | None = None) -> Path:
    """train.jsonl, valid.jsonl and test.jsonl in `folder`, of each abstract its summaries, one per line.

    The first `train_rows` and `valid_rows` of them, or all.
    """
    data = real_data.needed("summarisation/scitldr_a")
    folder.mkdir(parents=True, exist_ok=True)
    for name, part, rows in (("train", "train", train_rows), ("valid", "dev", valid_rows), ("test", "test", None)):
        lines = bz2.decompress((data / f"{part}.jsonl.bz2").read_bytes()).decode().splitlines()[:rows]
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as opened:
            for row in map(json.loads, lines):
                summaries = "\n".join(" ".join(t.split()) for t in row["target"])
                print(json.dumps({"text": " ".join(row["source"]), "summary": summaries}), file=opened)
    return folder
