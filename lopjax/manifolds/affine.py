"""The affine manifolds that trap gradient descent: cloned units, frozen units, and both at once.

All three are built by one rule, array by array, from the wiring: average over clusters along unit axes, and set the
slices of frozen units to zero. A cloned manifold has no frozen slices, a frozen one has no clusters.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from math import prod
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.integers import as_integer
from lopjax.cloning import Clusters, Partition, check_partition
from lopjax.manifolds.clusters import has_average, weighted_mean
from lopjax.manifolds.manifold import CloneNormals, Manifold, ManifoldKind, Params, Subspace
from lopjax.wiring import Label, Wiring, along

FrozenUnits = Mapping[str, Sequence[int]]
"""Indices of dead units per site, or per unit space that is written at one site only."""


class AffineStructure(NamedTuple):
    """The data that define a cloned or frozen manifold.

    Attributes:
        wiring: wiring of the network.
        clusters: per space with clones, its clusters.
        frozen: per site with frozen units, their indices in ascending order.
        multiples: per space, the factor between each unit and a common unit of its cluster; all equal if absent.
    """

    wiring: Wiring
    clusters: Mapping[str, Clusters]
    frozen: Mapping[str, tuple[int, ...]]
    multiples: Mapping[str, tuple[float, ...]] = MappingProxyType({})


class Component(IntEnum):
    """The four orthogonal components of an array: P averages over the clusters of one side, and Q = I - P."""

    BLOCK_CONSTANT = 0
    """`P_in P_out`."""

    INCOMING = 1
    """`P_in Q_out`."""

    OUTGOING = 2
    """`Q_in P_out`."""

    GAUGE = 3
    """`Q_in Q_out`."""


class _AxisOfClones(NamedTuple):
    """An axis of an array along which clusters are averaged."""

    index: int
    clusters: Clusters
    multiples: tuple[float, ...] | None


class _ArrayPlan(NamedTuple):
    """How one array is projected: the axes of clones that read and that write, and the entries that are not frozen.

    `ranks` are the dimensions of the four components in this array.
    """

    inputs: tuple[_AxisOfClones, ...]
    outputs: tuple[_AxisOfClones, ...]
    is_free: np.ndarray | None
    ranks: tuple[int, int, int, int]


def cloned_manifold(params: Params, wiring: Wiring, partition: Partition, space: str = "leaf") -> Manifold:
    """The manifold of cloned units through a point.

    With P the average over clusters along the axes of one side of an array and Q = I - P, the tangent space is, in
    every array, `P_in P_out` for `space="leaf"` (M_D = W + BC, the leaf that traps) and `P_in P_out + Q_in Q_out` for
    `space="V"` (V = RE and CE; the family of all leaves). It is invariant if `params` is on V, which `certify_cloned`
    tests. Cluster sizes may differ. For spaces that are permutable but not cloneable, only the leaf through equal units
    (BC) is invariant, by the symmetry that exchanges them.

    Args:
        params: the point.
        wiring: wiring of the network.
        partition: cluster id of every unit, per space; a space that is absent has no clones.
        space: "leaf" or "V".

    Raises:
        ValueError: parameters that do not match the wiring; an unknown space, not one integer id per unit, clusters of
            inputs or outputs, for "V" also of a space that is not cloneable; an unknown `space`.

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
    return build(params, AffineStructure(wiring, check_partition(wiring, partition, allowed), {}), ManifoldKind(space))


def frozen_manifold(params: Params, wiring: Wiring, frozen_units: FrozenUnits) -> Manifold:
    """The affine space on which the parameters of dead units keep their values.

    The frozen parameters are the slices, along the output axis, of every array all of whose paths to the output pass
    the unit at that site (`Label.site`): incoming weights and bias, norm scale and offset. `certify_frozen` tests
    whether the units are dead.

    Args:
        params: the point.
        wiring: wiring of the network.
        frozen_units: per site, or per unit space with a single site, the indices of the dead units.

    Raises:
        ValueError: parameters that do not match the wiring; an unknown site, a space with several sites, an index out
            of range, a site that no parameter belongs to.
    """
    frozen = resolve_frozen_units(wiring, frozen_units)
    return build(params, AffineStructure(wiring, {}, frozen), ManifoldKind.FROZEN)


def intersection(first: Manifold, second: Manifold) -> Manifold:
    """The intersection of cloned and frozen manifolds through the same point; its projector is the product of theirs.

    Args:
        first: from `cloned_manifold`, `weighted_manifold`, `frozen_manifold` or `intersection`.
        second: another one; only one of the two may have clusters.

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
    structure = AffineStructure(one.wiring, one.clusters or two.clusters, frozen, one.multiples or two.multiples)
    _check_whole_clusters(structure)
    cloned = [manifold.kind for manifold in (first, second) if manifold.kind is not ManifoldKind.FROZEN]
    return build(first.origin, structure, cloned[0] if cloned else ManifoldKind.FROZEN)


def resolve_frozen_units(wiring: Wiring, frozen_units: FrozenUnits) -> dict[str, tuple[int, ...]]:
    """`{site: sorted unit indices}` from indices per site or per single-site space; see `frozen_manifold`."""
    resolved: dict[str, tuple[int, ...]] = {}
    if not isinstance(frozen_units, Mapping):
        kind = type(frozen_units).__name__
        raise ValueError(f"frozen units are a {kind}: must map sites to unit indices, such as {{'hidden_0': [0, 3]}}")
    for name, units in frozen_units.items():
        if not hasattr(units, "__iter__"):
            raise ValueError(f"frozen units of {name!r}: {units!r} is one number; give a list of indices, [{units}]")
        site = _resolve_site(wiring, name)
        size = wiring.size(wiring.site(site).space)
        indices = []
        for unit in units:
            refusal = f"frozen unit {unit!r} of {name!r}: must be an integer index in 0..{size - 1}"
            indices.append(as_integer(unit, 0, refusal))
            if indices[-1] >= size:
                raise ValueError(refusal)
        if not any(label.site == site for path, label in wiring.labels if path[0] == "params"):
            raise ValueError(f"site {site!r}: {_why_nothing_belongs(wiring)}")
        resolved[site] = tuple(sorted({*resolved.get(site, ()), *indices}))
    return {site: units for site, units in resolved.items() if units}


def _why_nothing_belongs(wiring: Wiring) -> str:
    """The message for a site that no label names; those of traced networks name what was proved only."""
    unknown = "which ones a dead unit freezes is not known"
    if wiring.above:
        return f"no parameter was proved to act through it alone (see the report of trace_model), so {unknown}"
    if any(label.site for _, label in wiring.labels):
        return "no parameter belongs to it alone, so nothing is frozen when its units are dead"
    advice = "label the network for a certificate (lopjax.models.from_linen)"
    return f"the labels of this network name no sites of its parameters, so {unknown}; {advice}"


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


def build(params: Params, structure: AffineStructure, kind: ManifoldKind) -> Manifold:
    """The manifold whose projector is that of the leaf or of V, with zeros in frozen slices.

    Args:
        params: the point.
        structure: clusters, multiples and frozen units.
        kind: LEAF or FAMILY for clones, FROZEN without clones.
    """
    plans = _plans(params, structure)

    def subspace(*components: Component) -> Subspace:
        projector = _Projector(
            structure.wiring,
            tuple(structure.clusters.items()),
            tuple(structure.frozen.items()),
            tuple(structure.multiples.items()),
            components,
        )
        return Subspace(projector, sum(plan.ranks[component] for plan in plans for component in components))

    family = (Component.GAUGE,) if kind is ManifoldKind.FAMILY else ()
    tangent = subspace(Component.BLOCK_CONSTANT, *family)
    normals = CloneNormals(*map(subspace, (Component.INCOMING, Component.OUTGOING, Component.GAUGE)))
    is_cloned = kind is not ManifoldKind.FROZEN
    name = f"weighted {kind.value}" if structure.multiples else kind.value
    return Manifold(
        origin=params,
        project=tangent.project,
        tangent_dimension=tangent.dimension,
        space=f"{name} & frozen" if is_cloned and structure.frozen else name,
        normals=normals if is_cloned else None,
        structure=structure,
        kind=kind,
        is_affine=True,
    )


@dataclass(frozen=True)
class _Projector:
    """Projector onto the sum of some components.

    Hashable, and compiled as a whole, once for all manifolds of the same structure: executed operation by operation it
    would cost seconds of compilation for every new network.
    """

    wiring: Wiring
    clusters: tuple[tuple[str, Clusters], ...]
    frozen: tuple[tuple[str, tuple[int, ...]], ...]
    multiples: tuple[tuple[str, tuple[float, ...]], ...]
    components: tuple[Component, ...]

    def __call__(self, vector: Params) -> Params:
        return _project_tree(self, vector)


@partial(jax.jit, static_argnums=0)
def _project_tree(projector: _Projector, vector: Params) -> Params:
    clusters, frozen = dict(projector.clusters), dict(projector.frozen)
    structure = AffineStructure(projector.wiring, clusters, frozen, dict(projector.multiples))
    plans = _plans(vector, structure, partial=True)
    flat, tree = jax.tree.flatten(vector)
    return tree.unflatten([_project(plan, leaf, projector.components) for plan, leaf in zip(plans, flat, strict=True)])


def _plans(tree: Params, structure: AffineStructure, partial: bool = False) -> list[_ArrayPlan]:
    labels = structure.wiring.labels_of(tree, partial)
    return [_plan(label, leaf.shape, structure) for label, leaf in zip(labels, jax.tree.leaves(tree), strict=True)]


def _plan(label: Label, shape: tuple[int, ...], structure: AffineStructure) -> _ArrayPlan:
    frozen = structure.frozen.get(label.site, ()) if label.site is not None else ()
    frozen_space = structure.wiring.site(label.site).space if frozen and label.site is not None else None
    axes: dict[bool, list[_AxisOfClones]] = {True: [], False: []}
    # For the axes that read and for those that write: the number of entries that are free, and the number of averages
    # of these. Both are counts of units, multiplied over the axes of one side, because P of a side is the product of
    # the averages along its axes, and its rank the product of their ranks.
    sizes, averages, is_free = {True: 1, False: 1}, {True: 1, False: 1}, None
    for index, space, is_read in label.unit_axes():
        clusters, is_kept = structure.clusters.get(space), np.ones(shape[index], bool)
        if not is_read and space == frozen_space:
            is_kept[list(frozen)] = False
            mask = along(is_kept, index, len(shape))
            is_free = mask if is_free is None else is_free & mask
        sizes[is_read] *= int(is_kept.sum())
        if clusters is not None:
            multiples = structure.multiples.get(space)
            axes[is_read].append(_AxisOfClones(index, clusters, multiples))
            # The whole cluster of a frozen unit is frozen, and a vanished cluster has no average.
            is_kept = is_kept[clusters.leaders] & has_average(clusters, multiples)
        averages[is_read] *= int(is_kept.sum())
    # With P the averages and Q = I - P, the components PP, PQ, QP, QQ of a kernel have these dimensions per offset.
    offsets = prod(size for index, size in enumerate(shape) if label.axes[index] is None)
    p_in, p_out = averages[True], averages[False]
    q_in, q_out = sizes[True] - p_in, sizes[False] - p_out
    ranks = (offsets * p_in * p_out, offsets * p_in * q_out, offsets * q_in * p_out, offsets * q_in * q_out)
    return _ArrayPlan(tuple(axes[True]), tuple(axes[False]), is_free, ranks)


def _project(plan: _ArrayPlan, array: jax.Array, components: tuple[Component, ...]) -> jax.Array:
    """Sum of the projections onto some components.

    P of one side averages over the clusters along all of its axes, one after the other; Q is the deviation from the
    average. The two sides act on different axes, so they commute, and each component takes two averages: no
    units-by-units matrix is formed. Q is computed by subtracting the average, so entries that are equal inside clusters
    give exactly zero.
    """
    if plan.is_free is not None:
        array = jnp.where(plan.is_free, array, jnp.zeros((), array.dtype))
    total = None
    for component in components:
        part = array
        is_rest_in = component in (Component.OUTGOING, Component.GAUGE)
        is_rest_out = component in (Component.INCOMING, Component.GAUGE)
        for axes, is_rest in ((plan.inputs, is_rest_in), (plan.outputs, is_rest_out)):
            mean = part
            for axis in axes:
                mean = weighted_mean(mean, axis.index, axis.clusters, axis.multiples)
            part = part - mean if is_rest else mean
        total = part if total is None else total + part
    return array if total is None else total
