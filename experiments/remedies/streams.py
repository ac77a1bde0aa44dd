"""The streams: batches, the test examples of every task, the network that meets them, and its plain optimizer."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.bit_flipping.setup import network, squared_error
from experiments.continual.config import MLPConfig
from experiments.continual.problem import make_problem
from experiments.kit.experiment import NO_RESOURCES, Resources
from experiments.remedies.config import Config, StreamConfig
from experiments.remedies.methods import METHODS, NUM_SETTINGS, Remedy
from lopjax.model import Model
from lopjax.models import mlp
from lopjax.training import Stream, bit_flipping, check_lanes, task_examples, task_stream, upgd_toy
from lopjax.training.bit_flipping import Problem, prepared_block

TEST_EXAMPLES = 100
# Test inputs are drawn from indices that no run reaches.
NO_STEP = 2**31


class Bench(NamedTuple):
    """One stream of tasks and all that is needed to train on it.

    Attributes:
        sizes: sizes of the stream and the network.
        stream: batches of one task after the other.
        inputs: what is stored -> what the model takes.
        test: `(data, key, task) -> (stored, labels)`: unseen examples of a task, or all of them where there are none;
            the key is that of the stream.
        test_data: what `test` reads.
        loss: `(logits, labels) -> scalar`, a mean over examples.
        score: likewise; what is reported, the larger the better.
        is_accuracy: whether the score is an accuracy; else it is the negative loss.
        model: the network.
        base: name of the plain optimizer, "sgd" or "adam".
        probe: `(inputs, labels)`, a fixed batch for methods that watch symptoms; None where that of a step will do.
        make: `options -> Model`: the network with other options; None where it can have no others.
        is_tiny: whether lanes run side by side on a CPU, too, where nothing acts now and then: for a network so small
            that starting its operations is what takes the time.
    """

    sizes: StreamConfig
    stream: Stream
    inputs: Callable[[Any], jax.Array]
    test: Callable[[Any, jax.Array, Any], Any]
    test_data: Any
    loss: Callable[[jax.Array, Any], jax.Array]
    score: Callable[[jax.Array, Any], jax.Array]
    is_accuracy: bool
    model: Model
    base: str
    probe: tuple[Any, Any] | None = None
    make: Callable[..., Model] | None = None
    is_tiny: bool = False

    def with_network(self, remedy: Remedy) -> "Bench":
        """The bench with the network that a method asks for."""
        return self if self.make is None or not remedy.network else self._replace(model=self.make(**remedy.network))

    def optimizer(self, remedy: Remedy, settings: Any, key: jax.Array) -> optax.GradientTransformation:
        """The optimizer of a method with a setting, whose numbers may be traced."""
        plain = {"sgd": optax.sgd, "adam": optax.adam}[self.base]
        return remedy.optimizer(plain, settings, self.sizes.learning_rate, self.model, key)


class Setup(NamedTuple):
    """Config and everything built from it before compilation.

    Attributes:
        config: as given.
        benches: by name of the stream.
        mesh: devices to spread lanes over; None for one.
    """

    config: Config
    benches: dict[str, Bench]
    mesh: Any = None


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config, load the data and build the models; no training step is compiled.

    Raises:
        ValueError: a field out of range; the message names it, its value and what is allowed.
    """
    for name in ("streams", "methods", "seeds", "tuning_seeds"):
        values = getattr(config, name)
        if not len(set(values)) == len(values) > 0:
            raise ValueError(f"{name}={values}: must be distinct, at least one")
    if overlap := set(config.seeds) & set(config.tuning_seeds):
        raise ValueError(f"seeds={config.seeds}: must not be tuning seeds; {sorted(overlap)} are both")
    check_lanes(len(config.seeds), resources.mesh)
    check_lanes(len(config.tuning_seeds), resources.mesh, "tuning seeds")
    benches = {name: make_bench(name, getattr(config, name), resources) for name in config.streams}
    for name in config.methods:
        _check_method(name)
    return Setup(config, benches, resources.mesh)


def make_bench(name: str, sizes: StreamConfig, resources: Resources = NO_RESOURCES) -> Bench:
    """One of the streams.

    Raises:
        ValueError: a size out of range; the message names it.
    """
    _check_sizes(name, sizes)
    regressions = {"upgd": _upgd, "bit_flipping": _bit_flipping}
    return regressions[name](sizes) if name in regressions else _classification(name, sizes, resources)


def _upgd(sizes: StreamConfig) -> Bench:
    """Appendix H of arXiv 2404.00781. The network is linear, so nothing in it can die, and yet it loses plasticity."""
    test = upgd_toy(TEST_EXAMPLES, sizes.steps)
    return Bench(
        sizes=sizes,
        stream=upgd_toy(sizes.batch_size, sizes.steps),
        inputs=lambda stored: stored,
        test=lambda data, key, task: test.draw((), jax.random.fold_in(key, NO_STEP), task * sizes.steps).batch,
        test_data=(),
        loss=squared_error,
        score=lambda outputs, targets: -squared_error(outputs, targets),
        is_accuracy=False,
        model=mlp((16,), sizes.widths, 1, activation="identity"),
        base="sgd",
        # One example shows no symptom. What inputs look like is the same in every task, so a probe gives nothing away.
        probe=test.draw((), jax.random.key(0), 0).batch,
    )


def _bit_flipping(sizes: StreamConfig) -> Bench:
    """The stream and the network of `experiments.bit_flipping`; tested on all inputs that a task can have.

    All slow bits are drawn anew at every task (the default of the official code): with one flip at a time, tasks that
    follow one another are nearly the same, and what is lost takes longer to show.
    """
    problem = Problem(flip_every=sizes.steps, flip="all")

    def test(data: Any, key: jax.Array, task: Any) -> Any:
        of_task = prepared_block(problem, key, task * sizes.steps)
        return of_task.inputs, of_task.targets

    return Bench(
        sizes=sizes,
        stream=bit_flipping(*problem),
        inputs=lambda stored: stored,
        test=test,
        test_data=(),
        loss=squared_error,
        score=lambda outputs, targets: -squared_error(outputs, targets),
        is_accuracy=False,
        model=network(problem.num_inputs, sizes.widths[0], "relu"),
        base="sgd",
        is_tiny=True,
    )


def _classification(name: str, sizes: StreamConfig, resources: Resources) -> Bench:
    """The streams of `experiments.continual`, its problems as they are."""
    kind: Any = "gaussian_mixtures" if name == "mixtures" else name
    problem = make_problem(
        MLPConfig(tasks=kind, num_images=sizes.num_images, probe_samples=TEST_EXAMPLES), resources.data_dir
    )
    activation, init = ("tanh", "lecun") if name == "mixtures" else ("relu", "pytorch")
    tested = problem.train if problem.test is None else problem.test
    make = partial(mlp, problem.input_shape, sizes.widths, problem.num_outputs, activation=activation, init=init)
    return Bench(
        sizes=sizes,
        stream=task_stream(problem.train, sizes.batch_size, sizes.steps),
        inputs=lambda stored: problem.inputs(stored, None),
        test=lambda data, key, task: task_examples(tested, data, key, task, min(TEST_EXAMPLES, tested.num_examples)),
        test_data=jax.tree.map(jnp.asarray, tested.data),
        loss=problem.loss,
        score=problem.accuracy,
        is_accuracy=True,
        model=make(),
        base="adam",
        make=make,
    )


def _check_sizes(name: str, sizes: StreamConfig) -> None:
    for field in ("num_tasks", "steps", "batch_size", "tasks_per_record"):
        if getattr(sizes, field) < 1:
            raise ValueError(f"{name}.{field}={getattr(sizes, field)}: must be at least 1")
    if sizes.num_tasks % sizes.tasks_per_record or sizes.num_tasks // sizes.tasks_per_record < 5:
        raise ValueError(
            f"{name}.tasks_per_record={sizes.tasks_per_record}: must divide {name}.num_tasks={sizes.num_tasks} into at "
            "least five records"
        )
    if name == "bit_flipping" and (len(sizes.widths), sizes.batch_size) != (1, 1):
        raise ValueError(
            f"bit_flipping.widths={sizes.widths}, bit_flipping.batch_size={sizes.batch_size}: must be one hidden layer "
            "and one example at a time"
        )
    if not 0 < sizes.learning_rate < math.inf:
        raise ValueError(f"{name}.learning_rate={sizes.learning_rate}: must be positive and finite")


def _check_method(name: str) -> None:
    """Every method has the same tuning budget, and a method that says that it needs no boundaries does not."""
    remedy = METHODS[name]
    for base, settings in remedy.settings.items():
        if len(settings) != NUM_SETTINGS:
            raise ValueError(f"{name}: has {len(settings)} settings for {base}; must have {NUM_SETTINGS}, like all")
        intervention = None if remedy.intervention is None else remedy.intervention(settings[0])
        if intervention is not None and intervention.needs_boundaries != remedy.needs_boundaries:
            raise ValueError(f"{name}: needs_boundaries={remedy.needs_boundaries}, but its intervention says otherwise")
