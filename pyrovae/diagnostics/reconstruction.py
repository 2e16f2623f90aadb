"""Reconstructions of every datum: draws, their spread, and log p(x | z) averaged over 1 to many draws of z."""

import math

import numpy as np
import xarray as xr
from torch import Tensor

from pyrovae import results
from pyrovae.seeding import block_seed, seeded
from pyrovae.target import Target

__all__ = ["draw_counts", "reconstruct"]

MAX_ROWS = 1 << 14  # (draw, datum) pairs that the model sees at once


def reconstruct(target: Target, num_samples: int = 1000, *, num_kept: int = 16, seed: int = 0) -> xr.DataTree:
    """Reconstruct every datum from draws of the guide, and say how many draws are enough.

    A reconstruction is the mean of p(x | z) at one z from q(z | x). With K draws, E_q[log p(x | z)], the first term of
    the ELBO, is estimated without bias by the average of log p(x | z_k), with standard error sd / sqrt(K).

    Average the log-likelihoods, never the images: the mean of K reconstructions is the reconstruction of no z. It is
    smoother than any of them, so log p(x | mean image) exceeds the average of log p(x | z_k) wherever log p is concave
    in the image (Jensen), as for a Gaussian decoder; it flatters the model and hides what the guide does not know. The
    spread of the draws shows just that.

    Args:
        target: the model, guide and data.
        num_samples: the largest number of draws per datum, at least 2.
        num_kept: reconstructions that are kept per datum.
        seed: same seed, machine and versions, same numbers.

    Returns:
        DataTree with `observed_data` and `reconstruction`: one variable a site (draw, datum, ...), the reconstructions
        of the first draws; `spread` (datum), the root mean square over coordinates of the standard deviation over
        the kept draws of the first site; `log_likelihood` and `log_likelihood_std_error` (count, datum), nats, at
        `count` = 1, 2, 5, 10, ... draws, each the average of the first ones.

    Raises:
        ValueError: fewer than 2 samples, or fewer than 2 to keep.

    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).to_event(1))
    >>> made = reconstruct(Target(model, guide, torch.zeros(3, 2)), 100)["reconstruction"]
    >>> made["count"].values.tolist()
    [1, 2, 5, 10, 20, 50, 100]
    """
    if num_samples < 2 or num_kept < 2:
        raise ValueError(
            f"num_samples and num_kept must be at least 2, so that there is a spread, but are {num_samples} and "
            f"{num_kept}: raise them"
        )
    kept, log_likelihood = _draw(target, num_samples, min(num_kept, num_samples), seed)
    counts = draw_counts(num_samples)
    average = log_likelihood.cumsum(0)[counts - 1] / counts[:, None]
    error = log_likelihood.std(0, ddof=1) / np.sqrt(counts)[:, None]
    first = next(iter(kept.values())) if kept else np.zeros((2, target.num_data, 1))
    spread = np.sqrt(first.var(0, ddof=1).reshape(target.num_data, -1).mean(1))
    variables = {
        **kept,
        "spread": spread,
        "log_likelihood": (("count", "datum"), average),
        "log_likelihood_std_error": (("count", "datum"), error),
    }
    observed = dict(zip(target.argument_names(), (x.cpu().numpy() for x in target.data), strict=True))
    attrs = {"num_samples": num_samples, "seed": seed}
    groups = {
        "observed_data": results.group("observed_data", observed),
        "reconstruction": results.group("reconstruction", variables, attrs, count=counts),
    }
    return results.build_tree(groups)


def draw_counts(num_samples: int) -> np.ndarray:
    """1, 2, 5, 10, 20, ... up to `num_samples`, which is the last.

    >>> draw_counts(30).tolist()
    [1, 2, 5, 10, 20, 30]
    """
    powers = range(math.floor(math.log10(num_samples)) + 1)
    counts = [m * 10**p for p in powers for m in (1, 2, 5) if m * 10**p < num_samples]
    return np.array([*counts, num_samples])


def _draw(
    target: Target, num_samples: int, num_kept: int, seed: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The first reconstructions of every observed site, and log p(x | z) `[K, N]`, a block of data at a time."""
    kept, log_likelihood = [], []
    for block, some in enumerate(target.split(max(1, MAX_ROWS // num_samples))):
        with seeded(block_seed(seed, block)):
            z, _ = some.sample_guide(num_samples)
        log_likelihood.append(_numpy(some.log_terms(z).log_likelihood.double()))
        kept.append({site: _numpy(mean) for site, mean in some.expected_data(z[:num_kept]).items()})
    return (
        {site: np.concatenate([part[site] for part in kept], 1) for site in kept[0]},
        np.concatenate(log_likelihood, 1),
    )


def _numpy(value: Tensor) -> np.ndarray:
    return value.detach().cpu().numpy()
