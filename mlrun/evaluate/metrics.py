"""GLUE's metrics by scikit-learn and scipy, and what answering without looking would score. No torch here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np

# Those of classes; the others are of numbers.
OF_CLASSES = ("accuracy", "f1", "matthews")


def score(metric: str, given: Sequence[float] | np.ndarray, right: Sequence[float] | np.ndarray) -> float:
    """Return a metric of N answers against those that are right; nan where an answer is none.

    f1 is that of class 1. Constant answers have no correlation: theirs is 0, as that of Matthews.
    """
    given_N, right_N = np.asarray(given, np.float64), np.asarray(right, np.float64)
    if not np.isfinite(given_N).all():
        return math.nan
    from scipy import stats
    from sklearn import metrics

    if metric == "accuracy":
        return float(metrics.accuracy_score(right_N, given_N))
    if metric == "f1":
        return float(metrics.f1_score(right_N, given_N, zero_division=0.0))
    if metric == "matthews":
        return float(metrics.matthews_corrcoef(right_N, given_N))
    correlation = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
    with warnings.catch_warnings(action="ignore", category=stats.ConstantInputWarning):
        found = float(correlation(given_N, right_N).statistic)
    return 0.0 if math.isnan(found) else found


def guess(metric: str, right: Sequence[float]) -> float:
    """Return the best score of one answer to everything: of accuracy the share of the largest class."""
    answers = sorted(set(right)) if metric in OF_CLASSES else [0.0]
    return max(score(metric, [answer] * len(right), right) for answer in answers)


def majority(right: Sequence[float]) -> float:
    """Return the share of the most frequent answer."""
    return float(np.unique(np.asarray(right), return_counts=True)[1].max() / len(right))
