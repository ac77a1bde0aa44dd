"""Cloning a network n times, the partition it leaves behind, and finding clones in any network.

Both are the two generic rules of the wiring: repeat every cloned axis, and divide by the number of clones along input
axes. Nothing here knows what a convolution, a residual stream or an attention head is.
"""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.integers import as_integer
from lopjax.model import Model, Params, Variables, samples_by_units
from lopjax.wiring import In, Label, Wiring, multiplicity

Copies = int | float | Sequence[int] | np.ndarray
"""For one space: a number at least 1, by which its width is multiplied, or the number of clones of every unit."""

Factor = Copies | Mapping[str, Copies]
Partition = Mapping[str, tuple[int, ...]]
"""Cluster id of every unit, per unit space; a space that is absent has no clones."""


def clone_factors(wiring: Wiring, factor: Factor) -> dict[str, int | tuple[int, ...]]:
    """`{space: number of clones}` for every cloned space: one number, or one for every unit where they differ.

    A factor that is no integer multiplies the width: at 1.5, each unit of the first half is cloned twice and the
    others are kept, as in Net2Net (arXiv 1511.05641, section 2.3, which draws the units at random:
    `factor_for_widths` does that too).

    Args:
        wiring: wiring of the network.
        factor: for all cloneable spaces a number, at least 1, whose product with every width is an integer; or for a
            subset of them `{space: number, or one positive integer for every unit}`.

    Raises:
        ValueError: anything else, an unknown space, a fixed one (inputs, outputs), or unequal numbers in a space over
            whose units a layer norm averages: the averages, and so the function, would change.
    """
    return {space: n[0] if len(set(n)) == 1 else n for space, n in _in_every_space(wiring, factor, _counts).items()}


def factor_for_widths(wiring: Wiring, widths: Mapping[str, int], seed: int | None = None) -> dict[str, tuple[int, ...]]:
    """The factor under which spaces come to have given widths, whatever they are: Net2WiderNet's.

    Args:
        wiring: wiring of the base network.
        widths: `{space: number of units after cloning}`, each at least the space's present width.
        seed: `None` clones as evenly as possible, the first units once more; an integer draws, for each new unit, the
            one that it repeats, uniformly and with replacement (arXiv 1511.05641, equation 2).

    Returns:
        `{space: number of clones of every unit}`, a `Factor`.

    Raises:
        ValueError: an unknown space, or a width that is no integer or too small.

    Example:
        >>> from lopjax.models import mlp
        >>> factor_for_widths(mlp((4,), (3,), 2).wiring, {"hidden_0": 5})
        {'hidden_0': (2, 2, 1)}
    """
    generator = None if seed is None else np.random.default_rng(seed)
    factor = {}
    for space, width in widths.items():
        size = wiring.size(space)
        refusal = f"width={width!r} of {space!r}: must be an integer of at least its present width, {size}"
        number = as_integer(width, size, refusal)
        if generator is None:
            factor[space] = _even_counts(size, number)
        else:
            repeated = generator.integers(size, size=number - size)
            factor[space] = tuple(int(count) for count in 1 + np.bincount(repeated, minlength=size))
    return factor


def _in_every_space(
    wiring: Wiring, factor: Factor, count: Callable[[Copies, Wiring, str, str], tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Number of clones of every base unit of every cloned space, by `count(copies, wiring, space, where)`."""
    is_one_for_all = not isinstance(factor, Mapping)
    counts = {}
    for space, copies in (dict.fromkeys(wiring.cloneable, factor) if is_one_for_all else factor).items():
        wiring.size(space)  # raises for an unknown one
        if space in wiring.fixed:
            raise ValueError(f"unit space {space!r} is fixed: only {list(wiring.cloneable)} can be cloned")
        counts[space] = count(copies, wiring, space, "" if is_one_for_all else f" for {space!r}")
        if len(set(counts[space])) > 1 and space in wiring.coupled:
            raise ValueError(
                f"factor={copies!r} for {space!r}: a layer norm averages over its units, so all need the same number "
                "of clones, or the function would change; pass one integer"
            )
    return counts


def _counts(copies: Copies, wiring: Wiring, space: str, where: str) -> tuple[int, ...]:
    """Number of clones of every unit, from the wiring of the base network."""
    size = wiring.size(space)
    if _is_list(copies):
        if len(copies) != size:
            raise ValueError(f"factor{where}: {len(copies)} numbers of clones for {size} units; give one per unit")
        return _listed(copies, where)
    width = _number(copies, where) * size
    if width.denominator != 1:
        raise ValueError(
            f"factor={copies!r}{where}: {size} units would become {float(width):g}; pass a number whose product with "
            f"{size} is an integer, or factor_for_widths(...)"
        )
    return _even_counts(size, int(width))


def _counts_of_wide(copies: Copies, wiring: Wiring, space: str, where: str) -> tuple[int, ...]:
    """The same from the wiring of the cloned network."""
    size = wiring.size(space)
    if _is_list(copies):
        counts = _listed(copies, where)
        if sum(counts) != size:
            raise ValueError(f"factor{where}: makes {sum(counts)} units, there are {size}; pass the cloned wiring")
        return counts
    base = size / _number(copies, where)
    if base.denominator != 1:
        raise ValueError(f"factor={copies!r}: does not divide the {size} units of {space!r}")
    return _even_counts(int(base), size)


def _is_list(copies: Any) -> TypeGuard[Sequence[int]]:
    return (
        isinstance(copies, Sequence | np.ndarray | jax.Array) and not isinstance(copies, str) and np.ndim(copies) == 1
    )


def _listed(copies: Any, where: str) -> tuple[int, ...]:
    return tuple(
        as_integer(n, 1, f"factor={n!r} of unit {unit}{where}: must be a positive integer")
        for unit, n in enumerate(copies)
    )


def _number(copies: Any, where: str) -> Fraction:
    """A clone factor as an exact number; 4/3 in floating point is meant as 4/3."""
    refusal = f"factor={copies!r}{where}: must be a positive integer, a number of at least 1, or one integer per unit"
    if isinstance(copies, bool | np.bool_ | str | bytes):
        raise ValueError(refusal)
    try:
        number = Fraction(float(copies)).limit_denominator(1_000_000)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(refusal) from error
    if number < 1:
        raise ValueError(refusal)
    return number


def _even_counts(size: int, width: int) -> tuple[int, ...]:
    """`width` clones of `size` units: as even as possible, the first ones have one more."""
    return tuple(width // size + (unit < width % size) for unit in range(size))


def widen(model: Model, factor: Factor) -> Model:
    """The same architecture with every cloned space as wide as `factor` makes it: where cloned variables live.

    Args:
        model: the base model.
        factor: as in `clone_variables`.

    Raises:
        ValueError: as in `clone_factors`; or a user's module without a `sizes` field.
    """
    sizes = {}
    for space, n in clone_factors(model.wiring, factor).items():
        sizes[space] = n * model.wiring.size(space) if isinstance(n, int) else sum(n)
    return model.resize(sizes)


def clone_variables(variables: Variables, base_wiring: Wiring, factor: Factor) -> Variables:
    """Variables of the wider network that computes the same function with several copies of units.

    Every array is repeated along its cloned axes, clones adjacent, and divided along input axes by the number of clones
    of the unit that it reads. Parameters land in block-constant form (BC), so the clones are trapped: arXiv 2510.00304
    section 4 and appendix A.2. Units may have different numbers of clones (Net2Net, arXiv 1511.05641).

    Args:
        variables: `{"params": ..., "batch_stats": ...}` of the base network (or its parameters alone).
        base_wiring: wiring of the base network.
        factor: number of clones of every unit, or, for a subset of the unit spaces, `{space: number}` or `{space: one
            number for every unit}`; see `clone_factors` and, for given widths, `factor_for_widths`.

    Returns:
        Variables of the wide network, same dtypes. Logits agree to rounding: exactly, up to the order of summation,
        when all numbers of clones are powers of two.

    Raises:
        ValueError: see `clone_factors`; or variables that do not match the wiring.

    Example:
        >>> import jax
        >>> from lopjax.models import mlp
        >>> base = mlp((4,), (3,), 2)
        >>> wide = clone_variables(base.init(jax.random.key(0)), base.wiring, 2)
        >>> wide["params"]["hidden_0"]["kernel"].shape
        (4, 6)
    """
    factors = clone_factors(base_wiring, factor)

    def clone(label: Label, array: jax.Array) -> jax.Array:
        array = array / jnp.asarray(multiplicity(label, factors)[0], array.dtype)
        for index, axis in enumerate(label.axes):
            if axis is not None and axis.space in factors:
                n = factors[axis.space]
                unit = np.repeat(np.arange(array.shape[index]), n)
                array = jnp.repeat(array, n, axis=index) if isinstance(n, int) else jnp.take(array, unit, axis=index)
        return array

    return base_wiring.map(clone, variables)


def uniform_partition(wide_wiring: Wiring, factor: Factor) -> Partition:
    """The partition that `clone_variables` makes: runs of adjacent clones, in every cloned space.

    Args:
        wide_wiring: wiring of the cloned (wide) network.
        factor: what was given to `clone_variables`.

    Raises:
        ValueError: see `clone_factors`; or a space whose size the factor does not make.
    """
    counts = _in_every_space(wide_wiring, factor, _counts_of_wide)
    return {space: tuple(np.repeat(np.arange(len(n)), n).tolist()) for space, n in counts.items()}


class ClonesFound(NamedTuple):
    """Clusters of one unit space, found in three ways; each a tuple of cluster ids, one per unit.

    Attributes:
        activations: units with the same activations on the batch.
        parameters: units that stay clones under training whatever the data: the coarsest clusters for which RE and CE
            (theory 3.1) hold in every array at once.
        proportional: units whose activations agree up to a factor: what parameters may miss (ReLU units up to scale,
            odd units up to sign, theory 3.7). Units that are zero on the whole batch form one cluster here.
        silent: number of units whose activation is zero on the whole batch: equal for a trivial reason.
        agree: whether activations and parameters give the same clusters.
    """

    activations: tuple[int, ...]
    parameters: tuple[int, ...]
    proportional: tuple[int, ...]
    silent: int
    agree: bool


def find_clones(
    model: Model, variables: Variables, batch: jax.Array | np.ndarray, tolerance: float | None = None
) -> dict[str, ClonesFound]:
    """Find the clones of a network from what its units do and, independently, from its parameters.

    Args:
        model: any model.
        variables: its variables, evaluated in eval mode.
        batch: inputs, `(batch, *input_shape)`; more samples than clusters make accidents unlikely.
        tolerance: relative distance under which two units are the same; default `sqrt(eps)` of the dtype. Relative to
            the larger activation vector of the two, and for parameters as in `refine_partition`.

    Returns:
        A `ClonesFound` for every cloneable space. Where `agree` is false, units act alike on this batch without being
        trapped (or the tolerance is too tight).

    Raises:
        ValueError: parameters or activations that are not finite; see also `Wiring.labels_of`.
    """
    dtype = jnp.result_type(*jax.tree.leaves(variables["params"]))
    limit = float(jnp.finfo(dtype).eps) ** 0.5 if tolerance is None else tolerance
    from_parameters = refine_partition(variables["params"], model.wiring, limit)
    taps = model.apply(variables, jnp.asarray(batch))[2]
    if not all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves((variables, taps))):
        raise ValueError("parameters or activations are not finite: units cannot be compared")
    found = {}
    for space in model.wiring.cloneable:
        sites = [samples_by_units(taps[site].post) for site in model.wiring.sites_of(space)]
        if not sites:
            continue
        activations = np.concatenate([np.asarray(site, np.float64) for site in sites]).T
        norms = np.linalg.norm(activations, axis=1)
        by_activation = cluster_rows(activations, limit * np.maximum(norms, limit * norms.max()))
        directions = activations / np.where(norms == 0, 1.0, norms)[:, None]
        # The sign of a generic projection: the sign of the largest entry flips where two entries tie.
        sign = np.where(directions @ np.random.default_rng(0).normal(size=directions.shape[1]) < 0, -1.0, 1.0)
        found[space] = ClonesFound(
            activations=by_activation,
            parameters=from_parameters[space],
            proportional=cluster_rows(directions * sign[:, None], np.full(len(norms), limit)),
            silent=int((norms == 0).sum()),
            agree=by_activation == from_parameters[space],
        )
    return found


def refine_partition(params: Params, wiring: Wiring, tolerance: float) -> dict[str, tuple[int, ...]]:
    """The coarsest partition with RE and CE in every parameter, by refinement: split whatever can be told apart.

    Starts from one cluster per space. Two units stay together while, in every array, they get the same totals from
    each source cluster (RE), give the same totals to each target cluster (CE), and have equal biases and norm
    parameters. This is the coarsest equitable partition of a weighted graph. It exists and refinement finds it: units
    that share a cluster of any equitable partition can never be told apart by totals over unions of its clusters.

    Args:
        params: parameters.
        wiring: their wiring.
        tolerance: distance under which two units are the same, relative to the totals of absolute values in each
            array: totals that cancel are rounding noise and tell nothing apart.

    Returns:
        `{space: cluster id of every unit}` for all spaces; fixed spaces are singletons.
    """
    labels = wiring.labels_of(params)
    arrays = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(params)]
    partition = {space: tuple(range(size)) if space in wiring.fixed else (0,) * size for space, size in wiring.sizes}
    while True:
        refined = {
            space: partition[space]
            if space in wiring.fixed
            else cluster_rows(
                _signatures(space, labels, arrays, partition), np.full(wiring.size(space), tolerance), partition[space]
            )
            for space in wiring.spaces
        }
        if refined == partition:
            return partition
        partition = refined


def _signatures(
    space: str, labels: list[Label], arrays: list[np.ndarray], partition: Mapping[str, tuple[int, ...]]
) -> np.ndarray:
    """What a unit gets from and gives to every cluster: `(units, features)`, each array in units of its size."""
    features = []
    for label, array in zip(labels, arrays, strict=True):
        for index, axis in enumerate(label.axes):
            if axis is None or axis.space != space:
                continue
            totals, sizes = array, np.abs(array)
            for other, other_axis in enumerate(label.axes):
                # RE sums over sources, CE over targets. A second axis of the unit's own kind is compared entry by
                # entry: equal pairs (b, c) ~ (b', c) and (b, c) ~ (b, c') are equal blocks, their means are not.
                if other_axis is not None and isinstance(other_axis, In) != isinstance(axis, In):
                    totals = _cluster_totals(totals, other, partition[other_axis.space])
                    sizes = _cluster_totals(sizes, other, partition[other_axis.space])
            rows, size_rows = (np.moveaxis(each, index, 0).reshape(each.shape[index], -1) for each in (totals, sizes))
            largest = np.linalg.norm(size_rows, axis=1).max()
            features.append(rows / largest if largest > 0 else rows)
    return np.concatenate(features, axis=1)


def _cluster_totals(array: np.ndarray, axis: int, clusters: tuple[int, ...]) -> np.ndarray:
    member = np.eye(max(clusters) + 1)[list(clusters)]
    return np.moveaxis(np.tensordot(array, member, axes=(axis, 0)), -1, axis)


def cluster_rows(rows: np.ndarray, limits: np.ndarray, within: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Cluster ids, numbered by first appearance, of rows that agree with the first row of their cluster.

    Args:
        rows: `(units, features)`.
        limits: `(units,)`: two rows agree when their Euclidean distance is at most the larger of their limits.
        within: only units with the same id here may share a cluster.
    """
    leaders: list[int] = []
    clusters = []
    for unit, row in enumerate(rows):
        close = np.linalg.norm(rows[leaders] - row, axis=1) <= np.maximum(limits[leaders], limits[unit])
        candidates = [
            cluster for cluster in np.flatnonzero(close) if within is None or within[leaders[cluster]] == within[unit]
        ]
        if not candidates:
            candidates = [len(leaders)]
            leaders.append(unit)
        clusters.append(int(candidates[0]))
    return tuple(clusters)
