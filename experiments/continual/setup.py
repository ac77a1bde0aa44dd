"""What a run is built from, checked before anything is compiled."""

import math
from typing import Any, NamedTuple

from experiments.continual.config import Config, TasksConfig
from experiments.continual.methods import METHODS, NUMBERS, groups_of
from experiments.continual.problem import Problem, make_problem
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.kit.methods import Group, numbers_of
from experiments.kit.networks import build_network
from experiments.kit.own_metrics import own_metrics
from lopjax.losses import Masked
from lopjax.model import Model
from lopjax.training import Stream, check_lanes, task_stream


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: as given, of images or of other tasks.
        problem: the tasks.
        model: the network.
        stream: batches of one task after the other.
        record_every: steps between two measurements.
        mesh: devices to spread lanes over; None for one.
        fresh_every: fresh networks are trained at tasks whose number, from 1, is a multiple of this.
    """

    config: TasksConfig
    problem: Problem
    model: Model
    stream: Stream
    record_every: int
    mesh: Any = None
    fresh_every: int = 1

    @property
    def groups(self) -> tuple[Group, ...]:
        """The programs of the run."""
        config = self.config
        return groups_of(config.methods, config.seeds, numbers_of(config, NUMBERS), config.fresh)


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the model; no training step is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
        FileNotFoundError: the data set is not prepared; the message has the command that prepares it.
    """
    check_tasks(config)
    check_lanes(len(config.seeds), resources.mesh)
    check("classes_per_task", config.classes_per_task, config.classes_per_task >= 1, "at least 1")
    check("num_images", config.num_images, config.num_images >= 0, "0 or positive")
    check("class_order", config.class_order, config.class_order >= -1, "-1, or a seed")
    is_divisor = config.fresh_every >= 1 and config.num_tasks % config.fresh_every == 0
    check("fresh_every", config.fresh_every, is_divisor, f"a divisor of num_tasks={config.num_tasks}")
    setup = setup_of(config, make_problem(config, resources.data_dir), resources.mesh)
    return setup._replace(fresh_every=config.fresh_every)


def setup_of(config: TasksConfig, problem: Problem, mesh: Any = None) -> Setup:
    """The setup of a problem that is already built.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    model = build_network(config.model, config.net, problem.input_shape, problem.num_outputs)
    examples = problem.train.num_examples
    check("probe_samples", config.probe_samples, config.probe_samples <= examples, f"at most the {examples} of a task")
    return Setup(
        config=config,
        problem=problem,
        model=model,
        stream=task_stream(problem.train, config.batch_size, config.steps, config.change),
        record_every=config.record_every or config.steps,
        mesh=mesh,
    )


def recorded_probe(config: TasksConfig, setup: Setup) -> tuple[Any, Any]:
    """Inputs and labels of the fixed probe, without the mask of classes."""
    images, labels = setup.problem.probe
    return setup.problem.inputs(images, None), labels.labels if isinstance(labels, Masked) else labels


def check_tasks(config: TasksConfig) -> None:
    """What can be checked without the data and the models, which check their own arguments.

    Raises:
        ValueError: a field out of range.
    """
    for name in ("num_tasks", "steps", "batch_size", "probe_samples", "reset_every"):
        check(name, getattr(config, name), getattr(config, name) >= 1, "at least 1")
    is_divisor = config.record_every == 0 or (config.record_every > 0 and config.steps % config.record_every == 0)
    check("record_every", config.record_every, is_divisor, f"0, or a divisor of steps={config.steps}")
    check("change", config.change, 0 <= config.change <= config.steps, f"in 0..{config.steps}, the steps of a task")
    boundaries = "False where tasks pass into each other (change > 0): there are no boundaries at which to start anew"
    check("fresh", config.fresh, not (config.fresh and config.change), boundaries)
    check("zero_head", config.zero_head, not (config.zero_head and config.change), boundaries)
    for name in ("seeds", "methods"):
        values = getattr(config, name)
        check(name, values, len(set(values)) == len(values) > 0, "distinct, at least one")
    check("seeds", config.seeds, all(0 <= seed < 2**31 for seed in config.seeds), "in 0..2147483647")
    lags = config.earlier
    check("earlier", lags, len(set(lags)) == len(lags) and all(lag >= 1 for lag in lags), "distinct and at least 1")
    if needing := [name for name in config.methods if METHODS[name].needs_boundaries and config.change]:
        raise ValueError(f"methods={config.methods}: {needing[0]} needs boundaries; change={config.change} has none")
    check("look_every", config.look_every, config.look_every >= 0, "0 or positive")
    check("threshold", config.threshold, 0 < config.threshold <= 3, "in (0, 3], or scores are no shares")
    for name in ("adam_learning_rate", "learning_rate"):
        check(name, getattr(config, name), 0 < getattr(config, name) < math.inf, "positive and finite")
    others = ("replacement_rate", "redo_threshold", "cpr_strength", "maturity")
    for name in ("l2_init", "weight_decay", "perturb", "noise_scale", "noise_decay", *others):
        check(name, getattr(config, name), 0 <= getattr(config, name) < math.inf, "non-negative and finite")
    for name in ("dropout", "shrink", "beta2", "percentile"):
        check(name, getattr(config, name), 0 <= getattr(config, name) < 1, "in [0, 1)")
    own_metrics(config.metrics)
    check("level", config.level, 0 < config.level <= 1, "an accuracy in (0, 1]")


def check(name: str, value: object, is_allowed: bool, allowed: str) -> None:
    """Raise ValueError, in the words of the config, for a field that is not allowed."""
    if not is_allowed:
        raise ValueError(f"{name}={value}: must be {allowed}")
