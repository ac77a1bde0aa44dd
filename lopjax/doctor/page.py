"""The page: one HTML file with everything in it, figures as SVG; a click on a unit opens its certificate."""

import html
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np

from lopjax.detection.nearness import Status
from lopjax.doctor.findings import Diagnosis, Finding, UnitRecord, evidence_in_words, time_in_words

COLOURS = {
    Status.ALIVE: "#c8d5de",
    Status.SATURATED: "#d9a441",
    Status.NEAR_CLONE: "#6a51a3",
    Status.DEAD: "#b2182b",
    Status.UNKNOWN: "#737373",
}
ROW, WIDTH, MARGIN = 9, 640, 90
"""Height of a unit's line, width of the time axis, space for names; in pixels."""

_TEMPLATE = Path(__file__).with_name("page.html")


def write_page(diagnosis: Diagnosis, path: Path, name: str = "network") -> Path:
    """Write the page; it needs no network and no other file."""
    path.write_text(page(diagnosis, name), encoding="utf-8")
    return path


def page(diagnosis: Diagnosis, name: str) -> str:
    """The page as one string."""
    certificates = {f"{one.space}[{one.unit}]": _evidence(_certificate(one)) for one in diagnosis.units}
    data = json.dumps(certificates).replace("<", "\\u003c")  # no tag inside a script
    facts = ", ".join(f"{key} {value}" for key, value in diagnosis.facts.items())
    return (
        _TEMPLATE.read_text(encoding="utf-8")
        .replace("{{name}}", html.escape(name))
        .replace("{{summary}}", html.escape(diagnosis.summary))
        .replace("{{facts}}", html.escape(facts))
        .replace("{{findings}}", _findings(diagnosis))
        .replace("{{told}}", _told(diagnosis))
        .replace("{{legend}}", _legend())
        .replace("{{lives}}", lives_svg(diagnosis))
        .replace("{{notes}}", "".join(f"<p class=note>{html.escape(note)}</p>" for note in diagnosis.notes))
        .replace("{{certificates}}", data)
    )


def _findings(diagnosis: Diagnosis) -> str:
    if not diagnosis.findings:
        return "<p>Nothing found.</p>"
    return "".join(_finding(one, diagnosis.learning_rate) for one in diagnosis.findings)


def _finding(one: Finding, learning_rate: float | None) -> str:
    bar = "<svg width=120 height=10><rect width=120 height=10 fill='#eee'/>"
    bar += f"<rect width={120 * min(one.severity, 1):.0f} height=10 fill='#b2182b'/></svg>"
    rows = {
        "where": one.places,
        "by itself": one.leaves + time_in_words(one.time, learning_rate),
        "mended by": one.remedy,
    }
    body = "".join(f"<tr><th>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    return (
        f"<section><h2>{html.escape(one.kind)} {bar} {one.word}, {100 * one.severity:.0f} %</h2>"
        f"<p>{html.escape(one.says)}</p>"
        f"<table>{body}</table><details><summary>evidence: {html.escape(evidence_in_words(one))}</summary>"
        f"<pre>{_evidence(one.evidence)}</pre></details></section>"
    )


def _evidence(text: str) -> str:
    """A certificate in HTML: sentences may break anywhere, rows of a table nowhere, so that columns stay columns."""
    return re.sub(r"^.*\S {2,}\S.*$", r'<span class="row">\g<0></span>', html.escape(text), flags=re.MULTILINE)


def _told(diagnosis: Diagnosis) -> str:
    """What the lines below show."""
    if diagnosis.lives is None:
        return "No record of the past was found: each line is what the unit is now."
    marks = any(np.any(one) for one in diagnosis.lives.touched.values())
    return "One line per unit, from left to right over time" + ("; a black mark is an intervention." if marks else ".")


def _legend() -> str:
    return " ".join(
        f"<span><i style='background:{colour}'></i>{status.name.lower().replace('_', '-')}</span>"
        for status, colour in COLOURS.items()
    )


def _certificate(one: UnitRecord) -> str:
    radius = "death radius not known" if np.isnan(one.death_radius) else f"death radius {one.death_radius:.3g}"
    numbers = f"{radius}, largest slope {one.slope:.3g}, time scale {one.time_scale:.3g} (steps times learning rate)"
    head = f"{one.space}[{one.unit}]: {one.status.lower().replace('_', '-')}; nearest: {one.nearest}\n{numbers}"
    return head + (f"\n\n{one.certificate}" if one.certificate else "")


def lives_svg(diagnosis: Diagnosis) -> str:
    """One line per unit over time, space under space; where no lives were logged, a line of what it is now."""
    parts, top = [], 0
    for space in dict.fromkeys(one.space for one in diagnosis.units):
        units = [one for one in diagnosis.units if one.space == space]
        parts.append(f"<text x=0 y={top + 10} class=space>{html.escape(space)}</text>")
        for row, one in enumerate(units):
            parts.append(_line(diagnosis, one, top + 14 + row * ROW))
        top += 14 + len(units) * ROW + 8
    axis = ""
    if diagnosis.lives is not None and len(diagnosis.lives.steps):
        first, last = diagnosis.lives.steps[[0, -1]]
        axis = f"<text x={MARGIN} y={top + 8}>step {first}</text>"
        axis += f"<text x={MARGIN + WIDTH} y={top + 8} text-anchor=end>step {last}</text>"
    size = f"viewBox='0 0 {MARGIN + WIDTH + 10} {top + 14}' width={MARGIN + WIDTH + 10}"
    return f"<svg id=lives {size} xmlns='http://www.w3.org/2000/svg'>{''.join(parts)}{axis}</svg>"


def _line(diagnosis: Diagnosis, one: UnitRecord, y: int) -> str:
    """The stretches of one unit's life, and marks where an intervention touched it."""
    status, touched = np.array([Status[one.status]]), np.array([], int)
    lives = diagnosis.lives
    if lives is not None and one.space in lives.status and one.unit < lives.status[one.space].shape[1]:
        status = lives.status[one.space][:, one.unit]
        if one.space in lives.touched:
            touched = np.flatnonzero(lives.touched[one.space][:, one.unit])
    cuts = [0, *(np.flatnonzero(np.diff(status)) + 1), len(status)]
    scale = WIDTH / len(status)
    rects = "".join(
        f"<rect x={MARGIN + a * scale:.1f} y={y} width={(b - a) * scale:.1f} height={ROW - 2} "
        f"fill='{COLOURS[Status(int(status[a]))]}'/>"
        for a, b in pairwise(cuts)
    )
    marks = "".join(f"<rect x={MARGIN + at * scale:.1f} y={y - 1} width=2 height={ROW} fill='#000'/>" for at in touched)
    name = html.escape(f"{one.space}[{one.unit}]")
    number = f"<text x={MARGIN - 6} y={y + 7} text-anchor=end>{one.unit}</text>"
    return f"<g class=unit data-unit='{name}' tabindex=0>{number}{rects}{marks}</g>"
