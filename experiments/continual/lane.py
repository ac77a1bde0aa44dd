"""Pure functions of one lane: how it starts, what happens at a task start, and a step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.continual.methods import method_of
from experiments.continual.setup import Setup
from experiments.kit.methods import Group
from lopjax.detection import Status
from lopjax.model import Variables
from lopjax.training import (
    Drawn,
    Logs,
    Setting,
    TrainState,
    init_state,
    intervene,
    start_intervention,
    train_step,
)

# Per-sample plasticity needs another forward pass, so it is measured at only one in this many steps.
PLASTICITY_EVERY = 10
# A running mean over about this many batches decides when the level of accuracy is reached.
METER_BATCHES = 10


class Meter(NamedTuple):
    """How fast a task is learnt.

    Attributes:
        accuracy: running mean of the online accuracy in this task, starting from 0.
        reached: steps in this task until it first reached the level; -1 while it has not.
    """

    accuracy: jax.Array
    reached: jax.Array


class Memory(NamedTuple):
    """What a lane remembers of the past; it has no effect on training.

    Attributes:
        head: for every finished task, the output layer's slices of its classes as they were at its end. Later tasks
            lose them when the layer is set to zero, and earlier tasks are tested with these.
        dead: by site, which units were dead at the last measurement.
        status: by unit space, what each unit was at the last measurement, a number of `lopjax.detection.Status`.
        touched: by unit space, which units the method's intervention has changed since then.
    """

    head: Any
    dead: Mapping[str, jax.Array]
    status: Mapping[str, jax.Array]
    touched: Mapping[str, jax.Array]


class Trainee(NamedTuple):
    """A network in training.

    Attributes:
        net: its variables and those of its optimizer.
        meter: how fast it learns this task.
        memory: state carried from earlier tasks and measurements.
        noise_key: key for what the method draws.
        numbers: the numbers of the method that differ between the lanes of its program.
    """

    net: TrainState
    meter: Meter
    memory: Memory
    noise_key: jax.Array
    numbers: Mapping[str, Any]


class Program(NamedTuple):
    """The pure functions of one group of lanes.

    Attributes:
        start: `(variables, noise_key, numbers) -> Trainee`, from an initialised network.
        begin: `Trainee -> Trainee`: what happens before the first step of a task.
        step: `(Trainee, drawn, key, index) -> (Trainee, logs)`.
    """

    start: Callable[[Variables, jax.Array, Mapping[str, Any]], Trainee]
    begin: Callable[[Trainee], Trainee]
    step: Callable[[Trainee, Drawn, jax.Array, jax.Array], tuple[Trainee, Logs]]


def make_program(setup: Setup, group: Group) -> Program:
    """The functions of a group; numbers that all its lanes have in common are constants of the program."""
    config, problem, model = setup.config, setup.problem, setup.model
    method = method_of(group.methods[0])  # all methods of a group have the same optimizer

    def numbers_of(lane: Trainee) -> dict[str, Any]:
        return {**group.constants, **lane.numbers}

    def setting(lane: Trainee) -> Setting:
        return Setting(model, method.optimizer(numbers_of(lane), lane.noise_key), problem.loss)

    def start(variables: Variables, noise_key: jax.Array, numbers: Mapping[str, Any]) -> Trainee:
        lane = Trainee(TrainState(variables, ()), _unmet(), Memory((), {}, {}, {}), noise_key, numbers)
        net = init_state(variables, setting(lane).optimizer)
        if method.intervention is not None:
            net = start_intervention(method.intervention(numbers_of(lane)), setting(lane), net)
        head = jax.tree.map(jnp.zeros_like, head_of(setup, variables)) if problem.classes is not None else ()
        dead = {name: jnp.zeros(model.wiring.size(site.space), bool) for name, site in model.wiring.sites}
        units = {s: model.wiring.size(s) for s in model.wiring.cloneable if model.wiring.sites_of(s)}
        status = {space: jnp.full(num, Status.UNKNOWN, jnp.int8) for space, num in units.items()}
        touched = {space: jnp.zeros(num, bool) for space, num in units.items()}
        return lane._replace(net=net, memory=Memory(head, dead, status, touched))

    def begin(lane: Trainee) -> Trainee:
        net = lane.net
        if config.zero_head:
            zeros = jax.tree.map(jnp.zeros_like, head_of(setup, net.variables))
            net = net._replace(variables=with_head(setup, net.variables, zeros))
        return lane._replace(net=net, meter=_unmet())

    def step(lane: Trainee, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Trainee, Logs]:
        augment_key, step_key, own_key = jax.random.split(key, 3)
        stored, labels = drawn.batch
        batch = problem.inputs(stored, augment_key if problem.is_augmented else None), labels
        rate, current = numbers_of(lane)["dropout"], setting(lane)
        net, observed = train_step(
            model, current.optimizer, lane.net, batch, step_key, loss=problem.loss, dropout_rate=rate, task=drawn.task
        )
        memory = lane.memory
        if method.intervention is not None:
            net, report = intervene(method.intervention(numbers_of(lane)), current, net, observed, own_key, index)
            touched = {space: old | report.touched.get(space, False) for space, old in memory.touched.items()}
            memory = memory._replace(touched=touched)

        def gained() -> jax.Array:
            logits = model.apply(net.variables, batch[0], train=True, key=step_key, dropout_rate=rate)[0]
            return plasticity(problem.loss, observed.logits, logits, labels) * PLASTICITY_EVERY

        online = problem.accuracy(observed.logits, labels)
        logs = {
            "online_loss": observed.loss,
            "online_accuracy": online,
            "plasticity": jax.lax.cond(index % PLASTICITY_EVERY == 0, gained, lambda: jnp.zeros_like(observed.loss)),
        }
        within = index % config.steps
        return lane._replace(net=net, meter=_metered(lane.meter, online, within, config.level), memory=memory), logs

    return Program(start, begin, step)


def _unmet() -> Meter:
    return Meter(jnp.zeros(()), jnp.int32(-1))


def _metered(meter: Meter, online: jax.Array, within: jax.Array, level: float) -> Meter:
    # A plain mean at first, so that the initial 0 has no weight.
    weight = jnp.maximum(1 / (within + 1), 1 / METER_BATCHES)
    mean = meter.accuracy + weight.astype(online.dtype) * (online - meter.accuracy)
    is_first = (meter.reached < 0) & (mean >= level) & (within + 1 >= METER_BATCHES)
    return Meter(mean, jnp.where(is_first, within + 1, meter.reached).astype(jnp.int32))


def plasticity(loss: Callable[[jax.Array, Any], jax.Array], before: jax.Array, after: jax.Array, labels: Any) -> Any:
    """Mean over samples of `max(1 - loss after / loss before, 0)` (arXiv 2404.00781), from the logits of one batch.

    Both in train mode: what a step has gained on the very samples that it was taken from.
    """

    def losses_of(logits: jax.Array) -> jax.Array:
        of_sample = lambda logit, label: loss(logit[None], jax.tree.map(lambda leaf: leaf[None], label))  # noqa: E731
        return jax.vmap(of_sample)(logits, labels)

    losses = losses_of(before)
    return jnp.mean(jnp.maximum(1 - losses_of(after) / jnp.maximum(losses, jnp.finfo(losses.dtype).eps), 0))


# --- The output layer --------------------


def head_paths(setup: Setup) -> dict[tuple[str, ...], int]:
    """Path and axis of every parameter with an axis of classes: the arrays that write the outputs."""
    wiring = setup.model.wiring
    outputs = [space for space in wiring.spaces if space in wiring.fixed and not wiring.outgoing(space)]
    return dict(pair for space in outputs for pair in wiring.incoming(space))


def head_of(setup: Setup, variables: Variables) -> dict[str, jax.Array]:
    """The arrays of the output layer, by their path."""
    arrays = {}
    for path in head_paths(setup):
        leaf: Any = variables
        for part in path:
            leaf = leaf[part]
        arrays["/".join(path)] = leaf
    return arrays


def with_head(setup: Setup, variables: Variables, head: Mapping[str, jax.Array]) -> Variables:
    """The variables with another output layer."""

    def put(tree: Any, prefix: tuple[str, ...]) -> Any:
        if not isinstance(tree, Mapping):
            return head.get("/".join(prefix), tree)
        return {name: put(child, (*prefix, name)) for name, child in tree.items()}

    return put(variables, ())


def mixed_head(setup: Setup, old: Any, new: Any, mask: jax.Array) -> dict[str, jax.Array]:
    """Two output layers in one: the slices of the masked classes from the new one, the others from the old one."""
    mixed = {}
    for path, axis in head_paths(setup).items():
        name = "/".join(path)
        shape = [1] * new[name].ndim
        shape[axis] = -1
        mixed[name] = jnp.where(mask.reshape(shape), new[name], old[name])
    return mixed
