"""Interventions and the manifolds that trap.

An intervention from outside may move a network off the manifold of clones, and may or may not change the function. The
interventions here are FIRE, which makes kernels isometries; splitting clones, which pushes outgoing weights apart; and
waking dead units. Each is measured on a single action, on an MLP.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.interventions import Setting, intervene, split_clones, start_intervention, wake_dead_units
from lopjax.interventions.fire import isometric
from lopjax.losses import cross_entropy, mean_cross_entropy
from lopjax.model import Params
from lopjax.models import mlp
from lopjax.signals import observe
from lopjax.training import init_state
from theory_checks.architectures import random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import departure, norm, split, take, unequal_partition
from theory_checks.updates import ROUNDING, SIGNAL, history, network

SEED = 1e-6


class Act(NamedTuple):
    """One act of an intervention.

    Attributes:
        before: parameters before it.
        after: parameters after it.
        logits: before and after, on the batch.
        gradient: gradient of the loss after it.
    """

    before: Params
    after: Params
    logits: tuple[np.ndarray, np.ndarray]
    gradient: Params


def difference(act: Act) -> Params:
    """What was added."""
    return jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), act.after, act.before)


@partial(jax.jit, static_argnums=0)
def _run(make, params: Params, batch) -> tuple:
    model = network("mlp").model
    setting = Setting(model, optax.sgd(0.01), mean_cross_entropy)
    state = start_intervention(make(), setting, init_state({"params": params}, setting.optimizer))
    observed = observe(model, state.variables, batch, signals=False)
    after, report = intervene(make(), setting, state, observed, jax.random.key(0), 0)
    new = after.variables["params"]
    logits = observed.logits, model.apply({"params": new}, batch[0])[0]
    return new, logits, jax.grad(cross_entropy(model, {}, batch))(new), report.reason


def acted(make, params: Params) -> Act:
    """One act at its first step."""
    inputs, labels = random_batches(network("mlp").input_shape, 1)
    new, logits, gradient, _ = jax.device_get(_run(make, params, (inputs[0], labels[0])))
    return Act(params, new, logits, gradient)


def splitting():
    """With the defaults, at every step."""
    return split_clones(every=1)


def waking():
    """With the defaults, at every step."""
    return wake_dead_units(every=1)


@cache
def points() -> tuple[Params, Params]:
    """Parameters on BC and on V."""
    params = history("mlp")[0]
    return take(params, 0, 0), take(params, 1, 0)


def turned(params: Params) -> Params:
    """The parameters after FIRE."""
    model = network("mlp").model
    inputs = random_batches(network("mlp").input_shape, 1)[0][0]
    taps = jax.eval_shape(model.apply, {"params": params}, inputs)[2]
    return jax.device_get(jax.jit(lambda p: isometric(p, model.wiring, taps))(jax.tree.map(jnp.asarray, params)))


def check_fire(size: Size) -> list[Row]:
    """Share of a network that is off BC and V after FIRE, and by how much FIRE multiplies a small share."""
    wiring, repeats = network("mlp").model.wiring, 5 if size == "small" else 50
    partition, rng = unequal_partition(wiring), np.random.default_rng(0)
    bc, v = points()

    def factor(change) -> float:
        noise = jax.tree.map(lambda leaf: np.linalg.norm(leaf) * rng.normal(size=leaf.shape), bc)
        normal = split(wiring, partition, noise)
        seeded = jax.tree.map(lambda p, a, b: p + SEED * (a + b), bc, normal.incoming, normal.outgoing)
        kernels = [{k: {"kernel": layer["kernel"]} for k, layer in tree.items()} for tree in (seeded, change(seeded))]
        decomposition = [split_kernels(tree) for tree in kernels]
        return decomposition[1] / decomposition[0]

    def split_kernels(tree) -> float:
        """Share of the kernels that is off V: FIRE leaves biases alone."""
        full = {k: {**jax.tree.map(np.zeros_like, bc[k]), **layer} for k, layer in tree.items()}
        return departure(wiring, partition, full).v

    def step(params: Params) -> Params:
        gradient = take(history("mlp")[1], 0, 0)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, gradient)

    return [
        Row("fire, from BC: off BC afterwards", departure(wiring, partition, turned(bc)).leaf, 20 * ROUNDING),
        Row("fire, from V: off V afterwards", departure(wiring, partition, turned(v)).v, 20 * ROUNDING),
        Row(
            "fire, a share of 1e-6 off V: median factor",
            float(np.median([factor(turned) for _ in range(repeats)])),
            3,
            ">=",
        ),
        Row(
            "a step of SGD: median factor",
            float(np.median([factor(step) for _ in range(repeats)])),
            3,
            ">=",
            control=True,
        ),
    ]


def check_split(size: Size) -> list[Row]:
    """How splitting changes the function, the clones, and their next gradient."""
    del size
    wiring = network("mlp").model.wiring
    partition = unequal_partition(wiring)
    bc, _ = points()
    act = acted(splitting, bc)
    decomposition = split(wiring, partition, difference(act))
    gradients = split(wiring, partition, act.gradient)
    untouched = split(wiring, partition, take(history("mlp")[1], 0, 0))
    largest = np.abs(act.logits[0]).max()
    return [
        Row("change of a logit over the largest", np.abs(act.logits[1] - act.logits[0]).max() / largest, ROUNDING),
        Row("share of the push that leaves the leaf", departure(wiring, partition, difference(act)).leaf, 0.9, ">="),
        Row("of it on incoming weights", norm(decomposition.incoming) / norm(difference(act)), ROUNDING),
        Row("next gradient: share on incoming patterns", norm(gradients.incoming) / norm(act.gradient), SIGNAL, ">="),
        Row(
            "the same without the push",
            norm(untouched.incoming) / norm(take(history("mlp")[1], 0, 0)),
            SIGNAL,
            ">=",
            control=True,
        ),
    ]


def check_frozen(size: Size) -> list[Row]:
    """By how much acts change the incoming weights of a dead unit, and the function."""
    del size
    model = mlp(network("mlp").input_shape, (6, 6), 6)
    params = jax.tree.map(np.array, random_variables(model)["params"])
    params["hidden_0"]["bias"][0] = -50.0  # a ReLU that never fires
    inputs, labels = random_batches(network("mlp").input_shape, 1)
    setting = Setting(model, optax.sgd(0.01), mean_cross_entropy)
    start = init_state({"params": jax.tree.map(jnp.asarray, params)}, setting.optimizer)
    observed = observe(model, start.variables, (inputs[0], labels[0]), signals=False)
    act = jax.jit(lambda state, observed: intervene(waking(), setting, state, observed, jax.random.key(0), 0))
    after, _ = act(start, observed)
    logits = model.apply(after.variables, inputs[0])[0]
    taps = jax.eval_shape(model.apply, start.variables, inputs[0])[2]
    turned_too = isometric(start.variables["params"], model.wiring, taps)

    def moved(new: Params) -> float:
        old, new = (np.asarray(p["hidden_0"]["kernel"][:, 0]) for p in (params, new))
        return float(np.linalg.norm(new - old) / np.linalg.norm(old))

    woken = np.asarray(model.apply(after.variables, inputs[0])[2]["hidden_0"].post)[:, 0]
    step = jax.grad(cross_entropy(model, {}, (inputs[0], labels[0])))(start.variables["params"])
    return [
        Row("waking: change of incoming weights", moved(after.variables["params"]), 0.1, ">="),
        Row(
            "waking: change of a logit over the largest",
            float(np.abs(logits - observed.logits).max() / np.abs(observed.logits).max()),
            ROUNDING,
        ),
        Row("waking: samples on which the unit is on", float(np.mean(woken > 0)), 0.05, ">="),
        Row("fire: change of incoming weights", moved(turned_too), 0.1, ">="),
        Row(
            "gradient descent: change of incoming weights",
            moved(jax.tree.map(lambda p, g: p - g, params, step)),
            0.1,
            ">=",
            control=True,
        ),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "splitting.fire",
        "FIRE, a function of each kernel as a matrix, keeps BC and V; it magnifies a small departure from V.",
        "this library; FIRE: arXiv 2602.08040",
        check_fire,
        "Orthogonalising weights does not free clones, as a singular value of 0 stays 0. Clones that have begun to"
        " separate are separated further.",
    ),
    Check(
        "splitting.clones",
        "Pushing the outgoing weights of clones apart changes no logit, and the next gradient tells them apart.",
        "this library; Fukumizu & Amari, Neural Networks 13 (2000)",
        check_split,
        "Clones can be freed without any change of what the network computes.",
    ),
    Check(
        "splitting.dead",
        "Waking a dead unit changes its incoming weights and no logit on the batch; FIRE changes these weights, too.",
        "this library",
        check_frozen,
        "Dead units can be given a new start without any change of what the network computes, as long as no norm"
        " averages over them.",
    ),
)
"""Two manifolds, three acts."""
