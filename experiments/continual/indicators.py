"""What each symptom is worth as a warning: how long before plasticity is lost it rings, with few false alarms.

    python -m experiments.continual --preset gaussian
    python -m experiments.continual.indicators runs/continual/gaussian --output indicators.md

A lane has lost plasticity from the first task at which its online accuracy, averaged over two tasks, is `--level` below
that of the fresh networks on the same batches. Lanes that never fall so low, and the fresh networks themselves, are
healthy: on them any alarm is false. Every indicator gets the lowest threshold that keeps false alarms at
`--false-alarms`.
"""

import argparse
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.continual.methods import is_fresh, lanes_of
from experiments.continual.report import at_ends, less_fresh, over_tasks
from lopjax.detection import IndicatorScore, measured_rate, score_indicator, trap_forecast
from lopjax.detection.trends import trend
from lopjax.runs import RunData, load

WINDOW = 5
"""Tasks over which trends are taken; autocorrelations over twice as many."""

Indicator = Callable[[RunData, str, int], np.ndarray]
"""`(run, lane, seed) -> (tasks,)`, larger is worse, NaN where it is not known."""


def _sites(run: RunData, prefix: str) -> list[str]:
    """Names of the values `prefix/<site>` of the records, without their mean over sites."""
    names = run.records[0] if run.records else {}
    return [name for name in names if name.startswith(f"{prefix}/") and not name.endswith("/mean")]


def fallen(curve: np.ndarray) -> np.ndarray:
    """How far a curve is below its best value so far, relative to it."""
    return 1 - curve / np.fmax.accumulate(curve)


def trend_score(curve: np.ndarray) -> np.ndarray:
    """Standard score of the trend over the last `WINDOW` tasks (Mann-Kendall); NaN until there are that many."""
    import jax
    import jax.numpy as jnp

    windows = np.lib.stride_tricks.sliding_window_view(curve, WINDOW) if len(curve) >= WINDOW else np.empty((0, WINDOW))
    return np.concatenate([np.full(len(curve) - len(windows), math.nan), jax.vmap(trend)(jnp.asarray(windows)).z])


def autocorrelation(curve: np.ndarray) -> np.ndarray:
    """Autocorrelation of neighbouring tasks over the last `2 WINDOW`: before a transition, memory lasts longer."""
    correlations, num = np.full(len(curve), math.nan), 2 * WINDOW
    for end in range(num, len(curve) + 1):
        window = curve[end - num : end] - curve[end - num : end].mean()
        correlations[end - 1] = window[1:] @ window[:-1] / (window @ window)
    return correlations


def _approach(curve: np.ndarray) -> np.ndarray:
    """One over the tasks until a distance to a clone is 0.1 %, at its rate over the last `WINDOW` tasks; 0 for never.

    The trap-aware forecast, from the rate that is measured instead of a Lyapunov exponent; NaN until it is known. The
    curve is of the smallest distance of a space, whichever pair has it, so that the rate is of no single pair.
    """
    import jax
    import jax.numpy as jnp

    if len(curve) < WINDOW:
        return np.full(len(curve), math.nan)
    windows = jnp.asarray(np.lib.stride_tricks.sliding_window_view(curve, WINDOW))

    def forecast(window: jax.Array) -> jax.Array:
        rate = measured_rate(window)
        return trap_forecast(window[-1], rate.exponent, rate.standard_error).steps

    steps = np.asarray(jax.vmap(forecast)(windows))
    return np.concatenate([np.full(WINDOW - 1, math.nan), 1 / np.maximum(steps, 1)])


def _worst_site(prefix: str, worse: Callable[[np.ndarray], np.ndarray]) -> Indicator:
    """The largest value over sites of what is derived from each site's curve."""

    def indicator(run: RunData, lane: str, seed: int) -> np.ndarray:
        curves = [worse(at_ends(run, name, lane, seed)) for name in _sites(run, prefix)]
        return np.max(curves, axis=0) if curves else np.full(len(at_ends(run, "task", lane, seed)), math.nan)

    return indicator


def _mean(name: str, worse: Callable[[np.ndarray], np.ndarray] = lambda curve: curve) -> Indicator:
    return lambda run, lane, seed: worse(at_ends(run, name, lane, seed))


def _readiness(run: RunData, lane: str, seed: int) -> np.ndarray:
    """How far what a step is sure to gain has fallen, in powers of ten (arXiv 2605.09044: optimization readiness)."""
    gains = [at_ends(run, f"gradient/{name}", lane, seed) for name in ("strength", "reliability")]
    return -np.log10(np.maximum(gains[0] * gains[1], 1e-30))


def _noise(run: RunData, lane: str, seed: int) -> np.ndarray:
    words = [*lane.encode(), seed]
    return np.random.default_rng(words).normal(size=len(at_ends(run, "task", lane, seed)))


INDICATORS: Mapping[str, Indicator] = {
    "effective rank, fall of the mean": _mean("probe/effective_rank/mean", fallen),
    "effective rank, fall at the worst site": _worst_site("probe/effective_rank", fallen),
    "effective rank, trend": _mean("probe/effective_rank/mean", lambda curve: -trend_score(curve)),
    "dead units": _mean("probe/dead_fraction/mean"),
    "duplicate units": _mean("probe/duplicate_fraction/mean"),
    "duplicate units, worst site": _worst_site("probe/duplicate_fraction", lambda curve: curve),
    "saturated units": _mean("probe/saturated_fraction/mean"),
    "nearest clones, worst space": _worst_site("clones/nearest", lambda curve: -np.log10(np.maximum(curve, 1e-12))),
    "forecast of clones, worst space": _worst_site("clones/nearest", _approach),
    "near-clones, worst space": _worst_site("clones/near", lambda curve: curve),
    "weights, root mean square": _mean("weight_norm"),
    "weights, growth": _mean("weight_norm", lambda curve: curve / curve[:1]),
    "gradient strength x reliability": _readiness,
    "per-sample plasticity, fall": lambda run, lane, seed: fallen(over_tasks(run, "plasticity", lane, seed)),
    "autocorrelation of the online loss": lambda run, lane, seed: autocorrelation(
        over_tasks(run, "online_loss", lane, seed)
    ),
    "random numbers (control)": _noise,
}
"""By name."""


class Row(NamedTuple):
    """One indicator.

    Attributes:
        name: key of `INDICATORS`.
        score: its threshold, false alarms and lead, in tasks.
        healthy: how many lanes are healthy.
        lost: how many lanes lose plasticity.
    """

    name: str
    score: IndicatorScore
    healthy: int
    lost: int


def onset(run: RunData, lane: str, seed: int, level: float) -> float:
    """The task, from 1, at which a lane has lost plasticity; infinite if it never does.

    Raises:
        ValueError: a run without fresh networks.
    """
    if not run.config["fresh"]:
        raise ValueError("the run has no fresh networks (--no-fresh), so nothing says when plasticity was lost")
    if run.config.get("fresh_every", 1) > 1:
        raise ValueError("the run has fresh networks at some tasks only (--fresh-every); it needs them at every task")
    if is_fresh(lane):
        return math.inf
    difference = less_fresh(run, "online_accuracy", lane, seed)
    below = (difference[1:] + difference[:-1]) / 2 < -level
    return float(below.argmax() + 2) if below.any() else math.inf


def score_run(run: RunData, level: float, false_alarms: float) -> list[Row]:
    """Every indicator that the run has recorded; those with the longest lead and the most losses found come first.

    Raises:
        ValueError: no healthy lane, or none that loses plasticity at this level.
    """
    lanes = [(lane, seed) for lane in lanes_of(tuple(run.config["methods"]), True) for seed in run.config["seeds"]]
    num = min(len(at_ends(run, "task", *lane)) for lane in lanes)
    onsets = [onset(run, *lane, level) for lane in lanes]
    onsets = [start if start <= num else math.inf for start in onsets]
    rows = []
    for name, indicator in INDICATORS.items():
        curves = np.array([indicator(run, *lane)[:num] for lane in lanes], float)
        if np.isfinite(curves).any():
            score = score_indicator(curves, np.arange(1, num + 1), onsets, false_alarms)
            rows.append(Row(name, score, int(np.isinf(onsets).sum()), int(np.isfinite(onsets).sum())))
    return sorted(rows, key=lambda row: (-row.score.detected, -np.nan_to_num(row.score.lead, nan=-1)))


def markdown(rows: list[Row], level: float, false_alarms: float) -> str:
    """The table, with what its words mean."""
    from scipy.stats import binomtest

    lines = [
        f"Lost: online accuracy {level:g} below fresh networks over two tasks; {rows[0].lost} lanes, "
        f"{rows[0].healthy} never (fresh networks among them). At most {false_alarms:.0%} of these ever ring.",
        "",
        "| indicator | rings above | rang in time | 95 % interval | lead in tasks: median (least to most) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        num_warned = int(np.isfinite(row.score.leads).sum())
        share = binomtest(num_warned, row.lost).proportion_ci(method="wilson")
        leads = row.score.leads[np.isfinite(row.score.leads)]
        lead = f"{row.score.lead:g} ({leads.min():g} to {leads.max():g})" if len(leads) else "-"
        cells = (
            row.name,
            f"{row.score.threshold:.3g}",
            f"{num_warned} of {row.lost}",
            f"{share.low:.2f}-{share.high:.2f}",
        )
        lines.append(f"| {' | '.join((*cells, lead))} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    """Score the indicators of one run and print (and write) the table."""
    parser = argparse.ArgumentParser(prog="python -m experiments.continual.indicators", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="folder of a run with fresh networks")
    parser.add_argument("--level", type=float, default=0.1, help="loss of accuracy that counts (default: %(default)s)")
    parser.add_argument("--false-alarms", type=float, default=0.1, help="share of healthy lanes (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    flags = parser.parse_args(arguments)
    if not 0 < flags.level < 1:
        parser.error(f"--level {flags.level}: must be between 0 and 1")
    try:
        rows = score_run(load(flags.run), flags.level, flags.false_alarms)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    table = markdown(rows, flags.level, flags.false_alarms)
    print(table, end="")
    if flags.output:
        flags.output.write_text(table, encoding="utf-8")


if __name__ == "__main__":
    main()
