"""From the labels of a model's arrays to a consistent wiring."""

from collections.abc import Collection, Mapping
from types import MappingProxyType

from lopjax.wiring.diagram import Wiring
from lopjax.wiring.labels import In, Label, Out, Path, Site


def build_wiring(
    labels: Mapping[Path, Label | None],
    shapes: Mapping[Path, tuple[int, ...]],
    sites: Mapping[str, Site],
    fixed: Collection[str] = (),
    coupled: Collection[str] = (),
    permutable: Mapping[str, str] = MappingProxyType({}),
    coordinates: Collection[str] = (),
) -> Wiring:
    """Build a wiring, and refuse inconsistent labels.

    Spaces that no parameter writes are network inputs, and fixed. Spaces that none reads are outputs, and fixed as well
    unless they are declared permutable. Whether the labels describe the network can only be tested on the network:
    `lopjax.models.check_wiring`.

    Args:
        labels: label of every array (`None`: the array has no label).
        shapes: shape of every array.
        sites: every site that the model taps, in the order of the forward pass.
        fixed: further spaces whose units must not be cloned.
        coupled: spaces over whose units something is averaged.
        permutable: spaces whose units may be exchanged but not cloned, with the reason.
        coordinates: spaces that index the coordinates of larger units (the width of an attention head).

    Raises:
        ValueError: arrays without a label (all are listed), labels without an array, a label whose number of axes
            differs from the array's, an axis that is not `In`, `Out` or `None`, a space with two sizes, a site or a
            fixed space that no array knows, a site whose space no array writes, an array labelled with a site of a
            space that it does not write, or with a source that it does not read.
    """
    known = _known_labels(labels, shapes)
    sizes = _sizes(known, shapes)
    read = {space for label in known.values() for space in label.reads()}
    written = {space for label in known.values() for space in label.writes()}
    inputs, outputs = read - written, written - read - set(permutable)
    said = {"fixed": fixed, "coupled": coupled, "permutable": permutable, "coordinate": coordinates}
    _check_what_is_said(said, sizes, inputs)
    _check_sites(sites, sizes, written)
    for path, label in known.items():
        _check_ends(path, label, sites, inputs, outputs)
    forward = [site.space for site in sites.values()]
    rank = {space: forward.index(space) if space in forward else len(forward) for space in sizes}
    rank |= dict.fromkeys(outputs, len(forward) + 1)
    rank |= dict.fromkeys(inputs, -1)
    reasons = dict(permutable) | dict.fromkeys(fixed, "fixed by the model's author")
    reasons |= dict.fromkeys(inputs, "a network input: no array writes it")
    # Which of several such spaces are outputs cannot be seen from labels; a network without any has none to output.
    unread = "no array reads it: a network output, or units that meet in a product, as queries and keys do"
    reasons |= dict.fromkeys(outputs, unread if len(outputs) > 1 else "a network output: no array reads it")
    return Wiring(
        labels=tuple(known.items()),
        sizes=tuple(sorted(sizes.items(), key=lambda item: rank[item[0]])),
        sites=tuple(sites.items()),
        fixed=frozenset(fixed) | inputs | outputs,
        coupled=frozenset(coupled),
        reasons=tuple(sorted(reasons.items())),
        coordinates=frozenset(coordinates),
    )


def _known_labels(labels: Mapping[Path, Label | None], shapes: Mapping[Path, tuple[int, ...]]) -> dict[Path, Label]:
    unlabelled = [path for path in shapes if labels.get(path) is None]
    if unlabelled:
        raise ValueError(
            f"arrays without axis labels: {['/'.join(path) for path in unlabelled]}; "
            "create each with lopjax.models.labelled(init, *axes)"
        )
    if strays := ["/".join(path) for path in labels if path not in shapes]:
        raise ValueError(f"labels of arrays that do not exist: {strays}")
    return {path: label for path, label in labels.items() if label is not None}


def _check_what_is_said(said: Mapping[str, Collection[str]], sizes: Mapping[str, int], inputs: set[str]) -> None:
    """Refuse declarations about spaces that do not exist, and contradictory declarations."""
    for kind, spaces in said.items():
        if unknown := [space for space in spaces if space not in sizes]:
            raise ValueError(f"{kind} space {unknown[0]!r}: not in this wiring; its spaces are {list(sizes)}")
    if both := sorted(set(said["fixed"]) & set(said["permutable"])):
        raise ValueError(f"spaces {both} are said to be fixed and to be permutable: choose one")
    if strays := sorted(inputs & set(said["permutable"])):
        raise ValueError(f"permutable spaces {strays} are written by no array: they are network inputs")


def _sizes(labels: Mapping[Path, Label], shapes: Mapping[Path, tuple[int, ...]]) -> dict[str, int]:
    """Number of units of every space."""
    sizes: dict[str, int] = {}
    first: dict[str, Path] = {}
    for path, shape in shapes.items():
        axes = labels[path].axes
        if len(axes) != len(shape):
            raise ValueError(f"{'/'.join(path)}: {len(axes)} axis labels for an array of shape {shape}")
        for axis, size in zip(axes, shape):
            if axis is None:
                continue
            if not isinstance(axis, In | Out):
                raise ValueError(f"{'/'.join(path)}: axis label {axis!r}: must be In(space), Out(space) or None")
            if sizes.setdefault(axis.space, size) != size:
                raise ValueError(
                    f"unit space {axis.space!r} has {sizes[axis.space]} units in {'/'.join(first[axis.space])} "
                    f"but {size} in {'/'.join(path)}"
                )
            first.setdefault(axis.space, path)
    return sizes


def _check_sites(sites: Mapping[str, Site], sizes: Mapping[str, int], written: set[str]) -> None:
    for name, site in sites.items():
        if site.space not in sizes:
            raise ValueError(f"site {name!r} writes the unknown space {site.space!r}; spaces are {list(sizes)}")
        if site.space not in written:
            raise ValueError(
                f"site {name!r} is on the space {site.space!r}, which no array writes: a site is where units are "
                f"written; spaces that are written: {sorted(written)}"
            )


def _check_ends(path: Path, label: Label, sites: Mapping[str, Site], inputs: set[str], outputs: set[str]) -> None:
    """A label's `site` is on a space that its array writes, its `source` on one that it reads.

    The layer that makes the logits has no site: the output space takes its place, as an input space does for a source.
    """
    for kind, given, at_the_end, verb, spaces in (
        ("site", label.site, outputs, "write", label.writes()),
        ("source", label.source, inputs, "read", label.reads()),
    ):
        if given is None:
            continue
        if given not in sites and given not in at_the_end:
            ends = "outputs" if kind == "site" else "inputs"
            raise ValueError(
                f"{'/'.join(path)}: unknown {kind} {given!r}; sites are {list(sites)}, {ends} {sorted(at_the_end)}"
            )
        space = sites[given].space if given in sites else given
        if space not in spaces:
            raise ValueError(
                f"{'/'.join(path)}: {kind} {given!r} is on the space {space!r}, which this array does not {verb}; it "
                f"{verb}s {list(spaces)}: name a site of such a space, or none"
            )
