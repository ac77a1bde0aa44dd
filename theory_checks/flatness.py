"""Flat directions at clones.

This page says which changes of the parameters of a cloned network change nothing, and what second derivatives say about
the others. The normal space of a leaf has three parts: incoming patterns (clones that get different totals), outgoing
patterns (clones that give different totals) and the gauge (redistributions that change no total).
"""

from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.curvature import ggn_vp, hvp
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.model import Model, Params, Variables
from lopjax.signals import observe
from theory_checks.architectures import NUM_CLASSES, architectures, random_batches, random_variables
from theory_checks.check import Check, Row, Size
from theory_checks.clusters import Decomposition, cloned_points, norm, split, take, unequal_partition

AMPLITUDE, ROUNDING, SIGNAL = 0.3, 1e-12, 1e-3
NAMES = ("mlp, gelu", "resnet, relu, batch norm", "vit, gelu, layer norm")
"""Architectures of this file, rows of `ARCHITECTURES`; a new one joins by its name."""


class Measured(NamedTuple):
    """What a random direction of each kind does, at one point.

    Attributes:
        activations: largest relative change of logits and activations after a step of 0.3 times the direction.
        hessian: parts of `H v`, norms relative to v.
        gauss_newton: norm of `G v` relative to v.
    """

    activations: Decomposition
    hessian: Decomposition
    gauss_newton: Decomposition


@partial(jax.jit, static_argnums=(0, 1))
def _program(
    model: Model, train: bool, variables: Variables, directions: Params, batch: tuple[jax.Array, jax.Array]
) -> Any:
    """Logits and activations after a step along each direction, H v and G v at the start; directions first."""

    def forward(params: Params) -> tuple[jax.Array, Any]:
        logits, _, taps = model.apply({**variables, "params": params}, batch[0], train=train)
        return logits, {site: tap.post for site, tap in taps.items()}

    def loss_of_logits(logits: jax.Array) -> jax.Array:
        targets = jax.nn.one_hot(batch[1], NUM_CLASSES)
        return mean_cross_entropy(logits, batch[1]) + mean_squared_error(logits, targets)

    def logits_of(params: Params) -> jax.Array:
        return forward(params)[0]

    def along(direction: Params) -> Any:
        moved = jax.tree.map(lambda p, d: p + AMPLITUDE * d, variables["params"], direction)
        hessian = hvp(lambda params: loss_of_logits(logits_of(params)), variables["params"], direction)
        gauss_newton = ggn_vp(logits_of, loss_of_logits, variables["params"], direction)
        return forward(moved), hessian, gauss_newton

    return jax.lax.map(along, directions)


@cache
def measure(name: str, point: str, size: Size) -> Measured:
    """Move along random directions of every kind from a point of BC ("bc") or V ("v") of an architecture."""
    architecture = architectures(size)[name]
    model = architecture.build()
    wiring, partition = model.wiring, unequal_partition(model.wiring)
    variables = getattr(cloned_points(wiring, partition, random_variables(model)), point)
    decomposition = split(wiring, partition, random_variables(model, seed=2)["params"])
    sizes = Decomposition(*map(norm, decomposition))
    nothing = jax.tree.map(np.zeros_like, decomposition.constant)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *decomposition, nothing)
    batch = take(random_batches(architecture.input_shape, 1), 0)
    signals, hessian, gauss_newton = jax.device_get(_program(model, architecture.train, variables, stacked, batch))

    def change(kind: int) -> float:
        return max(norm(array[kind] - array[-1]) / norm(array[-1]) for array in jax.tree.leaves(signals))

    def parts(kind: int) -> Decomposition:
        return Decomposition(*(norm(part) / sizes[kind] for part in split(wiring, partition, take(hessian, kind))))

    return Measured(
        activations=Decomposition(*map(change, range(4))),
        hessian=Decomposition(*map(parts, range(4))),
        gauss_newton=Decomposition(*(norm(take(gauss_newton, kind)) / sizes[kind] for kind in range(4))),
    )


def check_gauge(size: Size) -> list[Row]:
    """Change of every activation and `H v` for a gauge direction."""
    rows = []
    for name in NAMES:
        motions = [measure(name, point, size) for point in ("bc", "v")]
        rows.append(Row(f"{name}: activations", max(m.activations.gauge for m in motions), ROUNDING))
        rows.append(Row(f"{name}: H v", max(norm(m.hessian.gauge) for m in motions), ROUNDING))
        rows.append(
            Row(f"{name}: activations, incoming pattern", motions[1].activations.incoming, SIGNAL, control=True)
        )
    return rows


def check_outgoing(size: Size) -> list[Row]:
    """Change of every activation for outgoing patterns, and the outgoing part of `H v`."""
    rows = []
    for name in NAMES:
        motions = [measure(name, point, size) for point in ("bc", "v")]
        rows.append(Row(f"{name}: activations", max(m.activations.outgoing for m in motions), ROUNDING))
        rows.append(Row(f"{name}: outgoing part of H v", max(m.hessian.outgoing.outgoing for m in motions), ROUNDING))
        rows.append(Row(f"{name}: incoming part of H v", motions[1].hessian.outgoing.incoming, SIGNAL, control=True))
        rows.append(
            Row(f"{name}: activations, incoming pattern", motions[1].activations.incoming, SIGNAL, control=True)
        )
    return rows


def check_blocks(size: Size) -> list[Row]:
    """Parts of `H v` that must vanish at V."""
    rows = []
    for name in NAMES:
        hessian = measure(name, "v", size).hessian
        mixed = [part for kind in (hessian.incoming, hessian.outgoing) for part in (kind.constant, kind.gauge)]
        back = [hessian.constant.incoming, hessian.constant.outgoing, hessian.constant.gauge]
        rows.append(Row(f"{name}: normal v, part of H v along V", max(mixed), ROUNDING))
        rows.append(Row(f"{name}: block-constant v, part of H v off BC", max(back), ROUNDING))
        rows.append(Row(f"{name}: normal v, part of H v normal to V", hessian.incoming.outgoing, SIGNAL, control=True))
    return rows


def check_gauss_newton(size: Size) -> list[Row]:
    """`G v` for normal v, at BC and V, and the other matrices that are used in place of H; H itself as the control."""
    rows = []
    for name in NAMES:
        motions = [measure(name, point, size) for point in ("bc", "v")]
        rows.append(Row(f"{name}: G v, v normal", max(max(m.gauss_newton[1:]) for m in motions), ROUNDING))
        rows.append(Row(f"{name}: H v, v normal", norm(motions[1].hessian.incoming), SIGNAL, control=True))
        rows.append(Row(f"{name}: G v, v tangent", motions[1].gauss_newton.constant, SIGNAL, control=True))
    fisher, factored, tangent = _empirical_matrices(size)
    return [
        *rows,
        Row("mlp, gelu: empirical Fisher, sqrt(v'Fv), v normal", fisher, ROUNDING),
        Row("mlp, gelu: K-FAC without damping, K v, v normal", factored, ROUNDING),
        Row("mlp, gelu: K-FAC, K v, v tangent", tangent, SIGNAL, control=True),
    ]


def _empirical_matrices(size: Size) -> tuple[float, float, float]:
    """`sqrt(v'Fv)` and `||K v||` for unit normal v, and `||K v||` for unit tangent v, at a point of V, in NumPy."""
    architecture = architectures(size)["mlp, gelu"]
    model = architecture.build()
    wiring, partition = model.wiring, unequal_partition(model.wiring)
    variables = cloned_points(wiring, partition, random_variables(model)).v
    inputs, labels = take(random_batches(architecture.input_shape, 1), 0)
    observed = jax.device_get(jax.jit(observe, static_argnums=0)(model, variables, (inputs, labels)))
    inputs_of = {"hidden_0": inputs, "hidden_1": observed.taps["hidden_0"].post}
    decomposition = split(wiring, partition, random_variables(model, seed=2)["params"])

    def quadratic_forms(direction: Params) -> tuple[float, float]:
        fisher = factored = total = 0.0
        for layer, sources in inputs_of.items():
            v, delta = direction[layer]["kernel"], len(labels) * observed.signals[layer].pre
            # Gradient of sample x: h_x delta_x'. Kronecker factors: means of h h' and of delta delta'.
            fisher += np.mean(np.einsum("xi,ij,xj->x", sources, v, delta) ** 2)
            A, G = (array.T @ array / len(labels) for array in (np.asarray(sources), delta))
            factored += np.sum((A @ v @ G) ** 2)
            total += np.sum(v**2)
        return float(np.sqrt(fisher / total)), float(np.sqrt(factored / total))

    normal = [quadratic_forms(piece) for piece in decomposition[1:]]
    return max(each[0] for each in normal), max(each[1] for each in normal), quadratic_forms(decomposition.constant)[1]


CHECKS: tuple[Check, ...] = (
    Check(
        "flatness.gauge",
        "Redistributing weights inside blocks with totals kept changes no activation, and H is zero along such"
        " changes, everywhere on V.",
        "this library",
        check_gauge,
        "Clones that differ by such a redistribution compute the same function, so many zero eigenvalues mean nothing.",
    ),
    Check(
        "flatness.outgoing",
        "Changing only what clones send, by any amount and for all units at once, changes no activation: the normal"
        " Hessian has a zero block, so it is never definite.",
        "this library; for one hidden layer Fukumizu & Amari 2000",
        check_outgoing,
        "Across a manifold of clones there is never a strict minimum. Kick the outgoing weights: the function stays,"
        " and the next gradient tells the clones apart.",
    ),
    Check(
        "flatness.blocks",
        "At every point of V the Hessian maps BC to BC and the normal space of V to itself.",
        "this library",
        check_blocks,
        "Whether clones are stable can be decided on the normal space alone, without the curvature of the task.",
    ),
    Check(
        "flatness.gauss_newton",
        "The Gauss-Newton matrix, the Fisher, the empirical Fisher and K-FAC without damping are zero on the normal"
        " space of clones.",
        "this library",
        check_gauss_newton,
        "Second-order optimizers and flatness measures built on these matrices cannot see the way out; only the full"
        " Hessian can.",
    ),
)
"""From what nothing sees to what only the Hessian sees."""
