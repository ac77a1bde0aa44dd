"""Checks of the activation theory: kernel maps, alpha, fixed points, effective and hard rank, frozen limits."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from lopjax.activations import Activation, activation
from lopjax.theory import (
    activation_covariance,
    alpha,
    alpha_gradient,
    closed_form_kernel,
    correlation_report,
    equicorrelated_effective_rank,
    exact_rank_gain,
    fixed_points,
    frozen_fraction,
    hard_rank,
    hermite_coefficients,
    iterate_map,
    kernel_gap,
    kernel_map,
    kernel_series,
    kernel_slope,
    rank_gain,
    shifted_relu_alpha,
)
from theory_checks.check import Check, Row, Size

PAPER = "arXiv 2510.00304"
PRINTED_ALPHA = {"relu": 0.5, "tanh": 0.6667, "gelu": 0.5449}
TABLE = ("relu", "tanh", "gelu", "sigmoid", "selu", "elu", "silu")


def _largest(array) -> float:
    return float(jnp.max(jnp.abs(array)))


def _correlations(size: Size) -> jax.Array:
    near_one = 1 - jnp.array([1e-4, 1e-8, 1e-12])
    return jnp.concatenate([jnp.linspace(-1, 1, 9 if size == "small" else 101), near_one, -near_one])


def check_closed_forms(size: Size) -> list[Row]:
    """Integrate over pairs of pre-activations and compare with the formulas."""
    rho, rows = _correlations(size), []
    for name in ("relu", "erf", "sin", "exp", "identity"):
        errors = [
            _largest(kernel_map(activation(name), rho, centred) - closed_form_kernel(name, rho, centred))
            for centred in (False, True)
        ]
        rows.append(Row(f"{name}: integral minus closed form", max(errors), 1e-10))
    mixed = kernel_map(activation("relu"), rho, centred=True) - closed_form_kernel("relu", rho)
    return [*rows, Row("relu: centred minus uncentred", _largest(mixed), 1e-10, control=True)]


def check_hermite_series(size: Size) -> list[Row]:
    """Sum squared Hermite coefficients and compare with the integral."""
    rho, rows = _correlations(size), []
    names = ("tanh", "gelu") if size == "small" else ("tanh", "gelu", "sigmoid", "silu", "softplus", "erf")
    for name in names:
        f = activation(name)
        error = _largest(kernel_map(f, rho) - kernel_series(hermite_coefficients(f, degree=300), rho))
        rows.append(Row(f"{name}: integral minus series of degree 300", error, 1e-10))
    f = activation("tanh")
    short = _largest(kernel_map(f, rho) - kernel_series(hermite_coefficients(f, degree=5), rho))
    return [*rows, Row("tanh: integral minus series of degree 5", short, 1e-10, control=True)]


def check_expansion(size: Size) -> list[Row]:
    """Measure 1 - kappa(1 - eps) without cancellation and compare with (1 + alpha) eps and ReLU's next term."""
    eps, rows = 1e-7, []
    for name in ("tanh", "gelu") if size == "small" else ("tanh", "gelu", "sigmoid", "silu", "exp"):
        for centred in (False, True):
            f = activation(name)
            slope = float(kernel_gap(f, eps, centred)) / eps
            what = f"{name}{', centred' if centred else ''}: (1 - kappa)/eps minus 1 + alpha"
            rows.append(Row(what, abs(slope - 1 - float(alpha(f, centred=centred))), 10 * eps))
    f, eps = activation("relu"), 1e-5
    term = (eps - float(kernel_gap(f, eps))) / eps**1.5
    rows.append(Row("relu: next term minus 2 sqrt(2)/(3 pi) eps^1.5", abs(term - 2 * 2**0.5 / (3 * np.pi)), 1e-4))
    printed = abs(float(kernel_gap(f, eps)) / eps - 1 - PRINTED_ALPHA["relu"])
    return [*rows, Row("relu: (1 - kappa)/eps minus 1 + the printed 0.5", printed, 0.01, control=True)]


def _alpha_by_trapezia(f: Activation, centred: bool) -> float:
    """Compute alpha without the library's quadrature: trapezia in numpy on both sides of 0."""
    total = np.zeros(3)
    for sign in (-1.0, 1.0):
        z = jnp.asarray(sign * np.linspace(1e-12, 12, 400_001))
        value, slope = (np.asarray(array) for array in jax.jvp(lambda x: f(x), (z,), (jnp.ones_like(z),)))
        density = np.asarray(norm.pdf(z))
        total += [abs(np.trapezoid(g * density, z)) * s for g, s in ((value, sign), (value**2, 1), (slope**2, 1))]
    # The mean needs the sign of the integral, not of the side.
    z = jnp.linspace(-12, 12, 800_001)
    mean = float(np.trapezoid(np.asarray(f(z) * norm.pdf(z)), np.asarray(z)))
    return float(total[2] / (total[1] - centred * mean**2) - 1)


def check_alpha_values(size: Size) -> list[Row]:
    """Compare alpha with an independent integral, and with what the paper prints."""
    names = ("relu", "tanh", "gelu") if size == "small" else TABLE
    rows = []
    for name in names:
        f = activation(name)
        errors = [abs(float(alpha(f, centred=c)) - _alpha_by_trapezia(f, c)) for c in (False, True)]
        rows.append(Row(f"{name}: alpha minus trapezia, both kinds", max(errors), 1e-8))
    for name, printed in PRINTED_ALPHA.items():
        nearest = min(abs(float(alpha(activation(name), centred=c)) - printed) for c in (False, True))
        rows.append(Row(f"{name}: printed alpha minus the nearer kind", nearest, 1e-4, control=True))
    return rows


def check_alpha_gradients(size: Size) -> list[Row]:
    """Differentiate alpha in scale and shift by autodiff, finite differences and ReLU's closed form."""
    step, rows = 1e-4, []
    for name in ("elu",) if size == "small" else ("elu", "tanh", "gelu", "sigmoid", "selu"):
        f = activation(name)
        by_scale, by_shift = alpha_gradient(f, 1.3, -0.4, centred=True)
        first = (alpha(f, 1.3 + step, -0.4, centred=True) - alpha(f, 1.3 - step, -0.4, centred=True)) / (2 * step)
        second = (alpha(f, 1.3, -0.4 + step, centred=True) - alpha(f, 1.3, -0.4 - step, centred=True)) / (2 * step)
        error = max(_largest(by_scale - first), _largest(by_shift - second))
        rows.append(Row(f"{name}: autodiff minus central differences", error, 1e-6))
    c = jnp.linspace(-3, 3, 13)
    closed = _largest(alpha(activation("relu"), 2.0, 2 * c) - shifted_relu_alpha(c))
    _, by_shift = alpha_gradient(activation("relu"), 1.0, -0.5)
    exact = jax.grad(shifted_relu_alpha)(-0.5)
    # Forgetting that the derivative is in z leaves out the factor scale².
    unscaled = _largest((alpha(activation("relu"), 2.0, 2 * c) + 1) / 4 - 1 - shifted_relu_alpha(c))
    return [
        *rows,
        Row("relu(2z + 2c): alpha minus its closed form", closed, 1e-10),
        Row("relu(z - 1/2): d alpha/d shift minus its closed form", _largest(by_shift - exact), 1e-9),
        Row("relu(2z + 2c): f' in its own argument", unscaled, 1e-10, control=True),
    ]


def check_poincare(size: Size) -> list[Row]:
    """Look for a negative centred alpha over scales and shifts."""
    count = 4 if size == "small" else 15
    scale, offset = jnp.meshgrid(jnp.geomspace(0.1, 10, count), jnp.linspace(-3, 3, count))
    shift = scale * offset  # the mean in standard deviations: a ReLU 15 of them below zero has no moments left
    rows = []
    for name in ("tanh", "gelu") if size == "small" else TABLE:
        least = float(jnp.min(alpha(activation(name), scale, shift, centred=True)))
        rows.append(Row(f"{name}: least centred alpha", least, -1e-12, ">="))
    line = float(alpha(activation("identity"), 2.0, 1.0, centred=True))
    uncentred = float(alpha(activation("sigmoid")))
    return [
        *rows,
        Row("identity: |centred alpha|", abs(line), 1e-12),
        Row("sigmoid: uncentred alpha", uncentred, -1e-12, ">=", control=True),
    ]


def check_fixed_points(size: Size) -> list[Row]:
    """Measure the multipliers at 1, and follow correlations over depth to where the fixed points say they go."""
    depth = 40 if size == "small" else 400

    def slope(name: str, centred: bool) -> float:
        return float(kernel_slope(activation(name), 1.0, centred))

    def after_depth(name: str) -> float:
        return float(iterate_map(lambda rho: kernel_map(activation(name), rho), jnp.array([0.5]), depth)[-1, 0])

    inner = fixed_points(activation("gelu"))[0]
    return [
        Row("sigmoid: multiplier at 1", slope("sigmoid", False), 1 - 1e-3),
        Row("softplus: multiplier at 1", slope("softplus", False), 1 - 1e-3),
        Row("relu: |multiplier at 1 - 1|", abs(slope("relu", False) - 1), 1e-9),
        Row("exp: |multiplier at 1 - 1|", abs(slope("exp", False) - 1), 1e-9),
        Row("tanh: multiplier at 1", slope("tanh", False), 1 + 1e-3, ">="),
        Row("gelu: multiplier at 1", slope("gelu", False), 1 + 1e-3, ">="),
        Row("sigmoid, centred: multiplier at 1", slope("sigmoid", True), 1 + 1e-3, ">="),
        Row(f"sigmoid: 1 - rho after {depth} layers", 1 - after_depth("sigmoid"), 1e-9),
        Row(f"tanh: rho after {depth} layers", after_depth("tanh"), 0.05),
        Row(f"gelu: distance from {inner.rho:.6f}", abs(after_depth("gelu") - inner.rho), 0.05),
        Row(f"gelu: 1 - rho after {depth} layers", 1 - after_depth("gelu"), 0.05, control=True),
    ]


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
    """Count eigenvalues behind the activation for units that span few dimensions."""
    units, span = (30, 4) if size == "small" else (50, 6)
    directions = np.random.default_rng(0).standard_normal((units, span))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    correlation = directions @ directions.T

    def rank(f: Activation) -> int:
        return hard_rank(activation_covariance(f, correlation), tolerance=1e-11)

    rows = [Row(f"before: rank of {units} units", hard_rank(correlation), span)]
    names = ("relu", "gelu") if size == "small" else ("relu", "gelu", "elu", "sigmoid")
    rows += [Row(f"{name}: rank behind it", rank(activation(name)), units, ">=") for name in names]
    square = Activation("square", lambda z: z**2)
    copies = directions[[0, *range(units - 1)]]
    behind_copies = hard_rank(activation_covariance(activation("relu"), copies @ copies.T), tolerance=1e-11)
    return [
        *rows,
        Row("z²: at most span (span + 1)/2", rank(square), span * (span + 1) // 2),
        Row("relu, one unit a copy of another: rank behind it", behind_copies, units, ">=", control=True),
        Row("identity: rank behind it", rank(activation("identity")), units, ">=", control=True),
    ]


def check_opposite_units(size: Size) -> list[Row]:
    """Count the ranks that pairs of opposite units lose behind functions of different parity."""
    pairs, span = (4, 2) if size == "small" else (8, 3)
    directions = np.random.default_rng(0).standard_normal((pairs, span))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    both = np.concatenate([directions, -directions])

    def lost(name: str) -> int:
        return 2 * pairs - hard_rank(activation_covariance(activation(name), np.clip(both @ both.T, -1, 1)), 1e-11)

    what = f"{pairs} pairs that span {span} dimensions"
    return [
        Row(f"{what}, relu: ranks lost minus {pairs - span}", abs(lost("relu") - (pairs - span)), 0),
        Row(f"{what}, sigmoid: ranks lost minus {pairs - 1}", abs(lost("sigmoid") - (pairs - 1)), 0),
        Row(f"{what}, elu: ranks lost", lost("elu"), 0),
        Row(f"{what}, relu: ranks lost, taken for 0 as f(-z) is no multiple of f(z)", lost("relu"), 0, control=True),
    ]


def check_frozen_limits(size: Size) -> list[Row]:
    """Follow alpha and the frozen fraction to the limits, and where the corollary says nothing or is false."""
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
            _largest(frozen_fraction(relu, 1.0, shifts) - norm.cdf(-shifts)),
            1e-12,
        ),
        Row("sin(30 z): alpha minus 899", abs(float(alpha(jnp.sin, 30.0)) - 899), 1e-9),
        Row("sin(30 z): P(|f'| > 0.1)", 1 - float(frozen_fraction(jnp.sin, 30.0, threshold=0.1)), 1e-2, control=True),
        Row("leaky relu: largest frozen fraction over shifts", _largest(frozen_fraction(leaky, 1.0, shifts)), 0.0),
        Row("leaky relu: largest centred alpha over shifts", _largest(alpha(leaky, 1.0, shifts, centred=True)), 10),
        Row("relu: centred alpha over shifts", _largest(alpha(relu, 1.0, shifts, centred=True)), 10, control=True),
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
        "activation.closed_forms",
        "The kernel map by integration equals its closed form, centred and not.",
        "Cho & Saul 2009; Williams 1998",
        check_closed_forms,
        "Kernel maps of activations without a closed form can be trusted to the printed digits; use the "
        "closed form where there is one, it is faster.",
    ),
    Check(
        "activation.hermite_series",
        "The kernel map is the power series with the squared Hermite coefficients.",
        "Mehler's formula; arXiv 1606.05340",
        check_hermite_series,
        "The first Hermite coefficients of an activation say how much of a correlation survives a layer: "
        "a large linear one keeps it, large higher ones destroy it.",
    ),
    Check(
        "activation.expansion",
        "Close to 1 an activation multiplies the distance of correlations from 1 by 1 + alpha.",
        f"{PAPER}, section 4",
        check_expansion,
        "Alpha is a rate: units that are almost copies move apart by 1 + alpha a layer, or together if "
        "alpha is negative. Choose activation and pre-activation scale so that it is not negative.",
    ),
    Check(
        "activation.alpha_values",
        "alpha = E f'²/E f² - 1 is 0, 0.177807, 0.072032 for ReLU, tanh, GELU: not what is printed.",
        f"{PAPER}, section 4 (corrected)",
        check_alpha_values,
        "Do not rank activations by the printed values: ReLU does not separate near-copies at all "
        "(uncentred), tanh does so more than GELU.",
    ),
    Check(
        "activation.alpha_gradients",
        "The gradient of alpha in scale and shift is exact, also across a moving kink.",
        "this library",
        check_alpha_gradients,
        "Alpha can be an objective: scale and shift of the pre-activations may be tuned for it by "
        "gradient descent, ReLU's kink included.",
    ),
    Check(
        "activation.poincare",
        "Centred alpha is never negative.",
        "Gaussian Poincaré inequality",
        check_poincare,
        "Seen by covariance, no activation can bring near-copies closer together: a centred correlation "
        "that collapses is the work of the weights.",
    ),
    Check(
        "activation.fixed_points",
        "Depth collapses correlations to 1 where alpha < 0 and away from 1 where alpha > 0.",
        "arXiv 1611.01232; arXiv 2510.00304, section 4",
        check_fixed_points,
        "A deep network at initialisation forgets the difference between inputs where 1 is the stable "
        "fixed point (sigmoid, softplus), and keeps or creates it where it is not (tanh, GELU).",
    ),
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
        "Units that are no copies of each other have full rank behind any function that is not a polynomial.",
        f"{PAPER}, section 4; Schur's product theorem",
        check_hard_rank,
        "Numerical rank recovers after one non-linear layer even from very few directions, so it is no "
        "sign of health: watch the effective rank.",
    ),
    Check(
        "activation.opposite_units",
        "m pairs of opposite units that span d dimensions lose m - d ranks if f(z) - f(-z) is a multiple of z, and"
        " m - 1 if f(z) + f(-z) is constant.",
        "Schur's product theorem on even and odd parts; this library",
        check_opposite_units,
        "ReLU, GELU, SiLU and softplus do not bring back all rank when many units come in opposite pairs. Said before:"
        " that opposite units cost rank only if f(-z) is proportional to f(z), which holds for a single pair.",
    ),
    Check(
        "activation.frozen_limits",
        "For plateauing and half-vanishing activations a diverging alpha freezes units; not in general.",
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
        "Record the polarisation of correlations during training: units that become copies or turn "
        "independent show there before dead units do.",
    ),
)
