"""A run that stopped goes on to the same bits; what is refused; and what a full disk leaves."""

import errno
import json
import math
import os
import zipfile
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from kill_training import Annealed
from kill_training import model as scaled_model
from torch import Tensor, nn

from pyrovae.models.vae import VAE, build_vae
from pyrovae.training import archive
from pyrovae.training import programs as module
from pyrovae.training.checkpoint import CheckpointError, load
from pyrovae.training.checkpoints import FORMAT, FORMAT_VERSION, training_checkpoints
from pyrovae.training.fit import FitResult, TrainingStopped, fit

X = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
OPTIONS = {"batch_size": 16, "max_epochs": 5, "lr": 1e-2, "val_data": X[40:]}


def small(**options) -> VAE:
    return build_vae(5, 2, **{"hidden": (6,), "seed": 0, "noise": "optimal", **options})


def weights(vae: nn.Module) -> Tensor:
    return torch.cat([t.detach().flatten() for t in (*vae.parameters(), *vae.buffers())])


def train(vae: nn.Module, folder: Path | None = None, x: Tensor = X[:40], **more) -> FitResult:
    more = {"resume": None if folder is None else "auto", "checkpoint": folder, **OPTIONS, **more}
    return fit(vae.model, vae.guide, x, **more)


def after(count: int):
    """A `stop` that says yes once `count` steps were taken."""
    calls = []
    return lambda: calls.append(1) or len(calls) >= count


def begun(folder: Path, steps: int = 7, **more) -> None:
    with pytest.raises(TrainingStopped, match=f"stopped after {steps} steps; a checkpoint is written"):
        train(small(), folder, stop=after(steps), **more)


def same(one: FitResult, other: FitResult) -> bool:
    names = one.history.keys() - {"seconds"}
    return (
        one.history.keys() == other.history.keys()
        and all(np.array_equal(one.history[n], other.history[n]) for n in names)
        and one.best_epoch == other.best_epoch
        and one.num_steps == other.num_steps
    )


def rewrite(path: Path, change) -> None:
    """Write a checkpoint with its manifest changed, its checksums right."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    manifest = json.loads(parts["manifest.json"])
    change(manifest)
    with zipfile.ZipFile(path, "w") as file:
        for name, raw in {**parts, "manifest.json": json.dumps(manifest)}.items():
            file.writestr(name, raw)


@pytest.mark.parametrize(("trace_from", "steps"), [(0, 7), (10**9, 1), (10**9, 3), (10**9, 7)])
def test_a_run_stopped_at_any_step_ends_with_the_same_bits(tmp_path, monkeypatch, trace_from, steps) -> None:
    monkeypatch.setattr(module, "TRACE_FROM", trace_from)
    vaes = [small(), small(), small()]
    whole = train(vaes[0])
    begun(tmp_path / "a", steps)
    with pytest.raises(TrainingStopped):
        train(small(), tmp_path / "a", stop=after(4))
    resumed = train(vaes[1], tmp_path / "a")
    assert same(resumed, whole)
    assert torch.equal(weights(vaes[0]), weights(vaes[1]))
    again = train(vaes[2], tmp_path / "a")  # a run that has ended only comes back
    assert same(again, whole)
    assert torch.equal(weights(vaes[0]), weights(vaes[2]))


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_same_bits(tmp_path) -> None:
    vaes = [small(), small()]
    whole = train(vaes[0], compile=True, batch_size=20)
    begun(tmp_path, 5, compile=True, batch_size=20)
    assert same(train(vaes[1], tmp_path, compile=True, batch_size=20), whole)
    assert torch.equal(weights(vaes[0]), weights(vaes[1]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:training runs untraced", "ignore:bias was not registered")
def test_what_hooks_change_in_python_goes_on(tmp_path, monkeypatch) -> None:
    """Buffers that are replaced, numbers, frozen parameters, parameters by pyro.param alone: stopped at every epoch."""
    monkeypatch.setattr(module, "TRACE_FROM", 0)
    options = {"batch_size": 20, "max_epochs": 8, "lr": 1e-2}
    owner = Annealed()
    whole = fit(scaled_model, owner.guide, X[:, 0], **options)
    for _ in range(20):
        other = Annealed()
        more = {"checkpoint": tmp_path, "resume": "auto", "stop": after(4)}
        try:
            result = fit(scaled_model, other.guide, X[:, 0], **options, **more)
            break
        except TrainingStopped:
            continue
    assert same(result, whole)
    assert (other.factor, other.epochs) == (owner.factor, owner.epochs)
    assert torch.equal(other.scale, owner.scale)
    assert torch.equal(weights(other), weights(owner))
    assert all(torch.equal(result.params[name], value) for name, value in whole.params.items())


def test_without_a_folder_nothing_is_written_and_stop_still_stops(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TrainingStopped, match="no checkpoint was asked for"):
        train(small(), stop=after(2))
    assert not list(tmp_path.iterdir())


def test_the_last_two_are_kept_and_every_says_how_often(tmp_path) -> None:
    train(small(), tmp_path / "a" / "b", resume=None, checkpoint_every=2)
    assert [p.name for p in training_checkpoints(tmp_path / "a" / "b")] == [
        "step-000000015.pyrovae",
        "step-000000012.pyrovae",
    ]


def test_a_damaged_one_is_skipped_with_a_warning_and_none_left_is_an_error(tmp_path) -> None:
    whole = train(small())
    begun(tmp_path)
    newest, _ = training_checkpoints(tmp_path)
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="skipped a checkpoint: .*truncated or damaged"):
        assert same(train(small(), tmp_path), whole)
    for path in training_checkpoints(tmp_path):
        path.write_bytes(b"PK nonsense")
    with (
        pytest.warns(UserWarning, match="skipped"),
        pytest.raises(CheckpointError, match="none of the checkpoints"),
    ):
        train(small(), tmp_path)


def test_no_flipped_bit_goes_unseen(tmp_path) -> None:
    begun(tmp_path)
    for path in training_checkpoints(tmp_path)[1:]:
        path.unlink()
    (path,) = training_checkpoints(tmp_path)
    good, whole = path.read_bytes(), train(small())
    seen = 0
    for position in range(11, len(good), len(good) // 60):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        try:
            archive.read_archive(path, "pyrovae training checkpoint", 1, "")
        except CheckpointError:
            seen += 1
    assert seen > 40  # the rest are dates and the like in the zip's own records
    path.write_bytes(good)
    assert same(train(small(), tmp_path), whole)


@pytest.mark.parametrize(
    ("make", "more", "message"),
    [
        (lambda: small(hidden=(7,)), {}, "another model: hidden of 0 is .6. there and .7. here"),
        (lambda: small(activation="gelu"), {}, "another model: layer 0 .* is 'ReLU' there and 'GELU' here"),
        (small, {"lr": 0.02}, "another configuration: lr is 0.01 there and 0.02 here"),
        (small, {"x": X[:40] + 1e-6}, r"another data set: data\[0\] is 'float32 \[40, 5\], "),
        (small, {"val_data": None}, "another validation data set"),
    ],
)
def test_another_model_configuration_or_data_set_is_refused(tmp_path, make, more, message) -> None:
    begun(tmp_path)
    vae = make()
    before = weights(vae)
    with pytest.raises(CheckpointError, match=message):
        train(vae, tmp_path, **more)
    assert torch.equal(weights(vae), before)
    assert len(training_checkpoints(tmp_path)) == 2


def test_tensors_of_another_shape_are_named(tmp_path) -> None:
    def guide(size: int):
        def run(x: Tensor) -> None:
            shift = pyro.param("shift", torch.zeros(size))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(x + shift.sum(), 1.0))

        return run

    options = {"checkpoint": tmp_path, "max_epochs": 1}
    fit(scaled_model, guide(2), X[:, 0], **options)
    with pytest.raises(
        CheckpointError, match=r"'state/-1/shift' is float32 \[2\] where the model has float32 \[3\]"
    ):
        fit(scaled_model, guide(3), X[:, 0], resume="auto", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "format version 99 and this pyrovae reads up to 1; upgrade"),
        (lambda m: m.update(format="pyrovae checkpoint"), "not a checkpoint"),
        (lambda m: m["position"].pop("history"), "none of the checkpoints"),
        (lambda m: m["position"].update(num_steps="os.system"), "none of the checkpoints"),
        (lambda m: m["position"].update(attributes=[[0, "", "forward", [1]]]), "none of the checkpoints"),
        (lambda m: m["position"].update(seconds=math.nan), "none of the checkpoints"),
        (lambda m: m["position"]["programs"].update(routes=[[16, "by hand"]]), "none of the checkpoints"),
        (lambda m: m["tensors"][0].update(shape=[10**9]), "none of the checkpoints"),
        (lambda m: m["tensors"][0].update(name="state/0/x"), "another model: missing"),
    ],
)
@pytest.mark.filterwarnings("ignore:skipped a checkpoint")
def test_manifests_that_are_newer_or_lie_are_refused(tmp_path, change, message) -> None:
    begun(tmp_path)
    for path in training_checkpoints(tmp_path):
        rewrite(path, change)
    with pytest.raises(CheckpointError, match=message):
        train(small(), tmp_path)


def drop(tensors: dict, start: str) -> None:
    for name in [name for name in tensors if name.startswith(start)]:
        del tensors[name]


FORGERIES = {
    "an unknown module": (
        lambda m, t: m["attributes"].append([0, "no.such", "x", 1]),
        "'x' of 'no.such', which model and guide do not have",
    ),
    "an attribute of a parameter": (
        lambda m, t: m["attributes"].append([0, "decoder.net.0.weight", "x", 1]),
        "'x' of 'decoder.net.0.weight'",
    ),
    "another random state": (
        lambda m, t: t.update({"random/0": torch.zeros(3)}),
        "'random/0' is no random state",
    ),
    "no twister": (
        lambda m, t: t.update({"random/0": torch.full_like(t["random/0"], 255)}),
        "'random/0' is no random state",
    ),
    "no random state": (lambda m, t: t.pop("random/0"), "missing 'random/0'"),
    "a part of Adam": (lambda m, t: drop(t, "adam/exp_avg/"), "missing 'adam/exp_avg/"),
    "no Adam": (lambda m, t: drop(t, "adam/"), "missing 'adam/step/"),
    "NaN in Adam": (lambda m, t: t.update(filled(t, "adam/exp_avg/", math.nan)), "is out of its range"),
    "a negative square": (lambda m, t: t.update(filled(t, "adam/exp_avg_sq/", -1.0)), "is out of its range"),
    "NaN steps of Adam": (lambda m, t: t.update(filled(t, "adam/step/", math.nan)), "is out of its range"),
    "many steps": (lambda m, t: m.update(num_steps=10**9), "1000000000 steps after 2 epochs and 1 batches"),
    "many batches": (lambda m, t: m.update(totals=[1.0] * 10), "10 batches of an epoch under way that has 3"),
    "many epochs": (
        lambda m, t: m.update(history=m["history"] * 9, num_steps=55),
        "18 epochs of 5",
    ),
    "another metric": (lambda m, t: m.update(history=[{"foo": 1.0}] * 2), r"metrics \['foo'\] and not"),
    "another best epoch": (lambda m, t: m.update(best_epoch=-1), "best epoch -1 with"),
    "another best value": (lambda m, t: m.update(best_value=1.0), "with 1.0, where the history says"),
    "no best parameters": (lambda m, t: drop(t, "best/"), "missing 'best/0/decoder.net.0.weight'"),
    "a program": (lambda m, t: m["programs"].update(routes=[[3, "traced"]]), "a program for 3 rows"),
}


def filled(tensors: dict, start: str, value: float) -> dict:
    return {name: torch.full_like(t, value) for name, t in tensors.items() if name.startswith(start)}


@pytest.mark.parametrize(("change", "message"), FORGERIES.values(), ids=FORGERIES)
def test_what_no_training_wrote_is_refused_before_anything_changes(tmp_path, change, message) -> None:
    begun(tmp_path)
    path = training_checkpoints(tmp_path)[0]
    manifest, tensors = archive.read_archive(path, FORMAT, FORMAT_VERSION, "fit")
    change(manifest["position"], tensors)
    archive.write_archive(path, manifest, tensors)
    vae = small()
    before, numbers = weights(vae), [vars(part).copy() for part in vae.modules()]
    with pytest.raises(CheckpointError, match=f"is no checkpoint that training wrote: .*{message}"):
        train(vae, tmp_path)
    assert torch.equal(weights(vae), before)
    assert [vars(part) for part in vae.modules()] == numbers


class Late(nn.Module):
    """A guide of which a parameter is used from the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.spare, self.is_used = (
            nn.Parameter(torch.zeros(())),
            nn.Parameter(torch.zeros(())),
            False,
        )

    def end_epoch(self, x: Tensor) -> None:
        self.is_used = True

    def guide(self, x: Tensor) -> None:
        pyro.module("late", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + self.loc + (self.spare if self.is_used else 0.0), 1.0))


@pytest.mark.parametrize("steps", [3, 6])
def test_a_parameter_that_the_first_step_does_not_move_goes_on(tmp_path, steps) -> None:
    options = {"batch_size": 16, "max_epochs": 3, "lr": 1e-2, "compile": False}
    guides = [Late(), Late(), Late()]
    whole = fit(scaled_model, guides[0].guide, X[:, 0], **options)
    with pytest.raises(TrainingStopped):
        fit(scaled_model, guides[1].guide, X[:, 0], checkpoint=tmp_path, stop=after(steps), **options)
    assert same(
        fit(scaled_model, guides[2].guide, X[:, 0], checkpoint=tmp_path, resume="auto", **options), whole
    )
    assert torch.equal(weights(guides[2]), weights(guides[0]))
    assert weights(guides[0])[1] != 0


def test_a_file_that_unpacks_to_more_than_it_is_is_refused(tmp_path) -> None:
    path = tmp_path / "step-000000001.pyrovae"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(
            "manifest.json", json.dumps({"format": "pyrovae training checkpoint", "x": "0" * 10**6})
        )
    with (
        pytest.warns(UserWarning, match=r"manifest\.json is compressed"),
        pytest.raises(CheckpointError, match="none of"),
    ):
        train(small(), tmp_path)


def test_a_training_checkpoint_is_no_model(tmp_path) -> None:
    begun(tmp_path)
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        load(training_checkpoints(tmp_path)[0])


def test_other_versions_are_said(tmp_path) -> None:
    begun(tmp_path)
    rewrite(training_checkpoints(tmp_path)[0], lambda m: m["versions"].update(torch="0.1"))
    with pytest.warns(UserWarning, match=r"torch 0\.1, now .* may differ in the last bits"):
        train(small(), tmp_path)


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_full_disk_loses_nothing(tmp_path, monkeypatch, where) -> None:
    whole = train(small())
    begun(tmp_path, 4)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner, name = {
        "write": (archive, "_to_bytes"),
        "fsync": (os, "fsync"),
        "replace": (os, "replace"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, full)
        with pytest.raises(
            CheckpointError, match=r"could not be written \(No space left on device\)\. .* is intact"
        ):
            train(small(), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert same(train(small(), tmp_path), whole)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"resume": "yes"}, 'resume must be "auto" or None'),
        ({"checkpoint": None, "resume": "auto"}, "wants the folder"),
        ({"checkpoint_every": 0}, "checkpoint_every must be an integer of at least 1"),
        ({"resume": None}, "without checkpoints, but .* has some"),
    ],
)
def test_options_that_are_refused(tmp_path, more, message) -> None:
    begun(tmp_path)
    with pytest.raises(ValueError, match=message):
        train(small(), tmp_path, **more)
