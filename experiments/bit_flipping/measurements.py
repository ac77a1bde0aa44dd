"""What is measured at every record of one lane: symptoms on a fixed probe and on the task at hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from experiments.bit_flipping.lane import Trainee
from experiments.bit_flipping.rules import SPACE
from experiments.bit_flipping.setup import Setup, squared_error
from lopjax.metrics import dead_units
from lopjax.model import Model
from lopjax.probes import symptoms
from lopjax.training import Logs
from lopjax.training.bit_flipping import prepared_block, target_network, target_values

SYMPTOMS = ("effective_rank", "dead_fraction", "duplicate_fraction", "saturated_fraction")


def probe_inputs(setup: Setup) -> jax.Array:
    """The fixed batch: every bit a fair coin, the same for every lane, so that it belongs to no task in particular."""
    key = jax.random.key(0, impl="philox4x32")
    shape = (setup.config.probe_samples, setup.config.num_inputs)
    return jax.random.bernoulli(key, shape=shape).astype(jnp.zeros(()).dtype)


def dead_on_probe(setup: Setup, model: Model, lane: Trainee) -> jax.Array:
    """Which units are dead on the fixed batch."""
    if not lane.dead.size:
        return lane.dead
    return dead_units(model.apply(lane.net.variables, probe_inputs(setup)).taps[SPACE].post)


def make_measure(setup: Setup, model: Model) -> Callable[[Trainee, jax.Array, jax.Array], Logs]:
    """`measure(lane, lane_key, step) -> values` after `step` steps.

    Values: the four symptoms as `probe/...` on the fixed batch and as `stream/...` on all inputs of the task of the
    last step; `units/dead` on the fixed batch, and how many `died` and `revived` since the record before; `weights`,
    the root mean square of the incoming weights; `task_error`, the mean error over all inputs of the task.
    """

    def measure(lane: Trainee, lane_key: jax.Array, step: jax.Array) -> Logs:
        variables, key = lane.net.variables, jax.random.split(lane_key)[0]
        prepared = prepared_block(setup.problem, key, step - 1)
        error = squared_error(model.apply(variables, prepared.inputs).logits, prepared.targets)
        values = {"task_error": error}
        if not lane.dead.size:
            return values
        inputs = probe_inputs(setup)
        targets = target_values(target_network(setup.problem, jax.random.split(key, 3)[0]), inputs)
        for where, batch in (("probe", (inputs, targets)), ("stream", (prepared.inputs, prepared.targets))):
            table = symptoms(model, variables, batch, loss=squared_error)
            values |= {f"{where}/{name}": table[name]["mean"] for name in SYMPTOMS}
        is_dead, was_dead = dead_on_probe(setup, model, lane), lane.dead
        values |= {
            "units/dead": jnp.sum(is_dead),
            "units/died": jnp.sum(is_dead & ~was_dead),
            "units/revived": jnp.sum(was_dead & ~is_dead),
            "weights": jnp.sqrt(jnp.mean(jnp.square(variables["params"][SPACE]["kernel"]))),
        }
        return values

    return measure
