"""Optimizers on the arrays that a network's author wrote, where the library sees pieces of them."""

from typing import Any

import optax

from lopjax.model import Params
from lopjax.wiring import View


def on_own_arrays(optimizer: optax.GradientTransformation, view: View) -> optax.GradientTransformation:
    """An optimizer for a network's pieces that does to them what `optimizer` does to the arrays they come from.

    Rules that look at whole arrays need it (noise by the norm of an array, Muon, Adafactor, LAMB): a fused kernel is
    one array to them. Coordinate-wise rules do not, but may have it: its state is then that of the author's arrays.

    Args:
        optimizer: for parameters as the network's author has them.
        view: the model's `view`.

    Returns:
        A transformation for parameters of the model. Extra arguments are passed on, `grad` and `value_fn` in terms of
        the author's arrays.
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
