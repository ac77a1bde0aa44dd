"""The examinations: each looks for one kind of trap, certifies it, and says how fast it is left and by what."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.certificates import (
    CloneVerdict,
    FrozenCertificate,
    FrozenVerdict,
    UnitEvidence,
    certify_cloned,
    certify_frozen,
)
from lopjax.cloning import find_clones
from lopjax.detection.nearness import Status, UnitNearness, unit_status
from lopjax.doctor.findings import Finding
from lopjax.losses import Batch
from lopjax.metrics import effective_rank
from lopjax.model import Model, NotResizableError, Variables, samples_by_units
from lopjax.stability import Stability, UnitBlocks, escape_time, unit_blocks_of_clones

RADIUS = 0.05
"""Clones have parted when their weights differ by this share."""

LOW_RANK = 0.1
"""An effective rank below this share of what is possible is reported."""

_REPELS = (Stability.SADDLE, Stability.UNSTABLE, Stability.SEMI_UNSTABLE)


class Patient(NamedTuple):
    """What is examined.

    Attributes:
        model: the network.
        variables: its variables.
        batch: inputs and labels.
        loss: loss of the network.
        nearness: result of `unit_nearness` on the batch, on the host.
        status: status of every unit, by space.
        clone_tolerance: relative distance up to which a unit is near a clone.
    """

    model: Model
    variables: Variables
    batch: Batch
    loss: Any
    nearness: Mapping[str, UnitNearness]
    status: Mapping[str, np.ndarray]
    clone_tolerance: float


Certificates = dict[tuple[str, int], str]


def statuses(nearness: Mapping[str, UnitNearness], clone_tolerance: float) -> dict[str, np.ndarray]:
    """Numbers of `Status`, on the host."""
    return {space: np.asarray(unit_status(one, clone_tolerance)) for space, one in nearness.items()}


def exact_clones(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Clones by their parameters: certified, and their stability."""
    found = find_clones(patient.model, patient.variables, patient.batch[0])
    partition = {s: one.parameters for s, one in found.items() if len(set(one.parameters)) < len(one.parameters)}
    if not partition:
        return [], {}, []
    certificate = certify_cloned(
        patient.model, patient.variables, partition=partition, batch=patient.batch, loss=patient.loss
    )
    units = [(space, unit) for space, ids in partition.items() for unit in _repeated(ids)]
    texts = {one: _clone_text(certificate, partition, one) for one in units}
    redundant = {space: 1 - len(set(ids)) / len(ids) for space, ids in partition.items()}
    leaves, time, blocks, notes = _escape(patient, partition, certificate.verdict)
    is_free = blocks is not None and blocks.total.verdict in _REPELS
    remedy = "lopjax.interventions.split_clones: a push along outgoing weights, which changes no output"
    if not is_free:
        remedy = "lopjax.recovery.kick_clones (see critical_noise), or a reset: no small push is known to free them"
    counts = [f"{len(set(ids))} different units of {len(ids)} in {space}" for space, ids in partition.items()]
    evidence = str(certificate) + ("" if blocks is None else f"\nStability: {blocks.total.verdict.value}")
    finding = Finding(
        "clones", max(redundant.values()), tuple(partition), tuple(units), "; ".join(counts),
        certificate.verdict.name, evidence, certificate.tolerance, leaves, time, remedy,
    )  # fmt: skip
    return [finding], texts, notes


def _repeated(ids: tuple[int, ...]) -> list[int]:
    return [unit for unit, one in enumerate(ids) if ids.count(one) > 1]


def _clone_text(certificate: Any, partition: Mapping[str, tuple[int, ...]], unit: tuple[str, int]) -> str:
    space, index = unit
    others = [u for u, one in enumerate(partition[space]) if one == partition[space][index] and u != index]
    return f"{space}[{index}]: clone of {', '.join(map(str, others))}\n{certificate}"


def _escape(
    patient: Patient, partition: Mapping[str, tuple[int, ...]], verdict: CloneVerdict
) -> tuple[str, float | None, UnitBlocks | None, list[str]]:
    """Whether clones part by themselves, how fast, and the blocks that say so."""
    if verdict in (CloneVerdict.NOT_CLONED, CloneVerdict.FORWARD_ONLY, CloneVerdict.UNDECIDED):
        return "not decided" if verdict is CloneVerdict.UNDECIDED else "yes", None, None, []
    trapped = "no: gradient descent keeps clones exactly"
    try:
        blocks = unit_blocks_of_clones(
            patient.model, patient.variables, loss=patient.loss, batch=patient.batch, partition=partition
        )
    except (ValueError, NotResizableError) as error:
        return f"{trapped}; how they would react to noise is not known", None, None, [f"stability: {error}"]
    total = blocks.total
    if total.verdict is Stability.UNDECIDED:
        return f"{trapped}; whether they repel is not decided: {total.note or total.verdict.value}", None, blocks, []
    if total.verdict not in _REPELS:
        return f"{trapped}, and they do not repel: {total.verdict.value}", inf, blocks, []
    params = patient.variables["params"]
    # Rounding parts clones at best by one unit in the last place of a weight; that is what grows.
    size = float(jnp.sqrt(sum(jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(params))))
    kick = size * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
    time = float(escape_time([total.min_eigenvalue], [kick], RADIUS * size, 1.0, continuous=True))
    return f"{trapped}; but they repel, so rounding errors grow to {RADIUS:.0%}", time, blocks, []


def near_clones(patient: Patient, exact: Certificates) -> tuple[list[Finding], Certificates, list[str]]:
    """Units within the tolerance of a clone that are none by their parameters."""
    texts: Certificates = {}
    for space, status in patient.status.items():
        near = patient.nearness[space].activations
        for unit in np.flatnonzero(status == Status.NEAR_CLONE):
            if (space, int(unit)) in exact:
                continue
            texts[space, int(unit)] = (
                f"{space}[{unit}]: by activations within {near.distance[unit]:.2g} of {near.multiple[unit]:.3g} x unit "
                f"{near.unit[unit]}, by incoming weights within {patient.nearness[space].parameters.distance[unit]:.2g}"
            )
    if not texts:
        return [], {}, []
    closest = min(float(patient.nearness[s].activations.distance[u]) for s, u in texts)
    finding = Finding(
        "near-clones", _worst(patient, texts), _spaces(texts), tuple(texts),
        f"{len(texts)} units act almost like another, the closest within {100 * closest:.2g} %", "SYMPTOM",
        "\n".join(texts.values()), patient.clone_tolerance,
        "not decided: minibatches would say whether training draws them together (lopjax.detection.clone_forecast)",
        None,
        "lopjax.interventions.split_clones, whose push keeps the outputs within its loss_tolerance",
    )  # fmt: skip
    return [finding], texts, []


def dead_units(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Units that are constant on the batch: certified at every site."""
    frozen = _frozen(patient, Status.DEAD)
    if not frozen.texts:
        return [], {}, []
    trapped = [u for u in frozen.units if u.verdict in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE)]
    forever = [u for u in trapped if not u.depends_on]
    radii = [u.radius for u in frozen.units if u.radius is not None and np.isfinite(u.radius)]
    counts = {
        "{} that nothing which still moves can wake": len(forever),
        "{} that only layers below can wake": len(trapped) - len(forever),
    }
    leaves = f"no: {'; '.join(text.format(number) for text, number in counts.items() if number)}"
    leaves += f"; incoming weights would have to change by {min(radii):.2g} at least" if radii else ""
    number = len(frozen.texts)
    units = "1 unit is" if number == 1 else f"{number} units are"
    finding = frozen.finding(
        patient, "dead units", f"{units} the same on all {len(patient.batch[0])} samples"
    )._replace(
        leaves=leaves if trapped else "not decided",
        time=inf if frozen.units and len(forever) == len(frozen.units) else None,
        remedy="lopjax.interventions.wake_dead_units, which changes no output; a norm in front prevents it",
    )
    return [finding], frozen.texts, frozen.notes


def saturated_units(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Units of flat slope on every sample: how slow they are."""
    frozen = _frozen(patient, Status.SATURATED)
    if not frozen.texts:
        return [], {}, []
    times = [float(patient.nearness[space].time_scale[unit]) for space, unit in frozen.texts]
    finding = frozen.finding(
        patient, "saturated units", f"{len(frozen.texts)} units have a slope below 1e-4 on every sample"
    )._replace(
        leaves="slowly, the median of their incoming weights changing by its own size",
        time=float(np.median(times)),
        remedy="lopjax.recovery.pull_to_start (shrink and perturb), or lopjax.interventions.redo; a norm prevents it",
    )
    return [finding], frozen.texts, frozen.notes


class _Frozen(NamedTuple):
    """Certificates of the units of one kind.

    Attributes:
        texts: text about each unit.
        certificates: one per space; those that the wiring does not allow are missing.
        notes: why.
    """

    texts: Certificates
    certificates: list[FrozenCertificate]
    notes: list[str]

    @property
    def units(self) -> list[UnitEvidence]:
        """Evidence about every unit that was certified."""
        return [unit for one in self.certificates for unit in one.units]

    def finding(self, patient: Patient, kind: str, says: str) -> Finding:
        """What all findings of this sort have in common; what is not certified is a symptom."""
        verdict, tolerance = "SYMPTOM", None
        if self.certificates:
            verdict = min((u.verdict for u in self.units), key=list(FrozenVerdict).index).name
            tolerance = max(one.tolerance for one in self.certificates)
        evidence = "\n\n".join(map(str, self.certificates or self.notes))
        units, share = tuple(self.texts), _worst(patient, self.texts)
        return Finding(
            kind, share, _spaces(self.texts), units, says, verdict, evidence, tolerance, "not decided", None, ""
        )


def _frozen(patient: Patient, kind: Status) -> _Frozen:
    """Certificates of all units of a kind."""
    frozen = _Frozen({}, [], [])
    for space, status in patient.status.items():
        units = [int(unit) for unit in np.flatnonzero(status == kind)]
        if not units:
            continue
        sites = {site: units for site in patient.model.wiring.sites_of(space)}
        try:
            found = certify_frozen(
                patient.model, patient.variables, frozen_units=sites, batch=patient.batch, loss=patient.loss
            )
        except ValueError as error:  # a wiring that does not say which parameters belong to a site alone
            frozen.notes.append(f"{space}: no certificate of its {kind.name.lower()} units: {error}")
            frozen.texts.update({(space, unit): f"{space}[{unit}]: no certificate: {error}" for unit in units})
            continue
        frozen.certificates.append(found)
        frozen.texts.update({(space, unit): _unit_text(found, unit) for unit in units})
    return frozen


def _unit_text(found: FrozenCertificate, unit: int) -> str:
    """The part of a certificate that is about one unit."""
    evidence = tuple(one for one in found.units if one.unit == unit)
    notes = tuple(note for note in found.notes if "[" not in note or f"[{unit}]" in note)
    weakest = min((one.verdict for one in evidence), key=list(FrozenVerdict).index)
    return str(FrozenCertificate(weakest, evidence, found.tolerance, notes))


def low_rank(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Sites whose activations span little of what they could."""
    taps = patient.model.apply(patient.variables, jnp.asarray(patient.batch[0]), dropout_rate=0.0).taps
    shares = {}
    for site, tap in taps.items():
        posts = samples_by_units(tap.post)
        if min(posts.shape) > 2:
            shares[site] = float(effective_rank(posts)), min(posts.shape)
    low = {site: (rank, most) for site, (rank, most) in shares.items() if rank < LOW_RANK * most}
    if not low:
        return [], {}, []
    ranks = "; ".join(f"{site} {rank:.1f} of at most {most}" for site, (rank, most) in low.items())
    worst = max(1 - rank / most for rank, most in low.values())
    finding = Finding(
        "low rank", worst, tuple(low), (), f"effective rank {ranks}", "SYMPTOM", ranks, None,
        "not decided: a low rank traps nothing by itself, and inputs of few dimensions give one", None,
        "compare with a fresh network on the same batch; lopjax.recovery.pull_to_start if that has more",
    )  # fmt: skip
    return [finding], {}, []


def _worst(patient: Patient, units: Certificates) -> float:
    """Largest share of a space that is concerned."""
    return max(sum(s == space for s, _ in units) / len(patient.status[space]) for space in _spaces(units))


def _spaces(units: Certificates) -> tuple[str, ...]:
    return tuple(dict.fromkeys(space for space, _ in units))
