"""Tests of effect: on two streams the plain optimizer loses plasticity, and three remedies on each do not.

All conditions and seeds of a stream are lanes of one program: the numbers of the remedies are zero where they are off.
Score: accuracy, or minus the squared error, less that of a network drawn anew for every task on the same batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.continual.report import interval
from experiments.remedies.config import StreamConfig
from experiments.remedies.lane import keys_of, make_program
from experiments.remedies.methods import Remedy
from experiments.remedies.streams import make_bench
from lopjax.optim import l2_init, nap, parseval
from lopjax.training import make_chunk, over_lanes, start_lanes

OFF = {"is_fresh": False, "l2": 0.0, "parseval": 0.0, "shrink": 0.0, "projects": False}
CONTROLS = {"fresh": {"is_fresh": True}, "plain": {}}


def family(base, settings, rate, model, key):
    """The plain optimizer with an L2 penalty towards the start, Parseval, weight decay and projection, each or none."""
    own = base(rate)
    chain = optax.chain(
        l2_init(settings["l2"], "official"),
        parseval(settings["parseval"], model.wiring),
        own,
        optax.add_decayed_weights(-settings["shrink"]),
    )
    projected, init = nap(model.wiring), chain.init

    def update(updates, state, params):
        updates, inner = chain.update(updates, state[0], params)
        moved, kept = projected.update(updates, state[1], params)
        return jax.tree.map(lambda a, b: jnp.where(settings["projects"], a, b), moved, updates), (inner, kept)

    return optax.GradientTransformation(lambda params: (init(params), projected.init(params)), update)


def scores(stream, sizes, conditions, num_seeds):
    """Online score of every record, less that of the fresh networks: `{condition: (seeds, records)}`."""
    conditions = {**CONTROLS, **conditions}
    bench = make_bench(stream, sizes)
    rows = tuple({**OFF, **one} for one in conditions.values())
    program = make_program(bench, Remedy("family", {bench.base: rows}, family))
    chunk = make_chunk(program.step, bench.stream)
    keys = jax.vmap(keys_of)(jnp.tile(jnp.arange(num_seeds), len(rows)))
    settings = jnp.repeat(jnp.arange(len(rows)), num_seeds)
    lanes = start_lanes(over_lanes(program.start, 2)(keys, settings))
    every, found = sizes.steps * sizes.tasks_per_record, []
    for number in range(sizes.num_tasks // sizes.tasks_per_record):
        lanes, logs = chunk(lanes, keys.lane, number * every, every, bench.stream.data)
        found.append(np.asarray(logs["online"]).reshape(len(rows), num_seeds))
    found = np.moveaxis(np.array(found), 0, -1)
    return {name: found[index] - found[0] for index, name in enumerate(conditions)}


def late(curves):
    return curves[:, curves.shape[1] // 2 :].mean(axis=1)
