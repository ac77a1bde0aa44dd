"""Checks of what an activation does to units: effective and hard rank, frozen units, the probe of correlations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_covariance,
    alpha,
    correlation_report,
    equicorrelated_effective_rank,
    exact_rank_gain,
    frozen_fraction,
    hard_rank,
    kernel_gap,
    rank_gain,
)
from theory_checks.activation_kernels import PAPER, largest
from theory_checks.check import Check, Row, Size


def check_effective_rank(size: Size) -> list[Row]:
    """Compare formulas for the gain of effective rank with the exact entropy of equicorrelated units."""
    units, eps = (100, 1e-6) if size == "small" else (1000, 1e-8)
    matrix = np.full((units, units), 0.9) + 0.1 * np.eye(units)
    p = np.linalg.eigvalsh(matrix) / units
    exact = float(equicorrelated_effective_rank(units, 0.1))
    rows = [Row("er by eigenvalues over closed form minus 1", abs(np.exp(-np.sum(p * np.log(p))) / exact - 1), 1e-10)]
    for name in ("tanh", "gelu"):
        f = activation(name)
        gain = jnp.log(exact_rank_gain(units, eps, kernel_gap(f, eps)))

        def error(formula: str, f: Activation = f, gain: jax.Array = gain) -> float:
            return float(abs(jnp.log(rank_gain(units, eps, alpha(f), formula)) / gain - 1))

        rows.append(Row(f"{name}: corrected ln gain, relative error", error("corrected"), 1e-4))
        rows.append(Row(f"{name}: appendix form, leading log", error("leading_log"), 1e-4, control=True))
        rows.append(Row(f"{name}: main text, 1 + alpha eps", error("linear"), 1e-4, control=True))
    return rows


def check_hard_rank(size: Size) -> list[Row]:
    """Count eigenvalues after the activation for units that span few dimensions."""
    units, span = (30, 4) if size == "small" else (50, 6)
    directions = np.random.default_rng(0).standard_normal((units, span))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    correlation = directions @ directions.T

    def rank(f: Activation) -> int:
        return hard_rank(activation_covariance(f, correlation), tolerance=1e-11)

    rows = [Row(f"before: rank of {units} units", hard_rank(correlation), span)]
    names = ("relu", "gelu") if size == "small" else ("relu", "gelu", "elu", "sigmoid")
    rows += [Row(f"{name}: rank after it", rank(activation(name)), units, ">=") for name in names]
    square = Activation("square", lambda z: z**2)
    copies = directions[[0, *range(units - 1)]]
    behind_copies = hard_rank(activation_covariance(activation("relu"), copies @ copies.T), tolerance=1e-11)
    return [
        *rows,
        Row("z²: at most span (span + 1)/2", rank(square), span * (span + 1) // 2),
        Row("relu, one unit a copy of another: rank after it", behind_copies, units, ">=", control=True),
        Row("identity: rank after it", rank(activation("identity")), units, ">=", control=True),
    ]


def check_opposite_units(size: Size) -> list[Row]:
    """Count the ranks that pairs of opposite units lose after functions of different parity."""
    pairs, span = (4, 2) if size == "small" else (8, 3)
    directions = np.random.default_rng(0).standard_normal((pairs, span))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    both = np.concatenate([directions, -directions])

    def lost(f: str | Activation) -> int:
        return 2 * pairs - hard_rank(activation_covariance(activation(f), np.clip(both @ both.T, -1, 1)), 1e-11)

    squared = Activation("squared relu", lambda z: jax.nn.relu(z) ** 2, (0.0,))
    quadratic = pairs - span * (span + 1) // 2

    what = f"{pairs} pairs that span {span} dimensions"
    return [
        Row(f"{what}, relu: ranks lost minus {pairs - span}", abs(lost("relu") - (pairs - span)), 0),
        Row(f"{what}, sigmoid: ranks lost minus {pairs - 1}", abs(lost("sigmoid") - (pairs - 1)), 0),
        Row(f"{what}, relu²: ranks lost minus {quadratic}", abs(lost(squared) - quadratic), 0),
        Row(f"{what}, elu: ranks lost", lost("elu"), 0),
        Row(f"{what}, relu²: ranks lost, taken for 0 as neither half is linear", lost(squared), 0, control=True),
        Row(f"{what}, relu: ranks lost, taken for 0 as f(-z) is no multiple of f(z)", lost("relu"), 0, control=True),
    ]


def check_frozen_limits(size: Size) -> list[Row]:
    """Follow alpha and the frozen fraction to their limits, and to where the corollary says nothing or is false."""
    scale, offset = (1e4, -6.0) if size == "small" else (1e6, -8.0)
    tanh, relu, leaky = (activation(name) for name in ("tanh", "relu", "leaky_relu"))
    shifts = jnp.linspace(-8, 8, 33)
    return [
        Row(f"tanh({scale:g} z): alpha", float(alpha(tanh, scale)), 100, ">="),
        Row(f"tanh({scale:g} z): P(|f'| > 1e-4)", 1 - float(frozen_fraction(tanh, scale)), 1e-2),
        Row(f"relu(z - {-offset:g}): alpha", float(alpha(relu, 1.0, offset)), 10, ">="),
        Row(f"relu(z - {-offset:g}): P(|f'| > 1e-4)", 1 - float(frozen_fraction(relu, 1.0, offset)), 1e-2),
        Row(
            "relu: frozen fraction minus Phi(-c)",
            largest(frozen_fraction(relu, 1.0, shifts) - norm.cdf(-shifts)),
            1e-12,
        ),
        Row("sin(30 z): alpha minus 899", abs(float(alpha(jnp.sin, 30.0)) - 899), 1e-9),
        Row("sin(30 z): P(|f'| > 0.1)", 1 - float(frozen_fraction(jnp.sin, 30.0, threshold=0.1)), 1e-2, control=True),
        Row("leaky relu: largest frozen fraction over shifts", largest(frozen_fraction(leaky, 1.0, shifts)), 0.0),
        Row("leaky relu: largest centred alpha over shifts", largest(alpha(leaky, 1.0, shifts, centred=True)), 10),
        Row("relu: centred alpha over shifts", largest(alpha(relu, 1.0, shifts, centred=True)), 10, control=True),
    ]


def check_correlation_probe(size: Size) -> list[Row]:
    """Read the probe on units whose correlations are known by construction."""
    samples = 2_000 if size == "small" else 100_000
    key, other = jax.random.split(jax.random.key(0))
    independent = jax.random.normal(key, (samples, 8))
    copies = independent[:, :1] * jnp.array([1.0, -2.0, 3.0, 0.5])
    # A shared part of weight 1/2 gives r = 1/2 to every pair.
    half = independent + jax.random.normal(other, (samples, 1))
    return [
        Row("independent units: polarisation", float(correlation_report(independent).polarisation), 0.9, ">="),
        Row("copies up to sign and scale: near_one", float(correlation_report(copies).near_one), 1.0, ">="),
        Row("copies up to sign and scale: 1 - polarisation", 1 - float(correlation_report(copies).polarisation), 1e-9),
        Row("r = 1/2: polarisation", float(correlation_report(half).polarisation), 0.9, ">=", control=True),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "activation.effective_rank",
        "er(C_f) = er(C) exp(delta [alpha (1 + L) - (1 + alpha) ln(1 + alpha)]) at leading order.",
        f"{PAPER}, section 4 and appendix A (corrected)",
        check_effective_rank,
        "How much rank an activation adds to nearly copied units can be computed before training; the "
        "linear formula in the paper's main text has the wrong size and should not be used.",
    ),
    Check(
        "activation.hard_rank",
        "Units no two of which are copies or opposites of each other have full rank after any function that is not a"
        " polynomial.",
        f"{PAPER}, section 4; Schur's product theorem",
        check_hard_rank,
        "Numerical rank recovers after one non-linear layer even from very few directions, so it is not a sign of"
        " health: watch the effective rank instead.",
        "This page used to ignore opposite units, many pairs of which do cost rank: see opposite_units.",
    ),
    Check(
        "activation.opposite_units",
        "m pairs of opposite units in general position in d dimensions lose m - C(d + k - 1, k) ranks, if that is"
        " positive, where the even or the odd part of f is a polynomial of degree k: m - d behind ReLU (k = 1), m - 1"
        " behind a sigmoid (0), m - d (d + 1)/2 behind ReLU² (2).",
        "Schur's product theorem on even and odd parts; this library",
        check_opposite_units,
        "ReLU, GELU, SiLU and softplus do not restore all rank when many units come in opposite pairs. This page first"
        " said that opposite units cost rank only if f(-z) is proportional to f(z), which holds for a single pair; and"
        " then that they cost none where f(z) - f(-z) is not linear and f(z) + f(-z) is not constant, which ReLU²"
        " refutes.",
    ),
    Check(
        "activation.frozen_limits",
        "For plateauing and half-vanishing activations a diverging alpha freezes units, but not in general.",
        f"{PAPER}, corollary in section 4 (restricted)",
        check_frozen_limits,
        "Growing pre-activations (tanh) or falling biases (ReLU) trade plasticity for separation: when "
        "alpha diverges there, units freeze. A large alpha alone does not mean frozen units.",
    ),
    Check(
        "activation.correlation_probe",
        "The probe reads 1 where every pairwise |correlation| is 0 or 1.",
        f"{PAPER}, section 5",
        check_correlation_probe,
        "Record the polarisation of correlations during training: units that become copies or become independent show"
        " up there before dead units do.",
    ),
)
