"""Checks of kernel maps: integrals against closed forms, Hermite series, and the expansion close to 1."""

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.activations import activation
from lopjax.theory import (
    alpha,
    closed_form_kernel,
    hermite_coefficients,
    kernel_gap,
    kernel_map,
    kernel_series,
)
from theory_checks.check import Check, Row, Size

PAPER = "arXiv 2510.00304"
PRINTED_ALPHA = {"relu": 0.5, "tanh": 0.6667, "gelu": 0.5449}


def largest(array: jax.Array) -> float:
    """Largest absolute value."""
    return float(jnp.max(jnp.abs(array)))


def _correlations(size: Size) -> jax.Array:
    near_one = 1 - jnp.array([1e-4, 1e-8, 1e-12])
    return jnp.concatenate([jnp.linspace(-1, 1, 9 if size == "small" else 101), near_one, -near_one])


def check_closed_forms(size: Size) -> list[Row]:
    """Integrate over pairs of pre-activations and compare with the formulas."""
    rho, rows = _correlations(size), []
    for name in ("relu", "erf", "sin", "exp", "identity"):
        errors = [
            largest(kernel_map(activation(name), rho, centred) - closed_form_kernel(name, rho, centred))
            for centred in (False, True)
        ]
        rows.append(Row(f"{name}: integral minus closed form", max(errors), 1e-10))
    mixed = kernel_map(activation("relu"), rho, centred=True) - closed_form_kernel("relu", rho)
    return [*rows, Row("relu: centred minus uncentred", largest(mixed), 1e-10, control=True)]


def check_hermite_series(size: Size) -> list[Row]:
    """Sum squared Hermite coefficients and compare with the integral."""
    rho, rows = _correlations(size), []
    names = ("tanh", "gelu") if size == "small" else ("tanh", "gelu", "sigmoid", "silu", "softplus", "erf")
    for name in names:
        f = activation(name)
        error = largest(kernel_map(f, rho) - kernel_series(hermite_coefficients(f, degree=300), rho))
        rows.append(Row(f"{name}: integral minus series of degree 300", error, 1e-10))
    f = activation("tanh")
    short = largest(kernel_map(f, rho) - kernel_series(hermite_coefficients(f, degree=5), rho))
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


CHECKS: tuple[Check, ...] = (
    Check(
        "activation.closed_forms",
        "The kernel map by integration equals its closed form, centred and not.",
        "Cho & Saul 2009; Williams 1998",
        check_closed_forms,
        "Kernel maps of activations without a closed form can be trusted to the printed digits; where there is a"
        " closed form, use it, as it is faster.",
    ),
    Check(
        "activation.hermite_series",
        "The kernel map is the power series with the squared Hermite coefficients.",
        "Mehler's formula; arXiv 1606.05340",
        check_hermite_series,
        "The first Hermite coefficients of an activation say how much of a correlation survives a layer: a large"
        " linear coefficient keeps it, and large higher ones destroy it.",
    ),
    Check(
        "activation.expansion",
        "Close to 1, an activation multiplies the distance of a correlation from 1 by 1 + alpha.",
        f"{PAPER}, section 4",
        check_expansion,
        "Alpha is a rate: units that are almost copies move apart by 1 + alpha per layer, or together if "
        "alpha is negative. Choose activation and pre-activation scale so that it is not negative.",
    ),
)
