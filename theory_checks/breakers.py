"""What breaks clones, and what they survive.

Optimizers keep clones (see optimizers); other parts of a training loop may not. They are tested here on one update, at
a point of BC, where clones are hardest to tell apart. A new intervention joins by adding a row to one of two tables.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from lopjax.losses import cross_entropy, mean_cross_entropy
from lopjax.model import Params
from lopjax.optim import l2_init, noisy_sgd, shrink_and_perturb, upgd
from theory_checks.architectures import NUM_CLASSES, random_batches
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import departure, take, unequal_partition
from theory_checks.optimizer_table import RATE
from theory_checks.updates import ROUNDING, SIGNAL, history, network

Step = Callable[[Params, tuple[jax.Array, jax.Array], jax.Array], Params]
"""An update from parameters, a batch and a key."""


def _gradient(params: Params, batch: tuple[jax.Array, jax.Array]) -> Params:
    return jax.grad(cross_entropy(network("mlp").model, {}, batch))(params)


def _sharpness_aware(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    del key
    gradient = _gradient(params, batch)
    radius = 0.1 / optax.tree.norm(gradient)
    return _gradient(jax.tree.map(lambda p, g: p + radius * g, params, gradient), batch)


def _noisy_point(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    """The gradient at a point with noise on every weight, as weight-noise injection and variational methods take it."""
    keys = jax.random.split(key, len(jax.tree.leaves(params)))
    leaves, tree = jax.tree.flatten(params)
    moved = [leaf + 0.1 * jax.random.normal(leaf_key, leaf.shape) for leaf, leaf_key in zip(leaves, keys, strict=True)]
    return _gradient(tree.unflatten(moved), batch)


def _unit_dropout(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    def loss(params: Params) -> jax.Array:
        logits = network("mlp").model.apply({"params": params}, batch[0], train=True, key=key, dropout_rate=0.5).logits
        return mean_cross_entropy(logits, batch[1])

    return jax.grad(loss)(params)


def _weight_noise(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    optimizer = noisy_sgd(RATE, noise_scale=0.01, noise_decay=1.0, seed=key)
    return optimizer.update(_gradient(params, batch), optimizer.init(params), params)[0]


def _towards_start(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    pull = l2_init(0.01)
    start = jax.tree.map(lambda p: 0.5 * jax.random.normal(key, p.shape), params)
    return pull.update(_gradient(params, batch), pull.init(start), params)[0]


def _upgd(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    optimizer = upgd(RATE, noise_std=0.01, seed=key)
    return optimizer.update(_gradient(params, batch), optimizer.init(params), params)[0]


def _shrink_and_perturb(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    last = shrink_and_perturb(0.9, 0.01, key, every=1)
    return last.update(_gradient(params, batch), last.init(params), params)[0]


def _reset_unit(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    """Fresh incoming and zero outgoing weights for the last unit of the first hidden layer."""
    del batch
    fresh = 0.5 * jax.random.normal(key, params["hidden_0"]["kernel"].shape[:1])
    new = jax.tree.map(jnp.asarray, params)
    new["hidden_0"]["kernel"] = new["hidden_0"]["kernel"].at[:, -1].set(fresh)
    new["hidden_1"]["kernel"] = new["hidden_1"]["kernel"].at[-1].set(0.0)
    return jax.tree.map(jnp.subtract, new, params)


def _prune(params: Params, batch: tuple[jax.Array, jax.Array], key: jax.Array) -> Params:
    """Remove one weight in seven, the smallest of every array; ties, as between clones, fall as they do in a sort."""
    del batch, key

    def removed(leaf: jax.Array) -> jax.Array:
        rank = jnp.argsort(jnp.argsort(jnp.abs(leaf).ravel())).reshape(leaf.shape)
        return jnp.where(rank < leaf.size // 7 + 1, -leaf, 0.0)

    return jax.tree.map(removed, params)


KEEPERS: dict[str, Step] = {
    "augmentation": lambda p, batch, key: _gradient(p, (batch[0] + jax.random.normal(key, batch[0].shape), batch[1])),
    "label noise": lambda p, batch, key: _gradient(
        p, (batch[0], jax.random.randint(key, batch[1].shape, 0, NUM_CLASSES))
    ),
    "input dropout": lambda p, batch, key: _gradient(
        p, (batch[0] * jax.random.bernoulli(key, 0.5, batch[0].shape), batch[1])
    ),
    "sharpness-aware minimisation": _sharpness_aware,
}
"""Changes of the data, or gradients at another point where clones are clones; they cannot tell."""

BREAKERS: dict[str, Step] = {
    "dropout": _unit_dropout,
    "noise on each weight": _weight_noise,
    "gradient at a point with noise on each weight": _noisy_point,
    "L2 towards an unequal start": _towards_start,
    "utility-based perturbed gradient descent": _upgd,
    "shrink and perturb": _shrink_and_perturb,
    "reset of one unit": _reset_unit,
    "pruning of single weights": _prune,
}
"""What treats clones differently, from outside."""


def check_breakers(size: Size) -> list[Row]:
    """Share of an update that leaves the leaf: keepers from BC and V, breakers from BC, where it is hardest."""
    model, num_keys = network("mlp").model, 3 if size == "small" else 30
    partition = unequal_partition(model.wiring)
    params = jax.tree.map(lambda leaf: leaf[:, 0], history("mlp")[0])
    inputs, labels = random_batches(network("mlp").input_shape, 1)
    keys = jax.random.split(jax.random.key(0, impl="philox4x32"), num_keys)

    @jax.jit
    def all_updates(params: Params) -> dict[str, Params]:
        batch = (inputs[0], labels[0])
        return {
            name: jax.vmap(lambda p, step=step: jax.vmap(lambda key: step(p, batch, key))(keys))(params)
            for name, step in {**KEEPERS, **BREAKERS}.items()
        }

    updates = jax.device_get(all_updates(params))

    def leaving(name: str, point: int) -> list[float]:
        moved = [take(updates[name], point, k) for k in range(num_keys)]
        return [departure(model.wiring, partition, update).leaf for update in moved]

    keepers = [Row(f"{name}: from BC and V", max(leaving(name, 0) + leaving(name, 1)), ROUNDING) for name in KEEPERS]
    return [*keepers, *(Row(f"{name}: from BC", min(leaving(name, 0)), SIGNAL, control=True) for name in BREAKERS)]


CHECKS: tuple[Check, ...] = (
    Check(
        "breakers.single_updates",
        "Clones survive every change of the data, and gradients taken at another point of their manifold. Noise or"
        " masks on single weights or units break them, even if only the gradient is taken at the noisy point.",
        "arXiv 2510.00304, section 5 (noise and dropout); the others: this library",
        check_breakers,
        "To free clones, act on units or weights, by dropout, noise on weights, resets, or pulling towards a random"
        " start. Augmentation, label noise and sharpness-aware steps do not help.",
        "This page used to say that clones survive every change of the point at which the gradient is taken. That is"
        " true of sharpness-aware steps, whose point is on the manifold, but not of a point with noise on each weight.",
    ),
)
"""One check, a row for each intervention."""
