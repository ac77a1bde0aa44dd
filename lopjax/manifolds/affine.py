"""The affine manifolds that trap gradient descent: cloned units, frozen units, and both at once.

All three are built by one rule, array by array, from the wiring: average over clusters along unit axes, and keep
nothing in the slices of frozen units. A cloned manifold has no frozen slices, a frozen one has no clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.cloning import Clusters, Partition, check_partition
from lopjax.integers import as_integer
from lopjax.manifolds.clusters import cluster_mean
from lopjax.manifolds.manifold import CloneNormals, Manifold, ManifoldKind, Params, Subspace
from lopjax.wiring import Label, Wiring, along

FrozenUnits = Mapping[str, Sequence[int]]
"""Indices of dead units per site, or per unit space that is written at one site only."""


class AffineStructure(NamedTuple):
    """What a cloned or frozen manifold is made of.

    Attributes:
        wiring: wiring of the network.
        clusters: per space with clones, its clusters.
        frozen: per site with frozen units, their indices in ascending order.
    """

    wiring: Wiring
    clusters: Mapping[str, Clusters]
    frozen: Mapping[str, tuple[int, ...]]


class _ArrayPlan(NamedTuple):
    """How one array is projected: clusters along its input and output axes, and which entries may move.

    `ranks` are the dimensions of BC, incoming, outgoing and gauge in this array.
    """

    inputs: tuple[tuple[int, Clusters], ...]
    outputs: tuple[tuple[int, Clusters], ...]
    movable: np.ndarray | None
    ranks: tuple[int, int, int, int]


def cloned_manifold(params: Params, wiring: Wiring, partition: Partition, space: str = "leaf") -> Manifold:
    """The manifold of cloned units through a point.

    With P the average over clusters along the axes of one side of an array and Q = I - P, the tangent space is, in
    every array, `P_in P_out` for `space="leaf"` (M_D = W + BC, the leaf that traps) and `P_in P_out + Q_in Q_out` for
    `space="V"` (V = RE and CE; the family of all leaves). It is invariant when `params` is on V: `certify_cloned`
    tells. Cluster sizes may differ. Of spaces that are permutable but not cloneable only the leaf through equal units
    (BC) is invariant, by the symmetry that exchanges them.

    Args:
        params: the point.
        wiring: wiring of the network.
        partition: cluster id of every unit, per space; a space that is absent has no clones.
        space: "leaf" or "V".

    Raises:
        ValueError: parameters that do not match the wiring; an unknown space, not one integer id per unit, clusters of
            inputs or outputs, for "V" also of a space that is not cloneable; another `space`.

    Example:
        >>> from lopjax.models import mlp
        >>> wide = mlp((4,), (6,), 2)
        >>> params = wide.init(jax.random.key(0))["params"]
        >>> cloned_manifold(params, wide.wiring, {"hidden_0": (0, 0, 1, 1, 2, 2)}).tangent_dimension
        23

    References:
        arXiv 2510.00304, section 4 and appendix A.2 (RE, CE, BC).
    """
    if space not in ("leaf", "V"):
        raise ValueError(f"space={space!r}: must be 'leaf' or 'V'")
    allowed = wiring.permutable if space == "leaf" else wiring.cloneable
    return _build(params, AffineStructure(wiring, check_partition(wiring, partition, allowed), {}), ManifoldKind(space))


def frozen_manifold(params: Params, wiring: Wiring, frozen_units: FrozenUnits) -> Manifold:
    """The affine space on which the parameters of dead units keep their values.

    Frozen are the slices, along the output axis, of every array whose every path to the output passes the unit at that
    site (`Label.site`): incoming weights and bias, norm scale and offset. That the units are dead is for
    `certify_frozen` to say.

    Args:
        params: the point.
        wiring: wiring of the network.
        frozen_units: per site, or per unit space with a single site, the indices of the dead units.

    Raises:
        ValueError: parameters that do not match the wiring; an unknown site, a space with several sites, an index out
            of range, a site that no parameter belongs to.
    """
    frozen = resolve_frozen_units(wiring, frozen_units)
    return _build(params, AffineStructure(wiring, {}, frozen), ManifoldKind.FROZEN)


def intersection(first: Manifold, second: Manifold) -> Manifold:
    """The intersection of cloned and frozen manifolds through the same point; its projector is the product of theirs.

    Args:
        first: from `cloned_manifold`, `frozen_manifold` or `intersection`.
        second: likewise; only one of the two may have clusters.

    Raises:
        ValueError: a frozen set that cuts a cluster (the product would not be an orthogonal projector), two sets of
            clusters, manifolds without structure or of different networks or points.
    """
    one, two = first.structure, second.structure
    if not isinstance(one, AffineStructure) or not isinstance(two, AffineStructure):
        raise ValueError("intersection needs manifolds made by cloned_manifold and frozen_manifold: only they commute")
    if one.wiring != two.wiring:
        raise ValueError("the manifolds belong to networks of different wiring: intersect manifolds of one network")
    if one.clusters and two.clusters:
        raise ValueError("both manifolds have clusters: merge them into one partition and build one cloned_manifold")
    pairs = zip(jax.tree.leaves(first.origin), jax.tree.leaves(second.origin), strict=True)
    if not all(a is b or bool(jnp.all(a == b)) for a, b in pairs):
        raise ValueError("the manifolds have different origins: build both at the same parameters")
    frozen = {
        site: tuple(sorted({*one.frozen.get(site, ()), *two.frozen.get(site, ())}))
        for site in {**one.frozen, **two.frozen}
    }
    structure = AffineStructure(one.wiring, one.clusters or two.clusters, frozen)
    _check_whole_clusters(structure)
    cloned = [manifold.kind for manifold in (first, second) if manifold.kind is not ManifoldKind.FROZEN]
    return _build(first.origin, structure, cloned[0] if cloned else ManifoldKind.FROZEN)


def resolve_frozen_units(wiring: Wiring, frozen_units: FrozenUnits) -> dict[str, tuple[int, ...]]:
    """`{site: sorted unit indices}` from indices per site or per single-site space; see `frozen_manifold`."""
    resolved: dict[str, tuple[int, ...]] = {}
    for name, units in frozen_units.items():
        site = _resolve_site(wiring, name)
        size = wiring.size(wiring.site(site).space)
        indices = []
        for unit in units:
            refusal = f"frozen unit {unit!r} of {name!r}: must be an integer index in 0..{size - 1}"
            indices.append(as_integer(unit, 0, refusal))
            if indices[-1] >= size:
                raise ValueError(refusal)
        if not any(label.site == site for path, label in wiring.labels if path[0] == "params"):
            raise ValueError(f"site {site!r}: no parameter belongs to it alone, so nothing is frozen when it is dead")
        resolved[site] = tuple(sorted({*resolved.get(site, ()), *indices}))
    return {site: units for site, units in resolved.items() if units}


def _resolve_site(wiring: Wiring, name: str) -> str:
    if name in dict(wiring.sites):
        return name
    if name not in wiring.spaces:
        raise ValueError(
            f"{name!r} is neither a site nor a unit space; sites are {[site for site, _ in wiring.sites]}, "
            f"spaces {list(wiring.spaces)}"
        )
    sites = wiring.sites_of(name)
    if len(sites) != 1:
        raise ValueError(f"unit space {name!r} is written at {len(sites)} sites {list(sites)}: name one of them")
    return sites[0]


def _check_whole_clusters(structure: AffineStructure) -> None:
    for site, units in structure.frozen.items():
        space = structure.wiring.site(site).space
        if space not in structure.clusters:
            continue
        ids = structure.clusters[space].ids
        for cluster in sorted({int(ids[unit]) for unit in units}):
            members = [int(unit) for unit in np.flatnonzero(ids == cluster)]
            if not set(members) <= set(units):
                raise ValueError(
                    f"frozen units {[unit for unit in members if unit in units]} cut the cluster {members} of "
                    f"{space!r}: split the cluster first, into its frozen and its other units"
                )


def _build(params: Params, structure: AffineStructure, kind: ManifoldKind) -> Manifold:
    """The manifold whose projector is the leaf's or V's, with nothing left in frozen slices."""
    plans = _plans(params, structure)

    def subspace(pieces: tuple[int, ...]) -> Subspace:
        projector = _Projector(
            structure.wiring,
            tuple(structure.clusters.items()),
            tuple(structure.frozen.items()),
            pieces,
        )
        return Subspace(projector, sum(plan.ranks[piece] for plan in plans for piece in pieces))

    tangent = subspace((0, 3) if kind is ManifoldKind.FAMILY else (0,))
    is_cloned = kind is not ManifoldKind.FROZEN
    return Manifold(
        origin=params,
        project=tangent.project,
        tangent_dimension=tangent.dimension,
        space=f"{kind.value} & frozen" if is_cloned and structure.frozen else kind.value,
        normals=CloneNormals(subspace((1,)), subspace((2,)), subspace((3,))) if is_cloned else None,
        structure=structure,
        kind=kind,
        is_affine=True,
    )


@dataclass(frozen=True)
class _Projector:
    """Projector onto some of BC (0), incoming (1), outgoing (2) and gauge (3), hashable: what it compiles to is shared.

    A projector that is called operation by operation costs seconds of compilation for every new network.
    """

    wiring: Wiring
    clusters: tuple[tuple[str, Clusters], ...]
    frozen: tuple[tuple[str, tuple[int, ...]], ...]
    pieces: tuple[int, ...]

    def __call__(self, vector: Params) -> Params:
        return _project_tree(self, vector)


@partial(jax.jit, static_argnums=0)
def _project_tree(projector: _Projector, vector: Params) -> Params:
    structure = AffineStructure(projector.wiring, dict(projector.clusters), dict(projector.frozen))
    plans = _plans(vector, structure, partial=True)
    flat, tree = jax.tree.flatten(vector)
    return tree.unflatten([_project(plan, leaf, projector.pieces) for plan, leaf in zip(plans, flat, strict=True)])


def _plans(tree: Params, structure: AffineStructure, partial: bool = False) -> list[_ArrayPlan]:
    labels = structure.wiring.labels_of(tree, partial)
    return [_plan(label, leaf.shape, structure) for label, leaf in zip(labels, jax.tree.leaves(tree), strict=True)]


def _plan(label: Label, shape: tuple[int, ...], structure: AffineStructure) -> _ArrayPlan:
    frozen = structure.frozen.get(label.site, ()) if label.site is not None else ()
    frozen_space = structure.wiring.site(label.site).space if frozen and label.site is not None else None
    clustered: dict[bool, list[tuple[int, Clusters]]] = {True: [], False: []}
    # Of the axes that read and of those that write: how many entries may move, and how many averages they have.
    sizes, averages, movable = {True: 1, False: 1}, {True: 1, False: 1}, None
    for index, space, is_read in label.unit_axes():
        clusters, is_kept = structure.clusters.get(space), np.ones(shape[index], bool)
        if not is_read and space == frozen_space:
            is_kept[list(frozen)] = False
            mask = along(is_kept, index, len(shape))
            movable = mask if movable is None else movable & mask
        if clusters is not None:
            clustered[is_read].append((index, clusters))
        sizes[is_read] *= int(is_kept.sum())
        averages[is_read] *= int((is_kept if clusters is None else is_kept[clusters.leaders]).sum())
    # With P the averages and Q the rest, the pieces P P, P Q, Q P, Q Q of a kernel have these dimensions per offset.
    offsets = prod(size for index, size in enumerate(shape) if label.axes[index] is None)
    p_in, p_out, q_in, q_out = (
        averages[True],
        averages[False],
        *(sizes[each] - averages[each] for each in (True, False)),
    )
    ranks = (offsets * p_in * p_out, offsets * p_in * q_out, offsets * q_in * p_out, offsets * q_in * q_out)
    return _ArrayPlan(tuple(clustered[True]), tuple(clustered[False]), movable, ranks)


def _project(plan: _ArrayPlan, array: jax.Array, pieces: tuple[int, ...]) -> jax.Array:
    """Sum of the projections onto some of BC (0), incoming (1), outgoing (2) and gauge (3)."""
    if plan.movable is not None:
        array = jnp.where(plan.movable, array, jnp.zeros((), array.dtype))
    total = None
    for piece in pieces:
        part = array
        for axes, is_complement in ((plan.inputs, piece in (2, 3)), (plan.outputs, piece in (1, 3))):
            mean = part
            for axis, clusters in axes:
                mean = cluster_mean(mean, axis, clusters)
            part = part - mean if is_complement else mean
        total = part if total is None else total + part
    return array if total is None else total
