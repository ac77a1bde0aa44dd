"""What the remedies did: paired differences with intervals, forgetting beside plasticity, the summary and the table."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from experiments.remedies.methods import CONTROLS, FRESH, METHODS, NUM_SETTINGS, PLAIN, label_of, lanes_of, remedy_of
from lopjax.runs import RunData

# "kept" allows for losing this share of what the plain optimizer loses.
MARGIN = 0.25
BASES = {
    **{"upgd": "sgd", "mixtures": "adam", "random_labels": "adam"},
    **{"bit_flipping": "sgd", "permuted_labels": "adam"},
    "permuted_pixels": "adam",
}
COLUMNS = (
    *("method", "setting", "plasticity", "late - fresh", "late - early", "late - plain"),
    *("test - fresh", "earlier tasks", "less plain's", "useful", "cost"),
)


def curves(data: RunData, stream: str, method: str, value: str, phase: str = "evaluate", **where: Any) -> np.ndarray:
    """A value of every record, `(seeds, records)`; NaN where a lane has diverged, no columns if it has not begun."""
    seeds = data.config["seeds" if phase == "evaluate" else "tuning_seeds"]
    rows = []
    for seed in seeds:
        records = data.select(stream=stream, method=method, phase=phase, seed=seed, **where)
        rows.append([math.nan if record.get(value) is None else float(record[value]) for record in records])
    num = min(map(len, rows))
    return np.array([row[:num] for row in rows]).reshape(len(seeds), num)


def late(curve: np.ndarray) -> np.ndarray:
    """Mean over the last half of the records, one per seed."""
    return curve[:, curve.shape[1] // 2 :].mean(axis=1) if curve.shape[1] > 1 else np.full(len(curve), math.nan)


def early(curve: np.ndarray) -> np.ndarray:
    """Mean over the first fifth of the records, one per seed."""
    num = max(curve.shape[1] // 5, 1)
    return curve[:, :num].mean(axis=1) if curve.shape[1] > 1 else np.full(len(curve), math.nan)


def paired(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Differences record by record, as far as both have come."""
    num = min(a.shape[1], b.shape[1])
    return a[:, :num] - b[:, :num]


def change(data: RunData, stream: str, method: str) -> np.ndarray:
    """For each seed, how the difference from the fresh network has changed: late records minus early ones."""
    away = paired(curves(data, stream, method, "online"), curves(data, stream, FRESH, "online"))
    return late(away) - early(away)


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per method and stream; every interval `[mean, low, high]` over seeds, null where it is not known.

    `late_less_fresh`: online score (accuracy, or the negative squared error) over the last half of the tasks minus that
    of a network drawn anew for each; `late_less_early`: the same minus what it was over the first fifth;
    `late_less_plain`: minus that of the plain optimizer at the stream's own rate. `test_less_fresh`: as the first, of
    the score on a task's test examples at its end, in eval mode: dropout takes no part in it. `transfer`: score on the
    tasks one, two and four back minus what it was when each ended; `transfer_less_plain`: paired. `useful`: how many of
    the settings had a better online score on the tuning seeds than the plain optimizer; null if that was not tuned.
    """
    by_place = defaultdict(list)
    for record in data.records:
        by_place[record.get("stream"), record.get("method")].append(record)
    rows = []
    for stream in data.config["streams"]:
        for method in lanes_of(tuple(data.config["methods"]), BASES[stream]):
            # A row reads few of the records, and many times.
            read = dict.fromkeys((method, FRESH, PLAIN, "learning_rate"))
            own = data._replace(records=[record for name in read for record in by_place[stream, name]])
            if curves(own, stream, method, "online").shape[1] > 1:
                rows.append(_row(own, stream, method))
    return rows


def _row(data: RunData, stream: str, method: str) -> dict[str, Any]:
    score, plain = (curves(data, stream, name, "online") for name in (method, PLAIN))
    intervals: dict[str, Interval] = {
        "late": interval(late(score)),
        "late_less_fresh": interval(late(paired(score, curves(data, stream, FRESH, "online")))),
        "late_less_early": interval(change(data, stream, method)),
        "late_less_plain": interval(late(paired(score, plain))),
        "test_less_fresh": interval(late(paired(*(curves(data, stream, name, "end") for name in (method, FRESH))))),
        "transfer": interval(transfer(data, stream, method)),
        "transfer_less_plain": interval(transfer(data, stream, method) - transfer(data, stream, PLAIN)),
    }
    records = data.select(stream=stream, method=method, phase="evaluate")
    frozen = [record["frozen_at"] for record in records if "frozen_at" in record]
    plain_loss, changed = interval(change(data, stream, PLAIN)), intervals["late_less_early"]
    return {
        "stream": stream,
        "method": method,
        "setting": None if method in CONTROLS else records[0]["setting"],
        "verdict": f"diverged at {min(frozen):,}" if frozen else verdict(method, changed, plain_loss),
        **{name: [_plain(number) for number in bounds] for name, bounds in intervals.items()},
        "useful": useful(data, stream, method),
        "touched": _plain(float(np.mean(curves(data, stream, method, "touched")))),
        "treatment": treatment(data, stream, method),
        "cost": cost(data, stream, method),
    }


def verdict(method: str, found: Interval, plain: Interval) -> str:
    """In words: "lost" or "gained" if the interval of the change lies on one side of zero.

    Otherwise "kept" if it excludes a loss of a quarter of the plain optimizer's, provided that the plain optimizer is
    seen to lose; else "undecided".
    """
    if method == FRESH:
        return "reference"
    if not math.isfinite(found.low):
        return "-"
    if found.high < 0:
        return "lost"
    if found.low > 0:
        return "gained"
    return "kept" if plain.high < 0 and found.low > MARGIN * plain.mean else "undecided"


def transfer(data: RunData, stream: str, method: str, *phase: str, **where: Any) -> np.ndarray:
    """For each seed, mean over tasks and lags of the score on an earlier task minus what it was when that ended."""
    totals, counts = (curves(data, stream, method, name, *phase, **where) for name in ("transfer", "transfers"))
    return totals.sum(axis=1) / counts.sum(axis=1)


def useful(data: RunData, stream: str, method: str) -> int | None:
    """How many settings were better than the plain optimizer on the tuning seeds."""
    rates = METHODS["learning_rate"].settings[BASES[stream]]
    if method in CONTROLS or "learning_rate" not in data.config["methods"]:
        return None
    unchanged = [rate["times_rate"] for rate in rates].index(1.0)
    plain = late(curves(data, stream, "learning_rate", "online", "tune", setting=unchanged)).mean()
    scores = [late(curves(data, stream, method, "online", "tune", setting=n)).mean() for n in range(NUM_SETTINGS)]
    return int(sum(score > plain for score in scores))


def treatment(data: RunData, stream: str, method: str) -> dict[str, float | None] | None:
    """What a recovery controller did to a network, means over seeds; null for other methods.

    `kept`: how many actions were kept; `undone`: how many were undone because the loss would have jumped, the budget
    have been exceeded, or a number not have been finite; `change`: the sum over actions of |change of the parameters| /
    |parameters|; `rise`: by how much the batch's loss rose, a mean over the actions kept; null without any.
    """
    counted = {name: curves(data, stream, method, f"own/{name}") for name in ("kept", "undone", "change", "rise")}
    if not np.isfinite(counted["kept"]).all():
        return None
    sizes = data.config[stream]
    steps = sizes["steps"] * sizes["tasks_per_record"]  # records are means over steps
    totals = {name: float(counts.sum(axis=1).mean()) * steps for name, counts in counted.items()}
    rise = totals.pop("rise") / totals["kept"] if totals["kept"] else math.nan
    return {name: _plain(total) for name, total in {**totals, "rise": rise}.items()}


def cost(data: RunData, stream: str, method: str) -> float | None:
    """Processor time of a step relative to a plain step: median over records, without the first, which compiles."""
    of_method, plain = (curves(data, stream, name, "cpu_ms_per_step")[:, 1:] for name in (method, PLAIN))
    return _plain(float(np.median(of_method) / np.median(plain))) if of_method.size and plain.size else None


# --- The table --------------------


def table(data: RunData) -> Table:
    """The table on the terminal, also of an incomplete run: a row per stream and method."""
    return Table("\n".join(title(data)), ("stream", *COLUMNS), [(row["stream"], *cells(row)) for row in _rows(data)])


def texts(data: RunData) -> dict[str, str]:
    """The same in Markdown, a table per stream: `table.md`."""
    lines = []
    for stream in data.config["streams"]:
        lines += ["", f"**{stream}**", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        lines += [_line(cells(row)) for row in _rows(data) if row["stream"] == stream]
        lines += [sentence for row in _rows(data) if row["stream"] == stream for sentence in _treated(row)]
        lines += _grid(data, stream)
    return {"table.md": "\n".join([*title(data), *lines]) + "\n"}


def _grid(data: RunData, stream: str) -> list[str]:
    """A table of all settings on the tuning seeds: by which score the best was chosen, and what earlier tasks kept."""
    lines = [
        "",
        f"{stream}, tuning seeds {', '.join(map(str, data.config['tuning_seeds']))}: late score; earlier tasks",
    ]
    lines += ["", _line(("method", *["setting"] * NUM_SETTINGS)), _line(["---"] * (1 + NUM_SETTINGS))]
    for method in data.config["methods"]:
        cells = []
        for number in range(NUM_SETTINGS):
            if not curves(data, stream, method, "online", "tune", setting=number).size:
                break
            score = late(curves(data, stream, method, "online", "tune", setting=number)).mean()
            kept = transfer(data, stream, method, "tune", setting=number).mean()
            cells.append(
                f"{_setting({'stream': stream, 'method': method, 'setting': number})}: {score:.3f}; {kept:+.3f}"
            )
        if len(cells) == NUM_SETTINGS:
            lines.append(_line((label_of(method), *cells)))
    return lines if len(lines) > 5 else []


def title(data: RunData) -> list[str]:
    """What the columns mean."""
    config, seeds = data.config, len(data.config["seeds"])
    lines = [
        f"{NUM_SETTINGS} settings per method, chosen on {len(config['tuning_seeds'])} tuning seed(s) by online score "
        f"over the last half of the tasks; then {seeds} other seed(s), 95 % intervals over them.",
        "score: accuracy before each update; on regressions minus the squared error. late - fresh: score over the last",
        "half of the tasks minus that of a network drawn anew for each; late - early: minus the same over the first",
        "fifth; late - plain: minus that of the plain optimizer at the stream's rate. plasticity: lost or gained where",
        f"late - early lies on one side of 0; kept where it does not and excludes {MARGIN:.0%} of what plain loses.",
        "test - fresh: as late - fresh, for the score on a task's test examples at its end, in eval mode. earlier",
        "tasks: score on tasks 1, 2 and 4 back minus what it was when they ended. useful: how many settings",
        "beat the plain optimizer on the tuning seeds. cost: processor time of a step relative to a plain step.",
    ]
    if any(METHODS[name].needs_boundaries for name in config["methods"]):
        lines.append("* looks at where a task starts")
    return lines


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text."""
    of = {name: _interval(row[name]) for name in row if isinstance(row[name], list)}
    is_fresh, is_plain = row["method"] == FRESH, row["method"] == PLAIN
    return (
        label_of(row["method"]),
        _setting(row),
        row["verdict"],
        "0" if is_fresh else of["late_less_fresh"],
        "0" if is_fresh else of["late_less_early"],
        "0" if is_plain else of["late_less_plain"],
        "0" if is_fresh else of.get("test_less_fresh", "-"),
        "-" if is_fresh else of["transfer"],
        "-" if is_fresh else "0" if is_plain else of["transfer_less_plain"],
        "-" if row["useful"] is None else f"{row['useful']} of {NUM_SETTINGS}",
        "-" if row["cost"] is None else f"{row['cost']:.2f}",
    )


def _treated(row: dict[str, Any]) -> list[str]:
    """A sentence below the table about what a controller did."""
    if not row.get("treatment"):
        return []
    kept, undone, change, rise = (math.nan if value is None else value for value in row["treatment"].values())
    effect = (
        f"{kept:.1f} actions kept and {undone:.1f} undone per seed; in all they changed the parameters by {change:.2g} "
    )
    return [
        "",
        f"{label_of(row['method'])}: {effect}of their norm, and each raised the batch's loss by {rise:.2g}.",
    ]


def _rows(data: RunData) -> list[dict[str, Any]]:
    return data.summary or summarise(data)


def _setting(row: dict[str, Any]) -> str:
    if row["setting"] is None:
        return "-"
    numbers = remedy_of(row["method"]).settings[BASES[row["stream"]]][row["setting"]]
    return ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in numbers.items())


def _interval(bounds: Sequence[float | None]) -> str:
    mean, low, high = (math.nan if bound is None else bound for bound in bounds)
    if not math.isfinite(mean):
        return "-"
    return f"{mean:+.3f}" + (f" ± {(high - low) / 2:.3f}" if math.isfinite(low) else "")


def _line(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _plain(value: float) -> float | None:
    """A number of the summary; None if it is not finite."""
    return float(value) if math.isfinite(value) else None
