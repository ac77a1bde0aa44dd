"""Random networks, data and points of a condition."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from experiments.conditions.config import CONDITIONS, Condition, Config
from experiments.kit.experiment import NO_RESOURCES, Resources
from lopjax.cloning.quotient import multiplicities
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.model import Model, Variables
from lopjax.models import mlp, resnet18, vit

LOSSES = {"cross-entropy": mean_cross_entropy, "squared error": mean_squared_error}
Batch = tuple[jax.Array, jax.Array]
STATIONARY = 1e-8
"""A search that ends with a longer gradient has not found its stationary point."""
FAR = 30.0
"""Norm of parameters beyond which a search has run away; those of random networks are near 5."""
ATTEMPTS = 12
"""Searches for a stationary point after the first."""


class Setup(NamedTuple):
    """The config, and the network of every condition."""

    config: Config
    models: dict[str, Model]


def build(config: Config, resources: Resources = NO_RESOURCES) -> Setup:
    """Check the config and make the networks; nothing is compiled.

    Raises:
        ValueError: a field out of range.
    """
    del resources
    if not config.seeds or len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise ValueError(f"seeds={config.seeds}: must be distinct, at least 0, at least one")
    for name, least in (("factor", 2), ("samples", 4)):
        if getattr(config, name) < least:
            raise ValueError(f"{name}={getattr(config, name)}: must be at least {least}")
    return Setup(config, {condition.name: _network(condition) for condition in CONDITIONS})


def _network(condition: Condition) -> Model:
    family, activation, *norm = condition.network.split(" ", 2)
    options: dict[str, Any] = {"activation": activation, "norm": norm[0].split()[0] if norm else "none"}
    shape = _input_shape(condition)
    if family == "resnet":
        return resnet18(shape, condition.outputs, width=2, blocks=(1,), **options)
    if family == "vit":
        return vit(shape, condition.outputs, patch=2, width=4, depth=1, heads=2, mlp_ratio=0.75, **options)
    return mlp(shape, (3,), condition.outputs, **options)


def place(setup: Setup, condition: Condition, seed: int) -> tuple[Variables, Batch]:
    """A random network of a condition, moved to its point, and the data there; float64 must be on.

    Normal weights and inputs; random labels or normal targets. "critical": the stationary point, of the loss with the
    condition's weight decay, to which a search falls from a teacher whose outputs, with noise, are the targets.
    "fitted": the targets are the network's own outputs; "relabelled": those of another network. "dead": biases so low
    that no hidden unit is active.
    """
    model, rng = setup.models[condition.name], np.random.default_rng(seed)
    shapes = jax.eval_shape(model.init, jax.random.key(0))

    def draw() -> Variables:
        params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), shapes["params"])
        statistics = {
            name: jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), shapes[name]) for name in shapes if name != "params"
        }
        if "batch_stats" in statistics:
            statistics["batch_stats"] = jax.tree.map_with_path(_statistic, statistics["batch_stats"])
        return {**statistics, "params": params}

    variables, inputs = draw(), jnp.asarray(rng.normal(size=(_samples(setup, condition), *_input_shape(condition))))
    if condition.point == "dead":
        variables["params"]["hidden_0"]["bias"] -= 50.0
    teacher = variables if condition.point in ("fitted", "critical") else draw()
    outputs = model.apply(teacher, inputs).logits
    if condition.point == "critical":
        outputs = outputs + 0.3 * rng.normal(size=outputs.shape)
    targets = jnp.argmax(outputs, axis=-1) if condition.loss == "cross-entropy" else outputs
    if condition.loss == "cross-entropy":  # some are random, so that no network fits them
        is_random = rng.random(len(targets)) < 0.4
        targets = jnp.where(is_random, rng.integers(0, condition.outputs, len(targets)), targets)
    batch = inputs, targets
    if condition.point != "critical":
        return variables, batch
    return stationary(decayed(setup, condition, variables), variables, batch), batch


class Decayed(NamedTuple):
    """The loss of a flat parameter vector with weight decay, `(vector, batch) -> ...`, compiled once per condition.

    Attributes:
        value: loss and decay.
        gradient: gradient of loss and decay together.
        hessian: second derivative of loss and decay together.
        unravel: vector to parameters.
    """

    value: Any
    gradient: Any
    hessian: Any
    unravel: Any


def decayed(setup: Setup, condition: Condition, variables: Variables) -> Decayed:
    """The loss of the base whose clones have the condition's weight decay: `n_out / n_in` times it of every array."""
    return _decayed(setup.models[condition.name], LOSSES[condition.loss], condition.decay, setup.config.factor)


@cache
def _decayed(model: Model, loss: Any, decay: float, factor: int) -> Decayed:
    params = jax.eval_shape(model.init, jax.random.key(0))["params"]
    n_in, n_out = multiplicities(params, model.wiring, factor)
    unravel = ravel_pytree(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), params))[1]

    def value(vector: jax.Array, batch: Batch) -> jax.Array:
        own = unravel(vector)
        squares = jax.tree.map(lambda leaf, i, o: jnp.sum(o / i * leaf**2), own, n_in, n_out)
        size = sum(jax.tree.leaves(squares))
        return loss(model.apply({"params": own}, batch[0]).logits, batch[1]) + 0.5 * decay * size

    return Decayed(jax.jit(value), jax.jit(jax.grad(value)), jax.jit(jax.hessian(value)), unravel)


def stationary(descent: Decayed, start: Variables, batch: Batch) -> Variables:
    """A stationary point: the first that a search reaches, or where the last one ended if none does.

    First BFGS, downhill to a minimum. Where the loss has none that is near, as cross-entropy often has not, BFGS runs
    away to infinite weights; then Levenberg-Marquardt steps on the gradient, which end at saddles, too, from the start
    and from points around it. All end with Newton steps.
    """
    from scipy.optimize import minimize, root

    def slope(point: np.ndarray) -> np.ndarray:
        return np.asarray(descent.gradient(point, batch))

    def curvature(point: np.ndarray) -> np.ndarray:
        return np.asarray(descent.hessian(point, batch))

    first, rng = np.asarray(ravel_pytree(start["params"])[0]), np.random.default_rng(0)
    lowest = minimize(descent.value, first, (batch,), "BFGS", descent.gradient, options={"gtol": 1e-6}).x
    point = _newton(slope, curvature, lowest)
    for attempt in range(ATTEMPTS):
        if is_reached(slope(point), point):
            break
        near = first + 0.5 * rng.normal(size=first.shape) * (attempt > 0)
        found = root(slope, near, jac=curvature, method="lm", options={"maxiter": 300}).x
        point = _newton(slope, curvature, found)
    return {**start, "params": descent.unravel(jnp.asarray(point))}


def _newton(slope: Any, curvature: Any, point: np.ndarray) -> np.ndarray:
    """Newton steps for as long as the gradient becomes shorter."""
    here = slope(point)
    while True:
        moved = point - np.linalg.lstsq(curvature(point), here, rcond=1e-10)[0]
        there = slope(moved)
        if not np.linalg.norm(there) < np.linalg.norm(here):
            return point
        point, here = moved, there


def is_reached(gradient: np.ndarray, point: np.ndarray) -> bool:
    """Whether a point is stationary, and not on its way to infinity, where gradients vanish because units saturate."""
    return bool(np.linalg.norm(gradient) <= STATIONARY and np.linalg.norm(point) <= FAR)


def _samples(setup: Setup, condition: Condition) -> int:
    return setup.config.samples * (3 if condition.point == "critical" else 1)


def _input_shape(condition: Condition) -> tuple[int, ...]:
    """Shape of one input: small images, vectors of 4, or of 2 where stationary points are searched for."""
    if not condition.network.startswith("mlp"):
        return (4, 4, 1)
    return (2,) if condition.point == "critical" else (4,)


def _statistic(path: Any, leaf: jax.Array) -> jax.Array:
    return jnp.ones_like(leaf) if "var" in jax.tree_util.keystr(path) else leaf
