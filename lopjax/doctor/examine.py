"""Examinations for clones and low rank: what is found, certified, how fast it is left and by what."""

from collections.abc import Mapping
from math import inf
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import find_clones
from lopjax.cloning.rounding import parameter_tolerance
from lopjax.detection.nearness import Status, UnitNearness, unit_status
from lopjax.doctor.findings import Finding, share_in_words
from lopjax.losses import Batch
from lopjax.metrics import effective_rank
from lopjax.model import Model, NotResizableError, Variables, samples_by_units
from lopjax.stability import Stability, UnitBlocks, escape_time, unit_blocks_of_clones

RADIUS = 0.05
"""Clones have parted when their weights differ by this share."""

LOW_RANK, FRESH_SHARE = 0.1, 0.5
"""An effective rank is reported below the first share of what is possible and the second of a fresh network's."""

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
    clones = find_clones(patient.model, patient.variables, patient.batch[0])
    partition = {s: one.parameters for s, one in clones.items() if len(set(one.parameters)) < len(one.parameters)}
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
    counts = [f"{len(ids)} units in {space} are of {_kinds(len(set(ids)))}" for space, ids in partition.items()]
    evidence = str(certificate) + ("" if blocks is None else f"\nStability: {blocks.total.verdict.value}")
    finding = Finding(
        "clones", max(redundant.values()), tuple(partition), tuple(units), "; ".join(counts),
        certificate.verdict.name, evidence, certificate.tolerance, leaves, time, remedy,
    )  # fmt: skip
    return [finding], texts, notes


def _kinds(number: int) -> str:
    return "1 kind" if number == 1 else f"{number} kinds"


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
        return "not decided: parameters and batch do not agree that they are clones", None, None, []
    trapped = "no: gradient descent keeps clones exactly"
    try:
        blocks = _blocks(patient, partition)
    except (ValueError, NotResizableError) as error:
        return f"{trapped}; how they would react to noise is not known", None, None, [f"stability: {error}"]
    total = blocks.total
    if total.verdict is Stability.UNDECIDED:
        return f"{trapped}; whether they repel is not decided: {total.note or total.verdict.value}", None, blocks, []
    if total.verdict not in _REPELS:
        return f"{trapped}, and they do not repel: {total.verdict.value}", inf, blocks, []
    params = patient.variables["params"]
    # The least difference that these parameters can have: one unit in the last place of a weight.
    size = float(jnp.sqrt(sum(jnp.mean(jnp.square(leaf)) for leaf in jax.tree.leaves(params))))
    kick = size * float(jnp.finfo(jnp.result_type(*jax.tree.leaves(params))).eps)
    time = float(escape_time([float(total.min_eigenvalue)], [kick], RADIUS * size, 1.0, continuous=True))
    repel = f"but they repel: if they were a rounding error apart, it would grow to {100 * RADIUS:g} % of the weights"
    return f"{trapped}; {repel}", time, blocks, []


def _blocks(patient: Patient, partition: Mapping[str, tuple[int, ...]]) -> UnitBlocks:
    """Stability in double precision: in single, of many activations some lie within rounding of a kink.

    A network that rounds to fewer digits inside is judged in those that it has.
    """
    model, loss, allowed = patient.model, patient.loss, parameter_tolerance(patient.variables["params"])
    with jax.enable_x64(True):
        variables, batch = jax.tree.map(_doubled, (patient.variables, patient.batch))
        try:
            return unit_blocks_of_clones(model, variables, batch, partition, loss=loss, bc_tolerance=allowed)
        except (ValueError, TypeError):
            pass
    return unit_blocks_of_clones(model, patient.variables, patient.batch, partition, loss=loss)


def _doubled(leaf: Any) -> jax.Array:
    """Numbers in double precision; classes and tokens stay integers."""
    array = np.asarray(leaf)
    return jnp.asarray(array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array)


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
    act = "1 unit acts" if len(texts) == 1 else f"{len(texts)} units act"
    finding = Finding(
        "near-clones", worst_share(patient, texts), spaces_of_units(texts), tuple(texts),
        f"{act} almost like another; the closest two differ by {share_in_words(closest)}", "SYMPTOM",
        "\n".join(texts.values()), patient.clone_tolerance,
        "not decided: minibatches would say whether training draws them together (lopjax.detection.clone_forecast)",
        None,
        "lopjax.interventions.split_clones, whose push keeps the outputs within its loss_tolerance",
    )  # fmt: skip
    return [finding], texts, []


def low_rank(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Sites whose activations span little of what they could, and much less than those of a network drawn anew."""
    now = _ranks(patient, patient.variables)
    low = {site: (rank, most) for site, (rank, most) in now.items() if rank < LOW_RANK * most}
    if not low:
        return [], {}, []
    fresh = _ranks(patient, patient.model.init(jax.random.key(0)))
    low = {site: (rank, fresh[site][0]) for site, (rank, _) in low.items() if rank < FRESH_SHARE * fresh[site][0]}
    if not low:
        return [], {}, []
    ranks = "; ".join(
        f"{site} {rank:.1f}, drawn anew {new:.1f}, at most {now[site][1]}" for site, (rank, new) in low.items()
    )
    finding = Finding(
        "low rank", max(1 - rank / new for rank, new in low.values()), tuple(low), (), f"effective rank at {ranks}",
        "SYMPTOM", ranks, None, "not decided: a low rank traps nothing by itself", None,
        "lopjax.recovery.pull_to_start (shrink and perturb)",
    )  # fmt: skip
    return [finding], {}, []


def _ranks(patient: Patient, variables: Variables) -> dict[str, tuple[float, int]]:
    """Effective rank of every site, and the largest that it could have."""
    taps = patient.model.apply(variables, jnp.asarray(patient.batch[0]), dropout_rate=0.0).taps
    posts = {site: samples_by_units(tap.post) for site, tap in taps.items()}
    return {site: (float(effective_rank(one)), min(one.shape)) for site, one in posts.items() if min(one.shape) > 2}


def worst_share(patient: Patient, units: Certificates) -> float:
    """Largest share of a space that these units make up."""
    return max(sum(s == space for s, _ in units) / len(patient.status[space]) for space in spaces_of_units(units))


def spaces_of_units(units: Certificates) -> tuple[str, ...]:
    """Unit spaces of these units, in their order."""
    return tuple(dict.fromkeys(space for space, _ in units))
