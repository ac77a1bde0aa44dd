"""What became of the networks: does the error fall and then rise, what keeps it down; intervals over paired seeds."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.bit_flipping.methods import METHODS, Curve, curves_of, label_of
from experiments.kit.grid import axes_of
from experiments.kit.intervals import Interval, around, interval
from experiments.kit.terminal import Table
from lopjax.runs import RunData

SPANS = 10
"""A run is looked at in tenths: its first, its last, and its best."""
SYMPTOMS = ("effective_rank", "duplicate_fraction", "dead_fraction", "saturated_fraction")


# --- Curves over bins --------------------


def curves(data: RunData) -> list[Curve]:
    """The rows of the table."""
    config = data.config
    names = (config["methods"], config["activations"], config["widths"], config["step_sizes"])
    return curves_of(*names, axes_of(config))


def bins_of(data: RunData, name: str) -> dict[Curve, np.ndarray]:
    """A recorded number of every curve, `(seeds, bins)`, as far as all its seeds have come; NaN where it is missing.

    One pass over all records, of which there may be a hundred thousand.
    """
    by_fields = {tuple(sorted(curve.fields().items())): curve for curve in curves(data)}
    columns: dict[Curve, dict[int, list[float]]] = {curve: {} for curve in by_fields.values()}
    names = {curve: tuple(sorted(curve.fields())) for curve in by_fields.values()}
    for record in data.records:
        for fields in set(names.values()):
            curve = by_fields.get(tuple((field, record.get(field)) for field in fields))
            if curve is not None:
                columns[curve].setdefault(record["seed"], []).append(_number(record.get(name)))
    tables = {}
    for curve, seeds in columns.items():
        rows = [seeds.get(seed, []) for seed in data.config["seeds"]]
        num = min(map(len, rows))
        tables[curve] = np.array([row[:num] for row in rows]).reshape(len(rows), num)
    return tables


def spans_of(values: np.ndarray) -> np.ndarray:
    """Means over tenths of a run, `(seeds, 10)`; fewer where there are fewer bins."""
    num = min(SPANS, values.shape[1])
    return np.stack([part.mean(axis=1) for part in np.array_split(values, num, axis=1)], axis=1) if num else values


def rise(spans: np.ndarray) -> np.ndarray:
    """By how much the last tenth is above the best one, a number per seed.

    The best tenth of every other seed is the one that is best on average over the seeds between, and the other way
    round. Chosen by its own errors it would be too good, and noise alone would make every curve rise; chosen by all
    other seeds, which nearly always choose alike, the interval would be too narrow. This way 7 % of all intervals
    exclude zero where there is nothing but noise; 5 % should.
    """
    rises, is_even = np.full(len(spans), np.nan), np.arange(len(spans)) % 2 == 0
    if len(spans) < 4 or spans.shape[1] < 2:
        return rises
    for half in (is_even, ~is_even):
        rises[half] = spans[half, -1] - spans[half, np.argmin(spans[~half].mean(axis=0))]
    return rises


def fall(spans: np.ndarray) -> np.ndarray:
    """By how much the first tenth is above the best one, chosen likewise."""
    return rise(spans) + spans[:, 0] - spans[:, -1] if spans.shape[1] else np.full(len(spans), np.nan)


def verdict(fell: Interval, rose: Interval) -> str:
    """In words; "undecided" where the interval decides nothing."""
    if math.isnan(rose.half):
        return "-"
    words = {1: "rises", 0: "holds or undecided", -1: "holds"}
    return ("falls, " if fell.sign > 0 else "") + words[rose.sign]


# --- Summary and table --------------------


def summarise(data: RunData) -> list[dict[str, Any]]:
    """One row per curve, means over seeds; `*_half` of the 95 % interval, `less_backprop` paired, in the last tenth."""
    names = ("error", "replaced", "units/died", "units/revived", *(f"probe/{name}" for name in SYMPTOMS))
    tables = {name: bins_of(data, name) for name in names}
    return [_row(data, curve, tables) for curve in curves(data) if tables["error"][curve].shape[1]]


def _row(data: RunData, curve: Curve, tables: Mapping[str, Mapping[Curve, np.ndarray]]) -> dict[str, Any]:
    spans = spans_of(tables["error"][curve])
    fell, rose = interval(fall(spans)), interval(rise(spans))
    frozen = _frozen_at(data, curve)
    row: dict[str, Any] = {
        **curve.fields(),
        "bins": tables["error"][curve].shape[1],
        "first": _plain(spans[:, 0].mean()),
        "least": _plain(spans.mean(axis=0).min()),
        "last": _plain(spans[:, -1].mean()),
        "fall": _plain(fell.mean),
        "fall_half": _plain(fell.half),
        "rise": _plain(rose.mean),
        "rise_half": _plain(rose.half),
        "verdict": "diverged" if frozen else verdict(fell, rose),
        "frozen_at": min(frozen) if len(frozen) == len(data.config["seeds"]) else None,
        "frozen": len(frozen),
    }
    control = curve._replace(method="sgd", point=curve.point[:1])
    if curve.method != "sgd" and control in tables["error"]:
        baseline = tables["error"][control]
        if baseline.shape == tables["error"][curve].shape:  # both have come equally far
            difference = interval(spans[:, -1] - spans_of(baseline)[:, -1])
            row |= {"less_backprop": _plain(difference.mean), "less_backprop_half": _plain(difference.half)}
    for name in SYMPTOMS:
        tenths = spans_of(tables[f"probe/{name}"][curve])
        row |= {f"{name}_first": _plain(tenths[:, 0].mean()), f"{name}_last": _plain(tenths[:, -1].mean())}
    for name in ("replaced", "units/died", "units/revived"):
        row[name.removeprefix("units/")] = _plain(tables[name][curve].sum(axis=1).mean())
    return row


def _frozen_at(data: RunData, curve: Curve) -> list[int]:
    """The step at which each diverged seed was frozen; once all lanes of a program are, its records end early."""
    records = data.select(**curve.fields())
    return list({record["seed"]: record["frozen_at"] for record in records if "frozen_at" in record}.values())


def table(data: RunData) -> Table:
    """The table on the terminal: a row per curve, means over seeds; works for an incomplete run, too."""
    config, rows = data.config, []
    for row in data.summary or summarise(data):
        name = [label_of(row["method"])]
        if not METHODS[row["method"]].is_linear:
            name += [row["activation"], str(row["width"])]
        name += [f"{row['step_size']:g}", *(f"{axis}={row[axis]:g}" for axis, _ in axes_of(config) if axis in row)]
        rose, less = (_interval_of(row, value) for value in ("rise", "less_backprop"))
        shown = [_text(row[value], 3) for value in ("first", "least", "last")]
        moves = [f"{_text(row[f'{s}_first'], 2)} → {_text(row[f'{s}_last'], 2)}" for s in SYMPTOMS]
        counts = f"{_text(row['replaced'], 0)}, {_text(row['died'], 0)}, {_text(row['revived'], 0)}"
        rows.append((", ".join(name), row["verdict"], *shown, str(rose), str(less), *moves, counts))
    columns = (
        *("method, activation, width, step size", "error", "first", "least", "last", "last - least"),
        *("last - backprop", "rank", "duplicate", "dead", "saturated", "replaced, died, revived"),
    )
    return Table("\n".join(_title(data)), columns, rows)


def _title(data: RunData) -> list[str]:
    config, seeds = data.config, len(data.config["seeds"])
    flip = "one of {} slow bits flips" if config["flip"] == "one" else "all {} slow bits are drawn anew"
    lines = [
        f"{config['steps']:,} steps, {seeds} seed{'s' if seeds > 1 else ''}; every {config['flip_every']:,} steps "
        f"{flip.format(config['num_slow'])}; thresholds: {config['threshold']}",
        "squared error before each update, means over the first, the least and the last tenth of the run; differences",
        "between paired seeds with 95 % intervals, the least tenth of every other seed chosen by the seeds between",
        "rank, duplicate, dead, saturated: on a fixed random batch, first → last tenth; then counts of units per lane",
    ]
    if any(METHODS[name].needs_boundaries for name in config["methods"]):
        lines.append("* looks at where a task starts")
    return lines


def _interval_of(row: Mapping[str, Any], name: str) -> Interval:
    return around(*(math.nan if row.get(key) is None else row[key] for key in (name, f"{name}_half")))


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _plain(value: Any) -> float | None:
    """A number of the summary; None if it is not finite."""
    return float(value) if math.isfinite(value) else None
