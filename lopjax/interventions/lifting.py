"""Optax transforms as interventions."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from lopjax.interventions.reasons import AS_IT_WAS, CHANGED
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


def from_optax(
    transform: optax.GradientTransformation, sees: Literal["nothing", "gradient"] = "nothing"
) -> Intervention:
    """An optax transform that acts after the optimizer: `params += transform.update(seen, own, params)`.

    Args:
        transform: its result is *added* to the parameters: `lopjax.optim.shrink_and_perturb` can be used directly,
            while a gradient must be followed by `optax.scale(-learning_rate)`.
        sees: the updates passed to it: zeros ("nothing") or the step's gradient ("gradient").

    Returns:
        The intervention; its state is that of the transform. It does not act on particular units.

    Raises:
        ValueError: an unknown name, or an argument that is not a transform.

    Example:
        >>> import optax
        >>> from lopjax.optim import l2_init
        >>> pull = from_optax(optax.chain(l2_init(1e-3), optax.scale(-0.1)))
    """
    if not isinstance(transform, optax.GradientTransformation):
        raise ValueError(f"transform={transform!r}: must be an optax.GradientTransformation")
    if sees not in ("nothing", "gradient"):
        raise ValueError(f"sees={sees!r}: must be 'nothing' or 'gradient'")

    def init(setting: Setting, state: TrainState) -> PyTree:
        return transform.init(jax.tree.map(jnp.asarray, state.variables["params"]))

    def apply(
        setting: Setting, own: PyTree, state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, PyTree, Report]:
        params = state.variables["params"]
        updates_in = observed.gradient if sees == "gradient" else jax.tree.map(jnp.zeros_like, params)
        extra = {"value": observed.loss, "grad": observed.gradient}
        updates, own = optax.with_extra_args_support(transform).update(updates_in, own, params, **extra)
        changed = {**state.variables, "params": optax.apply_updates(params, updates)}
        pairs = zip(jax.tree.leaves(changed["params"]), jax.tree.leaves(params), strict=True)
        has_moved = jnp.any(jnp.stack([jnp.any(new != old) for new, old in pairs]))
        return state._replace(variables=changed), own, Report({}, jnp.where(has_moved, CHANGED, AS_IT_WAS))

    return Intervention(init, apply)
