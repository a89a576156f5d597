"""JSON lines: one item a line."""

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from pydantic_core import from_json

from shared.planning import Problem, Row


def read_jsonl(file: BinaryIO, line_bytes: int) -> Iterator[Row]:
    """A row per line that is not blank. A broken line (syntax, UTF-8, length) is a row with a problem, and the lines
    behind it are read all the same. A byte order mark and CRLF are tolerated."""
    number = 0
    while line := file.readline(line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if len(line) > line_bytes and not line.endswith(b"\n"):
            _skip_line(file)
            yield _broken(number, "invalid_item", f"The line is longer than the {line_bytes} bytes allowed.")
        elif stripped := line.strip():
            yield _parse(number, stripped)


def _parse(number: int, line: bytes) -> Row:
    try:
        fields = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        return _broken(number, "invalid_json", f"The line is not JSON: {_within_line(error)}.")
    if not isinstance(fields, dict):
        return _broken(number, "invalid_item", "The line is JSON, but not an object.")
    return Row(number, fields, size=len(line))


def _broken(number: int, code: str, message: str) -> Row:
    return Row(number, problems={None: Problem(code, message)})


def _within_line(error: ValueError) -> str:
    # The parser sees one line only, so its own line number would mislead.
    return str(error).replace(" at line 1 column ", " at column ")


def _skip_line(file: BinaryIO) -> None:
    while (rest := file.readline(1024**2)) and not rest.endswith(b"\n"):
        pass
