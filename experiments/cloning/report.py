"""What became of the clones: the verdicts of E1, its summary and the table on the terminal."""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from experiments.terminal import Table
    from lopjax.runs import RunData

LEFT, ESCAPED = 1e-3, 0.95
_NOT_NUMBERS = ("method", "seed", "verdict", "left", "escaped")


class Fate(NamedTuple):
    """What became of one clone.

    Attributes:
        verdict: "stayed", "left", "escaped", or "diverged" if the last R² is not a finite number.
        left: first step from which 1 - R² > 1e-3 to the end, at two records at least; None if there is none.
        escaped: first step from which R² < 0.95 to the end; None if there is none.
        rounding: largest finite 1 - R² seen: what rounding alone has done to clones that stayed.
    """

    verdict: str
    left: int | None
    escaped: int | None
    rounding: float


def fate(steps: Any, r2: Any) -> Fate:
    """Decide what became of a clone from its R² at the recorded steps (the words are those of the documentation)."""
    import numpy as np

    steps, r2 = np.asarray(steps), np.asarray(r2)
    lost = 1 - r2
    rounding = float(np.max(lost, where=np.isfinite(lost), initial=0.0))
    if not np.isfinite(r2[-1]):
        return Fate("diverged", None, None, rounding)

    def start_of_final_run(holds: Any, at_least: int) -> int | None:
        length = len(holds) if holds.all() else int(holds[::-1].argmin())
        return int(steps[len(steps) - length]) if length >= at_least else None

    left = start_of_final_run(lost > LEFT, 2)
    escaped = start_of_final_run(r2 < ESCAPED, 1)
    verdict = "escaped" if escaped is not None else "left" if left is not None else "stayed"
    return Fate(verdict, left, escaped, rounding)


def summarise(data: "RunData") -> list[dict[str, Any]]:
    """One row a method and seed: what became of the clones, and how losses, R² and rank moved."""
    rows = []
    for method in data.config["methods"]:
        for seed in data.config["seeds"]:
            where = {"method": method, "seed": seed, "phase": "clone"}
            r2 = data.column("clone/r2_forward/mean", **where)
            rank = data.column("clone/effective_rank/mean", **where)
            row = {"method": method, "seed": seed, **fate(data.column("step", **where), r2)._asdict()}
            row |= {"r2_at_cloning": r2[0], "r2_final": r2[-1], "rank_at_cloning": rank[0], "rank_final": rank[-1]}
            row["logit_difference_at_cloning"] = data.column("logit_difference", **where)[0]
            row["leaf_residual"] = data.column("clone/bc_residual", **where).max()
            for name in ("base", "clone"):
                row[f"{name}_train_loss"] = data.column(f"{name}/train_loss", **where)[-1]
                row[f"{name}_test_accuracy"] = data.column(f"{name}/test_accuracy", **where)[-1]
            rows.append(row)
    return rows


def table(data: "RunData") -> "Table":
    """The table on the terminal: a row a method, means over its seeds."""
    from experiments.terminal import Table

    rows = []
    for method in data.config["methods"]:
        seeds = [row for row in data.summary if row["method"] == method]
        mean = {name: _mean([row[name] for row in seeds]) for name in seeds[0] if name not in _NOT_NUMBERS}
        rows.append(
            (
                method,
                _verdict(seeds),
                _step([row["left"] for row in seeds]),
                _step([row["escaped"] for row in seeds]),
                f"{mean['r2_final']:.4f}",
                f"{mean['rank_at_cloning']:.0f} → {mean['rank_final']:.0f}",
                f"{mean['base_train_loss']:.3f}",
                f"{mean['clone_train_loss']:.3f}",
            )
        )
    columns = ("method", "clones", "left", "escaped", "R²", "rank", "base loss", "clone loss")
    difference = max(row["logit_difference_at_cloning"] for row in data.summary)
    title = (
        f"At cloning: R² ≥ {min(row['r2_at_cloning'] for row in data.summary):.7f}, "
        f"logits of base and clone within {difference:.1e}\n"
        "left, escaped: step from which 1 - R² > 0.001, R² < 0.95 to the end (median)\n"
        f"R², effective rank, training loss (nats): means of {len(data.config['seeds'])} seeds at the end"
    )
    return Table(title, columns, rows)


def _mean(values: list[float | None]) -> float:
    """Mean over seeds; not a number if a seed has none (JSON's null)."""
    return math.nan if None in values else math.fsum(value for value in values if value is not None) / len(values)


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
    if verdicts != ["stayed"]:
        return " / ".join(verdicts)
    rounding = max(row["rounding"] for row in seeds)
    residual = max(row["leaf_residual"] for row in seeds)
    return "stayed, exactly" if residual == 0 else f"stayed to {max(rounding, residual):.0e}"
