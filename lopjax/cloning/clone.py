"""Cloning a network n times, the partition it leaves behind, and the way back to the base network."""

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.integers import as_integer
from lopjax.arguments.networks import check_model
from lopjax.cloning.clusters import Partition, check_partition, mean_over_clusters
from lopjax.model import Model, Variables
from lopjax.wiring import Label, Wiring, along, multiplicity

Copies = int | float | Sequence[int] | np.ndarray
"""For one space: a number at least 1, by which its width is multiplied, or the number of clones of every unit."""

Factor = Copies | Mapping[str, Copies]
"""The same for every cloneable space, or by space; a space that is not named keeps its units."""


def clone_factors(wiring: Wiring, factor: Factor) -> dict[str, int | tuple[int, ...]]:
    """`{space: number of clones}` for every cloned space: one number, or one for every unit where they differ.

    A factor that is not an integer multiplies the width: at 1.5, each unit of the first half is cloned twice and the
    others are kept, as in Net2Net (arXiv 1511.05641, section 2.3, which draws the units at random: `factor_for_widths`
    does that too).

    Args:
        wiring: wiring of the network.
        factor: a number, at least 1, whose product with every width is an integer, for all cloneable spaces but those
            that index the coordinates of larger units (`Wiring.cloned_by_default`); or, for any cloneable spaces,
            `{space: number, or one positive integer for every unit}`.

    Raises:
        ValueError: anything else, an unknown space, a fixed one (inputs, outputs), or unequal numbers in a space over
            whose units a layer norm averages: the averages, and so the function, would change.
    """
    return {space: n[0] if len(set(n)) == 1 else n for space, n in _in_every_space(wiring, factor, _counts).items()}


def factor_for_widths(wiring: Wiring, widths: Mapping[str, int], seed: int | None = None) -> dict[str, tuple[int, ...]]:
    """The factor that widens spaces to given widths, as Net2WiderNet does.

    Args:
        wiring: wiring of the base network.
        widths: `{space: number of units after cloning}`, each at least the space's present width.
        seed: `None` clones as evenly as possible, the first units one more time than the others; an integer is a seed:
            each new unit copies one that is drawn uniformly, with replacement (arXiv 1511.05641, equation 2).

    Returns:
        `{space: number of clones of every unit}`, a `Factor`.

    Raises:
        ValueError: an unknown space, or a width that is not an integer or is too small.

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
    if not isinstance(wiring, Wiring):
        raise ValueError(f"wiring is a {type(wiring).__name__}: must be the wiring of a model, model.wiring")
    is_one_for_all = not isinstance(factor, Mapping)
    counts = {}
    for space, copies in (dict.fromkeys(wiring.cloned_by_default, factor) if is_one_for_all else factor).items():
        wiring.size(space)  # raises for an unknown one
        if reason := wiring.why_not_cloneable(space):
            raise ValueError(f"unit space {space!r} is {reason}: only {list(wiring.cloneable)} can be cloned")
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
    """The same as `_counts`, from the wiring of the cloned network."""
    size = wiring.size(space)
    if _is_list(copies):
        counts = _listed(copies, where)
        if sum(counts) != size:
            raise ValueError(f"factor{where}: makes {sum(counts)} units, there are {size}; pass the cloned wiring")
        return counts
    base = size / _number(copies, where)
    if base.denominator != 1:
        raise ValueError(f"factor={copies!r}: does not divide the {size} units of {space!r}; give one that does")
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
    """A clone factor as an exact fraction: the float nearest to 4/3 stands for 4/3."""
    shown = " ".join(repr(copies).split())
    refusal = f"factor={shown}{where}: must be a positive integer, a number of at least 1, or one integer per unit"
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
    """`width` clones of `size` units: as even as possible, the first units with one more than the others."""
    return tuple(width // size + (unit < width % size) for unit in range(size))


def widen(model: Model, factor: Factor) -> Model:
    """The same architecture with every cloned space as wide as `factor` makes it: where cloned variables live.

    Args:
        model: the base model.
        factor: as in `clone_variables`.

    Raises:
        ValueError: as in `clone_factors`; or a user's module without a `sizes` field.
    """
    check_model(model)
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

    def clone(label: Label, leaf: jax.typing.ArrayLike) -> jax.Array:
        array = jnp.asarray(leaf)
        array = array / jnp.asarray(multiplicity(label, factors)[0], array.dtype)
        for axis, space, _ in label.unit_axes(factors):
            n = factors[space]
            unit = np.repeat(np.arange(array.shape[axis]), n)
            array = jnp.repeat(array, n, axis=axis) if isinstance(n, int) else jnp.take(array, unit, axis=axis)
        return array

    return base_wiring.map(clone, variables)


def uniform_partition(wide_wiring: Wiring, factor: Factor) -> Partition:
    """The partition that `clone_variables` makes: runs of adjacent clones, in every cloned space.

    Args:
        wide_wiring: wiring of the cloned (wide) network.
        factor: the `factor` passed to `clone_variables`.

    Raises:
        ValueError: see `clone_factors`; or a space whose size does not result from the factor.
    """
    counts = _in_every_space(wide_wiring, factor, _counts_of_wide)
    return {space: tuple(np.repeat(np.arange(len(n)), n).tolist()) for space, n in counts.items()}


def collapse(variables: Variables, wide_wiring: Wiring, partition: Partition, dtype: Any = None) -> Variables:
    """Variables of the base network whose clones these are: the inverse of `clone_variables`.

    Sums over the clones that an array reads, means over those that it writes. Where clones hold (on V: RE and CE in
    every array, arXiv 2510.00304, appendix A.2) the base network computes the same function; elsewhere it is the
    network at the nearest point of V. `certify_cloned` decides whether they hold. Clusters may differ in size; base
    units come in the order of each cluster's first unit.

    Args:
        variables: variables of the cloned network (or its parameters alone).
        wide_wiring: its wiring.
        partition: cluster id of every unit, per space with clones.
        dtype: dtype of the result; by default each array's own. Sums are taken in float64.

    Returns:
        NumPy arrays in a tree like `variables`, one slice for each cluster.

    Raises:
        ValueError: a partition that does not fit the wiring (see `check_partition`), or variables that do not fit it.

    Example:
        >>> import jax
        >>> from lopjax.models import mlp
        >>> base = mlp((4,), (3,), 2)
        >>> variables = base.init(jax.random.key(0))
        >>> wide, wiring = clone_variables(variables, base.wiring, 2), widen(base, 2).wiring
        >>> back = collapse(wide, wiring, uniform_partition(wiring, 2))
        >>> bool((back["params"]["classes"]["kernel"] == variables["params"]["classes"]["kernel"]).all())
        True
    """
    clusters = check_partition(wide_wiring, partition, wide_wiring.cloneable)

    # Cloning repeats an array along the axes that write a space and divides it along those that read one. To undo this,
    # the mean over a cluster recovers the slice that was repeated, and the sum (mean times number of clones) the one
    # that was divided. On V clones may differ, but activations and backward signals depend on these averages alone.
    def collapse_array(label: Label, array: Any) -> np.ndarray:
        values = np.asarray(array, np.float64)
        for axis, space, is_read in label.unit_axes(clusters):
            own = clusters[space]
            values = np.take(mean_over_clusters(values, axis, own), own.leaders, axis=axis)
            if is_read:
                values = values * along(np.bincount(own.ids), axis, values.ndim)
        return values.astype(np.asarray(array).dtype if dtype is None else dtype)

    return wide_wiring.map(collapse_array, variables)
