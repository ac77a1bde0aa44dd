"""Pure functions of one lane: a base network that trains without noise, and a clone that is shaken by its numbers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.escape.setup import CLONE, LINEAR, Setup
from lopjax.cloning import clone_variables, uniform_partition
from lopjax.losses import mean_cross_entropy
from lopjax.manifolds import Manifold, cloned_manifold
from lopjax.metrics import effective_rank, partition_r2
from lopjax.model import Params, Variables, samples_by_units
from lopjax.optim import add_relative_noise
from lopjax.stability import linearised, linearised_gradient, split
from lopjax.training import Drawn, Logs, TrainState, evaluate, init_state, logs_of, train_step

Numbers = Mapping[str, jax.typing.ArrayLike]


class Clone(NamedTuple):
    """A clone in training.

    Attributes:
        network: its variables and the momentum.
        noise_key: key for the noise on its gradients.
        numbers: its point of the grid.
    """

    network: TrainState
    noise_key: jax.Array
    numbers: Numbers


def optimizer_of(numbers: Numbers, noise_key: jax.Array) -> optax.GradientTransformation:
    """SGD with noise on the gradient of the loss, then weight decay, then momentum; every number may be traced."""
    traced: dict[str, Any] = dict(numbers)  # optax's annotations do not allow traced numbers
    return optax.chain(
        add_relative_noise(traced["noise_scale"], traced["noise_decay"], noise_key),
        optax.add_decayed_weights(traced["weight_decay"]),
        optax.sgd(traced["learning_rate"], traced["momentum"]),
    )


def start_base(setup: Setup, key: jax.Array) -> TrainState:
    """An initialised base network."""
    return init_state(setup.base.init(key), optax.sgd(setup.config.base_learning_rate))


def make_base_step(setup: Setup) -> Callable[..., tuple[TrainState, Logs]]:
    """`(network, drawn, key, index) -> (network, logs)`: plain SGD."""
    optimizer = optax.sgd(setup.config.base_learning_rate)

    def step(network: TrainState, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[TrainState, Logs]:
        images, labels = drawn.batch
        network, observed = train_step(setup.base, optimizer, network, (setup.preprocess.inputs(images), labels), key)
        return network, logs_of(observed, "loss")

    return step


def make_clone_step(setup: Setup) -> Callable[..., tuple[Clone, Logs]]:
    """`(clone, drawn, key, index) -> (clone, logs)`: one program for the whole grid."""

    def step(clone: Clone, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Clone, Logs]:
        images, labels = drawn.batch
        optimizer, batch = optimizer_of(clone.numbers, clone.noise_key), (setup.preprocess.inputs(images), labels)
        rate = clone.numbers["dropout"]
        network, observed = train_step(setup.wide, optimizer, clone.network, batch, key, dropout_rate=rate)
        return clone._replace(network=network), logs_of(observed, "loss")

    return step


def make_linear_step(setup: Setup) -> Callable[..., tuple[Clone, Logs]]:
    """The same step by linear theory: a confined clone, and a small deviation from it (`linearised_gradient`)."""

    def step(clone: Clone, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Clone, Logs]:
        images, labels = drawn.batch
        inputs, rate = setup.preprocess.inputs(images), clone.numbers["dropout"]
        (variables, opt_state, states), optimizer = (
            clone.network,
            optimizer_of(clone.numbers, clone.noise_key),
        )

        def loss(params: Params) -> jax.Array:
            perturbed = {**variables, "params": params}
            return mean_cross_entropy(
                setup.wide.apply(perturbed, inputs, train=True, key=key, dropout_rate=rate).logits, labels
            )

        params, manifold = variables["params"], block_constant(setup, variables["params"])
        updates, opt_state = optimizer.update(linearised_gradient(loss, manifold, params), opt_state, params)
        changed = {**variables, "params": optax.apply_updates(params, updates)}
        return clone._replace(network=TrainState(changed, opt_state, states)), {
            "loss": loss(split(manifold, params).foot)
        }

    return step


def block_constant(setup: Setup, params: Params) -> Manifold:
    """The linear space of parameters that are equal inside clusters of clones."""
    zeros = jax.tree.map(jnp.zeros_like, params)
    return cloned_manifold(zeros, setup.wide.wiring, uniform_partition(setup.wide.wiring, setup.config.factor))


def clone_of(setup: Setup, base: Variables, noise_key: jax.Array, numbers: Numbers) -> Clone:
    """The clone of a base network, at the start of its training."""
    variables = clone_variables(base, setup.base.wiring, setup.config.factor)
    return Clone(init_state(variables, optimizer_of(numbers, noise_key)), noise_key, numbers)


def make_measure(setup: Setup, kind: str, is_last: bool) -> Callable[[Variables, Any, Any], Logs]:
    """`(variables, probe inputs, test set) -> numbers`: R² of clones, its mean over sites; at the end, more than that.

    For the linear theory it is the R² of activations to first order. For clones there is at the end also the effective
    rank of the activations, its mean over sites, and what the test set says.
    """
    partition = uniform_partition(setup.wide.wiring, setup.config.factor)

    def measure(variables: Variables, inputs: Any, test: Any) -> Logs:
        def activations(params: Params) -> dict[str, jax.Array]:
            taps = setup.wide.apply({**variables, "params": params}, inputs).taps
            return {site: samples_by_units(tap.post) for site, tap in taps.items() if tap.space in partition}

        params = variables["params"]
        taps = setup.wide.apply(variables, inputs).taps
        clusters = {site: partition[tap.space] for site, tap in taps.items() if tap.space in partition}
        h = linearised(activations, block_constant(setup, params), params) if kind == LINEAR else activations(params)
        measured = {"r2": _mean([partition_r2(h[site], clusters[site]) for site in clusters])}
        if is_last and kind == CLONE:
            measured["effective_rank"] = _mean([effective_rank(each) for each in h.values()])
            tested = evaluate(setup.wide, variables, test, setup.preprocess)
            measured |= {f"test_{name}": value for name, value in tested.items()}
        return measured

    return measure


def _mean(values: list[jax.Array]) -> jax.Array:
    return jnp.mean(jnp.stack(values))
