"""A regulariser of rank in training, and three controls that are as large: what is done to the gradient of a step."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from experiments.rank_causality.acts import normals_like
from experiments.rank_causality.arms import NONE
from lopjax.model import Model, Params, Variables, samples_by_units

Numbers = Mapping[str, jax.Array]
"""Of a lane: `confinement`, `regulariser` (int32), `coefficient`, `loudness`."""


def rank_penalty(model: Model, variables: Variables, inputs: jax.Array) -> jax.Array:
    r"""Minus the logarithm of the participation ratio of the activations, a mean over sites.

    .. math:: -\tfrac1S \sum_s \ln \frac{(\mathrm{tr}\, C_s)^2}{\mathrm{tr}\, C_s^2},

    C the centred covariance over the batch. It is smooth, blind to the scale of the activations, and needs no
    eigenvalues: entropy-based ranks rise with it. Logarithms, so that layers of all widths pull alike.
    """
    taps = model.apply(variables, inputs, train=True).taps.values()
    return -jnp.mean(jnp.stack([log_participation(samples_by_units(tap.post)) for tap in taps]))


def log_participation(h: jax.Array) -> jax.Array:
    """Logarithm of `lopjax.metrics.renyi2_rank(h)`, of activations near 1 in size; 0 where all units are constant.

    The metric is safe at any scale, which costs two seconds of compilation in every step that differentiates it.
    """
    deviation = h - h.mean(axis=0)
    gram = deviation.T @ deviation
    trace, squares = jnp.trace(gram), jnp.sum(gram**2)
    is_constant = squares == 0
    return 2 * jnp.log(jnp.where(is_constant, 1, trace)) - jnp.log(jnp.where(is_constant, 1, squares))


def treated(
    model: Model, variables: Variables, inputs: jax.Array, gradient: Params, numbers: Numbers, key: jax.Array
) -> Params:
    """The gradient of a step after what the lane's number of a regulariser says.

    With r the gradient of `coefficient * rank_penalty` at the lane's own parameters p: RANK gives g + r, RANDOM
    g + |r| u with u a uniformly random direction, DECAY g + |r| p/|p|, RESCALED g |g + r|/|g|. So at every step the
    first three add an update of one length, and the last is as long as the first.
    """
    params = variables["params"]

    def with_push() -> Params:
        push = jax.grad(lambda p: numbers["coefficient"] * rank_penalty(model, {**variables, "params": p}, inputs))(
            params
        )
        length, both = optax.tree.norm(push), optax.tree.add(gradient, push)
        noise = normals_like(params, key)
        return jax.lax.switch(
            numbers["regulariser"] - 1,
            [
                lambda: both,
                lambda: optax.tree.add_scale(gradient, length / optax.tree.norm(noise), noise),
                lambda: optax.tree.add_scale(gradient, length / optax.tree.norm(params), params),
                lambda: optax.tree.scale(_ratio(optax.tree.norm(both), optax.tree.norm(gradient)), gradient),
            ],
        )

    # A branch of its own: lanes without a regulariser do not pay for it where lanes run one after the other.
    return jax.lax.cond(numbers["regulariser"] == NONE, lambda: gradient, with_push)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    return a / jnp.where(b > 0, b, 1)
