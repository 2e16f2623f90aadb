"""Files give back what was written, whole or not at all; hashes see every array and setting, and nothing else."""

import resource
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from trees import LATENT, D, N, all_groups, full_tree

from pyrovae.results import (
    build_tree,
    content_hash,
    group,
    read,
    read_lazily,
    sample_stats_group,
    storage,
    write,
    written_in_parts,
)

# files


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_file_gives_back_what_was_written(tmp_path: Path, name: str) -> None:
    tree = full_tree()
    write(tree, tmp_path / name)
    back = read(tmp_path / name)
    assert back.identical(tree)
    assert content_hash(back) == content_hash(tree)
    for path in ("posterior/z", "diagnostics/num_divergent", "sample_stats/diverging", "diagnostics/verdict"):
        assert back[path].dtype.kind == tree[path].dtype.kind
        assert back[path].dtype.itemsize == tree[path].dtype.itemsize
    assert {type(value) for value in back.attrs.values()} == {int, str}
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("first", "second"), [("a.nc", "b.zarr"), ("a.zarr", "b.nc")])
def test_what_was_read_can_be_written_in_the_other_format(tmp_path: Path, first: str, second: str) -> None:
    tree = full_tree()
    write(tree, tmp_path / first)
    write(read(tmp_path / first), tmp_path / second)
    assert read(tmp_path / second).identical(tree)


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_an_old_file_is_replaced(tmp_path: Path, name: str) -> None:
    write(full_tree(), tmp_path / name)
    other = build_tree({"history": all_groups()["history"]})
    write(other, tmp_path / name)
    assert read(tmp_path / name).identical(other)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, name: str) -> None:
    """As a limit on the size of files has it; HDF5 by itself then ends the process."""
    tree = full_tree()
    write(tree, tmp_path / name)
    large = build_tree({"history": group("history", {"elbo": np.random.default_rng(0).random(10_000)})})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(large, tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert read(tmp_path / name).identical(tree)
    write(large, tmp_path / name)
    assert read(tmp_path / name).identical(large)


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_failure_while_renaming_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    tree = full_tree()
    write(tree, tmp_path / name)
    rename = storage.os.replace

    def refuse(source: Path, target: Path) -> None:
        # Only the new tree's own move onto its place fails; a folder set aside can still come back.
        if Path(target) == tmp_path / name and Path(source).suffix != ".old":
            raise PermissionError("no")
        rename(source, target)

    monkeypatch.setattr(storage.os, "replace", refuse)
    with pytest.raises(PermissionError):
        write(build_tree({"history": all_groups()["history"]}), tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert read(tmp_path / name).identical(tree)


def test_a_tree_that_does_not_pass_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown group"):
        write(xr.DataTree.from_dict({"other": xr.Dataset({"a": 1})}), tmp_path / "run.nc")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        write(full_tree(), tmp_path / "nowhere" / "run.nc")
    with pytest.raises(FileNotFoundError, match="there is no result tree"):
        read(tmp_path / "run.nc")
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    xr.DataTree.from_dict({"weather": xr.Dataset({"rain": ("day", [1.0])})}).to_netcdf(tmp_path / "w.nc")
    with pytest.raises(ValueError, match="unknown group 'weather'"):
        read(tmp_path / "w.nc")


def test_arviz_reads_the_posterior() -> None:
    import arviz_stats

    draws = group("posterior", {"z": np.random.default_rng(0).normal(size=(4, 100, N, D))}, latent=LATENT)
    rhat = arviz_stats.rhat(build_tree({"posterior": draws}))
    assert rhat["z"].dims == ("datum", "latent")
    assert (np.abs(rhat["z"].values - 1) < 0.1).all()


# parts


def part(first: int, size: int, num_chains: int = 2, seed: int = 0) -> dict[str, xr.Dataset]:
    """Draws of some data, with a NaN, and no attribute that all parts share."""
    generator, shape = np.random.default_rng([seed, first]), (num_chains, 6, size)
    z, datum = generator.normal(size=(*shape, D)).astype("f4"), np.arange(first, first + size)
    z[0, 0, 0, 0] = np.nan
    stats = {"diverging": generator.random(shape) < 0.5, "n_steps": generator.integers(1, 9, shape)}
    return {
        "posterior": group("posterior", {"z": z}, {"up_to": first + size}, latent=LATENT, datum=datum),
        "sample_stats": sample_stats_group(generator.normal(size=shape), datum=datum, **stats),
    }


def write_all(parts: list[dict[str, xr.Dataset]], path: Path) -> None:
    with written_in_parts(path) as add:
        for each in parts:
            add(each)
            assert not path.exists()


@pytest.mark.parametrize("chunk_bytes", [1, 200, 1 << 24])
def test_parts_are_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    """Whatever the chunks, and where parts end among them; attributes are those of the last part."""
    monkeypatch.setattr(storage, "CHUNK_BYTES", chunk_bytes)
    parts = [part(0, 4), part(4, 4), part(8, 3)]
    write_all(parts, tmp_path / "run.zarr")
    whole = {
        name: xr.concat([each[name] for each in parts], "datum", combine_attrs="override", **PLAINLY)
        for name in parts[0]
    }
    whole["posterior"].attrs["up_to"] = 11
    for tree in (read(tmp_path / "run.zarr"), read_lazily(tmp_path / "run.zarr")):
        assert tree.identical(build_tree(whole))
        assert tree["sample_stats"]["diverging"].dtype == bool
        assert tree["posterior"]["z"].dtype == np.float32
    assert [each.name for each in tmp_path.iterdir()] == ["run.zarr"]


PLAINLY = {"data_vars": "minimal", "coords": "minimal", "compat": "override", "join": "override"}


def test_parts_that_do_not_fit_together_leave_nothing(tmp_path: Path) -> None:
    wrong = {
        "three chains": part(4, 4, num_chains=3),
        "the same data twice": part(0, 4),
        "one group alone": {"sample_stats": part(4, 4)["sample_stats"]},
        "no schema": {"weather": xr.Dataset({"rain": ("day", [1.0])})},
    }
    for second in wrong.values():
        with pytest.raises(ValueError):
            write_all([part(0, 4), second], tmp_path / "run.zarr")
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no part was added"):
        write_all([], tmp_path / "run.zarr")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_a_tree_that_is_opened_is_the_one_that_is_read(tmp_path: Path, name: str) -> None:
    write(full_tree(), tmp_path / name)
    assert read_lazily(tmp_path / name).identical(full_tree())
    with pytest.raises(FileNotFoundError, match="there is no result tree"):
        read_lazily(tmp_path / "other.zarr")


# hashes


def changed(path: str, variable: str, index: tuple[int, ...], value: object) -> xr.DataTree:
    groups = {name: made.copy(deep=True) for name, made in all_groups().items()}
    groups[path][variable].values[index] = value
    return build_tree(groups, full_tree().attrs)


@pytest.mark.parametrize(
    ("path", "variable", "index", "value"),
    [
        ("posterior", "z", (1, 2, 0, 1), 0.5),
        ("history", "elbo", (0,), 0.5),
        ("diagnostics", "verdict", (0,), "no verdict"),
        ("diagnostics", "khat", (0,), np.nan),
        ("diagnostics", "num_divergent", (2,), 5),
        ("sample_stats", "diverging", (0, 0, 0), True),
    ],
)
def test_the_hash_sees_every_array(path: str, variable: str, index: tuple[int, ...], value: object) -> None:
    assert content_hash(changed(path, variable, index, value)) != content_hash(full_tree())


def test_the_hash_sees_every_variable_of_a_full_tree() -> None:
    """Dropping any one of them, or renaming one, is another content."""
    seen = {content_hash(full_tree())}
    count = 1
    for name, made in all_groups().items():
        for variable in made.data_vars:
            if variable == "seconds":
                continue
            tree = full_tree()
            tree[name] = xr.DataTree(made.drop_vars(variable))
            seen.add(content_hash(tree))
            count += 1
    assert len(seen) == count


def test_the_hash_sees_coordinates_dims_and_settings() -> None:
    groups, attrs = all_groups(), full_tree().attrs
    hashes = {content_hash(build_tree(groups, attrs))}
    only = {"history": groups["history"]}
    hashes.add(content_hash(build_tree(only, attrs)))
    hashes.add(
        content_hash(build_tree({"history": only["history"].assign_coords(epoch=[2, 3, 4, 5])}, attrs))
    )
    hashes.add(content_hash(build_tree(only, attrs | {"seed": 1})))
    hashes.add(content_hash(build_tree(only, attrs | {"settings": {"lr": 0.2, "on": True}})))
    hashes.add(content_hash(build_tree({"history": only["history"].assign_attrs(num_data=3)}, attrs)))
    wide, tall = (group("gradients", {"a": (dims, np.ones((2, 2)))}) for dims in (("k", "l"), ("l", "k")))
    hashes |= {content_hash(build_tree({"gradients": made})) for made in (wide, tall)}
    assert len(hashes) == 8


def test_the_hash_is_blind_to_times_versions_and_machines() -> None:
    tree = full_tree()
    later = build_tree(
        all_groups(),
        tree.attrs
        | {"torch_version": "9", "versions": {"a": "1"}, "host": "h", "device_name": "H100", "device": "cuda"}
        | {"seconds": 3.0, "hmc_seconds": 2.0, "created_at": "now", "python": "3.11", "sampling_time": 1.0}
        | {"settings": {"lr": 0.1, "on": True, "device": "cuda"}},
    )
    later["history"] = xr.DataTree(all_groups()["history"].assign(seconds=("epoch", np.ones(4))))
    assert content_hash(later) == content_hash(tree)
    assert content_hash(changed("evidence", "seconds", (0,), 99.0)) == content_hash(tree)


@pytest.mark.parametrize(("variable", "counts"), [("variance_seconds", False), ("dwell_seconds", True)])
def test_the_hash_is_blind_to_what_is_made_of_times_and_sees_a_users_own(variable: str, counts: bool) -> None:
    once, again = (
        build_tree({"gradients": group("gradients", {"variance": np.ones(1), variable: np.full(1, value)})})
        for value in (1.0, 2.0)
    )
    assert (content_hash(once) != content_hash(again)) == counts


def test_the_hash_does_not_depend_on_order_or_memory_layout() -> None:
    groups = all_groups()
    backwards = xr.DataTree.from_dict(
        {name: groups[name][list(groups[name])[::-1]] for name in list(groups)[::-1]}
    )
    backwards.attrs = dict(reversed(full_tree().attrs.items()))
    fortran = np.asfortranarray(groups["posterior"]["z"].values)
    backwards["posterior"] = xr.DataTree(
        groups["posterior"].assign(z=(groups["posterior"]["z"].dims, fortran))
    )
    assert content_hash(backwards) == content_hash(full_tree())


@pytest.mark.parametrize("name", ["run.nc", "run.zarr"])
def test_what_was_read_does_not_need_the_file(tmp_path: Path, name: str) -> None:
    terms = {"elbo": (("datum",), np.ones(3)), "mutual_information": ((), np.float64(2.0))}
    groups = all_groups() | {"decomposition": group("decomposition", terms, datum=[4, 7, 9])}
    tree = build_tree(groups)
    write(tree, tmp_path / name)
    back = read(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "gone")
    xr.testing.assert_identical(back, tree)
