"""What is measured at every record, as pure functions of a lane: learning, symptoms, forgetting, births and deaths."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments.continual.lane import Memory, Meter, head_of, mixed_head, with_head
from experiments.continual.setup import Setup
from experiments.continual.traps import trap_distances, unit_lives
from experiments.kit.own_metrics import own_metrics
from lopjax.detection import gradient_readiness
from lopjax.detection.lives import count_events
from lopjax.metrics import dead_units
from lopjax.model import Variables, samples_by_units
from lopjax.probes import symptoms
from lopjax.training import Logs, task_examples

SYMPTOMS = (
    *("effective_rank", "stable_rank", "dead_fraction", "dormant_fraction", "duplicate_fraction"),
    "saturated_fraction",
)
Measure = Callable[..., tuple[Memory, Logs]]


def make_measure(setup: Setup) -> Measure:
    """How one lane is measured, in eval mode.

    Returns:
        `measure(variables, meter, memory, lane_key, task, is_end, train, test, probe) -> (memory, values)`. Values:
        `train_loss`, `train_accuracy` on examples of the task, `test_*` on its test set; `earlier/k` the accuracy on
        the test set of the task `k` back, if there is one, with the output layer that its classes had at its end;
        symptoms by site, of the fixed `probe/` and of the `stream/`; `units/dead`, and how many `died` and `revived`
        since the last measurement, on the fixed probe; how many were `cloned`, `freed`, `saturated` and `reset`; what
        `trap_distances` finds there;
        `gradient/strength` and `gradient/reliability` (`lopjax.detection.gradient_readiness`, at the batch size of
        training); `weight_norm`, root mean square of all parameters; `steps_to_level`, NaN while it is not reached.
        What each unit is (`unit_lives`) is in the memory.
    """
    config, problem, model = setup.config, setup.problem, setup.model
    metrics = own_metrics(config.metrics)

    def measure(
        variables: Variables,
        meter: Meter,
        memory: Memory,
        lane_key: jax.Array,
        task: jax.Array,
        is_end: jax.Array,
        train: Any,
        test: Any,
        probe: Any,
    ) -> tuple[Memory, Logs]:
        key = jax.random.split(lane_key)[0]  # the key of the stream, as `make_chunk` splits it
        stored, labels = task_examples(problem.train, train, key, task, config.probe_samples)
        stream = problem.inputs(stored, None), labels
        fixed = problem.inputs(probe[0], None), jax.tree.map(jnp.asarray, probe[1])
        loss, accuracy = _scored(setup, variables, *stream)
        values = {"train_loss": loss, "train_accuracy": accuracy}
        mask = problem.classes(train, key, task) if problem.classes is not None else None
        if problem.test is not None:
            back = jnp.array([0, *config.earlier])
            old = _with_old_head(setup, variables, memory, mask)
            losses, right = jax.lax.map(lambda lag: _tested(setup, old, key, jnp.maximum(task - lag, 0), test), back)
            values |= {"test_loss": losses[0], "test_accuracy": right[0]}
            accuracies = jnp.where(back <= task, right, jnp.nan)
            values |= {f"earlier/{lag}": accuracies[index] for index, lag in enumerate(config.earlier, start=1)}
        # Both batches go through one program: compiling the symptoms is what a short run waits for.
        batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), fixed, stream)
        for metric, sites in jax.lax.map(lambda batch: _symptoms(setup, metrics, variables, batch), batches).items():
            for site, pair in sites.items():
                values |= {f"probe/{metric}/{site}": pair[0], f"stream/{metric}/{site}": pair[1]}
        taps = model.apply(variables, fixed[0])[2]
        dead = {site: dead_units(samples_by_units(tap.post)) for site, tap in taps.items()}
        values |= _census(memory.dead, dead) | trap_distances(model, variables, fixed[0], taps)
        status = unit_lives(model, fixed[0], taps)
        happened = count_events(memory.status, status, memory.touched)
        values |= {f"units/{event}": happened[event] for event in ("cloned", "freed", "saturated", "reset")}
        parameters = variables["params"]
        size = sum(leaf.size for leaf in jax.tree.leaves(parameters))
        ready = gradient_readiness(model, variables, fixed, config.batch_size, loss=problem.loss)
        values |= {f"gradient/{name}": value for name, value in ready._asdict().items()}
        values["weight_norm"] = optax.tree.norm(parameters) / jnp.sqrt(size)
        values["steps_to_level"] = jnp.where(meter.reached < 0, jnp.nan, meter.reached)
        head = memory.head
        if mask is not None:
            updated = mixed_head(setup, head, head_of(setup, variables), mask)
            head = jax.tree.map(lambda new, before: jnp.where(is_end, new, before), updated, head)
        return Memory(head, dead, status, memory.touched), values

    return measure


def _scored(setup: Setup, variables: Variables, inputs: jax.Array, labels: Any) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy."""
    logits = setup.model.apply(variables, inputs)[0]
    return setup.problem.loss(logits, labels), setup.problem.accuracy(logits, labels)


def _tested(
    setup: Setup, variables: Variables, key: jax.Array, task: jax.Array, test: Any
) -> tuple[jax.Array, jax.Array]:
    """Loss and accuracy on the test set of a task."""
    assert setup.problem.test is not None
    stored, labels = task_examples(setup.problem.test, test, key, task)
    return _scored(setup, variables, setup.problem.inputs(stored, None), labels)


def _with_old_head(setup: Setup, variables: Variables, memory: Memory, mask: Any) -> Variables:
    """The network with the output layer that the classes of earlier tasks had at the end of theirs."""
    if setup.problem.classes is None:
        return variables
    return with_head(setup, variables, mixed_head(setup, memory.head, head_of(setup, variables), mask))


def _symptoms(
    setup: Setup, metrics: Mapping[str, Callable[..., Any]], variables: Variables, batch: Any
) -> dict[str, dict[str, jax.Array]]:
    """Symptoms by name and site, the user's own metrics included."""
    table = symptoms(setup.model, variables, batch, loss=setup.problem.loss, metrics=metrics)
    return {name: table[name] for name in (*SYMPTOMS, *metrics)}


def _census(before: Any, now: Any) -> Logs:
    """Births and deaths, summed over all sites."""

    def total(count: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        return sum((jnp.sum(count(before[site], now[site])) for site in now), start=jnp.int32(0))

    return {
        "units/dead": total(lambda was, is_dead: is_dead),
        "units/died": total(lambda was, is_dead: is_dead & ~was),
        "units/revived": total(lambda was, is_dead: was & ~is_dead),
    }
