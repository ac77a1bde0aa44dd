"""Pure functions of one lane: a network in training, with noise and splits of its own, and what is measured of it."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.aftermath.setup import Setup
from lopjax.curvature import extreme_eigenvalues, hvp
from lopjax.interventions import split_clones
from lopjax.losses import accuracy, mean_cross_entropy
from lopjax.metrics import duplicate_fraction, effective_rank, partition_r2
from lopjax.model import Model, Variables, samples_by_units
from lopjax.optim import add_relative_noise
from lopjax.training import (
    Drawn,
    Logs,
    Preprocess,
    Setting,
    TrainState,
    evaluate,
    init_state,
    intervene,
    logs_of,
    train_step,
)

# Lanczos steps: the largest eigenvalue of a Hessian stands out, and forty find it to a per cent and better.
LANCZOS = 40


class Numbers(NamedTuple):
    """What tells one lane's training from another's.

    Attributes:
        noise_scale: scale of the noise on its gradient; 0 for none.
        noise_decay: factor a step on the noise.
        split_every: steps between two splits of clones.
        key: key of the noise and of the splits.
    """

    noise_scale: jax.Array
    noise_decay: jax.Array
    split_every: jax.Array
    key: jax.Array


class Learner(NamedTuple):
    """A network in training.

    Attributes:
        network: its variables and the state of its optimizer.
        numbers: how it trains.
    """

    network: TrainState
    numbers: Numbers


def quiet(setup: Setup) -> optax.GradientTransformation:
    """Plain SGD."""
    return optax.sgd(setup.config.learning_rate)


def noisy(setup: Setup, numbers: Numbers) -> optax.GradientTransformation:
    """SGD with the lane's noise on the gradient."""
    traced: Any = numbers  # optax's annotations know no traced number
    noise = add_relative_noise(traced.noise_scale, traced.noise_decay, jax.random.fold_in(numbers.key, 0))
    return optax.chain(noise, quiet(setup))


def quiet_step(setup: Setup, model: Model) -> Callable[..., tuple[TrainState, Logs]]:
    """`(network, drawn, key, index) -> (network, logs)`: plain SGD, loss and accuracy before the update."""
    optimizer = quiet(setup)

    def step(network: TrainState, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[TrainState, Logs]:
        images, labels = drawn.batch
        network, seen = train_step(model, optimizer, network, (setup.preprocess.inputs(images), labels), key)
        return network, logs_of(seen, "loss") | {"accuracy": accuracy(seen.logits, labels)}

    return step


def freeing_step(setup: Setup) -> Callable[..., tuple[Learner, Logs]]:
    """`(learner, drawn, key, index) -> (learner, logs)`: one program for all arms of the doubled size."""

    def step(learner: Learner, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Learner, Logs]:
        images, labels = drawn.batch
        numbers, batch = learner.numbers, (setup.preprocess.inputs(images), labels)
        setting = Setting(setup.wide, noisy(setup, numbers), mean_cross_entropy)
        network, seen = train_step(*setting[:2], learner.network, batch, key)
        splitting = jax.random.fold_in(jax.random.fold_in(numbers.key, 1), index)
        network, _ = intervene(split_clones(every=numbers.split_every), setting, network, seen, splitting, index)
        return Learner(network, numbers), logs_of(seen, "loss") | {"accuracy": accuracy(seen.logits, labels)}

    return step


def start_freeing(setup: Setup, variables: Variables, numbers: Numbers) -> Learner:
    """A network of the doubled size at the start of the clones' training."""
    return Learner(init_state(variables, noisy(setup, numbers)), numbers)


def start_quietly(setup: Setup, variables: Variables) -> TrainState:
    """A network at the start of plain SGD."""
    return init_state(variables, quiet(setup))


def make_measure(
    model: Model, preprocess: Preprocess, partition: Mapping[str, Sequence[int]] = MappingProxyType({})
) -> Callable[[Variables, Any, Any, Any], Logs]:
    """`(variables, probe inputs, probe labels, test set) -> numbers`.

    Loss and accuracy on the probe, which are training examples, and on the test set; effective rank (mean over sites);
    distinct units (all sites together: no later unit has a cosine above 0.95 with it, up to sign); the largest
    eigenvalue of the Hessian of the probe's loss; where there is a partition, R² by its clusters, mean over sites.
    """

    def measure(variables: Variables, inputs: Any, labels: Any, test: Any) -> Logs:
        params = variables["params"]

        def loss(params: Any) -> jax.Array:
            return mean_cross_entropy(model.apply({**variables, "params": params}, inputs).logits, labels)

        output = model.apply(variables, inputs)
        sites = {tap.space: samples_by_units(tap.post) for tap in output.taps.values()}
        sharpest = extreme_eigenvalues(lambda v: hvp(loss, params, v), params, LANCZOS, jax.random.key(0))
        measured = {
            "train_loss": mean_cross_entropy(output.logits, labels),
            "train_accuracy": accuracy(output.logits, labels),
            "effective_rank": _mean([effective_rank(h) for h in sites.values()]),
            "distinct_units": sum(h.shape[1] * (1 - duplicate_fraction(h, signed=False)) for h in sites.values()),
            "sharpness": sharpest.eigenvalues[-1],
        }
        if partition:
            measured["r2"] = _mean([partition_r2(sites[space], clusters) for space, clusters in partition.items()])
        tested = evaluate(model, variables, test, preprocess)
        return measured | {f"test_{name}": value for name, value in tested.items()}

    return measure


def _mean(values: list[jax.Array]) -> jax.Array:
    return jnp.mean(jnp.stack(values))
