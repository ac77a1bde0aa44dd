"""What a diagnosis says: findings with their evidence, and what is known of every unit."""

from collections.abc import Mapping
from math import inf, isfinite, isnan
from typing import Any, NamedTuple

from lopjax.detection.lives import LifeTable


class Finding(NamedTuple):
    """One thing that is wrong.

    Attributes:
        kind: "clones", "near-clones", "dead units", "saturated units", or "low rank".
        severity: share of the units of the worst unit space that it concerns, in [0, 1]; of clones those beyond the
            first of each kind, of a low rank the share of a fresh network's that is missing.
        where: unit spaces or sites.
        units: those concerned, `(space, unit)`.
        says: one sentence.
        verdict: verdict of the certificate; "SYMPTOM" where nothing is proved.
        evidence: the certificate's report, or the numbers.
        tolerance: what counted as zero; None where nothing did.
        leaves: whether training can get out by itself, one sentence.
        time: time of gradient flow until then, in steps times learning rate; infinite for never, None if unknown.
        remedy: what would mend it.
    """

    kind: str
    severity: float
    where: tuple[str, ...]
    units: tuple[tuple[str, int], ...]
    says: str
    verdict: str
    evidence: str
    tolerance: float | None
    leaves: str
    time: float | None
    remedy: str

    @property
    def word(self) -> str:
        """The severity as a word."""
        words = ((0.5, "severe"), (0.2, "serious"), (0.05, "mild"), (0.0, "slight"))
        return next(word for least, word in words if self.severity >= least)

    @property
    def places(self) -> str:
        """Where it is, with the numbers of the units: "hidden_0 (1, 4)"."""
        of = {place: [str(unit) for space, unit in self.units if space == place] for place in self.where}
        some = {
            place: [*units[:8], *([f"and {len(units) - 8} more"] if units[8:] else [])] for place, units in of.items()
        }
        return ", ".join(f"{place} ({', '.join(units)})" if units else place for place, units in some.items())


class UnitRecord(NamedTuple):
    """What is known of one unit.

    Attributes:
        space: its unit space.
        unit: its number.
        status: name of its `lopjax.detection.Status`.
        nearest: the nearest unit, and how far: "unit 5 x 2.5, 0.3 %".
        death_radius: see `lopjax.detection.UnitNearness`.
        slope: largest |f'|.
        time_scale: time scale of its incoming parameters.
        certificate: text; empty for a unit that is well.
    """

    space: str
    unit: int
    status: str
    nearest: str
    death_radius: float
    slope: float
    time_scale: float
    certificate: str


class Diagnosis(NamedTuple):
    """Result of `diagnose`; `str` gives the page a user reads in a minute.

    Attributes:
        findings: worst first; empty if nothing is wrong.
        units: every unit, space by space.
        summary: how many units are near clones, dead, saturated.
        facts: facts about the network and the batch: parameters, units, samples, loss.
        learning_rate: that times in steps are for; None if not given.
        lives: what units were along the run; None if that was not logged.
        notes: what could not be looked at, and why.
    """

    findings: tuple[Finding, ...]
    units: tuple[UnitRecord, ...]
    summary: str
    facts: Mapping[str, Any]
    learning_rate: float | None = None
    lives: LifeTable | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The page as plain text."""
        facts = ", ".join(f"{name} {value}" for name, value in self.facts.items())
        lines = [self.summary, facts, ""]
        if not self.findings:
            lines.append("Nothing found.")
        for number, one in enumerate(self.findings, start=1):
            lines += [
                f"{number}. {one.kind} ({one.word}, {100 * one.severity:.0f} %): {one.says}",
                f"   where:      {one.places}",
                f"   evidence:   {evidence_in_words(one)}",
                f"   by itself:  {one.leaves}{time_in_words(one.time, self.learning_rate)}",
                f"   mended by:  {one.remedy}",
            ]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def as_json(self) -> dict[str, Any]:
        """Everything in JSON's own types; what is infinite is the string "inf", what is not known null."""
        lives = None
        if self.lives is not None:
            lives = {
                "steps": self.lives.steps.tolist(),
                "status": {s: a.tolist() for s, a in self.lives.status.items()},
            }
        return {
            "summary": self.summary,
            "facts": dict(self.facts),
            "learning_rate": self.learning_rate,
            "findings": [{**_plain(one), "word": one.word} for one in self.findings],
            "units": [_plain(one) for one in self.units],
            "lives": lives,
            "notes": list(self.notes),
        }


def time_in_words(time: float | None, learning_rate: float | None) -> str:
    """How fast: in steps if the learning rate is known."""
    if time is None or isnan(time):
        return ""
    if time == inf:
        return ""
    if learning_rate is None:
        return f", in a time of about {time:.2g} (steps times learning rate)"
    return f", in about {time / learning_rate:,.0f} steps"


def share_in_words(share: float) -> str:
    """A relative distance as a percentage that a user can read."""
    if share == 0:
        return "nothing"
    return "less than 0.001 %" if share < 1e-5 else f"{100 * share:.2g} %"


def evidence_in_words(one: Finding) -> str:
    """What a finding rests on: a certificate and what counted as zero, or a measurement."""
    if one.verdict == "SYMPTOM":
        within = "" if one.tolerance is None else f" to {100 * one.tolerance:g} %"
        return f"SYMPTOM, measured on this batch{within}; nothing is proved"
    return f"certificate {one.verdict}" + ("" if one.tolerance is None else f" at tolerance {one.tolerance:.1e}")


def _plain(record: Finding | UnitRecord) -> dict[str, Any]:
    def one(value: Any) -> Any:
        if isinstance(value, float) and not isfinite(value):
            return None if isnan(value) else "inf" if value > 0 else "-inf"
        return [one(item) for item in value] if isinstance(value, tuple) else value

    return {name: one(value) for name, value in record._asdict().items()}
