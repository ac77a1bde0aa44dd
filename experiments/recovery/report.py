"""Did recovery pay? Paired differences with intervals, what each method cost, and what each symptom warns of."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.kit.terminal import Table
from lopjax.detection import score_indicator
from lopjax.runs import RunData

LEVEL = 0.95
FALSE_ALARMS = 0.1
Lane = tuple[str, float]


class Interval(NamedTuple):
    """A mean over seeds and half the width of its 95 % interval by Student's law; NaN for fewer than two."""

    mean: float
    half: float


def interval(values: np.ndarray) -> Interval:
    """Mean of independent values and its interval.

    >>> interval(np.array([1.0, 3.0])).mean
    2.0
    """
    from scipy.special import stdtrit

    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return Interval(float(finite[0]) if len(finite) else math.nan, math.nan)
    half = float(stdtrit(len(finite) - 1, (1 + LEVEL) / 2) * finite.std(ddof=1) / math.sqrt(len(finite)))
    return Interval(float(finite.mean()), half)


def curves(data: RunData, name: str) -> dict[Lane, np.ndarray]:
    """A value by method and strength, `(seeds, tasks)`, NaN where there is none yet."""
    config, found = data.config, {}
    for record in data.records:
        if "task" not in record:
            continue
        lane = record["method"], record["strength"]
        array = found.setdefault(lane, np.full((len(config["seeds"]), config["num_tasks"]), np.nan))
        value = record.get(name)
        array[config["seeds"].index(record["seed"]), record["task"]] = math.nan if value is None else value
    return found


def less_fresh(data: RunData, name: str = "online_accuracy") -> dict[Lane, np.ndarray]:
    """Differences to the fresh network of the same seed, task by task."""
    every = curves(data, name)
    fresh = next((array for (method, _), array in every.items() if method == "fresh"), None)
    return {} if fresh is None else {lane: array - fresh for lane, array in every.items() if lane[0] != "fresh"}


def last_half(differences: np.ndarray) -> np.ndarray:
    """Mean of each seed over the last half of its tasks."""
    return differences[:, differences.shape[1] // 2 :].mean(axis=1)


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row a method and strength: differences to the fresh network and to doing nothing, and what it cost."""
    differences, rows = less_fresh(data), []
    costs = {name: curves(data, name) for name in ("actions", "change", "jump")}
    accuracy, ranks = curves(data, "online_accuracy"), curves(data, "rank")
    for lane, array in accuracy.items():
        row: dict[str, Any] = {"method": lane[0], "strength": lane[1], "online": _plain(np.nanmean(last_half(array)))}
        if lane in differences:
            lost, gained = (
                interval(last_half(differences[lane])),
                interval(last_half(array - accuracy["nothing", 0.0])),
            )
            row |= {"less_fresh": _plain(lost.mean), "less_fresh_half": _plain(lost.half)}
            row |= {"over_nothing": _plain(gained.mean), "over_nothing_half": _plain(gained.half)}
        row |= {name: _plain(np.nanmean(values[lane][:, -1])) for name, values in costs.items()}
        row |= {
            "rank_first": _plain(np.nanmean(ranks[lane][:, 0])),
            "rank_last": _plain(np.nanmean(ranks[lane][:, -1])),
        }
        rows.append(row)
    return rows


def best_single(rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The method and strength, of those that act without looking, that is nearest the fresh network.

    Chosen on the same seeds that it is reported on, which favours it.
    """
    single = [row for row in rows if row["method"] in ("noise", "shrink_and_perturb")]
    single = [row for row in single if row.get("less_fresh") is not None]
    return max(single, key=lambda row: row["less_fresh"]) if single else None


def table(data: RunData) -> Table:
    """A row a method and strength, best single one marked."""
    rows = data.summary or summarise(data)
    best = best_single(rows)
    config = data.config
    title = (
        f"{config['num_tasks']} tasks ({config['tasks'].replace('_', ' ')}) x {config['steps']} steps, "
        f"{len(config['seeds'])} seeds; online accuracy, last half of the tasks, paired, 95 % interval over seeds\n"
        "actions, change (sum of relative changes of the parameters) and largest relative jump of the loss: per run\n"
        "* the best single method, chosen on these seeds\n" + "\n".join(warnings_in_words(data))
    )
    columns = ("method", "online", "- fresh", "- nothing", "rank", "actions", "change", "jump")
    return Table(title, columns, [_row(row, row is best) for row in rows])


def _row(row: Mapping[str, Any], is_best: bool) -> tuple[str, ...]:
    strength = f" {row['strength']:g}" if row["strength"] else ""
    return (
        f"{row['method'].replace('_', ' ')}{strength}{' *' if is_best else ''}",
        _number(row["online"], "{:.3f}"),
        _with_half(row.get("less_fresh"), row.get("less_fresh_half")),
        _with_half(row.get("over_nothing"), row.get("over_nothing_half")),
        f"{_number(row['rank_first'], '{:.1f}')} → {_number(row['rank_last'], '{:.1f}')}",
        _number(row["actions"], "{:.0f}"),
        _number(row["change"], "{:.2f}"),
        _number(row["jump"], "{:+.2f}"),
    )


INDICATORS: Mapping[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "fall of the rank": ("rank", lambda a: 1 - a / np.maximum.accumulate(a, axis=1)),
    "low rank": ("rank", lambda a: -a),
    "dead share": ("dead", lambda a: a),
    "saturated share": ("saturated", lambda a: a),
    "within 1 % of a clone": ("near_clones", lambda a: a),
    "within 10 % of a clone": ("within_ten_percent", lambda a: a),
    "pair R²": ("pair_r2", lambda a: a),
    "weight norm": ("weight_norm", lambda a: a),
    "probe loss": ("probe_loss", lambda a: a),
    "online loss": ("online_loss", lambda a: a),
}
"""Symptoms as warnings: the record, and what of it is larger the worse it is."""


def onsets(data: RunData) -> dict[Lane, np.ndarray]:
    """Step from which the difference to the fresh network stays below minus the level, to the end; infinite if never.

    Two tasks at least: the last task alone proves nothing.
    """
    found, steps = {}, data.config["steps"]
    for lane, array in less_fresh(data).items():
        low = array < -data.config["level"]
        tail = np.cumprod(low[:, ::-1], axis=1)[:, ::-1].astype(bool)
        first = np.where(tail[:, -2], tail.argmax(axis=1), np.inf) if low.shape[1] > 1 else np.full(len(low), np.inf)
        found[lane] = (first + 1) * steps
    return found


def warning_scores(data: RunData) -> dict[str, Any]:
    """Lead time of every indicator, over all lanes without a controller; empty if all or none lose plasticity."""
    starts = {lane: each for lane, each in onsets(data).items() if lane[0] != "controller"}
    if not starts:
        return {}
    onset = np.concatenate(list(starts.values()))
    if np.isinf(onset).all() or np.isfinite(onset).all():
        return {}
    steps = (np.arange(data.config["num_tasks"]) + 1) * data.config["steps"]
    scores = {}
    for name, (record, worse) in INDICATORS.items():
        every = curves(data, record)
        values = np.concatenate([worse(every[lane]) for lane in starts])
        scores[name] = score_indicator(values, steps, onset, FALSE_ALARMS)
    return scores


def warnings_in_words(data: RunData) -> list[str]:
    """Lines below the title: which lanes lost plasticity, and the indicators that ring before."""
    scores, starts = warning_scores(data), onsets(data)
    if not scores:
        return ["warnings: not scored, as all lanes lose plasticity or none does"]
    lost = sum(int(np.isfinite(each).sum()) for lane, each in starts.items() if lane[0] != "controller")
    total = sum(len(each) for lane, each in starts.items() if lane[0] != "controller")
    said = ", ".join(
        f"{name} {100 * one.detected:.0f} %" + (f" ({one.lead:+.0f} steps)" if one.detected else "")
        for name, one in sorted(scores.items(), key=lambda item: -item[1].detected)
    )
    return [f"warnings at {100 * FALSE_ALARMS:.0f} % false alarms, {lost} of {total} runs lost: found in time {said}"]


def texts(data: RunData) -> dict[str, str]:
    """The tables in Markdown for the documentation, and what the controllers did."""
    shown = table(data)
    lines = [f"| {' | '.join(shown.columns)} |", f"|{' --- |' * len(shown.columns)}"]
    lines += [f"| {' | '.join(row)} |" for row in shown.rows]
    scores = warning_scores(data)
    if scores:
        lines += ["", "| indicator | threshold | false alarms | found in time | lead, steps |", f"|{' --- |' * 5}"]
        lines += [
            f"| {name} | {one.threshold:.3g} | {100 * one.false_alarms:.0f} % | {100 * one.detected:.0f} % | "
            f"{'-' if math.isnan(one.lead) else f'{one.lead:.0f}'} |"
            for name, one in scores.items()
        ]
    said = [f"seed {row['seed']}:\n" + "\n".join(row["said"]) for row in data.select(method="controller log")]
    return {"tables.md": "\n".join(lines) + "\n", "controller.txt": "\n\n".join(said) + "\n"}


def figures(data: RunData) -> dict[str, Any]:
    """Online accuracy less the fresh network's, task by task, mean over seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.4), layout="constrained")
    axes = figure.subplots()
    best = best_single(data.summary or summarise(data))
    for lane, array in less_fresh(data).items():
        is_shown = lane[0] in ("nothing", "controller") or (best and lane == (best["method"], best["strength"]))
        if is_shown:
            axes.plot(1 + np.arange(array.shape[1]), array.mean(axis=0), label=lane[0].replace("_", " "))
    axes.axhline(0, color="grey", lw=0.8)
    axes.set(xlabel="task", ylabel="online accuracy - fresh network")
    axes.legend(frameon=False)
    return {"recovery": figure}


def _with_half(mean: float | None, half: float | None) -> str:
    return "-" if mean is None else f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
