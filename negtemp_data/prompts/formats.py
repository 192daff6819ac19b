"""Reads the rows of one file: jsonl, txt, json and csv here, parquet and arrow in `columnar`.

What is wrong with one row is that row's error; what is wrong with the file as a whole stops the
reading. Knows nothing of what a prompt is.
"""

import codecs
import csv
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from negtemp_data.errors import PromptError, PromptSourceError, quote
from negtemp_data.prompts.records import RawRow
from negtemp_data.prompts.sources import SourceFile

MAX_LINE_BYTES = 64 * 2**20
"""Longest line that is read; of a longer one, never more than this is in memory."""


def read_rows(file: SourceFile, text_column: str) -> Iterator[RawRow]:
    """Streams the rows of a file; only a `.json` file, one array of objects, is loaded whole.

    Args:
        file: The file to read.
        text_column: Name given to the only column of a txt file, whose rows are its non-empty
            lines.

    Raises:
        PromptSourceError: The file can't be read, or is not of its format.
    """
    try:
        with file.open() as handle:
            match file.format:
                case "jsonl":
                    yield from _read_jsonl(handle)
                case "txt":
                    yield from _read_txt(handle, text_column)
                case "json":
                    yield from _read_json(handle)
                case "csv":
                    yield from _read_csv(handle)
                case columnar:
                    from negtemp_data.prompts.columnar import read_columnar  # noqa: PLC0415

                    yield from read_columnar(handle, columnar)
    # UnicodeDecodeError and JSONDecodeError are ValueErrors.
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise PromptSourceError(
            f"{file.path}: can't be read as {file.format}: {reason}."
        ) from error


def _read_jsonl(handle: BinaryIO) -> Iterator[RawRow]:
    for number, line in _read_lines(handle):
        try:
            text = _decode(line).rstrip()
            if text:
                yield RawRow(number, _as_object(_parse_json(text)))
        except PromptError as error:
            yield RawRow(number, None, str(error))
        except RecursionError:
            yield RawRow(number, None, "the row is nested too deeply")


def _read_txt(handle: BinaryIO, text_column: str) -> Iterator[RawRow]:
    for number, line in _read_lines(handle):
        try:
            text = _decode(line).rstrip("\r\n")
            if text.strip():
                yield RawRow(number, {text_column: text})
        except PromptError as error:
            yield RawRow(number, None, str(error))


def _read_json(handle: BinaryIO) -> Iterator[RawRow]:
    rows = json.loads(handle.read().decode("utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError(
            "it must hold one array of objects; a file with one object per line is a .jsonl"
        )
    for number, row in enumerate(rows, start=1):
        try:
            yield RawRow(number, _as_object(row))
        except PromptError as error:
            yield RawRow(number, None, str(error))


def _read_csv(handle: BinaryIO) -> Iterator[RawRow]:
    # The limit is one for the whole process; the module's default is below our longest prompt.
    csv.field_size_limit(MAX_LINE_BYTES)
    # Strict, so that a stray quote is an error and does not swallow fields in silence.
    records = csv.reader(_read_csv_lines(handle), strict=True)
    try:
        header = next(filter(None, records), [])
    except csv.Error as error:
        raise ValueError(f"the header: {error}") from error
    if not _is_utf8(header):
        raise ValueError("the header is not valid UTF-8")
    if len(set(header)) < len(header):
        raise ValueError(f"the header has a column twice: {quote(header)}")
    number = 0
    while True:
        begin = records.line_num + 1
        try:
            cells = next(records)
            if cells:
                number += 1
                yield RawRow(number, _as_columns(header, cells))
        except StopIteration:
            return
        except csv.Error as error:
            if records.line_num > begin:
                # The lines between may be rows of their own, which must not vanish.
                raise ValueError(
                    f"lines {begin} to {records.line_num}: not valid csv: {error}; a quote is open "
                    "that should not be, or closed where it should not be"
                ) from error
            number += 1
            yield RawRow(number, None, f"not valid csv: {error}")
        except PromptError as error:
            yield RawRow(number, None, str(error))


def _read_csv_lines(handle: BinaryIO) -> Iterator[str]:
    for number, line in _read_lines(handle):
        if _is_cut(line):
            raise ValueError(f"line {number} is longer than {MAX_LINE_BYTES} bytes")
        # Bytes that are not UTF-8 become lone surrogates, see _is_utf8.
        yield line.decode(errors="surrogateescape")


def _as_columns(header: list[str], cells: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise PromptError(f"the row has {len(cells)} fields, the header {len(header)}")
    if not _is_utf8(cells):
        raise PromptError("not valid UTF-8")
    return dict(zip(header, cells, strict=True))


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise PromptError(f"the row must be an object, found {quote(value)}")
    return value


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise PromptError(f"not valid JSON: {error.msg} at column {error.colno}") from error
    except ValueError as error:
        # An integer of more digits than Python converts.
        raise PromptError(f"not readable JSON: {error}") from error


def _decode(line: bytes) -> str:
    if _is_cut(line):
        raise PromptError(f"the line is longer than {MAX_LINE_BYTES} bytes")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise PromptError(f"not valid UTF-8: {error.reason} at byte {error.start + 1}") from error


def _read_lines(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends; a line that is too long comes cut (see `_is_cut`)."""
    number = 0
    while line := handle.readline(MAX_LINE_BYTES + 1):
        number += 1
        rest = line
        while _is_cut(rest):
            rest = handle.readline(MAX_LINE_BYTES + 1)
        yield number, line.removeprefix(codecs.BOM_UTF8) if number == 1 else line


def _is_cut(line: bytes) -> bool:
    return len(line) > MAX_LINE_BYTES and not line.endswith(b"\n")
