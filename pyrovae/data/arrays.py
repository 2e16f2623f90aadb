"""Arrays from idx, npy and npz files, every byte accounted for and nothing unpickled."""

import io
import struct
import tokenize
import zipfile
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from pyrovae.data.files import DataError, Layout, array_at, contents

__all__ = ["choose", "idx_layout", "npy_layout", "read_idx", "read_npy", "read_npz"]

# The third byte of an idx file (LeCun, Cortes & Burges 1998, "The MNIST database", file formats).
IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# Version 3 differs from 2 in the names of fields only.
NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,
}

# What numpy raises on a damaged npy header, and zipfile on damaged bytes apart from its own BadZipFile.
BAD_HEADER = (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError)
BAD_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)


def read_idx(path: str) -> npt.NDArray[Any]:
    """The array of an idx file, plain or gzip: `[n, *event]`, in the file's own type.

    The file is two zero bytes, a type, the number of axes, their lengths as big-endian 32-bit integers, and the
    numbers. Bytes are counted in the unpacked contents.

    Raises:
        DataError: not idx, truncated anywhere, trailing bytes, no data, fewer than two axes, NaN or infinite.
    """
    raw = contents(path)
    return array_at(path, raw, idx_layout(path, io.BytesIO(raw)))


def idx_layout(path: str, file: io.BytesIO | io.BufferedReader) -> Layout:
    """What the header of an idx file says, read from its beginning.

    Raises:
        DataError: not idx, or truncated in the header.
    """
    head = file.read(4)
    if any(head[:2]):
        raise DataError(
            f"{path} is no idx file: it wants bytes 0 and 1 to be 00 00, got {head[:2].hex(' ')}; check its kind"
        )
    if len(head) < 4:
        raise DataError(
            f"{path} is truncated: an idx file opens with 4 bytes, and it ends at byte {len(head)}; get another copy"
        )
    code, axes = head[2], head[3]
    if code not in IDX_TYPES:
        known = ", ".join(f"{c:02x}" for c in IDX_TYPES)
        raise DataError(
            f"{path} is no idx file: byte 2 is the type, one of {known}, got {code:02x}; check its kind"
        )
    offset, lengths = 4 + 4 * axes, file.read(4 * axes)
    if len(lengths) < 4 * axes:
        raise DataError(
            f"{path} is truncated: an idx header of {axes} axes has {offset} bytes, and it ends at byte "
            f"{4 + len(lengths)}; get another copy"
        )
    return Layout(offset, np.dtype(IDX_TYPES[code]), struct.unpack(f">{axes}I", lengths))


def read_npy(path: str) -> npt.NDArray[Any]:
    """The array of an npy file: `[n, *event]`, in the file's own type. Objects are refused, never unpickled.

    Raises:
        DataError: not npy, not plain numbers, truncated, trailing bytes, no data, one axis, NaN or infinite.
    """
    return _from_npy(path, contents(path))


def read_npz(path: str, name: str | None = None) -> npt.NDArray[Any]:
    """The array `name` of an npz file, or its only one: `[n, *event]`, in the file's own type, checksum verified.

    Raises:
        DataError: not npz, damaged, no array of that name, several arrays and no name; or as `read_npy`.
    """
    raw = contents(path)
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            names = [entry.removesuffix(".npy") for entry in archive.namelist() if entry.endswith(".npy")]
            name = choose("npz", path, name, names)
            member = archive.read(f"{name}.npy")
    except DataError:
        raise
    except BAD_ZIP as error:
        kind = "is damaged" if raw.startswith(b"PK") else "is no npz file"
        raise DataError(
            f"{path} {kind} ({type(error).__name__}: {error}); get another copy or check its kind"
        ) from error
    return _from_npy(f"{path}#{name}", member)


def choose(kind: str, path: str, name: str | None, names: list[str]) -> str:
    """The array of a file with several: the one of that name, or the only one.

    Raises:
        DataError: no such array, or several and no name.
    """
    listed = ", ".join(names) or "none"
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise DataError(f"{path} wants the name of one array, as in {kind}:{path}#NAME; it has {listed}")
    if name not in names:
        raise DataError(f"{path} has no array {name!r}; it has {listed}")
    return name


def _from_npy(path: str, raw: bytes) -> npt.NDArray[Any]:
    return array_at(path, raw, npy_layout(path, io.BytesIO(raw)))


def npy_layout(path: str, file: io.BytesIO | io.BufferedReader) -> Layout:
    """What the header of an npy file says, read from its beginning. Objects are refused, never unpickled.

    Raises:
        DataError: not npy, truncated or damaged in the header, not plain numbers.
    """
    magic = file.read(len(np.lib.format.MAGIC_PREFIX))
    if magic != np.lib.format.MAGIC_PREFIX:
        raise DataError(
            f"{path} is no npy file: it wants {np.lib.format.MAGIC_PREFIX!r} at byte 0, got {magic!r}; check its kind"
        )
    file.seek(0)
    try:
        version = np.lib.format.read_magic(file)
        if version not in NPY_HEADERS:
            raise ValueError(f"its format version is {version}, known are {list(NPY_HEADERS)}")
        shape, fortran, dtype = NPY_HEADERS[version](file)
    except BAD_HEADER as error:
        raise DataError(
            f"{path} is truncated or damaged in its header, by byte {file.tell()}: {error}; get another copy"
        ) from error
    if dtype.kind not in "buif":
        what = "pickled objects, which can run code" if dtype.hasobject else "no plain numbers"
        raise DataError(
            f"{path} wants numbers, got dtype {dtype}: {what}; save an array of floats or integers"
        )
    return Layout(file.tell(), dtype, shape, "F" if fortran else "C")
