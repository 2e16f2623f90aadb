"""What a new user does wrong first: each is refused in a sentence that says what to do."""

import jaxtyping
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli import app

X = torch.zeros(4, 2)
net = nn.Linear(2, 2)


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    pyro.module("net", net)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(net(x), 0.7).to_event(1))


def two_latents(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def no_event(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.fixture(autouse=True)
def _as_users_run_it(monkeypatch):
    """Without the checks of types that the tests add."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="module")
def target() -> pv.Target:
    return pv.Target(model, guide, X)


@pytest.mark.parametrize(
    ("model", "guide", "x", "message"),
    [
        (model, guide, X.double(), r"\[n, 2\] and dtype torch.float64: .*; .* pass x.to\(torch.float32\)"),
        (model, guide, X[:, 0], r"\[n\] and dtype torch.float32: .*; axis 0 is that of the data"),
        (no_event, guide, X, r"Shape mismatch inside plate.*; .* wants .to_event\(1\)"),
        (two_latents, guide, X, r"the same latent sites, but {'w'} is only in the model"),
        (guide, model, X, r"the same latent sites, but {'x'} is only in the guide.*swapped"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_fit_says_what_came(model, guide, x, message):
    with pytest.raises(ValueError, match=message) as caught:
        pv.fit(model, guide, x, max_epochs=1)
    assert "Trace Shapes" not in str(caught.value)
    assert caught.value.__cause__ is not None


def test_an_error_of_the_users_own_is_left_alone():
    def broken(x: Tensor) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pv.fit(broken, guide, X, max_epochs=1)
    with pytest.raises(KeyError, match="mine"):
        pv.Target(broken, guide, X)


@pytest.mark.parametrize("call", [pv.fit, pv.Target, pv.audit])
def test_a_vae_in_place_of_model_and_guide(call):
    with pytest.raises(ValueError, match=r"vae\.model.*vae\.guide"):
        call(pv.build_vae(2, 1), X)


def test_an_estimate_is_no_result_tree(target, tmp_path):
    estimate = pv.log_evidence(target, "elbo", num_samples=20)
    for call in (
        pv.summary,
        pv.evidence_summary,
        lambda e: pv.write(e, tmp_path / "e.nc"),
        lambda e: pv.write_report(e, tmp_path / "e.html"),
    ):
        with pytest.raises(
            TypeError, match="a result tree is an xarray.DataTree, got Evidence: .*evidence_table"
        ):
            call(estimate)


def test_what_is_no_target_and_no_reference(target):
    for call in (lambda: pv.log_evidence(model, "iwae"), lambda: pv.evidence_table(model)):
        with pytest.raises(TypeError, match=r"for a Target, got function: pass Target\(model, guide, x\)"):
            call()
    with pytest.raises(ValueError, match="sample_posterior"):
        pv.compare(target, target)


def test_a_word_in_place_of_a_list(target):
    with pytest.raises(ValueError, match=r"methods is a list of names, got the word 'elbo': pass \['elbo'\]"):
        pv.evidence_table(target, "elbo")
    for options in ({"stages": "weights"}, {"methods": "iwae"}):
        with pytest.raises(ValueError, match="is a list of names"):
            pv.audit(model, guide, X, **options)


def test_an_option_of_a_stage_among_the_settings():
    with pytest.raises(TypeError, match=r"no setting 'num_chains'.*pass reference={'num_chains': \.\.\.}"):
        pv.audit(model, guide, X, num_chains=5)


def test_files_of_another_kind(tmp_path):
    vae = pv.build_vae(2, 1)
    pv.save(vae, tmp_path / "vae.pyrovae")
    with pytest.raises(OSError, match=r"vae.pyrovae is no result tree.*`load`"):
        pv.read(tmp_path / "vae.pyrovae")
    with pytest.raises(TypeError, match="wants a VAE or another torch module, got OrderedDict"):
        pv.save(vae.state_dict(), tmp_path / "state.pyrovae")


def test_a_report_in_a_folder_that_is_not_there(target, tmp_path):
    tree = pv.evidence_table(target, ["elbo"], num_samples=20)
    with pytest.raises(FileNotFoundError, match="cannot write a.html: there is no folder .*absent"):
        pv.write_report(tree, tmp_path / "absent" / "a.html")


def test_data_in_memory_are_not_loaded():
    for x, kind in ((X, "Tensor"), (np.zeros((3, 2)), "ndarray")):
        with pytest.raises(TypeError, match=f"named by a string.*got {kind}: .*pass them to fit"):
            pv.data.load(x)


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("foo.csv", "csv:foo.csv"),
        ("a/b.npy", "npy:a/b.npy"),
        ("x.npz#a", "npz:x.npz#a"),
        ("y.csv.gz", "csv:y.csv.gz"),
        ("train-images-idx3-ubyte.gz", "idx:train-images-idx3-ubyte.gz"),
        ("mnist", "one of these"),
    ],
)
def test_a_file_without_its_kind(spec, meant):
    with pytest.raises(pv.data.DataError, match=f"; pass {meant}$"):
        pv.data.read(spec)


def test_ten_draws_are_too_few_for_khat(target):
    for count, reason in ((10, "10 draws are too few for k-hat"), (1000, "")):
        made = pv.log_evidence(target, "iwae", num_samples=count)
        assert made.reason.startswith("error bar unreliable: " + reason if reason else "")
        assert made.is_reliable.all() == (count > 10)


def test_repr_is_a_line():
    result = pv.fit(model, guide, X, val_data=X, max_epochs=2)
    assert repr(result).startswith("FitResult(2 epochs, best_epoch=")
    assert "val_elbo" in repr(result)
    assert repr(pv.data.load("digits")) == (
        "Split(digits: train 1257, val 270, test 270 data of event shape (8, 8))"
    )


# --- the command line ----------------------------------------------------------------------------------------


def run(*words: object) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "400"}).invoke(app, [str(word) for word in words])
    return result.exit_code, " ".join(result.output.replace("│", " ").split())


def test_the_version():
    assert run("--version") == (0, pv.__version__)


def test_data_that_the_decoder_does_not_allow_are_refused_before_training(tmp_path):
    code, text = run("train", "--decoder", "bernoulli", "--out", tmp_path / "run")
    assert code == 2
    assert "wants data of 0 and 1, got 0.25 in row 0; binarize" in text
    assert "--scaling unit" in text
    assert "Trace Shapes" not in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 12)])
def test_images_of_any_shape_train_a_convolutional_network(shape, tmp_path):
    path = tmp_path / "images.npy"
    np.save(path, np.random.default_rng(0).integers(0, 2, (40, *shape), dtype="uint8"))
    options = [
        "--decoder",
        "bernoulli",
        "--scaling",
        "none",
        "--max-epochs",
        1,
        "--channels",
        4,
        "--hidden",
        8,
    ]
    code, text = run(
        "train", "--data", f"npy:{path}", "--network", "conv", *options, "--out", tmp_path / "run"
    )
    assert code == 0, text
    vae = pv.load(tmp_path / "run" / "model.pyrovae")
    assert vae.config["image_shape"] == [1, *shape][-3:]
