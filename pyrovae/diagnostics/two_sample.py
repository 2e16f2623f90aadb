"""Whether a classifier can tell two sets of points apart: its area under the ROC curve, with a p-value."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

__all__ = ["TwoSample", "classifier_test"]

PENALTY = 1.0  # inverse strength of the L2 penalty on standardized features: scikit-learn's own default


class TwoSample(NamedTuple):
    """What a classifier that looks at held-out points says of two sets."""

    auc: float
    """Area under the ROC curve: 1/2 where it cannot tell them apart, 1 where it always can; NaN if not measured."""
    std_error: float
    p_value: float
    """Of an AUC above 1/2, one-sided."""


def classifier_test(
    first: Float[np.ndarray, "n d"],
    second: Float[np.ndarray, "m d"],
    first_groups: Int[np.ndarray, " n"],
    second_groups: Int[np.ndarray, " m"],
    *,
    num_folds: int = 5,
    seed: int = 0,
) -> TwoSample:
    """Train a logistic regression on [u, u^2, cross terms] to tell two sets apart, and score it on held-out points.

    AUC = mean over folds of P(score of a `second` point > score of a `first` point), each fold but the first scored by
    a classifier that was trained on the folds before it. If both sets come from one distribution its expectation is 1/2
    exactly, whatever the classifier is, and the folds are uncorrelated; in ordinary cross-validation they are not, and
    the error bar of their mean is too small by up to sqrt(2). It sees differences in means, variances and correlations,
    and no others. The error bar of a fold is that of DeLong, DeLong and Clarke-Pearson (1988), for independent points:
    thin chains first.

    Args:
        first, second: points; better near standard scale.
        first_groups, second_groups: points with one number are kept in one fold, such as those of a chain.
        num_folds: at least 2; all but the first are scored.
        seed: of the folds.

    Returns:
        NaN throughout if a set has fewer groups than folds, or a fold fewer than two points of either.

    Source: Lopez-Paz and Oquab 2017, with the AUC in the place of the accuracy; Dawid 1984 (folds in sequence).

    >>> a, b = np.random.default_rng(0).normal(size=(2, 2000, 2))
    >>> same, wide = (classifier_test(a, s * b, np.arange(2000), np.arange(2000)) for s in (1.0, 1.5))
    >>> same.p_value > 1e-3, wide.auc > 0.55, wide.p_value < 1e-6
    (True, True, True)
    """
    folds = [_folds(groups, num_folds, seed + i) for i, groups in enumerate((first_groups, second_groups))]
    counts = [np.bincount(fold, minlength=num_folds).min() if fold.size else 0 for fold in folds]
    if min(counts) < 2:
        return TwoSample(math.nan, math.nan, math.nan)
    sizes = len(first), len(second)
    points, is_second = np.concatenate([first, second]), np.repeat([False, True], sizes)
    fold = np.concatenate(folds)
    found = []
    for held_out in range(1, num_folds):
        train, test = fold < held_out, fold == held_out
        scores = _classifier().fit(points[train], is_second[train]).decision_function(points[test])
        found.append(_auc(scores[~is_second[test]], scores[is_second[test]]))
    auc, variance = (float(np.mean(column)) for column in zip(*found, strict=True))
    error = math.sqrt(variance / (num_folds - 1))
    z = (auc - 0.5) / error if error > 0 else math.copysign(math.inf, auc - 0.5) if auc != 0.5 else 0.0
    return TwoSample(auc, error, 0.5 * math.erfc(z / math.sqrt(2)))


def _folds(groups: np.ndarray, num_folds: int, seed: int) -> np.ndarray:
    """The fold of every point; groups are dealt out at random, whole."""
    unique, place = np.unique(groups, return_inverse=True)
    dealt = np.random.default_rng(seed).permutation(len(unique)) % num_folds
    return dealt[place] if len(unique) else np.zeros(0, int)


def _classifier() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import PolynomialFeatures, StandardScaler

    terms = PolynomialFeatures(2, include_bias=False)
    return make_pipeline(terms, StandardScaler(), LogisticRegression(C=PENALTY, max_iter=200, tol=1e-3))


def _auc(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """P(a score of `high` exceeds one of `low`), ties by half, and its variance by DeLong's placements."""
    placed_high, placed_low = _placements(low, high), 1 - _placements(high, low)
    variance = placed_high.var(ddof=1) / len(high) + placed_low.var(ddof=1) / len(low)
    return float(placed_high.mean()), float(variance)


def _placements(of: np.ndarray, at: np.ndarray) -> np.ndarray:
    """The share of `of` below each entry of `at`, ties by half."""
    of = np.sort(of)
    below = np.searchsorted(of, at, "left") + np.searchsorted(of, at, "right")
    return np.asarray(below / (2 * len(of)))
