"""What is measured of an agent: its score, symptoms and lives of units on the fixed probe, and what is certified."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.control.ppo import Moments, normalised
from experiments.control.setup import Bench
from lopjax.certificates import CloneVerdict, FrozenVerdict, certify_cloned, certify_frozen
from lopjax.cloning import find_clones
from lopjax.detection import Lives, unit_nearness, unit_status, update_lives
from lopjax.detection.nearness import Status
from lopjax.model import Variables, samples_by_units
from lopjax.probes import symptoms
from lopjax.training import Logs

SYMPTOMS = ("effective_rank", "stable_rank", "dead_fraction", "dormant_fraction", "duplicate_fraction")
FROZEN = (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE)
TRAPPED = (CloneVerdict.BLOCK_CONSTANT, CloneVerdict.ON_V, CloneVerdict.UP_TO_SYMMETRY)


def make_evaluate(bench: Bench, episodes: int) -> Callable[..., jax.Array]:
    """How well an agent does in a task: episodes from starts of their own, with the most probable action.

    Returns:
        `(variables, moments, tasks_key, key, task) -> mean return`.
    """
    world = bench.world

    def evaluate(
        variables: Variables, moments: Moments, tasks_key: jax.Array, key: jax.Array, task: jax.Array
    ) -> jax.Array:
        physics = world.physics(tasks_key, task)
        starts = jax.vmap(world.reset, in_axes=(0, None))(jax.random.split(key, episodes), physics)

        def act(play: _Episodes) -> _Episodes:
            outputs = bench.model.apply(variables, normalised(moments, play.observation)).logits
            action = jnp.argmax(outputs[:, :-1], axis=-1)
            step_keys = jax.random.split(key, episodes)  # nothing is drawn with them but starts that are not used
            move = jax.vmap(world.step, in_axes=(0, 0, 0, None))(step_keys, play.state, action, physics)
            total = play.total + jnp.where(play.is_over, 0, move.reward)
            return _Episodes(move.observation, move.state, total, play.is_over | move.terminated | move.truncated)

        begun = _Episodes(*starts, jnp.zeros(episodes), jnp.zeros(episodes, bool))
        return jnp.mean(jax.lax.while_loop(lambda play: ~jnp.all(play.is_over), act, begun).total)

    return evaluate


class _Episodes(NamedTuple):
    observation: jax.Array
    state: Any
    total: jax.Array
    is_over: jax.Array


def make_measure(bench: Bench) -> Callable[..., tuple[Lives, Logs]]:
    """`(variables, lives, touched, step, is_first) -> (lives, values)`: one network on the fixed probe.

    Values: symptoms by site and their mean; `units/dead`, `units/near_clone`; how many units `died`, `revived`, were
    `cloned`, `freed`, `saturated` or `reset` since the last measurement; root mean square of all parameters.
    """

    def measure(
        variables: Variables, lives: Lives, touched: Mapping[str, jax.Array], step: jax.Array, is_first: jax.Array
    ) -> tuple[Lives, Logs]:
        table = symptoms(bench.model, variables, bench.probe, loss=bench.loss)
        values = {f"probe/{name}/{site}": value for name in SYMPTOMS for site, value in table[name].items()}
        nearness = unit_nearness(bench.model, variables, bench.probe, loss=bench.loss)
        status = {space: unit_status(one) for space, one in nearness.items()}
        # At the first measurement nothing has happened yet.
        before = {space: jnp.where(is_first, status[space], lives.status[space]) for space in status}
        lives, events = update_lives(lives._replace(status=before), status, step, touched)
        values |= {f"units/{event}": number for event, number in events.items()}
        for name, kind in (("dead", Status.DEAD), ("near_clone", Status.NEAR_CLONE)):
            values[f"units/{name}"] = sum((jnp.sum(one == kind) for one in status.values()), jnp.int32(0))
        size = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        values["weight_norm"] = optax.tree.norm(variables["params"]) / jnp.sqrt(size)
        return lives, values

    return measure


def certified(bench: Bench, variables: Variables) -> dict[str, int]:
    """Of a network off the device, on the probe.

    Returns:
        `clones_found`: units that do what another living one does; `clones_certified`: units with a twin by their
        parameters, where that is certified to last; `dead_found`; `dead_certified`: those whose incoming parameters are
        certified to get no gradient on the probe.
    """
    found = find_clones(bench.model, variables, bench.probe[0])
    partition = {space: one.parameters for space, one in found.items() if _repeated(one.parameters)}
    by_activity = sum(
        max(_repeated(one.activations) - (one.silent if one.silent > 1 else 0), 0) for one in found.values()
    )
    counts = {"clones_found": by_activity, "clones_certified": 0, "dead_found": 0, "dead_certified": 0}
    if partition:
        verdict = certify_cloned(bench.model, variables, bench.probe, partition, loss=bench.loss).verdict
        counts["clones_certified"] = sum(map(_repeated, partition.values())) * (verdict in TRAPPED)
    taps = bench.model.apply(variables, bench.probe[0]).taps
    dead = {
        site: np.flatnonzero(np.all(np.asarray(samples_by_units(tap.post)) == 0, axis=0)).tolist()
        for site, tap in taps.items()
    }
    dead = {site: units for site, units in dead.items() if units}
    if dead:
        units = certify_frozen(bench.model, variables, bench.probe, dead, loss=bench.loss).units
        counts["dead_found"] = len(units)
        counts["dead_certified"] = sum(unit.verdict in FROZEN for unit in units)
    return counts


def _repeated(ids: tuple[int, ...]) -> int:
    """How many units share their cluster with another."""
    return sum(ids.count(one) > 1 for one in ids)
