"""Small result trees that have every kind of group and of variable."""

import math

import numpy as np
import xarray as xr

from pyrovae import results
from pyrovae.results import Evidence, build_tree, evidence_group, group
from pyrovae.results.sandwich import sandwich_group, with_bias

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
    table = [evidence(), evidence("psis", khat=np.array([0.1, np.nan, np.inf]))]
    ends = [
        evidence("ais", budget=100),
        evidence("ais-reverse", value=np.array([-2.9, -3.0, -9.0]), direction="upper"),
    ]
    sandwich = sandwich_group([*table, *ends], 0.5, datum=DATUM)
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
        "evidence": with_bias(evidence_group([*table, *ends], datum=DATUM), sandwich),
        "sandwich": sandwich,
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


def groups_of(tree: xr.DataTree) -> dict[str, xr.Dataset]:
    return {name: node.to_dataset() for name, node in tree.children.items()}


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


def widely_compared_tree(verdict: list[str], auc: float = 0.7) -> xr.DataTree:
    """`comparison_tree` of three data with all that `compare` measures besides; the guide is narrowest along a[1]."""
    tree = comparison_tree(verdict, [[0.8, 1.0], [0.8, 1.0], [5.0, 5.0]])
    plain = tree["comparison"].to_dataset()
    variables = {
        "narrowest_sd_ratio": np.array([0.4, 0.6, 9.0]),
        "narrowest_sd_ratio_std_error": np.full(3, 0.02),
        "narrowest_direction": np.array([[0.1, 0.99], [0.2, 0.98], [1.0, 0.0]]),
        "correlation_error": np.array([0.3, 0.5, 9.0]),
        "correlation_error_std_error": np.full(3, 0.01),
        "correlation_error_noise": np.full(3, 0.05),
        "jeffreys": np.array([1.0, 1.2, np.nan]),
        "jeffreys_std_error": np.full(3, 0.01),
        "classifier_auc": np.array(auc),
        "classifier_auc_std_error": np.array(0.01),
        "classifier_p_value": np.array(1e-9 if auc > 0.6 else 0.3),
    }
    made = group("comparison", variables, latent=["a[0]", "a[1]"])
    return build_tree({"comparison": made.merge(plain), "diagnostics": tree["diagnostics"].to_dataset()})


def calibration_tree(pit: np.ndarray, *, rank: float = 0.5, shift: float | None = 0.5) -> xr.DataTree:
    """Calibration with these PITs `[S, D]`, this rank of log p(x | z), and this AUC of the shift, if any."""
    total, num_latents = pit.shape
    levels = np.round(np.linspace(0.01, 0.99, 99), 2)
    latent = [f"z[{i}]" for i in range(num_latents)]
    uniform = (np.arange(total) + 0.5) / total
    error = math.sqrt(1 / (12 * total))
    moments = {"mean": (pit, 1 / 2, 1 / 12), "spread": ((pit - 0.5) ** 2, 1 / 12, 1 / 180)}
    variables: dict[str, np.ndarray] = {
        "pit": pit,
        "likelihood_pit": uniform,
        "tarp_pit": uniform,
        "ecdf": (pit[None] <= levels[:, None, None]).mean(1),
        "tarp_ecdf": 0.9 * levels,
        "likelihood_ecdf": levels,
        "ecdf_lower": levels - 3 * error,
        "ecdf_upper": levels + 3 * error,
        "simulated_gap": np.full(total, 0.25) + np.linspace(-0.1, 0.1, total),
        "likelihood_pit_mean": np.array(rank),
        "likelihood_pit_mean_std_error": np.array(error),
        "likelihood_pit_mean_p_value": np.array(float(abs(rank - 0.5) < 3 * error)),
        "likelihood_pit_spread_p_value": np.array(1.0),
        "shift_mean": np.linspace(0.1, 0.5, num_latents),
        "shift_log_likelihood": np.array(-0.8),
        "shift_log_likelihood_std_error": np.array(0.1),
        "shift_auc": np.array(math.nan if shift is None else shift),
        "shift_auc_std_error": np.array(0.02),
        "shift_p_value": np.array(0.5 if shift == 0.5 else 1e-8),
    }
    for name, (values, expected, variance) in moments.items():
        z = (values.mean(0) - expected) / math.sqrt(variance / total)
        variables |= {f"pit_{name}": values.mean(0), f"pit_{name}_z": z}
        variables[f"pit_{name}_p_value"] = np.where(np.abs(z) > 4, 1e-4, 1.0)
    attrs = {"num_data": 7, "band": 0.95}
    return build_tree({"calibration": group("calibration", variables, attrs, latent=latent, level=levels)})


def ends(gap: list[float], error: float = 0.01, **changes: object) -> list[Evidence]:
    """Annealing forward at -3 for every datum, and backward above it by `gap`; `changes` are the upper end's."""
    num_data, each = len(gap), {"std_error": np.full(len(gap), error)}
    upper = {"direction": "upper", "is_reliable": np.isfinite(gap)} | each | changes
    return [
        estimate("ais", [-3.0] * num_data, **each),
        estimate("ais-reverse", list(np.array(gap) - 3.0), **upper),
    ]


def sandwich_tree(*table: Evidence, tolerance: float = 0.1, datum: list[int] | None = None) -> xr.DataTree:
    """Evidence held against its own sandwich or exact value."""
    found = sandwich_group(table, tolerance, datum=datum)
    evidence_made = evidence_group(table, datum=datum)
    if found is None:
        return build_tree({"evidence": evidence_made})
    return build_tree({"evidence": with_bias(evidence_made, found), "sandwich": found})


# {estimator: (direction, {budget: (mean bias, noise)}, gradients per unit of budget)}, in nats
BENCHMARK: dict[str, tuple[str, dict[int, tuple[float, float]], int]] = {
    "elbo": ("lower", {10: (-3.0, 0.8), 100: (-3.0, 0.25), 1000: (-3.0, 0.08)}, 0),
    "iwae": ("lower", {10: (-1.3, 0.6), 100: (-0.5, 0.4), 1000: (-0.16, 0.2), 10_000: (-0.04, 0.08)}, 0),
    "jackknife": ("none", {10: (-0.7, 0.9), 100: (-0.15, 0.5), 1000: (-0.01, 0.25)}, 0),
    "psis": ("none", {10: (-1.2, 0.6), 100: (-0.35, 0.4), 1000: (0.05, 0.15)}, 0),
    "cumulant": ("none", {10: (1.4, 3.0), 100: (2.1, 1.5), 1000: (2.2, 0.5)}, 0),
    "cubo": ("none", {10: (-0.6, 0.6), 100: (0.9, 0.5), 1000: (1.7, 0.4)}, 0),
    "single-shot": ("none", {0: (0.6, 0.0)}, 0),
    "single-shot-laplace": ("none", {0: (-0.3, 0.0)}, 9),
    "laplace": ("none", {0: (-0.12, 0.0)}, 90),
    "eubo": ("upper", {1000: (4.0, 0.1)}, 3),
    "ais": ("lower", {10: (-0.6, 0.3), 30: (-0.2, 0.15), 100: (-0.05, 0.05), 300: (-0.02, 0.02)}, 80),
    "ais-reverse": ("upper", {10: (0.5, 0.3), 30: (0.2, 0.15), 100: (0.06, 0.05), 300: (0.02, 0.02)}, 80),
}


def benchmark_tree(num_data: int = 64, seed: int = 0) -> xr.DataTree:
    """Twelve estimators of log p(x) as they come out for a guide about three nats off, most at several budgets."""
    rng = np.random.default_rng(seed)
    truth, hardness = -38 + 3 * rng.normal(size=num_data), rng.gamma(8, 1 / 8, num_data)
    table = []
    for method, (direction, budgets, gradients) in BENCHMARK.items():
        for budget, (bias, noise) in budgets.items():
            value = truth + bias * hardness + noise * rng.normal(size=num_data)
            costs = {
                "num_density_evaluations": 0 if gradients else max(budget, 1),
                "num_gradient_evaluations": gradients * max(budget, 1),
                "seconds": 0.01 + 2e-5 * num_data * (1 + 3 * gradients) * max(budget, 1),
            }
            changes = {
                "std_error": np.full(num_data, noise),
                "direction": direction,
                "budget": budget,
            } | costs
            if direction == "upper":
                changes |= {"is_approximate": np.ones(num_data, bool), "reason": "the draws come from HMC"}
            table.append(estimate(method, list(value), **changes))
    return sandwich_tree(*table)


THREE = [[0.8, 0.9], [0.7, 0.8], [5.0, 5.0]]
