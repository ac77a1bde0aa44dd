"""Is a pair of units on its way to become clones, and when? The trap-aware forecast of training by SGD."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lopjax.arguments.integers import as_integer
from lopjax.curvature import hvp
from lopjax.detection.forecast import Forecast, trap_forecast
from lopjax.losses import mean_cross_entropy, of_parameters
from lopjax.manifolds import cloned_manifold, tree_norm
from lopjax.model import Model, Params, Variables
from lopjax.optim.checks import check
from lopjax.stability import LyapunovEstimate, split, transverse_lyapunov
from lopjax.wiring import unit_masks


class CloneForecast(NamedTuple):
    """When a pair of units will be on the manifold of its clones.

    Attributes:
        forecast: steps until the distance has fallen to the tolerance, with its interval.
        distance: distance of the parameters from the nearest point at which both units are equal, relative to the norm
            of their incoming and outgoing parameters there.
        growth: transverse Lyapunov exponent at that point, per step: below 0 the manifold attracts.
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

    The nearest point at which both units have equal incoming and equal outgoing weights lies on a leaf that gradient
    descent does not leave. There the deviation follows `v <- (1 - eta lambda) v - eta M_B v`, M_B the normal Hessian on
    the minibatch of the step; its growth is `transverse_lyapunov`, and `trap_forecast` makes steps of both. Noise is
    part of it: full batches may repel where minibatches attract. Of a network whose remaining parameters have settled;
    for plain SGD, as adaptive rates and momentum have other exponents (`measured_rate` takes any optimizer's).

    Args:
        model: any model whose space can be cloned.
        variables: its variables, near the manifold; eval mode.
        batches: `(inputs, labels)` of minibatches as training draws them, `(steps, batch, ...)` each; some hundreds.
        space: unit space of the pair.
        pair: numbers of the two units; of equal sign, not mirror twins or multiples.
        learning_rate: eta.
        key: random key of the first deviation.
        weight_decay: lambda, decay of all parameters per step over the learning rate.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        tolerance: relative distance that counts as on the manifold.
        burn_in: first batches, left out while the deviation turns into its typical direction.

    Raises:
        ValueError: a pair that is none, a space that cannot be cloned, a number out of range.
    """
    first, second = (as_integer(unit, 0, f"pair={pair}: must be two different units of {space}") for unit in pair)
    check("learning_rate", learning_rate, minimum=float(np.finfo(np.float32).tiny))
    check("weight_decay", weight_decay, minimum=0.0)
    wiring, params = model.wiring, variables["params"]
    size = wiring.size(space)
    if first == second or max(first, second) >= size:
        raise ValueError(f"pair={pair}: must be two different units of {space}, which has {size}")
    ids = tuple(first if unit == second else unit for unit in range(size))
    leaf = cloned_manifold(jax.tree.map(jnp.zeros_like, params), wiring, {space: ids})
    foot, deviation = split(leaf, params)
    masks = unit_masks(wiring, params, {space: jnp.isin(jnp.arange(size), jnp.array([first, second]))})
    shared = jax.tree.map(lambda one, a, b: jnp.where(a | b, one, 0), foot, masks.incoming, masks.outgoing)

    def product(batch: tuple[Any, Any], vector: Params) -> Params:
        moved = hvp(of_parameters(model, {**variables, "params": foot}, batch, loss=loss), foot, vector)
        return jax.tree.map(lambda one, decayed: one + weight_decay * decayed, moved, vector)

    def leave(vector: Params) -> Params:
        return jax.tree.map(jnp.subtract, vector, leaf.project(vector))

    growth = transverse_lyapunov(product, params, batches, learning_rate, key, project=leave, burn_in=burn_in)
    distance = tree_norm(deviation) / tree_norm(shared)
    return CloneForecast(trap_forecast(distance, growth.exponent, growth.standard_error, tolerance), distance, growth)
