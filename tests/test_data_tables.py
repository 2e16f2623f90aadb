import gzip
from pathlib import Path

import numpy as np
import pytest

from pyrovae.data import DataError, RawData, read


class Folder:
    """Writes a file and reads it back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "table"

    def read(self, content: bytes | str) -> RawData:
        self.path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read(f"csv:{self.path}")


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5\n-3,4e2\n",
        "1,2.5\r\n-3,4e2",
        "1,2.5\r-3,4e2\r\r",
        '"1", 2.5\n -3 ,"4e2"\n\n',
        "\ufeff1,2.5\n-3,400",
    ],
)
def test_csv_without_header(folder: Folder, text: str) -> None:
    raw = folder.read(text)
    assert np.array_equal(raw.values, [[1, 2.5], [-3, 400]])
    assert (raw.columns, raw.event_shape, raw.values.dtype) == ((), (2,), np.float64)


def test_csv_with_header(folder: Folder) -> None:
    raw = folder.read(gzip.compress(b'height,"weight, kg"\n1,2\n3,4\n'))
    assert np.array_equal(raw.values, [[1, 2], [3, 4]])
    assert raw.columns == ("height", "weight, kg")
    assert folder.read("only\n7").values.tolist() == [[7.0]]
    assert folder.read("7").values.tolist() == [[7.0]]


def test_csv_keeps_every_bit(folder: Folder) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)) * 10.0 ** np.arange(-150, 151, 150)
    text = "\n".join(",".join(map(repr, row)) for row in x.tolist())
    assert np.array_equal(folder.read(text).values, x)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,2\n3,4\n5\n6,7", "line 3 has 1 fields where line 1 has 2"),
        ("1,2\n3,4,5\n", "line 2 has 3 fields where line 1 has 2"),
        ("a,b\n3,4\n3,4,5\n", "line 3 has 3 fields where line 1 has 2"),
        ("a,b,c\n3,4\n3,4\n", "line 2 has 2 fields where line 1 has 3"),
        ("1,2\n\n3,4", "line 2 is empty"),
        ("1,2\n  \n3,4", "line 2 is empty"),
        ("\n1,2", "line 1 is empty"),
        ("1,2\n3,x\n", "line 2, column 2 wants a finite number, got 'x'"),
        ("1,2\n3,\n", "line 2, column 2 wants a finite number, got ''"),
        ("1,,3\n3,4,5\n", "line 1, column 2 wants a finite number, got ''"),
        ("1,2\nTrue,3", "line 2, column 1 wants a finite number, got 'True'"),
        ("1,2\n1_0,3", "line 2, column 1 wants a finite number, got '1_0'"),
        ("1,2\n0x1F,3", "line 2, column 1 wants a finite number, got '0x1F'"),
        (
            "1;2\n3;4",
            "line 2, column 1 wants a finite number, got '3;4'; its .* separated by ';': write commas",
        ),
        ("a\tb\n3\t4", r"got '3\\t4'; its numbers are separated by '\\t': write commas"),
        (
            "1,5;2,5\n3,5;4,5",
            "line 1, column 2 .* got '5;2'; its numbers are separated by ';'.* points in decimals",
        ),
        (
            "a,b\n3,cat",
            "line 2, column 2 wants a finite number, got 'cat'; drop the column if it holds words",
        ),
        ("a,b\n3,", "got ''; fill it in, or remove the line"),
        (",0,1,2\n0,4,5,6", "row numbers and columns without names; write it with index=False, header=False"),
        ("1,2\n3,# 4", "line 2, column 2 wants a finite number, got '# 4'"),
        ("id,7\n3,4", "line 1, column 1 wants a finite number, got 'id'.* name every column of line 1"),
        ("1,2\n3,nan", "line 2, column 2 wants a finite number, got 'nan'"),
        ("nan,inf\n3,4", "line 1, column 1 wants a finite number, got 'nan'"),
        ("1,2\n3,1e999", "line 2, column 2 wants a finite number, got '1e999'"),
        ("1,2\n3,\0", r"line 2, column 2 wants a finite number, got '\\x00'"),
        ("1,2\n3,é", "line 2, column 2 wants a finite number, got 'é'"),
        ('1,"2\n3",4', "line 2, column 1 wants a finite number"),
        ("a,b\n", "has a header and no data"),
        (" \n\n", "is empty but for blanks"),
        ("", "is empty, 0 bytes"),
        ("0,1,2\n4,5,6", "has 0, 1, 2, ... in line 1, as pandas writes columns without names"),
        (",a\n0,5", "has no name for column 1 in line 1, as pandas writes the row numbers"),
    ],
)
def test_csv_refused(folder: Folder, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        folder.read(text)
    assert str(folder.path) in str(caught.value)


def test_csv_of_no_text_is_refused(folder: Folder) -> None:
    generator = np.random.default_rng(0)
    for size in (1, 10, 1000, 300_000):
        with pytest.raises(DataError):
            folder.read(b"\xff" + generator.bytes(size))
