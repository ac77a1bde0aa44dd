"""A view of a network in which every axis of every array indexes one unit space or none.

Fused, concatenated and flattened arrays have axes that index several spaces: concatenated queries, keys and values, the
features of two layers, heads times their width. `split` cuts them into pieces by slices and reshapes, and `merge`
reassembles them. Both only reorder coordinates, so inner products, gradients and Hessians are those of the network as
its author wrote it. Rules that depend on whole arrays (the norm of an array, Muon, Adafactor) should act on the
author's arrays: merge first, or wrap the optimizer in `lopjax.optim.on_own_arrays`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lopjax.wiring.labels import Axis, CompoundLabel, In, Label, Out, Path, axis_factors, axis_parts


class View(NamedTuple):
    """Two functions on trees of parameters, variables, gradients or masks.

    Attributes:
        split: from the author's arrays to pieces with pure axes; a piece is stored under the array's path and its own
            name.
        merge: its inverse.
    """

    split: Callable[[Any], Any]
    merge: Callable[[Any], Any]


def _same(tree: Any) -> Any:
    return tree


IDENTITY = View(_same, _same)
"""The view of a network without compound arrays."""


class Segment(NamedTuple):
    """A segment of one axis: a row-major product of pure axes.

    Attributes:
        name: name of the pieces that it makes; empty if the whole axis is one.
        axes: label of each factor.
        sizes: sizes of the factors.
    """

    name: str
    axes: tuple[Axis, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """The segments of each axis of one array."""

    axes: tuple[tuple[Segment, ...], ...]

    def pieces(self) -> Iterator[tuple[str, tuple[Segment, ...], tuple[slice, ...]]]:
        """Name, segments and slices of every piece, row-major."""
        stretches = []
        for segments in self.axes:
            ends = np.cumsum([0, *(prod(segment.sizes) for segment in segments)]).tolist()
            stretches.append([(each, slice(*ends[i : i + 2])) for i, each in enumerate(segments)])
        for chosen in product(*stretches):
            named = [segment.name for segment, _ in chosen if segment.name]
            yield "-".join(named), tuple(segment for segment, _ in chosen), tuple(place for _, place in chosen)

    def split(self, array: Any) -> dict[str, Any]:
        """The pieces by name, each with one axis per factor."""
        return {
            name: array[places].reshape([size for segment in segments for size in segment.sizes])
            for name, segments, places in self.pieces()
        }

    def merge(self, pieces: Mapping[str, Any]) -> Any:
        """The array assembled from the pieces."""
        flat = [
            pieces[name].reshape([prod(segment.sizes) for segment in segments]) for name, segments, _ in self.pieces()
        ]
        join = np.concatenate if all(isinstance(piece, np.ndarray) for piece in flat) else jnp.concatenate
        # The last axis first: its segments are neighbours in the list.
        for axis in reversed(range(len(self.axes))):
            n = len(self.axes[axis])
            flat = [flat[i] if n == 1 else join(flat[i : i + n], axis) for i in range(0, len(flat), n)]
        (array,) = flat
        return array


def make_view(
    labels: Mapping[Path, Label | CompoundLabel | None], shapes: Mapping[Path, tuple[int, ...]]
) -> tuple[View, dict[Path, Label | None], dict[Path, tuple[int, ...]]]:
    """The view of a network, and the labels and shapes of its pieces.

    Args:
        labels: label of every array, compound or not.
        shapes: shape of every array.

    Returns:
        The view (`IDENTITY` if no label is compound), pure labels, and their shapes.

    Raises:
        ValueError: parts whose sizes cannot be determined, or do not add up to the axis.
    """
    compound = {path: label for path, label in labels.items() if isinstance(label, CompoundLabel)}
    pure: dict[Path, Label | None] = {
        path: label for path, label in labels.items() if not isinstance(label, CompoundLabel)
    }
    if not compound:
        return IDENTITY, pure, dict(shapes)
    sizes = _sizes(labels, shapes)
    cuts = {path: _cut(path, label, shapes[path], sizes) for path, label in compound.items()}
    seen = {path: shape for path, shape in shapes.items() if path not in cuts}
    for path, cut in cuts.items():
        for name, segments, _ in cut.pieces():
            pure[*path, name] = _pure(compound[path], segments)
            seen[*path, name] = tuple(size for segment in segments for size in segment.sizes)
    # In the order of the arrays that they come from.
    order = {path: index for index, path in enumerate(labels)}
    ranked = sorted(pure, key=lambda path: order.get(path, order.get(path[:-1], 0)))
    split = lambda tree: _changed(tree, cuts, Cut.split)  # noqa: E731
    merge = lambda tree: _changed(tree, cuts, Cut.merge)  # noqa: E731
    return View(split, merge), {path: pure[path] for path in ranked}, seen


def _changed(tree: Any, cuts: Mapping[Path, Cut], change: Callable[[Cut, Any], Any]) -> Any:
    """The tree with a change applied at the paths that are cut; other branches are shared."""
    prefix: Path = () if isinstance(tree, Mapping) and "params" in tree else ("params",)

    def at(branch: Any, path: Path) -> Any:
        if path in cuts:
            return change(cuts[path], branch)
        if isinstance(branch, Mapping) and any(cut[: len(path)] == path for cut in cuts):
            return {key: at(value, (*path, str(key))) for key, value in branch.items()}
        return branch

    return at(tree, prefix)


def _pure(label: CompoundLabel, segments: tuple[Segment, ...]) -> Label:
    """The label of a piece, with those sites and sources of its array that are on the piece's spaces."""
    axes = tuple(axis for segment in segments for axis in segment.axes)
    writes = [axis.space for axis in axes if isinstance(axis, Out)]
    reads = [axis.space for axis in axes if isinstance(axis, In)]
    site = next((site for space, site in label.sites if space in writes), None)
    source = next((source for space, source in label.sources if space in reads), None)
    return Label(axes, site, source, label.window, label.scales)


def _sizes(labels: Mapping[Path, Any], shapes: Mapping[Path, tuple[int, ...]]) -> dict[str, int]:
    """Sizes of all unit spaces: from pure axes, then from axes with one unknown size."""
    axes = [
        (path, axis, size)
        for path, label in labels.items()
        if label is not None
        for axis, size in zip(label.axes, shapes[path], strict=False)
        if axis is not None
    ]
    sizes = {axis.space: size for _, axis, size in axes if isinstance(axis, In | Out)}
    # The rest of an axis after its known parts belongs to the unknown ones, and a size found from one array may be
    # needed for another, so the axes are read again until nothing new is found. A part with two unknown spaces cannot
    # be resolved, nor can a length that the unknown parts do not share evenly.
    before = -1
    while len(sizes) != before:
        before = len(sizes)
        for path, axis, size in axes:
            unknown = [part for part in axis_parts(axis) if _length(part, sizes) is None]
            if not unknown:
                continue
            rest = size - sum(_length(part, sizes) or 0 for part in axis_parts(axis) if part not in unknown)
            # Parts of unknown size are taken to be equally long, as for fused queries and keys.
            share, remainder = divmod(rest, len(unknown))
            for part in dict.fromkeys(unknown):
                spaces = [factor.space for factor in axis_factors(part) if isinstance(factor, In | Out)]
                missing = [space for space in spaces if space not in sizes]
                known = prod(sizes.get(f.space, 1) if isinstance(f, In | Out) else f for f in axis_factors(part))
                if len(set(missing)) != 1 or len(missing) != 1 or remainder or share % known or share < known:
                    raise ValueError(
                        f"{'/'.join(path)}: an axis of length {size} is labelled {axis}, of which {unknown} have no "
                        "size; another array must have the space on an axis of its own"
                    )
                sizes[missing[0]] = share // known
    return sizes


def _length(part: Any, sizes: Mapping[str, int]) -> int | None:
    lengths = [sizes.get(f.space) if isinstance(f, In | Out) else f for f in axis_factors(part)]
    return None if None in lengths else prod(length for length in lengths if length is not None)


def _cut(path: Path, label: CompoundLabel, shape: tuple[int, ...], sizes: Mapping[str, int]) -> Cut:
    if len(label.axes) != len(shape):
        raise ValueError(f"{'/'.join(path)}: {len(label.axes)} axis labels for an array of shape {shape}")
    axes = []
    for axis, length in zip(label.axes, shape, strict=True):
        if axis is None:
            axes.append((Segment("", (None,), (length,)),))
            continue
        parts, segments = axis_parts(axis), []
        for index, part in enumerate(parts):
            factors = axis_factors(part)
            pure = tuple(factor if isinstance(factor, In | Out) else None for factor in factors)
            lengths = tuple(sizes[f.space] if isinstance(f, In | Out) else f for f in factors)
            segments.append(Segment(_name(parts, index) if len(parts) > 1 else "", pure, lengths))
        if (total := sum(prod(segment.sizes) for segment in segments)) != length:
            raise ValueError(f"{'/'.join(path)}: an axis of length {length} is labelled {axis}, of length {total}")
        axes.append(tuple(segments))
    cut = Cut(tuple(axes))
    return cut if any(len(segments) > 1 for segments in cut.axes) else Cut(_with_name(cut.axes))


def _with_name(axes: tuple[tuple[Segment, ...], ...]) -> tuple[tuple[Segment, ...], ...]:
    """The segments of an array that is a single piece with several factors, which needs a name, too."""
    ((first, *others), *rest) = axes
    return ((first._replace(name="whole"), *others), *rest)


def _name(parts: tuple[Any, ...], index: int) -> str:
    """The name of a part from its spaces, numbered if several parts have the same."""

    def spaces(part: Any) -> str:
        return "_".join(f.space for f in axis_factors(part) if isinstance(f, In | Out)) or "rest"

    name = spaces(parts[index])
    alike = [i for i, part in enumerate(parts) if spaces(part) == name]
    return name if len(alike) == 1 else f"{name}_{alike.index(index)}"
