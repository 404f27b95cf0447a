"""Tables from whatever a user names: each form is read as Python's modules wrote it, each defect has its message."""

from __future__ import annotations

import csv
import gzip
import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import soundfile
from PIL import Image

from gatework.recipes import RecipeError, reading
from gatework.recipes.reading import Role, check_fits, check_known, large, read, read_lines, read_table, read_text

TEXT, STARS = Role("text", str, ("review", "sentence")), Role("stars", int)
ROWS = [("plain", 1), ('with "quotes", and a comma', 2), ("two\nlines", 3), ("tab\there; semicolon", 4), ("NA", 5),
        ("Ünïcödé 漢字", 6), ("x" * 200_000, 7), ("café", 8), ("  spaces  ", 9), ("0", 10)]


def packed(path: Path, data: bytes) -> Path:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def as_csv(delimiter: str = ",", end: str = "\r\n") -> bytes:
    from io import StringIO
    stream = StringIO()
    csv.writer(stream, delimiter=delimiter, lineterminator=end).writerows([("text", "stars"), *ROWS])
    return stream.getvalue().encode()


def as_json() -> list[dict]:
    return [{"text": text, "stars": stars} for text, stars in ROWS]


FORMS = {
    "a.csv": as_csv(), "a.csv.gz": as_csv(end="\n"), "semicolons.csv": as_csv(";"),
    "mark.csv": b"\xef\xbb\xbf" + as_csv(),
    "a.jsonl": "\n".join(map(json.dumps, as_json())).encode(),
    "a.ndjson.gz": "\n\n".join(json.dumps(row, ensure_ascii=False) for row in as_json()).encode(),
    "a.json": json.dumps(as_json(), indent=2).encode(), "a.json.gz": json.dumps(as_json()).encode(),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_rows_that_were_written(tmp_path, name):
    assert read_table(packed(tmp_path / name, FORMS[name]), [TEXT, STARS]).rows() == ROWS


def test_parquet_gives_the_rows_that_were_written(tmp_path):
    pl.DataFrame(ROWS, schema=["text", "stars"], orient="row").write_parquet(tmp_path / "a.parquet")
    assert read_table(tmp_path / "a.parquet", [TEXT, STARS]).rows() == ROWS


def test_tabs_separate_and_quotation_marks_are_text(tmp_path):
    file = packed(tmp_path / "a.tsv", b'text\tstars\n"open quote\t1\nsays "x"\t2\n')
    assert read_table(file, [TEXT, STARS]).rows() == [('"open quote', 1), ('says "x"', 2)]


def test_each_line_of_plain_text_is_a_row(tmp_path):
    file = packed(tmp_path / "a.txt.gz", "one, \"two\"\r\nÜ\n".encode())
    assert read_table(file, [TEXT]).rows() == [('one, "two"',), ("Ü",)]
    assert read_lines(file) == ['one, "two"', "Ü"]
    assert read_text(file) == 'one, "two"\r\nÜ\n'


def test_numbers_are_read_exactly_and_texts_left_as_they_are(tmp_path):
    values = np.random.default_rng(0).standard_normal(50) * 10.0 ** np.arange(-25, 25)
    file = packed(tmp_path / "a.csv", "\n".join(["x,code,on", *(f" {v!r},007,Yes" for v in values.tolist())]).encode())
    table = read_table(file, [Role("x", float), Role("code", str), Role("on", bool)])
    assert table["x"].to_list() == values.tolist()
    assert table["code"][0] == "007"
    assert table["on"].all()


def test_columns_are_found_by_their_usual_names_and_in_any_case_or_named(tmp_path):
    file = packed(tmp_path / "a.csv", b"id,Review,Score\n9,good,1\n")
    assert read_table(file, [TEXT, STARS], {"stars": "Score"}).rows() == [("good", 1)]
    assert read_table(file, [TEXT, Role("stars", int, optional=True)]).columns == ["text"]
    table = read_table(file, [TEXT], others=True)
    assert table.schema == {"text": pl.String, "id": pl.Float64, "Score": pl.Float64}


def test_other_columns_are_numbers_or_texts_with_null_where_blank(tmp_path):
    file = packed(tmp_path / "a.csv", b"y,wind,day\n1,2.5,2010-01-01\n2,NA,2010-01-02\n3,,\n")
    table = read_table(file, [Role("y", float)], others=True)
    assert table["wind"].to_list() == [2.5, None, None]
    assert table["day"].to_list() == ["2010-01-01", "2010-01-02", None]


# name, content, roles, columns, what the message must say (besides the name of the file)
DEFECTS = {
    "missing file": ("a.csv", None, [TEXT], {}, "there is no file"),
    "empty file": ("a.csv", b"", [TEXT], {}, "is empty"),
    "header only": ("a.csv", b"text\n", [TEXT], {}, "has no rows"),
    "too few fields": ("a.csv", b'text,stars\n"a\nb",1\n\nlonely\n', [TEXT, STARS], {}, "line 5: the row has 1 fields"),
    "too many fields": ("a.csv", b"text,stars\na,1\na,b,1\n", [TEXT, STARS], {}, "line 3: the row has 3 fields"),
    "open quotation": ("a.csv", b'text,stars\na,1\n"b,2\nc,3\n', [TEXT, STARS], {}, "line 3: .*quotation marks"),
    "blank text": ("a.csv", b"text,stars\na,1\n  ,2\n", [TEXT, STARS], {}, "line 3: the column 'text' is blank"),
    "blank line of text": ("a.txt", b"a\n\nb\n", [TEXT], {}, "line 2: the column 'line' is blank"),
    "no number": ("a.csv", b"text,stars\na,1\nb,many\n", [TEXT, STARS], {}, "line 3: .*'many', a whole number"),
    "a fraction": ("a.csv", b"text,stars\na,1.5\n", [TEXT, STARS], {}, "line 2: .*'1.5', a whole number"),
    "decimal comma": ("a.csv", b"x;y\n1;2\n1,5;2\n", [Role("x", float)], {}, "line 3: .*the decimal sign is a point"),
    "infinite": ("a.csv", b"x\n1\ninf\n", [Role("x", float)], {}, "line 3: .*'inf', a number"),
    "not available": ("a.csv", b"x\n1\nNA\n", [Role("x", float)], {}, "line 3: .*'NA'; 1 of these 2 rows lack it"),
    "latin 1": ("a.csv", "text\nä\ncafé\n".encode("latin1"), [TEXT], {}, r"offset 5 \(0xe4\), in line 2.*iconv"),
    "latin 1 behind a mark": ("a.csv", b"\xef\xbb\xbft\xe9xt\n", [TEXT], {}, r"offset 4 \(0xe9\), in line 1"),
    "utf-16": ("a.csv", "text\na\n".encode("utf-16"), [TEXT], {}, "UTF-16.*iconv"),
    "NUL": ("a.csv", b"text\na\nb\0\n", [TEXT], {}, "line 3: the byte at offset 8 is NUL"),
    "cut gzip": ("a.csv.gz", gzip.compress(as_csv())[:-30], [TEXT], {}, "cannot be unpacked"),
    "no gzip": ("b.csv.gz", "plain", [TEXT], {}, "cannot be unpacked"),
    "broken JSON line": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', [TEXT], {}, "line 3: this is no JSON"),
    "no object": ("a.jsonl", b'{"text": "a"}\n["b"]\n', [TEXT], {}, "line 2: here is a list"),
    "name twice": ("a.jsonl", b'{"text": "a", "text": "b"}\n', [TEXT], {}, "line 1: .*same name twice"),
    "lines called JSON": ("a.json", b'{"text": "a"}\n{"text": "b"}\n', [TEXT], {}, r"suffix is \.jsonl"),
    "broken JSON": ("a.json", b'[{"text": "a"},\n\n oh]', [TEXT], {}, "line 3: this is no JSON"),
    "JSON of another kind": ("a.json", b'{"data": []}', [TEXT], {}, "this file holds an object"),
    "a row without it": ("a.json", b'[{"text": "a"},\n\n{"stars": 1}]', [TEXT], {},
                    "line 3: the column 'text' is blank"),
    "nested": ("a.jsonl", b'{"text": ["a"]}\n', [TEXT], {}, r"line 1: .*\[\"a\"\]; a text or a number"),
    "columns twice": ("a.csv", b"text,stars,text\na,1,b\n", [TEXT], {}, "line 1: the column 'text' is there twice"),
    "no such column": ("a.csv", b"Stars,body\n1,a\n", [TEXT, STARS], {},
                       r"no column 'text'.*has Stars, body.*--columns\.text"),
    "named wrongly": ("a.csv", b"body\na\n", [TEXT], {"text": "bodi"}, "no column 'bodi', did you mean 'body'"),
    "no such role": ("a.csv", b"text\na\n", [TEXT], {"label": "text"}, r"nothing called 'label'.*reads text"),
    "two that could be": ("a.csv", b"review,sentence\na,b\n", [TEXT], {}, r"more than one.*--columns\.text review"),
    "one for two": ("a.csv", b"text\n1\n", [TEXT, STARS], {"stars": "text"}, "would be both text and stars"),
    "text for two": ("a.txt", b"a\n", [TEXT, STARS], {}, "plain text.*needs the columns text, stars"),
    "unknown suffix": ("a.xlsx", b"PK", [TEXT], {}, r"no suffix of a table.*\.csv"),
    "no parquet": ("a.parquet", b"PAR1 not", [TEXT], {}, "cannot be read as Parquet"),
    "no such sound": ("a.csv", b"text,wav\na,b.wav\n", [TEXT, Role("wav", Path)], {},
                      r"line 2: .*b\.wav, which is not there"),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_answered_with_file_line_and_remedy(tmp_path, defect):
    name, content, roles, columns, message = DEFECTS[defect]
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(RecipeError, match=f"(?s){message}") as caught:
        read_table(file, roles, columns)
    assert file.name in str(caught.value) or defect == "no such role"


def test_a_number_column_that_stops_being_one_is_an_error_with_its_line(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.formats, "BATCH", 100)
    rows = "".join(f"{k},{k if k != 90 else 'windy'}\n" for k in range(100))
    with pytest.raises(RecipeError, match=r"line 92: the column 'wind' is 'windy', a number"):
        read_table(packed(tmp_path / "a.csv", b"y,wind\n" + rows.encode()), [Role("y", float)], others=True)


def numbered(count: int, start: int = 0) -> bytes:
    return "".join(["text,stars\n", *(f"t{k},{k}\n" for k in range(start, start + count))]).encode()


def test_a_tenth_that_the_seed_draws_validates_and_order_stays(tmp_path):
    file = packed(tmp_path / "a.csv", numbered(1005))
    one, again, other = (read(file, [TEXT, STARS], seed=seed) for seed in (0, 0, 1))
    assert len(one.valid) in (100, 101)
    assert sorted(one.train["stars"].to_list() + one.valid["stars"].to_list()) == list(range(1005))
    assert one.train["stars"].is_sorted()
    assert one.valid["stars"].is_sorted()
    assert one.valid.equals(again.valid)
    assert not one.valid.equals(other.valid)


def test_the_draw_is_the_same_however_rows_are_batched():
    rng, wanted = random.Random(0), reading.Draw(3)(1000)
    draw, got = reading.Draw(3), []
    while sum(map(len, got)) < 1000:
        got.append(draw(min(rng.randrange(1, 30), 1000 - sum(map(len, got)))))
    assert np.array_equal(np.concatenate(got), wanted)
    assert wanted.reshape(100, 10).sum(1).tolist() == [1] * 100


def test_the_last_tenth_of_ordered_rows_validates(tmp_path):
    splits = read(packed(tmp_path / "a.csv", numbered(25)), [STARS], ordered=True)
    assert splits.train["stars"].to_list() == list(range(23))
    assert splits.valid["stars"].to_list() == [23, 24]


def test_too_few_rows_to_split_are_an_error(tmp_path):
    with pytest.raises(RecipeError, match="has 9 rows.*at least 10"):
        read(packed(tmp_path / "a.csv", numbered(9)), [TEXT])


@pytest.mark.parametrize("valid", ["valid.csv", "validation.jsonl", "dev.csv.gz", "val.parquet"])
def test_a_folder_has_its_splits_in_files(tmp_path, valid):
    packed(tmp_path / "train.csv", numbered(5))
    packed(tmp_path / "test.csv", numbered(3, 100))
    (tmp_path / "README.txt").write_text("no data")
    if valid.endswith(".parquet"):
        pl.DataFrame({"text": ["v"], "stars": [7]}).write_parquet(tmp_path / valid)
    else:
        packed(tmp_path / valid, b'{"text": "v", "stars": 7}' if "json" in valid else b"text,stars\nv,7\n")
    splits = read(tmp_path, [TEXT, STARS])
    assert len(splits.train) == 5
    assert splits.valid.rows() == [("v", 7)]
    assert splits.test["stars"].to_list() == [100, 101, 102]
    assert splits.files["valid"] == str(tmp_path / valid)


def test_a_folder_without_a_validation_file_validates_on_a_tenth(tmp_path):
    packed(tmp_path / "train.csv", numbered(20))
    packed(tmp_path / "test.csv", numbered(3))
    splits = read(tmp_path, [TEXT, STARS])
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (18, 2, 3)


@pytest.mark.parametrize(("files", "message"), [
    ({"train.csv": numbered(5), "valid.csv": b"text\na\n"}, "valid.csv has no column 'stars'"),
    ({"train.csv": numbered(5), "train.tsv": b"text\tstars\na\t1\n"}, "two of what could be train"),
    ({"valid.csv": numbered(5)}, "nothing to train on"),
    ({}, "has no train.csv"),
    ({"a.csv": numbered(5), "b.csv": numbered(5)}, "has no train.csv"),
])
def test_a_folder_that_is_no_data_says_what_it_should_hold(tmp_path, files, message):
    for name, content in files.items():
        packed(tmp_path / name, content)
    with pytest.raises(RecipeError, match=message):
        read(tmp_path, [TEXT, STARS])


def test_a_validation_file_without_a_column_that_training_has_is_an_error(tmp_path):
    packed(tmp_path / "train.csv", b"y,wind\n1,2\n")
    for content, message in ((b"y\n1\n", "valid.csv has no column for wind"), (b"y,wind\n1,x\n", "'wind' holds texts")):
        packed(tmp_path / "valid.csv", content)
        with pytest.raises(RecipeError, match=message):
            read(tmp_path, [Role("y", float)], others=True)


def test_a_path_that_is_not_there_is_answered_with_what_is(tmp_path):
    packed(tmp_path / "reviews.csv", numbered(20))
    with pytest.raises(RecipeError, match="there is no .*reviws.csv, did you mean .*reviews.csv"):
        read(tmp_path / "reviws.csv", [TEXT])


def sounds(folder: Path, labels: str = "ab", count: int = 10) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for k in range(count):
            soundfile.write(folder / label / f"{k}.wav", np.zeros(8, np.float32), 8000)


def pictures(folder: Path, labels: str, count: int) -> None:
    for label in labels:
        (folder / label).mkdir(parents=True)
        for k in range(count):
            Image.new("L", (2, 2)).save(folder / label / f"{k}.png")


AUDIO, LABEL = Role("audio", Path), Role("label", str)


def test_a_folder_of_sounds_has_the_labels_of_its_folders(tmp_path):
    sounds(tmp_path)
    splits = read(tmp_path, [AUDIO, LABEL])
    rows = splits.train.rows() + splits.valid.rows()
    assert sorted(rows) == [(str(tmp_path / label / f"{k}.wav"), label) for label in "ab" for k in range(10)]
    assert len(splits.valid) == 2


def test_folders_train_and_test_hold_folders_of_pictures(tmp_path):
    pictures(tmp_path / "train", "x", 12)
    pictures(tmp_path / "test", "x", 2)
    splits = read(tmp_path, [Role("image", Path), LABEL])
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (11, 1, 2)


def test_a_metadata_table_names_the_files_beside_it(tmp_path):
    sounds(tmp_path, "a", 12)
    rows = "".join(f"a/{k}.wav,{k} said\n" for k in range(12))
    packed(tmp_path / "metadata.csv", b"file_name,text\n" + rows.encode())
    table = read_table(tmp_path, [AUDIO, TEXT])
    assert table.row(3) == (str(tmp_path / "a" / "3.wav"), "3 said")


def test_a_strange_file_among_sounds_is_an_error(tmp_path):
    sounds(tmp_path)
    (tmp_path / "a" / "notes.doc").write_text("x")
    with pytest.raises(RecipeError, match=r"notes.doc is none"):
        read(tmp_path, [AUDIO, LABEL])


def test_labels_that_training_had_not_are_named_with_their_lines(tmp_path):
    file = packed(tmp_path / "test.csv", b"text,label\na,cat\nb,dgo\nc,cow\nd,dgo\n")
    table = read_table(file, [TEXT, LABEL])
    with pytest.raises(RecipeError, match=r"line 3, 5: the label 'dgo' \(2 rows\).*1 more are not; did you mean dog"):
        check_known(table["label"], ["cat", "dog"], "label", file)
    check_known(table["label"], ["cat", "dgo", "cow"], "label", file)


@pytest.fixture
def spilled(tmp_path, monkeypatch):
    monkeypatch.setenv("GATEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(large, "LIMIT", 5000)
    monkeypatch.setattr(reading.formats, "BATCH", 3000)
    return tmp_path / "cache" / "tables"


def test_a_large_table_is_converted_once_and_the_same(tmp_path, spilled, monkeypatch):
    file = packed(tmp_path / "a.csv", numbered(3000))
    first = read(file, [TEXT, STARS])
    kept = sorted(spilled.rglob("*"))
    assert [path.name for path in kept if path.is_file()] == ["train.arrow", "valid.arrow"]
    monkeypatch.setattr(reading.formats, "READERS", {".csv": None})  # it is not read again
    second = read(file, [TEXT, STARS])
    monkeypatch.undo()
    whole = read(file, [TEXT, STARS])  # in memory
    assert first.train.equals(whole.train)
    assert first.valid.equals(whole.valid)
    assert second.train.equals(whole.train)


def test_a_large_table_that_changes_is_converted_again(tmp_path, spilled):
    file = packed(tmp_path / "a.csv", numbered(1000))
    assert len(read_table(file, [TEXT])) == 1000
    packed(file, numbered(1001))
    assert len(read_table(file, [TEXT])) == 1001


def test_a_conversion_that_fails_leaves_nothing(tmp_path, spilled):
    file = packed(tmp_path / "a.csv", numbered(3000) + b"last,oops\n")
    with pytest.raises(RecipeError, match="line 3002: .*'oops'"):
        read_table(file, [TEXT, STARS])
    assert list(spilled.rglob("*.arrow")) == []
    assert list(spilled.iterdir()) == []


def test_without_a_cache_folder_a_large_table_is_an_error_with_the_remedy(tmp_path, spilled, monkeypatch):
    monkeypatch.setenv("GATEWORK_CACHE", "off")
    with pytest.raises(RecipeError, match="more than .* GiB.*Set GATEWORK_CACHE"):
        read_table(packed(tmp_path / "a.csv", numbered(3000)), [TEXT])


MEASURE = """
import sys
from pathlib import Path
from gatework.recipes.reading import Role, formats, large, read
large.LIMIT, formats.BATCH = 2**22, 2**20
def held():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))
roles = [Role("text", str), Role("stars", int)]
read(Path(sys.argv[1]), roles)  # loads the libraries
before = held()
splits = read(Path(sys.argv[2]), roles)
rows = (splits.train.row(k) for k in range(0, 270_000, 999))
assert all(text.startswith(f"line {stars} of a long") for text, stars in rows)
print(held() - before, len(splits.train) + len(splits.valid), splits.train.estimated_size() / 2**20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_flat_for_a_table_many_times_the_limit(tmp_path):
    for name, count in (("small.csv", 30_000), ("large.csv", 300_000)):
        with open(tmp_path / name, "w") as file:
            file.write("text,stars\n")
            file.writelines(f"line {k} {'of a long text ' * 12},{k}\n" for k in range(count))
    got = subprocess.run([sys.executable, "-c", MEASURE, tmp_path / "small.csv", tmp_path / "large.csv"], text=True,
                         capture_output=True, check=True, env={"GATEWORK_CACHE": str(tmp_path / "cache")})
    grown, rows, size = map(float, got.stdout.split())
    assert rows == 300_000
    assert size > 50  # MiB, a dozen times the limit of 4
    assert grown < 16  # MiB: a batch in its several forms, and what the allocator keeps


def test_what_does_not_fit_names_both_sizes_and_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(reading.size, "memory", lambda: 2**10)
    with pytest.raises(RecipeError, match=r"needs 2.0 GiB.*has 0.0 GiB. Lower --window"):
        check_fits(2**31, "the data", "Lower --window")
    with pytest.raises(RecipeError, match="a.txt needs .* Give a part of it"):
        read_text(packed(tmp_path / "a.txt", b"x" * 2000))
