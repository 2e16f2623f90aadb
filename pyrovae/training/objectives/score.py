"""Gradients without reparameterization: score functions, VIMCO, wake-sleep, and what happens without any of them."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.training.objectives.bounds import iwae_bound
from pyrovae.training.objectives.densities import Graph
from pyrovae.training.objectives.particles import ParticleObjective, Plan

__all__ = ["VIMCO", "Detached", "ScoreFunction", "ScoreFunctionLOO", "WakeSleep"]


class ScoreFunction(ParticleObjective):
    """The ELBO, with the score-function gradient 1/K sum_k log w_k d log q(z_k | x) for the guide, datum by datum.

    A lower bound of log p(x), unbiased for its gradient and noisy (Williams 1992; Ranganath et al. 2014). It wants no
    gradient of z: discrete latents will do. The guide must be able to score a given z.
    """

    graph: ClassVar[Graph] = "score"

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        equal = torch.full_like(log_w, 1 / len(log_w))
        return Plan(log_w.mean(0), equal, equal * log_w)


class ScoreFunctionLOO(ParticleObjective):
    """The score-function gradient of the ELBO, each particle's log w less the mean of the others' (Kool et al. 2019).

    1/K sum_k (log w_k - 1/(K - 1) sum_{j != k} log w_j) d log q(z_k | x): unbiased, since a baseline does not depend
    on its own particle; it is the gradient of the log-variance loss too (VarGrad, Richter et al. 2020). Zero where the
    guide is the posterior. At least two particles.
    """

    graph: ClassVar[Graph] = "score"
    least_particles: ClassVar[int] = 2

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        equal = torch.full_like(log_w, 1 / len(log_w))
        return Plan(log_w.mean(0), equal, (log_w - log_w.mean(0)) / (len(log_w) - 1))


class VIMCO(ParticleObjective):
    """The importance-weighted bound with a score-function gradient and leave-one-out baselines (Mnih & Rezende 2016).

    The loss is IWAE's, a lower bound of log p(x). The guide's gradient is sum_k (L - L_{-k} - v_k) d log q(z_k | x),
    where L_{-k} is the bound with w_k replaced by the geometric mean of the others: the mean of IWAE's
    gradient, without reparameterization. The guide must be able to score a given z. At least two particles.
    """

    graph: ClassVar[Graph] = "score"
    least_particles: ClassVar[int] = 2

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v, bound = log_w.softmax(0), iwae_bound(log_w)
        return Plan(bound, v, bound - _without_each(log_w) - v)


def _without_each(log_w: Float[Tensor, "k n"]) -> Float[Tensor, "k n"]:
    """The bound with each weight in turn replaced by the geometric mean of the others."""
    none = torch.full_like(log_w[:1], -math.inf)
    # Sums from either side: to subtract a weight from the sum of all would cancel where it is the largest.
    before = torch.cat([none, log_w.logcumsumexp(0)[:-1]])
    after = torch.cat([log_w.flip(0).logcumsumexp(0).flip(0)[1:], none])
    others = (log_w.sum(0) - log_w) / (len(log_w) - 1)
    return torch.logaddexp(torch.logaddexp(before, after), others) - math.log(len(log_w))


class WakeSleep(ParticleObjective):
    """Reweighted wake-sleep with both wake updates (Bornschein & Bengio 2015; Le et al. 2019): two objectives.

    The model ascends sum_k v_k d log p(x, z_k), IWAE's gradient, and the guide sum_k v_k d log q(z_k | x), an
    estimate of the gradient of -KL(posterior || guide), biased by 1/K. The loss reported is IWAE's, a lower bound of
    log p(x), which the guide's update need not raise. A parameter shared by model and guide gets the sum of the two.
    It wants no gradient of z. At least two particles: at one, the guide's gradient has mean zero.
    """

    graph: ClassVar[Graph] = "score"
    least_particles: ClassVar[int] = 2

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        v = log_w.softmax(0)
        return Plan(iwae_bound(log_w), v, v)


class Detached(ParticleObjective):
    """The ELBO as a plain average over draws that are constants: the guide's gradient is exactly zero.

    To show why reparameterization or a score function is wanted: the average 1/K sum_k f(z_k) of numbers does not know
    that the z_k came from the guide. The loss is right, a lower bound of log p(x); the model trains, and the guide
    never moves.
    """

    graph: ClassVar[Graph] = "score"

    def plan(self, log_w: Float[Tensor, "k n"]) -> Plan:
        return Plan(log_w.mean(0), torch.full_like(log_w, 1 / len(log_w)), torch.zeros_like(log_w))
