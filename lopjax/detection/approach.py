"""Is a pair of units on its way to become clones, and when? The trap-aware forecast of training by SGD."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lopjax.arguments.batches import check_leaves
from lopjax.arguments.integers import as_integer
from lopjax.detection.forecast import Forecast, trap_forecast
from lopjax.losses import mean_cross_entropy, of_parameters
from lopjax.manifolds import Manifold, cloned_manifold, tree_norm
from lopjax.model import Model, Params, Variables
from lopjax.optim.checks import check
from lopjax.stability import LyapunovEstimate, split
from lopjax.stability.lyapunov import estimate_of, normalised
from lopjax.wiring import unit_masks

DIRECTIONS = 4
"""Deviations that are followed side by side: as long as they disagree, none of them has turned into the typical one."""


class CloneForecast(NamedTuple):
    """When a pair of units will be on the manifold of its clones.

    Attributes:
        forecast: steps until the distance has fallen to the tolerance, with its interval.
        distance: distance of the parameters from the nearest point at which both units are equal, relative to the norm
            of their incoming and outgoing parameters there.
        growth: transverse Lyapunov exponent of training from there, per step: below 0 the manifold attracts. The mean
            over `DIRECTIONS` random deviations; its standard error has the spread between them added in squares, which
            is 0 once all have turned into the typical direction.
    """

    forecast: Forecast
    distance: Float[Array, ""]
    growth: LyapunovEstimate

    def __str__(self) -> str:
        """The forecast as a sentence."""
        rate, error = float(self.growth.exponent), float(self.growth.standard_error)
        how = f"distance {float(self.distance):.2g}, {rate:.2g} ± {2 * error:.1g} per step"
        if not bool(self.forecast.is_decided):
            return f"whether the pair is drawn to its manifold is not decided ({how})"
        if not np.isfinite(self.forecast.steps):
            return f"the manifold repels the pair ({how})"
        first, last = float(self.forecast.earliest), float(self.forecast.latest)
        return f"on the manifold in about {float(self.forecast.steps):,.0f} steps ({first:,.0f} to {last:,.0f}; {how})"


def clone_forecast(
    model: Model,
    variables: Variables,
    batches: tuple[Any, Any],
    space: str,
    pair: tuple[int, int],
    learning_rate: float,
    key: Key[Array, ""],
    *,
    weight_decay: float = 0.0,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    tolerance: float = 1e-3,
    burn_in: int = 0,
) -> CloneForecast:
    """On the manifold in about n steps: the distance of a pair from it, and the rate at which SGD shrinks that.

    The nearest point p at which both units have equal incoming and equal outgoing weights lies on a leaf that gradient
    descent does not leave. From there both are followed along the minibatches: p by SGD itself, the deviation by
    `v <- (1 - eta lambda) v - eta H_B(p) v`, H_B the Hessian on the minibatch of the step, renormalised as in
    `lopjax.stability.transverse_lyapunov`; `trap_forecast` makes steps of its growth and of the distance. Noise is part
    of it: full batches may repel where minibatches attract. It is a forecast for as long as training goes on as on
    these batches, and for plain SGD: momentum and adaptive rates have other exponents (`measured_rate` takes any
    optimizer's). Whatever of the deviation lies along directions that shrink faster is gone earlier.

    Args:
        model: any model whose space can be cloned.
        variables: its variables, near the manifold; eval mode.
        batches: `(inputs, labels)` of minibatches as training draws them, `(steps, batch, ...)` each; some hundreds.
        space: unit space of the pair.
        pair: numbers of the two units; of equal sign, not mirror twins or multiples.
        learning_rate: eta.
        key: random key of the first deviations.
        weight_decay: lambda, decay of all parameters per step over the learning rate.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        tolerance: relative distance that counts as on the manifold.
        burn_in: first batches, left out while the deviation turns into its typical direction.

    Raises:
        ValueError: a pair that is none, a space that cannot be cloned, a number out of range, fewer than two batches.
    """
    check("learning_rate", learning_rate, minimum=float(np.finfo(np.float32).tiny))
    check("weight_decay", weight_decay, minimum=0.0)
    wiring, params = model.wiring, variables["params"]
    first, second = _two_units(pair, space, wiring.size(space))
    check_leaves(*batches)
    num_steps = len(jax.tree.leaves(batches)[0])
    if not 0 <= burn_in <= num_steps - 2:
        raise ValueError(f"burn_in={burn_in}: must leave at least two of the {num_steps} batches")
    units = range(wiring.size(space))
    ids = tuple(first if unit == second else unit for unit in units)
    leaf = cloned_manifold(jax.tree.map(jnp.zeros_like, params), wiring, {space: ids})
    foot, deviation = split(leaf, params)
    masks = unit_masks(wiring, params, {space: jnp.array([unit in (first, second) for unit in units])})
    shared = jax.tree.map(lambda one, a, b: jnp.where(a | b, one, 0), foot, masks.incoming, masks.outgoing)
    step = _step_beside_the_leaf(model, variables, leaf, learning_rate, weight_decay, loss)
    deviations = jax.vmap(lambda one: _random_deviation(leaf, params, one))(jax.random.split(key, DIRECTIONS))
    run = jax.jit(lambda start, batches: jax.lax.scan(step, start, batches)[1])
    growth = _of_all_directions(np.asarray(run((foot, deviations), batches))[burn_in:])
    distance = tree_norm(deviation) / tree_norm(shared)
    return CloneForecast(trap_forecast(distance, growth.exponent, growth.standard_error, tolerance), distance, growth)


def _two_units(pair: tuple[int, int], space: str, size: int) -> tuple[int, int]:
    """The numbers of two different units of a space."""
    first, second = (as_integer(unit, 0, f"pair={pair}: must be two different units of {space}") for unit in pair)
    if first == second or max(first, second) >= size:
        raise ValueError(f"pair={pair}: must be two different units of {space}, which has {size}")
    return first, second


def _of_all_directions(growths: np.ndarray) -> LyapunovEstimate:
    """The estimate of growths `(steps, directions)`, with the directions' disagreement in its standard error."""
    mean = estimate_of(growths.mean(axis=1))
    exponents = growths.mean(axis=0, dtype=np.float64)
    spread = 0.0 if np.all(exponents == exponents[0]) else np.std(exponents, ddof=1)
    return mean._replace(standard_error=jnp.hypot(mean.standard_error, spread))


def _random_deviation(leaf: Manifold, params: Params, key: Key[Array, ""]) -> Params:
    """A unit vector of standard normal direction across a leaf."""
    arrays, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(arrays))
    normals = [jax.random.normal(one, array.shape, array.dtype) for one, array in zip(keys, arrays, strict=True)]
    drawn = tree.unflatten(normals)
    return normalised(jax.tree.map(jnp.subtract, drawn, leaf.project(drawn)))[0]


def _step_beside_the_leaf(
    model: Model,
    variables: Variables,
    leaf: Manifold,
    learning_rate: float,
    weight_decay: float,
    loss: Callable[[jax.Array, Any], jax.Array],
) -> Callable[[tuple[Params, Params], tuple[Any, Any]], tuple[tuple[Params, Params], Array]]:
    """A step of SGD of a point on a leaf, and the linearised step of unit vectors across it, with their growths."""

    def descend(point: Params, slope: Params) -> Params:
        return jax.tree.map(lambda p, g: p - learning_rate * (g + weight_decay * p), point, slope)

    def step(both: tuple[Params, Params], batch: tuple[Any, Any]) -> tuple[tuple[Params, Params], Array]:
        point, vectors = both
        gradient = jax.grad(of_parameters(model, {**variables, "params": point}, batch, loss=loss))
        slope, product = jax.linearize(gradient, point)

        def follow(vector: Params) -> tuple[Params, Array]:
            moved = descend(vector, product(vector))
            return normalised(jax.tree.map(jnp.subtract, moved, leaf.project(moved)))

        vectors, growths = jax.vmap(follow)(vectors)
        # On the leaf by theory; projected against rounding.
        return (leaf.project(descend(point, slope)), vectors), growths

    return step
