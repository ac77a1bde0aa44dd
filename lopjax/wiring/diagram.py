"""The wiring diagram as a whole: queries about it, and its application to the arrays of a network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lopjax.wiring.labels import Axis, Label, Path, Site, along


@dataclass(frozen=True)
class Wiring:
    """Labels of every array, size of every unit space, sites, and the spaces whose units cannot be cloned.

    Static and hashable, so it can be a static argument of a jitted function. Build it with `build_wiring`, which
    validates it.

    Attributes:
        labels: `(path, label)` of every array; a path starts with the collection, `("params", "hidden_0", "kernel")`.
        sizes: `(space, number of units)`.
        sites: `(name, Site)`, in the order of the forward pass.
        fixed: spaces whose units differ from one another: network inputs (never written), outputs (never read), and
            spaces that the model's author fixed.
        coupled: spaces over whose units something is averaged (layer norm): cloning them preserves the function only if
            all units have the same number of clones.
        reasons: `(space, why its units cannot be cloned)` of every space that is not cloneable. One that is not fixed
            either is *permutable*: its units may be exchanged, so equal ones stay equal under gradient descent, but
            repeating and dividing them does not preserve the function (queries and keys: their products would add up).
        coordinates: spaces that index the coordinates of larger units, as the width of an attention head does. Their
            units are cloned only if a factor names them; operations on a whole unit include its coordinates.
        above: `(site, sites whose activations can reach it)` where the program itself says so; otherwise the labels do.
    """

    labels: tuple[tuple[Path, Label], ...]
    sizes: tuple[tuple[str, int], ...]
    sites: tuple[tuple[str, Site], ...]
    fixed: frozenset[str]
    coupled: frozenset[str] = frozenset()
    reasons: tuple[tuple[str, str], ...] = ()
    coordinates: frozenset[str] = frozenset()
    above: tuple[tuple[str, tuple[str, ...]], ...] = ()

    @property
    def spaces(self) -> tuple[str, ...]:
        """Every unit space: inputs, hidden spaces in the order of the forward pass, then outputs."""
        return tuple(space for space, _ in self.sizes)

    @property
    def cloneable(self) -> tuple[str, ...]:
        """The spaces whose units may be cloned: repeated, and divided where they are read."""
        without = {space for space, _ in self.reasons}
        return tuple(space for space in self.permutable if space not in without)

    @property
    def cloned_by_default(self) -> tuple[str, ...]:
        """Spaces cloned when a single factor is given: the cloneable ones except coordinates of larger units."""
        return tuple(space for space in self.cloneable if space not in self.coordinates)

    @property
    def permutable(self) -> tuple[str, ...]:
        """The spaces whose units may be exchanged: all but the fixed ones."""
        return tuple(space for space in self.spaces if space not in self.fixed)

    def why_not_cloneable(self, space: str) -> str:
        """Why the units of a space cannot be cloned, as part of a message; empty if they can."""
        if space in self.cloneable:
            return ""
        state = "fixed" if space in self.fixed else "permutable, not cloneable"
        reason = dict(self.reasons).get(space)
        return state if reason is None else f"{state} ({reason})"

    def is_coordinate(self, axis: Axis) -> bool:
        """Whether an axis of an array does not index units, or indexes only coordinates of larger ones."""
        return axis is None or axis.space in self.coordinates

    def size(self, space: str) -> int:
        """Number of units of a space. Raises a ValueError that lists the spaces if there is no such space."""
        sizes = dict(self.sizes)
        if space not in sizes:
            raise ValueError(f"unit space {space!r}: not in this wiring; its spaces are {list(self.spaces)}")
        return sizes[space]

    def site(self, name: str) -> Site:
        """The site of that name. Raises a ValueError that lists the sites if there is none."""
        sites = dict(self.sites)
        if name not in sites:
            raise ValueError(f"site {name!r}: not in this wiring; its sites are {list(sites)}")
        return sites[name]

    def sites_of(self, space: str) -> tuple[str, ...]:
        """Names of the sites that write a space, in the order of the forward pass."""
        self.size(space)
        return tuple(name for name, site in self.sites if site.space == space)

    def upstream(self, site: str) -> tuple[str, ...]:
        """Names of the sites whose activations can reach a site, in the order of the forward pass.

        As read from the program (`above`), otherwise from the graph of labels: all earlier sites of the spaces from
        which arrays lead to the site's space. For a space with several sites these may be more than needed, but
        never fewer, provided that the order of the sites is that of the forward pass
        (`lopjax.models.check_wiring` tests this on the network).
        """
        reached = [self.site(site).space]
        if site in (above := dict(self.above)):
            return above[site]
        labels = dict(self.labels)
        for space in reached:  # grows during the iteration
            read = [each for path, _ in self.incoming(space) for each in labels[path].reads()]
            reached += [each for each in dict.fromkeys(read) if each not in reached]
        names = [name for name, _ in self.sites]
        return tuple(name for name in names[: names.index(site)] if self.site(name).space in reached)

    def incoming(self, space: str) -> tuple[tuple[Path, int], ...]:
        """`(path, axis)` of every output axis on the space, statistics included: a unit's incoming parameters."""
        return self._axes(space, is_read=False)

    def outgoing(self, space: str) -> tuple[tuple[Path, int], ...]:
        """`(path, axis)` of every input axis on the space: a unit's outgoing parameters."""
        return self._axes(space, is_read=True)

    def _axes(self, space: str, is_read: bool) -> tuple[tuple[Path, int], ...]:
        return tuple(
            (path, axis.index) for path, label in self.labels for axis in label.unit_axes((space,), is_read=is_read)
        )

    def map(self, function: Callable[..., Any], tree: Any, *rest: Any, partial: bool = False) -> Any:
        """Apply `function(label, array, *arrays)` to every labelled array.

        Args:
            function: called with the `Label` first.
            tree: parameters (the `"params"` collection) or variables (`{"params": ..., "batch_stats": ...}`).
            rest: further trees of the same structure.
            partial: as in `labels_of`.

        Returns:
            A tree like `tree`.

        Raises:
            ValueError: a path of the tree is not in the wiring, or a parameter of the wiring is not in the tree.
        """
        labels = self.labels_of(tree, partial)
        flat, structure = jax.tree.flatten(tree)
        others = [structure.flatten_up_to(other) for other in rest]
        return structure.unflatten([function(*args) for args in zip(labels, flat, *others, strict=True)])

    def labels_of(self, tree: Any, partial: bool = False) -> list[Label]:
        """The labels of a parameter or variable tree in the order of `jax.tree.leaves`; errors as in `map`.

        Args:
            tree: as in `map`.
            partial: accept a tree in which some arrays are replaced by `None` or an empty node, such as the
                `optax.MaskedNode` of `optax.masked`. Only for operations that work array by array.
        """
        prefix: Path = () if isinstance(tree, Mapping) and "params" in tree else ("params",)
        labels = dict(self.labels)
        paths = [prefix + path for path in tree_paths(tree)]
        expected = [path for path in labels if not prefix or path[0] == "params"]
        given = {*paths, *(prefix + path for path in _left_out(tree) if partial)}
        unknown = [path for path in paths if path not in labels]
        missing = [path for path in expected if path not in given]
        if any(path[-1:] == ("value",) and path[:-1] in labels for path in unknown):
            raise ValueError(
                "tree does not match the wiring: every array lies in a box, as in an nnx.State (its paths end in "
                f"'value': {'/'.join(unknown[0])}); pass flax.nnx.to_pure_dict(state)"
            )
        if whole := next((path for path in unknown if any(each[:-1] == path for each in missing)), None):
            pieces = ["/".join(path) for path in missing if path[:-1] == whole]
            raise ValueError(
                f"tree does not match the wiring: {'/'.join(whole)} is one array, of which the wiring has the pieces "
                f"{pieces}; pass model.view.split(...) of your own arrays"
            )
        if unknown or missing:
            raise ValueError(
                "tree does not match the wiring: "
                f"without a label {['/'.join(p) for p in unknown]}, missing {['/'.join(p) for p in missing]}; "
                "pass the parameters (or variables) of the model this wiring belongs to"
            )
        sizes = dict(self.sizes)
        for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
            expected = tuple(None if axis is None else sizes[axis.space] for axis in labels[path].axes)
            shape = getattr(leaf, "shape", expected)
            if len(shape) != len(expected) or any(n not in (None, size) for n, size in zip(expected, shape)):
                raise ValueError(
                    f"tree does not match the wiring: {'/'.join(path)} has shape {tuple(shape)}, "
                    f"its unit spaces require {expected} (None: any); pass the parameters (or variables) of the model "
                    "this wiring belongs to, one network at a time (vmap over several)"
                )
            if isinstance(leaf, str | bytes) or getattr(leaf, "dtype", np.dtype(float)).kind in "USO":
                kind = getattr(leaf, "dtype", type(leaf).__name__)
                raise ValueError(f"{'/'.join(path)} holds no numbers but {kind}: parameters must be arrays of numbers")
        return [labels[path] for path in paths]


def tree_paths(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[Path]:
    """Key path of every leaf of a nested dict, as strings, in the order of `jax.tree.leaves`."""
    keyed, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf)
    return [tuple(str(getattr(key, "key", getattr(key, "name", key))) for key in path) for path, _ in keyed]


def tree_from_paths(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dict with these leaves: the inverse of `tree_paths`."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        branch = tree
        for key in path[:-1]:
            branch = branch.setdefault(key, {})
        branch[path[-1]] = leaf
    return tree


def _left_out(tree: Any) -> list[Path]:
    """The paths of the empty nodes of a tree: `None` and empty tuples, including `optax.MaskedNode`."""

    def is_empty(node: Any) -> bool:
        return node is None or (isinstance(node, tuple) and not node)

    paths = tree_paths(tree, is_empty)
    nodes = jax.tree.leaves(tree, is_leaf=is_empty)
    return [path for path, node in zip(paths, nodes, strict=True) if is_empty(node)]


def multiplicity(label: Label, factors: Mapping[str, int | tuple[int, ...]]) -> tuple[Any, Any]:
    """`(n_in, n_out)`: the product of the clone factors over the input axes and over the output axes of an array.

    Args:
        label: label of the array.
        factors: number of clones per space: one number, or one for every unit.

    Returns:
        Two Python ints or, if numbers differ between the units of a space, integer arrays that broadcast against the
        array that is cloned.
    """

    def product(is_read: bool) -> Any:
        factor: Any = 1
        for axis, space, _ in label.unit_axes(factors, is_read=is_read):
            n = factors[space]
            factor = factor * (n if isinstance(n, int) else along(np.asarray(n), axis, len(label.axes)))
        return factor

    return product(is_read=True), product(is_read=False)
