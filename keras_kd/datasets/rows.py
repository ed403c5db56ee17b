"""Rows of text files; a broken one raises an error that names the file and the line."""

import csv
import gzip
import json
import os
import typing


class File(typing.NamedTuple):
    """A file to read, and the name that errors give it: its path, or where it was downloaded from."""

    path: os.PathLike
    name: str


class Table(typing.NamedTuple):
    """The columns of a file, and its rows with the line on which each begins."""

    columns: tuple[str, ...]
    rows: list[tuple[int, dict]]


def broken(file, line, problem):
    """The ValueError that says what is wrong with a line, counted from 1, or with another place in the file."""
    return ValueError(f"{file.name}:{line}: {problem}")


def read_lines(file):
    """The lines of a UTF-8 file, unpacked if it is called .gz; only "\\n" or "\\r\\n" ends a line."""
    with open(file.path, "rb") as opened:
        content = opened.read()
    if file.name.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise broken(file, 1, f"no whole gzip file ({error}).") from error
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise broken(file, line, f"not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8.") from error
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_table(file):
    """The rows of a .csv, .tsv or .jsonl file, or of one packed as .gz; empty lines are no rows.

    CSV is quoted as in RFC 4180: a field in double quotes may hold commas, line ends and doubled quotes. TSV has no
    quoting: a quote is a character as any other. CSV and TSV begin with a line of column names.

    Raises:
        ValueError: Another ending; a broken row, with its line.
    """
    ending = file.name.removesuffix(".gz").rpartition(".")[2].lower()
    if ending == "jsonl":
        return _json_table(file)
    if ending not in ("csv", "tsv"):
        raise ValueError(f"{file.name} must be called .csv, .tsv or .jsonl (or one of these and .gz).")
    (line, columns), *rows = list(_csv_fields(file) if ending == "csv" else _tsv_fields(file)) or [(1, [])]
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise broken(file, line, f"the header names the columns {repeated} more than once.")
    for line, fields in rows:
        if len(fields) != len(columns):
            raise broken(file, line, f"{len(fields)} fields, but the header names {len(columns)}: {columns}.")
    return Table(tuple(columns), [(line, dict(zip(columns, fields, strict=True))) for line, fields in rows])


def _tsv_fields(file):
    return ((number, line.split("\t")) for number, line in enumerate(read_lines(file), 1) if line)


def _csv_fields(file):
    reader = csv.reader((f"{line}\n" for line in read_lines(file)), strict=True)
    first = 1  # line of a row that may have several
    try:
        for fields in reader:
            if fields:
                yield first, fields
            first = reader.line_num + 1
    except csv.Error as error:
        raise broken(file, first, f"no CSV: {error}. A quote within a quoted field is written twice.") from error


def _json_table(file):
    rows = []
    for number, line in enumerate(read_lines(file), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, object_pairs_hook=_unique_keys)
        except ValueError as error:
            raise broken(file, number, f"no JSON: {error}.") from error
        if not isinstance(row, dict):
            raise broken(file, number, f"each line must be a JSON object, got {line:.80}.")
        rows.append((number, row))
    return Table(tuple(dict.fromkeys(key for _, row in rows for key in row)), rows)


def _unique_keys(pairs):
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key occurs twice")
    return row
