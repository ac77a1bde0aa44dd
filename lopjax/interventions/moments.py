"""Clearing an optimizer's state for chosen entries of the parameters, for any chain of optax transforms."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from lopjax.model import Params


def forget(
    optimizer: optax.GradientTransformation,
    opt_state: PyTree,
    params: Params,
    mask: PyTree,
    only: Callable[[Any], bool] | None = None,
) -> PyTree:
    """Reset an optimizer's state for marked entries to its values at the start of training.

    Every part of the state that is a tree like the parameters is found by its structure, wherever it is in a chain,
    inside `optax.masked`, `multi_transform` or `inject_hyperparams`; its marked entries become those of
    `optimizer.init(params)`: zeros for moments, the new weights for the anchor of an L2 penalty, the initial step sizes
    for Rprop. Arrays with further leading axes (the memory of L-BFGS) and the factored second moments of Adafactor are
    included: of the latter a row or column is reset if everything that it averages is marked. Scalars, such as step
    counts, are kept.

    Args:
        optimizer: the optimizer that made the state.
        opt_state: its state.
        params: the parameters as they are now.
        mask: a tree like them, True on the entries to reset.
        only: restricts the reset to nodes of the state for which this is true.

    Returns:
        The state with the same structure and shapes.
    """
    fresh = optimizer.init(params)
    if only is None:
        return _forget(opt_state, fresh, params, mask)

    def chosen(node: Any, start: Any) -> Any:
        return _forget(node, start, params, mask) if only(node) else node

    return jax.tree.map(chosen, opt_state, fresh, is_leaf=only)


def is_adam(node: Any) -> bool:
    """Whether a node of an optimizer's state holds the two moments of Adam."""
    return hasattr(node, "mu") and hasattr(node, "nu")


def _forget(opt_state: PyTree, fresh: PyTree, params: Params, mask: PyTree) -> PyTree:
    structure, masks = jax.tree.structure(params), jax.tree.leaves(mask)

    def is_like_params(node: Any) -> bool:
        return jax.tree.structure(node, is_leaf=_is_left_out) == structure

    def one(node: Any, start: Any) -> Any:
        if isinstance(node, optax.FactoredState):
            return _factored(node, start, masks)
        return _by_leaf(_restored, node, start, masks) if is_like_params(node) else node

    def is_whole(node: Any) -> bool:
        return isinstance(node, optax.FactoredState) or is_like_params(node)

    return jax.tree.map(one, opt_state, fresh, is_leaf=is_whole)


def _is_left_out(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)


def _by_leaf(function: Callable[..., Any], node: Any, start: Any, masks: list[jax.Array]) -> Any:
    """Map over trees like the parameters, from which some arrays may be missing."""
    leaves, structure = jax.tree.flatten(node, is_leaf=_is_left_out)
    starts = structure.flatten_up_to(start)
    return structure.unflatten([function(*args) for args in zip(leaves, starts, masks, strict=True)])


def _restored(leaf: Any, start: Any, mask: jax.Array) -> Any:
    """One array with marked entries reset; arrays of another shape are kept."""
    if _is_left_out(leaf):
        return leaf
    shape = jnp.shape(leaf)
    if not mask.ndim or shape[len(shape) - mask.ndim :] != mask.shape:
        return leaf
    return jnp.where(mask, start, leaf)


def _factored(state: Any, start: Any, masks: list[jax.Array]) -> Any:
    """Adafactor: `v_row` averages over the largest axis of an array, `v_col` over the second largest."""

    def averaged_over(rank: int) -> Callable[..., Any]:
        def of(leaf: Any, first: Any, mask: jax.Array) -> Any:
            if _is_left_out(leaf) or mask.ndim < 2:
                return leaf
            marked = jnp.all(mask, axis=int(np.argsort(mask.shape)[-rank]))
            return jnp.where(marked, first, leaf) if marked.shape == jnp.shape(leaf) else leaf

        return of

    return state._replace(
        v_row=_by_leaf(averaged_over(1), state.v_row, start.v_row, masks),
        v_col=_by_leaf(averaged_over(2), state.v_col, start.v_col, masks),
        v=_by_leaf(_restored, state.v, start.v, masks),
    )
