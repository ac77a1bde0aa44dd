"""What a run is built from, checked before anything is compiled: of every case the tasks and the two networks."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.continual.config import MLPConfig
from experiments.continual.problem import Problem, image_problem, make_problem
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.rank_causality.acts import FACTOR
from experiments.rank_causality.arms import ARMS
from experiments.rank_causality.config import Case, Config, cases_of
from lopjax import data
from lopjax.cloning import widen
from lopjax.model import Model
from lopjax.models import mlp
from lopjax.training import Stream, TaskSequence, check_lanes, task_stream


class Bench(NamedTuple):
    """One case and all that is needed to train on it.

    Attributes:
        case: which.
        problem: inputs, loss, accuracy and the fixed probe; its tasks but for the first are those of `sequence`.
        sequence: the tasks; task 0 makes the checkpoint.
        stream: batches of one task after the other.
        model: the network of the checkpoint.
        wide: the same with twice the units.
    """

    case: Case
    problem: Problem
    sequence: TaskSequence
    stream: Stream
    model: Model
    wide: Model


class Setup(NamedTuple):
    """Config and everything built from it before compilation."""

    config: Config
    benches: dict[str, Bench]
    mesh: Any = None


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the models; nothing is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    _check_config(config)
    check_lanes(len(config.seeds), resources.mesh)
    digits = data.load("digits", resources.data_dir)
    problems = {kind: _problem(config, kind, digits) for kind in config.tasks}
    benches = {case.name: _bench(config, case, *problems[case.tasks]) for case in cases_of(config)}
    return Setup(config, benches, resources.mesh)


def networks(config: Config, setup: Setup) -> dict[str, Model]:
    """The networks of a run, by the names under which its folder records them."""
    del config
    named = {
        f"{bench.case.tasks}-{bench.case.activation}-{bench.case.width}": bench for bench in setup.benches.values()
    }
    return {name: bench.model for name, bench in named.items()} | {f"{n}-wide": b.wide for n, b in named.items()}


def _bench(config: Config, case: Case, problem: Problem, sequence: TaskSequence) -> Bench:
    model = mlp(problem.input_shape, (case.width,) * 2, problem.num_outputs, activation=case.activation)
    stream = task_stream(sequence, config.batch_size, config.steps)
    return Bench(case, problem, sequence, stream, model, widen(model, FACTOR))


def _problem(config: Config, kind: Any, digits: data.Dataset) -> tuple[Problem, TaskSequence]:
    """The problem of a kind of tasks, those of `experiments.continual`, and its sequence from the checkpoint's on."""
    num_images = config.num_images if kind == "random_labels" else 0
    asked = MLPConfig(tasks=kind, num_images=num_images, probe_samples=config.probe_samples)
    problem = make_problem(asked, None) if kind == "gaussian_mixtures" else image_problem(asked, digits)
    if kind != "random_labels":
        return problem, problem.train
    return problem, true_labels_first(problem.train, digits.train_labels[:num_images])


def true_labels_first(sequence: TaskSequence, labels: Any) -> TaskSequence:
    """`lopjax.training.random_labels`, but in task 0 with the true labels."""

    def prepare(data: Any, key: jax.Array, task: Any) -> jax.Array:
        images, true = data
        return jnp.where(task == 0, jnp.asarray(true), sequence.prepare(images, key, task))

    def take(data: Any, labels: jax.Array, chosen: jax.Array) -> Any:
        return sequence.take(data[0], labels, chosen)

    return TaskSequence((sequence.data, labels), prepare, take, sequence.num_examples)


def _check_config(config: Config) -> None:
    for name in ("tasks", "activations", "widths", "arms", "seeds"):
        values = getattr(config, name)
        _check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    for name in ("num_tasks", "steps", "batch_size", "records", "probe_samples"):
        _check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    least = config.probe_samples
    _check("num_images", config.num_images, config.num_images >= least, f"at least probe_samples={least}")
    _check("widths", config.widths, min(config.widths) >= 1, "at least 1 each")
    _check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    is_divisor = config.steps % config.records == 0
    _check("records", config.records, is_divisor, f"a divisor of steps={config.steps}")
    _check("learning_rate", config.learning_rate, 0 < config.learning_rate < math.inf, "positive and finite")
    _check("regulariser", config.regulariser, 0 < config.regulariser < math.inf, "positive and finite")
    if missing := {ARMS[arm].control for arm in config.arms} - set(config.arms):
        raise ValueError(f"arms={config.arms}: must have the controls of all of them; {sorted(missing)} are missing")


def _check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
