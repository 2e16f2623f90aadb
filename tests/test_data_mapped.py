import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from pyrovae.data import Affine, DataError, Dequantize, Pipeline, Rows, Split, load, read, reopen
from pyrovae.data import noise as noises
from pyrovae.data.noise import NoiseTable
from pyrovae.seeding import seeded

IDX_CODES = {"u1": 8, "i1": 9, ">i2": 11, ">i4": 12, ">f4": 13, ">f8": 14}
KINDS = ("idx", "npy", "zarr")


def write(folder: Path, kind: str, array: np.ndarray) -> str:
    """The name of the data in a new file of that kind."""
    path = folder / f"x.{kind}"
    if kind == "idx":
        code = next(c for c in IDX_CODES if np.dtype(c).newbyteorder("=") == array.dtype)
        head = bytes([0, 0, IDX_CODES[code], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        path.write_bytes(head + array.astype(code).tobytes())
    elif kind == "npy":
        path.write_bytes(b"")
        with path.open("wb") as file:
            np.save(file, array)
    else:
        zarr.create_array(str(path), data=array, chunks=(7, *array.shape[1:]), overwrite=True)
    return f"{kind}:{path}"


def numbers(dtype: str = "f4", rows: int = 60) -> np.ndarray:
    generator = np.random.default_rng(2)
    if dtype.startswith("f"):
        return (generator.standard_normal((rows, 3, 2)) * 10 + 5).astype(dtype)
    return generator.integers(0, 100, (rows, 3, 2)).astype(dtype)


def both(spec: str, **options: object) -> tuple[Split, Split]:
    return load(spec, memory="read", **options), load(spec, memory="map", **options)


def are_equal(whole: Split, rows: Split, order: torch.Tensor) -> bool:
    """Whether the parts agree to the last bit, in any order and whatever else was read before."""
    for name in ("train", "val", "test"):
        x, y = getattr(whole, name), getattr(rows, name)
        index = order[order < len(x)]
        same = [torch.equal(y[index], x[index]), torch.equal(y[:], x), torch.equal(y[-3:-1], x[-3:-1])]
        same += [torch.equal(torch.cat(list(y.split(7))), x), x.dtype == y.dtype, x.shape == y.shape]
        if not all(same):
            return False
    return True


@pytest.mark.parametrize("scale", [None, "unit", "standardize"])
@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_rows_are_those_of_data_in_memory(
    tmp_path: Path, kind: str, dtype: str, dequantize: bool, scale: str | None
) -> None:
    array = np.rint(numbers(dtype)).astype(dtype) if dequantize else numbers(dtype)
    spec = write(tmp_path, kind, array)
    for precision in (torch.float32, torch.float64):
        whole, rows = both(spec, scale=scale, dequantize=dequantize, seed=4, dtype=precision)
        assert isinstance(rows.train, Rows)
        assert isinstance(whole.train, torch.Tensor)
        order = torch.randint(0, 60, (50,), generator=torch.Generator().manual_seed(1))
        assert are_equal(whole, rows, order)
        assert rows.describe() == whole.describe()
        again = reopen(spec, rows.describe(), memory="map")
        assert are_equal(whole, again, order)
        assert again.describe() == whole.describe()
        assert torch.equal(reopen(spec, rows.describe()).train, whole.train)
        assert not are_equal(load(spec, scale=scale, dequantize=dequantize, seed=5), rows, order)


def test_noise_belongs_to_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noises, "BUDGET", 40_000)  # seven states for fifty rows
    with seeded(11):
        u = torch.rand(50, 3)
    order = torch.tensor([44, 2, 3, 4, 30, 31, 8, 7, 49, 0])
    for rows in (order, order.flip(0), torch.arange(50), torch.tensor([7, 7, 8, 8, 8]), order[:0]):
        table = NoiseTable(11, 50, 3)
        assert table.stride == 7
        rows = rows.sort().values
        assert torch.equal(table[rows.numpy()], u[rows])
        assert torch.equal(table[rows.numpy()], u[rows])  # from states that are known by now
    assert not torch.equal(NoiseTable(12, 50, 3)[np.arange(50)], u)


def test_states_of_the_noise_fit_the_budget() -> None:
    for num_rows in (10, 100_000, 3_000_000):
        table = NoiseTable(0, num_rows, 1)
        assert num_rows / table.stride * len(table._states[0]) <= noises.BUDGET


def test_rows_of_an_array_and_parts_of_parts() -> None:
    array = np.arange(40, dtype=">i4").reshape(20, 2)
    pipeline = Pipeline(2, (Dequantize(3, 11), Affine((1.0,), (4.0,))))
    rows = Rows(array, pipeline, dtype=torch.float64)
    whole = pipeline.forward(torch.from_numpy(array.astype("f8")))
    part = rows.part(torch.tensor([19, 3, 4, 5, 3]))
    assert torch.equal(part[:], whole[[19, 3, 4, 5, 3]])
    assert torch.equal(part.part(torch.tensor([3, 0]))[:], whole[[5, 19]])
    assert torch.equal(part.in_order()[:], whole[[3, 3, 4, 5, 19]])
    assert torch.equal(part[torch.tensor([-1, 0])], whole[[3, 19]])
    assert (len(part), part.dtype, part.shape) == (5, torch.float64, (5, 2))
    assert part[:0].shape == part[torch.tensor([], dtype=torch.long)].shape == (0, 2)
    with pytest.raises(IndexError):
        part[torch.tensor([5])]
    assert torch.equal(part.to("cpu", torch.float32)[1:3], whole[[3, 4]].float())
    assert part.dtype == torch.float64
    Rows(array.astype("f4"))[:].zero_()
    plain = array.astype("f4")
    Rows(plain)[:].zero_()
    assert plain.any()  # what comes is a copy


def test_only_what_is_large_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in KINDS:
        spec = write(tmp_path, kind, numbers())
        assert not read(spec).is_mapped
        assert read(spec, "map").is_mapped
        monkeypatch.setattr("pyrovae.data.sources.LARGE", 60 * 6)
        assert read(spec).is_mapped
        assert not read(spec, "read").is_mapped
        monkeypatch.undo()


@pytest.mark.parametrize("kind", KINDS)
def test_fingerprints_and_integers_are_seen_in_blocks(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.data.sources.BLOCK_BYTES", 100)
    for array in (numbers("i2"), numbers("i2").astype("f4"), numbers("f4")):
        spec = write(tmp_path, kind, array)
        whole, rows = read(spec, "read"), read(spec, "map")
        assert rows.sha256 == whole.sha256
        assert rows.is_integer == whole.is_integer == bool((array == np.rint(array)).all())
        assert len(list(rows.blocks())) > 5
        assert load(rows, scale="unit").describe() == load(spec, scale="unit").describe()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_row(tmp_path: Path, kind: str, value: float) -> None:
    array = numbers("f8")
    array[41, 2, 1] = value
    spec = write(tmp_path, kind, array)
    for memory in ("map", "read"):
        with pytest.raises(
            DataError, match=rf"wants finite numbers, got {value} in row 41, at index \[41, 2, 1\]"
        ):
            load(spec, memory=memory)


def test_fractions_are_refused_as_in_memory(tmp_path: Path) -> None:
    array = np.rint(numbers("f8"))
    array[17, 1, 0] = 2.5
    messages = []
    for memory in ("map", "read"):
        with pytest.raises(
            DataError, match=r"dequantize wants integers, got 2.5 in row 17, column 2"
        ) as error:
            load(write(tmp_path, "npy", array), dequantize=True, memory=memory)
        messages.append(str(error.value))
    assert messages[0] == messages[1]
    for options in ({"dequantize": True}, {}):
        for memory in ("map", "read"):
            with pytest.raises(DataError, match=r"float32 has no room for noise|too large for float32"):
                load(write(tmp_path, "npy", np.full((9, 2), 1e300)), memory=memory, **options)


@pytest.mark.parametrize("kind", ["idx", "npy"])
def test_truncated_files_are_refused_by_row(tmp_path: Path, kind: str) -> None:
    spec = write(tmp_path, kind, numbers())
    path = Path(spec.partition(":")[2])
    content = path.read_bytes()
    for end in range(0, len(content), 13):
        path.write_bytes(content[:end])
        row = (end - (len(content) - 60 * 24)) // 24
        where = f"within row {row};" if row >= 0 else "x.(idx|npy) is "
        with pytest.raises(DataError, match=where) as error:
            read(spec, "map")
        with pytest.raises(DataError) as other:
            read(spec, "read")
        assert str(error.value) == str(other.value)
    path.write_bytes(content + b"x")
    with pytest.raises(DataError, match="trailing bytes"):
        read(spec, "map")


def test_damaged_zarr_is_refused_by_row(tmp_path: Path) -> None:
    spec = write(tmp_path, "zarr", numbers())
    chunk = tmp_path / "x.zarr" / "c" / "2" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:20])
    table = read(spec, "map").values
    assert table[0:14].shape == (14, 6)
    with pytest.raises(DataError, match=r"damaged in a chunk of rows 3 to 15"):
        table[np.array([3, 15])]
    for memory in ("map", "read"):
        with pytest.raises(DataError, match=r"x.zarr is damaged in a chunk of rows 0 to 59"):
            load(spec, memory=memory)


def test_what_cannot_be_mapped(tmp_path: Path) -> None:
    packed = tmp_path / "x.gz"
    packed.write_bytes(gzip.compress(Path(write(tmp_path, "npy", numbers()).partition(":")[2]).read_bytes()))
    np.save(tmp_path / "f.npy", np.asfortranarray(numbers()))
    np.savez(tmp_path / "x.npz", numbers())
    for spec, message in (
        (f"npy:{packed}", "is gzip, which is read as a whole; unpack it to map it"),
        (f"npy:{tmp_path / 'f.npy'}", "is in Fortran order"),
        (f"npz:{tmp_path / 'x.npz'}", "cannot be mapped: idx, npy, zarr can"),
        ("digits", "cannot be mapped: idx, npy, zarr can"),
    ):
        assert not read(spec).is_mapped
        with pytest.raises(DataError, match=message):
            read(spec, "map")
    with pytest.raises(ValueError, match="memory must be one of auto, read, map, got 'mmap'"):
        read("digits", "mmap")


def test_zarr_by_name(tmp_path: Path) -> None:
    group = zarr.open_group(str(tmp_path / "g"), mode="w")
    group.create_array("images", data=numbers())
    assert np.array_equal(read(f"zarr:{tmp_path / 'g'}").values, numbers().reshape(60, 6))
    group.create_array("labels", data=np.arange(60))
    assert read(f"zarr:{tmp_path / 'g'}#images", "map").event_shape == (3, 2)
    for name, message in (
        ("g", r"wants the name of one array, as in zarr:.*g#NAME; it has images, labels"),
        ("g#nothing", r"has no array 'nothing'; it has images, labels"),
        ("g#labels", r"wants one row a datum and so two axes"),
        ("g/images#x", r"is one zarr array, got the name 'x'"),
        ("missing", r"no such folder"),
        ("", r"is no zarr array or group"),
    ):
        with pytest.raises(DataError, match=message):
            read(f"zarr:{tmp_path / name}")


def test_a_file_that_is_cut_short_later_is_refused_by_row(tmp_path: Path) -> None:
    rows = read(write(tmp_path, "npy", numbers()), "map").values
    os.truncate(tmp_path / "x.npy", (tmp_path / "x.npy").stat().st_size - 5 * 24 + 1)
    assert rows[:55].shape == (55, 6)
    for wanted in (slice(50, 60), np.array([3, 55])):
        with pytest.raises(DataError, match=r"x.npy has become shorter .* it ends within row 55"):
            rows[wanted]


def test_rows_by_any_slice(tmp_path: Path) -> None:
    array = numbers("i2")
    for kind in KINDS:
        rows = Rows(read(write(tmp_path, kind, array), "map").values)
        for part in (slice(None), slice(-4, None), slice(50, 3, -7), slice(5, 5), slice(0, 60, 9)):
            assert np.array_equal(rows[part].numpy(), array.reshape(60, 6)[part])


def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all that is read of files that are mapped from now on."""
    sizes: list[int] = []
    real = os.preadv

    def preadv(*arguments: object) -> int:
        sizes.append(real(*arguments))
        return sizes[-1]

    monkeypatch.setattr(os, "preadv", preadv)
    return sizes


@pytest.mark.parametrize(
    ("scale", "dequantize", "passes"),
    [
        (None, False, 1.0),
        ("standardize", False, 1.0),
        ("unit", False, 1.3),
        (None, True, 1.0),
        ("standardize", True, 1.7),
    ],
)
def test_what_is_read_to_load_and_to_reopen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: str | None, dequantize: bool, passes: float
) -> None:
    array = numbers("i2", 2000)
    row = array[0].nbytes
    spec = write(tmp_path, "npy", array)
    sizes = reads(monkeypatch)
    split = load(spec, scale=scale, dequantize=dequantize, memory="map")
    assert sum(sizes) == round(passes * array.nbytes) + 64 * row
    description = split.describe()
    sizes.clear()
    again = reopen(spec, description, memory="map")
    assert sum(sizes) == 64 * row
    assert torch.equal(again.test[7:9], split.test[7:9])
    assert sum(sizes) == 68 * row


def test_mapped_data_are_known_again_by_a_sample(tmp_path: Path) -> None:
    array = numbers(rows=640)
    spec = write(tmp_path, "npy", array)
    description = load(spec, memory="map").describe()
    unseen = array.copy()
    unseen[5] += 1
    write(tmp_path, "npy", unseen)
    reopen(spec, description, memory="map")  # no row of the sample has changed, and no other is looked at
    with pytest.raises(DataError, match="holds other data"):
        reopen(spec, description, memory="read")
    first, last = array.copy(), array.copy()
    first[0, 0, 0] += 1
    last[-1, 2, 1] += 1
    for other in (2 * array, array[::-1], array[:-1], array.astype("f8"), array.swapaxes(1, 2), first, last):
        with pytest.raises(DataError, match="holds other data than those that were described"):
            reopen(write(tmp_path, "npy", np.ascontiguousarray(other)), description, memory="map")


def test_a_fingerprint_of_rows_tells_them_apart_unread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = write(tmp_path, "npy", numbers())
    split = load(spec, memory="map")
    others = [
        load(spec, memory="map", seed=1).train,
        load(spec, memory="map", scale="unit").train,
        load(spec, memory="map", dtype=torch.float64).train,
        load(write(tmp_path, "zarr", numbers() + 1), memory="map").train,
        split.val,
        split.train.part(torch.arange(3)),
    ]
    sizes = reads(monkeypatch)
    assert len({rows.sha256 for rows in [split.train, *others]}) == 7
    assert split.train.sha256 == load(spec, memory="map").train.part(torch.arange(42)).sha256
    assert sum(sizes) == 60 * 24 * 2  # the second `load`: all rows, and a sample of 60
    assert Rows(numbers().reshape(60, 6)).sha256 is None
