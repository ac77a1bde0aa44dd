"""How values scale when units are cloned: one rule per primitive, on the pieces of values."""

from collections.abc import Sequence
from math import prod

import jax.numpy as jnp
import numpy as np

from lopjax.tracing import scaling_moves as moves
from lopjax.tracing.atoms import Atom, Axis, leaves, size_of
from lopjax.tracing.degrees import Form, Places, Powers
from lopjax.tracing.jaxprs import Node, words
from lopjax.tracing.pieces import apply, full, merged, pieces
from lopjax.tracing.primitives import REDUCTIONS, SCATTERS
from lopjax.tracing.scaling import Scaling, all_same, is_ordinary, stems_of, types_of

_KEEP = words("abs conj neg copy copy_p name real imag reduce_precision sharding_constraint stop_gradient tile")
_SUMS = words("add sub add_any complex max min clamp rem")
_COMPARISONS = words("eq ne lt le gt ge")
_EXPONENTS = {"sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3, "square": 2}
_PASS_SUMS = words("broadcast_in_dim reshape squeeze convert_element_type transpose copy")


def results(scaling: Scaling, node: Node) -> list[np.ndarray]:
    """Powers of the results of a primitive; one without a rule accepts no powers, and its results have none."""
    given = [scaling.of(value) for value in node.inputs]
    name, ledger = node.name, scaling.ledger
    if node.name in _PASS_SUMS and node.inputs[0] in scaling.sums:
        scaling.sums[node.outputs[0]] = scaling.sums[node.inputs[0]]
    if name in _RULES:
        return [_RULES[name](scaling, node, given)]
    if name in ("optimization_barrier", "device_put", "sort"):
        return given
    if name == "unstack":
        kept = merged(given[0], node.params["axis"], scaling.same(node)).squeeze(node.params["axis"])
        return [kept for _ in node.outputs]
    if name == "split":
        return moves.split_powers(scaling, node, given[0])
    if name in ("top_k", "argmax", "argmin"):
        values = [given[0]] if name == "top_k" else []
        return [*values, full((1,) * len(scaling.typing.of(node.outputs[-1])), {})]
    if name in _KEEP:
        return [given[0]]
    if name in _SUMS:
        return [all_same(scaling, node, given)]
    if name in _COMPARISONS:
        all_same(scaling, node, given)
        return [full((1,) * len(scaling.typing.of(node.outputs[0])), {})]
    if name in ("sign", "is_finite", "iota"):
        return [full((1,) * len(scaling.typing.of(node.outputs[0])), {})]
    if name in _EXPONENTS:
        return [apply(lambda powers: ledger.power(powers, _EXPONENTS[name]), given[0])]
    # The rest is nonlinear or unknown: its operands must not scale.
    for powers in given:
        apply(lambda each: ledger.none(node, each), powers)
    return [full((1,) * len(scaling.typing.of(value)), {}) for value in node.outputs]


# --- Elementwise ------------------------------------------


def _mul(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    for index in (0, 1):
        number = scaling.typing.program.scalar(node.inputs[index])
        if number is not None and is_ordinary(number):
            return _mean(scaling, node, given[1 - index], 1 - index, index, 1 / number)
    is_data = [value in scaling.typing.data for value in node.inputs]
    if is_data[0] != is_data[1]:
        for powers in given[1 if is_data[0] else 0].flat:
            terms = [unknown for form in (powers or {}).values() for unknown, _ in form.terms]
            scaling.ledger.factors.update(terms)
    return apply(scaling.ledger.product, *given)


def _div(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    number = scaling.typing.program.scalar(node.inputs[1])
    if number is not None and is_ordinary(number):
        return _mean(scaling, node, given[0], 0, 1, number)
    return apply(lambda one, other: scaling.ledger.product(one, other, -1), *given)


def _mean(
    scaling: Scaling, node: Node, powers: np.ndarray, operand: int, literal: int, number: float | int | np.number
) -> np.ndarray:
    """A sum divided by the number of its terms is a mean; that number grows with the units.

    Args:
        scaling: powers of all values so far.
        node: the division, or the product with the reciprocal.
        powers: powers of the sum.
        operand: which input of the node is the sum.
        literal: which is the number.
        number: what the sum is divided by.
    """
    axes = scaling.sums.get(node.inputs[operand])
    axis_leaves = () if axes is None else tuple(leaf for axis in axes for leaf in leaves(axis))
    if axes is None or abs(number - prod(map(size_of, axes))) > 1e-6 * abs(number):
        return np.broadcast_to(powers, np.broadcast_shapes(powers.shape, scaling.of(node.inputs[literal]).shape))
    if any(len(pieces(axis)) > 1 for axis in axes):
        axis_leaves = _joint(scaling, axes)  # a mean over two spaces survives equal numbers of clones only
    free = [leaf for leaf in axis_leaves if leaf.reason is None]
    if not free or len(set(free)) != len(free):
        return powers
    scaling.growing[node, literal] = axes
    return apply(lambda each: scaling.ledger.counted(each, axis_leaves, node, -1), powers)


def _joint(scaling: Scaling, axes: tuple[Axis, ...]) -> tuple[Atom, ...]:
    """The leaves that count the entries of direct sums whose spaces are cloned together; none if some are not."""
    counting: list[Atom] = []
    for axis in axes:
        options = [tuple(scaling.ledger.key(leaf) for leaf in piece if leaf.reason is None) for piece in pieces(axis)]
        if len(set(options)) > 1:
            return ()
        counting += options[0]
    return tuple(counting)


def _integer_pow(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    return apply(lambda powers: scaling.ledger.power(powers, node.params["y"]), given[0])


def _pow(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    exponent = scaling.typing.program.scalar(node.inputs[1])
    if exponent is None:
        return apply(lambda a, b: {**scaling.ledger.none(node, a), **scaling.ledger.none(node, b)}, *given)
    return apply(lambda powers: scaling.ledger.power(powers, float(exponent)), given[0])


def _convert(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    if jnp.issubdtype(node.params["new_dtype"], jnp.inexact):
        return given[0]
    return apply(lambda powers: scaling.ledger.none(node, powers), given[0])


def _select(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    apply(lambda powers: scaling.ledger.none(node, powers), given[0])
    cases = all_same(scaling, node, given[1:])
    return np.broadcast_to(cases, np.broadcast_shapes(cases.shape, given[0].shape))


# --- Sums and products ------------------------------------------


def _reduce(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (powers,), axes, ledger = given, node.params["axes"], scaling.ledger
    ((operand,), _) = types_of(scaling, node)
    shape = [len(pieces(axis)) for axis in operand]
    if node.name == "reduce_prod":
        powers = apply(lambda each: ledger.none(node, each), powers)
        for leaf in (leaf for axis in axes for leaf in leaves(operand[axis]) if leaf.reason is None):
            ledger.must_vanish(ledger.key(leaf), Form(1, (), node), node)
    for axis in axes:
        places = full(tuple(shape[axis] if index == axis else 1 for index in range(len(shape))), ())
        for index, piece in enumerate(pieces(operand[axis])):
            places[tuple(index if other == axis else 0 for other in range(len(shape)))] = piece
            ledger.coupled.update(leaf for leaf in piece if leaf.reason is None)
        if node.name == "reduce_sum":
            powers = apply(lambda each, piece: _summed(scaling, node, each, piece), powers, places)
        powers = merged(powers, axis, scaling.same(node))
    if node.name == "reduce_sum":
        earlier = scaling.sums.get(node.inputs[0], ())
        scaling.sums[node.outputs[0]] = (*earlier, *(operand[axis] for axis in axes))
    return powers.reshape([n for index, n in enumerate(powers.shape) if index not in axes])


def _summed(scaling: Scaling, node: Node, powers: Powers | None, piece: tuple[Atom, ...]) -> Powers | None:
    """A sum; parameters that were multiplied beforehand may be the ones to divide."""
    for leaf in piece:
        form = (powers or {}).get(leaf)
        if form is not None:
            scaling.ledger.candidates.setdefault(leaf, set()).update(unknown for unknown, _ in form.terms)
    return scaling.ledger.counted(powers, piece, node)


def _contract(
    scaling: Scaling,
    node: Node,
    left: np.ndarray,
    right: np.ndarray,
    summed: list[list[tuple[Atom, ...]]],
    axes: tuple[Sequence[int], Sequence[int]],
) -> np.ndarray:
    """Contract the last axes of two arrays of powers, with broadcasting.

    `summed` holds the leaves of the pieces of each axis, `axes` the corresponding axes of the operands.
    """
    places = full(tuple(len(options) for options in summed), ())
    for place in np.ndindex(places.shape):
        places[place] = tuple(leaf for options, each in zip(summed, place, strict=True) for leaf in options[each])
    data = node.inputs[0] in scaling.typing.data, node.inputs[1] in scaling.typing.data
    none: Places = frozenset()
    stems = (
        none.union(*(stems_of(scaling, node.inputs[0])[axis] for axis in axes[0])),
        none.union(*(stems_of(scaling, node.inputs[1])[axis] for axis in axes[1])),
    )
    contracted = scaling.ledger.contracted
    made = apply(lambda a, b, piece: contracted(a, b, piece, data, stems, node), left, right, places)
    for _ in summed:
        made = merged(made, made.ndim - 1, scaling.same(node)).reshape(made.shape[:-1])
    return made


def _dot_general(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (left, right), ((left_type, _), _) = given, types_of(scaling, node)
    (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
    free_l = [index for index in range(left.ndim) if index not in (*contract_l, *batch_l)]
    free_r = [index for index in range(right.ndim) if index not in (*contract_r, *batch_r)]
    left = left.transpose(*batch_l, *free_l, *contract_l)
    right = right.transpose(*batch_r, *free_r, *contract_r)
    num_batch, num_l = len(batch_l), len(free_l)
    left = np.expand_dims(left, tuple(range(num_batch + num_l, num_batch + num_l + len(free_r))))
    right = np.expand_dims(right, tuple(range(num_batch, num_batch + num_l)))
    return _contract(
        scaling, node, left, right, [pieces(left_type[index]) for index in contract_l], (contract_l, contract_r)
    )


def _convolution(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (image, kernel), ((_, kernel_type), _) = given, types_of(scaling, node)
    numbers, groups = node.params["dimension_numbers"], node.params["feature_group_count"]
    (batch, channels, *_), (written, read, *_) = numbers.lhs_spec, numbers.rhs_spec
    for axis in range(image.ndim):
        if axis not in (batch, channels):
            image = merged(image, axis, scaling.same(node))
        if axis not in (written, read):
            kernel = merged(kernel, axis, scaling.same(node))
    image = image.transpose(batch, channels, *numbers.lhs_spec[2:]).reshape(image.shape[batch], -1)
    kernel = kernel.transpose(written, read, *numbers.rhs_spec[2:]).reshape(kernel.shape[written], -1)
    options = pieces(kernel_type[read])
    if groups > 1 and image.shape[1] != len(options):
        image = merged(image, 1, scaling.same(node))
    made = _contract(scaling, node, image[:, None, :], kernel[None], [options], ((channels,), (read,)))
    spread = made.reshape(*made.shape, *[1] * (len(numbers.out_spec) - 2))
    return spread.transpose(np.argsort(numbers.out_spec))


_RULES = {
    "mul": _mul,
    "div": _div,
    "integer_pow": _integer_pow,
    "pow": _pow,
    "convert_element_type": _convert,
    "select_n": _select,
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(SCATTERS, moves.scatter_powers),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": moves.broadcast_powers,
    "transpose": moves.transpose_powers,
    "reshape": moves.reshape_powers,
    "squeeze": moves.reshape_powers,
    "slice": moves.slice_powers,
    "concatenate": moves.concatenate_powers,
    "stack": moves.stack_powers,
    "pad": moves.pad_powers,
    "gather": moves.gather_powers,
    "dynamic_slice": moves.dynamic_slice_powers,
    "dynamic_update_slice": moves.dynamic_update_slice_powers,
    **dict.fromkeys(("cumsum", "cummax", "cummin", "rev"), moves.first_powers),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), moves.first_powers),
}
