"""Norm, noise, bias and direction of a gradient's replicates, each without the bias of a finite number of them."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pyrovae.diagnostics.gradients.moments import Moments, Summary, jackknife

__all__ = ["against", "directional", "signal"]


def signal(moments: Moments, index: int) -> dict[str, float]:
    """`mean_norm`, `variance`, `snr_squared` with error bars, and `snr`, of one part."""
    (norm_squared, variance, ratio), errors = jackknife(_signal, index, moments)
    norm = _root(norm_squared)
    # By the slope of the root, bounded where the norm is lost in its error.
    slope = 2 * max(norm, float(np.sqrt(errors[0])))
    return {
        "mean_norm": norm,
        "mean_norm_std_error": float(errors[0]) / slope if slope > 0 else float(errors[0]),
        "variance": float(variance),
        "variance_std_error": float(errors[1]),
        "snr_squared": float(ratio),
        "snr_squared_std_error": float(errors[2]),
        "snr": _root(ratio),
    }


def _signal(one: Summary) -> Float[Tensor, "3"]:
    return torch.stack([one.norm_squared, one.trace, one.norm_squared / one.trace])


def directional(moments: Moments, index: int) -> dict[str, float]:
    """`directional_snr` with its error bar: u'E[g] / sd(u'g), u the direction of the mean of the first half."""
    columns = moments.parts[index].columns
    half = len(moments.counts) // 2
    counts, along, squares = (
        each[half:].numpy()
        for each in (moments.counts, moments.along[:, index], moments.along_square[:, index])
    )
    base = float(moments.direction[columns] @ moments.center[columns])

    def ratio(keep: Float[np.ndarray, " b"]) -> float:
        count = keep @ counts
        mean = keep @ along / count
        variance = (keep @ squares - count * mean**2) / (count - 1)
        return float((base + mean) / np.sqrt(max(variance, 0.0)))

    num = len(counts)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.array([ratio(1.0 - np.eye(num)[b]) for b in range(num)])
        error = float(np.sqrt((num - 1) / num * ((left - left.mean()) ** 2).sum()))
        return {"directional_snr": ratio(np.ones(num)), "directional_snr_std_error": error}


def against(moments: Moments, index: int, reference: Moments, name: str) -> dict[str, float]:
    """Bias and cosine of one part against a reference, both of them independent estimates, with error bars."""
    (bias, cosine), (bias_error, cosine_error) = jackknife(_against, index, moments, reference)
    return {
        f"{name}_bias_squared": float(bias),
        f"{name}_bias_squared_std_error": float(bias_error),
        f"{name}_bias": _root(bias),
        f"cosine_{name}": float(cosine),
        f"cosine_{name}_std_error": float(cosine_error),
    }


def _against(one: Summary, reference: Summary) -> Float[Tensor, "2"]:
    """Relative squared bias; mean cosine of a replicate to the reference, whose norm is the debiased one."""
    length = torch.where(reference.norm_squared > 0, reference.norm_squared, torch.nan)
    distance = (one.mean - reference.mean).square().sum() - one.error - reference.error
    cosine = one.unit @ reference.mean / length.sqrt()
    return torch.stack([distance / length, torch.where(one.unit.any(), cosine, torch.nan)])


def _root(square: float) -> float:
    return float(np.sqrt(max(square, 0.0))) if not np.isnan(square) else float("nan")
