"""Spectral density by stochastic Lanczos quadrature."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from lopjax.arguments.numbers import takes_numbers
from lopjax.arguments.precision import all_digits
from lopjax.curvature.lanczos import flatten, limit_steps, ritz_decomposition, subspace_start
from lopjax.curvature.products import Matvec, Params


class SpectralDensity(NamedTuple):
    """A discrete probability measure close to the distribution of eigenvalues, `(1/d) sum_i delta(x - lambda_i)`.

    Attributes:
        nodes: Ritz values of each probe; zero where the weight is zero.
        weights: non-negative, summing to 1 over all probes and nodes (to 0 if every start vector vanished, to
            NaN if a product with one was not finite).
        num_steps: number of reliable Lanczos steps for each probe.
    """

    nodes: Float[Array, "probes steps"]
    weights: Float[Array, "probes steps"]
    num_steps: Int[Array, "probes"]


@takes_numbers(example=None)
@all_digits()
def spectral_density(
    matvec: Matvec,
    example: Params,
    num_steps: int,
    num_probes: int,
    key: Key[Array, ""],
    *,
    project: Callable[[Params], Params] | None = None,
    dimension: int | None = None,
) -> SpectralDensity:
    """Distribution of the eigenvalues of a symmetric operator, on the whole space or on a subspace.

    For a unit probe v, isotropic in the subspace of dimension d, Lanczos gives the Gauss quadrature of
    `v'f(A)v`, exact for polynomials of degree below `2 num_steps`, and `E v'f(A)v = trace(f(A)) / d`. The error of a
    moment falls as `1 / sqrt(num_probes * d)`.

    Args:
        matvec: the symmetric operator on trees like `example`.
        example: a tree with the operator's structure, shapes and dtypes; values are not used.
        num_steps: number of products for each probe, at most the dimension of the (sub)space.
        num_probes: number of random probes, run one after another.
        key: random key of the probes.
        project: orthogonal projector onto the subspace of interest, or None for the whole space.
        dimension: dimension of that subspace, if known.

    Returns:
        Nodes and weights; `jnp.sum(weights * nodes**k)` estimates `trace(A^k) / d`.

    Raises:
        ValueError: `num_steps`, `num_probes` or `dimension` is out of range, or `matvec` changes the tree.

    References:
        Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature", SIAM J. Matrix Anal.
        Appl. 38 (2017); Ghorbani, Krishnan, Xiao, arXiv 1901.10159, for Hessians of networks.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes={num_probes}: must be a positive integer")
    operator = flatten(matvec, project, example)
    steps = limit_steps(num_steps, dimension, operator.dimension)

    def probe(key: Array) -> tuple[Array, Array, Array]:
        # Gaussian, then normalised by Lanczos: isotropic in every subspace, unlike random signs.
        direction = jax.random.normal(key, (operator.dimension,), operator.work_dtype)
        start = subspace_start(operator.project, direction, operator.epsilon)
        ritz = ritz_decomposition(
            operator.matvec, operator.project, start, steps, dimension or operator.dimension, operator.epsilon
        )
        # If the start vector is nonzero but no step is reliable, products were not finite.
        is_broken = (ritz.num_steps == 0) & jnp.any(start != 0)
        return ritz.values, jnp.where(is_broken, jnp.nan, ritz.coordinates[0] ** 2), ritz.num_steps

    nodes, weights, used = jax.lax.map(probe, jax.random.split(key, num_probes))
    return SpectralDensity(nodes, weights / jnp.maximum(jnp.sum(used > 0, dtype=weights.dtype), 1), used)


@takes_numbers(grid=None)
def smooth_density(
    density: SpectralDensity, grid: Float[Array, "points"], width: float | Float[Array, ""]
) -> Float[Array, "points"]:
    """Density on a grid: every node becomes a Gaussian of standard deviation `width`.

    Args:
        density: result of `spectral_density`.
        grid: where to evaluate it, in units of eigenvalues.
        width: standard deviation of the kernel, positive.

    Returns:
        Values whose integral over the real line is the sum of the weights.
    """
    distances = (grid[:, None] - density.nodes.ravel()[None, :]) / width
    kernels = jnp.exp(-0.5 * distances**2) / (width * jnp.sqrt(2 * jnp.pi))
    return kernels @ density.weights.ravel()
