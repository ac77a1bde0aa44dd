"""Normalise-and-project: kernels keep their initial norm."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from lopjax.optim.checks import Params, check_is_wiring, check_params, transformation
from lopjax.wiring import Label, Wiring


class NaPState(NamedTuple):
    """State of `nap`: initial Euclidean norm of every array, a tree of scalars."""

    norms: Params


def nap(wiring: Wiring) -> optax.GradientTransformationExtraArgs:
    r"""Rescale every kernel to its initial norm after every update; place it last in a chain.

    With u the update, :math:`\theta \leftarrow \lVert\theta_0\rVert\,(\theta + u) / \lVert\theta + u\rVert`, Euclidean
    norms of whole arrays. If a batch or layer norm follows a kernel, this leaves the function unchanged in train mode
    (the running statistics of eval mode adapt later), and keeps the effective learning rate from falling as weights
    grow; elsewhere, as in the output layer, it is a constraint. The paper puts a norm before every activation and pulls
    its scales and offsets towards their initial values (use `l2_init` under `optax.masked`); here these are unchanged,
    as are biases, positions, and kernels that are or were initially 0.

    Args:
        wiring: wiring of the network, which determines the kernels.

    Returns:
        The transformation; `update` needs `params`.

    Raises:
        ValueError: `wiring` is not a wiring, or parameters are missing, not real or do not match it.

    References:
        Lyle et al., *Normalization and effective learning rates in reinforcement learning*, arXiv 2407.01800.
    """
    check_is_wiring(wiring)

    def init(params: Params) -> NaPState:
        return NaPState(jax.tree.map(_norm, params))

    def update(updates: Params, state: NaPState, params: Params | None = None) -> tuple[Params, Any]:
        check_params("nap", params)

        def project(label: Label, update: Array, param: Array, norm: Array) -> Array:
            if not label.reads():
                return update
            moved = jnp.asarray(param, norm.dtype) + jnp.asarray(update, norm.dtype)
            now = _norm(moved)
            is_zero = (now == 0) | (norm == 0)  # and what is not a number stays none
            projected = moved * (norm / jnp.where(is_zero, 1, now)) - jnp.asarray(param, norm.dtype)
            return jnp.where(is_zero, update, projected).astype(update.dtype)

        return wiring.map(project, updates, params, state.norms, partial=True), state

    return transformation(init, update)


def _norm(array: Array) -> Array:
    return jnp.linalg.norm(jnp.ravel(array).astype(jnp.promote_types(jnp.result_type(array), jnp.float32)))
