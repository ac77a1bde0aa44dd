"""Stability of clones: the blocks of the normal Hessian, what decides their signs, and the ways out.

The base network is small enough for a dense Hessian of its clones, which is the oracle throughout.
"""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.curvature import dense_hessian
from lopjax.losses import mean_cross_entropy, mean_squared_error, of_parameters
from lopjax.manifolds import cloned_manifold, normal_basis
from lopjax.model import Model, Variables
from lopjax.models import mlp
from lopjax.stability import critical_weight_decay, escape_time, free_kick, transverse_lyapunov, unit_blocks
from lopjax.stability.spectra import block_inertia
from theory_checks.architectures import NUM_CLASSES, random_variables
from theory_checks.check import Check, Row, Size

ROUNDING, SIGNAL = 1e-12, 1e-3
LOSSES = {"cross-entropy": mean_cross_entropy, "squared error": mean_squared_error}
OURS = "lopjax; the decomposition into unit blocks answers an open question of arXiv 2510.00304, section 4"


def _batch(num_inputs: int, loss: str, outputs: int = NUM_CLASSES, samples: int = 12) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(7)
    inputs = jnp.asarray(rng.normal(size=(samples, num_inputs)))
    if loss == "cross-entropy":
        return inputs, jnp.asarray(rng.integers(0, outputs, samples))
    return inputs, jnp.asarray(rng.normal(size=(samples, outputs)))


def _normal_eigenvalues(model: Model, variables: Variables, factor: int, loss: str, batch: tuple) -> np.ndarray:
    """Spectrum of the Hessian of a wide network on the normal space of the leaf, by a dense Hessian and numpy."""
    manifold = cloned_manifold(variables["params"], model.wiring, uniform_partition(model.wiring, factor))
    basis = np.asarray(normal_basis(manifold))
    loss_of = of_parameters(LOSSES[loss], model, variables, batch)
    hessian = jax.jit(partial(dense_hessian, loss_of))(variables["params"])
    return np.linalg.eigvalsh(basis @ np.asarray(hessian) @ basis.T)


# --- The closed form -------------------------------------------------------------------------------------------------


def check_closed_form(size: Size) -> list[Row]:
    """Largest difference between the block spectra, repeated, with the gauge zeros, and the dense one."""
    rows = []
    activations = ("tanh", "relu") if size == "small" else ("tanh", "gelu", "sigmoid", "relu", "elu")
    for activation in activations:
        for loss, factor in (("cross-entropy", 2), ("squared error", 3)):
            base = mlp((3,), (3, 2), NUM_CLASSES, activation=activation)
            variables, batch = random_variables(base, scale=1.0), _batch(3, loss)
            wide = widen(base, factor)
            dense = _normal_eigenvalues(wide, clone_variables(variables, base.wiring, factor), factor, loss, batch)
            blocks = unit_blocks(base, variables, LOSSES[loss], batch, factor)
            found = [np.repeat(space.eigenvalues.ravel(), factor - 1) for space in blocks.spaces.values()]
            together = np.sort(np.concatenate([*found, np.zeros(len(dense) - sum(map(len, found)))]))
            rows.append(Row(f"{activation}, {loss}, n = {factor}: spectrum", abs(together - dense).max(), ROUNDING))
    rows.append(_off_block_constant())
    return rows


def _off_block_constant() -> Row:
    """At a point of V off BC the units couple, and the blocks of the base network are wrong."""
    base, batch = mlp((3,), (3, 2), NUM_CLASSES, activation="tanh"), _batch(3, "cross-entropy")
    variables, wide = random_variables(base, scale=1.0), widen(base, 2)
    cloned = clone_variables(variables, base.wiring, 2)
    manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))
    assert manifold.normals is not None  # every cloned manifold has them
    gauge = manifold.normals.gauge.project(random_variables(wide, seed=5, scale=3.0)["params"])
    moved = {**cloned, "params": jax.tree.map(jnp.add, cloned["params"], gauge)}
    lowest = _normal_eigenvalues(wide, moved, 2, "cross-entropy", batch)[0]
    blocks = unit_blocks(base, variables, mean_cross_entropy, batch, 2)
    return Row("V off BC: smallest eigenvalue", abs(lowest - blocks.total.min_eigenvalue), SIGNAL, control=True)


def check_relu(size: Size) -> list[Row]:
    """How far the spectrum of every block is from its mirror image."""
    rows = []
    for activation, is_piecewise_linear in (("relu", True), ("leaky_relu", True), ("tanh", False)):
        base = mlp((3,), (4, 3), NUM_CLASSES, activation=activation)
        blocks = unit_blocks(base, random_variables(base), mean_cross_entropy, _batch(3, "cross-entropy"), 2)
        asymmetry = max(abs(s.eigenvalues + s.eigenvalues[:, ::-1]).max() for s in blocks.spaces.values())
        rows.append(Row(f"{activation}: asymmetry", asymmetry, ROUNDING, control=not is_piecewise_linear))
    return rows


def check_inertia(size: Size) -> list[Row]:
    """Disagreements between the inertia formula and the signs of dense eigenvalues, over random blocks."""
    rng = np.random.default_rng(3)
    wrong, naive_wrong = 0, 0
    for _ in range(50 if size == "small" else 1000):
        p, q = rng.integers(1, 7, 2)
        rank = rng.integers(0, min(p, q) + 1)
        coupling = rng.normal(size=(p, rank)) @ rng.normal(size=(rank, q))
        half = rng.normal(size=(p, p))
        curvature = half + half.T
        matrix = np.block([[curvature, coupling], [coupling.T, np.zeros((q, q))]])
        values = np.linalg.eigvalsh(matrix)
        expected = ((values > 1e-9).sum(), (values < -1e-9).sum(), (abs(values) <= 1e-9).sum())
        found = block_inertia(curvature, coupling, 1e-12)
        wrong += (found.plus, found.minus, found.zero) != expected
        signs = np.linalg.eigvalsh(curvature)
        naive_wrong += (rank + (signs > 0).sum(), rank + (signs < 0).sum()) != expected[:2]
    return [
        Row("random blocks with another inertia than the formula's", wrong, 0),
        Row("the same with A in place of Z'AZ", naive_wrong, 0, control=True),
    ]


# --- At a critical point of the base ---------------------------------------------------------------------------------


class Critical(NamedTuple):
    """A base network at a critical point, its data, its clones and the modes of their normal Hessian."""

    base: Model
    variables: Variables
    batch: tuple[jax.Array, jax.Array]
    wide: Model
    cloned: Variables
    eigenvalues: np.ndarray
    modes: np.ndarray


@cache
def critical(outputs: int) -> Critical:
    """Three tanh units on data that cannot be fitted, brought to a critical point by BFGS and Newton steps."""
    from scipy.optimize import minimize

    base, batch = mlp((2,), (3,), outputs, activation="tanh"), _batch(2, "squared error", outputs, samples=16)
    start = random_variables(base, seed=3)
    flat, unravel = ravel_pytree(start["params"])
    loss_of = of_parameters(mean_squared_error, base, start, batch)
    loss = jax.jit(lambda point: loss_of(unravel(point)))
    gradient, hessian = jax.jit(jax.grad(loss)), jax.jit(jax.hessian(loss))
    point = minimize(loss, flat, jac=gradient, method="BFGS", options={"gtol": 1e-6}).x
    for _ in range(6):
        point = point - np.linalg.lstsq(hessian(point), gradient(point), rcond=1e-10)[0]
    variables = {**start, "params": unravel(jnp.asarray(point))}
    wide, cloned = widen(base, 2), clone_variables(variables, base.wiring, 2)
    manifold = cloned_manifold(cloned["params"], wide.wiring, uniform_partition(wide.wiring, 2))
    rows = np.asarray(normal_basis(manifold))
    dense = np.asarray(dense_hessian(of_parameters(mean_squared_error, wide, cloned, batch), cloned["params"]))
    values, vectors = np.linalg.eigh(rows @ dense @ rows.T)
    return Critical(base, variables, batch, wide, cloned, values, vectors.T @ rows)


def check_fukumizu_amari(size: Size) -> list[Row]:
    """Size of B_j with a single output: the outgoing part of the blocks, whose spectrum is then that of A_j."""

    def coupling(variables: Variables) -> float:
        point = critical(1)
        blocks = unit_blocks(point.base, variables, mean_squared_error, point.batch, 2).spaces["hidden_0"]
        # M = [[A, B], [B', 0]] with one column: det and the number of zero eigenvalues tell B = 0 from B != 0.
        return float(np.abs(blocks.eigenvalues).min(axis=1).max())

    point = critical(1)
    moved = jax.tree.map(lambda leaf: leaf + 0.3, point.variables)
    return [
        Row("critical base: eigenvalue along the outgoing weight", coupling(point.variables), 1e-9),
        Row("base off its critical point: the same", coupling(moved), 1e-9, control=True),
    ]


def check_weight_decay(size: Size) -> list[Row]:
    """Smallest normal eigenvalue of the decayed loss, just above and just below the critical decay."""
    point = critical(2)
    decay = critical_weight_decay(unit_blocks(point.base, point.variables, mean_squared_error, point.batch, 2))
    plain = of_parameters(mean_squared_error, point.wide, point.cloned, point.batch)

    def lowest(strength: float) -> float:
        def decayed(params: object) -> jax.Array:
            return plain(params) + 0.5 * strength * jnp.sum(jnp.square(ravel_pytree(params)[0]))

        hessian = np.asarray(dense_hessian(decayed, point.cloned["params"]))
        return float(np.linalg.eigvalsh(point.modes @ hessian @ point.modes.T)[0])

    return [
        Row("decay 1 % above the threshold: smallest eigenvalue", lowest(1.01 * decay), 0.0, ">="),
        Row("decay 1 % below the threshold: smallest eigenvalue", lowest(0.99 * decay), 0.0, ">=", control=True),
    ]


def check_free_kick(size: Size) -> list[Row]:
    """Change of the logits by a kick of size 0.7, and of the next gradient against the predicted response."""
    point = critical(2)
    loss = of_parameters(mean_squared_error, point.wide, point.cloned, point.batch)
    params, wiring = point.cloned["params"], point.wide.wiring
    kick = free_kick(loss, params, wiring, uniform_partition(wiring, 2), "hidden_0", 0)

    def logits(direction: object) -> jax.Array:
        moved = jax.tree.map(lambda leaf, step: leaf + 0.7 * step, params, direction)
        return point.wide.apply({**point.cloned, "params": moved}, point.batch[0])[0]

    nothing = jax.tree.map(jnp.zeros_like, params)
    kicked = jax.tree.map(lambda leaf, step: leaf + 0.7 * step, params, kick.direction)
    change = jax.tree.map(jnp.subtract, jax.grad(loss)(kicked), jax.grad(loss)(params))
    difference = ravel_pytree(change)[0] - 0.7 * ravel_pytree(kick.response)[0]
    same_sign = jax.tree.map(jnp.abs, kick.direction)
    return [
        Row("change of the logits", float(abs(logits(kick.direction) - logits(nothing)).max()), ROUNDING),
        Row("next gradient against B r", float(abs(difference).max()), ROUNDING),
        Row("size of B r", float(jnp.linalg.norm(ravel_pytree(kick.response)[0])), SIGNAL, ">="),
        Row(
            "the same kick without opposite signs",
            float(abs(logits(same_sign) - logits(nothing)).max()),
            ROUNDING,
            control=True,
        ),
    ]


def check_escape(size: Size) -> list[Row]:
    """Relative error of the predicted number of gradient steps until the clones are a given distance apart."""
    point, radius, rate = critical(2), 3e-3, 0.2
    flat, unravel = ravel_pytree(point.cloned["params"])
    loss = of_parameters(mean_squared_error, point.wide, point.cloned, point.batch)
    rng = np.random.default_rng(0)
    kick = 1e-5 * rng.normal(size=len(point.modes)) / len(point.modes) ** 0.5

    @jax.jit
    def distances(start: jax.Array) -> jax.Array:
        def step(current: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            moved = current - rate * jax.grad(lambda vector: loss(unravel(vector)))(current)
            return moved, jnp.linalg.norm(point.modes @ (moved - flat))

        return jax.lax.scan(step, start, None, length=6000)[1]

    measured = 1 + int(np.argmax(np.asarray(distances(flat + kick @ point.modes)) >= radius))
    by_component = float(escape_time(point.eigenvalues, kick, radius, rate))
    by_length = float(escape_time(point.eigenvalues[:1], [float(np.linalg.norm(kick))], radius, rate))
    return [
        Row(f"predicted from components, {measured} steps measured", abs(by_component / measured - 1), 0.05),
        Row("predicted from the length of the kick", abs(by_length / measured - 1), 0.05, control=True),
    ]


def check_noise(size: Size) -> list[Row]:
    """Transverse Lyapunov exponent over eta² for zero-mean blocks with p inputs and one output, without drift."""
    steps, rate = (200_000, 0.03) if size == "small" else (1_000_000, 0.02)

    def product(coupling: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.concatenate([coupling * v[-1], (coupling @ v[:-1])[None]])

    def exponent(p: int) -> float:
        draw, start = jax.random.split(jax.random.key(p))
        couplings = jax.random.normal(draw, (steps, p))
        estimate = transverse_lyapunov(product, jnp.zeros(p + 1), couplings, rate, start, burn_in=steps // 20)
        return float(estimate.exponent) / rate**2

    found = {p: exponent(p) for p in (1, 5, 30)}
    return [
        Row("p = 1: exponent / eta², noise attracts", found[1], 0.0),
        Row("p = 5: noise repels", found[5], 0.0, ">="),
        Row("p = 30: noise repels", found[30], 0.0, ">="),
        Row("p = 30: exponent / eta², noise attracts", found[30], 0.0, control=True),
    ]


CHECKS = (
    Check(
        "stability.closed_form",
        "At clones in block-constant form the normal Hessian falls apart into one block for each unit of the base "
        "network, repeated n - 1 times, and zeros along the gauge.",
        OURS,
        check_closed_form,
        "The stability of a network of a million parameters is decided by hundreds of small matrices, exactly.",
    ),
    Check(
        "stability.relu_symmetry",
        "With a piecewise linear activation every positive eigenvalue of a block has a negative mirror image.",
        OURS,
        check_relu,
        "ReLU clones are never at a minimum across the manifold: they sit at a saddle, or on flat ground.",
    ),
    Check(
        "stability.inertia",
        "A block [[A, B], [B', 0]] has rank(B) eigenvalues of each sign, and those of A on the kernel of B'.",
        "Sylvester's law of inertia",
        check_inertia,
        "Any coupling between a unit's incoming and outgoing weights makes its clones a saddle: noise can free them.",
    ),
    Check(
        "stability.fukumizu_amari",
        "At a critical point of a network with one output, the coupling B_j of every unit of its last layer is 0.",
        "Fukumizu and Amari, Neural Networks 13 (2000) 317; here as a special case of the block form",
        check_fukumizu_amari,
        "With one output, clones at a critical point may be a plateau rather than a saddle: A_j decides.",
    ),
    Check(
        "stability.weight_decay",
        "Weight decay makes the manifold of clones attract once it exceeds -min lambda_min(M_j), and not before.",
        OURS,
        check_weight_decay,
        "Strong weight decay can turn a saddle of clones into a trap; the threshold can be computed beforehand.",
    ),
    Check(
        "stability.free_kick",
        "Opposite changes of the outgoing weights of two clones change no output; the next gradient then separates "
        "them, by B_j times the change.",
        OURS,
        check_free_kick,
        "Clones can be freed without disturbing what the network has learnt.",
    ),
    Check(
        "stability.escape_rate",
        "From a critical base the clones of a kicked network separate after ln(R / |c|) / ln(1 + eta |lambda|) steps, "
        "c being the component of the kick along the most unstable direction.",
        OURS,
        check_escape,
        "How long noise has to act before cloned units specialise can be computed from the curvature.",
    ),
    Check(
        "stability.noise_that_repels",
        "Minibatch noise without drift attracts to the manifold of clones if a unit has one input, and repels from it "
        "if it has many.",
        "lopjax; sharpens arXiv 2306.04251, where all minibatch Hessians share their eigenvectors",
        check_noise,
        "Small batches do not always collapse units onto each other: with wide layers their noise drives clones apart.",
    ),
)
