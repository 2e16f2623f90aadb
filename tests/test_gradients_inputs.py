"""What the laboratory is given: parameters, references and data, and what it refuses."""

import re

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gradient_models import F64, FEW, Linear, measured, row

from pyrovae import Target, gradient_statistics, sample_posterior


def function_style():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.0)) * x, 0.5**0.5))

    return model, guide, torch.linspace(-2, 2, 8)


def test_function_style_parameters_have_the_values_that_are_given():
    made = function_style()
    params = {"scale": torch.tensor(1.0), "slope": torch.tensor(0.5)}
    tree = gradient_statistics(*made, **FEW, estimators=("stl",), params=params, per_parameter=True)
    assert tree["gradients"].attrs["route"] == "vmap"
    assert row(tree, "stl", 2, "slope")["variance"] < 1e-10  # the guide is the posterior there
    assert row(tree, "stl", 2, "scale")["variance"] > 1e-3
    far = gradient_statistics(*made, **FEW, estimators=("stl",), params=params | {"slope": torch.tensor(0.0)})
    assert row(far, "stl", 2)["mean_norm"] > 0.1
    with pytest.raises(ValueError, match=r"pyro.param '(scale|slope)', for which there is no value"):
        gradient_statistics(*made, **FEW, estimators=("stl",))


def test_what_a_target_refuses_has_no_evidence_reference():
    x = torch.linspace(-1, 1, 4, dtype=F64)
    loc = torch.zeros(4, dtype=F64, requires_grad=True)
    weight = torch.tensor(1.0, dtype=F64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample(
                "x", dist.Normal(weight * pyro.sample("z", dist.Normal(x.new_tensor(0.0), 1.0)), 1.0), obs=x
            )

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    options = FEW | {"reference": "auto", "num_particles": (1,)}
    attrs = gradient_statistics(model, guide, x, estimators=("elbo",), **options)["gradients"].attrs
    assert attrs["reference"] == "none"
    assert attrs["reference_reason"].startswith("no draws of the posterior: ")
    with pytest.raises(ValueError, match=re.escape(attrs["reference_reason"][30:60])):
        gradient_statistics(model, guide, x, estimators=("elbo",), **(options | {"reference": "exact"}))


def test_references_that_are_given():
    lab = Linear()
    tree = sample_posterior(Target(lab.model, lab.guide, lab.x), "exact", num_chains=8, num_samples=50)
    found = measured(lab, "elbo", reference=tree)
    assert found["gradients"].attrs["reference"] == "given"
    assert np.isfinite(row(found, "elbo", 2, "decoder")["evidence_bias_squared"])
    tree["diagnostics"]["verdict"][0] = "no verdict"
    refused = measured(lab, "elbo", reference=tree)
    assert refused["gradients"].attrs["num_refused"] == 1
    assert "1 of 6 data have no verdict" in refused["gradients"].attrs["reference_reason"]
    assert np.isnan(row(refused, "elbo", 2, "decoder")["evidence_bias_squared"])
    with pytest.raises(ValueError, match="the reference is of 6 data .* but there are 3"):
        gradient_statistics(
            lab.model, lab.guide, lab.x[:3], **(FEW | {"reference": tree}), estimators=("elbo",)
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"estimators": ("elbow",)}, "objective must be one of"),
        ({"estimators": ()}, "one or more names, each once"),
        ({"estimators": ("elbo", "elbo")}, "one or more names, each once"),
        ({"num_particles": (0,)}, "integers of at least 1"),
        ({"num_particles": ()}, "integers of at least 1"),
        ({"num_replicates": 79}, "at least 80"),
        ({"reference": "nuts"}, "reference must be auto, none, one of"),
        ({"reference": "pyro"}, "reference must be auto"),
        ({"options": {"iwae": {}}}, "options are given for 'iwae'"),
        ({"options": {"elbo": {"beta": 0.5}}}, 'objective "elbo" takes'),
        ({"estimators": ("miwae",)}, 'objective "miwae" wants num_outer'),
        ({"compile": "yes"}, "compile must be"),
    ],
)
def test_what_is_refused(options, match):
    lab = Linear()
    with pytest.raises(ValueError, match=match):
        measured(lab, *options.pop("estimators", ("elbo",)), **options)


def test_data_that_are_refused():
    lab = Linear()
    for x in (lab.x[:0], lab.x * float("nan")):
        with pytest.raises(ValueError, match="empty|NaN"):
            gradient_statistics(lab.model, lab.guide, x, **FEW)
    with pytest.raises(ValueError, match="has 6 rows but there are 5 data"):
        gradient_statistics(lambda x: lab.model(lab.x), lambda x: lab.guide(lab.x), lab.x[:5], **FEW)
    frozen = Linear().requires_grad_(False)
    with pytest.raises(ValueError, match="neither model nor guide uses a tensor that requires a gradient"):
        measured(frozen, "elbo")
