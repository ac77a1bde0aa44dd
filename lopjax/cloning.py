"""Cloning a network n times, and the partition it leaves behind; `find_clones` finds clones in any network.

Cloning is the two generic rules of the wiring: repeat every cloned axis, and divide by the number of clones along input
axes. Nothing here knows what a convolution, a residual stream or an attention head is.
"""

from collections.abc import Mapping
from numbers import Integral

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.finding import ClonesFound, find_clones, refine_partition
from lopjax.model import Model, Variables
from lopjax.wiring import Label, Wiring, multiplicity

__all__ = [
    "ClonesFound",
    "Factor",
    "Partition",
    "clone_factors",
    "clone_variables",
    "find_clones",
    "refine_partition",
    "uniform_partition",
    "widen",
]

Factor = int | Mapping[str, int]
Partition = Mapping[str, tuple[int, ...]]
"""Cluster id of every unit, per unit space; a space that is absent has no clones."""


def clone_factors(wiring: Wiring, factor: Factor) -> dict[str, int]:
    """`{space: number of clones}` for every cloned space.

    Args:
        wiring: wiring of the network.
        factor: one positive integer for all cloneable spaces, or one per space for a subset of them.

    Raises:
        ValueError: a factor that is not a positive integer, an unknown space, a fixed one (inputs, outputs).
    """
    if not isinstance(factor, Mapping):
        _check_factor(factor, "")
        return dict.fromkeys(wiring.cloneable, int(factor))
    for space, value in factor.items():
        wiring.size(space)
        if space in wiring.fixed:
            raise ValueError(f"unit space {space!r} is fixed: only {list(wiring.cloneable)} can be cloned")
        _check_factor(value, f" for {space!r}")
    return {space: int(value) for space, value in factor.items()}


def _check_factor(value: object, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"factor={value!r}{where}: must be a positive integer")


def widen(model: Model, factor: Factor) -> Model:
    """The same architecture with every cloned space `factor` times as wide: where cloned variables live.

    Args:
        model: the base model.
        factor: as in `clone_variables`.

    Raises:
        ValueError: as in `clone_factors`; or a user's module without a `sizes` field.
    """
    factors = clone_factors(model.wiring, factor)
    return model.resize({space: model.wiring.size(space) * n for space, n in factors.items()})


def clone_variables(variables: Variables, base_wiring: Wiring, factor: Factor) -> Variables:
    """Variables of the n times wider network that computes the same function with n copies of every unit.

    Every array is repeated along its cloned axes, clones adjacent, and divided by n along input axes. Parameters land
    in block-constant form (BC), so the clones are trapped: theory 3.1, arXiv 2510.00304 section 4 and appendix A.2.

    Args:
        variables: `{"params": ..., "batch_stats": ...}` of the base network (or its parameters alone).
        base_wiring: wiring of the base network.
        factor: number of clones of every unit, or `{space: number}` for a subset of the unit spaces.

    Returns:
        Variables of the wide network, same dtypes. Logits agree to rounding: exactly, up to the order of summation,
        when n is a power of two.

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
        for index, axis in enumerate(label.axes):
            if axis is not None and axis.space in factors:
                array = jnp.repeat(array, factors[axis.space], axis=index)
        return array / jnp.asarray(multiplicity(label, factors)[0], array.dtype)

    return base_wiring.map(clone, variables)


def uniform_partition(wide_wiring: Wiring, factor: Factor) -> Partition:
    """The partition that `clone_variables` makes: runs of `factor` adjacent clones in every cloned space.

    Args:
        wide_wiring: wiring of the cloned (wide) network.
        factor: as in `clone_variables`.

    Raises:
        ValueError: see `clone_factors`; or a space whose size the factor does not divide.
    """
    partition = {}
    for space, n in clone_factors(wide_wiring, factor).items():
        size = wide_wiring.size(space)
        if size % n:
            raise ValueError(f"factor={n}: does not divide the {size} units of {space!r}")
        partition[space] = tuple(int(unit) for unit in np.repeat(np.arange(size // n), n))
    return partition
