"""Checks that interventions make before anything is compiled."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Int

from lopjax.optim.checks import check_single
from lopjax.signals import Observed
from lopjax.training.interventions import Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import Wiring

Spaces = Sequence[str] | None
"""Unit spaces by name; None for all whose units may be reset."""


def spaces_of(wiring: Wiring, spaces: Spaces) -> tuple[str, ...]:
    """The unit spaces that a method acts on.

    Raises:
        ValueError: an unknown space, one that is fixed (inputs, outputs), one that is never observed, or none at all.
    """
    if isinstance(spaces, str):
        raise ValueError(f"spaces={spaces!r}: must be a sequence of names, such as [{spaces!r}]")
    # The width of an attention head is not observed anywhere: its units are reset with their head.
    chosen = wiring.cloned_by_default if spaces is None else tuple(spaces)
    for space in chosen:
        wiring.size(space)
        if space in wiring.fixed:
            raise ValueError(
                f"unit space {space!r} is fixed, its units cannot be reset; those that can are {list(wiring.cloneable)}"
            )
        if not wiring.sites_of(space):
            raise ValueError(f"unit space {space!r} is observed at no site: tap it in the model, or leave it out")
    if not chosen:
        raise ValueError(f"spaces={spaces!r}: must name at least one of the unit spaces {list(wiring.cloneable)}")
    return chosen


def check_state(setting: Setting, state: TrainState) -> None:
    """Refuse a state of a different optimizer, whose moments could not be cleared.

    Raises:
        ValueError: structure, shapes or types are not those of `setting.optimizer.init`.
    """
    params = state.variables["params"]
    setting.model.wiring.labels_of(params)
    expected = jax.eval_shape(setting.optimizer.init, params)
    trees = [jax.tree.structure(tree) for tree in (expected, state.opt_state)]
    if trees[0] != trees[1] or _shapes(expected) != _shapes(state.opt_state):
        raise ValueError(
            "opt_state is not a state of this optimizer: its structure, shapes or types differ; make it with "
            "lopjax.training.init_state(variables, optimizer), one network at a time (vmap over several)"
        )


def check_every(every: Any, name: str = "every") -> None:
    """Refuse a number of steps that is not a positive integer; traced values pass."""
    check_single(name, every)
    if isinstance(every, Tracer):
        return
    number = np.asarray(every)
    if not np.issubdtype(number.dtype, np.integer) or not np.all(number >= 1):
        raise ValueError(f"{name}={every!r}: must be a positive integer, a number of steps")


def is_due(step: Int[ArrayLike, ""], every: Int[ArrayLike, ""]) -> Bool[Array, ""]:
    """Whether a method that acts every `every` steps acts after this one; the first time is after `every` steps."""
    return (jnp.asarray(step) + 1) % every == 0


def is_start(observed: Observed, name: str) -> Bool[Array, ""]:
    """Whether this is the first step of a task.

    Raises:
        ValueError: the stream does not provide task boundaries.
    """
    start = getattr(observed.task, "is_start", None)
    if start is None:
        raise ValueError(
            f"{name} acts where a task starts, and this stream hides that: pass task=drawn.task to train_step, or "
            "give every=, a number of steps, as where tasks pass into each other and none has a start"
        )
    return jnp.asarray(start)


def _shapes(tree: Any) -> list[tuple[tuple[int, ...], Any]]:
    """Shapes and types: a moment of a different dtype would break the scan that carries it."""
    return [(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in jax.tree.leaves(tree)]
