"""Examinations for dead and saturated units: each is certified, with what could wake it."""

from math import inf
from typing import NamedTuple

import numpy as np

from lopjax.certificates import FrozenCertificate, FrozenVerdict, UnitEvidence, certify_frozen
from lopjax.detection.nearness import Status
from lopjax.doctor.examine import Certificates, Patient, spaces_of_units, worst_share
from lopjax.doctor.findings import Finding
from lopjax.model import Model


def dead_units(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Units that are constant on the batch: certified at every site."""
    frozen = _frozen(patient, Status.DEAD)
    if not frozen.texts:
        return [], {}, []
    number, samples = len(frozen.texts), len(patient.batch[0])
    units = "1 unit has" if number == 1 else f"{number} units have"
    fates = list(frozen.by_unit(patient.model).values())
    finding = frozen.finding(patient, "dead units", f"{units} a constant activation on all {samples} samples")._replace(
        leaves=_waking(fates, number, frozen.units, samples),
        time=inf if len(fates) == number and all(one.is_forever for one in fates) else None,
        remedy=_waker(patient, spaces_of_units(frozen.texts)),
    )
    return [finding], frozen.texts, frozen.notes


def _waking(fates: list["_Fate"], number: int, evidence: list[UnitEvidence], samples: int) -> str:
    """What could wake dead units, by what is proved of each."""
    forever = sum(one.is_forever for one in fates)
    below = [one for one in fates if one.is_trapped and not one.is_forever]
    slow = sum(one.weakest is FrozenVerdict.SLOW for one in fates)
    depends = list(dict.fromkeys(name for one in below for name in one.depends_on))
    other = number - forever - len(below) - slow
    parts = {
        "gradients never wake {}": forever,
        f"only a change of {_some(depends)} can wake {{}}": len(below),
        "next to no gradient reaches {}, as saturated": slow,
        "not decided for {}": other,
    }
    said = "; ".join(text.format(_of_them(count, number)) for text, count in parts.items() if count)
    if not forever and not below:
        return said if slow else "not decided"
    radii = [u.radius for u in evidence if u.radius is not None and np.isfinite(u.radius)]
    nearest = ""
    if radii:
        size = f"by at least {min(radii):.2g}" if min(radii) > 0 else "only a little, as one is at the border"
        nearest = f"; incoming weights would have to change {size}"
    return f"no, as far as these {samples} samples show: {said}{nearest}"


def _of_them(count: int, number: int) -> str:
    if count < number:
        return f"{count} of them"
    return "it" if number == 1 else "any of them"


def _waker(patient: Patient, spaces: tuple[str, ...]) -> str:
    """The intervention for dead units, which a norm over units forbids to keep the function."""
    coupled = [space for space in spaces if space in patient.model.wiring.coupled]
    free = [space for space in spaces if space not in coupled]
    wake = "lopjax.interventions.wake_dead_units, which changes no output; a norm in front prevents it"
    redo = f"lopjax.interventions.redo, which may change outputs ({', '.join(coupled)}: a norm averages over its units)"
    return "; ".join([wake] * bool(free) + [redo] * bool(coupled))


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def saturated_units(patient: Patient) -> tuple[list[Finding], Certificates, list[str]]:
    """Units of flat slope on every sample: how slow they are."""
    frozen = _frozen(patient, Status.SATURATED)
    if not frozen.texts:
        return [], {}, []
    number = len(frozen.texts)
    slow = [(place, one) for place, one in frozen.by_unit(patient.model).items() if one.weakest is FrozenVerdict.SLOW]
    times = [float(patient.nearness[space].time_scale[unit]) for (space, unit), _ in slow]
    leaves = "slowly, the median of their incoming weights changing by its own size"
    if len(slow) < number:
        turning = "their slope is small here, but a small change of the weights may end that"
        leaves = f"not decided for {number - len(slow)} of {number}: {turning}"
    units = "1 unit has" if number == 1 else f"{number} units have"
    finding = frozen.finding(patient, "saturated units", f"{units} a slope below 1e-4 on every sample")._replace(
        leaves=leaves,
        time=float(np.median(times)) if len(slow) == number else None,
        remedy="lopjax.recovery.pull_to_start (shrink and perturb), or lopjax.interventions.redo; a norm prevents it",
    )
    return [finding], frozen.texts, frozen.notes


class _Fate(NamedTuple):
    """What is proved of one unit over all its sites.

    Attributes:
        weakest: the weakest verdict.
        depends_on: what must not change for it to last.
    """

    weakest: FrozenVerdict
    depends_on: tuple[str, ...]

    @property
    def is_trapped(self) -> bool:
        """Whether gradients leave it where it is while all else stays."""
        return self.weakest in (FrozenVerdict.FROZEN, FrozenVerdict.FROZEN_EVERYWHERE)

    @property
    def is_forever(self) -> bool:
        """Whether they do so whatever else they change."""
        return self.is_trapped and not self.depends_on


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
        """Evidence about every unit that was certified, at every site."""
        return [unit for one in self.certificates for unit in one.units]

    def by_unit(self, model: Model) -> dict[tuple[str, int], _Fate]:
        """What is proved of every unit that was certified: by the weakest of its sites."""
        evidence: dict[tuple[str, int], list[UnitEvidence]] = {}
        for one in self.units:
            evidence.setdefault((model.wiring.site(one.site).space, one.unit), []).append(one)
        fates = {}
        for place, sites in evidence.items():
            weakest = min((one.verdict for one in sites), key=list(FrozenVerdict).index)
            fates[place] = _Fate(weakest, tuple(dict.fromkeys(name for one in sites for name in one.depends_on)))
        return fates

    def finding(self, patient: Patient, kind: str, says: str) -> Finding:
        """What all findings of this sort have in common; what is not certified is a symptom."""
        verdict, tolerance = "SYMPTOM", None
        if self.certificates:
            verdict = min((u.verdict for u in self.units), key=list(FrozenVerdict).index).name
            tolerance = max(one.tolerance for one in self.certificates)
        evidence = "\n\n".join(map(str, self.certificates or self.notes))
        units, share = tuple(self.texts), worst_share(patient, self.texts)
        return Finding(
            kind, share, spaces_of_units(self.texts), units, says, verdict, evidence, tolerance, "not decided", None, ""
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
            certificate = certify_frozen(
                patient.model, patient.variables, frozen_units=sites, batch=patient.batch, loss=patient.loss
            )
        except ValueError as error:  # a wiring that does not say which parameters belong to a site alone
            frozen.notes.append(f"{space}: no certificate of its {kind.name.lower()} units: {error}")
            frozen.texts.update({(space, unit): f"{space}[{unit}]: no certificate: {error}" for unit in units})
            continue
        frozen.certificates.append(certificate)
        frozen.texts.update({(space, unit): _unit_text(certificate, unit) for unit in units})
    return frozen


def _unit_text(certificate: FrozenCertificate, unit: int) -> str:
    """The part of a certificate that is about one unit."""
    evidence = tuple(one for one in certificate.units if one.unit == unit)
    notes = tuple(note for note in certificate.notes if "[" not in note or f"[{unit}]" in note)
    weakest = min((one.verdict for one in evidence), key=list(FrozenVerdict).index)
    return str(FrozenCertificate(weakest, evidence, certificate.tolerance, notes))
