"""Transcription: spectrograms, CTC, training on spoken digits, what is refused."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import soundfile
import torch
from data_transcribe import SPEAKERS, TEST, takes, write_digits, write_strings, write_table
from hypothesis import given, settings, strategies

from gatework.compiler import trace
from gatework.recipes import RecipeError, run
from gatework.recipes.ctc import Lexicon, beam_search, best_path, least_steps
from gatework.recipes.find_cell import find_cell
from gatework.recipes.sound import filters, log_mel, read_sound, standardise
from gatework.recipes.transcribe import Settings, Transcribe, mask, scores, warp

# The text that an alignment means ------------------------------------------------------------------------------------


def collapsed(alignment):
    return tuple(token for token, _ in itertools.groupby(alignment) if token)


def probabilities_of_texts(p: np.ndarray) -> dict[tuple, float]:
    """By adding up every alignment there is."""
    found: dict[tuple, float] = {}
    for alignment in itertools.product(range(p.shape[1]), repeat=len(p)):
        text = collapsed(alignment)
        found[text] = found.get(text, 0.0) + math.prod(p[t, k] for t, k in enumerate(alignment))
    return found


def draw(seed: int, steps: int, tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.full(tokens, 0.5), steps)


@settings(deadline=None, max_examples=40)
@given(strategies.integers(0, 2**31), strategies.integers(1, 6), strategies.integers(2, 4))
def test_a_beam_that_keeps_all_finds_the_text_whose_alignments_have_the_largest_sum(seed, steps, tokens):
    p = draw(seed, steps, tokens)
    every = probabilities_of_texts(p)
    said, _ = beam_search(torch.from_numpy(p), beams=len(every) + tokens)
    assert every[said] == pytest.approx(max(every.values()), rel=1e-9)  # two texts may be as likely but for rounding


@settings(deadline=None, max_examples=40)
@given(strategies.integers(0, 2**31), strategies.integers(1, 6))
def test_with_a_lexicon_it_finds_the_likeliest_of_the_texts_of_its_words(seed, steps):
    p = draw(seed, steps, 4)
    words, space = {(1,), (1, 2), (2, 2)}, 3
    every = {text: q for text, q in probabilities_of_texts(p).items() if text == () or all(
        word in words for word in split(text, space))}
    said, _ = beam_search(torch.from_numpy(p), 10_000, Lexicon(words, space))
    # A space at the end is of a text whose next word has not begun.
    assert every[said] == pytest.approx(max(every.values()), rel=1e-9)


def split(text: tuple, space: int) -> list[tuple]:
    found: list[list] = [[]]
    for token in text:
        found.append([]) if token == space else found[-1].append(token)
    return [tuple(word) for word in found]


@given(strategies.lists(strategies.integers(0, 3), min_size=1, max_size=12))
def test_the_best_path_is_the_collapsed_alignment_and_tells_where_each_token_begins(alignment):
    text, steps = best_path(torch.eye(4)[alignment])
    assert text == collapsed(alignment)
    assert [alignment[step] for step in steps] == list(text)
    assert all(step == 0 or alignment[step - 1] != alignment[step] for step in steps)


def test_a_beam_of_certain_steps_gives_the_best_path_and_its_times_even_over_thousands_of_steps():
    p = torch.eye(4)[[0, 2, 2, 0, 2, 1, 3] * 500] * 0.6 + 0.1
    assert beam_search(p, 4) == best_path(p)


def test_a_word_that_is_not_finished_at_the_end_is_left_out():
    lexicon = Lexicon([(1, 2)], space=3)
    assert beam_search(torch.eye(4)[[1, 2, 3, 1]], 1, lexicon) == ((1, 2, 3), (0, 1, 2))


@given(strategies.lists(strategies.integers(1, 2), min_size=1, max_size=5))
def test_a_text_needs_as_many_steps_as_torch_finds_an_alignment_for(tokens):
    def loss(steps):
        return torch.nn.functional.ctc_loss(torch.zeros(steps, 1, 3).log_softmax(-1), torch.tensor(tokens), [steps],
                                            [len(tokens)])
    needed = least_steps(tokens)
    assert loss(needed).isfinite()
    assert needed == 1 or not loss(needed - 1).isfinite()


# Spectrograms ---------------------------------------------------------------------------------------------------------


def literal_log_mel(samples, rate, bands):
    """Frame by frame, frequency by frequency."""
    window, hop, size = rate // 40, rate // 100, 1
    while size < window:
        size *= 2
    padded = np.concatenate([np.zeros(size // 2), samples.astype(float), np.zeros(size // 2)])
    edges = [700 * (10 ** (m / 2595) - 1) for m in np.linspace(0, 2595 * math.log10(1 + rate / 2 / 700), bands + 2)]
    rows = []
    for start in range(0, len(padded) - size + 1, hop):
        cut = np.zeros(size)
        left = (size - window) // 2
        for k in range(window):
            hann = 0.5 - 0.5 * math.cos(2 * math.pi * k / window)
            cut[left + k] = padded[start + left + k] * hann
        power = abs(np.fft.rfft(cut)) ** 2
        row = []
        for band in range(bands):
            low, middle, high = edges[band:band + 3]
            weights = np.interp(np.arange(len(power)) * rate / size, [low, middle, high], [0, 1, 0])
            row.append(10 * math.log10(max(power @ weights, 1e-10)))
        rows.append(row)
    return np.maximum(rows, np.max(rows) - 80)


@pytest.mark.parametrize(("samples", "rate", "bands"), [(1, 8000, 1), (700, 8000, 7), (3000, 16000, 40)])
def test_the_log_mel_spectrogram_is_that_of_a_literal_loop(samples, rate, bands):
    sound = np.random.default_rng(0).normal(size=samples).astype(np.float32)
    sound[samples // 2:] *= 1e-6  # 120 dB below
    ours = log_mel(sound, rate, bands)
    assert ours.shape == (1 + samples // (rate // 100), bands)
    # float32 Fourier transforms of values of order 1: relative 1e-5 of the power, 4e-5 dB
    np.testing.assert_allclose(ours, literal_log_mel(sound, rate, bands), atol=2e-3)


def test_a_pure_tone_is_loudest_in_the_band_of_its_pitch():
    tone = np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000).astype(np.float32)
    # 1000 Hz is 1000 mel (to 0.02 %), of 2146 to 4000 Hz: of 40 triangles, 52.3 mel apart, that around 1000 / 52.3
    assert set(log_mel(tone, 8000, 40)[5:-5].argmax(1)) == {round(1000 / (2146.06 / 41)) - 1}


def test_the_filters_are_those_of_torchaudio():
    # torchaudio 2.11: functional.melscale_fbanks(17, 0, 4000, 4, 8000, norm=None, mel_scale="htk")
    theirs = [[0.77049, 0, 0, 0], [0.63035, 0.36965, 0, 0], [0.10389, 0.89611, 0, 0], [0, 0.71126, 0.28874, 0],
              [0, 0.35154, 0.64846, 0], [0, 0, 0.99441, 0.00559], [0, 0, 0.74861, 0.25139], [0, 0, 0.50282, 0.49718],
              [0, 0, 0.25703, 0.74297], [0, 0, 0.01123, 0.98877], [0, 0, 0, 0.83973], [0, 0, 0, 0.67178],
              [0, 0, 0, 0.50384], [0, 0, 0, 0.33589], [0, 0, 0, 0.16795]]
    np.testing.assert_allclose(filters(8000, 32, 4)[1:-1], theirs, atol=1.5e-5)  # float32, and so many digits here


def test_silence_is_zeros_and_a_sound_of_one_sample_is_finite():
    assert (standardise(log_mel(np.zeros(4000, np.float32), 8000, 40)) == 0).all()
    assert np.isfinite(standardise(log_mel(np.ones(1, np.float32), 8000, 40))).all()


def test_loudness_does_not_matter():
    sound = np.random.default_rng(1).normal(size=4000).astype(np.float32)
    quiet, loud = (standardise(log_mel(gain * sound, 8000, 40)) for gain in (0.01, 1.0))
    np.testing.assert_allclose(quiet, loud, atol=1e-4)  # float32 of decibels up to 80, over their deviation of about 6


def test_a_sound_with_more_samples_and_channels_is_heard_like_one_that_was_recorded_so(tmp_path):
    def tone(rate):
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    soundfile.write(tmp_path / "a.flac", np.stack([tone(44100), np.zeros(44100)], 1), 44100)
    heard = read_sound(str(tmp_path / "a.flac"), 8000)
    assert heard.shape == (8000,)
    # half the loudness, of one silent channel of two; the filter of the resampling rings at both ends
    np.testing.assert_allclose(heard[400:-400], 0.5 * tone(8000)[400:-400], atol=2e-3)


# What is drawn while training ----------------------------------------------------------------------------------------


def test_a_warp_of_nothing_changes_nothing_and_no_row_reads_another():
    frames, lengths = torch.randn(9, 3, 5), torch.tensor([9, 1, 4])
    same, kept = warp(frames, lengths, 0.0)
    torch.testing.assert_close(same, frames, atol=1e-5, rtol=0)  # places between frames are float32
    assert torch.equal(kept, lengths)
    torch.manual_seed(0)
    before, _ = warp(frames, lengths, 0.3)
    torch.manual_seed(0)
    frames[:, 1] = 7.0
    after, _ = warp(frames, lengths, 0.3)
    torch.testing.assert_close(before[:, [0, 2]], after[:, [0, 2]], atol=0, rtol=0)


def test_a_warp_stretches_each_row_by_its_own_share_and_reads_nothing_behind_its_end():
    # a ramp in time: stretched, each row is a ramp whose slope tells the share
    lengths = torch.tensor([40, 33, 1, 20])
    frames = torch.arange(40.0)[:, None, None].repeat(1, 4, 3)
    frames[torch.arange(40)[:, None] >= lengths] = 1e6
    warped, new = warp(frames, lengths, 0.2)
    slopes = []
    for b, n in enumerate(new.tolist()):
        row = warped[:n, b]
        assert row.max() <= lengths[b] - 1 + 1e-3  # rounding, of 40 frames in float32
        if n > 1:
            slope = float(row[1, 0] - row[0, 0])
            torch.testing.assert_close(row[:, 0], slope * torch.arange(float(n)), atol=1e-3, rtol=0)
            assert n == int((lengths[b] - 1) / slope + 1e-3) + 1
            slopes.append(slope)
    assert len(set(slopes)) == 3
    assert all(1 / 1.2 <= s <= 1 / 0.8 for s in slopes)


def test_masks_hide_at_most_two_shares_of_the_time_of_each_row_and_two_of_the_bands():
    lengths, hidden = torch.tensor([100, 10, 1]), []
    for _ in range(50):
        shown = mask(torch.ones(100, 3, 20), lengths, 0.2)
        assert set(shown.unique().tolist()) <= {0.0, 1.0}
        # a band or a frame is hidden as a whole
        rows = [(shown[:n, b] == 0).all(1).sum() / n for b, n in enumerate(lengths)]
        bands = (shown == 0).all(0).sum(1) / 20
        assert all(share <= 2 * 0.2 + 2 / n for share, n in zip(rows, lengths))
        assert (bands <= 2 * 0.2 + 2 / 20).all()
        hidden.append(float((shown == 0).float().mean()))
    assert 0.2 < np.mean(hidden) < 0.5
    torch.testing.assert_close(mask(torch.ones(4, 2, 3), torch.tensor([4, 2]), 0.0), torch.ones(4, 2, 3))


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """The folder of 450 digits of five speakers, and the table of 100 of a sixth."""
    folder = tmp_path_factory.mktemp("digits")
    others = [speaker for speaker in SPEAKERS if speaker != "theo"]
    write_digits(folder, "train", takes(others, range(5, 50, 5)))
    write_digits(folder, "valid", takes(others, range(1)))
    return folder, write_digits(folder / "theo", "test", takes(["theo"], range(10)))


SMALL = dict(hidden=32, layers=1, dropout=0.1, warp=0.05, mask=0.05, learning_rate=0.02, epochs=8, batch_size=16,
             lexicon=True)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("transcribe") / "model"
    return run.train(Transcribe, digits[0], Settings(**SMALL), out), out


def test_it_spells_digits_of_a_speaker_it_never_heard_with_half_the_errors_of_the_most_frequent_digit(trained, digits):
    model, out = trained
    table = Transcribe.read_part(digits[1], model.settings)
    train = Transcribe.read(str(digits[0]), model.settings).train
    majority = Transcribe.baselines(train, table, model.settings)["majority"]
    assert majority["word_error_rate"] == pytest.approx(0.9)  # ten digits, equally frequent
    assert run.evaluate(out, digits[1])["word_error_rate"] < 0.45


def test_error_rates_are_edits_over_what_was_said():
    # a word is wrong and one is missing, of three; a letter is wrong and five are missing, of twelve
    found = scores(["fix two"], ["six two four"])
    assert found == {"word_error_rate": pytest.approx(2 / 3), "character_error_rate": pytest.approx(6 / 12)}


def test_a_saved_model_writes_the_same_with_its_times(trained, digits):
    model, out = trained
    table = Transcribe.read_part(digits[1], model.settings)[:20]
    said = list(model.predict(table))
    assert said == list(run.load(out).predict(table))
    for row, path in zip(said, table["audio"]):
        assert list(row) == ["text", "audio", "times"]
        assert " ".join(word for word, _ in row["times"]) == row["text"]
        seconds = [at for _, at in row["times"]]
        assert sorted(seconds) == seconds
        assert all(0 <= at <= soundfile.info(path).duration for at in seconds)


def test_a_single_sound_and_a_table_of_sounds_without_texts_are_transcribed(trained, digits, tmp_path):
    _, out = trained
    wav = digits[1].parent / "wav" / "test_0000.wav"
    (digits[1].parent / "new.csv").write_text("audio\nwav/test_0000.wav\n")
    one, other = list(run.predict(out, [wav])), list(run.predict(out, [digits[1].parent / "new.csv"]))
    assert one[0]["text"] == other[0]["text"]
    assert len(one) == len(other) == 1


def test_the_loss_is_that_of_torch_and_rows_do_not_see_the_padding_of_others(trained, digits):
    model, _ = trained
    table = Transcribe.read_part(digits[1], model.settings)[:7]
    examples = [model.encode(row) for row in table.rows(named=True)]
    model.eval()
    with torch.no_grad():
        total, count = model.loss(model.collate(examples))
        alone = [model.loss(model.collate([example])) for example in examples]
    assert count == sum(map(len, table["text"])) == sum(n for _, n in alone)
    torch.testing.assert_close(total, sum(loss for loss, _ in alone), rtol=1e-4, atol=0)  # sums in float32


def test_beam_search_with_a_lexicon_writes_only_words_of_the_training_texts(digits):
    chosen = Settings(hidden=8, lexicon=True)
    splits = Transcribe.read(str(digits[0]), chosen)
    model, _ = run.new_model(Transcribe, splits.train, chosen)  # untrained: it writes anything
    model.tokens.bias.data[0] = -2.0  # but not nothing
    said = {row["text"] for row in model.predict(splits.valid[:10])}
    assert said - {""}
    assert said <= {*splits.train["text"], ""}


@pytest.mark.parametrize(("cell", "tokens", "stack"), [("gru", "spaces", 1), ("coupled_lstm", "bpe", 3)])
def test_strings_of_digits_are_read_with_other_cells_tokens_and_steps(cell, tokens, stack, tmp_path):
    write_strings(tmp_path, "train", takes(["theo"], range(5, 8)), 25, seed=1)
    write_strings(tmp_path, "valid", takes(["theo"], TEST), 4, seed=2)
    chosen = Settings(cell=cell, tokens=tokens, stack=stack, hidden=8, layers=1, epochs=1, beams=2, warp=0.5, mask=0.9,
                      batch_size=5)
    model = run.train(Transcribe, tmp_path, chosen, tmp_path / "model")
    table = Transcribe.read_part(tmp_path / "valid.tsv", chosen)
    for row in table.rows(named=True):
        assert model.tokenizer.decode(model.encode(row)[1].tolist()) == row["text"]
    assert list(model.predict(table)) == list(run.load(tmp_path / "model").predict(table))
    assert (tmp_path / "model" / run.PICTURE).stat().st_size > 10_000


# What is refused ------------------------------------------------------------------------------------------------------


def model_for(folder, **chosen):
    chosen = Settings(hidden=4, layers=1, **chosen)
    train = Transcribe.read_part(folder, chosen)
    return run.new_model(Transcribe, train, chosen)[0], train


def sounds(folder, *rows, text="one"):
    """A table of sounds (samples, rate)."""
    wavs = []
    for samples, rate in rows:
        soundfile.write(folder / "sound.wav", samples, rate, subtype="FLOAT")
        wavs.append(((folder / "sound.wav").read_bytes(), text))
    return write_table(folder / "table", "train", wavs)


def test_a_sound_with_fewer_samples_per_second_than_the_model_hears_names_both_rates(tmp_path):
    model, _ = model_for(sounds(tmp_path, (np.ones(9000), 16000)))
    soundfile.write(tmp_path / "low.wav", np.ones(9000), 8000)
    with pytest.raises(RecipeError, match="low.wav has 8000 samples per second, the model hears 16000"):
        model.encode({"audio": str(tmp_path / "low.wav")})


def test_the_model_hears_the_lowest_rate_of_the_training_data_and_16000_at_most(tmp_path):
    loud = np.ones(9000)
    model, train = model_for(sounds(tmp_path, (loud, 44100), (loud, 11025)))
    assert model.facts["rate"] == 11025
    assert len(model.encode(train.row(0, named=True))[0]) == 1 + 9000 // 4 // round(11025 * 0.01)
    (tmp_path / "b").mkdir()
    assert model_for(sounds(tmp_path / "b", (loud, 44100)))[0].facts["rate"] == 16000
    (tmp_path / "c").mkdir()
    with pytest.raises(RecipeError, match="0000.wav has 1000 samples per second; speech needs 4000 or more"):
        model_for(sounds(tmp_path / "c", (loud, 1000)))


def test_a_text_with_more_tokens_than_its_sound_has_steps_is_refused(tmp_path):
    model, train = model_for(sounds(tmp_path, (np.ones(800), 8000), text="kaleidoscopes"))
    with pytest.raises(RecipeError, match=r"0000.wav lasts 6 steps of 0.02 s, its text needs 13.*Lower --stack"):
        model.encode(train.row(0, named=True))


@pytest.mark.parametrize(("samples", "message"), [(np.zeros(0), "is empty"),
                                                  (np.array([0.0, np.nan]), "holds values that are not finite")])
def test_a_sound_of_nothing_and_one_that_is_not_finite_are_refused(samples, message, tmp_path):
    model, train = model_for(sounds(tmp_path, (samples, 8000)))
    with pytest.raises(RecipeError, match=f"0000.wav {message}"):
        model.encode(train.row(0, named=True))


def test_a_file_that_is_no_sound_is_named(tmp_path):
    table = write_table(tmp_path, "train", [(b"RIFF but no more", "one")])
    with pytest.raises(RecipeError, match=r"train_0000.wav is no sound that can be read \(.*give WAV"):
        Transcribe.facts_of(Transcribe.read_part(table, Settings()), Settings())


def test_a_sound_file_that_is_not_there_is_named(trained, tmp_path):
    with pytest.raises(RecipeError, match="there is no sound file .*here.wav; give its path"):
        list(run.predict(trained[1], [tmp_path / "here.wav"]))


def test_a_lexicon_needs_beam_search_over_characters():
    for chosen in (dict(beams=1), dict(tokens="spaces")):
        with pytest.raises(RecipeError, match="--lexicon needs beam search over characters, such as --beams 8"):
            Settings(lexicon=True, **chosen)


def test_a_cell_with_a_further_input_is_refused_by_name():
    with pytest.raises(RecipeError, match="ct_rnn has the inputs"):
        Transcribe(trace(find_cell("ct_rnn")), Settings(cell="ct_rnn"), {})
