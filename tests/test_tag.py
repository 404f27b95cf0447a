"""The recipe tag: accents of French restored, columns of words and labels, and what both rest on."""

from __future__ import annotations

import unicodedata

import pytest
import torch
from data_tag import write_french, write_german_writing
from sklearn.metrics import accuracy_score

from gatework.recipes import RecipeError
from gatework.recipes.accents import with_marks, without_marks
from gatework.recipes.baselines.tag import most_frequent
from gatework.recipes.reading.tagged import read_tagged
from gatework.recipes.run import evaluate, load, predict, predict_lines, train
from gatework.recipes.tag import Settings, Tag, scores, tagged
from gatework.recipes.token_features import features, words


@pytest.fixture(scope="module")
def french(tmp_path_factory):
    """A folder with some French, and in it a small model that restores accents."""
    folder = tmp_path_factory.mktemp("french")
    write_french(folder, 1500)
    settings = Settings(task="accents", hidden=32, embedding=48, epochs=3, batch_size=8, learning_rate=0.02,
                        dropout=0.1)
    return folder, train(Tag, folder, settings, folder / "model")


@pytest.fixture(scope="module")
def german(tmp_path_factory):
    """A folder with German words in columns, and in it a small model, a GRU, of how they are written."""
    folder = tmp_path_factory.mktemp("german")
    write_german_writing(folder, 600)
    settings = Settings(cell="gru", hidden=32, epochs=3, learning_rate=0.01)
    return folder, train(Tag, folder, settings, folder / "model")


@pytest.mark.parametrize(("data", "file"), [("french", "test.txt"), ("german", "test.conll")])
def test_a_small_model_beats_the_most_frequent_form_of_each_word(data, file, request):
    folder, model = request.getfixturevalue(data)
    train_table, test = (Tag.read_part(folder / f, model.settings) for f in (file.replace("test", "train"), file))
    baseline = Tag.baselines(train_table, test, model.settings)["most frequent form"]
    assert evaluate(folder / "model", folder / file)["accuracy"] > baseline["accuracy"]


def test_a_line_gets_its_accents_and_keeps_all_else(french):
    folder, _ = french
    line = "Une  fille ,a l'exterieur 中 x\u0301 ñ?"
    answer, empty = predict_lines(folder / "model", [line + "\n", "\n"])
    assert without_marks(answer["text"])[0] == without_marks(line)[0]
    assert "extérieur" in answer["text"]
    assert empty["text"] == ""


def test_a_line_that_is_not_utf_8_is_refused_with_its_number(french):
    lines = ["une fille\n", b"\xe9t\xe9\n".decode("utf-8", "surrogateescape")]  # as sys.stdin reads it
    with pytest.raises(RecipeError, match="line 2 of standard input is not UTF-8"):
        list(predict_lines(french[0] / "model", lines))


def test_words_between_spaces_are_printed_as_columns(german):
    folder, _ = german
    answer, = predict_lines(folder / "model", ["ein mann schläft\n"])
    assert answer["text"] == "".join(f"{w}\t{x}\n" for w, x in zip(["ein", "mann", "schläft"], answer["labels"]))
    assert answer["labels"] == ["Aa", "Aa", "aa"]  # the first word of a sentence, a noun, a verb
    assert len(answer["probabilities"]) == 3


@pytest.mark.parametrize("data", ["french", "german"])
def test_a_saved_model_says_of_a_file_what_the_trained_one_says_of_its_lines(data, request, tmp_path):
    folder, model = request.getfixturevalue(data)
    lines = ["une fille joue", "", "a"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    said = [row["text"] for row in predict(folder / "model", [tmp_path / "lines.txt"])]
    assert said == [next(iter(model.predict(Tag.read_line(line, model.settings))))["text"] for line in lines]


def test_rows_beside_longer_ones_get_the_answers_they_get_alone(german):
    folder, model = german
    rows = [["haus"], ["der", "hund", "läuft", "schnell"], ["xyz", "und"]]
    batch = model.collate([model.encode({"tokens": row}) for row in rows])
    with torch.no_grad():
        for k, row in enumerate(rows):
            alone = model(*model.collate([model.encode({"tokens": row})])[:2])
            # 1e-5: sums of float32 in another order
            torch.testing.assert_close(model(*batch[:2])[:len(row), k], alone[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("data", "file"), [("french", "test.txt"), ("german", "test.conll")])
def test_the_picture_counts_the_labels_of_the_data(data, file, request):
    folder, model = request.getfixturevalue(data)
    table = Tag.read_part(folder / file, model.settings)
    left, right = model.picture(table).axes
    truth = [labels for _, labels in tagged(table)]
    assert sum(int(text.get_text()) for text in left.texts) == sum(map(len, truth))
    assert len(right.patches) in {len(labels) for labels in truth}


# What it rests on -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [
    "Là-bas, l'élève naïf a mangé çà\tet là. Œuvre, Noël!", "ΰ Ngữ йод שָׁלוֹם  ガ 한국", "\u0301a", "",
    "e\u0301 x\u0302\u0323"])
def test_a_text_taken_apart_and_put_together_is_its_composed_form(text):
    bases, marks = without_marks(text)
    assert with_marks(bases, marks) == unicodedata.normalize("NFC", text)
    assert len(bases) == len(marks)
    assert not any(unicodedata.combining(c) for c in bases[1:])


def test_the_accuracy_is_that_of_whole_words():
    truth = [without_marks("été à la mer"), without_marks("où")]
    said = [without_marks(text)[1] for text in ("eté à la mer", "où")]
    right = ["été", "à", "la", "mer", "où"]
    assert scores(said, truth, "accents") == {
        "accuracy": accuracy_score(right, ["eté", "à", "la", "mer", "où"]), "sentences": 0.5}
    assert [truth[0][0][w] for w in words(truth[0][0], "accents")] == ["ete", "a", "la", "mer"]


def test_the_most_frequent_form_is_the_one_counted_by_hand():
    rows = [("a b", "XY"), ("a a", "ZZ"), ("c", "X"), ("d", "X"), ("e", "X")]
    taught = [(tokens.split(), list(labels), words(tokens.split(), "columns")) for tokens, labels in rows]
    asked = ["a", "b", "new"]
    # a: Z twice, X once; b: Y once; of all labels X is the most frequent.
    assert most_frequent(taught, [(asked, words(asked, "columns"))]) == [["Z", "Y", "X"]]


def test_marks_that_training_never_showed_have_no_loss_and_count_as_wrong(french):
    _, model = french
    ids, lengths, labels, tokens = model.collate([model.encode({"text": "n\u0323on"}), model.encode({"text": "non"})])
    assert labels[:, 0].tolist() == [-100, *labels[1:, 1].tolist()]
    assert model.loss((ids, lengths, labels, tokens))[1] == 5


# Files of columns -----------------------------------------------------------------------------------------------------

CONLLU = "# sent_id = 1\n1\tThe\tthe\tDET\n2\tcat\tcat\tNOUN\n\n# sent_id = 2\n1\t#\t#\tSYM\n"


def test_comments_and_columns_of_conllu_are_known_and_others_can_be_named(tmp_path):
    for name, columns in (("a.conllu", {}), ("a.tsv", {"token": "2", "label": "-1"})):
        (tmp_path / name).write_text(CONLLU)
        assert read_tagged(tmp_path / name, columns).rows() == [(["The", "cat"], ["DET", "NOUN"]), (["#"], ["SYM"])]
    (tmp_path / "a.txt").write_text("# X\nb Y\n \n\nc Z\n")  # no tabs, so no comments
    assert read_tagged(tmp_path / "a.txt", {}).rows() == [(["#", "b"], ["X", "Y"]), (["c"], ["Z"])]


def test_columns_without_labels_are_read_to_be_labelled(german, tmp_path):
    folder, model = german
    for name, text in (("a.conll", "ein\nmann\n\nhaus\n"), ("b.tsv", "ein\tX\nmann\tX\n\nhaus\tX\n"),
                       ("c.txt", "ein mann\nhaus\n")):
        (tmp_path / name).write_text(text)
        assert Tag.read_inputs(tmp_path / name, model.settings).rows() == [(["ein", "mann"],), (["haus"],)]
    first, second = predict(folder / "model", [tmp_path / "a.conll"])
    assert [line.split("\t")[0] for line in (first["text"] + second["text"]).splitlines()] == ["ein", "mann", "haus"]


@pytest.mark.parametrize(("text", "columns", "said"), [
    ("un chat dort\nun grand chien\nune fille\n", {}, "line 3.*--task accents"),
    ("a X\nb\n", {}, "line 2: the line has 1 columns, those before have 2"),
    ("a\n", {}, "line 1: the line has 1 columns, a token and its label are needed"),
    ("a\tX\nb\t\n", {}, "line 2: the label is blank"),
    ("a X\n", {"label": "3"}, "line 1: the label was said to be in column 3, there are 2"),
    ("a X\n", {"label": "kind"}, "--columns.label is the number of a column"),
    ("a X\n", {"text": "1"}, "there is no --columns.text"),
    ("\n", {}, "holds no sentences"),
])
def test_files_that_are_no_columns_are_refused_with_the_line_and_the_remedy(tmp_path, text, columns, said):
    (tmp_path / "x.conll").write_text(text)
    with pytest.raises(RecipeError, match=said):
        read_tagged(tmp_path / "x.conll", columns)


def test_labels_that_training_does_not_have_are_refused(tmp_path, german):
    (tmp_path / "train.conll").write_text("a X\nb Y\n")
    (tmp_path / "valid.conll").write_text("a Z\n")
    with pytest.raises(RecipeError, match="'Z'.*not one of those trained on"):
        Tag.read(str(tmp_path), Settings())
    with pytest.raises(RecipeError, match="'Z'.*not one of those trained on"):
        evaluate(german[0] / "model", tmp_path / "valid.conll")


def test_without_a_validation_file_a_tenth_of_the_sentences_validates(tmp_path):
    (tmp_path / "all.conll").write_text("".join(f"w{k} {'XY'[k % 2]}\n\n" for k in range(40)))
    splits = Tag.read(str(tmp_path / "all.conll"), Settings())
    assert (len(splits.train), len(splits.valid)) == (36, 4)
    found = [token for part in (splits.train, splits.valid) for token, in part["tokens"]]
    assert sorted(found) == sorted(f"w{k}" for k in range(40))


def test_a_label_that_only_one_sentence_has_is_trained_on(tmp_path):
    (tmp_path / "all.conll").write_text("".join(f"w{k} {f'Z{k}' if k < 9 else 'X'}\n\n" for k in range(20)))
    for seed in range(10):
        splits = Tag.read(str(tmp_path / "all.conll"), Settings(seed=seed))
        assert len(splits.train) + len(splits.valid) == 20
        assert splits.valid["labels"].explode().unique().to_list() == ["X"]


def test_words_are_dropped_wherever_they_stand_and_their_letters_are_still_read(german):
    model = german[1]
    seen = []
    hook = model.embedding.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    batch = model.collate([model.encode({"tokens": ["ein", "mann", "und", "ein", "hund"] * 20})])
    try:
        with torch.random.fork_rng():
            for seed in range(40):
                torch.manual_seed(seed)
                model.train()(*batch[:2])
    finally:
        hook.remove()
        model.eval()
    found = torch.stack(seen)[:, :, 0]  # [draws, tokens, features]
    assert (found[:, :, 1:] == batch[0][:, 0, 1:]).all()
    dropped = (found[:, :, 0] == 1).view(40, 20, 5)
    assert (dropped == dropped[:, :1]).all()
    assert (dropped[..., 0] == dropped[..., 3]).all()
    assert 0 < dropped.float().mean() < 0.3  # 0.1 is the setting, and four words are drawn 40 times


def test_capitals_are_read_as_the_same_word():
    for small, large in zip(features("l'été à", "accents"), features("L'ÉTÉ À", "accents"), strict=True):
        assert small[::2] == large[::2]


def test_a_folder_that_was_saved_is_read_without_the_data(german, tmp_path):
    folder, model = german
    again = load(folder / "model")
    assert again.facts == model.facts
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
