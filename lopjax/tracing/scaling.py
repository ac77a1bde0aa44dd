"""The state of the pass that finds how values scale, and helpers shared by its rules."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lopjax.tracing.atoms import Axis, leaves
from lopjax.tracing.degrees import ANY, Ledger, Places, Powers
from lopjax.tracing.jaxprs import Node
from lopjax.tracing.pieces import apply, counts, full
from lopjax.tracing.primitives import Type
from lopjax.tracing.types import Typing


@dataclass(eq=False)
class Scaling:
    """State of the pass.

    Attributes:
        typing: axes of the program.
        ledger: the findings.
        powers: per value, the powers of its pieces.
        sums: for values that are sums, the axes summed over: a division by the number of terms makes it a mean.
        growing: literals that are such a number, `(node, operand)`, with the axes that they count.
        places: per value that does not depend on data, the parameter axes from which each of its axes stems.
    """

    typing: Typing
    ledger: Ledger = field(default_factory=Ledger)
    powers: dict[int, np.ndarray] = field(default_factory=dict)
    sums: dict[int, tuple[Axis, ...]] = field(default_factory=dict)
    growing: dict[tuple[Node, int], tuple[Axis, ...]] = field(default_factory=dict)
    places: dict[int, tuple[Places, ...]] = field(default_factory=dict)

    def of(self, value: int) -> np.ndarray:
        """Powers of a value: 0 for a constant, arbitrary for zeros and infinities."""
        if value not in self.powers:
            known = self.typing.program.scalar(value)
            is_any = known is not None and not is_ordinary(known)
            self.powers[value] = full(counts(self.typing.of(value)), ANY if is_any else {})
        return self.powers[value]

    def same(self, node: Node | None) -> Callable[[Powers | None, Powers | None], Powers | None]:
        """How two pieces that become one, or two terms of a sum, are combined."""
        return lambda one, other: self.ledger.same(node, one, other)


def is_ordinary(number: Any) -> bool:
    """Whether a number is finite and nonzero, so that its powers are 0; those of other numbers are arbitrary."""
    try:
        return bool(np.isfinite(number) and number != 0)
    except TypeError:
        return True


def all_same(scaling: Scaling, node: Node, given: list[np.ndarray]) -> np.ndarray:
    """The powers that several terms have in common."""
    total, *others = given
    for other in others:
        total = apply(scaling.same(node), total, other)
    return total


def types_of(scaling: Scaling, node: Node) -> tuple[list[Type], list[Type]]:
    """Axes of the operands and of the results."""
    return [scaling.typing.of(value) for value in node.inputs], [scaling.typing.of(value) for value in node.outputs]


def stems_of(scaling: Scaling, value: int) -> tuple[Places, ...]:
    """For each axis of a value, the parameter axes from which it stems."""
    return scaling.places.get(value) or (frozenset(),) * len(scaling.typing.of(value))


def places_of(scaling: Scaling, node: Node, value: int) -> tuple[Places, ...]:
    """The parameter axes from which each axis of a result stems: those of operands' axes that share a leaf with it.

    Exact if a space is on one axis of an array; if it is on two, they are distinguished as long as the number of axes
    does not change.
    """
    axes = scaling.typing.of(value)
    all_places: list[Places] = []
    for index, axis in enumerate(axes):
        own = set(leaves(axis))
        places: Places = frozenset()
        for each in node.inputs:
            given, stems = scaling.typing.of(each), stems_of(scaling, each)
            if node.name == "transpose":
                places |= stems[node.params["permutation"][index]]
            elif len(given) == len(axes) and node.name not in ("dot_general", "gather"):
                places |= stems[index]
            else:
                places |= frozenset().union(*(s for s, other in zip(stems, given) if own & set(leaves(other))))
        all_places.append(places)
    return tuple(all_places)
