"""Test of effect on the Gaussian mixtures: Adam loses plasticity on a deep tanh network, three remedies lose less.

All are lanes of one program: what a lane does not do has strength 0. The remedies and their strengths were chosen by
the table of `docs/remedies.md`, on seeds 100 and 101; these seeds have been in no other run.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from experiments.remedies.config import StreamConfig
from experiments.remedies.lane import keys_of, make_program
from experiments.remedies.methods import Remedy
from experiments.remedies.streams import make_bench
from lopjax.optim import l2_init, parseval
from lopjax.training import make_chunk, over_lanes, start_lanes

pytestmark = pytest.mark.slow

SEEDS, TASKS, STEPS = range(300, 304), 8, 300
PLAIN = {"is_fresh": False, "times_rate": 1.0, "l2_init": 0.0, "parseval": 0.0}
LANES = {
    "fresh": PLAIN | {"is_fresh": True},
    "plain": PLAIN,
    "a smaller step": PLAIN | {"times_rate": 0.3},
    "l2 towards the start": PLAIN | {"l2_init": 0.01},
    "parseval": PLAIN | {"parseval": 1e-4},
}


def optimizer(base, settings, rate, model, key):
    """Adam, and before it whatever of the remedies is not of strength 0."""
    penalties = l2_init(settings["l2_init"], "official"), parseval(settings["parseval"], model.wiring)
    return optax.chain(*penalties, base(rate * settings["times_rate"]))


@pytest.fixture(scope="module")
def away():
    """By lane, accuracy before each update less the fresh network's on the same batches, `(seeds, tasks)`."""
    bench = make_bench("mixtures", StreamConfig(TASKS, STEPS, 100, 0.003, (32,) * 10))
    program = make_program(bench, Remedy("all of them", {"adam": tuple(LANES.values())}, optimizer))
    numbers = jnp.repeat(jnp.arange(len(LANES)), len(SEEDS))
    keys = jax.jit(jax.vmap(keys_of))(jnp.tile(jnp.array(SEEDS), len(LANES)))
    lanes = start_lanes(over_lanes(program.start, 2)(keys, numbers))
    chunk, online = make_chunk(program.step, bench.stream), []
    for task in range(TASKS):
        lanes, logs = chunk(lanes, keys.lane, task * STEPS, STEPS, bench.stream.data)
        online.append(np.asarray(logs["online"]).reshape(len(LANES), len(SEEDS)))
    scores = np.stack(online, axis=-1)
    return dict(zip(LANES, scores - scores[:1], strict=True))


def interval(values):
    """Mean over seeds and its 95 % interval by Student's t."""
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return values.mean(), values.mean() - half, values.mean() + half


def late(values):
    return values[:, TASKS // 2 :].mean(axis=1)


def test_adam_loses_plasticity(away):
    """The first task is the same for both: there is nothing to lose yet."""
    np.testing.assert_allclose(away["plain"][:, 0], 0, atol=1e-6)
    _, _, high = interval(late(away["plain"]))
    assert high < -0.05


@pytest.mark.parametrize("remedy", [name for name in LANES if name not in ("fresh", "plain")])
def test_a_remedy_loses_measurably_less(remedy, away):
    """Paired over seeds: it keeps at least half of what Adam loses. The control is Adam itself, above."""
    spared, low, _ = interval(late(away[remedy] - away["plain"]))
    assert low > 0
    assert spared > -late(away["plain"]).mean() / 2
