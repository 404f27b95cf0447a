"""Spoken digits, spelled out: of known speakers, of one who was never heard, and strings of them."""

from functools import partial

from data_transcribe import (
    write_official,
    write_official_test,
    write_unknown_speaker,
    write_unknown_speaker_strings,
    write_unknown_speaker_strings_test,
    write_unknown_speaker_test,
)

from . import Run

SETTINGS = {"lexicon": True, "epochs": 25}
QUICK = {"hidden": 48, "layers": 1, "epochs": 4}

RUNS = [
    Run("spoken digits, speakers known", "transcribe", write_official, write_official_test, SETTINGS, "word_error_rate",
        quick=QUICK, published="there is no agreed benchmark; a small convolutional network that chooses one of ten "
                               "digits had 97 % right, 3 % errors, on 150 held-out recordings of the first release "
                               "(sound-mnist)"),
    Run("spoken digits, theo never heard", "transcribe", partial(write_unknown_speaker, held_out="theo"),
        partial(write_unknown_speaker_test, held_out="theo"), SETTINGS, "word_error_rate", quick=QUICK),
    Run("strings of digits, theo never heard", "transcribe", partial(write_unknown_speaker_strings, held_out="theo"),
        partial(write_unknown_speaker_strings_test, held_out="theo"), SETTINGS | {"epochs": 12}, "word_error_rate",
        quick=QUICK),
]
