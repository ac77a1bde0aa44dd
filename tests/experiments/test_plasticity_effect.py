"""Tests of effect on the stream of upgd: the plain optimizer loses plasticity, and three remedies do not.

Network, stream and settings are those of the table in `docs/remedies.md`, on seeds that it has not used. Scores are
online, and always less those of a network drawn anew for every task on the same batches; all intervals are paired. On
the mixtures ten seeds of ten tasks, four minutes, did not decide the paired differences: the table has them.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.kit.intervals import interval
from experiments.remedies.config import Config
from experiments.remedies.lane import keys_of, make_program
from experiments.remedies.methods import METHODS, Remedy
from experiments.remedies.report import BASES
from experiments.remedies.streams import make_bench
from lopjax.interventions import Intervention, fire
from lopjax.training import make_chunk, over_lanes, start_lanes

pytestmark = pytest.mark.slow

AS_PLAIN = {"is_fresh": False, "fire": 0.0}


class Design(NamedTuple):
    """How a stream is run: its tasks, the seeds, and the settings of one program, of which the first is fresh."""

    stream: str
    num_tasks: int
    seeds: tuple[int, ...]
    rows: dict[str, dict[str, Any]]


DESIGNS = {
    "upgd": Design(
        "upgd", 240, (0, 1, 2, 3), {"fresh": {"is_fresh": True}, "plain": {}, "FIRE": {"fire": 1.0}}
    ),
}  # fmt: skip


def several(rows: dict[str, dict[str, Any]], base: str) -> Remedy:
    """Rows as settings of one method, so that all lanes share a program."""
    settings = tuple({**AS_PLAIN, **row} for row in rows.values())

    def optimizer(plain: Any, numbers: Any, rate: float, model: Any, key: jax.Array) -> optax.GradientTransformation:
        return plain(rate)

    def act(settings: Any) -> Intervention:
        return fire(settings["fire"])

    return Remedy("several", {base: settings}, optimizer, act, needs_boundaries=True)


def online(design: Design, remedy: Remedy, settings: range) -> np.ndarray:
    """Online scores, `(settings, seeds, tasks)`."""
    bench = make_bench(design.stream, getattr(Config(), design.stream))
    program = make_program(bench, remedy)
    keys = jax.vmap(keys_of)(jnp.tile(jnp.array(design.seeds), len(settings)))
    numbers = jnp.repeat(jnp.array(settings, jnp.int32), len(design.seeds))
    lanes = start_lanes(over_lanes(program.start, 2)(keys, numbers))
    chunk, steps, scores = make_chunk(program.step, bench.stream), bench.sizes.steps, []
    for task in range(design.num_tasks):
        lanes, logs = chunk(lanes, keys.lane, task * steps, steps, bench.stream.data)
        scores.append(np.asarray(logs["online"]))
    return np.stack(scores, axis=1).reshape(len(settings), len(design.seeds), design.num_tasks)


def gained(scores: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """By seed, the distance from fresh networks over the last half of the tasks less that over the first fifth."""
    away = scores - fresh
    num = away.shape[-1]
    return away[..., num // 2 :].mean(axis=-1) - away[..., : num // 5].mean(axis=-1)


def keeps(own: np.ndarray, lost: np.ndarray) -> bool:
    """Whether a remedy's own change excludes half of what is lost, and it is better than plain, seed by seed."""
    return interval(own).low > lost.mean() / 2 and interval(own - lost).low > 0


@cache
def gains(stream: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """By row of a stream's design what every seed gained, and the scores of the fresh networks."""
    design = DESIGNS[stream]
    scores = online(design, several(design.rows, BASES[stream]), range(len(design.rows)))
    return dict(zip(design.rows, gained(scores, scores[0]), strict=True)), scores[0]


@pytest.mark.parametrize("stream", DESIGNS)
def test_the_plain_optimizer_loses_and_remedies_do_not(stream):
    """The control is the plain optimizer itself, which by the same criterion does not keep plasticity."""
    by_row, _ = gains(stream)
    lost = by_row["plain"]
    assert interval(lost).high < 0
    assert not keeps(lost, lost)
    assert all(keeps(own, lost) for name, own in by_row.items() if name not in ("fresh", "plain"))


@pytest.mark.parametrize(("method", "setting"), [("upgd", 0), ("continual_backprop", 3)])
def test_methods_with_a_program_of_their_own_gain_on_the_stream_of_upgd(method, setting):
    """UPGD itself, and a reset of units, on the stream that it was made for."""
    by_row, fresh = gains("upgd")
    own = gained(online(DESIGNS["upgd"], METHODS[method], range(setting, setting + 1))[0], fresh)
    assert keeps(own, by_row["plain"])
    assert interval(own).low > 0
