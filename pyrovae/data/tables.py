"""Tables of numbers from csv files, refused by line and column where they are not."""

import csv
import io
import math
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from pyrovae.data.files import DataError, contents

__all__ = ["read_csv"]

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_csv(path: str) -> tuple[npt.NDArray[np.float64], tuple[str, ...]]:
    """Numbers between commas, one datum a line: float64 `[n, X]`, and the names of the columns, if any.

    Line 1 is a header if none of its fields is a number. Plain or gzip, UTF-8, lines ended in any way; quotes and
    blanks around a number are allowed; empty lines only at the end. What numpy's parser refuses is read again,
    slowly, to name the line.

    Raises:
        DataError: a line with another number of fields than the first, a field that is no finite number, an empty
            line, a header of which some fields are numbers or empty or that only counts 0, 1, 2, ..., or no data.
    """
    raw = contents(path).removeprefix(BYTE_ORDER_MARK)
    text = raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip()
    if not text:
        raise DataError(f"{path} is empty but for blanks; get another copy")
    columns = _header(path, text.split(b"\n", 1)[0])
    num_rows = text.count(b"\n") + (not columns)
    if num_rows == 0:
        raise DataError(f"{path} has a header and no data; pass a file with a line for each datum")
    try:
        values = np.loadtxt(
            io.BytesIO(text),
            delimiter=",",
            comments=None,
            quotechar='"',
            ndmin=2,
            skiprows=1 if columns else 0,
        )
    except ValueError as error:
        _refuse(path, text, columns, str(error))
    if len(values) != num_rows or values.shape[1] != (len(columns) or values.shape[1]):
        _refuse(path, text, columns, "rows or columns are missing")
    if not np.isfinite(values).all():
        _refuse(path, text, columns, "a number is too large")
    return values, columns


def _fields(line: bytes) -> list[str]:
    text = line.decode(errors="replace")
    try:
        return next(csv.reader([text], skipinitialspace=True), [""])
    except csv.Error:  # no text at all
        return text.split(",")


def _number(field: str) -> float | None:
    try:
        return None if "_" in field else float(field)
    except ValueError:
        return None


def _header(path: str, line: bytes) -> tuple[str, ...]:
    """The names in line 1, none if it is a row of data."""
    fields = _fields(line)
    numbers = [_number(field) for field in fields]
    if len(fields) > 2 and numbers == list(range(len(fields))):
        raise DataError(
            f"{path} has 0, 1, 2, ... in line 1, as pandas writes columns without names; remove that line, or put "
            "names above it if it is a datum"
        )
    if len(fields) > 2 and not fields[0].strip() and numbers[1:] == list(range(len(fields) - 1)):
        raise DataError(
            f"{path} has nothing and 0, 1, 2, ... in line 1, as pandas writes the row numbers and columns without "
            "names; write it with index=False, header=False"
        )
    if any(number is not None for number in numbers):
        return ()
    if not all(field.strip() for field in fields):
        column = 1 + [field.strip() for field in fields].index("")
        raise DataError(
            f"{path} has no name for column {column} in line 1, as pandas writes the row numbers; "
            "write it with index=False, or name the column"
        )
    return tuple(field.strip() for field in fields)


def _refuse(path: str, text: bytes, columns: tuple[str, ...], otherwise: Any) -> NoReturn:
    """Name the first line that is at fault, or else the parser's own complaint."""
    width = 0
    for number, line in enumerate(text.split(b"\n"), start=1):
        fields = _fields(line)
        width = width or len(fields)
        if not line.strip():
            raise DataError(f"{path}, line {number} is empty; remove it, or fill in the datum")
        if len(fields) != width:
            raise DataError(
                f"{path}, line {number} has {len(fields)} fields where line 1 has {width}; give every line as many"
            )
        if number > 1 or not columns:
            _refuse_fields(f"{path}, line {number}", fields, number == 1)
    raise DataError(
        f"{path} cannot be read: {otherwise}; write plain numbers between commas, one datum a line"
    )


def _refuse_fields(place: str, fields: list[str], is_first: bool) -> None:
    for column, field in enumerate(fields, start=1):
        value = _number(field)
        if value is None or not math.isfinite(value):
            raise DataError(
                f"{place}, column {column} wants a finite number, got {field[:40]!r}; {_cure(field, is_first)}"
            )


def _cure(field: str, is_first: bool) -> str:
    for separator in ";", "\t", "|", " ":
        if separator in field.strip() and all(_number(part) is not None for part in field.split(separator)):
            return f"its numbers are separated by {separator!r}: write commas, and points in decimals"
    if is_first:
        return "fill it in, remove the line, or name every column of line 1 if that is a header"
    is_word = _number(field) is None and field.strip()
    return (
        "drop the column if it holds words, such as labels" if is_word else "fill it in, or remove the line"
    )
