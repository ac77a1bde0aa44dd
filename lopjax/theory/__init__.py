"""Activation theory: the effect of a non-linearity on correlations, rank and frozen units of Gaussian representations.

Everything except the probe `correlation_report` needs float64 and raises a `RuntimeError` without it.
"""

from lopjax.theory.correlations import CorrelationReport, correlation_report
from lopjax.theory.depth import FixedPoint, fixed_points, iterate_map
from lopjax.theory.hermite import (
    Expectation,
    Rule,
    gauss_hermite_rule,
    gaussian_expectation,
    hermite_coefficients,
    split_rule,
)
from lopjax.theory.kernels import closed_form_kernel, kernel_gap, kernel_map, kernel_series, kernel_slope
from lopjax.theory.moments import Moments, activation_moments
from lopjax.theory.rank_recovery import (
    RANK_GAIN_FORMULAS,
    activation_covariance,
    equicorrelated_effective_rank,
    exact_rank_gain,
    hard_rank,
    rank_gain,
)
from lopjax.theory.saturation import (
    FrozenBounds,
    alpha,
    alpha_gradient,
    frozen_fraction,
    frozen_fraction_bounds,
    shifted_relu_alpha,
)

__all__ = [
    "RANK_GAIN_FORMULAS",
    "CorrelationReport",
    "Expectation",
    "FixedPoint",
    "FrozenBounds",
    "Moments",
    "Rule",
    "activation_covariance",
    "activation_moments",
    "alpha",
    "alpha_gradient",
    "closed_form_kernel",
    "correlation_report",
    "equicorrelated_effective_rank",
    "exact_rank_gain",
    "fixed_points",
    "frozen_fraction",
    "frozen_fraction_bounds",
    "gauss_hermite_rule",
    "gaussian_expectation",
    "hard_rank",
    "hermite_coefficients",
    "iterate_map",
    "kernel_gap",
    "kernel_map",
    "kernel_series",
    "kernel_slope",
    "rank_gain",
    "shifted_relu_alpha",
    "split_rule",
]
