"""The claims of a network's labels about sites and sources, each tested on the network itself.

As in `lopjax.models.claims`, functions return one sentence for each claim that fails, from forward passes alone.
"""

from collections.abc import Iterable

import numpy as np

from lopjax.models.claims import Probe, name, scaled, site_to_name
from lopjax.wiring import Label, Out, Path, standard_layout, standard_order

_MOST_STEPS = 64


def source_faults(probe: Probe) -> list[str]:
    """If kernels name their sources, the pre-activation must consist of their products and biases alone."""
    faults, sums, kernels = [], {}, {}
    for path, label in probe.wiring.labels:
        if label.source is None or label.site is None:
            continue
        if standard_order(label) is None:
            faults.append(f"{name(path)}: source {label.source!r} needs a kernel with one In and one Out axis")
            continue
        reads = probe.seen.post.get(label.source, probe.inputs)
        try:
            part = product(probe.arrays[path], label, reads)
        except ValueError as error:
            faults.append(f"{name(path)}: cannot be applied to source {label.source!r} of shape {reads.shape}: {error}")
            continue
        sums[label.site] = sums.get(label.site, 0.0) + part
        kernels.setdefault(label.site, []).append((path, label.source))
    for site, total in sums.items():
        for path, label in probe.wiring.labels:
            if label.site == site and len(label.axes) == 1 and not label.reads() and path[0] == "params":
                total = total + probe.arrays[path]
        target = probe.seen.pre.get(site, probe.seen.logits)
        if probe.differs(total.reshape(target.shape) if total.size == target.size else total, target):
            faults += _biases_elsewhere(probe, site, total, target) or [
                f"{name(path)}: its product with source {source!r}, with a bias, is not the pre-activation of "
                f"{site!r}: something stands in between; name no source, or the right one"
                for path, source in kernels[site]
            ]
    return faults


def _biases_elsewhere(probe: Probe, site: str, total: np.ndarray, target: np.ndarray) -> list[str]:
    """The biases that complete a pre-activation although they do not name its site; none if they do not explain it."""
    space = dict(probe.wiring.sites)[site].space if site in probe.seen.pre else site
    biases = [
        path
        for path, label in probe.wiring.labels
        if path[0] == "params" and label.axes == (Out(space),) and label.site != site
    ]
    for chosen in [*([path] for path in biases), biases]:
        whole = total + sum(probe.arrays[path] for path in chosen)
        if whole.size == target.size and not probe.differs(whole.reshape(target.shape), target):
            return [
                f"{name(path)}: it is the bias of the pre-activation of {site!r}, but its label names "
                f"{'no site' if probe.label(path).site is None else f'the site {probe.label(path).site!r}'}: "
                f"{site_to_name(probe, path, site)}"
                for path in chosen
            ]
    return []


def product(kernel: np.ndarray, label: Label, reads: np.ndarray) -> np.ndarray:
    """A plain kernel applied to its input, units last, in NumPy."""
    kernel = standard_layout(label, kernel)
    if label.window is None:
        contracted = kernel.ndim - 1
        if reads.shape[reads.ndim - contracted :] != kernel.shape[:-1]:
            reads = reads.reshape(len(reads), *kernel.shape[:-1])
        return np.tensordot(reads, kernel, contracted)
    offsets = kernel.shape[:-2]
    padded = np.pad(reads, ((0, 0), *label.window.padding, (0, 0)))
    spatial = tuple(range(1, 1 + len(offsets)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, offsets, spatial)
    patches = patches[(slice(None), *(slice(None, None, stride) for stride in label.window.strides))]
    return np.tensordot(np.moveaxis(patches, len(offsets) + 1, -1), kernel, len(offsets) + 1)


def reader_faults(probe: Probe) -> list[str]:
    """If all readers of a site name it as source, its activations must reach the output through them alone."""
    faults = []
    for site, (space, _) in probe.wiring.sites:
        readers = [path for path, _ in probe.wiring.outgoing(space)]
        labels = [probe.label(path) for path in readers]
        is_plain = readers and all(label.source == site and label.site and standard_order(label) for label in labels)
        if not is_plain or len(probe.wiring.sites_of(space)) != 1:
            continue
        shift = _generic(probe.seen.post[site])
        expected = probe.seen.logits
        shifts: dict[str, tuple[np.ndarray | None, np.ndarray | None]] = {site: (None, shift)}
        for path, label in zip(readers, labels, strict=True):
            assert label.site is not None
            change = product(probe.arrays[path], label, shift)
            if label.site in probe.seen.pre:
                pre = probe.seen.pre[label.site]
                so_far = shifts.get(label.site, (None, None))[0]
                change = -change.reshape(pre.shape)
                shifts[label.site] = (change if so_far is None else so_far + change, None)
            else:
                expected = expected + change.reshape(expected.shape)
        if probe.differs(probe.run(probe.arrays, shifts).logits, expected):
            faults.append(
                f"site {site!r}: its activations also act past {[name(path) for path in readers]}, whose labels name "
                "it as their source; label the arrays that read it, or name no source"
            )
    return faults


# --- Sites: what passes through them, and what they depend on --------------------


def site_faults(probe: Probe) -> list[str]:
    """An array labelled with a site must affect a unit only through that unit at that site."""
    faults = []
    for site, _ in probe.wiring.sites:
        own = [path for path, label in probe.wiring.labels if label.site == site and path[0] == "params"]
        if own and not passes(probe, site, own):
            faults += [
                f"{name(path)}: labelled with site {site!r}, but it acts past it: on other units, or on the output by "
                "another path; name a later site, or none"
                for path in own
                if not passes(probe, site, [path])
            ]
    return faults


def forgotten_sites(probe: Probe) -> list[str]:
    """Arrays without a site all of whose paths pass through one: not wrong, but verdicts about them are missed.

    Labels that were read from a program name no more than was proved, and its report says what was not.
    """
    if probe.wiring.above:
        return []
    faults = []
    for path, label in probe.wiring.labels:
        if path[0] != "params" or label.site is not None:
            continue
        changed = probe.run(_changed(probe, [path], label.writes()), {})
        for space in label.writes():
            sites = [
                site for site in probe.wiring.sites_of(space) if probe.differs(changed.pre[site], probe.seen.pre[site])
            ]
            if passed := [site for site in sites if passes(probe, site, [path]) and _others_matter(probe, site)]:
                faults.append(
                    f"{name(path)}: names no site, but all of its effects pass {passed[0]!r}: "
                    f"{site_to_name(probe, path, passed[0])}"
                )
    return faults


def passes(probe: Probe, site: str, paths: Iterable[Path]) -> bool:
    """Whether changing every second unit's slices has no effect while these units are held constant at the site."""
    space = probe.wiring.site(site).space
    arrays, shift = _changed(probe, paths, (space,)), np.zeros_like(probe.seen.post[site])
    # Inside a loop a unit that is held in one step acts on the next: one more step is right with every turn.
    for _ in range(_MOST_STEPS):
        seen = probe.run(arrays, {site: (None, shift)})
        missing = probe.seen.post[site] - seen.post[site]
        missing[..., 1::2] = 0.0
        if not probe.differs(seen.post[site] + missing, seen.post[site]):
            break
        shift = shift + missing
    return not probe.differs(seen.logits, probe.seen.logits)


def _others_matter(probe: Probe, site: str) -> bool:
    """Whether the units that are not held affect the output; if they are dead, nothing shows what reaches them."""
    shift = np.array(probe.seen.post[site]) * 0.0 + 0.5
    shift[..., ::2] = 0.0
    units = [np.where(np.arange(shift.shape[-1]) == unit, shift, 0.0) for unit in range(1, shift.shape[-1], 2)]
    return all(_acts_downwards(probe, site, unit) for unit in units)


def _acts_downwards(probe: Probe, site: str, shift: np.ndarray) -> bool:
    """Whether a small change of pre-activations changes the output, so that their units are alive and read."""
    return probe.differs(probe.run(probe.arrays, {site: (1e-3 * shift, None)}).logits, probe.seen.logits)


def _changed(probe: Probe, paths: Iterable[Path], spaces: Iterable[str]) -> dict[Path, np.ndarray]:
    """The arrays with the slices of every second unit changed."""
    arrays = dict(probe.arrays)
    for path in paths:
        for axis in probe.label(path).unit_axes(tuple(spaces), is_read=False):
            by = np.where(np.arange(arrays[path].shape[axis.index]) % 2, 0.0, 0.7)
            arrays[path] = scaled(arrays[path], axis.index, by)
    return arrays


def order_faults(probe: Probe) -> list[str]:
    """A site that changes when another one is shifted must have it upstream."""
    faults = []
    upstream = {site: probe.wiring.upstream(site) for site, _ in probe.wiring.sites}
    for moved in upstream:
        seen = probe.run(probe.arrays, {moved: (None, _generic(probe.seen.post[moved]))})
        for site in upstream:
            if site != moved and moved not in upstream[site] and probe.differs(seen.pre[site], probe.seen.pre[site]):
                faults.append(
                    f"site {site!r} depends on site {moved!r}, which is not upstream by the labels: label the arrays "
                    "that lead from one to the other, and give the sites in the order of the forward pass"
                )
    return faults


def sum_faults(probe: Probe) -> list[str]:
    """The contribution of an array labelled as added must not depend on the inputs of the other arrays of its site."""
    faults = []
    for site, (space, _) in probe.wiring.sites:
        own = [(path, label) for path, label in probe.wiring.labels if label.site == site and path[0] == "params"]
        # If units also pass an earlier site, or this one in the step before, even an added term acts on other inputs.
        if len(probe.wiring.sites_of(space)) != 1 or any(space in label.reads() for _, label in own):
            continue
        for path in (path for path, label in own if label.scales is False):
            others = {other: 1.7 * probe.arrays[other] for other, label in own if label.reads() and other != path}
            moved = {path: probe.arrays[path] * 1.7}
            here = probe.run({**probe.arrays, **moved}, {}).pre[site] - probe.seen.pre[site]
            base = probe.run({**probe.arrays, **others}, {}).pre[site]
            there = probe.run({**probe.arrays, **others, **moved}, {}).pre[site] - base
            # Beside the pre-activations: a bias in front of a norm of the batch has no effect but rounding.
            if probe.differs(probe.seen.pre[site] + here, probe.seen.pre[site] + there):
                what = "labelled scales=False, but its effect depends on another kernel of the site"
                faults.append(f"{name(path)}: {what}")
    return faults


def _generic(like: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).normal(size=like.shape)
