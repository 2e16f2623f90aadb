"""The guide against reference draws, datum by datum: means, widths, correlations and distances, with error bars.

`draws` compares two sets of draws, by their `moments`, along `directions` and `sliced`; `divergences` uses log-weights.
"""

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.diagnostics.comparison.divergences import (
    divergences,
    known_evidence,
    sides,
    why_missing,
    with_truth,
)
from pyrovae.diagnostics.comparison.draws import compare_draws
from pyrovae.diagnostics.evidence import draw_weights
from pyrovae.diagnostics.reference import latent_names
from pyrovae.inference import weights
from pyrovae.results import Evidence
from pyrovae.target import Target

__all__ = ["compare", "compare_draws", "with_truth"]


def compare(
    target: Target,
    reference: xr.DataTree,
    *,
    evidence: Evidence | xr.DataTree | None = None,
    num_samples: int = 1000,
    seed: int = 0,
) -> xr.DataTree:
    """Compare the guide with reference posteriors, for every datum.

    Per datum and latent:

    - `mean_error` = (guide mean - reference mean) / reference sd, in posterior standard deviations;
    - `sd_ratio` = guide sd / reference sd: below 1 the guide is too narrow.

    Per datum, with S, S' the covariances of guide and posterior:

    - `narrowest_sd_ratio`, `widest_sd_ratio`: sd of the guide over that of the posterior along the directions where
      that is smallest and largest, found on one half of the draws and measured on the other; the true extremes are at
      least that extreme. `narrowest_direction`, `widest_direction` `[N, D]` in latents scaled to the posterior's sds;
    - `correlation_error`: root mean square, over pairs of latents, of the difference of both correlation matrices;
    - `wasserstein2`: W2 of the Gaussians of both sets of moments, in units of z; `sliced_wasserstein2`: the root of
      the mean squared W2 along 32 fixed lines, which sees more than moments;
    - `gaussian_kl_guide_posterior`, `gaussian_kl_posterior_guide`: KL of those Gaussians, their bias taken off by the
      jackknife;
    - `guide_log_weight` = E_q[log w] and `posterior_log_weight` = E_post[log w], the ends that log p(x) lies between;
      `kl_guide_posterior` = log p(x) - E_q[log w], `kl_posterior_guide` = E_post[log w] - log p(x), and their sum
      `jeffreys`, which needs no log p(x); NaN where they cannot be had, the attribute `reason` says why;
    - `khat`, the tail index of the guide's importance weights.

    Of all data: `classifier_auc`, the held-out area under the ROC curve of a quadratic logistic classifier on
    pooled standardized draws, 1/2 if it cannot tell guide from reference, with `classifier_p_value`, one-sided.

    `_std_error` holds the Monte Carlo error of both sides, that of the reference by effective sample size or by a
    jackknife over chains. The three distances of finite samples are biased upwards: `_noise` is what Monte Carlo error
    alone would make of each. Data whose reference has no verdict are compared all the same: `diagnostics.verdict` of
    the reference says which they are, and `summary` leaves them out.

    Args:
        target: the model, guide and data.
        reference: what `sample_posterior` gave for the same data.
        evidence: log p(x) of the same data: a tree of `evidence_table` with a sandwich or an exact value, or an
            `Evidence`. The first KL has its direction, as the attribute `direction`, the second the opposite one.
        num_samples: draws of the guide per datum, and the most reference draws that are weighed.
        seed: of those draws.

    Returns:
        DataTree with `guide`, `comparison` and the reference's `diagnostics`.

    Raises:
        ValueError: if the reference has no posterior draws, or those of other data or another latent space, or the
            evidence is of other data.

    Source: Gelbrich 1990 (W2); Lopez-Paz and Oquab 2017 (classifier test); Domke 2021 (the sum of both KL).

    >>> import torch, pyro, pyro.distributions as dist
    >>> from pyrovae.diagnostics.reference import sample_posterior
    >>> def model(x):
    ...     with pyro.plate("data", len(x)):
    ...         z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    ...         pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)
    >>> def guide(x):
    ...     with pyro.plate("data", len(x)):
    ...         pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))  # 1/sqrt(2) of the posterior's sd
    >>> target = Target(model, guide, torch.zeros(3, 2))
    >>> found = compare(target, sample_posterior(target, "exact"))["comparison"]
    >>> round(float(found["sd_ratio"].mean()), 1), bool(found["classifier_p_value"] < 1e-6)
    (0.7, True)
    >>> round(float(found["jeffreys"].mean()), 1)  # exact: D/2 (r + 1/r) - D for the ratio r = 1/2 of variances
    0.5
    """
    if not isinstance(reference, xr.DataTree) or "posterior" not in reference.children:
        raise ValueError("the reference has no group 'posterior': make one with sample_posterior(target)")
    # In one layout, since sums over another may differ in the last bit: a file gives back another one than memory.
    z = np.ascontiguousarray(reference["posterior"].to_dataset()["z"].values)
    if z.shape[2:] != (target.num_data, target.dim):
        raise ValueError(
            f"the reference has {z.shape[2]} data of {z.shape[3]} latent coordinates, the target {target.num_data} of "
            f"{target.dim}: compare with the reference of the same data (target.rows(index) for some of them)"
        )
    truth = known_evidence(evidence, target)
    draws, log_w = draw_weights(target, num_samples, seed=seed)
    guide = draws.z.cpu().numpy()[None]
    found = {**compare_draws(guide, z), **divergences(target, log_w, z, truth)}
    attrs = {
        "num_samples": num_samples,
        "seed": seed,
        "khat_threshold": weights.khat_threshold(num_samples),
        "reason": why_missing(target.can_score_guide, truth),
    }
    names = latent_names(target)
    made = results.group("comparison", found, attrs, latent=names)
    for name, side in sides(truth).items():
        made[name].attrs["direction"] = side
    groups = {"guide": results.group("guide", {"z": guide}, latent=names), "comparison": made}
    if "diagnostics" in reference.children:
        groups["diagnostics"] = reference["diagnostics"].to_dataset()
    return results.build_tree(groups)
