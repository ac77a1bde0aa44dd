"""The findings as a table to read."""

from collections.abc import Sequence

from lopjax.tracing.spaces import CLONEABLE, FIXED, PERMUTABLE, Diagram
from lopjax.tracing.verify import Verification
from lopjax.wiring import In, Path, Wiring


def written(wiring: Wiring, diagram: Diagram, verification: Verification | None, notes: Sequence[str]) -> str:
    """Every unit space: its size, its state, the arrays that have it, and why it cannot be cloned.

    Then the arrays of which no site is known that all they do passes, and the kernels that do not alone make what they
    write: to those certificates of dead units and the closed form of the blocks do not apply.

    Args:
        wiring: labels and sites.
        diagram: the unit spaces found, and what could not be said of the arrays.
        verification: the outcome of the test against the network.
        notes: further remarks.
    """
    lines, spaces = [], diagram.spaces
    for state in (CLONEABLE, PERMUTABLE, FIXED):
        chosen = [space for space in spaces if space.state == state]
        if not chosen:
            continue
        lines.append(f"{state}: {len(chosen)} unit spaces")
        width = max(len(space.name) for space in chosen)
        for space in chosen:
            lines.append(f"  {space.name:<{width}}  {space.size:>5} units  {_arrays(wiring, space.name)}")
            if sites := wiring.sites_of(space.name):
                kinds = [getattr(wiring.site(site).activation, "name", wiring.site(site).activation) for site in sites]
                lines.append(f"    sites: {', '.join(f'{site} ({kind})' for site, kind in zip(sites, kinds))}")
            if space.reason:
                lines.append(f"    because: {space.reason}")
    lines += [*_grouped("no site", diagram.no_site), *_grouped("no source", diagram.no_source)]
    lines += [f"note: {note}" for note in notes]
    lines.append("not verified against the network" if verification is None else verification.sentence())
    return "\n".join(lines)


def _grouped(what: str, reasons: Sequence[tuple[Path, str]]) -> list[str]:
    """A line for each reason, with the arrays that have it; statistics are no parameters."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in reasons:
        if path[0] == "params":
            by_reason.setdefault(reason, []).append("/".join(path[1:]))
    return [f"{what} for {_some(paths)}: {reason}" for reason, paths in by_reason.items()]


def _arrays(wiring: Wiring, name: str) -> str:
    writes, reads = [], []
    for path, label in wiring.labels:
        for axis in label.axes:
            if axis is not None and axis.space == name:
                (reads if isinstance(axis, In) else writes).append("/".join(path[1:]))
    parts = [f"{verb} {_some(paths)}" for verb, paths in (("written by", writes), ("read by", reads)) if paths]
    return ", ".join(parts)


def _some(paths: Sequence[str], at_most: int = 4) -> str:
    shown = list(dict.fromkeys(paths))
    return ", ".join(shown[:at_most]) + (f" and {len(shown) - at_most} more" if len(shown) > at_most else "")
