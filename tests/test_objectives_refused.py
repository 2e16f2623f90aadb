"""What the objectives of several particles do not take, and what they say."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from zoo import linear_gaussian, other_family, subsampled

from pyrovae.training.objectives import IWAE, STL, make_objective

OPTIONS = {"miwae": {"num_outer": 2}, "renyi": {"alpha": 0.5}}


def make(name, num_particles=4, **options):
    return make_objective(name, num_particles, **OPTIONS.get(name, {}), **options)


def seeded(function, *args):
    torch.manual_seed(0)
    return function(*args)


def refuses(name, message, model=None, guide=None, error=ValueError, data=None, **options):
    specimen = linear_gaussian()
    with pytest.raises(error, match=message):
        make(name, **options).differentiable_loss(
            model or specimen.model, guide or specimen.guide, *(data or specimen.data)
        )


@pytest.mark.parametrize("name", ["stl", "dreg", "rws", "score_function", "vimco"])
def test_a_guide_that_cannot_score_is_refused_where_it_must(name):
    specimen = other_family("planar")
    refuses(
        name,
        "wants the density of TransformedDistribution at site 'z' of the guide at a given value",
        specimen.model,
        specimen.guide,
        NotImplementedError,
        specimen.data,
    )
    IWAE(3).loss(specimen.model, specimen.guide, *specimen.data)


@pytest.mark.parametrize("name", ["stl", "dreg", "iwae", "miwae", "renyi", "rws_dreg"])
def test_a_guide_without_reparameterization_is_refused_where_it_must_be_one(name):
    specimen = other_family("mixture")
    refuses(
        name,
        "wants draws with a gradient .* but MixtureSameFamily at site 'z' has none; use \"score_function_loo\"",
        specimen.model,
        specimen.guide,
        NotImplementedError,
        specimen.data,
    )
    make("rws").loss(specimen.model, specimen.guide, *specimen.data)


def test_sites_outside_the_plate_are_refused():
    specimen = linear_gaussian()

    def shared(x):
        pyro.sample("loc", dist.Normal(x.new_zeros(()), 1.0))
        specimen.guide(x)

    refuses("iwae", "site 'loc' lies outside the plate 'data'; put it inside", guide=shared)
    refuses("iwae", "site 'z' lies outside the plate 'rows'; put it inside", plate="rows")
    refuses("dreg", "no observed and no latent site inside", model=lambda x: None, guide=lambda x: None)


def test_other_latent_sites_are_refused():
    specimen = linear_gaussian()

    def more(x):
        with pyro.plate("data", len(x)):
            pyro.sample("extra", dist.Normal(x.new_zeros(()), 1.0))
        specimen.guide(x)

    def more_in_model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("extra", dist.Normal(x.new_zeros(()), 1.0))
        specimen.model(x)

    refuses("iwae", "the same latent sites, but 'extra' is only in the guide", guide=more)
    refuses("dreg", "the same latent sites, but 'extra' is only in the model", model=more_in_model)


def test_scaled_sites_are_refused_but_by_sticking_the_landing():
    specimen = linear_gaussian()
    scaled = pyro.poutine.scale(specimen.model, 0.5)
    refuses("iwae", "site 'z' of the model is scaled.*remove the scale", model=scaled)
    refuses("score_function", "site 'z' of the model is scaled", model=scaled)
    value = seeded(STL(1).loss, scaled, specimen.guide, *specimen.data)
    assert value == pytest.approx(seeded(Trace_ELBO().loss, scaled, specimen.guide, *specimen.data), rel=1e-9)


def test_shapes_that_do_not_follow_the_data_are_refused():
    specimen = linear_gaussian()
    x = specimen.data[0]

    def no_event(x):
        with pyro.plate("data", len(x), dim=-2):
            pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0))

    refuses("iwae", "dim -1 is no plate's; declare it with .to_event", guide=no_event)
    refuses("iwae", r"one row for each datum, got 2 tensors of \[3, 5\] rows", data=(x, torch.zeros(3)))
    different = subsampled("size")
    refuses(
        "iwae",
        "stands for just its data at first and for 1000 data later",
        different.model,
        lambda x, index: linear_gaussian().guide(x),
        data=different.data,
    )


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("iwae", {"num_particles": 0}, "num_particles of IWAE must be an integer of at least 1, got 0"),
        ("vimco", {"num_particles": 1}, "num_particles of VIMCO must be an integer of at least 2, got 1"),
        ("rws", {"num_particles": 1}, "at least 2, got 1"),
        ("iwae", {"chunk_size": 0}, "chunk_size of IWAE must be an integer of at least 1, got 0"),
        ("miwae", {"num_particles": 4}, 'objective "miwae" wants num_outer, got none; pass num_outer='),
        ("miwae", {"num_particles": 4, "num_outer": 3}, "must be a multiple of num_outer=3, got 4"),
        ("ciwae", {"beta": 1.5}, r"beta of CIWAE must lie between 0, .* got 1\.5"),
        ("renyi", {"alpha": 1.0}, r"alpha of Renyi must be finite and other than 1, got 1\.0"),
        ("iwae", {"alpha": 0.5}, 'objective "iwae" takes chunk_size, got alpha; leave it out'),
        ("elbo", {"beta": 0.5}, 'objective "elbo" takes no options, got beta; .* is kl_weight'),
        ("analytic_kl", {"chunk_size": 4}, "takes no options, got chunk_size"),
    ],
)
def test_options_that_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        make_objective(name, **options)
