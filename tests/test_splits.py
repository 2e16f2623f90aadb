import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pyrovae.data import Affine, DataError, Pipeline, Split, digits, load, read, reopen, split_indices

FASHION = Path("/usr/share/datasets/fashion-mnist")


def saved(folder: Path, array: np.ndarray) -> str:
    np.save(folder / "x.npy", array)
    return f"npy:{folder / 'x.npy'}"


def table(rows: int = 40) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((rows, 3)) * [1, 10, 0.1] + [0, 100, -3]


def parts(split: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (split.train, split.train_index),
        (split.val, split.val_index),
        (split.test, split.test_index),
    ]


def test_indices_cover_every_row_once() -> None:
    train, val, test = split_indices(101, 0.2, 0.1, seed=4)
    assert [len(index) for index in (train, val, test)] == [71, 20, 10]
    assert torch.equal(torch.cat([train, val, test]).sort().values, torch.arange(101))
    assert not torch.equal(train, train.sort().values)


def test_indices_depend_on_the_seed_only() -> None:
    state = torch.get_rng_state()
    a, b, c = (split_indices(50, 0.2, 0.1, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), state)


def test_loaded_rows_are_the_raw_rows(tmp_path: Path) -> None:
    array = table()
    split = load(saved(tmp_path, array), val_fraction=0.25, test_fraction=0.1, seed=7)
    assert [len(x) for x, _ in parts(split)] == [26, 10, 4]
    for x, index in parts(split):
        assert torch.equal(x, torch.from_numpy(array)[index].float())
    again = split_indices(40, 0.25, 0.1, seed=7)
    assert all(torch.equal(a, b) for a, (_, b) in zip(again, parts(split), strict=True))
    assert (split.event_shape, split.notes, split.pipeline) == ((3,), (), Pipeline(3))
    assert torch.equal(
        load(split.facts["spec"], dtype=torch.float64).train.float(), load(split.facts["spec"]).train
    )


def fitted_on(pipeline: Pipeline, rows: torch.Tensor) -> bool:
    return pipeline.steps == (Affine.standardize(rows),)


@pytest.mark.parametrize("seed", range(5))
def test_statistics_are_of_the_training_part_only(tmp_path: Path, seed: int) -> None:
    array = torch.from_numpy(table())
    train, val, test = split_indices(40, 0.2, 0.2, seed)
    array[torch.cat([val, test])] += 1000  # what must not leak
    spec = saved(tmp_path, array.numpy())
    split = load(spec, scale="standardize", val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert fitted_on(split.pipeline, array[train.sort().values])
    leaky = Pipeline(3, (Affine.standardize(array),))  # planted: statistics of all rows
    assert not fitted_on(leaky, array[train.sort().values])
    assert split.val.min() > 5
    unit = load(spec, scale="unit", val_fraction=0.2, test_fraction=0.2, seed=seed)
    assert unit.pipeline.steps == (Affine.unit(array[train]),)
    assert unit.train.amin() == 0
    assert unit.train.amax() == 1
    assert unit.notes == (
        "8 of 8 validation data reach outside [0, 1], the range of the training part",
        "8 of 8 test data reach outside [0, 1], the range of the training part",
    )


@pytest.mark.parametrize("scale", [None, "unit", "standardize"])
@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", "<i2", "<i4", "<u4", "<i8", "<u8", "<f2", "<f4", "<f8"]
)
def test_every_option_is_reversed(tmp_path: Path, dtype: str, scale: str | None, dequantize: bool) -> None:
    array = np.random.default_rng(0).integers(0, 2 if dtype == "?" else 100, (30, 2, 2)).astype(dtype)
    split = load(saved(tmp_path, array), scale=scale, dequantize=dequantize)
    raw = torch.from_numpy(array.astype(np.float32).reshape(30, 4))
    for x, index in parts(split):
        back = split.pipeline.inverse(x)
        assert x.dtype == torch.float32
        assert torch.equal(back, raw[index]) if dequantize else torch.allclose(back, raw[index], atol=1e-4)
        assert torch.allclose(x, split.pipeline.forward(raw)[index], atol=1e-6)
    assert split.event_shape == (2, 2)


def test_the_range_of_bytes_images_and_columns(tmp_path: Path) -> None:
    array = table(30)
    array[:, 0], array[0, 1], array[0, 2] = 5, -7, 9
    fitted = {}
    for dtype, shape in (("u1", (30, 3)), ("f8", (30, 3)), ("f8", (10, 3, 3))):
        spec = saved(tmp_path, np.abs(array).round().astype(dtype).reshape(shape))
        for dequantize in (False, True):
            split = load(spec, scale="unit", dequantize=dequantize, val_fraction=0.0, test_fraction=0.0)
            fitted[dtype, len(shape), dequantize] = split
    assert fitted["u1", 2, False].pipeline.steps == (Affine((0.0,), (255.0,)),)
    assert fitted["u1", 2, True].pipeline.steps[1] == Affine((0.0,), (256.0,))
    whole = np.abs(array).round()
    low, high = whole.min(0), whole.max(0)
    assert fitted["f8", 2, False].pipeline.steps == (Affine(tuple(low), (1.0, *(high - low)[1:]), (0,)),)
    assert fitted["f8", 2, True].pipeline.steps[1] == Affine(tuple(low), tuple(high - low + 1))
    assert fitted["f8", 3, False].pipeline.steps == (Affine((low.min(),), (high.max() - low.min(),)),)
    assert fitted["f8", 3, True].pipeline.steps[1] == Affine((low.min(),), (high.max() - low.min() + 1,))
    assert fitted["f8", 3, True].train.min() > 0
    assert fitted["f8", 3, True].train.max() < 1


def test_constant_columns_are_said(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("height,zero,weight\n" + "".join(f"{n},0,{n * n}\n" for n in range(20)))
    split = load(f"csv:{file}", scale="standardize")
    assert split.notes == ("1 constant in the training part, shifted and not scaled: column zero",)
    assert (split.train[:, 1] == 0).all()
    many = load(saved(tmp_path, np.ones((20, 14))), scale="unit")
    assert many.notes[0].endswith("column 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 4 more")
    assert many.notes[0].startswith("14 constant")


def test_noise_is_the_same_with_every_split_of_a_seed(tmp_path: Path) -> None:
    spec = saved(tmp_path, np.zeros((50, 2), np.uint8))
    a = load(spec, dequantize=True, seed=1, val_fraction=0.5)
    b = load(spec, dequantize=True, seed=1)
    c = load(spec, dequantize=True, seed=2)
    assert torch.equal(whole(a), whole(b))
    assert len(torch.unique(whole(a))) > 80  # planted once: parts that share their noise
    assert not torch.equal(whole(a), whole(c))


def whole(split: Split) -> torch.Tensor:
    """The rows in the order of the file."""
    x = torch.cat([part for part, _ in parts(split)])
    return x[torch.cat([index for _, index in parts(split)]).argsort()]


def test_description_makes_the_split_again(tmp_path: Path) -> None:
    spec = saved(tmp_path, table())
    split = load(spec, scale="standardize", val_fraction=0.3, seed=9)
    told = json.loads(json.dumps(split.describe()))
    assert told == split.describe()
    assert told["sha256"] == read(spec).sha256
    assert (told["num_data"], told["num_train"], told["num_val"], told["num_test"]) == (40, 22, 12, 6)
    assert Pipeline.from_config(told["pipeline"]) == split.pipeline
    options = {name: told[name] for name in ("scale", "dequantize", "val_fraction", "test_fraction", "seed")}
    again = load(told["spec"], dtype=getattr(torch, told["dtype"]), **options)
    assert torch.equal(again.train, split.train)
    assert again.describe() == split.describe()
    moved = reopen(saved(tmp_path, table()), told)
    assert torch.equal(moved.test, split.test)
    assert moved.describe() == split.describe()
    told["pipeline"]["steps"].clear()
    split.describe()["pipeline"]["steps"].clear()
    assert split.describe()["pipeline"]["steps"]


@pytest.mark.parametrize("name", ["sha256", "pipeline", "seed", "dtype", "notes", "scale"])
def test_a_description_that_lacks_something_is_refused(name: str) -> None:
    description = load("digits", scale="unit").describe()
    del description[name]
    with pytest.raises(KeyError, match=name):
        reopen("digits", description)


def test_other_data_are_not_those_that_were_described(tmp_path: Path) -> None:
    description = load(saved(tmp_path, table()), scale="unit").describe()
    array = table()
    array[17, 1] += 1e-6
    for other in (array, table()[::-1], table()[:-1], table().astype("f4"), table()[:, :2]):
        with pytest.raises(DataError, match=r"x.npy holds other data than those that were described"):
            reopen(saved(tmp_path, np.ascontiguousarray(other)), description)


def test_digits_know_the_way_back() -> None:
    for dequantize in (True, False):
        split = digits(seed=2, dequantize=dequantize)
        pixels = torch.from_numpy(read("digits").values).float()
        back = split.pipeline.inverse(split.train)
        assert (back - pixels[split.train_index]).abs().mean() < 1e-4
        whole_again = split.pipeline.forward(pixels)[split.train_index]
        assert torch.allclose(whole_again, split.train, atol=1e-5)
        assert split.event_shape == (8, 8)
        assert json.loads(json.dumps(split.describe()))["sha256"] == read("digits").sha256


@pytest.mark.parametrize(
    ("array", "options", "message"),
    [
        (table(), {"dequantize": True}, r"x.npy: dequantize wants integers, got .* in row 0, column 0"),
        (table() * 1e200, {}, r"x.npy: numbers are too large for float32; pass dtype=torch.float64"),
        (
            table(1),
            {"val_fraction": 0.6},
            r"x.npy: the split wants a row to train on, got 1 in all, 1 for validation",
        ),
        (np.full((9, 2), 40_000), {"dequantize": True}, r"x.npy: float32 has no room for noise"),
        (table(), {"scale": "zscore"}, r"scale must be one of None, 'unit', 'standardize', got 'zscore'"),
        (
            table(),
            {"dtype": torch.float16},
            r"dtype must be torch.float32 or torch.float64, got torch.float16",
        ),
        (table(), {"seed": -1}, "seed must be 0 or more, got -1"),
        (table(), {"val_fraction": -0.1}, "at least 0 and together below 1, got -0.1"),
        (table(), {"test_fraction": 0.9}, "at least 0 and together below 1, got 0.15 and 0.9"),
        (table(), {"test_fraction": float("nan")}, "at least 0 and together below 1"),
    ],
)
def test_what_is_refused(tmp_path: Path, array: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(saved(tmp_path, array), **options)


def test_large_numbers_are_fine_where_there_is_room(tmp_path: Path) -> None:
    spec = saved(tmp_path, table() * 1e200)
    split = load(spec, scale="unit", dtype=torch.float64)
    assert split.train.max() == 1
    assert torch.allclose(
        split.pipeline.inverse(split.train), torch.from_numpy(table() * 1e200)[split.train_index]
    )
    with pytest.raises(DataError, match="too large for float32"):  # the way back would be infinite
        load(spec, scale="unit")


@pytest.mark.parametrize("name", ["missing.npy", "short.npy"])
def test_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "short.npy").write_bytes(b"\x93NUM")
    with pytest.raises(DataError, match=name):
        load(f"npy:{tmp_path / name}")


def test_an_idx_file_from_end_to_end(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (60, 5, 4), dtype=np.uint8)
    (tmp_path / "images").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes())
    split = load(f"idx:{tmp_path / 'images'}", scale="unit", dequantize=True)
    assert split.train.shape == (42, 20)
    raw = torch.from_numpy(read(split.facts["spec"]).values)
    assert torch.equal(split.pipeline.forward(raw)[split.train_index], split.train)
    floor = (256 * split.train).floor().unflatten(-1, split.event_shape)
    assert torch.equal(floor, torch.from_numpy(images)[split.train_index].float())
    assert split.pipeline.log_abs_det == pytest.approx(-20 * np.log(256))


@pytest.mark.skipif(not FASHION.is_dir(), reason="Debian's package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize(("name", "rows"), [("train", 60_000), ("t10k", 10_000)])
def test_fashion_mnist(name: str, rows: int) -> None:
    spec = f"idx:{FASHION / name}-images-idx3-ubyte.gz"
    raw = torch.from_numpy(read(spec).values)
    split = load(spec, scale="unit", dequantize=True)
    assert (sum(len(x) for x, _ in parts(split)), split.event_shape, raw.shape) == (
        rows,
        (28, 28),
        (rows, 784),
    )
    assert torch.equal(split.pipeline.inverse(split.test), raw[split.test_index].float())
    assert 0.28 < split.train.mean() < 0.3
    with pytest.raises(DataError, match="as labels have"):
        load(f"idx:{FASHION / name}-labels-idx1-ubyte.gz")
