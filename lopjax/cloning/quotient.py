"""The quotient dynamics of a cloned network: its whole training run, computed on the small network.

Clones that stay clones carry no information of their own, so the cloned network's trajectory is one of the *base*
network, with rates that differ from array to array. Let an array W of the cloned network repeat the base array w
`n_in` times along its input axes and `n_out` times along its output axes, `W = w / n_in` (`clone_variables`). Then

    dL/dW = (dL/dw) / n_out,        dw = n_in dW,

entry by entry where units have different numbers of clones.

So an optimizer that acts on each coordinate through its gradient history, `dW = U(dL/dW, W)`, moves the base network by
`dw = n_in U((dL/dw) / n_out, w / n_in)`: SGD and momentum with rate `eta n_in / n_out` and the *same* weight decay,
Adam with rate `eta n_in` and `epsilon n_out`. The whole cloned loss curve is predicted from the small network.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from lopjax.cloning.clone import Factor, clone_factors
from lopjax.model import Params
from lopjax.wiring import Wiring, multiplicity


def multiplicities(params: Params, base_wiring: Wiring, factor: Factor) -> tuple[Params, Params]:
    """How many times cloning repeats every parameter array, along its input axes and along its output axes.

    Args:
        params: parameters of the base network; only their structure is read.
        base_wiring: wiring of the base network.
        factor: as in `lopjax.cloning.clone_variables`.

    Returns:
        `(n_in, n_out)`: two trees like `params` with a Python int for each array, or an integer array that broadcasts
        against it where the units of a space have numbers of their own. For a bias or a norm parameter `n_in = 1`.

    Raises:
        ValueError: see `lopjax.cloning.clone_factors`; or parameters that do not match the wiring.
    """
    factors = clone_factors(base_wiring, factor)
    return (
        base_wiring.map(lambda label, _: multiplicity(label, factors)[0], params, partial=True),
        base_wiring.map(lambda label, _: multiplicity(label, factors)[1], params, partial=True),
    )


def quotient_optimizer(
    optimizer: optax.GradientTransformation, base_wiring: Wiring, factor: Factor
) -> optax.GradientTransformation:
    """The optimizer under which the base network trains exactly as its cloned network does under `optimizer`.

    Args:
        optimizer: a coordinate-wise optimizer (SGD, momentum, Adam, AdamW, RMSProp, Lion, ...), decoupled weight decay
            included. It must not use whole arrays, as layer-wise scaling does; for clipping by global norm, chain
            `clip_by_cloned_norm` *before* this.
        base_wiring: wiring of the base network.
        factor: as in `lopjax.cloning.clone_variables`.

    Returns:
        An optax transformation for the base network's parameters, with the state of `optimizer`. Extra arguments are
        passed on: `value`; `grad` as each clone sees it; `value_fn` as a function of a clone's parameters (its values
        are those of the cloned network, its gradient that of moving all clones together).

    Raises:
        ValueError: see `lopjax.cloning.clone_factors`.

    Example:
        >>> from lopjax.models import mlp
        >>> base = mlp((4,), (3,), 2)
        >>> slow = quotient_optimizer(optax.sgd(0.1), base.wiring, 2)
        >>> params = base.init(jax.random.key(0))["params"]
        >>> updates, _ = slow.update(jax.tree.map(jnp.ones_like, params), slow.init(params), params)
        >>> float(updates["hidden_0"]["kernel"][0, 0]), float(updates["classes"]["kernel"][0, 0])
        (-0.05000000074505806, -0.20000000298023224)
    """
    clone_factors(base_wiring, factor)

    def cloned(params: Params) -> Params:
        n_in, _ = multiplicities(params, base_wiring, factor)
        return jax.tree.map(_divided, params, n_in)

    def init(params: Params) -> optax.OptState:
        return optimizer.init(cloned(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        n_in, n_out = multiplicities(updates, base_wiring, factor)
        # The arguments that optax passes under these names refer to the optimizer's own network, the cloned one; the
        # loss is the same.
        if "grad" in extra:
            extra["grad"] = jax.tree.map(_divided, extra["grad"], n_out)
        if (value_fn := extra.get("value_fn")) is not None:
            extra["value_fn"] = lambda wide, *args: value_fn(jax.tree.map(_multiplied, wide, n_in), *args)
        of_one_clone = jax.tree.map(_divided, updates, n_out)
        moves, state = takes_extra.update(of_one_clone, state, None if params is None else cloned(params), **extra)
        return jax.tree.map(_multiplied, moves, n_in), state

    takes_extra = optax.with_extra_args_support(optimizer)
    return optax.GradientTransformationExtraArgs(init, update)


def cloned_norm(gradients: Params, base_wiring: Wiring, factor: Factor) -> jax.Array:
    """Euclidean norm of the cloned network's gradient, from the base network's: `sqrt(sum n_in / n_out |g|²)`.

    Computed without overflow for every norm that its type can hold, and in float32 for 16-bit gradients, since the
    squares of float16 numbers overflow from 256 on.

    Args:
        gradients: gradient of the base network.
        base_wiring: wiring of the base network.
        factor: as in `lopjax.cloning.clone_variables`.
    """
    n_in, n_out = multiplicities(gradients, base_wiring, factor)
    leaves = jax.tree.leaves(gradients)
    dtype = jnp.promote_types(jnp.result_type(*leaves), jnp.float32)
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf), initial=0).astype(dtype) for leaf in leaves]))
    # Dividing by a power of two first keeps the squares from overflowing or vanishing, and rounds no bit differently.
    exponent = jnp.where(jnp.isfinite(largest), jnp.frexp(largest)[1], 0)

    def squares(gradient: jax.Array, reads: ArrayLike, writes: ArrayLike) -> jax.Array:
        return jnp.sum(jnp.asarray(reads / writes, dtype) * jnp.square(jnp.ldexp(gradient.astype(dtype), -exponent)))

    return jnp.ldexp(jnp.sqrt(jax.tree.reduce(jnp.add, jax.tree.map(squares, gradients, n_in, n_out))), exponent)


def _divided(array: jax.Array, n: ArrayLike) -> jax.Array:
    return array / jnp.asarray(n, array.dtype)


def _multiplied(array: jax.Array, n: ArrayLike) -> jax.Array:
    return array * jnp.asarray(n, array.dtype)


def clip_by_cloned_norm(max_norm: float, base_wiring: Wiring, factor: Factor) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm(max_norm)` of the cloned network, for the base network's gradients.

    Args:
        max_norm: largest norm of the *cloned* network's gradient that is left alone.
        base_wiring: wiring of the base network.
        factor: as in `lopjax.cloning.clone_variables`.
    """

    def update(updates: optax.Updates, params: Params | None = None) -> optax.Updates:
        norm = cloned_norm(updates, base_wiring, factor)
        scale = jnp.where(norm < max_norm, 1.0, max_norm / norm)
        return jax.tree.map(lambda g: g * scale.astype(g.dtype), updates)

    return optax.stateless(update)
