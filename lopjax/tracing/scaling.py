"""The pass that finds how every value scales when units are cloned: one rule per primitive, on pieces of values."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from lopjax.tracing.atoms import Atom, Axis, leaves, size_of
from lopjax.tracing.degrees import ANY, Condition, Form, Ledger, Places, Powers, Unknown
from lopjax.tracing.jaxprs import Block, Node
from lopjax.tracing.pieces import apply, counts, fit, full, merged, piece_of, pieces, rearranged
from lopjax.tracing.rules import REDUCTIONS, SCATTERS, Type
from lopjax.tracing.types import Typing

_KEEP = frozenset("abs neg copy copy_p real imag reduce_precision stop_gradient".split())
_SUMS = frozenset("add sub add_any max min clamp rem".split())
_COMPARISONS = frozenset("eq ne lt le gt ge".split())
_EXPONENTS = {"sqrt": 0.5, "rsqrt": -0.5, "cbrt": 1 / 3, "square": 2}
_PASS_SUMS = frozenset("broadcast_in_dim reshape squeeze convert_element_type transpose copy".split())


@dataclass(eq=False)
class Scaling:
    """State of the pass.

    Attributes:
        typing: of the program.
        ledger: what is found.
        powers: per value, the powers of its pieces.
        sums: per value that is a sum over axes, which axes: a division by the number of terms makes it a mean.
        growing: literals that are such a number, `(node, operand)`, with the axes that they count.
        places: per value without data, which axes of parameters each of its axes stems from.
    """

    typing: Typing
    ledger: Ledger = field(default_factory=Ledger)
    powers: dict[int, np.ndarray] = field(default_factory=dict)
    sums: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    growing: dict[tuple[Node, int], tuple[Axis, ...]] = field(default_factory=dict)
    places: dict[int, tuple[Places, ...]] = field(default_factory=dict)

    def of(self, value: int) -> np.ndarray:
        """Powers of a value; those of a constant are 0, and of zeros and infinities anything."""
        if value not in self.powers:
            known = self.typing.program.scalar(value)
            is_any = known is not None and not _is_ordinary(known)
            self.powers[value] = full(counts(self.typing.of(value)), ANY if is_any else {})
        return self.powers[value]

    def same(self, node: Node | None) -> Callable[[Powers | None, Powers | None], Powers | None]:
        """How two pieces that become one, or two terms of a sum, are put together."""
        return lambda one, other: self.ledger.same(node, one, other)


def _is_ordinary(number: object) -> bool:
    try:
        return bool(np.isfinite(number) and number != 0)
    except TypeError:
        return True


class Cloning(NamedTuple):
    """What cloning the leaves of a program does.

    Attributes:
        read: the unknowns that are `In`.
        failures: the condition at fault for each leaf that cannot be cloned.
        coupled: the leaves over which something averages.
        growing: literals that count units, with the axes that they count.
    """

    read: set[Unknown]
    failures: dict[Atom, Condition]
    coupled: set[Atom]
    growing: dict[tuple[Node, int], tuple[Axis, ...]]


def infer_cloning(typing: Typing, num_parameters: int) -> Cloning:
    """Which leaves can be cloned, and what is divided.

    Where the canonical choice fails (what is contracted with data is divided) two others are tried: parameters that
    are multiplied and then summed are divided; nothing is (a softmax over experts divides by itself).
    """
    scaling, owners = infer_scaling(typing, num_parameters)
    ledger, failures = scaling.ledger, scaling.ledger.settle()
    read, growing = ledger.read, scaling.growing
    summed = {leaf: frozenset(ledger.candidates.get(leaf, set()) & ledger.factors) for leaf in failures}
    is_read = {owners[unknown] for unknown in ledger.read}
    choices = (
        {leaf: unknowns for leaf, unknowns in summed.items() if unknowns},
        {leaf: frozenset() for leaf in failures if leaf in is_read and leaf in ledger.coupled},
    )
    for choice in choices:
        forced = {leaf: unknowns for leaf, unknowns in choice.items() if leaf in failures}
        if not forced:
            continue
        again, _ = infer_scaling(typing, num_parameters, forced)
        failed = again.ledger.settle()
        for leaf in (leaf for leaf in forced if leaf not in failed):
            read = {unknown for unknown in read if owners[unknown] is not leaf} | forced[leaf]
            del failures[leaf]
    return Cloning(read, failures, ledger.coupled, growing)


def infer_scaling(
    typing: Typing, num_parameters: int, forced: Mapping[Atom, frozenset[Unknown]] | None = None
) -> tuple[Scaling, dict[Unknown, Atom]]:
    """Powers of every value, and of every piece of a parameter an unknown for each of its leaves.

    Pieces are numbered through all parameters, in the order of `lopjax.tracing.view`.

    Args:
        typing: of the program.
        num_parameters: how many of its inputs are parameters.
        forced: look at these leaves only, with the unknowns that are `In`.

    Returns:
        The pass, and whose unknown each is.
    """
    scaling, number = Scaling(typing), 0
    program, owners = typing.program, {}
    scaling.ledger.forced = forced
    if forced is not None:
        scaling.ledger.read.update(*forced.values())
    for index, value in enumerate(program.block.inputs):
        axes = typing.of(value)
        made = full(counts(axes), {})
        options = [pieces(axis) for axis in axes]
        for place in np.ndindex(made.shape if index < num_parameters else (0,)):
            powers: Powers = {}
            flat = [leaf for axis, each in zip(options, place, strict=True) for leaf in axis[each]]
            ends = np.cumsum([len(axis[each]) for axis, each in zip(options, place, strict=True)]).tolist()
            for position, leaf in enumerate(flat):
                owners[number, position] = leaf
                scaling.ledger.places[number, position] = index, sum(position >= end for end in ends)
                if forced is None or leaf in forced:
                    form = Form(0, (((number, position), 1),))
                    powers[leaf] = powers[leaf].plus(form) if leaf in powers else form
            made[place] = {leaf: scaling.ledger.simplified(form) for leaf, form in powers.items()}
            number += 1
        scaling.powers[value] = made
        if index < num_parameters:
            scaling.places[value] = tuple(frozenset({(index, axis)}) for axis in range(len(axes)))
    _scale(scaling, program.block)
    for value in program.block.outputs:
        apply(lambda powers: scaling.ledger.none(None, powers), scaling.of(value))
    return scaling, owners


def _scale(scaling: Scaling, block: Block) -> None:
    for node in block.nodes:
        if node.blocks:
            _scale_blocks(scaling, node)
            continue
        made = _results(scaling, node)
        for value, powers in zip(node.outputs, made, strict=True):
            shape = counts(scaling.typing.of(value))
            scaling.powers[value] = fit(powers, shape, scaling.same(node))
            if value not in scaling.typing.data:
                scaling.places[value] = places_of(scaling, node, value)


def _results(scaling: Scaling, node: Node) -> list[np.ndarray]:
    given = [scaling.of(value) for value in node.inputs]
    name, ledger = node.name, scaling.ledger
    if node.name in _PASS_SUMS and node.inputs[0] in scaling.sums:
        scaling.sums[node.outputs[0]] = scaling.sums[node.inputs[0]]
    if name in _RULES:
        return [_RULES[name](scaling, node, given)]
    if name in ("optimization_barrier", "sort"):
        return given
    if name == "split":
        return _split(scaling, node, given[0])
    if name in ("top_k", "argmax", "argmin"):
        values = [given[0]] if name == "top_k" else []
        return [*values, full((1,) * len(scaling.typing.of(node.outputs[-1])), {})]
    if name in _KEEP:
        return [given[0]]
    if name in _SUMS:
        return [_all_same(scaling, node, given)]
    if name in _COMPARISONS:
        _all_same(scaling, node, given)
        return [full((1,) * len(scaling.typing.of(node.outputs[0])), {})]
    if name in ("sign", "is_finite", "iota"):
        return [full((1,) * len(scaling.typing.of(node.outputs[0])), {})]
    if name in _EXPONENTS:
        return [apply(lambda powers: ledger.power(powers, _EXPONENTS[name]), given[0])]
    # The rest is not linear, or unknown: nothing that scales may enter.
    for powers in given:
        apply(lambda each: ledger.none(node, each), powers)
    return [full((1,) * len(scaling.typing.of(value)), {}) for value in node.outputs]


def _all_same(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    total, *others = given
    for other in others:
        total = apply(scaling.same(node), total, other)
    return total


def _types(scaling: Scaling, node: Node) -> tuple[list[Type], list[Type]]:
    return [scaling.typing.of(value) for value in node.inputs], [scaling.typing.of(value) for value in node.outputs]


def _places(scaling: Scaling, value: int) -> tuple[Places, ...]:
    return scaling.places.get(value) or (frozenset(),) * len(scaling.typing.of(value))


def places_of(scaling: Scaling, node: Node, value: int) -> tuple[Places, ...]:
    """Which axes of parameters each axis of a result stems from: those of the operands with a leaf in common.

    Exact where a space is on one axis of an array; of two axes with one space, an array that keeps its number of axes
    keeps them apart.
    """
    axes = scaling.typing.of(value)
    found: list[Places] = []
    for index, axis in enumerate(axes):
        own = set(leaves(axis))
        places: Places = frozenset()
        for each in node.inputs:
            given, stems = scaling.typing.of(each), _places(scaling, each)
            if node.name == "transpose":
                places |= stems[node.params["permutation"][index]]
            elif len(given) == len(axes) and node.name not in ("dot_general", "gather"):
                places |= stems[index]
            else:
                places |= frozenset().union(*(s for s, other in zip(stems, given) if own & set(leaves(other))))
        found.append(places)
    return tuple(found)


# --- Elementwise ------------------------------------------


def _mul(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    for index in (0, 1):
        number = scaling.typing.program.scalar(node.inputs[index])
        if number is not None and _is_ordinary(number):
            return _mean(scaling, node, given[1 - index], 1 - index, index, 1 / number)
    is_data = [value in scaling.typing.data for value in node.inputs]
    if is_data[0] != is_data[1]:
        for powers in given[1 if is_data[0] else 0].flat:
            terms = [unknown for form in (powers or {}).values() for unknown, _ in form.terms]
            scaling.ledger.factors.update(terms)
    return apply(scaling.ledger.product, *given)


def _div(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    number = scaling.typing.program.scalar(node.inputs[1])
    if number is not None and _is_ordinary(number):
        return _mean(scaling, node, given[0], 0, 1, number)
    return apply(lambda one, other: scaling.ledger.product(one, other, -1), *given)


def _mean(scaling: Scaling, node: Node, powers: np.ndarray, operand: int, literal: int, number: float | int | np.number) -> np.ndarray:
    """A sum divided by the number of its terms is a mean; the number grows with the units."""
    axes = scaling.sums.get(node.inputs[operand])
    found = () if axes is None else tuple(leaf for axis in axes for leaf in leaves(axis))
    if axes is None or abs(number - prod(map(size_of, axes))) > 1e-6 * abs(number):
        return np.broadcast_to(powers, np.broadcast_shapes(powers.shape, scaling.of(node.inputs[literal]).shape))
    if all(leaf.reason is not None for leaf in found) or len({leaf for leaf in found if leaf.reason is None}) != len(
        [leaf for leaf in found if leaf.reason is None]
    ):
        return powers
    if any(len(pieces(axis)) > 1 for axis in axes):
        return powers  # a mean over two spaces survives equal numbers of clones only
    scaling.growing[node, literal] = axes
    return apply(lambda each: scaling.ledger.counted(each, found, node, -1), powers)


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
    cases = _all_same(scaling, node, given[1:])
    return np.broadcast_to(cases, np.broadcast_shapes(cases.shape, given[0].shape))


# --- Sums and products ------------------------------------------


def _reduce(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (powers,), axes, ledger = given, node.params["axes"], scaling.ledger
    ((operand,), _) = _types(scaling, node)
    shape = [len(pieces(axis)) for axis in operand]
    if node.name == "reduce_prod":
        powers = apply(lambda each: ledger.none(node, each), powers)
        for leaf in (leaf for axis in axes for leaf in leaves(operand[axis]) if leaf.reason is None):
            ledger.must_vanish(leaf, Form(1, (), node), node)
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
    """A sum; parameters that were multiplied before may be the ones to divide."""
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
    """Sum over the last axes of two arrays of powers that broadcast.

    `summed` has the leaves of the pieces of each, `axes` the axes of the operands that they are.
    """
    places = full(tuple(len(options) for options in summed), ())
    for place in np.ndindex(places.shape):
        places[place] = tuple(leaf for options, each in zip(summed, place, strict=True) for leaf in options[each])
    data = tuple(value in scaling.typing.data for value in node.inputs)
    stems = tuple(
        frozenset().union(*(_places(scaling, value)[axis] for axis in own)) for value, own in zip(node.inputs, axes)
    )
    contracted = scaling.ledger.contracted
    made = apply(lambda a, b, piece: contracted(a, b, piece, data, stems, node), left, right, places)
    for _ in summed:
        made = merged(made, made.ndim - 1, scaling.same(node)).reshape(made.shape[:-1])
    return made


def _dot_general(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (left, right), ((left_type, _), _) = given, _types(scaling, node)
    (contract_l, contract_r), (batch_l, batch_r) = node.params["dimension_numbers"]
    free_l = [index for index in range(left.ndim) if index not in (*contract_l, *batch_l)]
    free_r = [index for index in range(right.ndim) if index not in (*contract_r, *batch_r)]
    left = left.transpose(*batch_l, *free_l, *contract_l)
    right = right.transpose(*batch_r, *free_r, *contract_r)
    num_batch, num_l = len(batch_l), len(free_l)
    left = np.expand_dims(left, tuple(range(num_batch + num_l, num_batch + num_l + len(free_r))))
    right = np.expand_dims(right, tuple(range(num_batch, num_batch + num_l)))
    return _contract(scaling, node, left, right, [pieces(left_type[index]) for index in contract_l], (contract_l, contract_r))


def _convolution(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (image, kernel), ((_, kernel_type), _) = given, _types(scaling, node)
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


# --- Moves ----------------------------------------


def _broadcast(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    shape = [1] * len(node.params["shape"])
    for index, number in zip(node.params["broadcast_dimensions"], given[0].shape, strict=True):
        shape[index] = number
    return given[0].reshape(shape)


def _transpose(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    return given[0].transpose(node.params["permutation"])


def _segment(
    scaling: Scaling, node: Node, powers: np.ndarray, result: int, axis: int, entries: np.ndarray
) -> np.ndarray:
    """The pieces of chosen entries of an axis."""
    program, typing = scaling.typing.program, scaling.typing
    before = piece_of(typing.of(node.inputs[0])[axis], program.shape(node.inputs[0])[axis])
    after = piece_of(typing.of(node.outputs[result])[axis], program.shape(node.outputs[result])[axis])
    if powers.shape[axis] == 1 or not len(after):
        return np.take(powers, [0], axis)
    return rearranged([powers], [before[entries]], after, axis, scaling.same(node))


def _slice(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    (powers,) = given
    strides = node.params["strides"] or (1,) * powers.ndim
    for axis, bounds in enumerate(zip(node.params["start_indices"], node.params["limit_indices"], strides)):
        powers = _segment(scaling, node, powers, 0, axis, np.arange(*bounds))
    return powers


def _split(scaling: Scaling, node: Node, powers: np.ndarray) -> list[np.ndarray]:
    axis, ends = node.params["axis"], np.cumsum([0, *node.params["sizes"]]).tolist()
    entries = [np.arange(*bounds) for bounds in zip(ends[:-1], ends[1:], strict=True)]
    return [_segment(scaling, node, powers, index, axis, each) for index, each in enumerate(entries)]


def _concatenate(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    typing, program, along = scaling.typing, scaling.typing.program, node.params["dimension"]
    parts = [piece_of(typing.of(value)[along], program.shape(value)[along]) for value in node.inputs]
    shape = np.broadcast_shapes(*(powers.shape[:along] + (1,) + powers.shape[along + 1 :] for powers in given))
    wide = [np.broadcast_to(each, (*shape[:along], each.shape[along], *shape[along + 1 :])) for each in given]
    kept = [(each, part) for each, part in zip(wide, parts, strict=True) if len(part)]
    (out,) = node.outputs
    target = piece_of(typing.of(out)[along], program.shape(out)[along])
    if not kept:
        return given[0]
    return rearranged([each for each, _ in kept], [part for _, part in kept], target, along, scaling.same(node))


def _pad(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    powers, value = given
    typing, program = scaling.typing, scaling.typing.program
    (out,) = node.outputs
    for axis, (low, high, interior) in enumerate(node.params["padding_config"]):
        size = program.shape(node.inputs[0])[axis]
        if not (low or high or interior):
            continue
        if powers.shape[axis] == 1 and len(pieces(typing.of(out)[axis])) == 1 or low < 0 or high < 0 or interior:
            powers = apply(scaling.same(node), merged(powers, axis, scaling.same(node)), value)
            continue
        filled = full((1,) * powers.ndim, value[()])
        filled = np.broadcast_to(filled, [1 if index == axis else n for index, n in enumerate(powers.shape)])
        arrays = [filled, powers, filled]
        sources = [np.zeros(low, int), piece_of(typing.of(node.inputs[0])[axis], size), np.zeros(high, int)]
        target = piece_of(typing.of(out)[axis], program.shape(out)[axis])
        powers = rearranged(arrays, sources, target, axis, scaling.same(node))
    return powers


def _reshape(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    shape = counts(scaling.typing.of(node.outputs[0]))
    (powers,) = given[:1]
    if prod(shape) == powers.size:
        return powers.reshape(shape)
    for axis in range(powers.ndim):
        powers = merged(powers, axis, scaling.same(node))
    return powers.reshape((1,) * len(shape))


def _gather(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    apply(lambda powers: scaling.ledger.none(node, powers), given[1])
    numbers, powers = node.params["dimension_numbers"], given[0]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    for axis in gone:
        powers = merged(powers, axis, scaling.same(node))
    kept = powers.reshape([n for axis, n in enumerate(powers.shape) if axis not in gone])
    rank = len(scaling.typing.of(node.outputs[0]))
    return np.expand_dims(kept, tuple(index for index in range(rank) if index not in numbers.offset_dims))


def _dynamic_slice(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    for other in given[1:]:
        apply(lambda powers: scaling.ledger.none(node, powers), other)
    return given[0]


def _dynamic_update_slice(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    for other in given[2:]:
        apply(lambda powers: scaling.ledger.none(node, powers), other)
    update = fit(given[1], given[0].shape, scaling.same(node))
    return apply(scaling.same(node), given[0], update)


def _scatter(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """Everything that is written has one power."""
    apply(lambda powers: scaling.ledger.none(node, powers), given[1])
    if node.name == "scatter_mul":
        return apply(lambda powers: scaling.ledger.none(node, powers), given[0])
    powers, updates = given[0], given[2]
    for axis in range(updates.ndim):
        updates = merged(updates, axis, scaling.same(node))
    return apply(lambda one: scaling.ledger.same(node, one, updates.reshape(-1)[0]), powers)


def _first(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    return given[0]


_RULES = {
    "mul": _mul,
    "div": _div,
    "integer_pow": _integer_pow,
    "pow": _pow,
    "convert_element_type": _convert,
    "select_n": _select,
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(SCATTERS, _scatter),
    "dot_general": _dot_general,
    "conv_general_dilated": _convolution,
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "reshape": _reshape,
    "squeeze": _reshape,
    "slice": _slice,
    "concatenate": _concatenate,
    "pad": _pad,
    "gather": _gather,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    **dict.fromkeys(("cumsum", "cummax", "cummin", "rev"), _first),
    **dict.fromkeys(("reduce_window_sum", "reduce_window_max", "reduce_window_min"), _first),
}


# --- Calls, loops and branches --------------------------------------


def _scale_blocks(scaling: Scaling, node: Node) -> None:
    if node.is_call:
        _scale(scaling, node.blocks[0])
        return
    given = [scaling.of(value) for value in node.inputs]
    if node.name == "cond":
        _branches(scaling, node, given)
        return
    if node.name == "scan":
        num_consts, num_carry = node.params["num_consts"], node.params["num_carry"]
        (body,), condition = node.blocks, None
        consts, carry = given[:num_consts], given[num_consts : num_consts + num_carry]
        xs = [merged(each, 0, scaling.same(node))[0] for each in given[num_consts + num_carry :]]
        before: list[np.ndarray] = []
    else:
        condition, body = node.blocks
        num_cond, num_consts = node.params["cond_nconsts"], node.params["body_nconsts"]
        before, consts = given[:num_cond], given[num_cond : num_cond + num_consts]
        carry, xs = given[num_cond + num_consts :], []
    start = 0 if node.name == "scan" else len(before)
    for index, (inner, outer) in enumerate(zip(body.inputs, node.inputs[start:], strict=True)):
        stems = _places(scaling, outer)
        scaling.places[inner] = stems[1:] if index >= len(consts) + len(carry) else stems
    carry, results = _turns(scaling, node, body, consts, carry, xs)
    if condition is not None:
        scaling.powers |= zip(condition.inputs, (*before, *carry), strict=True)
        _scale(scaling, condition)
    for index, (outer, made) in enumerate(zip(node.outputs, results, strict=True)):
        scaling.powers[outer] = made if index < len(carry) else made[None]


def _turns(
    scaling: Scaling, node: Node, body: Block, consts: list[np.ndarray], carry: list[np.ndarray], xs: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The body of a loop, until its carry has the powers it starts with: one that starts as zeros has any in the first turn."""
    for _ in range(4):
        saved = scaling.ledger.copy()
        for value, powers in zip(body.inputs, (*consts, *carry, *xs), strict=True):
            scaling.powers[value] = fit(powers, counts(scaling.typing.of(value)), scaling.same(node))
        carry = [scaling.powers[value] for value in body.inputs[len(consts) : len(consts) + len(carry)]]
        _scale(scaling, body)
        results = [scaling.of(value) for value in body.outputs]
        filled = [apply(lambda a, b: b if a is ANY else a, a, b) for a, b in zip(carry, results, strict=False)]
        if all((apply(lambda a, b: (a is ANY) == (b is ANY), a, b)).all() for a, b in zip(carry, filled, strict=True)):
            break
        carry, scaling.ledger = filled, saved
    for one, other in zip(carry, results, strict=False):
        apply(scaling.same(node), one, other)
    return carry, results


def _branches(scaling: Scaling, node: Node, given: list[np.ndarray]) -> None:
    apply(lambda powers: scaling.ledger.none(node, powers), given[0])
    outs = []
    for block in node.blocks:
        scaling.powers |= zip(block.inputs, given[1:], strict=True)
        scaling.places |= {inner: _places(scaling, outer) for inner, outer in zip(block.inputs, node.inputs[1:])}
        _scale(scaling, block)
        outs.append([scaling.of(value) for value in block.outputs])
    for outer, made in zip(node.outputs, zip(*outs, strict=True), strict=True):
        scaling.powers[outer] = _all_same(scaling, node, list(made))
