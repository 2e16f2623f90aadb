"""Gradients of the objectives with explicit noise: vectorized over replicates, and traced, so without a host read."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.func import functional_call

from pyrovae.compiled import draw_noise, traced, with_noise
from pyrovae.training.objectives import OBJECTIVES, make_objective

OPTIONS = {
    "miwae": {"num_outer": 2},
    "piwae": {"num_outer": 2},
    "ciwae": {"beta": 0.3},
    "renyi": {"alpha": 0.5},
}
OWN_NOISE = ("hmc",)  # that of its chains, which is no site's
NAMES = [name for name in OBJECTIVES if name not in ("elbo", "analytic_kl", *OWN_NOISE)]
K, REPLICATES = 4, 3


class Lab(nn.Module):
    """A model, a guide, an objective, and its loss as a function of the noise."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.encoder, self.decoder = nn.Linear(5, 4).double(), nn.Linear(2, 5).double()
        self.objective = make_objective(name, K, **OPTIONS.get(name, {}))
        self.x = torch.randn(3, 5, dtype=torch.float64)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 0.5).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    def forward(self, noise):
        return with_noise(self.objective.differentiable_loss, noise)(self.model, self.guide, self.x)


@pytest.mark.parametrize("name", NAMES)
def test_replicates_side_by_side_are_those_of_a_loop_and_nothing_is_read(name):
    lab = Lab(name)
    noise = draw_noise(lab.guide, lab.x.repeat(K, 1), num_replicates=REPLICATES)["z"]
    parameters = {key: value.detach() for key, value in lab.named_parameters()}
    by_loop = [torch.autograd.grad(lab({"z": each}), list(lab.parameters())) for each in noise]

    def gradients(noise):
        one = torch.func.grad(lambda parameters, each: functional_call(lab, parameters, ({"z": each},)))
        return torch.func.vmap(one, in_dims=(None, 0))(parameters, noise)

    with pyro.validation_enabled(False):
        program = traced(gradients, (noise,), (noise.flip(0),))
        assert program.route == "traced"
        for together in (gradients(noise), program(noise)):
            for mine, theirs in zip(together.values(), zip(*by_loop, strict=True), strict=True):
                torch.testing.assert_close(mine, torch.stack(theirs))
