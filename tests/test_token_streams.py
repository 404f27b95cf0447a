"""Running text as numbers side by side: streams, the ends of lines, texts larger than memory."""

import gzip
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from language_models import REFERENCE, text_of

from gatework.recipes import RecipeError, token_streams, vocabulary
from gatework.recipes.language_model import LanguageModel, Settings
from gatework.recipes.token_streams import IGNORED, Chunks, TextTokenizer


def tokenizer_of(text, kind, size=1000):
    return TextTokenizer(vocabulary.learn(text, kind, size).to_str(), kind)


@pytest.mark.parametrize(("length", "streams", "steps"), [(6, 1, 5), (97, 4, 7), (10, 9, 3), (5, 4, 3), (2, 3, 1)],
                         ids=["N6-B1-T5", "N97-B4-T7", "N10-B9-T3", "N5-B4-T3", "N2-B3-T1"])
def test_every_token_but_the_first_is_a_target_once_and_follows_its_input(length, streams, steps):
    targets, stream_text = [], {}
    for _, x, y in Chunks(np.arange(length), streams, steps):
        assert x.shape == y.shape == (min(len(x), steps), streams)
        kept = y != IGNORED
        assert torch.equal(y[kept], x[kept] + 1)
        targets += y[kept].tolist()
        for stream in range(streams):
            stream_text.setdefault(stream, []).extend(x[:, stream][kept[:, stream]].tolist())
    assert sorted(targets) == list(range(1, length))
    assert [c for stream in range(streams) for c in stream_text[stream]] == list(range(length - 1))


@pytest.mark.parametrize(("length", "streams"), [(97, 2), (7, 1), (4, 3)])
def test_processes_read_together_what_one_with_all_streams_reads(length, streams, monkeypatch):
    world, ids = 3, np.arange(length, dtype=np.uint16)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(token_streams, "distributed", SimpleNamespace(get_rank=lambda rank=rank: rank))
        parts.append(list(Chunks(ids, streams, 5, world)))
    for step, *of_ranks in zip(Chunks(ids, streams * world, 5), *parts, strict=True):
        for which in (1, 2):
            joined = torch.stack([part[which] for part in of_ranks], 2).flatten(1)  # stream b is that of b % world
            assert torch.equal(joined, step[which])


def test_chunks_go_on_where_they_stopped_and_not_with_other_streams():
    whole, stopped = Chunks(np.arange(97), 4, 7), Chunks(np.arange(97), 4, 7)
    expected = [x.tolist() for _, x, _ in whole]
    reader = iter(stopped)
    found = [next(reader)[1].tolist() for _ in range(2)]
    fresh = Chunks(np.arange(97), 4, 7)
    fresh.load_state_dict(stopped.state_dict())
    assert found + [x.tolist() for _, x, _ in fresh] == expected
    with pytest.raises(RecipeError, match="read 4 streams side by side, this one would read 8"):
        Chunks(np.arange(97), 4, 7, world=2).load_state_dict(stopped.state_dict())


TEXTS = ["The cat\nsat\n\n on the mat", "one line", "\n", "ends\n"]


@pytest.mark.parametrize("kind", ["characters", "bpe"])
@pytest.mark.parametrize("content", [*TEXTS, "<s> </s> a <pad>\n"])
def test_characters_and_pieces_give_back_the_text_also_where_it_holds_what_special_tokens_are_called(kind, content):
    text = text_of(content)
    tokenizer = tokenizer_of(text, kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == content
    assert not {*ids} & {*tokenizer.never_written}
    assert tokenizer.encode_to_file(text).tolist() == ids


@pytest.mark.parametrize("kind", ["words", "spaces"])
@pytest.mark.parametrize("content", TEXTS)
def test_words_give_back_the_lines_with_one_space_between_words(kind, content):
    text = text_of(content)
    tokenizer = tokenizer_of(text, kind)
    ids = tokenizer.encode(text)
    found, given = (list(map(str.split, part.split("\n"))) for part in (tokenizer.decode(ids), content))
    assert found == given
    assert tokenizer.encode_to_file(text).tolist() == ids


def test_a_very_long_line_has_the_same_words_as_the_same_words_in_many_lines(monkeypatch):
    monkeypatch.setattr(token_streams, "LONGEST", 50)
    lines = REFERENCE[:3000].replace("\n", " ")
    tokenizer = tokenizer_of([lines], "spaces")
    assert tokenizer.encode([lines]) == tokenizer.encode(lines.split(" "))
    assert tokenizer.decode(tokenizer.encode(["x" * 120])) == " <unk>" * 3
    assert "".join(token_streams.pieces([lines, "x" * 120])) == lines + "x" * 120


def test_unk_in_a_text_is_the_unknown_word():
    tokenizer = tokenizer_of(["<unk> a <unk> b <unk>\n"] * 5, "spaces")
    assert tokenizer.size == 6
    assert tokenizer.encode(["a <unk> c\n"]) == [4, vocabulary.UNKNOWN, vocabulary.UNKNOWN, vocabulary.END]


def write(folder, name, content):
    (folder / name).write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return folder / name


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz", "t", "t.md"])
def test_the_last_tenth_of_a_file_validates_and_no_character_is_lost(name, tmp_path):
    content = REFERENCE[:1234] + "\r\nno end of a line"
    splits = LanguageModel.read(str(write(tmp_path, name, content)), Settings())
    assert len(splits.valid) == len(content) // 10
    assert "".join(splits.train) + "".join(splits.valid) == content
    assert "".join(LanguageModel.read_part(tmp_path / name, Settings())) == content


def test_a_folder_of_texts_gives_its_parts_as_they_are(tmp_path):
    for name in ("train.txt", "validation.txt.gz", "test.txt"):
        write(tmp_path, name, f"\n {name}\n\n")
    splits = LanguageModel.read(str(tmp_path), Settings())
    assert ["".join(t) for t in (splits.train, splits.valid, splits.test)] == [
        "\n train.txt\n\n", "\n validation.txt.gz\n\n", "\n test.txt\n\n"]


def test_rows_of_a_table_are_lines_and_the_last_tenth_of_them_validates(tmp_path):
    rows = "".join(f'{k},"line {k}"\n' for k in range(30))
    splits = LanguageModel.read(str(write(tmp_path, "t.csv", "id,content\n" + rows)), Settings())
    assert "".join(splits.train) == "".join(f"line {k}\n" for k in range(27))
    assert "".join(splits.valid) == "line 27\nline 28\nline 29\n"
    assert splits.test is None


LARGE = """
import resource, sys
from pathlib import Path
from gatework.recipes import running_text, token_streams, vocabulary
token_streams.TOGETHER = 2**16
tokenizer = token_streams.TextTokenizer(vocabulary.learn(["abcdefghij \\n"], "characters", 20).to_str(), "characters")
for file in sys.argv[1:]:
    ids = tokenizer.encode_to_file(running_text.of_file(Path(file)))
    for _, x, y in token_streams.Chunks(ids, 4, 1000):
        pass
    print(len(ids), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_the_memory_that_a_text_takes_does_not_grow_with_it(tmp_path):
    sizes = [20_000, 100_000]
    files = [str(write(tmp_path, f"{lines}.txt", "abcdefghij \n" * lines)) for lines in sizes]
    done = subprocess.run([sys.executable, "-c", LARGE, *files], capture_output=True, text=True, check=True)
    (tokens, small), (more_tokens, large) = (map(int, line.split()) for line in done.stdout.splitlines())
    assert [tokens, more_tokens] == [12 * lines for lines in sizes]
    # KiB. The larger text has a million tokens more: 8 MiB as Python's numbers, about 50 MiB as the library's tokens;
    # what is mapped counts here, 2 MiB.
    assert large - small < 6000
