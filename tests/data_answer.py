"""The data sets of questions, in the forms in which a user would have them."""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from pathlib import Path

import polars as pl
from real_data import needed

STORY = "tasks_1-20_v1-2/{size}/qa{task}_"


def write_babi(folder: Path, task: int, size: str = "en") -> Path:
    """Task 1 to 20 of bAbI with 1,000 ("en") or 10,000 ("en-10k") questions as train.tsv, valid.tsv and test.tsv; the
    last tenth of the stories of the training file validates."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(needed("question_answering/babi") / "babi_tasks_1-20_v1-2_en.tar.bz2") as archive:
        names = {re.search(r"_(train|test)\.txt$", n)[1]: n for n in archive.getnames()
                 if n.startswith(STORY.format(size=size, task=task))}
        train, test = (stories(archive.extractfile(names[part]).read().decode()) for part in ("train", "test"))
    cut = len(train) * 9 // 10
    for name, part in (("train", train[:cut]), ("valid", train[cut:]), ("test", test)):
        rows = [row for story in part for row in story]
        table = pl.DataFrame(rows, ["story", "question", "answer"], orient="row")
        table.write_csv(folder / f"{name}.tsv", separator="\t")
    return folder


def stories(text: str) -> list[list[tuple[str, str, str]]]:
    """The questions of each story with what was told before them."""
    found: list[list[tuple[str, str, str]]] = []
    told: list[str] = []
    for line in text.splitlines():
        number, rest = line.split(" ", 1)
        if number == "1":
            found.append([])
            told = []
        question, *answer = rest.split("\t")
        if answer:
            found[-1].append((" ".join(told), question.strip(), answer[0]))
        else:
            told.append(rest.strip())
    return found


def write_squad(folder: Path) -> Path:
    """SQuAD's development set as train.json, valid.json and test.json, each with articles of its own: of ten, eight
    train, one validates and one tests. Starts that are a guess are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    file = needed("question_answering/squad_v1.1_dev") / "dev-v1.1.reconstructed.json.gz"
    articles = json.loads(gzip.decompress(file.read_bytes()))["data"]
    for answer in (a for article in articles for p in article["paragraphs"] for q in p["qas"] for a in q["answers"]):
        if not answer.pop("start_exact"):
            del answer["answer_start"]
    for name, of_ten in (("train", range(8)), ("valid", (8,)), ("test", (9,))):
        part = [article for k, article in enumerate(articles) if k % 10 in of_ten]
        (folder / f"{name}.json").write_text(json.dumps({"version": "1.1", "data": part}), encoding="utf-8")
    return folder
