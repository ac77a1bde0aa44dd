"""What became of the networks: losses less those of fresh networks with intervals, symptoms, clones, the table."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.continual.methods import fresh, is_fresh, label_of, lanes_of, method_of
from experiments.continual.report import at_ends, less_fresh, over_tasks, verdict
from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from experiments.language.clones import clones_of, in_words
from lopjax.runs import RunData

_SYMPTOMS = {"effective_rank": 1, "dead_fraction": 2, "duplicate_fraction": 2}
_DIFFERENCES = ("online_less_fresh", "growth", "test_less_fresh", "online_less_plain")


def late(curve: np.ndarray) -> float:
    """Mean over the last half of the tasks."""
    return float(curve[len(curve) // 2 :].mean()) if len(curve) > 1 else math.nan


def early(curve: np.ndarray) -> float:
    """Mean over the first fifth of the tasks."""
    return float(curve[: max(len(curve) // 5, 1)].mean()) if len(curve) > 1 else math.nan


def differences(data: RunData, name: str) -> dict[str, list[float]]:
    """By kind, a number a seed, in nats a token, negative is better; none of a fresh network, none without them.

    `online_less_fresh`: loss before each update, mean over the last half of the tasks, less that of the fresh networks;
    `growth`: the same less what it was over the first fifth; `test_less_fresh`: loss on the test windows after a task;
    `online_less_plain`: online loss less that of the plain optimizer beneath, if it is in the run.
    """
    found: dict[str, list[float]] = {kind: [] for kind in _DIFFERENCES}
    plain = method_of(name).control
    for seed in data.config["seeds"]:
        if data.config["fresh"] and not is_fresh(name):
            online, test = (less_fresh(data, loss, name, seed) for loss in ("online_loss", "test_loss"))
            found["online_less_fresh"].append(late(online))
            found["growth"].append(late(online) - early(online))
            found["test_less_fresh"].append(late(test))
        if plain in data.config["methods"] and name not in (plain, fresh(plain)):
            own, other = (over_tasks(data, "online_loss", lane, seed) for lane in (name, plain))
            num = min(len(own), len(other))
            found["online_less_plain"].append(late(own[:num] - other[:num]))
    return found


def in_a_word(growth: Interval) -> str:
    """In words: "lost" where the loss grows beyond the fresh networks', "gained" where it falls; else "undecided".

    >>> in_a_word(Interval(0.3, 0.1, 0.5)), in_a_word(Interval(0.3, -0.1, 0.7))
    ('lost', 'undecided')
    """
    word = verdict(Interval(-growth.mean, -growth.high, -growth.low))
    return "gained" if word == "better" else word


# --- The summary --------------------


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row a lane that has finished a task; `clones` is that of `clones_of`, at the end of a complete run."""
    rows = []
    for name in lanes_of(tuple(data.config["methods"]), data.config["fresh"]):
        found = differences(data, name)
        for place, seed in enumerate(data.config["seeds"]):
            if records := data.select(method=name, seed=seed, is_end=True):
                own = {kind: _plain(values[place]) if values else None for kind, values in found.items()}
                row = {"method": name, "seed": seed, "tasks": len(records), **own, **_numbers(data, name, seed)}
                rows.append({**row, "clones": clones_of(data, name, place)})
    return rows


def last_mlp(data: RunData) -> str:
    """The site whose units can die: the stream has no activation, and a layer of few heads no rank to lose."""
    return f"mlp_{data.config['net']['depth'] - 1}"


def _numbers(data: RunData, name: str, seed: int) -> dict[str, Any]:
    records = data.select(method=name, seed=seed, is_end=True)
    marks = [record["frozen_at"] for record in records if "frozen_at" in record]
    found: dict[str, Any] = {"frozen_at": marks[0] if marks else None}
    found["online_loss"] = _plain(late(over_tasks(data, "online_loss", name, seed)))
    for symptom in _SYMPTOMS:
        values = at_ends(data, f"probe/{symptom}/{last_mlp(data)}", name, seed)
        found |= {f"{symptom}_first": _plain(values[0]), f"{symptom}_last": _plain(values[-1])}
    for count in ("died", "revived"):
        found[count] = int(np.nansum(at_ends(data, f"units/{count}", name, seed)))
    return found


# --- The table --------------------


def table(data: RunData) -> Table:
    """The table on the terminal: a row a method and fresh network; also of an incomplete run."""
    summary = data.summary or summarise(data)
    columns = (
        *("method", "plasticity", "growth", "online - fresh", "test - fresh", "online - plain", "online"),
        *("rank", "dead", "duplicate", "died, revived", "clones at the end"),
    )
    rows = []
    for name in lanes_of(tuple(data.config["methods"]), data.config["fresh"]):
        seeds = [row for row in summary if row["method"] == name]
        rows.append(_row(name, seeds) if seeds else (label_of(name), "not started", *["-"] * (len(columns) - 2)))
    return Table("\n".join(title(data)), columns, rows)


def title(data: RunData) -> list[str]:
    """What was run, and what the columns are."""
    config, seeds = data.config, len(data.config["seeds"])
    tokens = config["num_windows"] * (config["length"] + 1)
    kind = f"{config['num_words']} words" if config["num_words"] else "bytes"
    text = next((record for record in data.records if "text" in record), {"text": "?", "python": "?", "vocabulary": 0})
    return [
        f"{config['num_tasks']} tasks ({config['tasks'].replace('_', ' ')}, {kind}) x {config['steps']:,} steps on "
        f"{tokens:,} tokens, {seeds} seed{'' if seeds == 1 else 's'}; text of Python {text['python']}, "
        f"{text['text'][:12]}",
        "online - fresh: loss before each update in nats a token, mean over the last half of the tasks, less that of",
        "a network drawn anew for every task on the same batches. growth: the same less what it was over the first",
        "fifth; plasticity is lost where its interval is above 0, gained where below. test - fresh: loss on other",
        "windows of the task, after it. online - plain: less plain training. 95 % intervals over seeds, none for one",
        "seed. rank, dead, duplicate: of the last MLP on a fixed probe, after the first and the last task; died,",
        "revived: at all sites, a seed. clones: units that weights or activations make clones, and their certificate",
    ]


def _row(name: str, seeds: list[dict[str, Any]]) -> tuple[str, ...]:
    found = {kind: interval([_number(row[kind]) for row in seeds]) for kind in _DIFFERENCES}
    frozen = [row["frozen_at"] for row in seeds if row["frozen_at"] is not None]
    word = "reference" if is_fresh(name) else f"diverged at {min(frozen):,}" if frozen else in_a_word(found["growth"])
    moves = [
        f"{_mean(seeds, f'{symptom}_first', digits)} → {_mean(seeds, f'{symptom}_last', digits)}"
        for symptom, digits in _SYMPTOMS.items()
    ]
    order = ("growth", "online_less_fresh", "test_less_fresh", "online_less_plain")
    counts = "-" if is_fresh(name) else ", ".join(_mean(seeds, count, 0) for count in ("died", "revived"))
    clones = " / ".join(dict.fromkeys(in_words(row["clones"]) for row in seeds))
    differences = (_with_interval(found[kind]) for kind in order)
    return (label_of(name), word, *differences, _mean(seeds, "online_loss", 3), *moves, counts, clones)


def _with_interval(found: Interval) -> str:
    if not math.isfinite(found.mean):
        return "-"
    return f"{found.mean:+.3f}" + (f" ± {found.half:.3f}" if math.isfinite(found.half) else "")


def _mean(rows: Sequence[Mapping[str, Any]], name: str, digits: int) -> str:
    values = [row[name] for row in rows]
    return "-" if None in values else f"{math.fsum(values) / len(values):.{digits}f}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> float | None:
    """A number of the summary; None if it is not finite."""
    return float(value) if math.isfinite(value) else None
