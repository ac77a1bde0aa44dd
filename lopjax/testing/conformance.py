"""The conformance suite of interventions: one call, one network, one method."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.losses import check_batch, mean_cross_entropy
from lopjax.model import Model
from lopjax.testing import properties
from lopjax.testing.properties import Finding, Property
from lopjax.testing.scenario import (
    Act,
    Batch,
    Programs,
    faint,
    initial,
    named,
    other_inputs,
    plain,
    prepared,
    programs,
    see,
    setting_of,
    slices_of,
    starved,
    touched_spaces,
    until_it_acts,
)
from lopjax.training.interventions import Intervention, Setting, start_intervention
from lopjax.training.steps import TrainState

LANES = 16
# Steps that a unit is active before it dies, by which a record of it exists.
BEFORE_DEATH = 8
ALL = tuple(Property)


def check_intervention(
    make: Callable[[], Intervention],
    model: Model,
    batch: Batch,
    *,
    optimizer: optax.GradientTransformation | None = None,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    promises: Sequence[Property] = ALL,
    moves: Sequence[str] = (),
    state: TrainState | None = None,
    max_steps: int = 64,
    seed: int = 0,
    throw: bool = True,
) -> tuple[Finding, ...]:
    """Check that an intervention does what its kind promises, on one network; in float64.

    A network in the middle of training is prepared: one unit of every space has zero incoming weights, so that it is
    dormant; moments and statistics are drawn. The method sees the same batch step after step until it acts; then
    everything is compared, entry by entry, with what was before, and the logits on other inputs as well. Then it acts
    again in many lanes, half of which do something else, and on a network whose units were active until just before.

    Args:
        make: makes the intervention. Choose numbers with which it acts within `max_steps`.
        model: a small network: two programs are compiled.
        batch: `(inputs, labels)`, NumPy arrays.
        optimizer: whose state is watched; `optax.adam` by default.
        loss: `(logits, labels) -> scalar`.
        promises: which properties it has; all of `Property` by default. A method that keeps outgoing weights does not
            promise `OUTGOING`, one without utilities not `UTILITIES`.
        moves: ends of the paths of further parameters that it may change, such as `"['bias']"` for one that moves a
            constant into biases.
        state: a network on which it acts, instead of the one prepared.
        max_steps: how many steps it is given.
        seed: seed of the network and of the keys.
        throw: raise where a property fails.

    Returns:
        A finding for each property, in their order; `holds` is None where this network does not show it.

    Raises:
        ValueError: a batch that the network or the loss does not take.
        AssertionError: a property fails (if `throw`), or the method has not acted; says which and what was seen.
    """
    with jax.enable_x64(True):
        intervention, setting = make(), setting_of(model, optimizer, loss)
        check_batch(model, initial(model)(jax.random.key(seed)), batch, loss=loss)
        alive = prepared(setting, seed) if state is None else state
        start = start_intervention(intervention, setting, starved(setting, alive) if state is None else state)
        compiled = programs(intervention, setting)
        observed, key = see(setting, start, batch), jax.random.key(seed)
        act = until_it_acts(compiled.alone, setting, start, observed, key, range(max_steps))
        if act is None:
            raise AssertionError(
                f"in {max_steps} steps it has not acted: choose numbers, or a state, with which it does"
            )
        findings = _findings(intervention, compiled, act, start, alive, batch, key, promises, moves, max_steps)
    if throw and (failed := [one for one in findings if one.holds is False]):
        lines = "\n".join(f"  {one.property.name} ({one.property.value}): {one.evidence}" for one in failed)
        raise AssertionError(f"{len(failed)} of {len(findings)} properties fail:\n{lines}")
    return findings


def _findings(
    intervention: Intervention,
    compiled: Programs,
    act: Act,
    start: TrainState,
    alive: TrainState,
    batch: Batch,
    key: jax.Array,
    wanted: Sequence[Property],
    moves: Sequence[str],
    max_steps: int,
) -> tuple[Finding, ...]:
    checks: dict[Property, Callable[[], Finding]] = {
        Property.FUNCTION: lambda: properties.function(act, other_inputs(batch[0], 1)),
        Property.JUST_DIED: lambda: _just_died(intervention, compiled, act.setting, alive, batch, key, max_steps),
        Property.SLICES: lambda: properties.slices(act, moves),
        Property.OUTGOING: lambda: properties.outgoing(act),
        Property.OPTIMIZER: lambda: properties.optimizer(act),
        Property.STATISTICS: lambda: properties.statistics(act, initial(act.setting.model)(key)),
        Property.AGEING: lambda: _ageing(intervention, act, key),
        Property.UTILITIES: lambda: _utilities(compiled, act, start, batch, key, max_steps),
        Property.GRADIENT: lambda: _gradient(compiled, act, key),
        Property.NOTHING_ELSE: lambda: properties.nothing_else(act),
    }
    if Property.LAW in wanted or Property.KEYS in wanted:
        lanes = _company(compiled, act, start, key)
        checks |= {
            Property.LAW: lambda: properties.law(act, *_drawn(act, lanes)),
            Property.KEYS: lambda: _keys(compiled, act, start, key, lanes),
        }
    return tuple(checks[kind]() for kind in wanted)


def _just_died(
    intervention: Intervention,
    compiled: Programs,
    setting: Setting,
    alive: TrainState,
    batch: Batch,
    key: jax.Array,
    max_steps: int,
) -> Finding:
    """Units that were active for some steps, and of next to no use, are zero on every input from then on.

    What the method remembers of them is not zero. It sees the dead network until it touches such units alone; other
    acts of its are undone.
    """
    alive = faint(setting, alive)
    own = start_intervention(intervention, setting, alive).own
    observed, step = see(setting, alive, batch), 0
    for step in range(BEFORE_DEATH):
        own = compiled.alone(alive._replace(own=own), observed, jax.random.fold_in(key, step), jnp.int32(step))[0].own
    dead = starved(setting, alive)
    observed, steps = see(setting, dead, batch), iter(range(step + 1, step + 1 + max_steps))
    for step in steps:
        act = until_it_acts(compiled.alone, setting, dead._replace(own=own), observed, key, [step])
        if act is not None and touched_spaces(act) and not properties.awake_spaces(act, observed.taps):
            return properties.function(act, other_inputs(batch[0], 1), Property.JUST_DIED)
        own = compiled.alone(dead._replace(own=own), observed, jax.random.fold_in(key, step), jnp.int32(step))[0].own
    return Finding(Property.JUST_DIED, None, "it has not touched units that had just died, and no others")


def _lane(act: Act, start: TrainState, key: jax.Array, index: int) -> tuple[Any, ...]:
    """What lane `index` is given: the act with a key of its own, or (odd ones) the first step, off the schedule."""
    own_key = jax.random.fold_in(key, act.step if index == 0 else 10_000 + index)
    if index % 2 == 0:
        return act.before, act.observed, own_key, jnp.int32(act.step)
    task = act.observed.task._replace(is_start=jnp.bool_(False))
    return start, act.observed._replace(task=task), own_key, jnp.int32(act.step + 1)


def _company(compiled: Programs, act: Act, start: TrainState, key: jax.Array) -> tuple[TrainState, Any]:
    """Many lanes at once; stacked by NumPy, where nothing is compiled."""

    def stack(*leaves: Any) -> Any:
        if jnp.issubdtype(jnp.result_type(leaves[0]), jax.dtypes.prng_key):
            return jnp.stack(leaves)
        return np.stack([np.asarray(leaf) for leaf in leaves])

    lanes = [_lane(act, start, key, index) for index in range(LANES)]
    return compiled.company(*jax.tree.map(stack, *lanes))


def _drawn(act: Act, lanes: tuple[TrainState, Any]) -> tuple[Any, list[Any]]:
    after, report = lanes
    touched = [{space: np.asarray(mask[i]) for space, mask in report.touched.items()} for i in range(LANES)]
    wiring, variables = act.setting.model.wiring, act.before.variables
    slices = [slices_of(wiring, variables, t) if any(m.any() for m in t.values()) else None for t in touched]
    return jax.device_get(after.variables), slices


def _keys(compiled: Programs, act: Act, start: TrainState, key: jax.Array, lanes: Any) -> Finding:
    """Lanes 0 (the act itself) and 1 (off the schedule) against the same alone; the others differ by their keys."""
    faults = []
    for index in range(2):
        alone = compiled.alone(*_lane(act, start, key, index))
        beside = jax.tree.map(lambda leaf, index=index: leaf[index], lanes)
        for (path, a), b in zip(named(plain(alone)).items(), jax.tree.leaves(plain(beside)), strict=True):
            a, b = np.asarray(a), np.asarray(b)
            # Under vmap sums are taken in another order.
            if not np.allclose(a.astype(float), b.astype(float), rtol=1e-10, atol=1e-12, equal_nan=True):
                faults.append(f"lane {index}: {path} differs in company")
    again = compiled.alone(*_lane(act, start, key, 0))[0].variables
    pairs = zip(jax.tree.leaves(again), jax.tree.leaves(act.after.variables), strict=True)
    if not all(np.array_equal(a, b) for a, b in pairs):
        faults.append("the same call gives another result")
    return properties.finding(Property.KEYS, faults, f"{LANES} lanes, half of them acting")


def _ageing(intervention: Intervention, act: Act, key: jax.Array) -> Finding:
    """Traced twice it must be the same program: what it keeps outside its own state would be a constant of it."""

    def traced() -> str:
        arguments = act.before.own, act.before._replace(own=()), act.observed, key, jnp.int32(act.step)
        jaxpr = jax.make_jaxpr(lambda own, *rest: intervention.apply(act.setting, own, *rest))(*arguments)
        return f"{jaxpr.jaxpr}{[np.asarray(plain(one)).tolist() for one in jaxpr.consts]}"

    faults = [] if traced() == traced() else ["traced twice it is not the same program"]
    return properties.finding(Property.AGEING, faults, "traced twice it is the same program")


def _gradient(compiled: Programs, act: Act, key: jax.Array) -> Finding:
    """The same act with another gradient on the touched slices."""
    either = jax.tree.map(np.logical_or, act.slices.incoming["params"], act.slices.outgoing["params"])
    gradient = jax.tree.map(lambda g, mask: np.where(mask, np.asarray(g) + 1.0, g), act.observed.gradient, either)
    own_key = jax.random.fold_in(key, act.step)
    after, report = compiled.alone(act.before, act.observed._replace(gradient=gradient), own_key, jnp.int32(act.step))
    if any(np.any(np.asarray(report.touched[space]) != units) for space, units in act.touched.items()):
        return Finding(Property.GRADIENT, None, "it chooses other units, as it goes by the gradient")
    pairs = zip(named(after.variables).items(), jax.tree.leaves(act.after.variables), strict=True)
    faults = [f"{path} changes with the gradient" for (path, a), b in pairs if not np.array_equal(a, b)]
    return properties.finding(Property.GRADIENT, faults, "with another gradient the same comes out")


def _utilities(
    compiled: Programs, act: Act, start: TrainState, batch: Batch, key: jax.Array, max_steps: int
) -> Finding:
    """Equal units, of which the first that is touched then gets larger outgoing weights than the others.

    From there on it is the last that should be chosen, as long as one of the others has never been.
    """
    space = touched_spaces(act)[0]
    equal = _alike(act.setting, start, space, act.touched[space])
    observed = see(act.setting, equal, batch)
    first = until_it_acts(compiled.alone, act.setting, equal, observed, key, range(max_steps))
    if first is None or not first.touched[space].any() or first.touched[space].all():
        return Finding(Property.UTILITIES, None, "it does not choose between units that are equal")
    favoured = first.touched[space]
    state = _scaled(act.setting, equal, space, favoured)._replace(own=first.after.own)
    observed, ever = see(act.setting, state, batch), favoured.copy()
    for step in range(first.step + 1, first.step + 1 + max_steps):
        after, report = compiled.alone(state, observed, jax.random.fold_in(key, step), jnp.int32(step))
        touched = np.asarray(report.touched[space])
        if (touched & favoured).any() and (~ever & ~touched).any():
            evidence = f"step {step}: a unit of higher utility than others was chosen before them"
            return Finding(Property.UTILITIES, False, evidence)
        ever |= touched
        state = state._replace(own=after.own)
    return Finding(Property.UTILITIES, True, f"{max_steps} steps, {int(ever.sum())} of {ever.size} units chosen")


def _alike(setting: Setting, state: TrainState, space: str, avoid: np.ndarray) -> TrainState:
    """All units of a space become copies of one that is not among those to avoid."""
    model = int(np.argmin(avoid))
    return _edited(setting, state, space, lambda slices: np.broadcast_to(slices[model], slices.shape), both=True)


def _scaled(setting: Setting, state: TrainState, space: str, units: np.ndarray) -> TrainState:
    """Outgoing weights of some units, a fifth larger."""

    def times(slices: np.ndarray) -> np.ndarray:
        return slices * np.where(units, 1.2, 1.0).reshape(-1, *[1] * (slices.ndim - 1))

    return _edited(setting, state, space, times, both=False)


def _edited(setting: Setting, state: TrainState, space: str, edit: Callable, both: bool) -> TrainState:
    wiring, params = setting.model.wiring, state.variables["params"]
    leaves = []
    for label, leaf in zip(wiring.labels_of(params), jax.tree.leaves(params), strict=True):
        changed = np.array(leaf)
        for index, axis in enumerate(label.axes):
            if axis is not None and axis.space == space and (both or space in label.reads()):
                moved = np.moveaxis(changed, index, 0)
                moved[...] = edit(moved.copy())
        leaves.append(changed)
    params = jax.tree.unflatten(jax.tree.structure(params), leaves)
    return state._replace(variables={**state.variables, "params": params})
