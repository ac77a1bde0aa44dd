"""What became of the clones: the verdicts of E1, its summary and the table on the terminal."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.presentation import Presentation

if TYPE_CHECKING:
    from collections.abc import Mapping

    from matplotlib.figure import Figure

    from experiments.terminal import Table
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
        left: first step from which 1 - R² > 1e-3 to the end, at two records at least; None if there is none.
        escaped: first step from which R² < 0.95 to the end; None if there is none.
        rounding: largest finite 1 - R² seen: what rounding alone has done to clones that stayed.
    """

    verdict: str
    left: int | None
    escaped: int | None
    rounding: float


_DIVERGED = Fate("diverged", None, None, 0.0)
_NOT_CLONED = Fate("not cloned yet", None, None, 0.0)


def fate(steps: Any, r2: Any) -> Fate:
    """Decide what became of a clone from its R² at the recorded steps (the words are those of the documentation)."""
    import numpy as np

    steps, r2 = np.asarray(steps), np.asarray(r2)
    lost = 1 - r2
    rounding = float(np.max(lost, where=np.isfinite(lost), initial=0.0))
    if not np.isfinite(r2[-1]):
        return _DIVERGED._replace(rounding=rounding)

    def start_of_final_run(holds: Any, at_least: int) -> int | None:
        length = len(holds) if holds.all() else int(holds[::-1].argmin())
        return int(steps[len(steps) - length]) if length >= at_least else None

    left = start_of_final_run(lost > LEFT, 2)
    escaped = start_of_final_run(r2 < ESCAPED, 1)
    verdict = "escaped" if escaped is not None else "left" if left is not None else "stayed"
    return Fate(verdict, left, escaped, rounding)


def summarise(data: "RunData") -> list[dict[str, Any]]:
    """One row a method and seed that has records: what became of the clones, how losses, R² and rank moved.

    `frozen_at` is the step, counted from the first of the base, at which the lane was frozen because a loss was not
    finite. A lane frozen before it was cloned has None for all that is said of its clone.
    """
    rows = []
    for method in data.config["methods"]:
        for seed in data.config["seeds"]:
            lane = {"method": method, "seed": seed}
            if not data.select(**lane):
                continue
            marks = [record["frozen_at"] for record in data.select(**lane) if "frozen_at" in record]
            frozen_at = marks[0] if marks else None
            rows.append({**lane, **_numbers(data, frozen_at, phase="clone", **lane), "frozen_at": frozen_at})
    return rows


def _numbers(data: "RunData", frozen_at: int | None, **where: Any) -> dict[str, Any]:
    """Fate and numbers of one lane; None for each number of a lane without a clone."""
    if not data.select(**where):
        found = _DIVERGED if frozen_at is not None else _NOT_CLONED
        return {**found._asdict(), **dict.fromkeys(_NUMBERS)}

    def column(name: str) -> Any:
        return data.column(name, **where)

    r2, rank = column("clone/r2_forward/mean"), column("clone/effective_rank/mean")
    found = fate(column("step"), r2)
    found = found if frozen_at is None else _DIVERGED._replace(rounding=found.rounding)
    numbers = (
        *(r2[0], r2[-1], rank[0], rank[-1]),
        *(column("logit_difference")[0], column("clone/bc_residual").max()),
        *(_last(data.select(**where), f"{name}/train_loss") for name in ("base", "clone")),
        *(column(f"{name}/test_accuracy")[-1] for name in ("base", "clone")),
    )
    return {**found._asdict(), **dict(zip(_NUMBERS, numbers))}


def _last(records: list[dict[str, Any]], name: str) -> float | None:
    """The last value there is: at cloning itself there is no training loss yet."""
    values = [record[name] for record in records if name in record]
    return values[-1] if values else None


def table(data: "RunData") -> "Table":
    """The table on the terminal: a row a method, means over its seeds; also of a run that is not complete."""
    from experiments.terminal import Table

    summary, rows = data.summary or summarise(data), []
    for method in data.config["methods"]:
        seeds = [row for row in summary if row["method"] == method]
        if not seeds:
            rows.append((method, "not started", *["-"] * 6))
            continue
        mean = {name: _mean([row[name] for row in seeds]) for name in _NUMBERS}
        rows.append(
            (
                method,
                _verdict(seeds),
                _step([row["left"] for row in seeds]),
                _step([row["escaped"] for row in seeds]),
                _number(mean["r2_final"], 4),
                f"{_number(mean['rank_at_cloning'], 0)} → {_number(mean['rank_final'], 0)}",
                _number(mean["base_train_loss"], 3),
                _number(mean["clone_train_loss"], 3),
            )
        )
    columns = ("method", "clones", "left", "escaped", "R²", "rank", "base loss", "clone loss")
    cloned = [row for row in summary if row["r2_at_cloning"] is not None]
    at_cloning = "No lane was cloned"
    if cloned:
        difference = max(row["logit_difference_at_cloning"] for row in cloned)
        r2 = min(row["r2_at_cloning"] for row in cloned)
        at_cloning = f"At cloning: R² ≥ {r2:.7f}, logits of base and clone within {difference:.1e}"
    title = (
        f"{at_cloning}\n"
        "left, escaped: step from which 1 - R² > 0.001, R² < 0.95 to the end (median)\n"
        f"R², effective rank, training loss (nats): means of {len(data.config['seeds'])} seeds at the end"
    )
    return Table(title, columns, rows)


def _mean(values: list[float | None]) -> float:
    """Mean over seeds; not a number if a seed has none (JSON's null)."""
    return math.nan if None in values else math.fsum(value for value in values if value is not None) / len(values)


def _number(value: float, digits: int) -> str:
    """A number of the table; a dash where there is none."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _step(steps: list[int | None]) -> str:
    """Median of the steps at which it happened, and how many seeds it happened to unless to all."""
    import numpy as np

    reached = [step for step in steps if step is not None]
    if not reached:
        return "never"
    return f"{np.median(reached):,.0f}" + (f" ({len(reached)}/{len(steps)})" if len(reached) < len(steps) else "")


def _verdict(seeds: list[dict[str, Any]]) -> str:
    """What became of the clones of all seeds; for clones that stayed, whether exactly or up to rounding."""
    verdicts = sorted({row["verdict"] for row in seeds})
    if verdicts == ["diverged"]:
        frozen = [row["frozen_at"] for row in seeds if row["frozen_at"] is not None]
        return f"diverged at {_step(frozen)}" if frozen else "diverged"
    if verdicts != ["stayed"]:
        return " / ".join(verdicts)
    rounding = max(row["rounding"] for row in seeds)
    residual = max(row["leaf_residual"] for row in seeds)
    return "stayed, exactly" if residual == 0 else f"stayed to {max(rounding, residual):.0e}"


def num_records(config: "Mapping[str, Any]") -> int:
    """Of a complete run: one a lane for every chunk of training, and one at cloning."""
    chunks = (config["base_length"] + config["clone_length"]) // config["record_every"]
    return len(config["methods"]) * len(config["seeds"]) * (chunks + 1)


def figures(data: "RunData") -> "dict[str, Figure]":
    """The figure of E1."""
    from lopjax.plotting import cloning_figure

    return {"cloning": cloning_figure(data)}


PRESENTATION = Presentation(table, figures, num_records)
