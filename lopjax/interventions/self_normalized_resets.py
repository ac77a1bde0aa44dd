"""Self-normalized resets: reset a unit that has been silent for longer than usual."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int32

from lopjax.arguments.integers import as_integer
from lopjax.interventions.activity import over_sites
from lopjax.interventions.checks import Spaces, check_state, spaces_of
from lopjax.interventions.reasons import reason_of
from lopjax.interventions.slices import reset_units
from lopjax.model import samples_by_units
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState


class Silences(NamedTuple):
    """Durations of silence of units, by space.

    Attributes:
        now: steps since the unit last fired, int32 `(units,)`.
        record: number of silences that ended after g steps, int32 `(units, longest)`, in column g - 1.
    """

    now: dict[str, jax.Array]
    record: dict[str, jax.Array]


def self_normalized_resets(percentile: ArrayLike = 0.99, longest: int = 128, spaces: Spaces = None) -> Intervention:
    r"""Reset units that have been silent for longer than a percentile of their own silences.

    A unit fires on a batch if its pre-activation is positive somewhere. When a silence of :math:`g` batches ends, it is
    added to the unit's record; a unit whose current silence is longer than the :math:`1-\eta` percentile of its record
    (the smallest :math:`g` that at least this fraction of silences does not exceed), or than `longest`, gets fresh
    incoming weights, zero outgoing ones and an empty record. For a unit with an empty record, because it always fires
    or is new, the threshold is `longest`; the authors' code divides 0 by 0 there. Silences are counted in steps; for
    batches of constant size, the paper's count of examples is a multiple of this. In a space with several sites a unit
    fires if it does at any.

    Args:
        percentile: :math:`1-\eta` in [0, 1].
        longest: :math:`\tau_{max}` in steps, a Python integer: the number of columns of the record.
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; its state is `Silences`.

    Raises:
        ValueError: a number out of range; on `init`, an unknown or fixed space, or a state of another optimizer.

    References:
        Farias & Jozefiak, *Self-Normalized Resets for Plasticity in Continual Learning*, arXiv 2410.20098, algorithm 1.
    """
    check("percentile", percentile, 0.0, 1.0)
    longest = as_integer(longest, 1, f"longest={longest!r}: must be a positive integer, a number of steps")

    def init(setting: Setting, state: TrainState) -> Silences:
        check_state(setting, state)
        wiring = setting.model.wiring
        sizes = {space: wiring.size(space) for space in spaces_of(wiring, spaces)}
        return Silences(
            {space: jnp.zeros(size, jnp.int32) for space, size in sizes.items()},
            {space: jnp.zeros((size, longest), jnp.int32) for space, size in sizes.items()},
        )

    def apply(
        setting: Setting, own: Silences, state: TrainState, observed: Observed, key: jax.Array, step: Any
    ) -> tuple[TrainState, Silences, Report]:
        wiring = setting.model.wiring

        def fires(space: str) -> jax.Array:
            sites = over_sites(wiring, observed.taps, space, lambda tap: jnp.any(samples_by_units(tap.pre) > 0, axis=0))
            return jnp.any(sites, axis=0)

        now, record = {}, {}
        for space in own.now:
            now[space], record[space] = listen(own.now[space], own.record[space], fires(space))
        silent = {space: is_overdue(now[space], record[space], percentile) for space in now}
        is_any = jnp.any(jnp.array([jnp.any(units) for units in silent.values()]))
        state = jax.lax.cond(is_any, lambda s: reset_units(setting, s, silent, key), lambda s: s, state)
        own = Silences(
            {space: jnp.where(silent[space], 0, now[space]) for space in now},
            {space: jnp.where(silent[space][:, None], 0, record[space]) for space in now},
        )
        return state, own, Report(silent, reason_of(jnp.bool_(True), silent))

    return Intervention(init, apply)


def listen(
    now: Int32[Array, " units"], record: Int32[Array, "units longest"], fires: Bool[Array, " units"]
) -> tuple[Int32[Array, " units"], Int32[Array, "units longest"]]:
    """Silences and records after one more batch: a silence that ends is added to the record."""
    columns = jnp.arange(1, record.shape[1] + 1)
    ends = (fires & (now > 0))[:, None] & (columns[None] == jnp.minimum(now, record.shape[1])[:, None])
    return jnp.where(fires, 0, now + 1), record + ends.astype(record.dtype)


def is_overdue(
    now: Int32[Array, " units"], record: Int32[Array, "units longest"], percentile: ArrayLike
) -> Bool[Array, " units"]:
    """Whether a silence is longer than the given percentile of those on record.

    It is if at least that fraction of the record is shorter than the silence, which takes one sum and no quantile. With
    an empty record the threshold is `longest`, the number of columns.
    """
    columns = jnp.arange(1, record.shape[1] + 1)
    shorter = jnp.sum(jnp.where(columns[None] < now[:, None], record, 0), axis=1)
    total = jnp.sum(record, axis=1)
    return (now > record.shape[1]) | ((shorter > 0) & (shorter >= percentile * total))
