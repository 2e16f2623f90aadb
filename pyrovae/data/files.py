"""Bytes of a file, unpacked where they are gzip, and the array that stands in them; damage is named by its place."""

import math
import zlib
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["GZIP", "DataError", "Layout", "array_at", "check_layout", "check_shape", "contents", "location"]

GZIP = b"\x1f\x8b"
CHUNK = 1 << 16


class DataError(ValueError):
    """Data that cannot be used: a file missing, truncated, damaged or of another kind, or values out of range."""


class Layout(NamedTuple):
    """Where an array stands in a file: the byte it begins at, its type, shape and order; it ends with the file."""

    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    order: Literal["C", "F"] = "C"


def location(path: str) -> Path:
    """The place of an ordinary file. `~` is the home folder.

    Raises:
        DataError: no such file, not an ordinary one, or one that cannot be looked at.
    """
    try:
        place = Path(path).expanduser()
        if not place.exists():
            raise DataError(f"no such file: {path!r}, looked for from {Path.cwd()}; check the name")
        if not place.is_file():
            raise DataError(f"{path} is not an ordinary file; pass the file that holds the data")
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
        raise _unreadable(path, error) from error
    return place


def _unreadable(path: str, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read ({error}); check the name and the permissions")


def contents(path: str) -> bytes:
    """The bytes of a file, never none; a gzip file is unpacked, whatever its name. `~` is the home folder.

    Raises:
        DataError: no such file, not an ordinary or readable one, empty, or damaged gzip.
    """
    try:
        raw = location(path).read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error
    raw = _gunzip(path, raw) if raw.startswith(GZIP) else raw
    if not raw:
        raise DataError(f"{path} is empty, 0 bytes; get another copy")
    return raw


def _gunzip(path: str, raw: bytes) -> bytes:
    """All members of a gzip file, sizes and checksums verified (RFC 1952)."""
    pieces, start = [], 0
    while start < len(raw):
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
        while not member.eof:
            chunk = raw[start : start + CHUNK]
            if not chunk:
                raise DataError(
                    f"{path} is truncated: its gzip stream has no end by byte {len(raw)}, where the file ends; get "
                    "another copy"
                )
            try:
                pieces.append(member.decompress(chunk))
            except zlib.error as error:
                raise DataError(
                    f"{path} is damaged gzip, or has other bytes behind it: {error}, found between bytes {start} "
                    f"and {start + len(chunk)}; get another copy"
                ) from error
            start += len(chunk) - len(member.unused_data)
    return b"".join(pieces)


def array_at(path: str, raw: bytes, layout: Layout) -> npt.NDArray[Any]:
    """The array that fills `raw` from its offset to the end, a copy in native byte order.

    Raises:
        DataError: as `check_layout`, or NaN or infinite values.
    """
    check_layout(path, layout, len(raw))
    offset, dtype, shape, order = layout
    values = np.frombuffer(raw, dtype, offset=offset).reshape(shape, order=order)
    _refuse_non_finite(path, values, layout)
    return values.astype(dtype.newbyteorder("="), order="C")


def check_layout(path: str, layout: Layout, size: int) -> None:
    """Compare what a header says with the `size` of the unpacked file in bytes.

    Raises:
        DataError: fewer than two axes, no data, too few bytes or too many.
    """
    check_shape(path, layout.shape)
    offset, dtype, shape, order = layout
    row = math.prod(shape[1:]) * dtype.itemsize
    wanted = offset + shape[0] * row
    if size < wanted:
        place = f", within row {(size - offset) // row}" if order == "C" and size >= offset else ""
        raise DataError(
            f"{path} is truncated: shape {shape} of {dtype.name} wants {wanted} bytes, and it ends at byte {size}"
            f"{place}; get another copy"
        )
    if size > wanted:
        raise DataError(
            f"{path} has trailing bytes: shape {shape} of {dtype.name} ends at byte {wanted}, the file at byte {size}; "
            "get another copy"
        )


def check_shape(path: str, shape: tuple[int, ...]) -> None:
    """Refuse an array that has fewer than two axes, or no data."""
    if len(shape) < 2:
        raise DataError(
            f"{path} wants one row a datum and so two axes or more, got shape {shape}, as labels have; pass the "
            "file of the data, or give the array a second axis"
        )
    if min(shape) < 1:
        raise DataError(
            f"{path} holds no data, its shape is {shape}; pass an array without an axis of length 0"
        )


def _refuse_non_finite(path: str, values: npt.NDArray[Any], layout: Layout) -> None:
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return
    index = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    number = int(np.ravel_multi_index(index, values.shape, order=layout.order))
    place = layout.offset + number * values.dtype.itemsize
    raise DataError(
        f"{path} wants finite numbers, got {values[index]} in row {index[0]}, at index {list(index)}, byte {place}; "
        "remove or fill such values"
    )
