"""Confinement: training runs of cloned networks.

A leaf is affine and every gradient on it is tangent to it, so gradient descent cannot leave it, whatever the sequence
of batches; what it does there is what a smaller network does under other learning rates. In floating point the
statement has its limits: rounding leaves a small deviation from the leaf, and near a saddle every deviation grows.
"""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax import contrib

from lopjax.cloning import clone_variables, widen
from lopjax.cloning.quotient import quotient_optimizer
from lopjax.losses import cross_entropy
from lopjax.manifolds import cloned_manifold, distance
from lopjax.model import Model, Params
from lopjax.models import mlp
from lopjax.optim import keep_on_manifold, noisy_sgd
from theory_checks.architectures import NUM_CLASSES, Architecture, architectures, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.cloning import NUM_BATCHES, gradients_and_signals
from theory_checks.clusters import cloned_points, departure, norm, take, unequal_partition

PAPER = "arXiv 2510.00304"
INPUT = (5,)


@cache
def small_network() -> Model:
    """The network of all runs here."""
    return mlp(INPUT, (6, 6), NUM_CLASSES, activation="tanh")


@partial(jax.jit, static_argnums=(0, 1))
def train_path(
    model: Model,
    make_optimizer: Callable[[jax.Array], optax.GradientTransformation],
    setting: jax.Array,
    params: Params,
    stream: tuple[jax.Array, jax.Array],
) -> tuple[Params, jax.Array]:
    """Train on one batch per step; parameters and loss of every step, steps first."""
    optimizer = make_optimizer(setting)

    def step(carry, batch):
        params, state = carry
        loss, gradient = jax.value_and_grad(cross_entropy(model, {}, batch))(params)
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), params, updates)
        return (params, state), (params, loss)

    return jax.lax.scan(step, (params, optimizer.init(params)), stream)[1]


def _noisy(noise_scale: jax.Array) -> optax.GradientTransformation:
    return noisy_sgd(0.1, noise_scale, noise_decay=1.0, seed=0, momentum=0.5)


def check_sgd(size: Size) -> list[Row]:
    """Distance from the leaf over a run on batches that are never seen twice, with labels drawn at random."""
    model, steps = small_network(), 1_000 if size == "small" else 10_000
    partition = unequal_partition(model.wiring)
    params = cloned_points(model.wiring, partition, random_variables(model)).v["params"]
    leaf = cloned_manifold(params, model.wiring, partition)
    stream = random_batches(INPUT, steps)
    rows = []
    for noise in (0.0, 1e-2):
        path, _ = train_path(model, _noisy, jnp.asarray(noise), params, stream)
        furthest = float(jnp.max(jax.vmap(lambda p: distance(leaf, p))(path)))
        moved = float(optax.tree.norm(jax.tree.map(lambda p, start: p[-1] - start, path, params)))
        if noise:
            rows.append(Row(f"SGD with relative noise {noise:g}: largest distance", furthest, 1e-3, control=True))
        else:
            rows.append(Row(f"SGD, momentum 0.5, {steps} steps: largest distance from the leaf", furthest, 1e-10))
            rows.append(Row("distance travelled along it", moved, 0.1, ">="))
    return rows


STEPS, STEP, MOMENTUM = 30, 0.1, 0.5


def confined(architecture: Architecture, size: Size) -> dict[str, tuple[float, float]]:
    """Distance from the leaf, and from the start, at the end of runs from BC, from V, from RE alone and from neither.

    SGD with momentum on the mean gradient of a few batches, drawn anew in every step. All runs go through the program
    that `cloning` has compiled. In train mode running statistics move too, and count.
    """
    model, per_step = architecture.build(), NUM_BATCHES[size]
    partition = unequal_partition(model.wiring)
    points = cloned_points(model.wiring, partition, random_variables(model))
    current = start = jax.device_get(jax.tree.map(lambda *leaves: jnp.stack(leaves), *points))
    velocity = jax.tree.map(np.zeros_like, start["params"])
    inputs, labels = random_batches(architecture.input_shape, STEPS * per_step)
    for step in range(STEPS):
        batch = slice(step * per_step, (step + 1) * per_step)
        gradients = gradients_and_signals(model, architecture.train, current, inputs[batch], labels[batch])[0]
        mean = jax.tree.map(lambda leaf: np.asarray(leaf).mean(axis=1), dict(gradients))
        velocity = jax.tree.map(lambda v, g: MOMENTUM * v + g, velocity, mean.pop("params"))
        current = {**mean, "params": jax.tree.map(lambda p, v: p - STEP * v, current["params"], velocity)}
    moved = jax.tree.map(np.subtract, current, start)
    way = {name: take(moved, point) for point, name in enumerate(points._fields)}
    return {
        name: (departure(model.wiring, partition, change).leaf * norm(change), norm(change))
        for name, change in way.items()
    }


def check_architectures(size: Size) -> list[Row]:
    """Distance from the leaf after a run on every architecture, in train mode where there is a batch norm."""
    table = {name: confined(architecture, size) for name, architecture in architectures(size).items()}
    rows = [
        Row(f"{name}: distance from the leaf, from BC and V", max(ends["bc"][0], ends["v"][0]), 1e-11)
        for name, ends in table.items()
    ]
    return [
        *rows,
        Row("distance travelled along it: least of all", min(ends["v"][1] for ends in table.values()), 0.1, ">="),
        *(
            Row(f"{where}: least of all", min(ends[point][0] for ends in table.values()), 1e-3, control=True)
            for point, where in (("re", "from RE without CE"), ("off", "without clones"))
        ),
    ]


RULES: dict[str, Callable[[jax.Array], optax.GradientTransformation]] = {
    "SGD": lambda rate: optax.sgd(100 * rate),
    "momentum, weight decay": lambda rate: optax.chain(optax.add_decayed_weights(0.05), optax.sgd(30 * rate, 0.9)),
    "Adam": lambda rate: optax.adam(3 * rate, eps=1e-3),
}
"""Coordinate-wise optimizers; a new one joins by one row."""


def check_quotient(size: Size) -> list[Row]:
    """Losses of a cloned network against those of its base network under `quotient_optimizer`."""
    steps, factor, base = 100 if size == "small" else 300, 3, small_network()
    params = random_variables(base)["params"]
    clones = clone_variables({"params": params}, base.wiring, factor)["params"]
    stream, rate = random_batches(INPUT, steps), jnp.asarray(1e-3)
    rows, naive = [], []
    for name, rule in RULES.items():
        _, wide = train_path(widen(base, factor), rule, rate, clones, stream)
        _, predicted = train_path(base, partial(_quotient, rule, factor), rate, params, stream)
        _, unscaled = train_path(base, rule, rate, params, stream)
        rows.append(
            Row(f"{name}: loss of the clones minus prediction", float(jnp.max(jnp.abs(wide - predicted))), 1e-11)
        )
        naive.append(float(jnp.max(jnp.abs(wide - unscaled))))
    return [*rows, Row("base network with the same rates: least of all", min(naive), 1e-3, control=True)]


def _quotient(
    rule: Callable[[jax.Array], optax.GradientTransformation], factor: int, rate: jax.Array
) -> optax.GradientTransformation:
    return quotient_optimizer(rule(rate), small_network().wiring, factor)


def check_rounding(size: Size) -> list[Row]:
    """Run optimizers that keep clones in exact arithmetic from a point of V, in both precisions, and projected."""
    model, steps = small_network(), 3_000 if size == "small" else 10_000
    partition = unequal_partition(model.wiring)
    start = jax.device_get(cloned_points(model.wiring, partition, random_variables(model)).v["params"])
    stream = jax.device_get(random_batches(INPUT, steps))

    def escape(make: Callable[[jax.Array], optax.GradientTransformation], dtype: str = "float64") -> float:
        """Distance from the leaf at the end."""
        with jax.enable_x64(dtype == "float64"):
            params, inputs = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), (start, stream[0]))
            path, _ = train_path(
                model, make, jnp.asarray(0.01, dtype), params, (inputs, jnp.asarray(stream[1], "int32"))
            )
            end = jax.device_get(take(path, -1))
        moved = jax.tree.map(lambda leaf, before: np.float64(leaf) - before, end, start)
        return departure(model.wiring, partition, moved).leaf * norm(moved)

    def projected(rate: jax.Array) -> optax.GradientTransformation:
        leaf = cloned_manifold(jax.tree.map(jnp.asarray, start), model.wiring, partition)
        return optax.chain(contrib.muon(rate), keep_on_manifold(leaf.project))

    return [
        Row(f"muon, each update projected: distance after {steps} steps", escape(projected), 1e-12),
        Row(f"muon alone: distance after {steps} steps", escape(contrib.muon), 1e-3, control=True),
        *(
            Row(f"{name}, {dtype}: distance after {steps} steps", escape(make, dtype))
            for dtype in ("float64", "float32")
            for name, make in {"sgd": optax.sgd, "adam": optax.adam, "muon": contrib.muon}.items()
        ),
    ]


CHECKS: tuple[Check, ...] = (
    Check(
        "confinement.sgd",
        "SGD with momentum from a point of V stays on its leaf for a whole run, whatever the batches and labels.",
        f"{PAPER}, corollary of proposition 4.1",
        check_sgd,
        "Waiting does not help, nor does new data: a network with clones trains as the smaller network inside it.",
    ),
    Check(
        "confinement.architectures",
        "SGD stays on its leaf in convolutions with pooling and flattening, residual streams, norms and attention.",
        f"{PAPER}, corollary of proposition 4.1; this library for other architectures than MLPs",
        check_architectures,
        "Skip connections, norms, pooling and attention do not free clones. Operations that treat equal units"
        " unequally do: dropout, or an expert chosen by its place among equals.",
        "This page used to claim this for every architecture in use; but a mixture of experts that breaks ties does"
        " free clones.",
    ),
    Check(
        "confinement.quotient",
        "The training run of the cloned network is that of the base network under known learning rates, array by"
        " array.",
        "this library (lopjax.cloning.quotient)",
        check_quotient,
        "The whole loss curve of a cloned network is known before it is trained, from a run at a fraction of its cost.",
    ),
    Check(
        "confinement.rounding",
        "In floating point, rounding leaves the leaf, and curvature or Muon amplifies the departure; projecting each"
        " update prevents it.",
        "this library",
        check_rounding,
        "A run in which Adam or Muon leaves a manifold of clones shows rounding errors, which are neither a flaw of"
        " the theorem nor a cure: the step at which it happens depends on precision and matrix kernels.",
    ),
)
"""From the theorem to where floating point ends it."""
