"""Receives a UTF-8 file, plain or gzip, hands on its lines or its text; what is not text is an error with its place."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from .. import RecipeError
from .size import check_fits


def numbered_lines(file: Path) -> Iterator[tuple[int, str]]:
    """Each line with its number, from 1 as an editor shows it, with its end. One line is held at a time."""
    if not file.is_file():
        raise RecipeError(f"there is no text file {file}; give the path of a file in UTF-8")
    offset = 0  # of the line's first byte, in the unpacked file
    with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
        number = 0
        for number, raw in enumerate(_unpacked(file, stream), start=1):
            yield number, _decode(file, number, offset, raw)
            offset += len(raw)
    if number == 0:
        raise RecipeError(f"{file} is empty; give a text")


def _unpacked(file: Path, stream) -> Iterator[bytes]:
    try:
        yield from stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise RecipeError(f"{file} cannot be unpacked ({error}): it is cut off or no gzip file. Copy it again, or take "
                          "the .gz from its name if it is not packed") from error


def _decode(file: Path, number: int, offset: int, raw: bytes) -> str:
    if number == 1 and raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(f"{file} is UTF-16, text in UTF-8 is needed; convert it with: iconv -f utf-16 -t utf-8 "
                          f"{file}")
    if b"\0" in raw:
        at = raw.index(b"\0")
        raise RecipeError(f"{file}, line {number}: the byte at offset {offset + at} is NUL, so this is no UTF-8 text. "
                          "Export the data as text again, or give the format its own suffix, such as .parquet")
    try:
        text = raw.decode("utf-8-sig" if number == 1 else "utf-8")  # spreadsheets mark UTF-8 with three bytes in front
    except UnicodeDecodeError as error:
        at = error.start + 3 * (number == 1 and raw.startswith(b"\xef\xbb\xbf"))  # the codec counts behind the mark
        raise RecipeError(f"{file} is not UTF-8: the byte at offset {offset + at} (0x{raw[at]:02x}), in line {number}, "
                          f"does not fit. If it is Latin-1, convert it with: iconv -f latin1 -t utf-8 {file}"
                          ) from error
    return text


def read_lines(file: Path) -> list[str]:
    """The lines of a UTF-8 text file, plain or gzip, without their ends.

    Raises RecipeError if the file is missing, empty, not UTF-8, or larger than the machine's memory.
    """
    _check_size(file)
    return [line.removesuffix("\n").removesuffix("\r") for _, line in numbered_lines(file)]


def read_text(file: Path) -> str:
    """The content of a UTF-8 text file, plain or gzip, with its line ends as they are. Raises as `read_lines` does."""
    _check_size(file)
    return "".join(line for _, line in numbered_lines(file))


def _check_size(file: Path) -> None:
    if file.is_file():
        check_fits(file.stat().st_size, str(file), "Give a part of it")
