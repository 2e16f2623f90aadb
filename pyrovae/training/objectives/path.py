"""Gradients of the guide through the draws alone: sticking the landing, and the doubly reparameterized estimators."""

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.training.objectives.bounds import iwae_bound
from pyrovae.training.objectives.densities import Graph
from pyrovae.training.objectives.particles import ParticleObjective, Plan

__all__ = ["STL", "DReG", "WakeSleepDReG"]


class STL(ParticleObjective):
    """The ELBO, with the path derivative as the guide's gradient: "sticking the landing" (Roeder et al. 2017).

    The parameters of log q(z | x) are held fixed, and only the draws z move: what is left out has mean zero.
    A lower bound of log p(x), whose gradient for the guide has no variance where the guide is the
    posterior. With several particles it is the mean of their ELBOs, not IWAE's gradient.

    Wants a guide that is reparameterized and can score a given z: a planar flow cannot, an inverse autoregressive
    one takes D passes. Model and guide may share parameters: the guide's part is held fixed in log q alone.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
    >>> slope = torch.tensor(0.5, requires_grad=True)  # the posterior's
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(slope * x, 0.5**0.5))
    >>> STL().differentiable_loss(model, guide, torch.ones(10)).backward()
    >>> abs(slope.grad.item()) < 1e-5
    True
    """

    graph: ClassVar[Graph] = "path"
    takes_scale: ClassVar[bool] = True

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        equal = torch.full_like(log_w, 1 / len(log_w))
        return Plan(log_w.mean(0), equal, -equal)


class DReG(ParticleObjective):
    """The importance-weighted bound with the doubly reparameterized gradient (Tucker et al. 2019).

    The loss is IWAE's, a lower bound of log p(x). With normalized weights v, the model's gradient is that of IWAE,
    sum_k v_k d log p(x, z_k); the guide's is sum_k v_k^2 (d log w_k / d z_k) d z_k with the parameters of log q held
    fixed. It has the mean of IWAE's and less noise: its signal-to-noise ratio rises like sqrt(K), and its variance
    is zero where the guide is the posterior. At K = 1 it is `STL`, and it wants what that wants.

    Parameters shared by model and guide get both parts, which together are the gradient of the bound.
    """

    graph: ClassVar[Graph] = "path"

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v = log_w.softmax(0)
        return Plan(iwae_bound(log_w), v, -v, path=v)


class WakeSleepDReG(ParticleObjective):
    """Reweighted wake-sleep with the doubly reparameterized wake update of the guide (Tucker et al. 2019).

    Gradient and loss have the mean of `WakeSleep`'s; the guide's ascends sum_k (v_k - v_k^2) (d log w_k / d z_k) d z_k
    with the parameters of log q held fixed. Wants what `STL` wants, and at least two particles. A parameter shared by
    model and guide gets the sum of two objectives' gradients.
    """

    graph: ClassVar[Graph] = "path"
    least_particles: ClassVar[int] = 2

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v = log_w.softmax(0)
        return Plan(iwae_bound(log_w), v, -v, path=1 - v)
