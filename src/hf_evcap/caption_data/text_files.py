"""Text, JSON and tables as people save them. What cannot be read is named with its file and line."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..photo_files import PHOTO_SUFFIXES


_LINES = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_TSV_LINES = 50  # that a quoted field of a TSV file may go over


def _decode(raw: bytes, what: Path) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if raw.startswith(UTF16_MARKS) else f"byte 0x{raw[error.start]:02x}, {error.reason}"
        raise ValueError(
            f"{what}, line {line}: this is not text in UTF-8 ({kind}). Save the file as UTF-8."
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{what}, line {line}: there is a NUL character, so this is no text, or damaged.")
    return text


def read_text(file: Path) -> str:
    """
    Reads text in UTF-8, maybe compressed (`.gz`).

    Raises:
        ValueError: It is no such text, has NUL characters, or is no whole gzip file; the message tells the line.
    """
    if file.suffix.lower() != ".gz":
        return _decode(file.read_bytes(), file)
    try:
        with gzip.open(file) as opened:
            return _decode(opened.read(), file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{file} is no whole gzip file: {error}.") from error


def parse_json(text: str, place: str | Path) -> Any:
    """
    Parses JSON of a file, or of a place in one.

    Raises:
        ValueError: It is not valid, or nested too deeply; the message begins with `place`.
    """
    begin = f"{place} is" if isinstance(place, Path) else f"{place}:"
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{begin} not valid JSON (it is nested too deeply).") from None
    except ValueError as error:
        raise ValueError(f"{begin} not valid JSON ({error}).") from error


def json_lines(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """
    Reads a JSON object a line, with the lines' numbers; empty lines are passed over.

    Raises:
        ValueError: A line holds something else.
    """
    rows = []
    for number, line in enumerate(io.StringIO(read_text(file), newline=None), 1):
        if line.strip():
            row = parse_json(line, f"{file}, line {number}")
            if not isinstance(row, dict):
                raise ValueError(f"{file}, line {number}: expected an object, got {type(row).__name__}.")
            rows.append((number, row))
    return rows


class _Lines(Iterator[str]):
    """Lines of a table, from the place where its next row begins, as far as one row may go."""

    def __init__(self, lines: list[str], longest_row: int | None) -> None:
        self.lines, self.longest_row = lines, longest_row
        self.start = self.place = 0

    def __next__(self) -> str:
        if self.place == len(self.lines) or self.place - self.start == self.longest_row:
            raise StopIteration
        self.place += 1
        return self.lines[self.place - 1]


def read_table(file: Path, delimiter: str) -> list[tuple[int, dict[str, str]]]:
    """
    Reads a table with a header.

    A quotation mark that is not closed would swallow the rows behind it. In a TSV file it is then a character like
    others; in a CSV file it is an error.

    Args:
        file (`Path`): The table.
        delimiter (`str`): What parts its columns.

    Returns:
        `list[tuple[int, dict[str, str]]]`: The line where each row begins, and its fields by the header's names.

    Raises:
        ValueError: A row has other columns than the header, an unclosed quotation mark or a huge field, or the header
            has a name twice; the message tells the line.
    """
    lines = _Lines(_LINES.findall(read_text(file)), _TSV_LINES if delimiter == "\t" else None)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    header: list[str] | None = None
    rows = []
    while lines.place < len(lines.lines):
        lines.start = lines.place
        place = f"{file}, line {lines.start + 1}"
        fields = _next_row(reader, lines, delimiter, place)
        if not any(fields):
            continue
        if header is None:
            header = fields
            twice = {name for name in header if name and header.count(name) > 1}
            if twice:
                raise ValueError(f"{place}: the header has {', '.join(sorted(twice))} twice.")
            continue
        while len(fields) > len(header) and not fields[-1]:
            fields.pop()
        if len(fields) != len(header):
            raise ValueError(
                f"{place}: the row has another number of columns ({len(fields)}) than the header ({len(header)})."
            )
        rows.append((lines.start + 1, dict(zip(header, fields, strict=True))))
    return rows


def _next_row(reader: Any, lines: _Lines, delimiter: str, place: str) -> list[str]:
    try:
        fields = next(reader)
        problem = _swallowed(fields, lines, delimiter)
    except csv.Error as error:
        fields, problem = [], str(error)
    if problem is not None:
        first = lines.lines[lines.start]
        lines.place = lines.start + 1  # what comes next is read again, whatever the quotation mark took
        closed = first.count('"') % 2 == 0
        if closed and len(first) > csv.field_size_limit():
            raise ValueError(f"{place}: a field has more than {csv.field_size_limit():,} characters.")
        if closed:  # each quotation mark, if not where its field ends
            fields = next(csv.reader([first], delimiter=delimiter, skipinitialspace=True))
        elif delimiter == "\t":
            fields = first.split("\t")
        else:
            raise ValueError(
                f'{place}: a quotation mark is not closed ({problem}). Close it, or write "" for one in quoted text.'
            )
    return [field.strip() for field in fields]


def _swallowed(fields: list[str], lines: _Lines, delimiter: str) -> str | None:
    """Why a row that goes over several lines is likely several rows, if it is."""
    for field in fields if lines.place - lines.start > 1 else ():
        for line in field.splitlines()[1:]:
            parts = [part.strip().lower() for part in line.split(delimiter)]
            if len(parts) > 1 and (delimiter == "\t" or any(part.endswith(PHOTO_SUFFIXES) for part in parts)):
                return f"the rows behind it would be part of it, such as {line[:60]!r}"
    return None


__all__ = ["UTF16_MARKS", "json_lines", "parse_json", "read_table", "read_text"]
