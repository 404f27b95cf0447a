"""The recipe answer: a word or a span as the answer to a question about a text."""

from __future__ import annotations

import json
import string
from collections import Counter

import polars as pl
import pytest
import torch
from data_answer import stories, write_babi, write_squad

from gatework.recipes import RecipeError
from gatework.recipes.answer import Answer, Settings, squad_scores
from gatework.recipes.baselines.answer import most_frequent, nearest_sentence
from gatework.recipes.run import evaluate, figures_of, load, new_model, predict, train
from gatework.recipes.spans import best_spans, read_squad, shares

SMALL = dict(hidden=16, embedding=16)
COLUMNS = ["text", "question", "answer"]
PLACES = [("Mary is in Rome.", "Where is Mary?", "Rome"), ("John left. Ann is in Old York now, and John is not.",
          "Where is Ann?", "Old York"), ("Bob is in Bonn.", "Where is Bob?", "Bonn")]


def table(*rows):
    return pl.DataFrame(rows, COLUMNS, orient="row")


def model_of(rows, **settings):
    torch.manual_seed(0)
    return new_model(Answer, rows, Settings(**SMALL, min_count=1, **settings))[0].eval()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 300 questions of task 6 of bAbI (is she there: yes or no), and its data."""
    folder = tmp_path_factory.mktemp("babi")
    write_babi(folder, 6)
    rows = pl.read_csv(folder / "train.tsv", separator="\t")[:300]
    rows.write_csv(folder / "train.tsv", separator="\t")
    train(Answer, folder, Settings(**SMALL, cell="gru", epochs=12, dropout=0.0, learning_rate=0.01), folder / "model")
    return folder


def test_a_small_model_of_babi_beats_the_nearest_sentence_and_the_most_frequent_answer(trained):
    figures = figures_of(trained / "model")
    best_rule = max(figures["nearest sentence"]["exact_match"], figures["most frequent answer"]["exact_match"])
    assert figures["this model"]["exact_match"] > best_rule


def test_a_model_read_back_answers_as_before_and_says_where_it_looked(trained):
    held_out = pl.read_csv(trained / "valid.tsv", separator="\t")[:20]
    held_out.drop("answer").write_csv(trained / "asked.tsv", separator="\t")
    answers = list(predict(trained / "model", [trained / "asked.tsv"]))
    assert answers == list(load(trained / "model").predict(held_out.rename({"story": "text"})))
    for row, text in zip(answers, held_out["story"]):
        assert "".join(word for word, _ in row["weights"]) == text.replace(" ", "")
        assert sum(weight for _, weight in row["weights"]) == pytest.approx(1, abs=1e-5)  # float32


def test_the_picture_holds_the_words_of_three_stories(trained):
    model = load(trained / "model")
    held_out = pl.read_csv(trained / "valid.tsv", separator="\t")[:20].rename({"story": "text"})
    drawn = " ".join(text.get_text() for text in model.picture(held_out).axes[0].texts)
    for row in held_out[:18:6].iter_rows(named=True):
        assert row["question"] in drawn
        assert row["text"].replace(".", " .") in drawn


def test_spans_of_squad_are_learned(tmp_path):
    """A dozen questions by heart: what is read, aimed at and written out belongs together."""
    write_squad(tmp_path)
    rows = read_squad(tmp_path / "valid.json")[:12]
    run, batches = new_model(Answer, rows, Settings(**SMALL, dropout=0.0, min_count=1, longest_answer=60))
    optimizer = torch.optim.Adam(run.parameters(), 0.02)
    for _ in range(40):
        for batch in batches:
            optimizer.zero_grad()
            total, count = run.loss(batch)
            (total / count).backward()
            optimizer.step()
    assert run.facts["output"] == "span"
    assert run.figures(rows)["exact_match"] > 90
    for said, row in zip(run.predict(rows), rows.iter_rows(named=True)):
        assert row["text"][said["start"]:said["start"] + len(said["answer"])] == said["answer"]


@pytest.mark.parametrize("output", ["span", "word"])
@pytest.mark.parametrize("cell", ["lstm", "minimal_gated_unit"])
def test_a_question_is_answered_the_same_alone_and_beside_longer_texts(output, cell):
    rows = table(*PLACES)
    model = model_of(rows, output=output, cell=cell, layers=2)
    together = list(model.predict(rows))
    alone = [next(model.predict(rows[k:k + 1])) for k in range(len(rows))]
    assert [row["answer"] for row in together] == [row["answer"] for row in alone]
    torch.testing.assert_close([row["probability"] for row in together], [row["probability"] for row in alone],
                               rtol=1e-4, atol=1e-6)  # float32, products of other shapes


@pytest.mark.parametrize("output", ["span", "word"])
def test_the_loss_is_minus_the_logarithm_of_what_the_right_answers_are_given(output):
    rows = table(*PLACES)
    model = model_of(rows, output=output, longest_answer=3)
    examples = [model.examples(rows)[k] for k in range(3)]
    total, count = model.loss(model.collate(examples))
    expected = 0.0
    for k, (text, _, answer) in enumerate(PLACES):
        log_p = model(*model.collate(examples[k:k + 1])[:2])[0].detach()
        if output == "word":
            expected -= float(log_p[0, ["Bonn", "Old York", "Rome"].index(answer)])
        else:
            words = text.replace(".", " .").replace(",", " ,").split()
            begin = words.index(answer.split()[0])
            expected -= float(log_p[0, 0, begin] + log_p[0, 1, begin + len(answer.split()) - 1])
    assert count == 3
    assert total.item() == pytest.approx(expected, rel=1e-5)
    unknown = model.encode({"text": "Mary is in Rome.", "question": "Where is Mary?", "answer": "Paris"})
    with_unknown, count = model.loss(model.collate([*examples, unknown]))
    assert count == 3
    assert with_unknown.item() == pytest.approx(expected, rel=1e-5)


def test_the_best_span_is_that_of_a_literal_search():
    scores = torch.randn(7, 2, 9, generator=torch.Generator().manual_seed(0))
    for longest in (1, 3, 50):
        starts, ends = best_spans(scores, longest)
        for row, start, end in zip(scores, starts.tolist(), ends.tolist()):
            pairs = [(a, b) for a in range(9) for b in range(a, min(9, a + longest))]
            assert (start, end) == max(pairs, key=lambda p: row[0, p[0]] + row[1, p[1]])


def test_several_answers_share_the_truth_and_their_places_too():
    offsets = [(k, k + 1) for k in range(5)]
    answers = [{"text": "a", "start": None}, {"text": "bc", "start": 1}, {"text": "zz", "start": 0}]
    found = shares(answers, "abcad", offsets)
    assert found.tolist() == [[0.25, 0.25], [0.5, 0.0], [0.0, 0.5], [0.25, 0.25], [0.0, 0.0]]
    assert shares([{"text": "zz", "start": None}], "abcad", offsets).sum() == 0


def test_the_figures_are_those_of_a_script_written_from_the_rules_of_squad():
    def normal(text):
        bare = "".join(c for c in text.lower() if c not in string.punctuation)
        return [word for word in bare.split() if word not in ("a", "an", "the")]

    def f1(a, b):
        same = sum((Counter(a) & Counter(b)).values())
        return 2 * same / (len(a) + len(b))

    said = ["The Old York!", "in old Rome", "nothing"]
    right = [["old york", "York"], ["Rome", "the old Rome of the popes"], ["something"]]
    rows = pl.DataFrame({"answers": [[{"text": text, "start": None} for text in texts] for texts in right]})
    found = squad_scores(said, rows)
    assert found["exact_match"] == pytest.approx(
        100 / 3 * sum(any(normal(s) == normal(r) for r in texts) for s, texts in zip(said, right)))
    assert found["f1"] == pytest.approx(
        100 / 3 * sum(max(f1(normal(s), normal(r)) for r in texts) for s, texts in zip(said, right)))


def test_a_file_of_squad_is_split_by_article_and_a_folder_as_it_stands(tmp_path):
    write_squad(tmp_path / "squad")
    file = tmp_path / "squad" / "train.json"
    parts = Answer.read(str(file), Settings())
    texts = [set(part["text"]) for part in (parts.train, parts.valid)]
    asked = [q for a in json.loads(file.read_text())["data"] for p in a["paragraphs"] for q in p["qas"]]
    assert not texts[0] & texts[1]
    assert len(parts.train) + len(parts.valid) == len(asked)
    folder = Answer.read(str(tmp_path / "squad"), Settings())
    assert [len(folder.train), len(folder.valid), len(folder.test)] == [8943, 901, 726]
    assert len(Answer.read_inputs(file, Settings())) == len(asked)


def test_a_story_of_babi_is_told_up_to_each_question():
    text = "1 A b.\n2 Where? \tb\t1\n3 C d.\n4 Who?\tc\t3\n1 E f.\n2 What?\tf\t1\n"
    assert stories(text) == [[("A b.", "Where?", "b"), ("A b. C d.", "Who?", "c")], [("E f.", "What?", "f")]]


def test_the_rules_answer_what_the_nearest_sentence_has():
    rows = table(("Mary went to the garden. John went to the kitchen. Mary went to the office. It rained.",
                  "Where is Mary?", "office"))
    usual = table(("x", "y", "garden"), ("x", "y", "garden"), ("x", "y", "office"))
    assert nearest_sentence(usual, rows) == ["office"]
    assert most_frequent(usual, rows) == ["garden"]
    other = table(("x", "y", "z"))
    met = table(("In 1815 Wellington met Napoleon Bonaparte. It rained.", "Whom did Wellington meet?", ""))
    assert nearest_sentence(other, met) == ["Napoleon Bonaparte"]


def test_data_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(RecipeError, match="row 2 to train on: the answer 'Paris' is no part of its text"):
        model_of(table(PLACES[0], ("Mary left.", "Where?", "Paris")), output="span")
    model = model_of(table(*PLACES), longest=12)
    with pytest.raises(RecipeError, match="a text has 13 words.*--longest"):
        list(model.predict(table(("a " * 13, "Where?", "a"))))
    with pytest.raises(RecipeError, match="a question has 0 words"):
        list(model.predict(table(("a", " ", "a"))))
    with pytest.raises(RecipeError, match="answer feeds one"):
        model_of(table(*PLACES), cell="ea_lstm")
    with pytest.raises(RecipeError, match="this one has no tab: 'Mary left. Where'"):
        Answer.read_line("Mary left. Where", Settings())
    asked = Answer.read_line("Mary is in Rome.\tWhere is Mary?", Settings())
    assert next(model.predict(asked))["answer"] in PLACES[0][0]

    def squad(**question):
        file = tmp_path / "questions.json"
        file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "Mary is here.", "qas": [question]}]}]}))
        return file

    with pytest.raises(RecipeError, match="'Who.' has no answer. Delete it"):
        read_squad(squad(question="Who?", answers=[]))
    with pytest.raises(RecipeError, match="questions.json: this is not the form of SQuAD .KeyError: 'question'"):
        read_squad(squad(answers=[]))
    one = squad(question="Who?", answers=[{"text": "Mary", "answer_start": 0}])
    with pytest.raises(RecipeError, match="all questions are about one article"):
        Answer.read(str(one), Settings())
    assert read_squad(one)["answers"].to_list() == [[{"text": "Mary", "start": 0}]]
    one.write_text('{"data": []}')
    with pytest.raises(RecipeError, match="has no question"):
        read_squad(one)


def test_answers_never_trained_on_count_as_wrong(trained):
    rows = pl.read_csv(trained / "valid.tsv", separator="\t")[:10].with_columns(answer=pl.lit("perhaps"))
    rows.write_csv(trained / "other.tsv", separator="\t")
    assert evaluate(trained / "model", trained / "other.tsv") == {"exact_match": 0.0, "f1": 0.0}
