"""Clones in the networks that training has ended with: found by what units do and by their weights, and certified."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lopjax.certificates import certify_cloned
from lopjax.cloning import find_clones
from lopjax.model import samples_by_units
from lopjax.runs import RunData


def clones_of(data: RunData, method: str, place: int) -> dict[str, Any] | None:
    """What became of the units of one network.

    Args:
        data: a run.
        method: method of the lane.
        place: position of its seed among the config's.

    Returns:
        By unit space, `units`; `silent`, units that are 0 on the whole probe; `alike`, others that do on the probe what
        another one of them does; `trapped`, units whose weights make them clones of another one; and
        under `verdict` that of `certify_cloned` on the trapped ones, or else on those that are alike; None without any.
        None for a run that has not kept its networks.
    """
    try:
        kept = data.variables(method)["network"]
    except FileNotFoundError:
        return None
    variables, model, probe = jax.tree.map(lambda leaf: leaf[place], kept), data.model("network"), data.probe()
    taps, spaces, trapped, alike = model.apply(variables, probe[0]).taps, {}, {}, {}
    for space, clones in find_clones(model, variables, probe).items():
        sites = [np.asarray(samples_by_units(taps[site].post)) for site in model.wiring.sites_of(space)]
        awake = apart(clones.activations, np.all([np.all(rows == 0, axis=0) for rows in sites], axis=0))
        spaces[space] = {
            "units": len(awake),
            "silent": clones.silent,
            "alike": doubles(awake),
            "trapped": doubles(clones.parameters),
        }
        trapped |= {space: clones.parameters} if spaces[space]["trapped"] else {}
        alike |= {space: awake} if spaces[space]["alike"] else {}
    partition = trapped or alike
    verdict = certify_cloned(model, variables, probe, partition).verdict.name if partition else None
    return {"spaces": spaces, "verdict": verdict}


def apart(clusters: Sequence[int], is_silent: np.ndarray) -> tuple[int, ...]:
    """The clusters with every silent unit in one of its own: nothing tells silent units apart, or makes them clones.

    >>> apart((0, 0, 1, 1), np.array([True, False, False, False]))
    (0, 1, 2, 2)
    """
    names = [(-1 - unit, 0) if is_silent[unit] else (cluster, 1) for unit, cluster in enumerate(clusters)]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(numbers[name] for name in names)


def doubles(clusters: tuple[int, ...]) -> int:
    """How many units share their cluster with another one.

    >>> doubles((0, 1, 1, 2))
    2
    """
    return sum(clusters.count(cluster) > 1 for cluster in clusters)


def in_words(found: Mapping[str, Any] | None) -> str:
    """For the table: "none", or how many units and what is certain of them."""
    if found is None:
        return "-"
    totals = {kind: sum(space[kind] for space in found["spaces"].values()) for kind in ("trapped", "alike")}
    if found["verdict"] is None:
        return "none"
    return f"{totals['trapped'] or totals['alike']}, {found['verdict'].lower().replace('_', ' ')}"
