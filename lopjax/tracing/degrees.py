"""Dimensional analysis of cloning: how every value scales when the units of a space are cloned n times.

In the cloned network each value is the base network's, repeated, times a power of n. Parameters have the power 0 where
they write a space (`Out`) and -1 where they read it (`In`: they are divided). A sum over the space adds 1, powers of
factors add, terms of a sum need equal powers, and nonlinear functions and the outputs need the power 0. Which axes
of which parameters are `In` is unknown until something is contracted with them: powers are linear forms in these
unknowns, and the forms that must vanish are collected. A space all of whose conditions hold is cloneable; for any
other the failing equation is reported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from lopjax.tracing.atoms import Atom
from lopjax.tracing.jaxprs import Node

Unknown = tuple[int, int]
"""Number of a parameter's piece, and one of its leaves."""


Number = float | int

Place = tuple[int, int]
"""Number of a parameter, and of one of its axes."""


class Form(NamedTuple):
    """A power of n: a number plus multiples of unknowns, each of which is -1 (`In`) or 0 (`Out`).

    Attributes:
        number: the constant.
        terms: `(unknown, coefficient)`.
        origin: where the constant first became other than 0.
    """

    number: Number
    terms: tuple[tuple[Unknown, Number], ...]
    origin: Node | None = None

    def times(self, factor: Number) -> "Form":
        """A multiple."""
        return Form(self.number * factor, tuple((u, c * factor) for u, c in self.terms), self.origin)

    def plus(self, other: "Form", node: Node | None = None) -> "Form":
        """A sum; `node` is its origin if this is the first operation with a nonzero power."""
        terms = dict(self.terms)
        for unknown, coefficient in other.terms:
            terms[unknown] = terms.get(unknown, 0) + coefficient
        kept = tuple(sorted((u, c) for u, c in terms.items() if c))
        return Form(self.number + other.number, kept, self.origin or other.origin or node)

    def value(self, read: set[Unknown]) -> Number:
        """The power if these unknowns are `In` and all others `Out`."""
        return self.number - sum(c for u, c in self.terms if u in read)

    @property
    def vanishes(self) -> bool:
        """Whether it is 0 whatever the unknowns are."""
        return not self.terms and not self.number


Places = frozenset[Place]

Powers = dict[Atom, Form]
"""Nonzero powers, per leaf."""

ANY = None
"""`None`: the powers of zeros and infinities, which equal any multiple of themselves and so have no definite power."""


class Condition(NamedTuple):
    """A power that must be 0.

    Attributes:
        form: the power, or a difference of two that must be equal.
        node: the equation; None for the outputs.
        is_sum: whether two terms meet.
    """

    form: Form
    node: Node | None
    is_sum: bool


@dataclass
class Ledger:
    """The findings of a pass over the program.

    Attributes:
        conditions: per leaf, what must vanish for it to be cloneable.
        read: the unknowns that are `In`.
        pairs: parameters that are contracted with parameters: one of the two is `In`.
        candidates: per leaf, unknowns that may be `In` if the canonical choice fails: multiplied, then summed.
        coupled: the leaves of sums that no division of a parameter can compensate.
        factors: the unknowns of parameters that were multiplied with something entry by entry.
        forced: the leaves whose `In` are prescribed; None if all are to be found.
        joined: leaves that are cloned together, with the one that stands for all of them.
        meetings: sets of leaves whose powers met in one place where none may be left.
        places: the parameter and the axis that each unknown belongs to.
    """

    conditions: dict[Atom, list[Condition]] = field(default_factory=dict)
    read: set[Unknown] = field(default_factory=set)
    pairs: list[tuple[Atom, Form, Form]] = field(default_factory=list)
    candidates: dict[Atom, set[Unknown]] = field(default_factory=dict)
    coupled: set[Atom] = field(default_factory=set)
    factors: set[Unknown] = field(default_factory=set)
    forced: Mapping[Atom, frozenset[Unknown]] | None = None
    joined: Mapping[Atom, Atom] = field(default_factory=dict)
    meetings: set[frozenset[Atom]] = field(default_factory=set)
    places: dict[Unknown, Place] = field(default_factory=dict)

    def key(self, leaf: Atom) -> Atom:
        """The leaf that stands for all those cloned together with this one."""
        return self.joined.get(leaf, leaf)

    def copy(self) -> "Ledger":
        """A copy, to which the pass can return."""
        conditions = {leaf: list(each) for leaf, each in self.conditions.items()}
        candidates = {leaf: set(each) for leaf, each in self.candidates.items()}
        return replace(
            self,
            conditions=conditions,
            read=set(self.read),
            pairs=list(self.pairs),
            candidates=candidates,
            coupled=set(self.coupled),
            factors=set(self.factors),
            meetings=set(self.meetings),
        )

    def simplified(self, form: Form) -> Form:
        """The form with the unknowns that are known to be `In` substituted."""
        known = [c for u, c in form.terms if u in self.read]
        if not known:
            return form
        kept = tuple((u, c) for u, c in form.terms if u not in self.read)
        return Form(form.number - sum(known), kept, form.origin)

    def must_vanish(self, leaf: Atom, form: Form, node: Node | None, is_sum: bool = False) -> None:
        """Note a condition; a pinned leaf needs none."""
        if leaf.reason is None and not self.simplified(form).vanishes:
            self.conditions.setdefault(leaf, []).append(Condition(form, node, is_sum))

    def same(self, node: Node | None, one: Powers | None, other: Powers | None) -> Powers | None:
        """Require that two terms of a sum have the same powers."""
        if one is None or other is None:
            return other if one is None else one
        unequal = set()
        for leaf in {*one, *other}:
            a, b = one.get(leaf, _ZERO), other.get(leaf, _ZERO)
            if a.number != b.number or a.terms != b.terms:
                self.must_vanish(leaf, a.plus(b.times(-1)), node, is_sum=True)
                unequal.add(leaf)
        self.meetings.add(frozenset(unequal))
        return one

    def none(self, node: Node | None, powers: Powers | None) -> Powers:
        """Require that the operands of a nonlinear operation have no powers; its result has none."""
        for leaf, form in (powers or {}).items():
            self.must_vanish(leaf, form, node)
        self.meetings.add(frozenset(powers or ()))
        return {}

    def product(self, one: Powers | None, other: Powers | None, sign: int = 1) -> Powers | None:
        """Powers of a product, or (sign -1) of a quotient."""
        if one is None or (other is None and sign > 0):
            return None
        if not other:
            return one
        made = dict(one)
        for leaf, form in other.items():
            self._put(made, leaf, made.get(leaf, _ZERO).plus(form.times(sign)))
        return made

    def power(self, powers: Powers | None, exponent: Number) -> Powers | None:
        """Powers of a power."""
        return powers if powers is None else {leaf: form.times(exponent) for leaf, form in powers.items() if exponent}

    def counted(self, powers: Powers | None, leaves: Iterable[Atom], node: Node, by: int = 1) -> Powers | None:
        """Powers after a sum over leaves (or, with -1, after the division that turns a sum into a mean)."""
        if powers is None:
            return None
        made = dict(powers)
        for leaf in map(self.key, leaves):
            if self.forced is not None and leaf not in self.forced:
                continue
            if leaf.reason is None:
                self._put(made, leaf, made.get(leaf, _ZERO).plus(Form(by, ()), node))
            else:
                made.pop(leaf, None)
        return made

    def _put(self, powers: Powers, leaf: Atom, form: Form) -> None:
        form = self.simplified(form)
        if form.vanishes:
            powers.pop(leaf, None)
        else:
            powers[leaf] = form

    # --- What contracts with what --------------------

    def contracted(
        self,
        one: Powers | None,
        other: Powers | None,
        leaves: tuple[Atom, ...],
        is_data: tuple[bool, bool],
        summed: tuple[Places, Places],
        node: Node,
    ) -> Powers | None:
        """Powers of one term of a contraction over leaves.

        Args:
            one: powers of the first factor.
            other: powers of the second.
            leaves: what is summed over.
            is_data: for each factor, whether it depends on the network's inputs.
            summed: for each factor, the parameter axes from which the axes summed over stem.
            node: the equation.
        """
        if one is None or other is None:
            return None
        for leaf in leaves if self.forced is None else ():
            a, b = one.get(leaf, _ZERO), other.get(leaf, _ZERO)
            if is_data[0] == is_data[1]:
                if is_data[0] or not (a.terms or b.terms):
                    self.coupled.add(leaf)
                if not is_data[0]:
                    self.pairs.append((leaf, a, b))
                continue
            parameters, places = (b, summed[1]) if is_data[0] else (a, summed[0])
            self._read(parameters, places)
            if not parameters.terms:
                self.coupled.add(leaf)
        return self.counted(self.product(one, other), leaves, node)

    def _read(self, form: Form, places: Places) -> None:
        """Mark parameters contracted with data as `In`; of two axes with the same space, only the contracted one."""
        for piece in {unknown[0] for unknown, _ in form.terms}:
            own = [unknown for unknown, _ in form.terms if unknown[0] == piece]
            here = [unknown for unknown in own if self.places[unknown] in places]
            self.read.update(here or own[:1])

    # --- The end: which choice of unknowns makes everything vanish --------------------

    def settle(self) -> dict[Atom, Condition]:
        """Decide the open unknowns leaf by leaf; returns the failing condition of each leaf that cannot be cloned."""
        for leaf, one, other in self.pairs:
            self._decide(leaf, one, other)
        failed = {leaf: _first_failure(conditions, self.read) for leaf, conditions in self.conditions.items()}
        return {leaf: condition for leaf, condition in failed.items() if condition is not None}

    def _decide(self, leaf: Atom, one: Form, other: Form) -> None:
        """Of two parameters contracted with each other divide one: the one that already reads, or else the second."""
        a, b = ([u for u, _ in form.terms] for form in (one, other))
        if self.forced is not None or leaf.reason is not None or any(u in self.read for u in (*a, *b)):
            return
        chosen = b or a
        for mine, others in ((a, b), (b, a)):
            # The factor nearer to the output reads the space: the other one already reads the input side.
            is_first = {piece for piece, _ in mine} & {piece for piece, _ in self.read}
            if is_first and others and not {piece for piece, _ in others} & {piece for piece, _ in self.read}:
                chosen = others
        self.read.update(chosen)


_ZERO = Form(0, ())


def _first_failure(conditions: list[Condition], read: set[Unknown]) -> Condition | None:
    return next((each for each in conditions if abs(each.form.value(read)) > 1e-9), None)
