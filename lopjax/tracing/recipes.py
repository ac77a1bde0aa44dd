"""Clonings beyond the rule that readers are divided: exponents for every array, from a sparse linear system.

Cloning a space n times multiplies every value by a power of n, a linear form in the exponents of the parameters
(`lopjax.tracing.degrees`). The divide rule asks for exponents 0 (written) and -1 (read). Where it fails others may
keep the function all the same: a tied embedding with the factor in the last norm's scale, a normalised kernel with
n^(-1/2) in the gain behind it, a mean over two spaces that have the same factor.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import LinearConstraint, milp
from scipy.sparse import csr_array

from lopjax.tracing.atoms import Atom
from lopjax.tracing.degrees import Condition, Unknown
from lopjax.wiring import Label, Path

_OWN, _WHOLE = 1.0, 3.0
"""Costs of a change: an exponent of an array that has the space is preferred to one of an array that has not."""


class Recipe(NamedTuple):
    """How a space that the divide rule does not clone is cloned.

    Attributes:
        together: the spaces that must have the same factor n, this one among them.
        exponents: arrays that are multiplied by n to this power once their units are repeated; of others it is 0.
    """

    together: tuple[str, ...]
    exponents: tuple[tuple[Path, Fraction], ...]

    def words(self, space: str, labels: Mapping[Path, Label]) -> str:
        """What the divide rule does not say: the other spaces, and the arrays with another power."""
        exponents = dict(self.exponents)
        others = [name for name in self.together if name != space]
        parts = [f"together with {', '.join(map(repr, others))}"] if others else []
        for path, label in labels.items():
            by_rule = -sum(axis.is_read for axis in label.unit_axes(self.together))
            if (power := exponents.get(path, Fraction(0))) != by_rule:
                parts.append(f"{'/'.join(path[1:])} times n^({power})" if power else f"{'/'.join(path[1:])} repeated")
        return "; ".join(parts)


def groups_of(failures: Collection[Atom], meetings: Iterable[frozenset[Atom]]) -> list[frozenset[Atom]]:
    """Sets of leaves that may be cloned together where none can be alone: those whose powers meet in one place."""
    met = {chosen for leaves in meetings if len(chosen := leaves & frozenset(failures)) > 1}
    connected: list[frozenset[Atom]] = []
    for leaves in met:
        touching = [group for group in connected if group & leaves]
        connected = [group for group in connected if group not in touching] + [leaves.union(*touching)]
    return connected


def solve(conditions: Sequence[Condition], canonical: Callable[[Unknown], int]) -> dict[Unknown, Fraction] | None:
    """Exponents at which all conditions vanish, with as little change of the canonical ones as possible.

    The changes `d` of the exponents solve `A d = -(A c + b)`, with a row for each condition, and minimise a weighted
    sum of their sizes (a linear program, whose solutions at vertices are sparse). What it finds is rounded to
    fractions and put into the conditions once more, exactly.

    Args:
        conditions: powers that must be 0.
        canonical: exponent of each unknown by the divide rule.

    Returns:
        Exponents other than 0; None if there are none that satisfy the conditions.
    """
    rows = list(dict.fromkeys((_exact(each.form.number), each.form.terms) for each in conditions))
    unknowns = sorted({unknown for _, terms in rows for unknown, _ in terms})
    if not unknowns:
        return None
    column = {unknown: index for index, unknown in enumerate(unknowns)}
    entries = [(row, column[u], float(c)) for row, (_, terms) in enumerate(rows) for u, c in terms]
    where_row, where_column, values = (np.array(each) for each in zip(*entries, strict=True))
    start = np.array([canonical(unknown) for unknown in unknowns], float)
    matrix = csr_array((values, (where_row, where_column)), (len(rows), len(unknowns)))
    missing: Any = -(matrix @ start + np.array([float(number) for number, _ in rows]))
    costs = np.array([_WHOLE if position < 0 else _OWN for _, position in unknowns])
    both = csr_array(np.hstack([matrix.toarray(), -matrix.toarray()]))
    solution = milp(np.concatenate([costs, costs]), constraints=LinearConstraint(both, missing, missing))
    if solution.x is None:
        return None
    up, down = np.split(solution.x, 2)
    exponents = {u: _exact(float(power)) for u, power in zip(unknowns, start + up - down, strict=True)}
    if any(number + sum(_exact(c) * exponents[u] for u, c in terms) for number, terms in rows):
        return None
    return {unknown: power for unknown, power in exponents.items() if power}


def _exact(number: float | int) -> Fraction:
    return Fraction(number).limit_denominator(48)


def cloned(
    arrays: Mapping[Path, Any],
    labels: Mapping[Path, Label],
    copies: Mapping[str, int],
    recipes: Mapping[str, Recipe],
) -> dict[Path, Any]:
    """Arrays with units repeated, and divided or multiplied as the rule or a recipe says.

    Args:
        arrays: arrays of NumPy or JAX, in the order of their labels.
        labels: labels of the arrays.
        copies: how many clones of each unit, per space; equal in spaces that are cloned together.
        recipes: recipes of the spaces that have one.
    """
    made = {}
    once = {recipes[space].together: n for space, n in copies.items() if space in recipes}
    powers = {together: dict(recipes[together[0]].exponents) for together in once}
    for path, array in arrays.items():
        factor = 1.0
        for axis in labels[path].unit_axes(copies):
            array = array.repeat(copies[axis.space], axis.index)
            if axis.is_read and axis.space not in recipes:
                factor /= copies[axis.space]
        for together, n in once.items():
            factor *= n ** float(powers[together].get(path, 0))
        made[path] = array * factor if factor != 1.0 else array
    return made
