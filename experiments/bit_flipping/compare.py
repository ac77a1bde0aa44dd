"""Compare a run with curves measured with the official code: is each of them one more seed of ours?

    python -m experiments.bit_flipping --preset reference_one
    python -m experiments.bit_flipping.compare runs/bit_flipping/reference_one REFERENCE.json --output TABLE.md

The reference has one seed of each agent, `{"runs": [{"law", "agent", "seed", "bin", "mse"}]}`, with targets of its own,
so what can be asked is whether it lies where another seed of ours would: a prediction interval by Student's law, of the
logarithm of the mean error, whose spread over targets is nearly normal.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lopjax.runs import RunData

AGENTS = {"bp": "sgd", "cbp": "continual_backprop_official", "linear": "linear"}
# The settings that the reference was measured with.
PROBLEM = {
    **{"num_inputs": 20, "num_slow": 15, "flip_every": 10_000, "target_units": 100, "beta": 0.7},
    **{"threshold": "official", "widths": [5], "step_sizes": [0.01], "activations": ["relu"], "grid": []},
    **{"replacement_rate": 1e-4, "utility_decay": 0.99, "maturity": 10},
}
WINDOWS = {"first eighth": (0, 1 / 8), "first half": (0, 1 / 2), "second half": (1 / 2, 1), "last eighth": (7 / 8, 1)}


class Row(NamedTuple):
    """One agent over one window.

    Attributes:
        agent: its name in the reference.
        window: part of the run, in words.
        measured: mean error of our seeds.
        least: the lower end of where 95 % of further seeds lie.
        most: the upper end.
        expected: mean error of the reference.
        p: how often a further seed is as far out, two-sided.
    """

    agent: str
    window: str
    measured: float
    least: float
    most: float
    expected: float
    p: float


def rows_of(run: "RunData", reference: Sequence[dict[str, Any]]) -> list[Row]:
    """One row per window and agent of the reference that has the run's flip law.

    Raises:
        ValueError: there is no such agent; the run has another problem or length, or is not complete; it has fewer
            than three seeds, or one that diverged.
    """
    import numpy as np

    from experiments.bit_flipping.report import bins_of, curves

    _check_run(run)
    by_method, errors, rows = {curve.method: curve for curve in curves(run)}, bins_of(run, "error"), []
    for entry in reference:
        if entry["law"] != run.config["flip"] or AGENTS[entry["agent"]] not in by_method:
            continue
        steps = entry["bin"] * len(entry["mse"])
        if steps != run.config["steps"]:
            raise ValueError(f"steps={run.config['steps']}: the reference has {steps}")
        ours = errors[by_method[AGENTS[entry["agent"]]]]
        if ours.shape[1] != run.config["steps"] // run.config["record_every"] or not np.isfinite(ours).all():
            raise ValueError(f"{AGENTS[entry['agent']]}: the run is not complete, or a seed has diverged")
        for name, window in WINDOWS.items():
            measured = np.array([_mean_over(values, window) for values in ours])
            rows.append(row_of(entry["agent"], name, measured, _mean_over(entry["mse"], window)))
    if not rows:
        raise ValueError(f"flip={run.config['flip']}: the reference has no agent of the run with this law")
    return rows


def _check_run(run: "RunData") -> None:
    """Refuse a run whose settings are not those of the reference, or with too few seeds."""
    for name, value in PROBLEM.items():
        if run.config[name] != value:
            raise ValueError(f"{name}={run.config[name]}: must be {value}, as in the reference")
    if len(run.config["seeds"]) < 3:
        raise ValueError(f"seeds={run.config['seeds']}: must be at least 3, or there is no spread to speak of")


def row_of(agent: str, window: str, measured: Any, expected: float) -> Row:
    """Where the reference lies among our seeds."""
    import numpy as np
    from scipy.special import stdtr, stdtrit

    logs, freedom = np.log(measured), len(measured) - 1
    centre, spread = logs.mean(), logs.std(ddof=1) * math.sqrt(1 + 1 / len(measured))
    half_width = stdtrit(freedom, 0.975) * spread
    p = float(2 * stdtr(freedom, -abs((math.log(expected) - centre) / spread)))
    low, high = math.exp(centre - half_width), math.exp(centre + half_width)
    return Row(agent, window, float(measured.mean()), low, high, expected, p)


def _mean_over(values: Any, window: tuple[float, float]) -> float:
    first, last = (round(share * len(values)) for share in window)
    return float(sum(values[first:last]) / (last - first))


def table_of(rows: Sequence[Row]) -> str:
    """A Markdown table, and what its least likely row says among so many."""
    lines = [
        "| agent | window | lopjax, mean over seeds | 95 % of further seeds | official, one seed | p |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        interval = f"{row.least:.3f} to {row.most:.3f}"
        cells = (row.agent, row.window, f"{row.measured:.3f}", interval, f"{row.expected:.3f}", f"{row.p:.2g}")
        lines.append(f"| {' | '.join(cells)} |")
    extreme = min(rows, key=lambda row: row.p)
    corrected_p = min(1.0, len(rows) * extreme.p)
    lines += [
        "",
        f"The least likely row: {extreme.agent}, {extreme.window}, p = {extreme.p:.2g}; at most {corrected_p:.2g} for "
        f"the least of {len(rows)} (Bonferroni). Windows overlap and share a seed: rows are not independent.",
    ]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Read both, print the table, and write it if requested."""
    parser = argparse.ArgumentParser(prog="python -m experiments.bit_flipping.compare", description=str(__doc__))
    parser.add_argument("run", type=Path, help="run folder of experiments.bit_flipping")
    parser.add_argument("reference", type=Path, help="JSON file of reference curves")
    parser.add_argument("--output", type=Path, help="Markdown file to write the table to")
    arguments = parser.parse_args(argv)
    from lopjax import runs

    reference = json.loads(arguments.reference.read_text(encoding="utf-8"))["runs"]
    table = table_of(rows_of(runs.load(arguments.run), reference))
    print(table)
    if arguments.output is not None:
        arguments.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
