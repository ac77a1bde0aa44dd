"""Unit spaces of a typed program: their names, their state, and the labels of every piece of every parameter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lopjax.arguments.integers import as_integer
from lopjax.model import Variables
from lopjax.tracing.atoms import Atom, Position, find
from lopjax.tracing.cloning import Cloning
from lopjax.tracing.degrees import Condition
from lopjax.tracing.jaxprs import Program, walk, words
from lopjax.tracing.recipes import Recipe, cloned
from lopjax.tracing.types import INPUT, OUTPUT, Typing
from lopjax.tracing.view import Layout, Run, factors, runs_of_pieces
from lopjax.wiring import Axis, In, Label, Out, Path, Wiring, at_path, tree_from_paths, tree_paths

UNUSED = "the output does not depend on it"
CLONEABLE, PERMUTABLE, FIXED = "cloneable", "permutable", "fixed"
AN_INPUT, AN_OUTPUT = "a network input", "a network output"


class Space(NamedTuple):
    """A unit space that was found.

    Attributes:
        name: its name.
        size: number of units.
        state: `"cloneable"`, `"permutable"` or `"fixed"`.
        reason: why it is not cloneable; empty if it is.
        is_coupled: whether something is averaged over its units.
        recipe: how it is cloned by other powers than the divide rule's, if it can be.
    """

    name: str
    size: int
    state: str
    reason: str
    is_coupled: bool
    recipe: Recipe | None = None

    @property
    def can_be_cloned(self) -> bool:
        """Whether its units can be cloned, by the divide rule or by a recipe."""
        return self.state == CLONEABLE or self.recipe is not None


@dataclass(frozen=True)
class Diagram:
    """The findings about the parameters of one program; static, and equal for all batch sizes.

    Attributes:
        spaces: in the order in which they are first written.
        layouts: how each parameter is cut, in the order of `jax.tree.leaves`.
        paths: paths of the pieces of each parameter.
        labels: label of each piece.
        no_site: why no site is known that all the array does passes, for each piece that names none.
        no_source: why a kernel that names a site does not make its pre-activation alone.
        above: for every site those whose activations can reach it.
    """

    spaces: tuple[Space, ...]
    layouts: tuple[Layout, ...]
    paths: tuple[tuple[Path, ...], ...]
    labels: tuple[tuple[Path, Label], ...]
    no_site: tuple[tuple[Path, str], ...] = ()
    no_source: tuple[tuple[Path, str], ...] = ()
    above: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def agrees_with(self, other: "Diagram") -> bool:
        """Whether two networks have the same axes; sites are looked for in one of them."""
        axes = [[(path, label.axes) for path, label in each.labels] for each in (self, other)]
        return axes[0] == axes[1]

    def without_axes(self, axes: Mapping[Path, Sequence[int]]) -> "Diagram":
        """The same without the labels of some axes, which index no units; spaces that no axis has are left out."""
        labels = tuple(
            (path, replace(label, axes=tuple(None if i in axes.get(path, ()) else a for i, a in enumerate(label.axes))))
            for path, label in self.labels
        )
        left = {axis.space for _, label in labels for axis in label.axes if axis is not None}
        had = {axis.space for _, label in self.labels for axis in label.axes if axis is not None}
        spaces = tuple(space for space in self.spaces if space.name in left or space.name not in had)
        inputs = [space.name for space in spaces if space.name.startswith("input_")]
        if any(axes.values()) and len(inputs) == 1 and "input" not in left:
            return replace(self, labels=labels, spaces=spaces)._renamed(inputs[0], "input")
        return replace(self, labels=labels, spaces=spaces)

    def _renamed(self, old: str, new: str) -> "Diagram":
        labels = tuple(
            (path, replace(label, axes=tuple(In(new) if axis == In(old) else axis for axis in label.axes)))
            for path, label in self.labels
        )
        spaces = tuple(space._replace(name=new) if space.name == old else space for space in self.spaces)
        return replace(self, labels=labels, spaces=spaces)


def describe(
    typing: Typing, cloning: Cloning, paths: Sequence[Path], names: Mapping[str, str], fixed: Sequence[str]
) -> tuple[Diagram, dict[Atom, str]]:
    """Name the spaces and label the pieces; also the space of every free leaf of a parameter.

    Args:
        typing: types of the program.
        cloning: which leaves can be cloned, and what is divided.
        paths: paths of the parameters.
        names: other names for some spaces.
        fixed: names of the spaces that the user fixes.
    """
    values = typing.program.block.inputs[: len(paths)]
    used = _in_order_of_use(typing.program, values)
    pieces = [list(runs_of_pieces(typing.of(value))) for value in values]
    first = _numbers(pieces)
    roles = {
        (index, number): _roles(piece, first[index] + number, cloning)
        for index, each in enumerate(pieces)
        for number, piece in enumerate(each)
    }
    spaces: dict[Run, str] = {}
    for index in sorted(range(len(paths)), key=lambda index: (used[index], index)):
        for number, piece in enumerate(pieces[index]):
            _name(spaces, paths[index], piece, roles[index, number])
    _name_the_rest(spaces, paths, pieces, used)
    spaces = {run: names.get(name, name) for run, name in spaces.items()}
    layouts = tuple(Layout(tuple(factors(axis, spaces) for axis in typing.of(value))) for value in values)
    labelled = []
    piece_paths = []
    for index, each in enumerate(pieces):
        own = []
        for number, piece in enumerate(each):
            axes = tuple(_axis(spaces.get(run), role) for run, role in zip(piece, roles[index, number], strict=True))
            path = paths[index] if len(each) == 1 else (*paths[index], _piece_name(axes, own))
            own.append(path[-1])
            labelled.append((path, Label(axes)))
        piece_paths.append(tuple(path for path, _ in labelled[len(labelled) - len(each) :]))
    is_used = {
        run: any(used[i] < len(values) for i, e in enumerate(pieces) if any(run in p for p in e)) for run in spaces
    }
    states = tuple(_space(run, name, cloning, fixed, is_used[run]) for run, name in spaces.items())
    atoms = {run[0]: name for run, name in spaces.items() if run[0].reason is None}
    states = _with_recipes(states, cloning, dict(zip(atoms.values(), atoms, strict=True)), labelled)
    return Diagram(states, layouts, tuple(piece_paths), tuple(labelled)), atoms


def _numbers(pieces: Sequence[Sequence[Any]]) -> list[int]:
    """The index of the first piece of each parameter."""
    first = [0]
    for each in pieces:
        first.append(first[-1] + len(each))
    return first


def _roles(piece: tuple[Run, ...], number: int, cloning: Cloning) -> list[bool]:
    """Whether each run is read; for a pinned one, whether its first leaf is."""
    roles, position = [], 0
    for run in piece:
        roles.append((number, position) in cloning.read)
        position += len(run)
    return roles


def _axis(space: str | None, is_read: bool) -> Axis:
    if space is None:
        return None
    return In(space) if is_read else Out(space)


def _in_order_of_use(program: Program, values: Sequence[int]) -> list[int]:
    """For each parameter, the order of its first use; their number if it is never used."""
    order: dict[int, int] = {}
    for node in walk(program.block):
        if not node.is_call:
            for value in node.inputs:
                order.setdefault(value, len(order))
    ranks = {value: rank for rank, value in enumerate(value for value in order if value in set(values))}
    return [ranks.get(value, len(values)) for value in values]


def _is_place(run: Run) -> bool:
    """Whether the entries are positions, or a single entry, rather than units."""
    return not run or (
        all(leaf.reason is not None for leaf in run)
        and (any(isinstance(leaf.reason, Position) for leaf in run) or len({leaf.reason for leaf in run}) > 1)
    )


def _name(spaces: dict[Run, str], path: Path, piece: tuple[Run, ...], roles: list[bool]) -> None:
    """Name the spaces that a kernel writes after that kernel, and the spaces of the network's inputs and outputs."""
    if not any(roles) and sum(map(bool, piece)) < 2:
        return
    written = [run for run, is_read in zip(piece, roles, strict=True) if not is_read and not _is_place(run)]
    for run in (run for run, is_read in zip(piece, roles, strict=True) if is_read and run and run[0].reason == INPUT):
        if run not in spaces and not _is_place(run):
            spaces[run] = _unique(spaces, "input")
    new = [run for run in written if run not in spaces]
    for index, run in enumerate(new):
        base = "/".join(_module(path)) + (f".{index}" if len(new) > 1 else "")
        spaces[run] = _unique(spaces, base)


def _name_the_rest(
    spaces: dict[Run, str], paths: Sequence[Path], pieces: Sequence[Sequence[tuple[Run, ...]]], used: Sequence[int]
) -> None:
    """Name the spaces that nothing has named, after the module of the array that uses them first.

    Args:
        spaces: names so far, by the leaves of the axis; added to.
        paths: path of every array.
        pieces: leaves of each axis of each piece of every array.
        used: when each array is used first.
    """
    for index in sorted(range(len(paths)), key=lambda index: (used[index], index)):
        for piece in pieces[index]:
            for run in piece:
                if run not in spaces and not _is_place(run):
                    spaces[run] = _unique(spaces, "/".join(_module(paths[index])))


_ARRAYS = words("kernel bias scale offset weight w b embedding mean var")


def _module(path: Path) -> Path:
    """The path without the collection, and without the array's name if a module's name remains."""
    inner = path[1:]
    return inner[:-1] if len(inner) > 1 and inner[-1] in _ARRAYS else inner


def _unique(spaces: dict[Run, str], base: str) -> str:
    taken = set(spaces.values())
    return next(name for index in range(len(taken) + 2) if (name := f"{base}_{index}" if index else base) not in taken)


def _piece_name(axes: Sequence[Axis], taken: Sequence[str]) -> str:
    base = "_".join(axis.space.replace("/", "_") for axis in axes if axis is not None) or "rest"
    return next(n for index in range(len(taken) + 2) if (n := f"{base}_{index}" if index else base) not in taken)


def _space(run: Run, name: str, cloning: Cloning, fixed: Sequence[str], is_used: bool) -> Space:
    size = 1
    for leaf in run:
        size *= leaf.size
    leaf = find(run[0])
    coupled = leaf in cloning.coupled
    if leaf.reason is not None:
        known = {INPUT: AN_INPUT, OUTPUT: AN_OUTPUT}
        return Space(name, size, FIXED, known.get(leaf.reason, leaf.reason), False)
    if name in fixed:
        return Space(name, size, FIXED, "fixed by the caller", False)
    if not is_used:
        return Space(name, size, PERMUTABLE, UNUSED, coupled)
    if leaf in cloning.failures:
        return Space(name, size, PERMUTABLE, why(cloning.failures[leaf], cloning.read), coupled)
    return Space(name, size, CLONEABLE, "", coupled)


def _with_recipes(
    spaces: Sequence[Space], cloning: Cloning, atoms: Mapping[str, Atom], labelled: Sequence[tuple[Path, Label]]
) -> tuple[Space, ...]:
    """The spaces, with the other clonings of those that the divide rule does not clone."""
    permutable = {atoms[space.name]: space.name for space in spaces if space.state == PERMUTABLE}
    made = []
    for space in spaces:
        solved = cloning.others.get(atoms[space.name]) if space.name in permutable.values() else None
        if solved is None or not permutable.keys() >= set(solved[0]):
            made.append(space)
            continue
        members, exponents = solved
        names = tuple(permutable[leaf] for leaf in members)
        recipe = Recipe(names, tuple((labelled[piece][0], power) for piece, power in sorted(exponents.items())))
        words = recipe.words(space.name, dict(labelled))
        reason = f"{space.reason}; `Traced.clone` can clone it: {words}"
        made.append(space._replace(recipe=recipe, reason=reason))
    return tuple(made)


def why(condition: Condition, read: set[Any]) -> str:
    """A failing condition in words."""
    value = condition.form.value(read)
    met = "the output" if condition.node is None else condition.node.where
    grown = f"n^{value:g} times as large with n clones of each unit"
    if condition.is_sum and condition.form.terms:
        return f"a term that is divided by the number of clones and one that is not meet at {met}"
    if condition.form.origin is None:
        return f"{grown} where it meets {met}"
    return f"{grown} after {condition.form.origin.where}, met by {met}"


# --- Clones --------------------------------------


def factors_of(spaces: Sequence[Space], factors: int | Mapping[str, int]) -> dict[str, int]:
    """The number of clones of each space.

    Raises:
        ValueError: as in `Traced.clone`.
    """
    by_name = {space.name: space for space in spaces}
    if not isinstance(factors, Mapping):
        factors = {space.name: factors for space in spaces if space.can_be_cloned}
    copies = {}
    for name, n in factors.items():
        if name not in by_name:
            raise ValueError(f"factors: no unit space {name!r}; the spaces are {list(by_name)}")
        if not by_name[name].can_be_cloned:
            raise ValueError(f"factors[{name!r}]: its units cannot be cloned: {by_name[name].reason}")
        copies[name] = as_integer(n, 1, f"factors[{name!r}]={n!r}: must be a positive integer")
    for name in copies:
        recipe = by_name[name].recipe
        if recipe is not None and len({copies.get(other, 1) for other in recipe.together}) > 1:
            given = {other: copies.get(other, 1) for other in recipe.together}
            raise ValueError(f"factors {given}: these spaces must be cloned by the same factor")
    return copies


def cloned_variables(
    variables: Variables, wiring: Wiring, copies: Mapping[str, int], spaces: Sequence[Space]
) -> Variables:
    """Variables of the wide network, from those of the network itself; of parameters alone, parameters."""
    recipes = {space.name: space.recipe for space in spaces if space.recipe is not None}
    whole = variables if "params" in variables else {"params": variables}
    arrays = {path: at_path(whole, path) for path in tree_paths(whole)}
    wide = tree_from_paths(cloned(arrays, dict(wiring.labels), copies, recipes))
    return wide if "params" in variables else wide["params"]
