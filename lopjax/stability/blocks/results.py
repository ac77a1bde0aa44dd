"""What `unit_blocks` returns, and the inputs of its two methods."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from lopjax.cloning import Clusters
from lopjax.model import Model, Variables
from lopjax.stability.blocks.matrices import LossOfLogits
from lopjax.stability.verdicts import StabilityReport


class SpaceBlocks(NamedTuple):
    """The blocks M_j of all units of one unit space, as arrays over the units of the base network.

    Attributes:
        space: name of the unit space.
        multiplicity: n_j - 1, how often the block occurs in the normal Hessian.
        dimension: dimension of one block: the number of incoming and outgoing parameters of the base unit.
        reports: one report per unit, of its block counted once.
        gradient_residual: `|diag(sqrt n_i, 1) g_j| / |diag(sqrt n_k) w_out|` with g_j the base gradient with respect to
            the unit's incoming parameters: at most this much of B_j's smallest singular value is due to the base not
            being at a critical point. NaN where unknown, 0 where the outgoing weights are 0.
        is_dead: units whose block is zero term by term, as for a unit that is dead on all data.
        eigenvalues: the whole spectrum of every block, `(units, dimension)`, ascending; from Lanczos, the Ritz values,
            `(units, steps)`, NaN where there are none.
    """

    space: str
    multiplicity: np.ndarray
    dimension: int
    reports: tuple[StabilityReport, ...]
    gradient_residual: np.ndarray
    is_dead: np.ndarray
    eigenvalues: np.ndarray

    def per_unit(self, field: str) -> np.ndarray:
        """One field of the reports as an array over units, such as `per_unit("min_eigenvalue")`."""
        if field not in StabilityReport._fields:
            raise ValueError(f"field={field!r}: must be one of {list(StabilityReport._fields)}")
        return np.array([getattr(report, field) for report in self.reports])

    def of_units(self, field: str) -> np.ndarray:
        """The former name of `per_unit`."""
        return self.per_unit(field)


class UnitBlocks(NamedTuple):
    """Result of `unit_blocks`.

    Attributes:
        spaces: per unit space with clones, its blocks.
        total: the report on the whole normal space of the leaf: every block n_j - 1 times, and the gauge directions.
    """

    spaces: Mapping[str, SpaceBlocks]
    total: StabilityReport


class ClonedNetwork(NamedTuple):
    """A network of clones with its base network.

    Attributes:
        base_model: one unit for every cluster.
        base: variables of the base network.
        wide_model: the cloned network.
        wide: its variables, at a point of BC.
        clusters: clusters of every space with clones.
    """

    base_model: Model
    base: Variables
    wide_model: Model
    wide: Variables
    clusters: dict[str, Clusters]


class BlockOptions(NamedTuple):
    """Settings of `unit_blocks`, which describes every field."""

    loss: LossOfLogits
    batch_size: int
    near_critical: bool
    train: bool
    num_steps: int
    key: Key[Array, ""] | None


def off_block_constant(blocks: UnitBlocks, residual: float) -> UnitBlocks:
    """The same blocks with a note: variables that are only roughly block constant have no exact report.

    Args:
        blocks: blocks of the network of the cluster means.
        residual: relative distance of the variables from that network.

    Returns:
        The blocks, with no report called exact.
    """
    note = (
        f"the variables are block constant up to {residual:.2g} only, which bc_tolerance allows and rounding does not "
        "explain: the verdict is about the network of their cluster means"
    )

    def qualify(report: StabilityReport) -> StabilityReport:
        return report._replace(exact=False, note="; ".join(filter(None, (report.note, note))))

    spaces = {name: space._replace(reports=tuple(map(qualify, space.reports))) for name, space in blocks.spaces.items()}
    return UnitBlocks(spaces, qualify(blocks.total))


def repeated_reports(spaces: Mapping[str, SpaceBlocks]) -> list[tuple[StabilityReport, int]]:
    """Report and multiplicity of every distinct block."""
    return [
        (report, int(multiplicity))
        for blocks in spaces.values()
        for report, multiplicity in zip(blocks.reports, blocks.multiplicity, strict=True)
        if multiplicity
    ]


def at_least(tree: Variables, dtype: DTypeLike) -> Variables:
    """A tree whose floating-point arrays are promoted to at least this type."""

    def widen_array(leaf: Array | np.ndarray) -> Array:
        array = jnp.asarray(leaf)
        is_float = jnp.issubdtype(array.dtype, jnp.floating)
        return array.astype(jnp.promote_types(array.dtype, dtype)) if is_float else array

    return jax.tree.map(widen_array, tree)
