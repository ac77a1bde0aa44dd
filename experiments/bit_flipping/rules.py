"""Rules that watch the units of one lane: a cheap part at every step, and a rare part that replaces units.

The library's interventions are whole: a step of theirs has a branch that draws a new network, which is skipped unless
a unit is replaced. Side by side in one vector of lanes a branch can be skipped only if no lane takes it, so here the
two parts are apart. Each rule keeps the state of the library's intervention (`intervention`), and equals it step by
step; the tests compare them.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from lopjax import interventions
from lopjax.interventions.compensation import zero_biases
from lopjax.interventions.continual_backprop import corrected, lowest
from lopjax.interventions.moments import is_adam
from lopjax.interventions.self_normalized_resets import is_overdue, listen
from lopjax.signals import observe
from lopjax.training import Intervention, Setting, TrainState, init_state
from lopjax.wiring import unit_masks

SPACE = "hidden_0"
Numbers = Mapping[str, Any]
Touched = Bool[Array, " units"]


class Rule(NamedTuple):
    """One way of replacing units while a network learns.

    Attributes:
        intervention: `numbers -> the library's intervention`.
        watch: `(numbers, own, params, pre, post) -> (own, is_wanted)`: its state after one more step, on the updated
            parameters and the activations before the update, and whether any unit is to be replaced.
        replace: `(numbers, setting, state, own, key) -> (state, own, touched)`, where it is.
    """

    intervention: Callable[[Numbers], Intervention]
    watch: Callable[..., tuple[Any, Bool[Array, ""]]]
    replace: Callable[..., tuple[TrainState, Any, Touched]]


# --- Continual backprop --------------------


def _continual_backprop(variant: str) -> Rule:
    """Paper: contribution, means moved into the bias. Official code: adaptable contribution, nothing moved."""
    is_paper = variant == "paper"

    def intervention(numbers: Numbers) -> Intervention:
        return interventions.continual_backprop(
            numbers["replacement_rate"],
            numbers["utility_decay"],
            numbers["maturity"],
            utility="contribution" if is_paper else "adaptable_contribution",
            variant="paper" if is_paper else "official",
        )

    def watch(
        numbers: Numbers, own: interventions.Utilities, params: Any, pre: jax.Array, post: Float[Array, " units"]
    ) -> tuple[interventions.Utilities, jax.Array]:
        decay, age = numbers["utility_decay"], own.age[SPACE] + 1
        mean = (decay * own.mean[SPACE] + (1 - decay) * post).astype(post.dtype)
        useful = jnp.abs(params["classes"]["kernel"][:, 0])
        if is_paper:
            useful = useful * jnp.abs(post)
        else:
            incoming = jnp.mean(jnp.abs(params[SPACE]["kernel"]), axis=0)
            spread = jnp.abs(post - corrected(mean, decay, age))
            useful = useful * spread / jnp.maximum(incoming, jnp.finfo(incoming.dtype).tiny)
        utility = (decay * own.utility[SPACE] + (1 - decay) * useful).astype(post.dtype)
        owed = own.owed[SPACE] + numbers["replacement_rate"] * jnp.sum(age > numbers["maturity"])
        owed = owed.astype(own.owed[SPACE].dtype)
        utilities = interventions.Utilities({SPACE: utility}, {SPACE: mean}, {SPACE: age}, {SPACE: owed})
        return utilities, owed >= 1

    def replace(
        numbers: Numbers, setting: Setting, state: TrainState, own: interventions.Utilities, key: jax.Array
    ) -> tuple[TrainState, interventions.Utilities, Touched]:
        decay, age, num_due = numbers["utility_decay"], own.age[SPACE], jnp.floor(own.owed[SPACE])
        replaced = lowest(corrected(own.utility[SPACE], decay, age), age > numbers["maturity"], num_due)
        units, wiring, params = {SPACE: replaced}, setting.model.wiring, state.variables["params"]
        if is_paper:
            means = {SPACE: corrected(own.mean[SPACE], decay, age)}
            params = interventions.move_means_into_biases(wiring, params, units, means)
            state = interventions.reset_units(
                setting, state._replace(variables={"params": params}), units, key, crossing="draw"
            )
        else:
            state = interventions.reset_units(setting, state, units, key, crossing="draw", only=is_adam)
            params = state.variables["params"]
            params = zero_biases(wiring, params, unit_masks(wiring, params, units).incoming)
            state = state._replace(variables={"params": params})
        utility, mean, age = (
            {SPACE: jnp.where(replaced, 0, values[SPACE])} for values in (own.utility, own.mean, own.age)
        )
        return state, interventions.Utilities(utility, mean, age, {SPACE: own.owed[SPACE] - num_due}), replaced

    return Rule(intervention, watch, replace)


# --- Self-normalised resets --------------------


def _watch_silences(
    numbers: Numbers, own: interventions.Silences, params: Any, pre: Float[Array, " units"], post: jax.Array
) -> tuple[interventions.Silences, jax.Array]:
    silence, record = listen(own.now[SPACE], own.record[SPACE], pre > 0)
    overdue = is_overdue(silence, record, numbers["percentile"])
    return interventions.Silences({SPACE: silence}, {SPACE: record}), jnp.any(overdue)


def _replace_silent(
    numbers: Numbers, setting: Setting, state: TrainState, own: interventions.Silences, key: jax.Array
) -> tuple[TrainState, interventions.Silences, Touched]:
    silence, record = own.now[SPACE], own.record[SPACE]
    silent = is_overdue(silence, record, numbers["percentile"])
    state = interventions.reset_units(setting, state, {SPACE: silent}, key)
    cleared = {SPACE: jnp.where(silent, 0, silence)}, {SPACE: jnp.where(silent[:, None], 0, record)}
    return state, interventions.Silences(*cleared), silent


RULES: dict[str, Rule] = {
    "continual_backprop": _continual_backprop("paper"),
    "continual_backprop_official": _continual_backprop("official"),
    "self_normalized_resets": Rule(
        lambda numbers: interventions.self_normalized_resets(numbers["percentile"]), _watch_silences, _replace_silent
    ),
}
"""By name, as in `methods.METHODS`."""


# --- Between blocks --------------------


def act(
    name: str, numbers: Numbers, setting: Setting, state: TrainState, batch: tuple[jax.Array, jax.Array], key: jax.Array
) -> tuple[TrainState, jax.Array]:
    """Let ReDo or clone splitting act on the inputs of the last block, or start a fresh network.

    Returns:
        The state, and how many units were touched.
    """
    if name == "fresh":
        width = setting.model.wiring.size(SPACE)
        return init_state(setting.model.init(key), setting.optimizer), jnp.int32(width)
    if name == "redo":
        method = interventions.redo(numbers["redo_threshold"], every=1)
    else:
        method = interventions.split_clones(numbers["clone_tolerance"], every=1)
    observed = observe(setting.model, state.variables, batch, loss=setting.loss, train=True, signals=False)
    state, _, report = method.apply(setting, (), state, observed, key, 0)
    return state, jnp.sum(report.touched[SPACE], dtype=jnp.int32)
