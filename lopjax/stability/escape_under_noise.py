"""The distribution of the escape time of noisy clones, for Gaussian deviations at a critical point of the base."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key

from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.promotion import standard_promotion

# The tail is a contour integral in the complex plane, computed by the trapezoidal rule, which converges exponentially
# there. These are the nodes on one half of the contour, their spacing, and the tangent of the angle at which the
# contour bends left of the vertical, where the integrand decays.
_NODES, _STEP, _TILT = 80, 0.08, 0.5
# Number of steps whose probabilities are computed at once.
_BLOCK = 512


class DecayingNoise(NamedTuple):
    """Gradient descent with decaying noise: `theta <- theta - eta (grad L + kappa theta) + sigma gamma^t xi_t`.

    Attributes:
        learning_rate: eta.
        scale: sigma, the standard deviation of the noise on every coordinate in the first step, in units of parameters
            (the same for all of them: `lopjax.optim.noisy_sgd` is relative to the gradient of each array instead).
        decay: gamma in [0, 1], per step.
        weight_decay: kappa.
    """

    learning_rate: float
    scale: float
    decay: float = 1.0
    weight_decay: float = 0.0


@takes_numbers(eigenvalues=(0, 1), num_steps=(0, 1))
def noise_variances(
    eigenvalues: ArrayLike | Sequence[float], num_steps: ArrayLike | Sequence[int], noise: DecayingNoise
) -> np.ndarray:
    """Variance of every normal component after some steps that start on the manifold, under decaying noise.

    At a critical point the component along an eigenvector of the normal Hessian is Gaussian with mean 0 and

        s_k²(T) = sum_(t<T) sigma² gamma^(2t) f_k^(2(T-1-t)),    f_k = 1 - eta (lambda_k + kappa).

    Args:
        eigenvalues: lambda_k of the loss without decay, (pairs,).
        num_steps: T, any shape.
        noise: what kind.

    Returns:
        `(*shape of num_steps, pairs)`, float64; infinite beyond the largest double.

    Raises:
        ValueError: a negative scale, number of steps or learning rate; a decay of the noise outside [0, 1].

    Example:
        >>> noise_variances([0.0], [0, 1, 2], DecayingNoise(0.1, 2.0, decay=0.5))[:, 0].tolist()
        [0.0, 4.0, 5.0]
    """
    _check_noise(noise)
    steps = np.asarray(num_steps, np.float64)[..., None]
    if not (np.isfinite(steps) & (steps >= 0)).all():
        raise ValueError(f"num_steps={num_steps}: must be finite and at least 0")
    rates = np.asarray(eigenvalues, np.float64) + noise.weight_decay
    # ln f² and ln gamma²; -inf where a factor is 0, so that only the first or the last term of the sum survives.
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        growth = 2 * np.log(np.abs(1 - noise.learning_rate * rates))
        fading = np.full_like(growth, 2 * np.log(noise.decay))
        slower, gap = np.maximum(growth, fading), np.abs(growth - fading)
        # The geometric series, summed from its largest term down.
        series = np.where(gap > 0, np.expm1(-steps * gap) / np.expm1(-gap), steps)
        series = np.where(np.isinf(slower), 1.0, np.where(np.isnan(series), 1.0, series))
        leading = np.where(steps > 1, (steps - 1) * slower, 0.0)
        return np.where(steps > 0, noise.scale**2 * np.exp(leading) * np.where(steps > 1, series, 1.0), 0.0)


def _check_noise(noise: DecayingNoise) -> None:
    if not (noise.learning_rate > 0 and noise.scale >= 0 and 0 <= noise.decay <= 1):
        raise ValueError(f"{noise}: learning_rate must be positive, scale at least 0, decay in [0, 1]")


@takes_numbers(weights=(1, 2, 3), threshold=None)
def weighted_chi_square_tail(
    weights: ArrayLike, threshold: ArrayLike | float, degrees: ArrayLike | Sequence[int] | None = None
) -> np.ndarray:
    """`P(sum_k weights_k chi²_(degrees_k) >= threshold)`: how likely a Gaussian vector is to be long.

    With K(p) = -1/2 sum_k m_k ln(1 + 2 w_k p), the logarithm of the Laplace transform of the distribution, the tail is
    `-1/(2 pi i) int e^(K(p) + p R²) / p dp` on a contour that crosses the axis between the largest branch point -1/(2
    w_max) and the pole at 0, and one minus the same integral to the right of the pole. Whichever is small is computed,
    by the trapezoidal rule on a hyperbola through the saddle point, so that far tails keep their relative accuracy.

    Args:
        weights: variances w_k >= 0, `(..., components)`; infinite ones put all probability beyond any threshold.
        threshold: R² > 0, broadcast against the leading axes.
        degrees: m_k, `(components,)`, the number of times a variance occurs; 1 by default.

    Returns:
        Probabilities, `(...)`, float64, to a relative error near 1e-10.

    Raises:
        ValueError: weights that are negative or NaN, a threshold that is not positive.

    Example:
        >>> weighted_chi_square_tail([1.0], 1.959963984540054**2).round(12).item()  # both tails of a Gaussian
        0.05

    References:
        Imhof, Biometrika 48 (1961) 419: the distribution. Rice, SIAM J. Sci. Stat. Comput. 1 (1980) 438: saddle point
            contours.
    """
    shape = np.shape(weights)[:-1]
    variances = np.asarray(weights, np.float64).reshape(math.prod(shape), np.shape(weights)[-1])
    if not variances.size:
        return np.zeros(shape)  # an empty sum is 0
    limit = np.broadcast_to(np.asarray(threshold, np.float64), shape).reshape(-1)
    counts = np.ones(variances.shape[-1]) if degrees is None else np.asarray(degrees, np.float64)
    if not (np.all(variances >= 0) and np.all(limit > 0)):
        raise ValueError(
            "weights must be at least 0 and thresholds positive: they are variances and a squared distance"
        )
    with np.errstate(over="ignore"):
        scaled = np.where(counts > 0, variances / limit[..., None], 0.0)  # in units of the threshold
    is_infinite = np.any(np.isinf(scaled), axis=-1)
    is_zero = np.all(scaled == 0, axis=-1)
    scaled = np.where(np.asarray(is_infinite | is_zero)[..., None], 1.0, scaled)
    is_far = np.sum(counts * scaled, axis=-1) < 1  # the threshold lies beyond the mean: left of the pole
    integral = _saddle_integral(scaled, counts, np.where(is_far, -1.0, 1.0))
    tail = np.clip(np.where(is_far, integral, 1 - integral), 0.0, 1.0)
    return np.where(is_infinite, 1.0, np.where(is_zero, 0.0, tail)).reshape(shape)


def _saddle_integral(weights: np.ndarray, counts: np.ndarray, side: np.ndarray) -> np.ndarray:
    """`|1/(2 pi i) int e^(K(p) + p) / p dp|` through the saddle point right (side 1) or left (side -1) of the pole."""
    # Left of the pole p lies in (-1/(2 w_max), 0), right of it in (0, 1 + sum m/2): at that end the slope has changed
    # sign.
    far_end = np.where(side > 0, 2 + 0.5 * counts.sum(), 0.5 / weights.max(axis=-1))

    def derivatives(p: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        shrunk = weights / (1 + 2 * weights * p[..., None])
        slope = 1 - np.sum(counts * shrunk, axis=-1) - 1 / p
        return slope, np.sum(2 * counts * shrunk**2, axis=-1) + 1 / p**2

    # Halve the logarithm of |p|: the slope of the convex exponent is negative at p = 0+, positive at p = 0-.
    low, high = np.log(far_end) - 60, np.log(far_end)
    for _ in range(60):
        middle = 0.5 * (low + high)
        with np.errstate(divide="ignore"):
            is_before = side * derivatives(side * np.exp(middle))[0] < 0
        low, high = np.where(is_before, middle, low), np.where(is_before, high, middle)
    saddle = side * np.exp(low)
    width = 1 / np.sqrt(derivatives(saddle)[1])
    v = _STEP * np.arange(_NODES)
    nodes = saddle[..., None] + width[..., None] * (1j * np.sinh(v) - _TILT * (np.cosh(v) - 1))
    speeds = width[..., None] * (1j * np.cosh(v) - _TILT * np.sinh(v))
    logs = -0.5 * np.sum(counts * np.log(1 + 2 * weights[..., None, :] * nodes[..., None]), axis=-1) + nodes
    # Nodes come in conjugate pairs, of which v >= 0 is one half.
    terms = (np.exp(logs) / nodes * speeds).imag
    return np.abs(_STEP / np.pi * (terms.sum(axis=-1) - 0.5 * terms[..., 0]))


@takes_numbers(eigenvalues=(0, 1), multiplicities=(0, 1))
def escape_probability(
    eigenvalues: ArrayLike | Sequence[float],
    multiplicities: ArrayLike | Sequence[int],
    radius: float,
    num_steps: ArrayLike | Sequence[int],
    noise: DecayingNoise,
) -> np.ndarray:
    """Probability that clones that started on the manifold are a given distance off it after steps of noisy descent.

    `P(sum_k s_k²(T) chi²_(m_k) >= R²)` with the variances of `noise_variances`: exact for a quadratic loss, and hence
    accurate near a critical point of the base as long as R is small enough for linear theory. This concerns the
    distance *at* step T: a process that returns, for instance along a direction with lambda > 0, may have been further
    away before (`first_passage_times`).

    Args:
        eigenvalues: lambda_k of the normal Hessian, (pairs,), which are those of the blocks M_j.
        multiplicities: m_k, (pairs,): n_j - 1 for the eigenvalues of M_j.
        radius: R, in units of parameters.
        num_steps: T, any shape.
        noise: what kind.

    Returns:
        Probabilities, shaped like `num_steps`.

    Raises:
        ValueError: as in `noise_variances`; a radius that is not positive.
    """
    if not radius > 0:
        raise ValueError(f"radius={radius}: must be positive")
    return weighted_chi_square_tail(noise_variances(eigenvalues, num_steps, noise), radius**2, multiplicities)


@takes_numbers(eigenvalues=(0, 1), multiplicities=(0, 1))
def escape_quantiles(
    eigenvalues: ArrayLike | Sequence[float],
    multiplicities: ArrayLike | Sequence[int],
    radius: float,
    noise: DecayingNoise,
    probabilities: ArrayLike | Sequence[float] = (0.1, 0.5, 0.9),
    max_steps: int = 20_000,
) -> np.ndarray:
    """First step at which `escape_probability` reaches each of some probabilities; infinite if it does not.

    Args:
        eigenvalues: as in `escape_probability`, like the next three.
        multiplicities: m_k.
        radius: R.
        noise: what kind.
        probabilities: levels.
        max_steps: last step looked at.

    Returns:
        Steps, shaped like `probabilities`.

    Raises:
        ValueError: as in `escape_probability`.
    """
    levels = np.asarray(probabilities, np.float64)
    quantiles = np.full(levels.shape, np.inf)
    for first in range(1, max_steps + 1, _BLOCK):
        steps = np.arange(first, min(first + _BLOCK, max_steps + 1))
        reached = escape_probability(eigenvalues, multiplicities, radius, steps, noise) >= levels[..., None]
        quantiles = np.where(np.isinf(quantiles) & reached.any(axis=-1), steps[reached.argmax(axis=-1)], quantiles)
        if np.isfinite(quantiles).all():
            break
    return quantiles


@takes_numbers(eigenvalues=(0, 1), multiplicities=(0, 1))
@standard_promotion()
def first_passage_times(
    eigenvalues: ArrayLike | Sequence[float],
    multiplicities: ArrayLike | Sequence[int],
    radius: float,
    noise: DecayingNoise,
    num_runs: int,
    max_steps: int,
    key: Key[Array, ""],
) -> Float[Array, "runs"]:
    """First step at which the linear process is a distance off the manifold, by simulation; infinite if it never is.

    Unlike `escape_probability`, this tells whether clones have been apart *at any time*. The two agree if no run
    returns.

    Args:
        eigenvalues: as in `escape_probability`, like the next three.
        multiplicities: m_k.
        radius: R.
        noise: settings of the descent.
        num_runs: number of independent runs.
        max_steps: steps of each run.
        key: random
            key.

    Raises:
        ValueError: eigenvalues that are not finite; a radius that is not positive; noise as in `noise_variances`.
    """
    _check_noise(noise)
    finite = np.asarray(eigenvalues, np.float64)
    if np.shape(multiplicities) not in ((), finite.shape):
        raise ValueError(f"multiplicities has shape {np.shape(multiplicities)}: must be one for each of {finite.shape}")
    if not (np.isfinite(finite).all() and radius > 0):
        raise ValueError(f"eigenvalues {finite} and radius {radius}: must be finite, and positive")
    values = jnp.asarray(np.repeat(finite, np.asarray(multiplicities, int)))
    factors = 1 - noise.learning_rate * (values + noise.weight_decay)

    def step(state: tuple[Array, Array], t: Array) -> tuple[tuple[Array, Array], None]:
        place, first = state
        draw = jax.random.normal(jax.random.fold_in(key, t), place.shape, place.dtype)
        place = factors * place + noise.scale * noise.decay**t * draw
        is_out = jnp.sum(jnp.square(place), axis=1) >= radius**2
        return (place, jnp.where(is_out & jnp.isinf(first), t + 1.0, first)), None

    start = jnp.zeros((num_runs, len(factors))), jnp.full(num_runs, jnp.inf)
    return jax.lax.scan(step, start, jnp.arange(max_steps))[0][1]


@takes_numbers(hessians=(2, 3), noise=3)
def propagated_covariance(
    hessians: Float[Array, "*steps d d"], noise: Float[Array, "steps d d"], learning_rate: float
) -> Float[Array, "d d"]:
    """Covariance of the deviation after steps of `v <- (I - eta M_t) v + xi_t`: `C <- (I - eta M) C (I - eta M)' + D`.

    For anisotropic noise, such as that of `lopjax.optim.noisy_sgd`, which gives every array A the standard deviation
    `eta sigma gamma^t ||g_A||`: D is then diagonal with their squares, in an orthonormal basis of the normal space. The
    distribution of the distance is then `weighted_chi_square_tail(eigvalsh(C), R²)`.

    Args:
        hessians: M_t, `(steps, d, d)`, or one M for all steps, `(d, d)`.
        noise: D, covariance of the noise that each step adds.
        learning_rate: eta.

    Returns:
        C after the last step, from 0 before the first.
    """
    dtype = jnp.promote_types(jnp.result_type(hessians, noise), jnp.float32)
    noise, dimension = jnp.asarray(noise, dtype), jnp.shape(noise)[-1]
    is_short = jnp.ndim(hessians) == 3 and len(hessians) != len(noise)
    if is_short or jnp.shape(hessians)[-2:] != (dimension, dimension) or noise.shape[1:] != (dimension, dimension):
        raise ValueError(
            f"hessians {jnp.shape(hessians)} and noise {noise.shape}: must be square, of one size, one noise a step"
        )
    every = jnp.broadcast_to(jnp.asarray(hessians, dtype), noise.shape)

    def step(covariance: Array, given: tuple[Array, Array]) -> tuple[Array, None]:
        matrix, added = given
        factor = jnp.eye(dimension, dtype=noise.dtype) - learning_rate * matrix
        return factor @ covariance @ factor.T + added, None

    return jax.lax.scan(step, jnp.zeros(noise.shape[1:], dtype), (every, noise))[0]
