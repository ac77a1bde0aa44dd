"""Extreme eigenvalues of every unit's block for any wiring: one Hessian product of the cloned network serves all units.

At a point of BC the blocks of different units do not couple. With an antisymmetric pattern on two clones of *every*
unit at once, one product returns `M_j v_j` for all j; Lanczos with inner products taken inside each unit then gives
every unit its own spectrum.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from lopjax.curvature import block_eigenvalues, extreme_eigenvalues, hvp_over_batches
from lopjax.losses import Batch
from lopjax.manifolds import Clusters, make_clusters
from lopjax.model import Model, Params, Variables
from lopjax.stability.blocks.coordinates import UnitRows, make_lift
from lopjax.stability.blocks.signals import LossOfLogits, tap_shapes

FrozenPartition = tuple[tuple[str, tuple[int, ...]], ...]
"""A hashable partition, for static arguments: `(space, cluster id of every unit)`."""

# Hessian products used to estimate the size of the whole Hessian, which only sets the tolerance.
_SCALE_STEPS = 12


class UnitExtremes(NamedTuple):
    """What Lanczos found for the units of one space; see `lopjax.curvature.BlockSpectra`.

    Attributes:
        extremes: smallest and largest Rayleigh quotient, `(units, 2)`.
        residuals: an eigenvalue of the block lies within this distance of each, `(units, 2)`; infinite where none was
            found.
        ritz_values: `(units, steps)`, ascending, NaN beyond the last reliable step.
        is_zero: units whose block maps a random vector exactly to zero.
        dimension: dimension of one block.
    """

    extremes: np.ndarray
    residuals: np.ndarray
    ritz_values: np.ndarray
    is_zero: np.ndarray
    dimension: int


class HessianProduct(NamedTuple):
    """The Hessian of a network's loss as an operator on parameters; hashable, so that a program is compiled once.

    Attributes:
        model: the cloned model.
        loss: `(logits, labels) -> scalar`.
        train: whether batch norm uses the statistics of the batch.
        batch_size: samples per product; all of them in train mode, where samples are coupled.
    """

    model: Model
    loss: LossOfLogits
    train: bool
    batch_size: int

    def __call__(self, variables: Variables, batch: Batch, vector: Params) -> Params:
        """Hessian of the mean loss over the batch, times a vector."""

        def batch_loss(params: Params, part: Batch) -> Array:
            logits = self.model.apply(
                {**variables, "params": params}, part[0], train=self.train, dropout_rate=0.0
            ).logits
            return self.loss(logits, part[1])

        return hvp_over_batches(batch_loss, variables["params"], vector, batch, self.batch_size)


def unit_extremes(
    product: HessianProduct,
    variables: Variables,
    batch: Batch,
    clusters: dict[str, Clusters],
    num_steps: int,
    key: Key[Array, ""],
) -> dict[str, UnitExtremes]:
    """Lanczos in every unit's block at once.

    Spaces whose block sizes are within a factor of three share one run, and so every Hessian product and its
    compilation, which takes most of the time for small networks.

    Args:
        product: the cloned network with its loss.
        variables: its variables, at a point of BC.
        batch: inputs and labels.
        clusters: clusters of every space with clones.
        num_steps: Lanczos steps, each one Hessian product per group of spaces.
        key: random key of the start vectors.
    """
    partition = freeze(clusters)
    _, zero = make_lift(variables["params"], product.model.wiring, clusters)
    extremes = {}
    for group in _similar_sizes({space: rows.shape[1] for space, rows in zero.items()}):
        spectra = _run_group(product, partition, group, num_steps, variables, batch, key)
        start = 0
        for space in group:
            units = slice(start, start := start + len(zero[space]))
            values = np.asarray(spectra.eigenvalues, np.float64)[units]
            residuals = np.asarray(spectra.residuals, np.float64)[units]
            ritz = np.where(spectra.valid[units], np.asarray(spectra.ritz_values, np.float64)[units], np.nan)
            is_zero = np.all((values == 0) & (residuals == 0), axis=1)
            extremes[space] = UnitExtremes(values, residuals, ritz, is_zero, zero[space].shape[1])
    return extremes


def coarsest_type(model: Model, variables: Variables, inputs: Array) -> DTypeLike:
    """The floating point type with the largest rounding error among the sites and parameters of the network."""
    taps = tap_shapes(model, variables, inputs)
    types = [leaf.dtype for leaf in jax.tree.leaves((taps, variables["params"]))]
    return max(types, key=lambda dtype: float(jnp.finfo(dtype).eps))


@partial(jax.jit, static_argnames=("product",))
def hessian_size(product: HessianProduct, variables: Variables, batch: Batch, key: Key[Array, ""]) -> Array:
    """Lower bound, good to a few per cent, on the largest absolute eigenvalue of the Hessian on the whole space."""
    pairs = extreme_eigenvalues(
        lambda vector: product(variables, batch, vector), variables["params"], _SCALE_STEPS, key
    )
    return jnp.max(jnp.abs(pairs.eigenvalues))


@partial(jax.jit, static_argnames=("product", "partition"))
def unit_products(
    product: HessianProduct, partition: FrozenPartition, variables: Variables, batch: Batch, rows: UnitRows
) -> UnitRows:
    """`M_j v_j` for every unit of every space: lift, one Hessian product, read back.

    Args:
        product: the cloned network with its loss.
        partition: its clusters.
        variables: its variables, at a point of BC.
        batch: inputs and labels.
        rows: v_j, coordinates as in `lopjax.stability.blocks.coordinates`.
    """
    lift, zero = make_lift(variables["params"], product.model.wiring, _thaw(partition))
    return jax.linear_transpose(lift, zero)(product(variables, batch, lift(rows)))[0]


@partial(jax.jit, static_argnames=("product", "partition", "group", "num_steps"))
def _run_group(product, partition, group, num_steps, variables, batch, key):
    """Lanczos for the units of some spaces, stacked and padded to a common length.

    Args:
        product: product with the Hessian of the wide network.
        partition: its clusters, hashable.
        group: the spaces, in the order of the stack.
        num_steps: number of Lanczos steps.
        variables: variables of the wide network.
        batch: inputs and labels.
        key: random key of the start vectors.

    Returns:
        The spectra of all units of the first space, then of the second, and so on.
    """
    _, zero = make_lift(variables["params"], product.model.wiring, _thaw(partition))
    sizes = {space: zero[space].shape for space in group}
    width = max(dim for _, dim in sizes.values())

    def matvec(stack: Array) -> Array:
        rows, start = dict(zero), 0
        for space, (units, dim) in sizes.items():
            rows[space] = stack[start : start + units, :dim]
            start += units
        products = unit_products(product, partition, variables, batch, rows)
        return jnp.concatenate([jnp.pad(products[s], ((0, 0), (0, width - dim))) for s, (_, dim) in sizes.items()])

    return block_eigenvalues(
        matvec,
        sum(units for units, _ in sizes.values()),
        width,
        num_steps,
        key,
        block_dimensions=jnp.concatenate([jnp.full(units, dim) for units, dim in sizes.values()]),
        dtype=zero[group[0]].dtype,
    )


def freeze(clusters: dict[str, Clusters]) -> FrozenPartition:
    """The clusters as a static argument."""
    return tuple((space, tuple(int(unit) for unit in own.ids)) for space, own in clusters.items())


def _thaw(partition: FrozenPartition) -> dict[str, Clusters]:
    return {space: make_clusters(ids) for space, ids in partition}


def _similar_sizes(sizes: dict[str, int]) -> list[tuple[str, ...]]:
    """Group spaces so that padding to the largest block of a group at most triples any other."""
    groups: list[list[str]] = []
    for space in sorted(sizes, key=lambda name: -sizes[name]):
        if groups and 3 * sizes[space] >= sizes[groups[-1][0]]:
            groups[-1].append(space)
        else:
            groups.append([space])
    return [tuple(group) for group in groups]
