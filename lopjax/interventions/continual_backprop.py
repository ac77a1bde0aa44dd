"""Continual backprop: replace the least useful of the mature units, a few at a time."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int32

from lopjax.interventions.activity import mean_activation, mean_magnitude, over_sites, weight_magnitude
from lopjax.interventions.checks import Spaces, check_state, spaces_of
from lopjax.interventions.compensation import move_means_into_biases, zero_biases
from lopjax.interventions.moments import is_adam
from lopjax.interventions.reasons import NONE_MATURE, reason_of
from lopjax.interventions.slices import reset_units
from lopjax.model import samples_by_units
from lopjax.optim.checks import check
from lopjax.signals import Observed
from lopjax.training.interventions import Intervention, Report, Setting
from lopjax.training.steps import TrainState
from lopjax.wiring import In, Out, Wiring, unit_masks

PerSpace = dict[str, jax.Array]
UTILITIES = ("contribution", "adaptable_contribution")


class Utilities(NamedTuple):
    """State of continual backprop about the units of every space.

    Attributes:
        utility: trace of the utility without bias correction; `(units,)` each.
        mean: trace of the mean activation without bias correction.
        age: steps since the unit was created, int32.
        owed: fraction of a replacement, below 1, that is carried over after whole units are replaced.
    """

    utility: PerSpace
    mean: PerSpace
    age: PerSpace
    owed: PerSpace


class Settings(NamedTuple):
    """Settings of the method."""

    rate: Any
    decay: Any
    maturity: Any
    utility: str
    variant: str


def continual_backprop(
    rate: ArrayLike = 1e-4,
    decay: ArrayLike = 0.99,
    maturity: ArrayLike = 100,
    *,
    utility: Literal["contribution", "adaptable_contribution"] = "contribution",
    variant: Literal["paper", "official"] = "paper",
    spaces: Spaces = None,
) -> Intervention:
    r"""Replace the least useful of the mature units at a given rate.

    At every step the age of each unit grows by 1 and its utility is

    .. math:: u \leftarrow \eta u + (1-\eta) y, \qquad \hat u = u / (1 - \eta^{age})

    with :math:`y = \overline{|h|} \sum |w_{out}|` (`"contribution"`; equation 1) or
    :math:`y = \overline{|h - \hat{\bar h}|}\; \overline{|w_{out}|} / \overline{|w_{in}|}`
    (`"adaptable_contribution"`, used in the published supervised runs), with means over samples and entries and
    :math:`\hat{\bar h}` the corrected trace of the mean activation. Of the :math:`n` units of a space older than the
    maturity, :math:`\rho n` are due; whole units are replaced, lowest :math:`\hat u` first, and the remainder is
    carried over. (The paper's pseudo-code replaces at most one unit per step and space, which is the same at its
    rates.) The new unit has fresh incoming weights, zero outgoing ones, and age and utility 0; a weight between two
    units that are replaced in the same step is drawn anew, as in a loop over layers.

    - `variant="paper"`: the unit's mean output is moved into the biases of its readers (`move_means_into_biases`); the
        optimizer's state for its slices is cleared, whatever the optimizer.
    - `variant="official"`: follows the authors' code. The mean is set to 0 before it is used, so nothing is moved;
        outgoing magnitudes are means instead of sums (units are ranked the same); new biases are 0 instead of drawn;
        Adam's moments and per-weight step counts (`lopjax.optim.adam_per_weight`) are cleared, momentum is not.

    A fresh unit starts with utility 0 and zero outgoing weights: if it is still the least useful when it reaches
    maturity, it is replaced again and again (`with_lifetimes` counts this). In a run no longer than the maturity,
    nothing is ever replaced; `report.logs["mature"]` and `describe` show this.

    In a space with several sites, activations are averaged over them; magnitudes are those of all weight arrays.

    Args:
        rate: :math:`\rho` in [0, 1], the number of units replaced per mature unit and step.
        decay: :math:`\eta` in [0, 1).
        maturity: number of steps, at least 0.
        utility: name of the utility.
        variant: name of the variant.
        spaces: unit spaces; None for all that can be reset.

    Returns:
        The intervention; its state is a `Utilities`.

    Raises:
        ValueError: a number out of range, an unknown name; on `init`, an unknown or fixed space, or a state of another
            optimizer.

    References:
        Dohare et al., *Loss of plasticity in deep continual learning*, Nature 632 (2024), algorithm 1; code
        shibhansh/loss-of-plasticity, `lop/algos/gnt.py`.
    """
    check("rate", rate, 0.0, 1.0)
    check("decay", decay, 0.0, 1.0, is_open=True)
    check("maturity", maturity, 0.0)
    if utility not in UTILITIES:
        raise ValueError(f"utility={utility!r}: must be one of {UTILITIES}")
    if variant not in ("paper", "official"):
        raise ValueError(f"variant={variant!r}: must be 'paper' or 'official'")
    settings = Settings(rate, decay, maturity, utility, variant)

    def init(setting: Setting, state: TrainState) -> Utilities:
        check_state(setting, state)
        wiring = setting.model.wiring
        return _newborn({space: wiring.size(space) for space in spaces_of(wiring, spaces)})

    return Intervention(init, partial(_act, settings))


def _newborn(sizes: Mapping[str, int]) -> Utilities:
    zero = jnp.zeros(())
    return Utilities(
        utility={space: jnp.zeros(size) for space, size in sizes.items()},
        mean={space: jnp.zeros(size) for space, size in sizes.items()},
        age={space: jnp.zeros(size, jnp.int32) for space, size in sizes.items()},
        owed=dict.fromkeys(sizes, zero),
    )


def _act(
    settings: Settings,
    setting: Setting,
    own: Utilities,
    state: TrainState,
    observed: Observed,
    key: jax.Array,
    step: Any,
) -> tuple[TrainState, Utilities, Report]:
    """One step: update all traces and replace the units that are due."""
    updated, ranks, means = _observe(settings, setting.model.wiring, own, state.variables["params"], observed)
    mature, owed, num_due, chosen = _due(settings, updated, ranks)
    is_any = jnp.any(jnp.array([jnp.any(units) for units in chosen.values()]))

    def replace(state: TrainState) -> TrainState:
        return _replace(settings, setting, state, chosen, means, key)

    state = jax.lax.cond(is_any, replace, lambda state: state, state)
    return state, _renewed(updated, chosen, owed, num_due), _report(mature, chosen)


def _due(settings: Settings, updated: Utilities, ranks: PerSpace) -> tuple[PerSpace, PerSpace, PerSpace, PerSpace]:
    """Which units are mature, how many replacements are owed, how many of those are whole, and the chosen units."""
    mature = {space: age > settings.maturity for space, age in updated.age.items()}
    owed = {space: left + settings.rate * jnp.sum(mature[space]) for space, left in updated.owed.items()}
    num_due = {space: jnp.floor(number) for space, number in owed.items()}
    chosen = {space: lowest(ranks[space], mature[space], num_due[space]) for space in ranks}
    return mature, owed, num_due, chosen


def _report(mature: PerSpace, chosen: PerSpace) -> Report:
    number = sum(jnp.sum(mask) for mask in mature.values())
    reason = jnp.where(number > 0, reason_of(jnp.bool_(True), chosen), NONE_MATURE).astype(jnp.int32)
    logs = {"mature": number, "units": jnp.int32(sum(mask.size for mask in mature.values()))}
    return Report(chosen, reason, logs)


def lowest(
    ranks: Float[Array, " units"], eligible: Bool[Array, " units"], number: Float[ArrayLike, ""]
) -> Bool[Array, " units"]:
    """The given number of eligible units of lowest rank; ties are broken by index."""
    order = jnp.argsort(jnp.where(eligible, ranks, jnp.inf))
    position = jnp.zeros_like(order).at[order].set(jnp.arange(order.size, dtype=order.dtype))
    return eligible & (position < number)


def corrected(trace: Float[Array, " units"], decay: Any, age: Int32[Array, " units"]) -> Float[Array, " units"]:
    r"""A trace that started from 0, divided by :math:`1 - \eta^{age}`, which is computed without cancellation."""
    weight = -jnp.expm1(age * jnp.log(jnp.asarray(decay, trace.dtype)))
    return trace / jnp.where(weight == 0, 1, weight)


def _observe(
    settings: Settings, wiring: Wiring, own: Utilities, params: Any, observed: Observed
) -> tuple[Utilities, PerSpace, PerSpace]:
    """The traces after one more step; corrected utilities; corrected mean activations."""
    decay, taps = settings.decay, observed.taps
    age = {space: steps + 1 for space, steps in own.age.items()}

    def trace(old: jax.Array, new: jax.Array) -> jax.Array:
        return (decay * old + (1 - decay) * new).astype(old.dtype)

    def average(space: str, of: Any) -> jax.Array:
        return jnp.mean(over_sites(wiring, taps, space, of), axis=0)

    mean = {space: trace(old, average(space, mean_activation)) for space, old in own.mean.items()}
    means = {space: corrected(mean[space], decay, age[space]) for space in mean}

    def instantaneous(space: str) -> jax.Array:
        total = settings.variant == "paper" and settings.utility == "contribution"
        outgoing = weight_magnitude(wiring, params, In(space), jnp.sum if total else jnp.mean)
        outgoing = jnp.sum(outgoing, axis=0) if total else jnp.mean(outgoing, axis=0)
        if settings.utility == "contribution":
            return outgoing * average(space, mean_magnitude)
        spread = average(space, lambda tap: jnp.mean(jnp.abs(samples_by_units(tap.post) - means[space][None]), axis=0))
        incoming = jnp.mean(weight_magnitude(wiring, params, Out(space), jnp.mean), axis=0)
        return outgoing * spread / jnp.maximum(incoming, jnp.finfo(incoming.dtype).tiny)

    utility = {space: trace(old, instantaneous(space)) for space, old in own.utility.items()}
    ranks = {space: corrected(utility[space], decay, age[space]) for space in utility}
    return Utilities(utility, mean, age, own.owed), ranks, means


def _replace(
    settings: Settings, setting: Setting, state: TrainState, chosen: PerSpace, means: PerSpace, key: jax.Array
) -> TrainState:
    wiring, params = setting.model.wiring, state.variables["params"]
    if settings.variant == "paper":
        params = move_means_into_biases(wiring, params, chosen, means)
        state = state._replace(variables={**state.variables, "params": params})
        return reset_units(setting, state, chosen, key, crossing="draw")
    state = reset_units(setting, state, chosen, key, crossing="draw", only=is_adam)
    params = state.variables["params"]
    params = zero_biases(wiring, params, unit_masks(wiring, params, chosen).incoming)
    return state._replace(variables={**state.variables, "params": params})


def _renewed(updated: Utilities, chosen: PerSpace, owed: PerSpace, whole: PerSpace) -> Utilities:
    """Traces of replaced units start anew, and the replacements made are no longer owed."""

    def zeroed(tree: PerSpace) -> PerSpace:
        return {space: jnp.where(chosen[space], 0, values) for space, values in tree.items()}

    left = {space: (owed[space] - whole[space]).astype(old.dtype) for space, old in updated.owed.items()}
    return Utilities(zeroed(updated.utility), zeroed(updated.mean), zeroed(updated.age), left)
