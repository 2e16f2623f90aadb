import gzip
import hashlib
import io
import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pyrovae.data import DataError, read

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
IDX_CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}


def idx_bytes(array: np.ndarray, code: str = "u1") -> bytes:
    header = bytes([0, 0, IDX_CODES[code], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(code).tobytes()


def npy_bytes(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


class Folder:
    """Writes bytes to a file and reads it back by that kind."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, content: bytes | str, name: str = "file") -> str:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    def read(self, kind: str, content: bytes | str) -> np.ndarray:
        return read(f"{kind}:{self.write(content)}").values


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


@pytest.mark.parametrize("code", IDX_CODES)
def test_idx_of_every_type(folder: Folder, code: str) -> None:
    raw = read(f"idx:{folder.write(idx_bytes(IMAGES, code))}")
    assert raw.event_shape == (3, 4)
    assert raw.values.dtype == np.dtype(code).newbyteorder("=")
    assert np.array_equal(raw.values, IMAGES.reshape(2, 12))
    assert raw.values.flags.writeable


def test_gzip_is_known_by_content_and_leaves_the_fingerprint(folder: Folder) -> None:
    plain = read(f"idx:{folder.write(idx_bytes(IMAGES), 'images.gz')}")
    packed = read(f"idx:{folder.write(gzip.compress(idx_bytes(IMAGES)), 'images')}")
    two = idx_bytes(IMAGES)
    members = folder.read("idx", gzip.compress(two[:20]) + gzip.compress(two[20:]))
    assert np.array_equal(plain.values, packed.values)
    assert np.array_equal(plain.values, members)
    assert plain.sha256 == packed.sha256
    other = IMAGES.copy()
    other[1, 2, 3] += 1
    assert read(f"idx:{folder.write(idx_bytes(other))}").sha256 != plain.sha256
    assert read(f"idx:{folder.write(idx_bytes(IMAGES.reshape(2, 4, 3)))}").sha256 != plain.sha256


def test_the_fingerprint_is_the_documented_hash(folder: Folder) -> None:
    raw = read(f"npy:{folder.write(npy_bytes(IMAGES.astype('>f4')))}")
    assert raw.sha256 == hashlib.sha256(b"<f4 [2, 3, 4]\n" + IMAGES.astype("<f4").tobytes()).hexdigest()


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("end", range(len(idx_bytes(IMAGES))))
def test_idx_truncated_at_every_byte(folder: Folder, end: int, packed: bool) -> None:
    content = idx_bytes(IMAGES)[:end]
    path = folder.write(gzip.compress(content) if packed else content)
    message = "is empty, 0 bytes" if end == 0 else rf"is truncated: .* ends at byte {end}\b"
    with pytest.raises(DataError, match=message) as caught:
        read(f"idx:{path}")
    assert path in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG....", r"is no idx file: it wants bytes 0 and 1 to be 00 00, got 89 50"),
        (b"\0\0\x0a\x02" + bytes(20), r"byte 2 is the type, one of 08, 09, 0b, 0c, 0d, 0e, got 0a"),
        (idx_bytes(np.zeros(5)), r"two axes or more, got shape \(5,\), as labels have"),
        (b"\0\0\x08\0", r"two axes or more, got shape \(\)"),
        (idx_bytes(np.zeros((3, 0))), r"holds no data, its shape is \(3, 0\)"),
        (
            idx_bytes(IMAGES) + b"\0",
            r"trailing bytes: shape \(2, 3, 4\) of uint8 ends at byte 40, the file at byte 41",
        ),
        (b"\0\0\x0e\x03" + b"\xff" * 12, r"is truncated: .* ends at byte 16"),
        (idx_bytes(np.array([[1, 2], [3, np.nan]]), ">f4"), r"got nan in row 1, at index \[1, 1\], byte 24"),
        (idx_bytes(np.array([[1, np.inf], [3, 4]]), ">f8"), r"got inf in row 0, at index \[0, 1\], byte 20"),
    ],
)
def test_idx_refused(folder: Folder, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder.read("idx", content)


def test_every_flipped_bit_of_a_gzip_file_is_seen(folder: Folder) -> None:
    """A flip in a field that does not matter, such as the time, may pass; other numbers may not."""
    content = gzip.compress(idx_bytes(IMAGES), mtime=1)
    refused = 0
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert np.array_equal(folder.read("idx", bytes(flipped)), IMAGES.reshape(2, 12))
        except DataError:
            refused += 1
    assert refused > 6 * len(content)


def test_gzip_damage_is_placed(folder: Folder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 2000), dtype=np.uint8)
    content = bytearray(gzip.compress(idx_bytes(noise)))
    content[150_000] ^= 255
    with pytest.raises(DataError, match=r"is damaged gzip.*between bytes \d+ and \d+; get another copy"):
        folder.read("idx", bytes(content))
    with pytest.raises(DataError, match=r"its gzip stream has no end by byte 1000, where the file ends"):
        folder.read("idx", bytes(content[:1000]))
    with pytest.raises(DataError, match=r"is damaged gzip, or has other bytes behind it"):
        folder.read("idx", gzip.compress(idx_bytes(IMAGES)) + b"more")


@pytest.mark.parametrize("dtype", ["?", "i1", "<u2", ">i4", "<u4", "<i8", ">u8", "<f2", ">f4", "<f8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_and_npz_of_every_type(folder: Folder, dtype: str, order: str) -> None:
    array = np.asarray(IMAGES % 2, dtype=dtype, order=order)
    for kind, content in (("npy", npy_bytes(array)), ("npz", npz_bytes(x=array))):
        values = folder.read(kind, content)
        assert values.dtype == array.dtype.newbyteorder("=")
        assert np.array_equal(values, array.reshape(2, 12))


class Bomb:
    """Pickled so that reading it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (os.mkdir, (self.path,))


def test_pickles_are_not_opened(folder: Folder) -> None:
    mark = folder.folder / "exploded"
    array = np.array([[Bomb(str(mark))]], dtype=object)
    for kind, content in (
        ("npy", npy_bytes(array, allow_pickle=True)),
        ("npz", npz_bytes(x=array)),
    ):
        with pytest.raises(DataError, match=r"wants numbers, got dtype object: pickled objects"):
            folder.read(kind, content)
        assert not mark.exists()
        np.load(io.BytesIO(content), allow_pickle=True)["x" if kind == "npz" else ()]
        assert mark.exists()  # the bomb works
        mark.rmdir()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3), complex), r"wants numbers, got dtype complex128: no plain numbers"),
        (np.array([["a"]]), r"wants numbers, got dtype <U1: no plain numbers"),
        (np.zeros((2, 2), [("a", "f4")]), r"wants numbers, got dtype .*: no plain numbers"),
        (np.zeros((2, 2), "M8[s]"), r"wants numbers, got dtype datetime64"),
        (np.zeros(3), r"two axes or more, got shape \(3,\)"),
        (np.zeros(()), r"two axes or more, got shape \(\)"),
        (np.zeros((0, 3)), r"holds no data, its shape is \(0, 3\)"),
        (np.array([[1, 2, 3], [4, np.nan, 6]]), r"got nan in row 1, at index \[1, 1\], byte 160"),
        (
            np.asfortranarray([[1, 2, 3], [4, np.nan, 6]]),
            r"got nan in row 1, at index \[1, 1\], byte 152",
        ),
    ],
)
def test_npy_refused(folder: Folder, array: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        folder.read("npy", npy_bytes(array))


@pytest.mark.parametrize("end", range(len(npy_bytes(IMAGES))))
def test_npy_truncated_at_every_byte(folder: Folder, end: int) -> None:
    with pytest.raises(DataError, match=r"is empty|is no npy file|is truncated"):
        folder.read("npy", npy_bytes(IMAGES)[:end])


def test_npy_with_bytes_behind_it_or_of_a_newer_version(folder: Folder) -> None:
    content = npy_bytes(IMAGES)
    with pytest.raises(DataError, match=r"trailing bytes: .* ends at byte 152, the file at byte 153"):
        folder.read("npy", content + b"\0")
    with pytest.raises(DataError, match=r"its format version is \(9, 0\)"):
        folder.read("npy", content[:6] + b"\x09" + content[7:])
    with pytest.raises(DataError, match=r"is no npy file: it wants b'.*NUMPY' at byte 0, got b'hello '"):
        folder.read("npy", b"hello world")


@pytest.mark.filterwarnings("ignore:Reading `.npy`:UserWarning")
@pytest.mark.parametrize("kind", ["idx", "npy", "npz"])
def test_damage_raises_nothing_but_data_errors(folder: Folder, kind: str) -> None:
    content = {"idx": idx_bytes, "npy": npy_bytes, "npz": lambda x: npz_bytes(x=x)}[kind](IMAGES)
    generator = np.random.default_rng(0)
    for place in range(min(len(content), 500)):
        flipped = bytearray(content)
        flipped[place] = generator.integers(256)
        try:
            values = folder.read(kind, bytes(flipped))
            assert kind != "npz" or np.array_equal(values, IMAGES.reshape(2, 12))
        except DataError:
            pass


def test_npz_by_name(folder: Folder) -> None:
    path = folder.write(npz_bytes(x=IMAGES, labels=np.zeros(2)), "both.npz")
    assert np.array_equal(read(f"npz:{path}#x").values, IMAGES.reshape(2, 12))
    with pytest.raises(DataError, match=r"wants the name of one array, as in npz:.*#NAME; it has x, labels"):
        read(f"npz:{path}")
    with pytest.raises(DataError, match=r"both.npz has no array 'y'; it has x, labels"):
        read(f"npz:{path}#y")
    with pytest.raises(DataError, match=r"both.npz#labels wants one row a datum"):
        read(f"npz:{path}#labels")
    odd = folder.write(npz_bytes(x=IMAGES), "odd#1.npz")
    assert read(f"npz:{odd}").event_shape == (3, 4)


def test_npz_refused(folder: Folder) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("readme.txt", "no arrays")
    with pytest.raises(DataError, match="it has none"):
        folder.read("npz", file.getvalue())
    with pytest.raises(DataError, match=r"is no npz file \(BadZipFile"):
        folder.read("npz", npy_bytes(IMAGES))
    with pytest.raises(DataError, match=r"is damaged \(BadZipFile"):
        folder.read("npz", npz_bytes(x=IMAGES)[:-30])


def test_files_that_cannot_be_opened(folder: Folder) -> None:
    missing = str(folder.folder / "nothing.idx")
    for kind in ("idx", "npy", "npz", "csv"):
        with pytest.raises(DataError, match=r"no such file: .*nothing.idx', looked for from"):
            read(f"{kind}:{missing}")
    with pytest.raises(DataError, match="is not an ordinary file"):
        read(f"csv:{folder.folder}")
    with pytest.raises(DataError, match="cannot be read"):
        read(f"csv:{'x' * 5000}")
    with pytest.raises(DataError, match="cannot be read"):
        read("csv:~nobody-of-this-name/x.csv")


@pytest.mark.parametrize("spec", ["mnist", "idx", "idx:", "", "parquet:x", "digits:x"])
def test_unknown_specs_list_the_known(spec: str) -> None:
    with pytest.raises(DataError, match=r"digits, idx:PATH, .*, csv:PATH, zarr:PATH or zarr:PATH#NAME, got"):
        read(spec)


def test_a_path_without_its_kind_gets_a_hint(folder: Folder) -> None:
    path = folder.write("1,2")
    with pytest.raises(DataError, match=f"pass csv:{path} or another kind"):
        read(path)


def test_home_is_known(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.folder))
    folder.write("1,2", "x.csv")
    assert read("csv:~/x.csv").values.shape == (1, 2)
