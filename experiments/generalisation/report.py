"""What a run has shown: what every knob buys on the first task and costs on the next, and what goes with what."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.generalisation.config import KNOBS
from experiments.kit.intervals import Interval, interval
from experiments.kit.terminal import Table
from lopjax.runs import RunData

HEADS = (
    "activation", "knob", "best value", "test accuracy − default", "next task: loss − default", "its end − default",
    "distance to clones − default", "rank − default",
)  # fmt: skip
MEASURED = ("test_accuracy", "next_loss", "next_end_loss", "distance", "rank")
RESAMPLES = 1000

Samples = dict[str, np.ndarray]
"""Measured values, each `(settings, seeds)`."""


class Relation(NamedTuple):
    """Two measured values, and those that are held fixed.

    Attributes:
        first: one of the two.
        second: the other.
        fixed: taken out of both by linear regression, after all have been turned into ranks.
    """

    first: str
    second: str
    fixed: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """For tables."""
        names = {
            "test_accuracy": "test accuracy",
            "next_loss": "loss on the next task",
            "distance": "distance to clones",
        }
        pair = f"{names.get(self.first, self.first)} and {names.get(self.second, self.second)}"
        given = " and ".join(names.get(name, name) for name in self.fixed)
        return f"{pair}, at the same {given}" if given else pair


RELATIONS = (
    Relation("test_accuracy", "next_loss"),
    Relation("distance", "next_loss"),
    Relation("rank", "next_loss"),
    Relation("test_accuracy", "distance"),
    Relation("test_accuracy", "next_loss", ("distance",)),
    Relation("test_accuracy", "next_loss", ("norm",)),
    Relation("distance", "next_loss", ("test_accuracy",)),
    Relation("distance", "next_loss", ("norm",)),
    Relation("rank", "next_loss", ("distance",)),
    Relation("norm", "next_loss", ("distance",)),
)


def samples(data: RunData, name: str, knob: str | None = None) -> Samples:
    """Everything measured of an activation, `(settings, seeds)`: of all settings, or of the default and one knob's."""
    seeds = data.config["seeds"]
    wanted = [
        record
        for record in data.select(activation=name)
        if knob is None or record["knob"] == knob or record["place"] == 0
    ]
    by_setting: dict[tuple, dict[int, dict[str, Any]]] = {}
    for record in wanted:
        # The default is the first setting of every knob.
        by_setting.setdefault((record["place"] > 0, record["knob"], record["place"]), {})[record["seed"]] = record
    rows = [by_setting[key] for key in sorted(by_setting) if len(by_setting[key]) == len(seeds)]
    names = ("test_accuracy", "train_accuracy", "distance", "rank", "dead", "norm", "next_loss", "next_end_loss",
             "anew_next_loss", *KNOBS)  # fmt: skip
    return {key: np.array([[_number(row[seed][key]) for seed in seeds] for row in rows]) for key in names}


def correlation(values: Samples, relation: Relation) -> float:
    """Spearman's correlation over settings within seeds, pooled; partial where something is held fixed.

    Every seed's values are turned into ranks over settings and centred, so that easy tasks and lucky starts do not
    count. What is held fixed is then regressed out of both ranks.
    """
    from scipy.stats import rankdata

    def ranks(name: str) -> np.ndarray:
        of_seeds = rankdata(values[name], axis=0)
        return (of_seeds - of_seeds.mean(0)).ravel()

    first, second = ranks(relation.first), ranks(relation.second)
    if relation.fixed:
        fixed = np.stack([ranks(name) for name in relation.fixed], axis=1)
        first, second = (each - fixed @ np.linalg.lstsq(fixed, each, rcond=None)[0] for each in (first, second))
    size = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / size) if size > 0 else math.nan


def with_interval(values: Samples, relation: Relation) -> Interval:
    """The correlation, and the middle 95 % of it when seeds are drawn again with replacement."""
    rng, num = np.random.default_rng(0), next(iter(values.values())).shape[1]
    drawn = [
        correlation({name: each[:, seeds] for name, each in values.items()}, relation)
        for seeds in rng.integers(num, size=(RESAMPLES, num))
    ]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(correlation(values, relation), float(low), float(high))


def best(values: Samples) -> int:
    """Place of the setting with the best test accuracy over the first half of the seeds, ties to the earlier."""
    half = values["test_accuracy"].shape[1] // 2
    return int(np.argmax(values["test_accuracy"][:, :half].mean(1)))


def summarise(data: RunData) -> list[dict[str, Any]]:
    """For every activation a row a knob, and its correlations; only of activations that have all their records.

    The value of a knob is chosen by test accuracy on the first half of the seeds. Differences to the default are paired
    and of the second half, `[mean, low, high]`: what chose has no part in them.
    """
    rows = []
    for name in data.config["activations"]:
        if not data.select(activation=name):
            continue
        everything = samples(data, name)
        half = len(data.config["seeds"]) // 2
        for knob in KNOBS:
            own = samples(data, name, knob)
            chosen = best(own)
            row = {"activation": name, "knob": knob, "best": float(own[knob][chosen, 0]), "is_default": chosen == 0}
            changes = {key: own[key][chosen, half:] - own[key][0, half:] for key in MEASURED}
            rows.append(row | {key: list(interval(change)) for key, change in changes.items()})
        relations = {relation.words: list(with_interval(everything, relation)) for relation in RELATIONS}
        anew = interval((everything["next_loss"] - everything["anew_next_loss"])[0, half:])
        rows.append({"activation": name, "relations": relations, "default_less_anew": list(anew)})
    return rows


def table(data: RunData) -> Table:
    """A line a knob; the correlations above."""
    config, rows = data.config, data.summary or summarise(data)
    title = [
        f"{config['samples']} digits, {config['label_noise']:.0%} of the labels redrawn; {len(config['seeds'])} seeds: "
        "half of them choose, the others are reported",
        "differences are paired, with 95 % intervals; loss of the next task: mean over its steps",
    ]
    title += [f"{row['activation']}: the default less drawn anew: {_difference(row['default_less_anew'])}"
              for row in rows if "relations" in row]  # fmt: skip
    return Table("\n".join(title), HEADS, [cells(row) for row in rows if "knob" in row])


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A line of the table."""
    value = "the default" if row["is_default"] else f"{row['best']:g}"
    return (row["activation"], KNOBS[row["knob"]], value, *(_difference(row[name]) for name in MEASURED))


def texts(data: RunData) -> dict[str, str]:
    """Both tables for the documentation."""
    rows = data.summary or summarise(data)
    relations = [row for row in rows if "relations" in row]
    heads = ("Spearman's correlation within seeds", *(row["activation"] for row in relations))
    lines = [
        (relation.words, *(_correlation(row["relations"][relation.words]) for row in relations))
        for relation in RELATIONS
    ]
    return {
        "generalisation.md": _markdown(HEADS, [cells(row) for row in rows if "knob" in row]),
        "relations.md": _markdown(heads, lines if relations else []),
    }


def _markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (heads, ("---",) * len(heads), *lines))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _difference(numbers: Sequence[float]) -> str:
    between = Interval(*numbers)
    return f"{between.mean:+.3f} ± {between.half:.3f}"


def _correlation(numbers: Sequence[float]) -> str:
    between = Interval(*numbers)
    return f"{between.mean:+.2f} [{between.low:+.2f}, {between.high:+.2f}]"
