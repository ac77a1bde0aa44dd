"""Optimizers on the original arrays of a network of which the library sees pieces."""

from typing import Any

import optax

from lopjax.model import Params
from lopjax.wiring import View


def on_own_arrays(optimizer: optax.GradientTransformation, view: View) -> optax.GradientTransformation:
    """An optimizer for a network's pieces that acts on them as `optimizer` acts on the original arrays.

    Rules that depend on whole arrays need it (noise proportional to the norm of an array, Muon, Adafactor, LAMB),
    because a fused kernel is one array to them. Coordinate-wise rules do not, but may be wrapped: their state is then
    that of the original arrays.

    Args:
        optimizer: an optimizer for the network's original parameters.
        view: the model's `view`.

    Returns:
        A transformation for parameters of the model. Extra arguments are passed on, `grad` and `value_fn` in terms of
        the original arrays.
    """
    takes_extra = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> optax.OptState:
        return optimizer.init(view.merge(params))

    def update(
        updates: optax.Updates, state: optax.OptState, params: Params | None = None, **extra: Any
    ) -> tuple[optax.Updates, optax.OptState]:
        if "grad" in extra:
            extra["grad"] = view.merge(extra["grad"])
        if (value_fn := extra.get("value_fn")) is not None:
            extra["value_fn"] = lambda merged, *args: value_fn(view.split(merged), *args)
        merged = None if params is None else view.merge(params)
        moves, state = takes_extra.update(view.merge(updates), state, merged, **extra)
        return view.split(moves), state

    return optax.GradientTransformationExtraArgs(init, update)
