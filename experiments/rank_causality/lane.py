"""Pure functions of one lane: a step of SGD, treated and confined as its arm says, and what is measured of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from experiments.rank_causality.acts import FACTOR, halves
from experiments.rank_causality.regularisers import Numbers, treated
from experiments.rank_causality.setup import Bench
from lopjax.cloning import uniform_partition
from lopjax.losses import of_parameters
from lopjax.manifolds import cloned_manifold
from lopjax.metrics import effective_rank
from lopjax.model import Model, Params, Variables, samples_by_units
from lopjax.signals import observe
from lopjax.training import Drawn, Logs, task_examples
from lopjax.wiring import where

GRADIENT_BATCHES = 16
"""Batches over which the gradient at the start of a task, and how much batches agree on it, are averaged at most."""


class Keys(NamedTuple):
    """What a seed decides; the arms of a seed share all of it.

    Attributes:
        init: random key of the checkpoint; networks drawn anew for task k are drawn by `fold_in(init, k)`.
        act: random key of the arm's own draws.
        lane: random key of the tasks, of the order of their examples, and of random directions.
    """

    init: jax.Array
    act: jax.Array
    lane: jax.Array


class Learner(NamedTuple):
    """A network in training, and the numbers of its arm."""

    variables: Variables
    numbers: Numbers


def keys_of(seed: jax.Array) -> Keys:
    """Of one seed."""
    return Keys(*jax.random.split(jax.random.key(seed, impl="philox4x32"), 3))


def make_step(bench: Bench, model: Model, learning_rate: float) -> Callable[..., tuple[Learner, Logs]]:
    """`(lane, drawn, key, index) -> (lane, logs)`: one program for all arms of a size."""
    confine = make_confine(model) if model is bench.wide else lambda kind, update: update

    def step(lane: Learner, drawn: Drawn, key: jax.Array, index: jax.Array) -> tuple[Learner, Logs]:
        del index
        (variables, numbers), (stored, labels) = lane, drawn.batch
        inputs = bench.problem.inputs(stored, None)
        seen = observe(model, variables, (inputs, labels), loss=bench.problem.loss, train=True, signals=False)
        gradient = optax.tree.scale(numbers["loudness"], seen.gradient)
        update = confine(numbers["confinement"], treated(model, variables, inputs, gradient, numbers, key))
        params = optax.tree.add_scale(variables["params"], -learning_rate, update)
        logs = {"online_loss": seen.loss, "gradient_norm": optax.tree.norm(seen.gradient)}
        return lane._replace(variables={**seen.variables, "params": params}), logs

    return step


def make_confine(wide: Model) -> Callable[[jax.Array, Params], Params]:
    """`(FREE, ON_LEAF or MUTE, update) -> update`.

    ON_LEAF keeps what moves both clones of every pair alike (`P_in P_out`), so that the network moves in a space of the
    checkpoint's dimension. MUTE drops what would let anything read the added units.
    """
    partition = uniform_partition(wide.wiring, FACTOR)

    def on_leaf(update: Params) -> Params:
        return cloned_manifold(update, wide.wiring, partition).project(update)

    def mute(update: Params) -> Params:
        return where(halves(wide.wiring, update).added.outgoing, optax.tree.zeros_like(update), update)

    return lambda kind, update: jax.lax.switch(kind, [lambda one: one, on_leaf, mute], update)


def make_measure(bench: Bench, model: Model, batch_size: int) -> Callable[..., Logs]:
    """`(variables, lane key, task, data, probe inputs) -> numbers`, in eval mode.

    `effective_rank`: of the activations on the fixed probe, a mean over sites. Of all examples of the task: `task_loss`
    and `task_accuracy`. Of up to `GRADIENT_BATCHES` batches of it: `task_gradient_norm`, of their mean gradient;
    `readiness`, see `strength_and_reliability`.
    """

    def measure(variables: Variables, key: jax.Array, task: Any, data: Any, probe: jax.Array) -> Logs:
        taps = model.apply(variables, probe).taps.values()
        ranks = jnp.stack([effective_rank(samples_by_units(tap.post)) for tap in taps])
        stored, labels = task_examples(bench.sequence, data, jax.random.split(key)[0], task)
        inputs = bench.problem.inputs(stored, None)
        logits = model.apply(variables, inputs).logits
        gradients = batch_gradients(bench, model, variables, (inputs, labels), batch_size)
        strength, reliability = strength_and_reliability(gradients)
        return {
            "effective_rank": ranks.mean(),
            "task_loss": bench.problem.loss(logits, labels),
            "task_accuracy": bench.problem.accuracy(logits, labels),
            "task_gradient_norm": jnp.sqrt(strength),
            "readiness": strength * reliability,
        }

    return measure


def batch_gradients(bench: Bench, model: Model, variables: Variables, examples: Any, batch_size: int) -> Params:
    """Gradients of as many batches as there are, up to `GRADIENT_BATCHES`, along a leading axis.

    Batch b has the examples b, b + B, ...: where classes lie one after the other, some of each.
    """
    num = min(examples[1].shape[0] // batch_size, GRADIENT_BATCHES)

    def cut(leaf: jax.Array) -> jax.Array:
        stride = leaf.shape[0] // (num * batch_size)
        chosen = leaf[:: max(stride, 1)][: num * batch_size]
        return jnp.swapaxes(chosen.reshape(batch_size, num, *leaf.shape[1:]), 0, 1)

    def gradient(batch: Any) -> Params:
        return jax.grad(of_parameters(model, variables, batch, loss=bench.problem.loss))(variables["params"])

    return jax.lax.map(gradient, jax.tree.map(cut, examples))


def strength_and_reliability(gradients: Params) -> tuple[jax.Array, jax.Array]:
    r"""Squared norm of the mean gradient, and its share in the mean squared norm of the batches' gradients.

    For an L-smooth loss one step of SGD at rate eta gains at least :math:`\eta |g|^2 - \eta^2 L\, E|g_b|^2 / 2` in
    expectation: at the best rate, strength times reliability over 2 L. arXiv 2605.09044 calls a product of strength and
    reliability *optimization readiness*. By a public re-implementation (we could not read the paper itself) its
    strength is this one over the loss, which is the same for all networks that compute one function.

    Args:
        gradients: a tree with a leading axis of batches.
    """
    mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), gradients)
    num = jax.tree.leaves(gradients)[0].shape[0]
    strength, power = optax.tree.norm(mean, squared=True), optax.tree.norm(gradients, squared=True) / num
    return strength, strength / jnp.where(power > 0, power, 1)
