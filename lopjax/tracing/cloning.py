"""The pass that finds how every value scales when units are cloned, and hence which units can be cloned."""

from collections.abc import Mapping
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from lopjax.tracing.atoms import Atom, Axis, leaves
from lopjax.tracing.degrees import Condition, Form, Powers, Unknown
from lopjax.tracing.jaxprs import Block, Node, scan_counts
from lopjax.tracing.pieces import apply, counts, fit, full, merged, pieces
from lopjax.tracing.recipes import groups_of, solve
from lopjax.tracing.scaling import Scaling, all_same, places_of, stems_of
from lopjax.tracing.scaling_rules import results
from lopjax.tracing.types import Typing


class Cloning(NamedTuple):
    """How the values of a program change when its leaves are cloned.

    Attributes:
        read: the unknowns that are `In`.
        failures: the condition at fault for each leaf that cannot be cloned.
        coupled: the leaves over which something is averaged.
        growing: literals that count units, with the axes whose units they count.
        others: for a leaf that the divide rule does not clone but another choice of exponents does: the leaves that
            must have the same factor, and the exponent of every piece of a parameter, if it is not 0.
    """

    read: set[Unknown]
    failures: dict[Atom, Condition]
    coupled: set[Atom]
    growing: dict[tuple[Node, int], tuple[Axis, ...]]
    others: dict[Atom, tuple[tuple[Atom, ...], dict[int, Fraction]]]


def infer_cloning(typing: Typing, num_parameters: int) -> Cloning:
    """Which leaves can be cloned, and which parameters are divided.

    Where the canonical choice fails (parameters that are contracted with data are divided), two others are tried: to
    divide parameters that are multiplied and then summed, and to divide nothing (a softmax over experts divides by
    itself).
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
    others, more = _other_exponents(typing, num_parameters, failures, ledger.meetings, read)
    return Cloning(read, failures, ledger.coupled, growing | more, others)


def _other_exponents(
    typing: Typing,
    num_parameters: int,
    failures: Mapping[Atom, Condition],
    meetings: set[frozenset[Atom]],
    read: set[Unknown],
) -> tuple[dict[Atom, tuple[tuple[Atom, ...], dict[int, Fraction]]], dict[tuple[Node, int], tuple[Axis, ...]]]:
    """What the linear system says of leaves that the divide rule does not clone: one by one, then together.

    Args:
        typing: the typed program.
        num_parameters: number of its inputs that are parameters.
        failures: why the divide rule fails, by leaf.
        meetings: leaves that meet in one condition, which may be cloned together.
        read: unknowns of arrays that are read, whose exponents are -1 where there is a choice.

    Returns:
        `others` and further `growing`, as in `Cloning`.
    """
    others: dict[Atom, tuple[tuple[Atom, ...], dict[int, Fraction]]] = {}
    growing: dict[tuple[Node, int], tuple[Axis, ...]] = {}
    free = [leaf for leaf in failures if leaf.reason is None]
    for is_alone in (True, False):
        left = [leaf for leaf in free if leaf not in others]
        groups = [frozenset({leaf}) for leaf in left] if is_alone else groups_of(left, meetings)
        if not groups:
            continue
        first = {group: min(group, key=free.index) for group in groups}
        joined = {leaf: first[group] for group in groups for leaf in group}
        forced = dict.fromkeys(first.values(), frozenset[Unknown]())
        scaling, _ = infer_scaling(typing, num_parameters, forced, joined, all_arrays=True)
        for group in groups:
            conditions = scaling.ledger.conditions.get(first[group], [])
            exponents = solve(conditions, lambda unknown: -int(unknown in read))
            if exponents is not None:
                members = tuple(leaf for leaf in free if leaf in group)
                per_piece = _per_piece(exponents)
                others |= dict.fromkeys(members, (members, per_piece))
        growing |= {
            key: axes
            for key, axes in scaling.growing.items()
            if any(leaf in others for axis in axes for leaf in leaves(axis))
        }
    return others, growing


def _per_piece(exponents: Mapping[Unknown, Fraction]) -> dict[int, Fraction]:
    total: dict[int, Fraction] = {}
    for (piece, _), power in exponents.items():
        total[piece] = total.get(piece, Fraction(0)) + power
    return {piece: power for piece, power in total.items() if power}


def infer_scaling(
    typing: Typing,
    num_parameters: int,
    forced: Mapping[Atom, frozenset[Unknown]] | None = None,
    joined: Mapping[Atom, Atom] | None = None,
    *,
    all_arrays: bool = False,
) -> tuple[Scaling, dict[Unknown, Atom]]:
    """Powers of n for every value, with an unknown for each leaf of every piece of a parameter.

    Pieces are numbered through all parameters, in the order of `lopjax.tracing.view`.

    Args:
        typing: axes of the program.
        num_parameters: how many of its inputs are parameters.
        forced: consider these leaves only, with the unknowns that are `In`.
        joined: leaves that are cloned together, with the one of them that is in `forced`.
        all_arrays: whether arrays without a leaf have an unknown for it, too: a power that they are multiplied by.

    Returns:
        The pass, and the parameter axis that each unknown belongs to.
    """
    scaling, number = Scaling(typing), 0
    program, owners = typing.program, {}
    scaling.ledger.forced, scaling.ledger.joined = forced, joined or {}
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
                key = scaling.ledger.key(leaf)
                if forced is None or key in forced:
                    form = Form(0, (((number, position), 1),))
                    powers[key] = powers[key].plus(form) if key in powers else form
            if all_arrays:
                powers |= {leaf: Form(0, (((number, -1), 1),)) for leaf in forced or () if leaf not in powers}
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
        made = results(scaling, node)
        for value, powers in zip(node.outputs, made, strict=True):
            shape = counts(scaling.typing.of(value))
            scaling.powers[value] = fit(powers, shape, scaling.same(node))
            if value not in scaling.typing.data:
                scaling.places[value] = places_of(scaling, node, value)


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
        num_consts, num_carry = scan_counts(node)
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
        stems = stems_of(scaling, outer)
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
    """Repeat the body of a loop until the powers of its carry settle; a carry of zeros starts with arbitrary powers.

    Each turn settles one more at least: a value may be handed on through as many carries as there are.

    Args:
        scaling: powers of all values so far; those of the body are added.
        node: the loop.
        body: what it repeats.
        consts: powers of the constants of the loop.
        carry: powers of what one turn hands to the next, at the start.
        xs: powers of the slices that a scan reads.

    Returns:
        The powers of the carry, and of all results of a turn.
    """
    while True:
        saved = scaling.ledger.copy()
        for value, powers in zip(body.inputs, (*consts, *carry, *xs), strict=True):
            scaling.powers[value] = fit(powers, counts(scaling.typing.of(value)), scaling.same(node))
        carry = [scaling.powers[value] for value in body.inputs[len(consts) : len(consts) + len(carry)]]
        _scale(scaling, body)
        results = [scaling.of(value) for value in body.outputs]
        filled = [apply(lambda a, b: b if a is None else a, a, b) for a, b in zip(carry, results, strict=False)]
        if all(
            (apply(lambda a, b: (a is None) == (b is None), a, b)).all() for a, b in zip(carry, filled, strict=True)
        ):
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
        scaling.places |= {inner: stems_of(scaling, outer) for inner, outer in zip(block.inputs, node.inputs[1:])}
        _scale(scaling, block)
        outs.append([scaling.of(value) for value in block.outputs])
    for outer, made in zip(node.outputs, zip(*outs, strict=True), strict=True):
        scaling.powers[outer] = all_same(scaling, node, list(made))
