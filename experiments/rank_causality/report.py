"""What a run has shown: a row an arm, a contrast, a mediator and a diagnostic; the table, and the same in Markdown."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from experiments.kit.intervals import interval
from experiments.kit.terminal import Table
from experiments.rank_causality.arms import ARMS, CONTRASTS, FREE, FRESH, NONE, Contrast
from experiments.rank_causality.config import Case, cases_of
from experiments.rank_causality.effects import (
    DIAGNOSTICS,
    Cell,
    cells_of,
    counter_example,
    gain,
    margin_of,
    order_told,
    ratio,
    verdict,
)
from experiments.rank_causality.mediation import ASSUMPTIONS, mediate, mediate_pooled
from lopjax.runs import RunData

MEDIATORS: dict[str, Callable[[Cell], np.ndarray]] = {
    "gradient norm at the start": lambda cell: np.log(cell.gradient),
    "gradient norm, first tenth": lambda cell: np.log(cell.early_gradient),
    "readiness at the start": lambda cell: np.log(cell.readiness),
    "rank at the start": lambda cell: cell.rank_start,
    "rank, second half": lambda cell: cell.rank_late,
}
"""Of norms the logarithm."""
WORDS = {"rank_start": "rank", "gradient": "gradient norm", "readiness": "readiness"}
SUFFICIENT, NECESSARY = (("woken_on_leaf", "cloned"),), (("split", "dead"), ("kick_small", "cloned"))
"""The contrasts that say whether rank at the start is sufficient for plasticity, and whether it is necessary."""

POOLED = "added units free, against added units that are not"

Rows = list[dict[str, Any]]


def summarise(data: RunData) -> Rows:
    """Rows of five kinds, for every case and task whose fresh wide networks and control are there.

    `arm`: means over seeds, and `[mean, low, high]` of the gain over the control, of the gain in online loss, and of
    the loss less that of networks drawn anew of the same size. `contrast`: the same of two arms, with ratios of the
    diagnostics and what they are counter-examples to. `mediation`: `[estimate, low, high]` of a contrast's total,
    indirect and direct effect; also of all plain wide arms at once, those whose added units are free against the
    others. `diagnostic`: Kendall's tau over the plain wide arms (`is_plain`). `statement`: whether rank at the start is
    sufficient, and whether it is necessary, for plasticity.
    """
    cells, rows = cells_of(data), []
    for case in cases_of(data.config):
        for task in range(1, data.config["num_tasks"] + 1):
            own = {name: cells[case, task, name] for name in data.config["arms"] if (case, task, name) in cells}
            if {FRESH[True], "dead"} <= set(own):
                where = {**case._asdict(), "task": task}
                rows += [{**where, **row} for row in rows_of(own)]
    return rows


def rows_of(cells: dict[str, Cell]) -> Rows:
    """All rows of one case and task."""
    margin = margin_of(cells[FRESH[True]], cells["dead"])
    contrasts = [one for one in CONTRASTS if one.arm in cells and one.control in cells]
    rows = [_arm(name, cells, margin) for name in cells if ARMS[name].control in cells]
    rows += [_contrast(one, cells, margin) for one in contrasts]
    rows += [_mediation(one, name, cells) for one in contrasts for name in MEDIATORS]
    alike = {name: cell for name, cell in cells.items() if is_plain(name) and ARMS[name].is_wide}
    if len(alike) > 2:
        told = {name: _plain(order_told(name, list(alike.values()))) for name in DIAGNOSTICS}
        rows += [{"kind": "diagnostic", "name": WORDS[name], "tau": tau} for name, tau in told.items()]
    if {ARMS[name].is_free for name in alike} == {True, False}:
        rows += [_pooled(name, alike) for name in MEDIATORS]
    return rows + _statements(cells, margin)


def is_plain(name: str) -> bool:
    """Whether an arm has the checkpoint's function and trains by the gradient as it is.

    Of others the gradient says nothing about how they will move, so only the rank of these is held against them.
    """
    arm = ARMS[name]
    return arm.keeps_function and (arm.confinement, arm.regulariser, arm.as_loud_as) == (FREE, NONE, None)


def _arm(name: str, cells: dict[str, Cell], margin: float) -> dict[str, Any]:
    arm, cell = ARMS[name], cells[name]
    fresh, control = cells.get(FRESH[arm.is_wide]), cells[arm.control]
    return {
        "kind": "arm",
        "arm": name,
        "control": arm.control,
        **{field: _number(getattr(cell, field).mean()) for field in (*_MEANS, "change")},
        "gain": _plain(interval(gain(cell, control))),
        "gain_online": _plain(interval(control.online - cell.online)),
        "less_fresh": None if fresh is None else _plain(interval(cell.loss - fresh.loss)),
        "margin": _number(margin),
        "verdict": "reference" if name == arm.control else verdict(gain(cell, control), margin),
    }


_MEANS = ("loss", "online", "accuracy", "rank_start", "rank_late", "gradient", "readiness")


def _contrast(one: Contrast, cells: dict[str, Cell], margin: float) -> dict[str, Any]:
    arm, control = cells[one.arm], cells[one.control]
    # What a regulariser does is no evidence about where a network starts.
    is_evidence = ARMS[one.arm].regulariser == NONE and ARMS[one.arm].as_loud_as is None
    asked = [name for name in DIAGNOSTICS if is_evidence and (name == "rank_start" or is_plain(one.arm))]
    said = {WORDS[name]: counter_example(name, arm, control, margin) for name in asked}
    return {
        "kind": "contrast",
        **one._asdict(),
        "gain": _plain(interval(gain(arm, control))),
        "verdict": verdict(gain(arm, control), margin),
        "ratios": {WORDS[name]: _plain(ratio(name, arm, control)) for name in DIAGNOSTICS},
        "against": {word: each for word, each in said.items() if each},
    }


def _mediation(one: Contrast, name: str, cells: dict[str, Cell]) -> dict[str, Any]:
    arm, control = cells[one.arm], cells[one.control]
    with np.errstate(divide="ignore", invalid="ignore"):
        found = mediate(MEDIATORS[name](arm), MEDIATORS[name](control), -arm.loss, -control.loss)
    return {
        "kind": "mediation",
        **one._asdict(),
        "mediator": name,
        **{k: _plain(v) for k, v in found._asdict().items()},
    }


def _pooled(name: str, cells: dict[str, Cell]) -> dict[str, Any]:
    """Of what it does to free the added units, how much goes through a mediator: all plain wide arms."""
    is_free = np.array([ARMS[arm].is_free for arm in cells])
    with np.errstate(divide="ignore", invalid="ignore"):
        mediators = np.array([MEDIATORS[name](cell) for cell in cells.values()])
    found = mediate_pooled(is_free, mediators, np.array([-cell.loss for cell in cells.values()]))
    where = {"question": POOLED, "arm": "free", "control": "not free", "mediator": name}
    return {"kind": "mediation", **where, **{k: _plain(v) for k, v in found._asdict().items()}}


def _statements(cells: dict[str, Cell], margin: float) -> Rows:
    """Whether rank at the start is sufficient, and necessary: "no" if a contrast shows it, else "undecided"."""
    found = []
    for which, pairs, against in (
        ("sufficient", SUFFICIENT, "not sufficient"),
        ("necessary", NECESSARY, "not necessary"),
    ):
        known = [(cells[arm], cells[control]) for arm, control in pairs if {arm, control} <= set(cells)]
        said = [counter_example("rank_start", *pair, margin) for pair in known]
        if known:
            found.append((which, "no" if against in said else "undecided"))
    return [{"kind": "statement", "rank at the start is": which, "answer": answer} for which, answer in found]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _plain(values: Iterable[float]) -> list[float | None]:
    return [_number(value) for value in values]


# --- The table --------------------

COLUMNS = (
    *("arm", "control", "rank", "rank later", "gradient", "readiness", "loss", "accuracy"),
    *("gain over control", "gain online", "less fresh", "verdict"),
)


def table(data: RunData) -> Table:
    """The table on the terminal: a row a case, task and arm; also of an incomplete run."""
    rows = data.summary or summarise(data)
    body = [(_place(row, data), *cells_of_arm(row)) for row in rows if row["kind"] == "arm"]
    return Table("\n".join([*title(data), *conclusions(rows)]), ("case", *COLUMNS), body)


def title(data: RunData) -> list[str]:
    """What the columns are."""
    config = data.config
    return [
        f"{len(config['seeds'])} seeds, tasks of {config['steps']:,} steps of SGD at rate {config['learning_rate']:g}; "
        "95 % intervals of paired differences over seeds, each for itself.",
        "rank: effective rank on the fixed probe, mean over sites, where the task begins; later: over its second half.",
        "gradient: its norm where the task begins; readiness: strength times reliability. gain: by how much the loss",
        "ends lower than the control's; online: mean before each update; less fresh: than drawn anew, same size.",
        "none, small: surely within a quarter of what a wide network drawn anew gains over the checkpoint.",
    ]


def conclusions(rows: Rows) -> list[str]:
    """In sentences, over all cases and tasks: whether rank is sufficient and necessary, and what orders the arms."""
    lines = []
    for which in ("sufficient", "necessary"):
        said = [row["answer"] for row in rows if row["kind"] == "statement" and row["rank at the start is"] == which]
        counts = ", ".join(f"{answer} in {said.count(answer)}" for answer in dict.fromkeys(said))
        lines += [f"Is rank at the start {which}? Of {len(said)} cases and tasks: {counts}."] if said else []
    for name in WORDS.values():
        taus = [row["tau"][0] for row in rows if row["kind"] == "diagnostic" and row["name"] == name]
        known = [tau for tau in taus if tau is not None]
        if known:
            lines.append(
                f"{name} at the start orders the plain wide arms by their loss with tau {np.mean(known):+.2f} "
                f"({min(known):+.2f} to {max(known):+.2f} over cases; 1 is perfect)."
            )
    return lines


def cells_of_arm(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    is_control = row["arm"] == row["control"]
    return (
        ARMS[row["arm"]].label,
        "-" if is_control else ARMS[row["control"]].label,
        *(_text(row[name], digits) for name, digits in (("rank_start", 1), ("rank_late", 1))),
        *(_text(row[name], 2) for name in ("gradient", "readiness")),
        *(_text(row[name], 3) for name in ("loss", "accuracy")),
        *("-" if is_control else spread(row[name]) for name in ("gain", "gain_online")),
        "-" if row["arm"] in FRESH.values() or row["less_fresh"] is None else spread(row["less_fresh"]),
        row["verdict"],
    )


def texts(data: RunData) -> dict[str, str]:
    """`table.md`: for every case and task its arms, contrasts and mediation."""
    rows = data.summary or summarise(data)
    lines = [*title(data), "", *conclusions(rows)]
    for case in cases_of(data.config):
        for task in range(1, data.config["num_tasks"] + 1):
            own = [row for row in rows if (*(row[name] for name in Case._fields), row["task"]) == (*case, task)]
            lines += _markdown(f"{case.name}, task {task}", own) if own else []
    return {"table.md": "\n".join([*lines, "", ASSUMPTIONS]) + "\n"}


def _markdown(name: str, rows: Rows) -> list[str]:
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in ("arm", "contrast", "mediation")}
    contrasts = [
        (
            *(row["question"], f"{row['arm']} - {row['control']}", spread(row["gain"]), row["verdict"]),
            *(f"x {_text(row['ratios'][word][0], 2)}" for word in WORDS.values()),
            "; ".join(f"{word} {said}" for word, said in row["against"].items()) or "-",
        )
        for row in of["contrast"]
    ]
    mediated = [
        (
            f"{row['arm']} - {row['control']}",
            row["mediator"],
            *(bounds(row[k]) for k in ("total", "indirect", "direct")),
        )
        for row in of["mediation"]
        if row["indirect"][0] is not None
    ]
    return [
        *("", f"**{name}**", ""),
        *_grid(COLUMNS, [cells_of_arm(row) for row in of["arm"]]),
        *("", *_grid(("question", "arms", "gain", "verdict", *WORDS.values(), "counter-example"), contrasts)),
        *("", *_grid(("arms", "mediator", "total", "indirect", "direct"), mediated)),
    ]


def _grid(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(words)} |" for words in (columns, ["---"] * len(columns), *rows)]


def _place(row: dict[str, Any], data: RunData) -> str:
    name = Case(*(row[field] for field in Case._fields)).name
    return name if data.config["num_tasks"] == 1 else f"{name}, task {row['task']}"


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def spread(values: Sequence[float | None]) -> str:
    """A mean and half the width of its interval."""
    mean, low, high = values
    if mean is None:
        return "-"
    return f"{mean:+.3f}" + ("" if low is None or high is None else f" ± {(high - low) / 2:.3f}")


def bounds(values: Sequence[float | None]) -> str:
    """An estimate and its interval, which need not be symmetric."""
    estimate, low, high = values
    return "-" if estimate is None or low is None or high is None else f"{estimate:+.3f} ({low:+.3f} to {high:+.3f})"
