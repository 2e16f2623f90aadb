"""Models that are no run, by a factory: what it may return, and what of that reaches the audit."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import pyrovae as pv
from pyrovae.cli.audit import audit
from pyrovae.cli.factories import call_factory

MODULE = """
import pyro, pyro.distributions as dist, torch
from pyro.infer import SVI, Trace_ELBO

def model(x):
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

def guide(x):
    slope = pyro.param("slope", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))

def trained():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    x = 2**0.5 * torch.randn(200, 2)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for _ in range(200):
        svi.step(x)
    return model, guide, x[:6], {"plate": "rows", "params": dict(pyro.get_param_store().items())}

def misspelt():
    return model, guide, torch.zeros(3, 2), {"plates": "rows", "params": {}, "num_data": 3}

def words():
    return model, guide, torch.zeros(3, 2), "rows"

def three():
    return model, guide, torch.zeros(3, 2)
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_with_options.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def test_options_are_taken_if_there_are_any() -> None:
    assert call_factory("made_with_options:three").options == {}
    assert set(call_factory("made_with_options:trained").options) == {"plate", "params"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "misspelt",
            "gives the options plates, num_data, but those of Target are plate, params, simulate, prepare",
        ),
        ("words", r"must be a dict of options of Target \(plate, params, simulate, prepare\), got str"),
    ],
)
def test_options_that_are_none_are_refused_by_name(name: str, message: str) -> None:
    with pytest.raises(typer.BadParameter, match=message):
        call_factory(f"made_with_options:{name}")


def test_a_guide_trained_by_svi_is_audited_as_it_was_trained(tmp_path: Path) -> None:
    """Its exact ELBO is 0.5 nats below log p(x) at most; where it started it is hundreds below."""
    app = typer.Typer()
    app.command()(audit)
    arguments = [
        "--model",
        "made_with_options:trained",
        "--out",
        "out",
        "--stages",
        "weights",
        "--num-samples",
        "50",
    ]
    found = CliRunner().invoke(app, arguments)
    assert found.exit_code == 0, found.output
    evidence = pv.read(tmp_path / "out" / "audit.nc")["evidence"].to_dataset()
    mean = evidence["value"].mean("datum")
    assert 0 <= float(mean.sel({"method": "iwae"}) - mean.sel({"method": "elbo"})) < 0.5


def test_help_tells_of_the_options() -> None:
    app = typer.Typer()
    app.command()(audit)
    told = " ".join(
        CliRunner(env={"COLUMNS": "150"}).invoke(app, ["--help"]).output.replace("│", " ").split()
    )
    assert "a dict of options of Target: plate, params, simulate, prepare" in told
