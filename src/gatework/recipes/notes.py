"""Receives files with music, hands on pieces: lists of steps, each the list of the MIDI pitches that sound; and back.

JSON (.json, .json.gz, .json.bz2) is a list of pieces, [[[60, 64, 67], [60, 65]], ...], or an object {"train": [...],
"valid": [...], "test": [...]} of such lists. MIDI files (.mid, .midi) are one piece each, through the library mido. A
folder holds files of these kinds, or subfolders and files called train, valid and test.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
from pathlib import Path

from gatework.recipes import RecipeError
from gatework.runtime.folder import write_whole

LOWEST, HIGHEST = 21, 108  # the keys of a piano, A0 to C8
PARTS = {"train": "train", "valid": "valid", "validation": "valid", "dev": "valid", "val": "valid", "test": "test"}
OPENED = {".json": open, ".gz": gzip.open, ".bz2": bz2.open}
PERCUSSION = 9  # the channel on which numbers are drums, not pitches

Piece = list[list[int]]


def read_music(source: Path, steps_per_beat: int, least: int = 1) -> dict[str, list[Piece]]:
    """The pieces of a file or folder by part: "train", "valid" and "test" as far as they are there, or all as "all".

    Args:
        source: file or folder, as the module's docstring tells.
        steps_per_beat: steps into which a beat (a quarter note) of a MIDI file is divided.
        least: steps that a piece must have.

    Raises RecipeError, naming file, piece and step, for what is no music.
    """
    if source.is_dir():
        found: dict[str, list[Piece]] = {}
        for each in sorted(source.iterdir()):
            part = PARTS.get(each.name.partition(".")[0])
            if part is None and (each.is_dir() or not _is_music(each)):
                continue  # a README, a cover: what is not music need not be
            for name, pieces in read_music(each, steps_per_beat, least).items():
                if part and name != "all":
                    raise RecipeError(f"{each} is called {part}, but has parts of its own; give a list of pieces")
                found.setdefault(part or name, []).extend(pieces)
        if not found:
            raise RecipeError(f"{source} has no music; files that are read end in .json, .json.gz, .json.bz2, .mid or "
                              ".midi")
        if len(found) > 1 and "all" in found:
            raise RecipeError(f"{source} has parts ({', '.join(sorted(found.keys() - {'all'}))}) and pieces beside "
                              "them; put those into a part")
        return found
    if not source.is_file():
        raise RecipeError(f"there is no file or folder {source}")
    if not _is_music(source):
        raise RecipeError(f"{source} is not music that can be read: give JSON (.json, .json.gz, .json.bz2), MIDI "
                          "(.mid, .midi) or a folder of such files")
    if source.suffix in (".mid", ".midi"):
        return {"all": [checked_piece(read_midi(source, steps_per_beat), str(source), least)]}
    content = _json(source)
    if not isinstance(content, dict):
        content = {"all": content}
    elif not content or not content.keys() <= PARTS.keys():
        raise RecipeError(f"{source}: the parts of a collection are called train, valid and test; here they are "
                          f"{', '.join(map(repr, content)) or 'none'}")
    return {PARTS.get(name, name): checked_pieces(pieces, f"{source}" + f", {name}" * (name != "all"), least)
            for name, pieces in content.items()}


def checked_pieces(pieces: object, where: str, least: int) -> list[Piece]:
    """What JSON gave, if it is a list of pieces; else RecipeError."""
    if not isinstance(pieces, list) or not pieces:
        raise RecipeError(f"{where}: needed is a list of pieces such as [[[60, 64, 67], [60, 65]]]; {_shown(pieces)} "
                          "was given")
    return [checked_piece(piece, f"{where}, piece {k}", least) for k, piece in enumerate(pieces, 1)]


def checked_piece(piece: object, where: str, least: int = 1) -> Piece:
    """What JSON gave, if it is a list of steps; else RecipeError."""
    if not isinstance(piece, list) or not piece:
        raise RecipeError(f"{where}: needed is a list of steps such as [[60, 64, 67], [60, 65]]; {_shown(piece)} was "
                          "given")
    for k, step in enumerate(piece, 1):
        if not isinstance(step, list) or any(type(pitch) is not int for pitch in step):
            raise RecipeError(f"{where}, step {k}: needed is a list of MIDI pitches, [] for silence; {_shown(step)} "
                              "was given")
        for pitch in step:
            if not LOWEST <= pitch <= HIGHEST:
                raise RecipeError(f"{where}, step {k}: the pitch {pitch} is not on a piano, {LOWEST} to {HIGHEST}; "
                                  "transpose it, and leave out signs for rests")
    if len(piece) < least:
        raise RecipeError(f"{where}: needed are {least} steps or more, each to be expected after those before it; "
                          f"{len(piece)} was given")
    return piece


def read_midi(file: Path, steps_per_beat: int) -> Piece:
    """A MIDI file as steps: a note sounds from the step nearest to its beginning to the one nearest to its end."""
    mido = _mido()
    try:
        midi = mido.MidiFile(file)
        at, begun, notes = 0, {}, []
        for message in mido.merge_tracks(midi.tracks):
            at += message.time
            if message.type in ("note_on", "note_off") and message.channel != PERCUSSION:
                key = message.channel, message.note
                if key in begun:
                    notes.append((message.note, begun.pop(key), at))
                if message.type == "note_on" and message.velocity:
                    begun[key] = at
        scale = steps_per_beat / midi.ticks_per_beat
    except Exception as error:  # mido has no class of errors for what is broken in a file
        raise RecipeError(f"{file} is no MIDI file that can be read: {type(error).__name__}: {error}") from error
    spans = [(pitch, round(on * scale), max(round(off * scale), round(on * scale) + 1)) for pitch, on, off in notes]
    steps = [set() for _ in range(max((end for _, _, end in spans), default=0))]
    for pitch, first, end in spans:
        for step in steps[first:end]:
            step.add(pitch)
    return checked_piece([sorted(step) for step in steps], str(file))


def write_midi(piece: Piece, file: Path, steps_per_beat: int) -> None:
    """Write a piece as a MIDI file with one track, for any program that plays them, at 120 beats a minute.

    A pitch in neighbouring steps is one long note.

    >>> import pathlib, tempfile
    >>> file = pathlib.Path(tempfile.mkdtemp()) / "tune.mid"
    >>> write_midi([[60, 64], [60], [], [67]], file, steps_per_beat=4)
    >>> read_midi(file, steps_per_beat=4)
    [[60, 64], [60], [], [67]]
    """
    mido = _mido()
    midi = mido.MidiFile(ticks_per_beat=480)
    track, ticks, sounding = midi.add_track(), 0, set()
    for step in [*map(set, checked_piece(piece, "the piece")), set()]:
        for kind, pitches in (("note_off", sounding - step), ("note_on", step - sounding)):
            for pitch in sorted(pitches):
                track.append(mido.Message(kind, note=pitch, velocity=80, time=ticks))
                ticks = 0
        sounding, ticks = step, ticks + 480 // steps_per_beat
    data = io.BytesIO()
    midi.save(file=data)
    write_whole(file, data.getbuffer())


def _mido():
    try:
        import mido
    except ModuleNotFoundError as error:
        raise RecipeError("MIDI files need mido; type:  pip install mido") from error
    return mido


def _is_music(file: Path) -> bool:
    return file.name.endswith((".json", ".json.gz", ".json.bz2", ".mid", ".midi"))


def _json(file: Path) -> object:
    try:
        with OPENED[file.suffix](file, "rt", encoding="utf-8") as opened:
            return json.load(opened)
    except json.JSONDecodeError as error:
        raise RecipeError(f"{file}, line {error.lineno}: this is no JSON: {error.msg}") from error
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, OSError) as error:
        raise RecipeError(f"{file} cannot be read: {error}") from error


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
