"""Labels of arrays and sites in a wiring diagram: the vocabulary in which a model describes itself."""

from collections.abc import Container
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

from lopjax.activations import Activation

Path = tuple[str, ...]
"""Path of an array in a tree: the keys from the root."""


class _Composable:
    """Axes that can be concatenated with `+` and multiplied with `*`, for compound arrays (`lopjax.wiring.view`)."""

    def __add__(self, other: Any) -> "Sum":
        return Sum((*axis_parts(self), *axis_parts(other)))

    def __radd__(self, other: int) -> "Sum":
        return Sum((other, *axis_parts(self)))

    def __mul__(self, other: Any) -> "Product":
        return Product((*axis_factors(self), *axis_factors(other)))

    def __rmul__(self, other: int) -> "Product":
        return Product((other, *axis_factors(self)))


@dataclass(frozen=True)
class Product(_Composable):
    """An axis that is a flattened product, row-major: `Out("heads") * 64` has 64 coordinates for each head.

    Attributes:
        factors: `In`, `Out`, or a number of entries that do not index units.
    """

    factors: tuple[Any, ...]


@dataclass(frozen=True)
class Sum(_Composable):
    """A concatenated axis: `Out("q") + Out("k") + Out("v")`, or `In("a") + 1`, whose last entry is not a unit.

    Attributes:
        parts: `In`, `Out`, `Product`, or a number of entries that do not index units.
    """

    parts: tuple[Any, ...]


def axis_parts(axis: Any) -> tuple[Any, ...]:
    """The parts of an axis; just one if it is not a sum."""
    return axis.parts if isinstance(axis, Sum) else (axis,)


def axis_factors(axis: Any) -> tuple[Any, ...]:
    """The factors of a part; just one if it is not a product. Raises a ValueError for a sum."""
    if isinstance(axis, Sum):
        raise ValueError(f"{axis} cannot be a factor: multiply its parts and add the products")
    return axis.factors if isinstance(axis, Product) else (axis,)


@dataclass(frozen=True)
class In(_Composable):
    """An axis that reads the unit space: the array is summed over it."""

    space: str


@dataclass(frozen=True)
class Out(_Composable):
    """An axis that writes the unit space: one slice of the array belongs to each of its units."""

    space: str


Axis = In | Out | None
"""The label of one axis; `None` if it does not index units."""


class UnitAxis(NamedTuple):
    """An axis of an array that indexes units.

    Attributes:
        index: index of the axis.
        space: the units' space.
        is_read: whether the array reads the space (`In`) or writes it (`Out`).
    """

    index: int
    space: str
    is_read: bool


class Window(NamedTuple):
    """The sliding window of a convolution kernel: what is needed to reconstruct the patches it reads."""

    strides: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Label:
    """The role of one array in the wiring.

    Attributes:
        axes: one entry per array axis.
        site: the site that *every* path from this array to the output passes, unit by unit: when unit j is dead there,
            the array's slice j has no gradient. `None` if there is no such site (a kernel followed by layer norm, which
            couples the units; an early writer of a residual stream).
        source: for a kernel whose product, plus at most a bias, *is* the pre-activation of `site` (or the logits): the
            site whose activations it reads, or the name of the input space. `None` if something else (norm, pooling, a
            residual sum) stands in between. If given, the closed form of the stability blocks applies.
        window: for a convolution kernel with a `source`, its sliding window.
        scales: whether it multiplies what other arrays write at its `site` (the scale of a norm, a gain, a query that
            meets keys), or is added to it (a bias, or the product of a kernel); `None` if that is not stated. It
            matters only if several arrays write the site.
    """

    axes: tuple[Axis, ...]
    site: str | None = None
    source: str | None = None
    window: Window | None = None
    scales: bool | None = None

    def unit_axes(self, spaces: Container[str] | None = None, *, is_read: bool | None = None) -> tuple[UnitAxis, ...]:
        """The axes that index units, in axis order.

        Args:
            spaces: restrict the result to these spaces.
            is_read: restrict it to input axes (True) or to output axes (False).
        """
        every = (
            UnitAxis(index, axis.space, isinstance(axis, In))
            for index, axis in enumerate(self.axes)
            if axis is not None
        )
        return tuple(
            axis
            for axis in every
            if (spaces is None or axis.space in spaces) and (is_read is None or axis.is_read == is_read)
        )

    @property
    def input_axes(self) -> tuple[int, ...]:
        """Indices of the axes that read a space."""
        return tuple(axis.index for axis in self.unit_axes(is_read=True))

    @property
    def output_axes(self) -> tuple[int, ...]:
        """Indices of the axes that write a space."""
        return tuple(axis.index for axis in self.unit_axes(is_read=False))

    def num_summed(self, shape: tuple[int, ...]) -> int:
        """Number of terms in each of an array's sums: the product of the sizes of all axes but those that write."""
        return prod(size for index, size in enumerate(shape) if index not in self.output_axes)

    def reads(self) -> tuple[str, ...]:
        """The spaces on the input axes, in axis order."""
        return tuple(axis.space for axis in self.unit_axes(is_read=True))

    def writes(self) -> tuple[str, ...]:
        """The spaces on the output axes, in axis order."""
        return tuple(axis.space for axis in self.unit_axes(is_read=False))


@dataclass(frozen=True)
class CompoundLabel:
    """The label of an array with an axis that is a sum or a product; `lopjax.wiring.make_view` cuts it into pieces.

    Attributes:
        axes: one entry per array axis, pure or not.
        sites: `(space, site)`: the site of the pieces that write the space.
        sources: `(space, source)`: the source of the pieces that read the space.
        window: as in `Label`.
        scales: as in `Label`.
    """

    axes: tuple[Any, ...]
    sites: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    window: Window | None = None
    scales: bool | None = None


class Site(NamedTuple):
    """A point of the network where a unit space is written and observed: a residual stream has many, a plain layer one.

    Attributes:
        space: the unit space.
        activation: name in `lopjax.activations.ACTIVATIONS`, or an `Activation` that is not among those.
    """

    space: str
    activation: str | Activation


def along(vector: Any, axis: int, ndim: int) -> Any:
    """A vector (NumPy's or JAX's) laid along one axis of an array with `ndim` axes, for broadcasting."""
    return vector.reshape([-1 if index == axis else 1 for index in range(ndim)])


def sum_per_unit(array: Any, axis: int) -> Any:
    """Sum of all entries (NumPy's or JAX's) of each unit's slice along an axis, `(units,)`."""
    return array.sum(axis=tuple(other for other in range(array.ndim) if other != axis))


def unit_rows(array: Any, axis: int) -> Any:
    """One row per unit, `(units, rest)`, from an array (NumPy's or JAX's) whose axis indexes the units."""
    order = (axis, *(other for other in range(array.ndim) if other != axis))
    return array.transpose(order).reshape(array.shape[axis], -1)
