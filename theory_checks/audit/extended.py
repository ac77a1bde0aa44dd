"""Activation functions and losses in numpy's long double, with first and second derivatives free of cancellation.

Nothing here calls lopjax: 64 bits of mantissa against the 53 of the numbers that are audited, and another way to write
every derivative, such as 1/cosh² for that of tanh and exp(z) for that of the ELU.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Real = Any  # a NumPy long double, or an array of them
"""An array of `numpy.longdouble`."""

ONE = np.longdouble(1)
PI = np.longdouble("3.14159265358979323846264338327950288")
SELU_ALPHA = np.longdouble("1.6732632423543772848170429916717")
SELU_SCALE = np.longdouble("1.0507009873554804934193349852946")


def _logistic(z: Real) -> Real:
    """1/(1 + exp(-z)), small values with full relative precision."""
    small = np.exp(-np.abs(z))
    return np.where(z >= 0, ONE / (1 + small), small / (1 + small))


def _tanh(z: Real) -> tuple[Real, Real, Real]:
    small = np.exp(-2 * np.abs(z))
    slope = 4 * small / (1 + small) ** 2
    return np.tanh(z), slope, -2 * np.tanh(z) * slope


def _sigmoid(z: Real) -> tuple[Real, Real, Real]:
    up, down = _logistic(z), _logistic(-z)
    return up, up * down, up * down * (down - up)


def _softplus(z: Real) -> tuple[Real, Real, Real]:
    up, down = _logistic(z), _logistic(-z)
    return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z))), up, up * down


def _silu(z: Real) -> tuple[Real, Real, Real]:
    up, down = _logistic(z), _logistic(-z)
    return z * up, up * (1 + z * down), up * down * (2 + z * (down - up))


def _upper_tail(x: Real) -> Real:
    """erfc(x) for x >= 0: a Taylor series below 2.5, a continued fraction above."""
    below = np.minimum(x, np.longdouble(2.5))
    term, total = below.copy(), below.copy()
    for k in range(1, 90):
        term = -term * below**2 / k
        total = total + term / (2 * k + 1)
    series = 1 - 2 / np.sqrt(PI) * total
    above = np.maximum(x, np.longdouble(2.5))
    fraction = above.copy()
    for k in range(160, 0, -1):
        fraction = above + (np.longdouble(k) / 2) / fraction
    return np.where(x < 2.5, series, np.exp(-(above**2)) / (np.sqrt(PI) * fraction))


def _gelu(z: Real) -> tuple[Real, Real, Real]:
    tail = _upper_tail(np.abs(z) / np.sqrt(2 * ONE)) / 2
    cumulative = np.where(z >= 0, 1 - tail, tail)
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * PI)
    return z * cumulative, cumulative + z * density, density * (2 - z**2)


def _elu(z: Real, alpha: Real = ONE, scale: Real = ONE) -> tuple[Real, Real, Real]:
    below, is_above = np.exp(np.minimum(z, 0)), z > 0
    value = np.where(is_above, z, alpha * np.expm1(np.minimum(z, 0)))
    return (
        scale * value,
        scale * np.where(is_above, ONE, alpha * below),
        scale * np.where(is_above, 0 * ONE, alpha * below),
    )


def _straight(below: float) -> Callable[[Real], tuple[Real, Real, Real]]:
    low = np.longdouble(below)

    def function(z: Real) -> tuple[Real, Real, Real]:
        slope = np.where(z > 0, ONE, low)
        return slope * z, slope, np.zeros_like(z)

    return function


FUNCTIONS: dict[str, Callable[[Real], tuple[Real, Real, Real]]] = {
    "tanh": _tanh,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "silu": _silu,
    "gelu": _gelu,
    "elu": _elu,
    "selu": lambda z: _elu(z, SELU_ALPHA, SELU_SCALE),
    "relu": _straight(0.0),
    "leaky_relu": _straight(0.01),
    "sin": lambda z: (np.sin(z), np.cos(z), -np.sin(z)),
}
"""`z -> (f, f', f'')` by the library's names."""

KINKED = ("relu", "leaky_relu", "elu", "selu")
"""Those with a kink at 0."""


def cross_entropy_signal(logits: Real, labels: np.ndarray, smoothing: float = 0.0) -> Real:
    """dL/d(logits) of the mean softmax cross-entropy: `sum_k y_k p_i - y_i`, without `p - 1` for the label."""
    samples, classes = logits.shape
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    total = shifted.sum(axis=1, keepdims=True)
    probabilities = shifted / total
    others = np.stack([np.delete(shifted, k, axis=1).sum(axis=1) for k in range(classes)], axis=1) / total
    is_label = np.eye(classes, dtype=bool)[labels]
    plain = np.where(is_label, -others, probabilities)
    uniform = probabilities - ONE / classes
    weight = np.longdouble(smoothing)
    return ((1 - weight) * plain + weight * uniform) / samples


def squared_error_signal(outputs: Real, targets: np.ndarray) -> Real:
    """dL/d(outputs) of half the squared distance, averaged over samples."""
    return (outputs - targets.astype(np.longdouble)) / len(outputs)


def hinge_signal(outputs: Real, labels: np.ndarray) -> Real:
    """dL/d(outputs) of the mean of `sum_k max(0, 1 - s_k y_k)`, s = +1 for the label and -1 otherwise."""
    sign = np.where(np.eye(outputs.shape[1], dtype=bool)[labels], ONE, -ONE)
    return np.where(1 - sign * outputs > 0, -sign, 0 * ONE) / len(outputs)
