"""Small result trees that have every kind of group and of variable."""

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.results import Evidence, build_tree, evidence_group, group

C, T, N, D = 2, 5, 3, 2
DATUM = [4, 7, 9]
LATENT = ["z[0]", "z[1]"]


def evidence(method: str = "iwae", **changes: object) -> Evidence:
    yes = np.ones(N, bool)
    fields: dict[str, object] = {
        "value": np.array([-3.0, -4.0, -5.0]),
        "std_error": np.full(N, 0.1),
        "direction": "lower",
        "is_unbiased_density": True,
        "is_reliable": yes,
        "is_approximate": ~yes,
        "reason": "a reason, in ünicode",
        "num_density_evaluations": 1000,
        "seconds": 1.5,
    }
    return Evidence(method=method, **(fields | changes))


def all_groups() -> dict[str, xr.Dataset]:
    """Every kind of variable: floats of two widths, integers, booleans, strings, NaN and infinity."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(C, T, N, D)).astype(np.float32)
    verdict = np.array(["ok", "no verdict", "ok"])
    return {
        "history": group(
            "history", {"elbo": rng.normal(size=4), "seconds": np.arange(4.0)}, epoch=[1, 2, 3, 4]
        ),
        "posterior": group("posterior", {"z": z}, {"num_chains": C}, datum=DATUM, latent=LATENT),
        "posterior_constrained": group("posterior_constrained", {"w": np.exp(z)}, datum=DATUM),
        "sample_stats": results.sample_stats_group(
            z[..., 0], datum=DATUM, step_size=np.ones(N), diverging=np.zeros((C, T, N), bool)
        ),
        "guide": group("guide", {"z": z[:1]}, datum=DATUM, latent=LATENT),
        "log_weights": group("log_weights", {"guide": rng.normal(size=(11, N))}, datum=DATUM),
        "evidence": evidence_group(
            [evidence(), evidence("psis", khat=np.array([0.1, np.nan, np.inf]))], datum=DATUM
        ),
        "diagnostics": group(
            "diagnostics",
            {"khat": np.array([0.1, np.nan, np.inf]), "verdict": verdict, "num_divergent": np.arange(N)},
            {"khat_threshold": 0.7},
            datum=DATUM,
        ),
        "observed_data": group("observed_data", {"x": np.arange(12.0).reshape(N, 4)}, datum=DATUM),
        "reconstruction": group("reconstruction", {"x": np.ones((5, 2, 4))}, datum=DATUM[:2]),
        "gradients": group(
            "gradients", {"variance": (("estimator", "k"), np.ones((2, 3)))}, estimator=["a", "b"]
        ),
    }


def full_tree() -> xr.DataTree:
    return build_tree(
        all_groups(), {"seed": 0, "dtype": "float32", "settings": {"lr": 0.1, "on": True}, "empty": ""}
    )


def estimate(method: str, value: list[float], **changes: object) -> Evidence:
    yes = np.ones(len(value), bool)
    fields: dict[str, object] = {
        "std_error": np.full(len(value), 0.01),
        "direction": "lower",
        "is_unbiased_density": False,
        "is_reliable": yes,
        "is_approximate": ~yes,
    }
    return Evidence(method=method, value=np.array(value), **(fields | changes))


def evidence_tree(*table: Evidence) -> xr.DataTree:
    return build_tree({"evidence": evidence_group(table)})


def comparison_tree(verdict: list[str], ratio: list[list[float]], error: float = 0.01) -> xr.DataTree:
    """Three data, two latents: errors of the mean are 0.1 and -0.3 for all."""
    num_data, latent = len(ratio), ["a[0]", "a[1]"]
    shape = (num_data, 2)
    variables = {
        "mean_error": np.tile([0.1, -0.3], (num_data, 1)),
        "mean_error_std_error": np.full(shape, 0.05),
        "sd_ratio": np.array(ratio),
        "sd_ratio_std_error": np.full(shape, error),
        "wasserstein2": np.arange(1.0, num_data + 1),
    }
    reason = ["" if word == "ok" else "R-hat above 1.01" for word in verdict]
    rhat = [1.001 if word == "ok" else 1.2 for word in verdict]
    diagnostics = {"verdict": np.array(verdict), "reason": np.array(reason), "rhat": np.array(rhat)}
    return build_tree(
        {
            "comparison": group("comparison", variables, latent=latent),
            "diagnostics": group("diagnostics", diagnostics | {"ess_bulk": np.arange(400.0, 400 + num_data)}),
        }
    )


THREE = [[0.8, 0.9], [0.7, 0.8], [5.0, 5.0]]
