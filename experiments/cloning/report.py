"""What became of the clones: verdicts, the summary of a run and the table on the terminal."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.cloning.config import methods_of
from experiments.kit.grid import axes_of
from experiments.kit.methods import METHODS, Point, curves
from experiments.kit.terminal import Table
from lopjax.runs import RunData

LEFT, ESCAPED = 1e-3, 0.95
_NUMBERS = (
    *("r2_at_cloning", "r2_final", "rank_at_cloning", "rank_final", "logit_difference_at_cloning", "leaf_residual"),
    *("base_train_loss", "clone_train_loss", "base_test_accuracy", "clone_test_accuracy"),
)


class Fate(NamedTuple):
    """What became of one clone.

    Attributes:
        verdict: "stayed", "left", "escaped"; "diverged" if the lane was frozen or its last R² is not finite; "not
            cloned yet" while the base is trained.
        left: first step from which 1 - R² > 1e-3 to the end, for at least two records; None if there is none.
        escaped: first step from which R² < 0.95 to the end; None if there is none.
        rounding: largest finite 1 - R² recorded: what rounding alone has done to clones that stayed.
    """

    verdict: str
    left: int | None
    escaped: int | None
    rounding: float


_DIVERGED = Fate("diverged", None, None, 0.0)
_NOT_CLONED = Fate("not cloned yet", None, None, 0.0)


def fate(steps: Any, r2: Any) -> Fate:
    """Decide what became of a clone from its R² at the recorded steps (the words are those of the documentation)."""
    steps, r2 = np.asarray(steps), np.asarray(r2)
    departures = 1 - r2
    rounding = float(np.max(departures, where=np.isfinite(departures), initial=0.0))
    if not np.isfinite(r2[-1]):
        return _DIVERGED._replace(rounding=rounding)

    def start_of_final_run(holds: Any, at_least: int) -> int | None:
        length = len(holds) if holds.all() else int(holds[::-1].argmin())
        return int(steps[len(steps) - length]) if length >= at_least else None

    left = start_of_final_run(departures > LEFT, 2)
    escaped = start_of_final_run(r2 < ESCAPED, 1)
    verdict = "escaped" if escaped is not None else "left" if left is not None else "stayed"
    return Fate(verdict, left, escaped, rounding)


# --- The summary --------------------


def rows_of(config: Mapping[str, Any]) -> list[tuple[str, Point, str]]:
    """The rows of the table: method, point of the grid, and the phase in which its clones live.

    If a run releases its clones, the first row is their life before that, under SGD.
    """
    release_at = config.get("release_at", 0)
    trapped: list[tuple[str, Point, str]] = [("sgd", (), "clone")] if release_at else []
    phase = "release" if release_at else "clone"
    released = curves(methods_of(config["methods"], release_at), axes_of(config))
    return trapped + [(*curve, phase) for curve in released]


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per lane that has records: what became of the clones, and how losses, R² and rank moved.

    `frozen_at` is the step, counted from the first of the base, at which the lane was frozen because a loss was not
    finite. A lane frozen before it was cloned has None for everything about its clone. `certificate_at_start` and
    `certificate` are names of verdicts at the first and the last record of the phase, `stability` is that of the
    manifold that the clones are on at the end. `trapped_*`, in runs that release clones: see `_trapped`.
    """
    rows = []
    for method, point, phase in rows_of(data.config):
        for seed in data.config["seeds"]:
            lane = {"method": method, **dict(point), "seed": seed}
            before = {"method": "sgd", "seed": seed} if phase == "release" else lane
            if not data.select(**lane) and not any("frozen_at" in row for row in data.select(**before)):
                continue
            rows_seen = data.select(**lane) or data.select(**before)
            marks = [record["frozen_at"] for record in rows_seen if "frozen_at" in record]
            frozen_at = marks[0] if marks else None
            numbers = _numbers(data, frozen_at, phase=phase, **lane)
            rows.append({**lane, "phase": phase, **numbers, **_trapped(data, lane, phase), "frozen_at": frozen_at})
    return rows


def _numbers(data: RunData, frozen_at: int | None, **where: Any) -> dict[str, Any]:
    """Fate, numbers and certificates of one lane; None for each number of a lane without a clone."""
    records = data.select(**where)
    if not records or where["phase"] not in ("clone", "release"):
        outcome = _DIVERGED if frozen_at is not None else _NOT_CLONED
        nothing = dict.fromkeys((*_NUMBERS, "certificate_at_start", "certificate", "stability"))
        return {**outcome._asdict(), **nothing}

    def column(name: str) -> Any:
        return data.column(name, **where)

    r2, rank = column("clone/r2_forward/mean"), column("clone/effective_rank/mean")
    outcome = fate(column("step"), r2)
    outcome = outcome if frozen_at is None else _DIVERGED._replace(rounding=outcome.rounding)
    numbers = (
        *(r2[0], r2[-1], rank[0], rank[-1]),
        *(column("logit_difference")[0], column("clone/bc_residual").max()),
        *(_last(records, f"{name}/train_loss") for name in ("base", "clone")),
        *(column(f"{name}/test_accuracy")[-1] for name in ("base", "clone")),
    )
    certificates = {
        "certificate_at_start": records[0].get("certificate"),
        "certificate": records[-1].get("certificate"),
    }
    return {
        **outcome._asdict(),
        **dict(zip(_NUMBERS, numbers)),
        **certificates,
        "stability": records[-1].get("stability"),
    }


def _trapped(data: RunData, lane: dict[str, Any], phase: str) -> dict[str, Any]:
    """Before clones are released: does their loss stay above the base's, and was it predicted?

    `trapped_gap`: training loss of the clone minus that of the base, mean over the last quarter of the records;
    `trapped_gap_before`: over the quarter before. `trapped_prediction`: largest difference, at any record, between the
    clone's loss and that of the base trained by the quotient dynamics; `trapped_exact_until`: the step up to which
    there is none at all.
    """
    records = [row for row in data.select(**lane, phase="clone") if "quotient/train_loss" in row]
    if phase != "clone" or not records:
        return {}
    losses = {name: _losses(records, name) for name in ("base", "clone", "quotient")}
    gap, quarter = losses["clone"] - losses["base"], max(len(records) // 4, 1)
    error, earlier = np.abs(losses["clone"] - losses["quotient"]), gap[-2 * quarter : -quarter]
    exact = int(np.argmax(error > 0)) if (error > 0).any() else len(error)
    return {
        "trapped_gap": float(gap[-quarter:].mean()),
        "trapped_gap_before": float(earlier.mean()) if len(earlier) else None,
        "trapped_prediction": float(error.max()),
        "trapped_exact_until": records[exact - 1]["step"] if exact else 0,
    }


def _losses(records: list[dict[str, Any]], network: str) -> np.ndarray:
    values = [record[f"{network}/train_loss"] for record in records]
    return np.array([math.nan if value is None else value for value in values])


def _last(records: list[dict[str, Any]], name: str) -> float | None:
    """The last value recorded: at cloning itself there is no training loss yet."""
    values = [record[name] for record in records if name in record]
    return values[-1] if values else None


# --- The table --------------------


def table(data: RunData) -> Table:
    """The table on the terminal, also of an incomplete run: one row per method and grid point, means over seeds."""
    summary, rows = data.summary or summarise(data), []
    axes = [name for name, _ in axes_of(data.config)]
    for method, point, phase in rows_of(data.config):
        at_point = [str(dict(point).get(name, "-")) for name in axes]
        where = {"method": method, "phase": phase, **dict(point)}
        seeds = [row for row in summary if all(row.get(name, value) == value for name, value in where.items())]
        name = f"{method}, trapped" if phase == "clone" and data.config.get("release_at", 0) else method
        name += "*" if METHODS[method].needs_boundaries else ""
        if not seeds:
            rows.append((name, *at_point, "not started", *["-"] * 7))
            continue
        mean = {name: _mean([row[name] for row in seeds]) for name in _NUMBERS}
        rows.append(
            (
                name,
                *at_point,
                _verdict(seeds),
                _step([row["left"] for row in seeds]),
                _step([row["escaped"] for row in seeds]),
                _number(mean["r2_final"], 4),
                f"{_number(mean['rank_at_cloning'], 0)} → {_number(mean['rank_final'], 0)}",
                _number(mean["base_train_loss"], 3),
                _number(mean["clone_train_loss"], 3),
                _stability(seeds),
            )
        )
    columns = ("method", *axes, "clones", "left", "escaped", "R²", "rank", "base", "clone", "manifold")
    return Table("\n".join(_title(data, summary)), columns, rows)


def _title(data: RunData, summary: list[dict[str, Any]]) -> list[str]:
    cloned = [row for row in summary if row["r2_at_cloning"] is not None]
    at_cloning = "No lane was cloned"
    if cloned:
        first = [row for row in cloned if row.get("phase") == cloned[0].get("phase")]  # not those of the release
        difference = max(row["logit_difference_at_cloning"] for row in first)
        r2 = min(row["r2_at_cloning"] for row in first)
        at_cloning = f"At cloning: R² ≥ {r2:.7f}, logits of base and clone within {difference:.1e}"
        at_cloning += _certified(cloned)
    return [
        at_cloning,
        *_explained(summary),
        *_left_out(data.config),
        "left, escaped: step from which 1 - R² > 0.001 (at two records), R² < 0.95 to the end",
        f"R², rank, training loss of base and clone (nats): means of {len(data.config['seeds'])} seeds",
        "manifold: stability of the manifold on which clones with equal weights lie",
    ]


def _certified(cloned: list[dict[str, Any]]) -> str:
    """How many lanes were certified at the start of their phase and at its end."""
    certificates = [(row.get("certificate_at_start"), row.get("certificate")) for row in cloned]
    counts = []
    for at, when in ((0, "at the start"), (1, "at the end")):
        # Only the first and the last record of a phase carry a certificate.
        verdicts = [pair[at] for pair in certificates if pair[at] is not None]
        if len(verdicts) == len(certificates):
            counts.append(f"{sum(name in ('BLOCK_CONSTANT', 'ON_V') for name in verdicts)} of {len(verdicts)} {when}")
    return f"\nCertified as trapped clones: {', '.join(counts)}" if counts else ""


def _explained(summary: list[dict[str, Any]]) -> list[str]:
    """Whether trapped clones train worse than the base, in words; nothing for runs without a release."""
    rows = [row for row in summary if row.get("trapped_gap") is not None]
    if not rows:
        return []
    gap, error = _mean([row["trapped_gap"] for row in rows]), max(row["trapped_prediction"] for row in rows)
    earlier = [row["trapped_gap_before"] for row in rows]
    trend = "" if None in earlier else f", {_mean(earlier):+.4f} a quarter earlier"
    signs = {row["trapped_gap"] > 0 for row in rows}
    verdict = "above the base in some seeds, below in others"
    if len(signs) == 1:
        verdict = "above: the clone is behind its base" if gap > 0 else "below: no plateau above the base"
    exact = min(row["trapped_exact_until"] for row in rows)
    return [
        f"While trapped, the clone's loss minus the base's was {gap:+.4f}{trend}; {verdict}",
        "A trapped clone is the base with other learning rates (quotient dynamics): the base trained",
        f"with these predicts its loss exactly up to step {exact}"
        + (f", to {error:.0e} after that (rounding)" if error else ""),
    ]


def _left_out(config: Mapping[str, Any]) -> list[str]:
    """Methods that do not take part in a release."""
    left_out = sorted(set(config["methods"]) - set(methods_of(config["methods"], config.get("release_at", 0))))
    text = f"Not released: {', '.join(left_out)}; the clones of SGD go on by methods of its kind"
    return [text] if left_out else []


def _stability(seeds: list[dict[str, Any]]) -> str:
    """Verdicts on the manifold of all seeds, in words."""
    verdicts = sorted({row["stability"]["verdict"].lower().replace("_", "-") for row in seeds if row.get("stability")})
    return " / ".join(verdicts) or "-"


def _mean(values: list[float | None]) -> float:
    """Mean over seeds; NaN if a seed has no value (null in JSON)."""
    return math.nan if None in values else math.fsum(value for value in values if value is not None) / len(values)


def _number(value: float, digits: int) -> str:
    """A number of the table; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _step(steps: list[int | None]) -> str:
    """Median of the steps at which it happened, and to how many seeds if not to all."""
    reached = [step for step in steps if step is not None]
    if not reached:
        return "never"
    return f"{np.median(reached):,.0f}" + (f" ({len(reached)}/{len(steps)})" if len(reached) < len(steps) else "")


def _verdict(seeds: list[dict[str, Any]]) -> str:
    """What became of the clones of all seeds; for those that stayed, whether exactly or up to rounding."""
    verdicts = sorted({row["verdict"] for row in seeds})
    if verdicts == ["diverged"]:
        frozen = [row["frozen_at"] for row in seeds if row["frozen_at"] is not None]
        return f"diverged at {_step(frozen)}" if frozen else "diverged"
    if verdicts != ["stayed"]:
        return " / ".join(verdicts)
    rounding = max(row["rounding"] for row in seeds)
    residual = max(row["leaf_residual"] for row in seeds)
    if residual == 0:
        return "stayed, exactly"
    departure = max(rounding, residual)
    return f"stayed to {departure:.0e}" if departure <= LEFT else f"not yet left ({departure:.0e})"
