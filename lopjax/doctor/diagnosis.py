"""What is wrong with a network, how bad, on what evidence, and what would mend it."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.arguments.batches import as_batch
from lopjax.arguments.networks import check_network
from lopjax.cloning.rounding import at_least_float32
from lopjax.detection.lives import LifeTable
from lopjax.detection.nearness import Status, describe_units, unit_nearness
from lopjax.doctor import examine, frozen_units
from lopjax.doctor.findings import Diagnosis, Finding, UnitRecord, share_in_words
from lopjax.losses import check_batch, mean_cross_entropy
from lopjax.model import Model, Variables
from lopjax.models.check import check_labels
from lopjax.wiring import tree_paths


def diagnose(
    model: Model,
    variables: Variables,
    batch: tuple[Any, Any],
    *,
    loss: Callable[[jax.Array, Any], jax.Array] = mean_cross_entropy,
    learning_rate: float | None = None,
    clone_tolerance: float = 0.01,
    lives: LifeTable | None = None,
) -> Diagnosis:
    """Look for every trap that the library knows, certify what is found, and say what would mend it.

    Clones (by parameters, certified; whether they repel, and how long rounding would take to part them), near-clones,
    dead and saturated units (certified), low rank. All on one batch, in eval mode: "dead" is dead on it.

    Args:
        model: any model.
        variables: its variables.
        batch: `(inputs, labels)`, a few hundred samples of the data it is trained on.
        loss: `(logits, labels) -> scalar`, a mean over samples.
        learning_rate: to give times in steps of plain gradient descent.
        clone_tolerance: relative distance of activations up to which a unit is near a clone.
        lives: the status of units along the run, to be drawn.

    Returns:
        The diagnosis: `print` it, or `lopjax.doctor.write_page` it.

    Raises:
        ValueError: variables of another network, labels that do not fit, numbers that are not finite or out of range;
            inputs that are all the same, on which every unit is constant and a multiple of any other.
    """
    for name, value in {"learning_rate": learning_rate, "clone_tolerance": clone_tolerance}.items():
        is_number = isinstance(value, int | float | np.number) or getattr(value, "ndim", None) == 0
        if value is not None and not (is_number and 0 < value < float("inf")):
            raise ValueError(f"{name}={value!r}: must be positive and finite")
    check_network(model, variables)
    variables = at_least_float32(variables)
    _check_numbers(variables)
    batch = as_batch(batch)
    check_batch(model, variables, batch, loss=loss)
    check_labels(model, variables, batch[0])
    if not bool(jnp.any(batch[0] != batch[0][:1])):
        raise ValueError("batch: all of its inputs are the same; give samples that differ, a few hundred")
    nearness = jax.device_get(jax.jit(lambda v, b: unit_nearness(model, v, b, loss=loss))(variables, batch))
    status = examine.statuses(nearness, clone_tolerance)
    patient = examine.Patient(model, variables, batch, loss, nearness, status, clone_tolerance)
    findings, texts, notes = _examined(patient)
    notes += _few(len(batch[0]), status)
    logits = model.apply(variables, batch[0], dropout_rate=0.0).logits
    facts = {
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(variables["params"])),
        "units": sum(len(each) for each in status.values()),
        "samples": len(batch[0]),
        "loss": f"{float(loss(logits, batch[1])):.4g}",
    }
    ordered = tuple(sorted(findings, key=lambda one: -one.severity))
    summary = describe_units(nearness, clone_tolerance).splitlines()[0]
    return Diagnosis(ordered, _records(patient, texts), summary, facts, learning_rate, lives, tuple(notes))


def _examined(patient: examine.Patient) -> tuple[list[Finding], examine.Certificates, list[str]]:
    findings, texts, notes = examine.exact_clones(patient)
    exact = texts
    for look in (
        lambda one: examine.near_clones(one, exact),
        frozen_units.dead_units,
        frozen_units.saturated_units,
        examine.low_rank,
    ):
        more, others, said = look(patient)
        findings, texts, notes = findings + more, {**others, **texts}, notes + said
    return findings, texts, notes


def _check_numbers(variables: Variables) -> None:
    """Refuse parameters that are no floating point numbers, and a network that has diverged.

    Raises:
        ValueError: names every such array.
    """
    named = [
        ("/".join(path), leaf) for path, leaf in zip(tree_paths(variables), jax.tree.leaves(variables), strict=True)
    ]
    is_real = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)  # noqa: E731
    if kinds := [f"{name} is {leaf.dtype}" for name, leaf in named if name.startswith("params/") and not is_real(leaf)]:
        raise ValueError(f"{', '.join(kinds)}: parameters must be floating point numbers; convert them first")
    wrong = {name: np.sum(~np.isfinite(np.asarray(leaf))) for name, leaf in named if is_real(leaf)}
    if lost := [f"{number} of {name}" for name, number in wrong.items() if number]:
        raise ValueError(
            f"numbers that are not finite: {', '.join(lost)}. The network has diverged, and nothing more can be said; "
            "give a checkpoint from before that"
        )


def _few(samples: int, status: Mapping[str, np.ndarray]) -> list[str]:
    """A note where the batch is smaller than a layer."""
    widest = max((len(each) for each in status.values()), default=0)
    if samples >= widest:
        return []
    return [f"{samples} samples for up to {widest} units in a layer: on so few, units are dead or alike by chance"]


def _records(patient: examine.Patient, texts: examine.Certificates) -> tuple[UnitRecord, ...]:
    records = []
    for space, near in patient.nearness.items():
        for unit, number in enumerate(patient.status[space]):
            distance = float(near.activations.distance[unit])
            nearest = "none alive" if np.isinf(distance) else _nearest(near, unit, distance)
            radius, slope, time = (float(array[unit]) for array in (near.death_radius, near.slope, near.time_scale))
            text, status = texts.get((space, unit), ""), Status(int(number)).name
            records.append(UnitRecord(space, unit, status, nearest, radius, slope, time, text))
    return tuple(records)


def _nearest(near: Any, unit: int, distance: float) -> str:
    multiple = float(near.activations.multiple[unit])
    times = "" if multiple == 1 else f"{multiple:.3g} x "
    return f"{times}unit {int(near.activations.unit[unit])}, which differs by {share_in_words(distance)}"
