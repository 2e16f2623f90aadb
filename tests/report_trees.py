"""A result tree that fills most of a report, with words of the caller's in every place that a person may name."""

import numpy as np
import xarray as xr
from trees import benchmark_tree

from pyrovae.results import build_tree, group

N, D = 12, 3


def gaps_group(
    approximation: float = 2.0, amortization: float = 0.5, *, spread: float = 0.1, **changes: object
) -> xr.Dataset:
    """Gaps of `N` data around these means, with Monte Carlo errors that are a tenth of their spread."""
    rng = np.random.default_rng(1)
    near, far = (mean + spread * rng.standard_normal(N) for mean in (approximation, amortization))
    values = {
        "log_evidence": np.zeros(N),
        "elbo": -near - far,
        "elbo_diagonal": -near,
        "elbo_full": -near / 4,
    }
    values |= {"approximation_gap": near, "amortization_gap": far, "inference_gap": near + far}
    errors = {f"{name}_std_error": np.full(N, spread / 10) for name in values}
    words = {"verdict": np.full(N, "ok"), "reason": np.full(N, "", "U64")} | changes
    arrays = {name: (("datum",), array) for name, array in {**values, **errors, **words}.items()}
    return group("gaps", arrays, {"family": "diagonal"})


def terms_group(
    mean_variance: float = 1.0, marginal_kl: float = 0.01, information: float = 1.0
) -> xr.Dataset:
    """Terms of the ELBO of `N` data; the last latent unit is idle where its variance says so."""
    ones = np.ones(N)
    variables = {"elbo": -3 * ones, "reconstruction": -2 * ones, "kl_prior": ones}
    per_datum = {name: (("datum",), values) for name, values in variables.items()}
    variance = np.array([1.0, 1.0, mean_variance])
    per_latent = {"kl_per_latent": ones[:D], "mean_variance": variance, "is_active": variance > 0.01}
    single = {"mutual_information": information, "marginal_kl": marginal_kl, "log_num_data": np.log(64.0)}
    single |= {"mean_kl_prior": information + marginal_kl}
    single |= {f"{name}_std_error": 0.005 for name in ("mutual_information", "marginal_kl", "mean_kl_prior")}
    arrays = {name: (("latent",), values) for name, values in per_latent.items()}
    scalars = {name: ((), np.array(value)) for name, value in single.items()}
    return group("decomposition", {**per_datum, **arrays, **scalars}, latent=[f"z[{i}]" for i in range(D)])


def report_groups(word: str = "z", *, correlation: float = 0.9, width: float = 0.8) -> dict[str, xr.Dataset]:
    """A correlated reference posterior, a narrow guide without correlations, evidence, images; two data refused."""
    rng = np.random.default_rng(0)
    latent, ok = [f"{word}[{i}]" for i in range(D)], np.arange(N) > 1
    draws = rng.standard_normal((4, 250, N, D))
    draws[..., 1] = correlation * draws[..., 0] + np.sqrt(1 - correlation**2) * draws[..., 1]
    shape = (N, D)
    compared = {"mean_error": np.full(shape, 0.5), "mean_error_std_error": np.full(shape, 0.01)}
    compared |= {
        "sd_ratio": width + 0.01 * rng.standard_normal(shape),
        "sd_ratio_std_error": np.full(shape, 0.01),
    }
    reason = np.where(ok, "", f"R-hat of {word} above 1.01")
    diagnostics = {
        "verdict": np.where(ok, "ok", "no verdict"),
        "reason": reason,
        "khat": np.linspace(0.1, 1.1, N),
    }
    diagnostics |= {"ess_bulk": np.full(N, 900.0), "rhat": np.where(ok, 1.001, 1.2)}
    images = rng.uniform(size=(N, 64))
    bench = benchmark_tree(N)
    return {
        "history": group("history", {"elbo": np.arange(40.0), "val_elbo": np.arange(40.0) - 1}),
        "posterior": group("posterior", {"z": draws}, {"note": word}, latent=latent),
        "guide": group("guide", {"z": width * rng.standard_normal((1, 900, N, D))}, latent=latent),
        "prior": group("prior", {"z": rng.standard_normal((1, 9, N, D))}, latent=latent),
        "diagnostics": group("diagnostics", diagnostics, {"khat_threshold": 0.7}),
        "comparison": group("comparison", compared | {"wasserstein2": np.arange(N) / N}, latent=latent),
        "evidence": bench["evidence"].to_dataset(),
        "sandwich": bench["sandwich"].to_dataset(),
        "decomposition": terms_group().assign_coords(latent=latent),
        "gaps": gaps_group(),
        "observed_data": group("observed_data", {"x": images}),
        "reconstruction": group("reconstruction", {"x": rng.uniform(size=(4, N, 64))}),
        "prior_predictive": group("prior_predictive", {"x": rng.uniform(size=(4, 64))}),
    }


def report_tree(word: str = "z") -> xr.DataTree:
    stages = {"calibration": {"status": "skipped", "reason": f"no {word}"}}
    attrs = {"seed": 0, "path": f"/data/{word}", "stages": stages, "notes": [f"left out {word}"]}
    return build_tree(report_groups(word), attrs)
