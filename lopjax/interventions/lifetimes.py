"""Lifetimes of recycled units: a method may replace the same fresh unit again and again."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float, Int

from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState

BINS = 31


class Lifetimes(NamedTuple):
    """Births and deaths of recycled units, by unit space.

    Attributes:
        born: step at which each unit was last replaced, int32 `(units,)`; -1 for an original one.
        deaths: number of recycled units that were replaced again after 2**k to 2**(k + 1) - 1 steps, int32 `(31,)`.
    """

    born: dict[str, jax.Array]
    deaths: dict[str, jax.Array]


class Survival(NamedTuple):
    """A survival curve of recycled units (Kaplan-Meier).

    Attributes:
        steps: end points of its intervals, 2, 4, 8, ....
        share: fraction of recycled units that have not been replaced again by then.
        at_risk: number of units observed until at least the interval's beginning.
        deaths: number of units replaced again within the interval.
    """

    steps: np.ndarray
    share: np.ndarray
    at_risk: np.ndarray
    deaths: np.ndarray


def with_lifetimes(intervention: Intervention) -> Intervention:
    """The same intervention, which also logs the lifetimes of the units that it replaces.

    Its reports have in `logs`: `replaced`, the number of units replaced in this step; `replaced_again`, those of them
    that had been replaced before; `lifetime`, the sum of their lifetimes in steps. Over a run, `replaced_again /
    replaced` near 1
    with short lifetimes is churn: the same fresh units are discarded again and again, and the others are never reached.

    Args:
        intervention: an intervention whose reports name the units that it replaces.

    Returns:
        The intervention; its state is `(own, Lifetimes)`.

    Raises:
        ValueError: the argument is not an intervention.
    """
    if not isinstance(intervention, Intervention):
        raise ValueError(f"intervention={intervention!r}: must be an Intervention, such as redo()")

    def init(setting: Setting, state: TrainState) -> tuple[Any, Lifetimes]:
        sizes = dict(setting.model.wiring.sizes)
        born = {space: jnp.full(size, -1, jnp.int32) for space, size in sizes.items()}
        return intervention.init(setting, state), Lifetimes(
            born, {space: jnp.zeros(BINS, jnp.int32) for space in sizes}
        )

    def apply(
        setting: Setting, own: tuple[Any, Lifetimes], state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, tuple[Any, Lifetimes], Report]:
        state, inner, report = intervention.apply(setting, own[0], state, observed, key, step)
        lifetimes, logs = _counted(own[1], report, jnp.asarray(step, jnp.int32))
        return state, (inner, lifetimes), report._replace(logs={**report.logs, **logs})

    return Intervention(init, apply, intervention.needs_boundaries)


def _counted(lifetimes: Lifetimes, report: Report, step: Int[ArrayLike, ""]) -> tuple[Lifetimes, dict[str, jax.Array]]:
    born, deaths = dict(lifetimes.born), dict(lifetimes.deaths)
    replaced = again = lived = jnp.int32(0)
    for space, touched in report.touched.items():
        ends = touched & (born[space] >= 0)
        lifetime = jnp.maximum(step - born[space], 1)
        bins = 31 - jax.lax.clz(lifetime.astype(jnp.int32))  # floor(log2), exactly
        deaths[space] = deaths[space].at[jnp.clip(bins, 0, BINS - 1)].add(ends.astype(jnp.int32))
        born[space] = jnp.where(touched, step, born[space]).astype(jnp.int32)
        replaced = replaced + jnp.sum(touched, dtype=jnp.int32)
        again = again + jnp.sum(ends, dtype=jnp.int32)
        lived = lived + jnp.sum(jnp.where(ends, lifetime, 0), dtype=jnp.int32)
    logs = {"replaced": replaced, "replaced_again": again, "lifetime": lived}
    return Lifetimes(born, deaths), logs


def survival(lifetimes: Lifetimes, step: int, space: str | None = None) -> Survival:
    """Survival of recycled units until step `step`; units still alive are censored at their age.

    Args:
        lifetimes: lifetimes of one network, from the second part of the intervention's own state.
        step: number of the last step.
        space: a unit space; None for all combined.

    Raises:
        ValueError: an unknown space.
    """
    if space is not None and space not in lifetimes.born:
        raise ValueError(f"space={space!r}: must be one of {list(lifetimes.born)}, or None for all")
    spaces = list(lifetimes.born) if space is None else [space]
    deaths = np.sum([np.asarray(lifetimes.deaths[name]) for name in spaces], axis=0)
    born = np.concatenate([np.asarray(lifetimes.born[name]) for name in spaces])
    ages = np.maximum(step - born[born >= 0], 1)
    alive = np.bincount(np.frexp(ages)[1] - 1, minlength=BINS)
    at_risk = np.cumsum((deaths + alive)[::-1])[::-1]
    share: Float[np.ndarray, " bins"] = np.cumprod(1 - deaths / np.maximum(at_risk, 1))
    return Survival(2 ** np.arange(1, BINS + 1), share, at_risk, deaths)
