"""What a product or a convolution of a kernel with the activations of a site makes, axis by axis."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from lopjax.tracing.factors import Axes, Factor, NotPlainError, without_ones
from lopjax.tracing.flow import Flow, Step
from lopjax.wiring import Window


class Read(NamedTuple):
    """What a kernel is contracted with: its source, the axes there, and those of the source in the order of a tap."""

    source: str
    is_site: bool
    axes: Axes
    tap: tuple[Factor, ...]


def dot(
    step: Step, given: tuple[Axes, Axes], place: int, kernel: tuple[Factor, ...], read: Read
) -> tuple[Axes, list[Factor]]:
    """The axes of a product, and the order that `(batch, ..., units)` has.

    Args:
        step: the product.
        given: axes of its two operands.
        place: which of them is the kernel, 0 or 1.
        kernel: factors of the kernel: offsets, units read, units written.
        read: what the kernel is contracted with.

    Raises:
        NotPlainError: it is not a plain layer; the message says why.
    """
    contracted, batch = step.node.params["dimension_numbers"]
    if batch[0]:
        raise NotPlainError(f"it runs along with what it reads at {step.node.where}")
    (*others, units_in, units_out), (first, *rest) = kernel, read.tap
    pairs = [
        (list(given[1 - place][data]), list(given[place][own]))
        for data, own in zip(contracted[1 - place], contracted[place], strict=True)
    ]
    made = tuple(
        axis for axes, gone in zip(given, contracted, strict=True) for i, axis in enumerate(axes) if i not in gone
    )
    if pairs == [(without_ones(rest[-1:]), without_ones([units_in]))] and not without_ones(others):
        return made, [first, *rest[:-1], units_out]
    # A flattened map: all positions, in one order on both sides, and unit by unit if there are units.
    if read.is_site:
        pairs, rest = [part for pair in pairs for part in _around(pair, rest[-1], units_in)], rest[:-1]
    else:
        others = [*others, units_in]
    positions, offsets = without_ones(rest), without_ones(others)
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: _index(positions, pair[0][0]))
    if [factor for pair in pairs for factor in pair[0]] != positions or [f for p in pairs for f in p[1]] != offsets:
        raise NotPlainError(f"it reads what is flattened in another order at {step.node.where}")
    if any(prod(f.size for f in one) != prod(f.size for f in other) for one, other in pairs):
        raise NotPlainError(f"it reads what is cut otherwise at {step.node.where}")
    return made, [first, units_out]


def _index(factors: Sequence[Factor], factor: Factor) -> int:
    return factors.index(factor) if factor in factors else -1


_Pair = tuple[list[Factor], list[Factor]]


def _around(pair: _Pair, read: Factor, own: Factor) -> list[_Pair]:
    """What lies in front of the units, and behind them, on an axis that is summed over."""
    data, kernel = pair
    if read not in data and own not in kernel:
        return [pair]
    if read not in data or own not in kernel:
        raise NotPlainError("units and positions are summed over in another order than it has them")
    at, place = data.index(read), kernel.index(own)
    parts = [(data[:at], kernel[:place]), (data[at + 1 :], kernel[place + 1 :])]
    if any(bool(one) != bool(other) for one, other in parts):
        raise NotPlainError("units and positions are summed over in another order than it has them")
    return [part for part in parts if part[0]]


def convolved(
    flow: Flow, step: Step, given: tuple[Axes, Axes], place: int, kernel: tuple[Factor, ...], read: Read
) -> tuple[Window, tuple[Axes, list[Factor]]]:
    """The window of a convolution, the axes of its result, and the order that `(batch, ..., units)` has.

    Args:
        flow: the graph.
        step: the convolution.
        given: axes of its two operands.
        place: which of them is the kernel, 0 or 1.
        kernel: factors of the kernel: offsets, units read, units written.
        read: what the kernel is contracted with.

    Raises:
        NotPlainError: it is not a plain layer; the message says why.
    """
    params = step.node.params
    numbers, padding = params["dimension_numbers"], tuple((int(a), int(b)) for a, b in params["padding"])
    is_dilated = any(each != 1 for key in ("lhs_dilation", "rhs_dilation") for each in params[key] or ())
    if is_dilated or params["feature_group_count"] != 1 or params["batch_group_count"] != 1:
        raise NotPlainError(f"its convolution has groups or gaps at {step.node.where}")
    if any(each < 0 for pair in padding for each in pair):
        raise NotPlainError(f"its convolution cuts the map at {step.node.where}")
    (first, *positions, units), (*offsets, units_in, units_out) = read.tap, kernel
    image, weights = given
    expected = {numbers.lhs_spec[0]: first, numbers.lhs_spec[1]: units} | dict(zip(numbers.lhs_spec[2:], positions))
    of_kernel = {numbers.rhs_spec[0]: units_out, numbers.rhs_spec[1]: units_in} | dict(
        zip(numbers.rhs_spec[2:], offsets)
    )
    is_plain = place == 1 and len(expected) == len(image) and len(of_kernel) == len(weights)
    for axes, each in ((image, expected), (weights, of_kernel)):
        is_plain = is_plain and all(tuple(without_ones([each[i]])) == axis for i, axis in enumerate(axes) if i in each)
    if not is_plain:
        raise NotPlainError(f"its convolution has axes in another order at {step.node.where}")
    shape = flow.shape(step.outputs[0])
    out = {axis: Factor(shape[axis]) for axis in numbers.out_spec[2:]}
    placed = {numbers.out_spec[0]: first, numbers.out_spec[1]: units_out, **out}
    made = tuple(tuple(without_ones([placed[axis]])) for axis in range(len(shape)))
    return Window(tuple(params["window_strides"]), padding), (made, [first, *out.values(), units_out])
