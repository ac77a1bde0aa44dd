"""Rows of functions that make an intervention, or a threshold, of numbers: their arrays are these numbers.

What an intervention does to networks of every type is in `tests/repository/test_input_networks.py` and in the
conformance suite; here one network is changed, by settings of every type.
"""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_table import Row, Subject
from input_table.of_networks import ARRAYS, model_of, variables_of
from lopjax import detection, interventions, losses, recovery, signals, training
from lopjax.training import Setting

NO_ARRAYS = {
    **dict.fromkeys(("no samples", "one sample", "no units", "one unit", "labels"), "of numbers"),
    **dict.fromkeys(("tiny", "huge"), "a setting has a range of its own"),
    "wrong width": "of numbers",
}


def numbers(**given):
    """Settings by name, as arrays of no axes; integers stay integers."""
    arrays = {name: np.asarray(value) for name, value in given.items()}
    floats = tuple(name for name, value in arrays.items() if value.dtype.kind == "f")
    none = {} if floats else dict.fromkeys(("nan", "inf"), "integers")
    return Subject(arrays, carriers=floats, numbers=(*arrays,), ranked=(*arrays,), excused=NO_ARRAYS | none)


@cache
def network():
    """A setting, a state and what is observed in it: clones, a dead unit and a living one."""
    units = 4
    model = model_of(units, "relu")
    arrays = [jnp.asarray(ARRAYS[name], jnp.float32) for name in ("hidden", "bias", "head")]
    variables = variables_of(arrays[0].at[:, 3].set(0), arrays[1].at[3].set(-1), arrays[2])
    setting = Setting(model, optax.adam(0.5), losses.mean_cross_entropy)
    state = training.init_state(variables, setting.optimizer)
    batch = jnp.asarray(ARRAYS["x"], jnp.float32), jnp.asarray(ARRAYS["y"])
    return setting, state, signals.observe(model, variables, batch)


def intervention(make, **given):
    """A row of `make(*settings)`: the network after the step at which it acts."""

    def call(*settings):
        method = make(*settings)
        setting, state, seen = network()
        with jax.disable_jit():  # nothing is compiled but single operations, which all rows share
            started = training.start_intervention(method, setting, state)
            return training.intervene(method, setting, started, seen, jax.random.key(0), 1)[0].variables

    return Row(call, numbers(**given))


ROWS = {
    "interventions.continual_backprop": intervention(
        interventions.continual_backprop, rate=0.5, decay=0.5, maturity=1
    ),
    "interventions.cpr": intervention(interventions.cpr, strength=0.5, every=2, decay=0.5),
    "interventions.fire": intervention(
        lambda strength, every: interventions.fire(strength, every=every), strength=0.5, every=2
    ),
    "interventions.redo": intervention(interventions.redo, threshold=0.5, every=2),
    "interventions.regrama": intervention(interventions.regrama, threshold=0.5, every=2),
    "interventions.reset_layer": intervention(
        lambda every: interventions.reset_layer(["classes"], every), every=2
    ),
    "interventions.reset_optimizer": intervention(interventions.reset_optimizer, every=2),
    "interventions.self_normalized_resets": intervention(
        lambda percentile: interventions.self_normalized_resets(percentile, 2), percentile=0.5
    ),
    "interventions.split_clones": intervention(
        lambda *settings: interventions.split_clones(*settings, num_steps=1),
        tolerance=0.5, every=2, size=0.25, loss_tolerance=8.0,
    ),
    "interventions.wake_dead_units": intervention(
        interventions.wake_dead_units, every=2, tolerance=0.5, function_tolerance=0.5
    ),
    "recovery.kick_clones": intervention(recovery.kick_clones, scale=0.25, tolerance=0.5, every=2),
    "recovery.pull_to_start": intervention(recovery.pull_to_start, shrink=0.5, every=2),
    "recovery.recovery_controller": intervention(
        lambda every, cool_down, units, change, budget_every, jump, tolerance: recovery.recovery_controller(
            ("noise", "redo"), every=every, cool_down=cool_down, budget_units=units, budget_change=change,
            budget_every=budget_every, max_jump=jump, clone_tolerance=tolerance,
        ),
        every=2, cool_down=2, units=0.5, change=0.5, budget_every=2, jump=8.0, tolerance=0.25,
    ),
    "detection.thresholds": Row(
        lambda on, off: tuple(detection.thresholds({"dying": on}, {"dying": off})), numbers(on=0.75, off=0.25)
    ),
}  # fmt: skip
