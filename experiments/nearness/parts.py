"""The parts of a run: one a network and optimizer, all seeds in one program."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.kit.coarse_digits import Batch, loss_of, renamed
from experiments.nearness.config import NETWORKS, Config, Rule, distances_of
from experiments.nearness.distances import distance_named
from experiments.nearness.setup import Setup
from lopjax.model import Model
from lopjax.runs.schedule import Part
from lopjax.training import Logs, over_lanes

Records = list[dict[str, Any]]
KINDS = {"own": False, "control": True}


def parts(config: Config, setup: Setup) -> list[Part]:
    """All parts of a run."""
    num_records = len(config.seeds) * (config.tasks + 1)
    steps = len(config.seeds) * config.tasks * config.steps
    return [
        Part(f"{name}: {rule}", steps, partial(_train, setup, name, rule), lambda: jnp.zeros(()), num_records)
        for name in NETWORKS
        for rule in config.rules
    ]


def optimizer(config: Config, rule: Rule) -> optax.GradientTransformation:
    """One of the config's rules, at its rate."""
    rate = dict(zip(config.rules, config.learning_rates, strict=True))[rule]
    return optax.sgd(rate) if rule == "sgd" else optax.adam(rate)


def life(
    model: Model,
    rule: optax.GradientTransformation,
    config: Config,
    names: tuple[str, ...],
    seed: jax.Array,
    batch: Batch,
) -> Logs:
    """Distances at the start and after every task, `(tasks + 1, units)` each, and the loss at its end.

    The optimizer keeps its state from task to task.
    """
    inputs, labels = batch
    start, tasks, mixing = jax.random.split(jax.random.key(seed, impl="philox4x32"), 3)
    initial = model.init(start)["params"]

    def measured(params: Any, number: jax.Array) -> Logs:
        key = jax.random.fold_in(mixing, number)
        return {
            f"{name} {kind}": distance_named(name, is_control)(params, initial, key)
            for name in names
            for kind, is_control in KINDS.items()
        }

    def task(state: tuple, number: jax.Array) -> tuple[tuple, Logs]:
        own = inputs, renamed(jax.random.fold_in(tasks, number), labels)

        def step(state: tuple, _: None) -> tuple[tuple, None]:
            params, memory = state
            change, memory = rule.update(jax.grad(lambda each: loss_of(model, each, own))(params), memory, params)
            return (optax.apply_updates(params, change), memory), None

        state, _ = jax.lax.scan(step, state, length=config.steps)
        return state, measured(state[0], number + 1) | {"loss": loss_of(model, state[0], own)}

    _, logs = jax.lax.scan(task, (initial, rule.init(initial)), jnp.arange(config.tasks))
    first = measured(initial, jnp.asarray(0)) | {"loss": loss_of(model, initial, batch)}
    return jax.tree.map(lambda one, many: jnp.concatenate([one[None], many]), first, logs)


def _train(setup: Setup, name: str, rule: Rule, nothing: Any) -> tuple[Any, Records]:
    del nothing
    config = setup.config
    run = over_lanes(partial(life, setup.models[name], optimizer(config, rule), config, distances_of(name)), 1)
    logs = jax.device_get(run(np.array(config.seeds), setup.batches[name]))
    records = []
    for lane, seed in enumerate(config.seeds):
        for task in range(config.tasks + 1):
            record: dict[str, Any] = {"network": name, "rule": rule, "seed": seed, "task": task}
            record["loss"] = float(logs["loss"][lane, task])
            for key, values in logs.items():
                if key != "loss":
                    of_units = values[lane, task]
                    record |= {f"{key} median": float(np.median(of_units)), f"{key} least": float(of_units.min())}
            records.append(record)
    return jnp.zeros(()), records
