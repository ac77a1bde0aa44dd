"""Checks of alpha: its values and gradients, its sign, and where depth takes correlations."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from lopjax.activations import Activation, activation
from lopjax.theory import (
    alpha,
    alpha_gradient,
    fixed_points,
    iterate_map,
    kernel_map,
    kernel_slope,
    shifted_relu_alpha,
)
from theory_checks.activation_kernels import PAPER, PRINTED_ALPHA, largest
from theory_checks.check import Check, Row, Size

TABLE = ("relu", "tanh", "gelu", "sigmoid", "selu", "elu", "silu")


def _alpha_by_trapezia(f: Activation, centred: bool) -> float:
    """Compute alpha without the library's quadrature: trapezia in numpy on both sides of 0."""
    total = np.zeros(3)
    for sign in (-1.0, 1.0):
        z = jnp.asarray(sign * np.linspace(1e-12, 12, 400_001))
        value, slope = (np.asarray(array) for array in jax.jvp(lambda x: f(x), (z,), (jnp.ones_like(z),)))
        density = np.asarray(norm.pdf(z))
        total += [abs(np.trapezoid(g * density, z)) * s for g, s in ((value, sign), (value**2, 1), (slope**2, 1))]
    # The mean needs the sign of the integral, not that of the side.
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
        error = max(largest(by_scale - first), largest(by_shift - second))
        rows.append(Row(f"{name}: autodiff minus central differences", error, 1e-6))
    c = jnp.linspace(-3, 3, 13)
    closed = largest(alpha(activation("relu"), 2.0, 2 * c) - shifted_relu_alpha(c))
    _, by_shift = alpha_gradient(activation("relu"), 1.0, -0.5)
    exact = jax.grad(shifted_relu_alpha)(-0.5)
    # Forgetting that the derivative is in z leaves out the factor scale².
    unscaled = largest((alpha(activation("relu"), 2.0, 2 * c) + 1) / 4 - 1 - shifted_relu_alpha(c))
    return [
        *rows,
        Row("relu(2z + 2c): alpha minus its closed form", closed, 1e-10),
        Row("relu(z - 1/2): d alpha/d shift minus its closed form", largest(by_shift - exact), 1e-9),
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


CHECKS: tuple[Check, ...] = (
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
        "As measured by covariance, no activation can bring near-copies closer together: a collapse of centred"
        " correlations is due to the weights.",
    ),
    Check(
        "activation.fixed_points",
        "Depth collapses correlations to 1 where alpha < 0 and away from 1 where alpha > 0.",
        "arXiv 1611.01232; arXiv 2510.00304, section 4",
        check_fixed_points,
        "A deep network at initialisation forgets the difference between inputs if 1 is the stable fixed point"
        " (sigmoid, softplus), and keeps or creates it if not (tanh, GELU).",
    ),
)
