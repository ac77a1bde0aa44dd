"""Clones in the networks that training has ended with: found by what units do and by their weights, and certified."""

from collections.abc import Mapping
from typing import Any

import jax

from lopjax.certificates import certify_cloned
from lopjax.cloning import find_clones
from lopjax.runs import RunData


def clones_of(data: RunData, method: str, place: int) -> dict[str, Any] | None:
    """What became of the units of one network.

    Args:
        data: a run.
        method: of the lane.
        place: of its seed among the config's.

    Returns:
        By unit space, `units`; `silent`, units that are 0 on the whole probe; `alike`, units that do on the probe what
        another one does, silent ones left out; `trapped`, units whose weights make them clones of another one; and
        under `verdict` that of `certify_cloned` on the trapped ones, or else on those that are alike; None without any.
        None for a run that has not kept its networks.
    """
    try:
        kept = data.variables(method)["network"]
    except FileNotFoundError:
        return None
    variables, model, probe = jax.tree.map(lambda leaf: leaf[place], kept), data.model("network"), data.probe()
    found = find_clones(model, variables, probe)
    spaces, trapped, alike = {}, {}, {}
    for space, clones in found.items():
        spaces[space] = {
            "units": len(clones.activations),
            "silent": clones.silent,
            "alike": max(doubles(clones.activations) - (clones.silent if clones.silent > 1 else 0), 0),
            "trapped": doubles(clones.parameters),
        }
        trapped |= {space: clones.parameters} if spaces[space]["trapped"] else {}
        alike |= {space: clones.activations} if spaces[space]["alike"] else {}
    partition = trapped or alike
    verdict = certify_cloned(model, variables, probe, partition).verdict.name if partition else None
    return {"spaces": spaces, "verdict": verdict}


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
