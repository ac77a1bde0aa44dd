"""Networks with batch norm and layer norm: Hessian-vector products against the dense Hessian in float64.

No closed form holds there, so `unit_blocks` takes its second method, which proves saddles and counts nothing. The
reference is the whole Hessian of the cloned network between projectors made of cluster averages, array by array.
"""

from collections.abc import Callable, Mapping
from functools import cache, reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, uniform_partition, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.model import Model, Params, Variables
from lopjax.models import mlp
from lopjax.stability import Stability, StabilityReport, UnitBlocks, unit_blocks
from lopjax.tolerance import CERTAIN_FROM
from lopjax.wiring import Wiring
from theory_checks.audit.tally import Tally

KINDS = ("ordinary", "saturated", "quiet", "loud", "equal units", "no outgoing weights")
DTYPES = ("float64", "float32")
SAMPLES = 7
OUTPUTS = 2
LOSSES = {"cross_entropy": mean_cross_entropy, "mse": mean_squared_error}


class NormedStructure(NamedTuple):
    """What has to be compiled: base widths, norm, its mode, activation, loss, number of clones of every unit."""

    widths: tuple[int, ...]
    norm: str
    train: bool
    activation: str
    loss: str
    factor: int

    @property
    def model(self) -> Model:
        """The base network."""
        return mlp((2,), self.widths, OUTPUTS, activation=self.activation, norm=self.norm)


STRUCTURES = (
    NormedStructure((3,), "layer", False, "tanh", "cross_entropy", 3),
    NormedStructure((2, 2), "batch", True, "tanh", "mse", 2),
    NormedStructure((3,), "batch", False, "gelu", "cross_entropy", 2),
    NormedStructure((3, 2), "layer", False, "relu", "mse", 2),
    NormedStructure((3,), "batch", True, "relu", "cross_entropy", 2),
    NormedStructure((3, 3), "layer", False, "silu", "cross_entropy", 2),
)


class TrueSpectrum(NamedTuple):
    """Eigenvalues of the normal Hessian, ascending, and a bound on their rounding."""

    eigenvalues: np.ndarray
    noise: float


def audit_normed(num_networks: int, seed: int, num_structures: int = len(STRUCTURES)) -> Tally:
    """Judge random networks by products, and densely.

    Args:
        num_networks: how many.
        seed: seed of everything random.
        num_structures: how many of `STRUCTURES`.
    """
    rng, tally = np.random.default_rng([seed, 2]), Tally()
    for number in range(num_networks):
        structure = STRUCTURES[number % num_structures]
        kind, dtype = KINDS[number // num_structures % len(KINDS)], str(rng.choice(DTYPES))
        variables, batch = draw(rng, structure, kind, dtype)
        blocks, truth = judge(structure, variables, batch), true_spectrum(structure, variables, batch)
        tally.count(("batched hvp", kind, dtype), blocks.total.verdict)
        for falsehood in falsehoods(blocks, truth):
            tally.wrong.append(
                f"normed {number} (seed {seed}), {kind}, {dtype}, {structure}: {falsehood}; true {truth}"
            )
    return tally


def draw(rng: np.random.Generator, structure: NormedStructure, kind: str, dtype: str) -> tuple[Variables, tuple]:
    """Base variables of a kind and a batch, rounded to `dtype`."""
    shapes = jax.eval_shape(structure.model.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: rng.uniform(-1.5, 1.5, leaf.shape), shapes)
    variables = {**variables, "batch_stats": jax.tree.map(np.square, variables.get("batch_stats", {}))}
    params = variables["params"]
    last, first = params["classes"], params["hidden_0"]
    if kind == "saturated":
        for name, norm in params.items():
            if name.endswith("_norm"):
                norm["offset"] += 6 * rng.choice([-1.0, 1.0], norm["offset"].shape)
    if kind in ("quiet", "loud"):
        last["kernel"] *= 10.0 ** (rng.uniform(1, 3) * (1 if kind == "loud" else -1))
    if kind == "equal units":
        first["kernel"][:] = first["kernel"][:, :1]
    if kind == "no outgoing weights":
        last["kernel"][0] = 0
    inputs = rng.normal(size=(SAMPLES, 2))
    labels = rng.normal(size=(SAMPLES, OUTPUTS)).astype(dtype)
    batch = jnp.asarray(inputs, dtype), jnp.asarray(labels)
    if structure.loss == "cross_entropy":
        batch = batch[0], jnp.asarray(rng.integers(OUTPUTS, size=SAMPLES), jnp.int32)
    variables = {name: tree for name, tree in variables.items() if tree}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), variables), batch


def judge(structure: NormedStructure, variables: Variables, batch: tuple) -> UnitBlocks:
    """The library's answer about the clones of a base network."""
    loss = LOSSES[structure.loss]
    return unit_blocks(
        structure.model,
        variables,
        batch,
        structure.factor,
        loss=loss,
        method="batched hvp",
        train=structure.train,
        num_steps=16,
    )


def true_spectrum(structure: NormedStructure, variables: Variables, batch: tuple) -> TrueSpectrum:
    """Dense eigenvalues on the normal space of the clones, in float64."""
    wide = widen(structure.model, structure.factor)
    variables, batch = jax.tree.map(_in_double, (dict(variables), batch))
    cloned = clone_variables(variables, structure.model.wiring, structure.factor)
    params = cloned["params"]
    hessian = np.asarray(_hessian(wide, structure.loss, structure.train)(cloned, batch))
    basis = normal_basis(params, wide.wiring, uniform_partition(wide.wiring, structure.factor))
    noise = 1e-12 * float(np.linalg.norm(hessian)) + 1e-300
    return TrueSpectrum(np.linalg.eigvalsh(basis.T @ (hessian + hessian.T) @ basis / 2), noise)


@cache
def _hessian(model: Model, loss: str, train: bool) -> Callable:
    def hessian(variables: Variables, batch: tuple) -> jax.Array:
        flat, unravel = ravel_pytree(variables["params"])

        def loss_of(flat: jax.Array) -> jax.Array:
            logits = model.apply({**variables, "params": unravel(flat)}, batch[0], train=train)[0]
            return LOSSES[loss](logits, batch[1])

        return jax.hessian(loss_of)(flat)

    return jax.jit(hessian)


def normal_basis(params: Params, wiring: Wiring, partition: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Orthonormal columns at right angles to the leaf: per array the kernel of its cluster averages."""
    blocks = []
    for label, leaf in zip(wiring.labels_of(params), jax.tree.leaves(params), strict=True):
        averages = []
        for axis, size in zip(label.axes, leaf.shape, strict=True):
            ids = None if axis is None else partition.get(axis.space)
            same = np.eye(size) if ids is None else np.equal.outer(ids, ids).astype(float)
            averages.append(same / same.sum(axis=1))
        values, vectors = np.linalg.eigh(reduce(np.kron, averages))
        blocks.append(vectors[:, values < 0.5])
    return np.asarray(scipy.linalg.block_diag(*blocks))


def falsehoods(blocks: UnitBlocks, truth: TrueSpectrum) -> list[str]:
    """What the dense spectrum contradicts; a block's eigenvalues are among those of the whole."""
    wrong, level = [], blocks.total.zero_level * blocks.total.scale + truth.noise
    if blocks.total.verdict is Stability.NEUTRAL and np.abs(truth.eigenvalues).max() > level:
        wrong.append(f"flat and is not; {blocks.total}")
    for report in (blocks.total, *(report for space in blocks.spaces.values() for report in space.reports)):
        wrong += [f"{report.space}: {name}; {report}" for name in _contradictions(report, truth)]
    return wrong


def _contradictions(report: StabilityReport, truth: TrueSpectrum) -> list[str]:
    values, noise = truth
    low, high = report.min_eigenvalue, report.max_eigenvalue
    bound = CERTAIN_FROM * report.tolerance + noise
    is_kinked = "kink" in report.note
    apart = max(np.abs(values - low).min(), np.abs(values - high).min())
    wrong = {
        "a saddle that is none": report.verdict is Stability.SADDLE and not (values[0] < noise and values[-1] > -noise),
        "a verdict without a count": report.verdict not in (Stability.SADDLE, Stability.NEUTRAL, Stability.UNDECIDED),
        "claims to count": report.exact or report.n_plus >= 0 or report.n_zero >= 0,
        "no such negative curvature": report.note.startswith("not stable") and values[0] > noise,
        "no such positive curvature": report.note.startswith("not unstable") and values[-1] < -noise,
        "quotients outside the spectrum": (low < values[0] - bound or high > values[-1] + bound) and not is_kinked,
        "no eigenvalue within the residual": apart > report.residual + bound and not is_kinked,
    }
    return [name for name, is_wrong in wrong.items() if is_wrong]


def _in_double(leaf: jax.Array | np.ndarray) -> jax.Array:
    leaf = jnp.asarray(leaf)
    return leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
