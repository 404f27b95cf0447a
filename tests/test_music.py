"""The recipe music: beats the repeated step on chorales, and counts as the literature does; what its files may be."""

import bz2
import gzip
import json
import math

import mido
import numpy as np
import pytest
import torch
from data_music import write_jsb, write_nottingham
from sklearn.metrics import jaccard_score, log_loss

from gatework.recipes import RecipeError
from gatework.recipes.baselines.music import last_step, note_frequencies
from gatework.recipes.music import KEYS, Music, Settings, piano_roll, scores, table, transposed
from gatework.recipes.notes import LOWEST, read_midi, read_music, write_midi
from gatework.recipes.run import figures_of, load, new_model, train

SMALL = Settings(hidden=64, layers=1, epochs=6, batch_size=1, dropout=0.2, learning_rate=0.01, transpose=5)
PIECES = [[[60, 64, 67], [], [62], [62, 65]], [[48], [50]], [[108, 21]]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of 60 chorales, and 60 others."""
    folder = tmp_path_factory.mktemp("jsb")
    source = write_jsb(folder, 60)
    train(Music, source, SMALL, folder / "model")
    return folder / "model", Music.read(str(source), SMALL).test


@pytest.fixture
def model():
    return new_model(Music, table(PIECES), Settings(hidden=7, cell="gru", dropout=0.0))[0].eval()


def test_a_small_model_of_chorales_beats_the_repeated_step_and_the_frequencies_of_notes(trained):
    figures = figures_of(trained[0])
    # 9.5, 10.4 and 11.4 nats when this was written
    assert figures["this model"]["nll"] < figures["last step"]["nll"] - 0.5
    assert figures["last step"]["nll"] < figures["note frequencies"]["nll"]


def test_a_model_read_back_answers_as_before(trained):
    folder, held_out = trained
    first, second = (list(load(folder).predict(held_out[:5])) for _ in range(2))
    assert first == second
    assert [row["next"] for row in first] == [[int(k) for k, p in row["probabilities"].items() if p > 0.5]
                                              for row in first]


def test_loss_and_figures_are_those_of_the_literature_step_by_step(trained):
    folder, held_out = trained
    model, held_out = load(folder), held_out[:4]
    first, others = [], []
    for piece in held_out["steps"].to_list():
        roll = piano_roll(piece)
        state, before = None, torch.zeros(KEYS)
        for t, now in enumerate(roll):
            output, state = model.recurrent.step(before[None], state)
            p = model.notes(torch.cat([output[0], before])).sigmoid().detach().double().numpy()
            (others if t else first).append(log_loss(now, p, labels=[0, 1], normalize=False))
            before = now
    # float32 in products of other shapes; Bai et al. (2018) expect no first step
    assert model.figures(held_out)["nll"] == pytest.approx(np.mean(others), rel=1e-5)
    loss, count = model.loss(model.collate([piano_roll(piece) for piece in held_out["steps"].to_list()]))
    assert loss.item() / count == pytest.approx(np.mean(first + others), rel=1e-5)


def test_scores_are_those_of_scikit_learn_without_the_first_step():
    truth = torch.rand(9, KEYS) < 0.1
    odds = torch.randn(9, KEYS, dtype=torch.float64)
    found = scores([odds], [truth.float()])
    expected = [log_loss(t, p, labels=[0, 1], normalize=False) for t, p in zip(truth[1:], odds[1:].sigmoid())]
    assert found["nll"] == pytest.approx(np.mean(expected))
    assert found["accuracy"] == pytest.approx(jaccard_score(truth[1:].flatten(), odds[1:].flatten() > 0))


def test_a_piece_has_the_same_loss_alone_and_beside_longer_ones(model):
    examples = model.examples(table(PIECES))
    together, count = model.loss(model.collate([examples[k] for k in range(3)]))
    alone = sum(model.loss(model.collate([e]))[0] for e in map(examples.__getitem__, range(3)))
    assert count == 4 + 2 + 1
    assert together.item() == pytest.approx(alone.item(), rel=1e-6)  # float32


def test_the_first_step_is_expected_after_silence_and_the_last_one_is_not_read(model):
    roll = piano_roll(PIECES[0])[:, None]
    lengths = torch.tensor([4])
    silent, changed = torch.zeros_like(roll), roll.clone()
    changed[-1] = 1 - changed[-1]
    torch.testing.assert_close(model(roll, lengths)[0], model(silent, lengths)[0], rtol=0, atol=0)
    torch.testing.assert_close(model(roll, lengths)[:4], model(changed, lengths)[:4], rtol=0, atol=0)


def test_baselines_count_notes_by_hand():
    known = [piano_roll([[60], [60, 62], []]), piano_roll([[62], [62]])]
    held_out = [piano_roll([[60], [62]])]
    key = 60 - LOWEST
    often = note_frequencies(known, held_out)[0].sigmoid()
    assert often[:, key].tolist() == pytest.approx([3 / 7] * 2)  # (2 + 1) / (5 + 2)
    said = last_step(known, held_out)[0].sigmoid()
    # 60 sounded twice and went on once; 62 was silent in one of the steps before, and began in it.
    assert said[0, key].item() == pytest.approx(3 / 7)
    assert said[1, key].item() == pytest.approx((1 + 1) / (2 + 2))
    assert said[1, key + 2].item() == pytest.approx((1 + 1) / (1 + 2))


def test_transposed_pieces_keep_their_intervals_and_stay_on_the_piano():
    rolls = torch.stack([piano_roll([[60, 64], [62]]), piano_roll([[21, 108], [50]]), piano_roll([[22], []])], 1)
    found = {k: set() for k in range(3)}
    for _ in range(200):
        for k, roll in enumerate(transposed(rolls, 2).unbind(1)):
            found[k].add(tuple(tuple(step.nonzero().flatten().tolist()) for step in roll))
    assert found[0] == {((39 + s, 43 + s), (41 + s,)) for s in range(-2, 3)}
    assert found[1] == {((0, 87), (29,))}
    assert found[2] == {((1 + s,), ()) for s in (-1, 0, 1, 2)}


def test_what_is_generated_begins_with_the_prompt_and_follows_from_the_seed(trained, tmp_path):
    model = load(trained[0])
    (tmp_path / "tune.json").write_text(json.dumps(PIECES))
    written = [json.loads(model.generate(prompt, 12, 1.0, seed)) for prompt, seed in
               ((str(tmp_path / "tune.json"), 0), (json.dumps(PIECES[0]), 0), (json.dumps(PIECES[0]), 1), ("\n", 0))]
    assert written[0] == written[1] != written[2]
    assert written[0][:4] == PIECES[0]
    assert [len(piece) for piece in written] == [16, 16, 16, 12]
    # At 0 it is the notes that are likelier than not, which are those that predict names.
    following = next(model.predict(table(PIECES[:1])))["next"]
    assert json.loads(model.generate(json.dumps(PIECES[0]), 1, 0.0, 0))[-1] == following


def test_notes_are_drawn_as_often_as_the_model_says(model):
    odds = model(piano_roll(PIECES[0])[:, None], torch.tensor([4]))[-1, 0].detach() / 0.5
    model.notes.bias.data += 1.0
    odds += 2.0
    drawn = sum(piano_roll(json.loads(model.generate(json.dumps(PIECES[0]), 1, 0.5, seed))[-1:])[0]
                for seed in range(400)) / 400
    # Four standard deviations of a share of 400, and 88 of them
    assert (drawn - odds.sigmoid()).abs().max() < 4.5 * math.sqrt(0.25 / 400)


@pytest.mark.parametrize("ending", ["json", "json.gz", "json.bz2"])
def test_json_is_read_with_parts_and_without(tmp_path, ending):
    pack = {"json": bytes, "json.gz": gzip.compress, "json.bz2": bz2.compress}[ending]
    file = tmp_path / f"tunes.{ending}"
    file.write_bytes(pack(json.dumps({"train": PIECES, "validation": PIECES[:1]}).encode()))
    assert read_music(file, 4) == {"train": PIECES, "valid": PIECES[:1]}
    file.write_bytes(pack(json.dumps(PIECES).encode()))
    assert read_music(file, 4) == {"all": PIECES}


def test_a_tenth_validates_where_nothing_else_is_said(tmp_path):
    pieces = [[[30 + k], [31 + k]] for k in range(25)]
    (tmp_path / "tunes.json").write_text(json.dumps(pieces))
    splits = Music.read(str(tmp_path / "tunes.json"), Settings(seed=3))
    assert splits.valid.shape == (2, 1)
    assert splits.test is None
    assert sorted(splits.train["steps"].to_list() + splits.valid["steps"].to_list()) == pieces


def test_a_folder_of_midi_files_is_read_by_its_parts(tmp_path):
    for part, piece in (("train", PIECES[0]), ("train", PIECES[1]), ("valid", PIECES[1])):
        (tmp_path / part).mkdir(exist_ok=True)
        write_midi(piece, tmp_path / part / f"{len(piece)}.mid", 2)
    (tmp_path / "README.md").write_text("not music")
    # A rest at the end of a file is no note, so nothing of it is kept.
    assert read_music(tmp_path, 2) == {"train": [PIECES[1], PIECES[0]], "valid": [PIECES[1]]}


def test_midi_is_read_in_steps_of_a_beats_part_and_without_drums(tmp_path):
    midi = mido.MidiFile(ticks_per_beat=96)
    for channel, notes in ((0, [(60, 0, 96), (64, 96, 100)]), (9, [(35, 0, 960)])):
        track = midi.add_track()
        at = 0
        for note, on, off in notes:
            track.append(mido.Message("note_on", channel=channel, note=note, time=on - at))
            track.append(mido.Message("note_on", channel=channel, note=note, velocity=0, time=off - on))
            at = off
    midi.save(tmp_path / "a.mid")
    assert read_midi(tmp_path / "a.mid", 2) == [[60], [60], [64]]  # a note of a few ticks is a step long
    assert read_midi(tmp_path / "a.mid", 1) == [[60], [64]]


def test_all_tunes_of_nottingham_go_to_midi_and_back(tmp_path):
    pieces = read_music(write_nottingham(tmp_path, 10), 4)["test"]
    for piece in pieces:
        write_midi(piece, tmp_path / "tune.mid", 4)
        while not piece[-1]:
            piece.pop()
        assert read_midi(tmp_path / "tune.mid", 4) == piece


@pytest.mark.parametrize(("content", "message"), [
    ("[[[60], [61]]", r"tunes.json, line 1: this is no JSON"),
    ("[]", "needed is a list of pieces"),
    ("[[]]", "piece 1: needed is a list of steps"),
    ("[[[60], [61]], [[60], 61]]", r"piece 2, step 2: needed is a list of MIDI pitches, .* 61 was given"),
    ("[[[60], [60.5]]]", r"piece 1, step 2: needed is a list of MIDI pitches"),
    ('{"train": [[[60], [-1]]]}', "train, piece 1, step 2: the pitch -1 is not on a piano, 21 to 108"),
    ('{"tunes": [[[60]]]}', "parts of a collection are called train, valid and test; here they are 'tunes'"),
    ('{"test": [[[60], [61]]]}', "has the part test, but none called train"),
    ("[[[60], [61]]]", "has one piece; two or more are needed"),
    ("[[[60], [61]], [[60]]]", "tunes.json, piece 2: needed are 2 steps or more"),
])
def test_what_is_no_music_is_refused(tmp_path, content, message):
    (tmp_path / "tunes.json").write_text(content)
    with pytest.raises(RecipeError, match=message):
        Music.read(str(tmp_path / "tunes.json"), Settings())


def test_files_that_are_no_music_are_refused(tmp_path, model):
    (tmp_path / "a.mid").write_bytes(b"MThd nothing")
    (tmp_path / "a.txt").write_text("la la")
    (tmp_path / "a.json.gz").write_bytes(b"not gzip")
    (tmp_path / "empty").mkdir()
    for name, message in (("a.mid", "no MIDI file that can be read"), ("a.txt", "not music that can be read"),
                          ("a.json.gz", "cannot be read"), ("b.json", "there is no file"), ("empty", "has no music")):
        with pytest.raises(RecipeError, match=message):
            read_music(tmp_path / name, 4)
    with pytest.raises(RecipeError, match="the prompt is no JSON"):
        model.generate("[[60}", 3, 1.0, 0)
    with pytest.raises(RecipeError, match="music feeds one"):
        new_model(Music, table(PIECES[:2]), Settings(cell="ea_lstm"))


def test_an_evaluation_takes_the_test_part_and_a_prediction_a_piece_of_one_step(tmp_path, model):
    file = tmp_path / "tunes.json"
    file.write_text(json.dumps({"train": PIECES[:2], "test": PIECES[1:2]}))
    assert Music.read_part(file, model.settings)["steps"].to_list() == PIECES[1:2]
    file.write_text(json.dumps({"train": PIECES[:2]}))
    with pytest.raises(RecipeError, match="has the parts train; needed is a part called test, or just a list"):
        Music.read_part(file, model.settings)
    file.write_text(json.dumps(PIECES[2:]))
    assert len(next(model.predict(Music.read_inputs(file, model.settings)))["probabilities"]) == 88


def test_the_picture_shows_a_piece_with_and_without_notes(model):
    for pieces in (PIECES[:1], [[[], []]]):
        assert len(model.picture(table(pieces)).axes) == 2
