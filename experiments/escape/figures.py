"""Figures of an escape run: the grid as heat maps, survival curves along every axis, linear theory beside both."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.escape.config import AXES, values_of
from experiments.escape.prediction import LEVELS, SIGNIFICANT, calibration
from experiments.escape.report import summarise
from experiments.escape.setup import CLONE, LINEAR
from experiments.escape.survival import escapes_at, kaplan_meier
from lopjax.plotting import PALETTE, drawing, new_figure
from lopjax.runs import RunData

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]
# Left end of the calibration's axes, in steps.
CLOSE = 20
_COLUMNS, _ROWS = ("learning_rate", "momentum"), ("dropout", "weight_decay")


def figures(run: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name; none before there are records of clones."""
    rows = run.summary or summarise(run)
    summary = [row for row in rows if row["kind"] == CLONE]
    if not summary:
        return {}
    drawings = {"escape_probability": heat_maps(run.config, summary), "survival": survival_curves(run.config, summary)}
    return drawings | ({"calibration": calibration_figure(rows)} if any(row["kind"] == LINEAR for row in rows) else {})


# --- Heat maps --------------------


def heat_maps(config: Mapping[str, Any], summary: Rows) -> "Figure":
    """Escape probability as colour, median step as number: noise scale by noise decay in every panel."""
    across, down = (_combinations(config, names) for names in (_COLUMNS, _ROWS))
    with drawing(1.1 + 2.1 * len(across), 0.9 + 1.75 * len(down)) as figure:
        panels = figure.subplots(len(down), len(across), squeeze=False, sharex=True, sharey=True)
        image = None
        for (i, row), (j, column) in itertools.product(enumerate(down), enumerate(across)):
            image = _heat_map(
                panels[i][j], config, [each for each in summary if {**row, **column}.items() <= each.items()]
            )
            if i == 0:
                panels[i][j].set_title(_title(config, column).replace(", ", "\n"), fontsize=9)
            if j == 0:
                panels[i][j].set_ylabel(f"{_title(config, row)}\nnoise scale")
        for axes in panels[-1]:
            axes.set_xlabel("noise decay per step")
        assert image is not None
        figure.colorbar(image, ax=panels, label="share of seeds that escape", shrink=0.8)
        figure.suptitle("Numbers: median step of escape; - where fewer than half escape", fontsize=9)
    return figure


def _heat_map(axes: "Axes", config: Mapping[str, Any], rows: Rows) -> Any:
    scales, decays = values_of(config, "noise_scale"), values_of(config, "noise_decay")
    share = np.full((len(scales), len(decays)), np.nan)
    for row in rows:
        i = scales.index(row["noise_scale"])
        # Without noise the decay makes no difference: one lane stands for all.
        for j in range(len(decays)) if row["noise_scale"] == 0 else [decays.index(row["noise_decay"])]:
            share[i, j], median = row["probability"][0], row["median"][0]
            color = "white" if share[i, j] < 0.6 else "black"
            axes.text(
                j, i, "-" if median is None else f"{median:,.0f}", ha="center", va="center", color=color, fontsize=8
            )
    image = axes.imshow(share, vmin=0, vmax=1, cmap="viridis", aspect="auto", origin="lower")
    axes.set_xticks(range(len(decays)), [f"{value:g}" for value in decays])
    axes.set_yticks(range(len(scales)), [f"{value:g}" for value in scales])
    axes.grid(False)
    return image


def _combinations(config: Mapping[str, Any], names: Sequence[str]) -> list[dict[str, float]]:
    """Every combination of the values of some axes."""
    return [dict(zip(names, values)) for values in itertools.product(*(values_of(config, name) for name in names))]


def _title(config: Mapping[str, Any], numbers: Mapping[str, float]) -> str:
    """The numbers that vary in this run, in words."""
    words = [
        f"{name.replace('_', ' ')} {value:g}" for name, value in numbers.items() if len(values_of(config, name)) > 1
    ]
    return ", ".join(words)


# --- Survival curves --------------------


def survival_curves(config: Mapping[str, Any], summary: Rows) -> "Figure":
    """Share of clones not yet escaped over steps: a panel per axis, the other numbers being those of `reference`."""
    axes_names = [name for name in AXES if len(values_of(config, name)) > 1] or ["noise_scale"]
    fixed = reference(config)
    figure, panels = new_figure(len(axes_names), width=2.7, height=3.1)
    for axes, name in zip(panels, axes_names):
        others = {key: value for key, value in fixed.items() if key != name}
        rows = [row for row in summary if _agrees(row, others)]
        for color, row in zip(PALETTE, sorted(rows, key=lambda row: row[name])):
            _survival_curve(axes, config["clone_steps"], row, color, f"{row[name]:g}")
        axes.set(xlabel="steps since cloning", ylim=(-0.03, 1.05), xlim=(0, config["clone_steps"]))
        axes.legend(title=name.replace("_", " "), fontsize=8, title_fontsize=8, loc="best")
    panels[0].set_ylabel("share not escaped")
    words = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in fixed.items())
    figure.suptitle(f"One number changed at a time from: {words}", fontsize=9)
    return figure


def reference(config: Mapping[str, Any]) -> dict[str, float]:
    """The point of the grid from which survival curves change one number: strong lasting noise and nothing else."""
    first = {name: values_of(config, name)[0] for name in AXES}
    return first | {name: values_of(config, name)[-1] for name in ("noise_scale", "noise_decay", "learning_rate")}


def _agrees(row: Mapping[str, Any], rest: Mapping[str, float]) -> bool:
    """Whether a row has these numbers; without noise its decay does not count."""
    return all(
        row[name] == value for name, value in rest.items() if not (name == "noise_decay" and not row["noise_scale"])
    )


def _survival_curve(axes: "Axes", end: int, row: Mapping[str, Any], color: str, label: str) -> None:
    escapes = escapes_at(row)
    curve = kaplan_meier(escapes.steps, escapes.is_escaped)
    x, *shares = (np.append(values, values[-1]) for values in curve)
    x[-1] = end
    axes.step(x, shares[0], where="post", color=color, label=label)
    axes.fill_between(x, shares[1], shares[2], step="post", color=color, alpha=0.12, linewidth=0)
    censored = escapes.steps[~escapes.is_escaped]
    if len(censored):
        axes.plot(censored, np.interp(censored, x, shares[0]), "|", color=color, markersize=7)


# --- Calibration --------------------


def calibration_figure(rows: Rows) -> "Figure":
    """Steps until 1 - R² reaches a level, by linear theory against the networks: quartiles of every setting."""
    figure, panels = new_figure(len(LEVELS), width=2.9, height=3.2)
    end = max(max(row["steps"]) for row in rows)
    for axes, level in zip(panels, LEVELS):
        pairs = calibration(rows, level)
        for color, (quartile, name) in zip(PALETTE, enumerate(("first quartile", "median", "third quartile"))):
            # Levels that are not reached are drawn beyond the end.
            x, y = (
                [min(getattr(pair, kind)[quartile], 1.5 * end) for pair in pairs] for kind in ("measured", "predicted")
            )
            axes.loglog(x, y, "o", color=color, markersize=4, alpha=0.7, label=name)
        axes.plot([0.6 * CLOSE, 2 * end], [0.6 * CLOSE, 2 * end], color="0.6", linewidth=0.8, zorder=0)
        for line in (axes.axhline, axes.axvline):
            line(1.2 * end, color="0.6", linestyle=":", linewidth=0.8)
        differ = sum(pair.p < SIGNIFICANT for pair in pairs)
        title = f"1 - R² reaches {level:g}\n{differ} of {len(pairs)} settings differ"
        axes.set_title(title, fontsize=9)
        ticks = [step for step in (25, 50, 100, 200, 400, 800, 1600) if step <= end]
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([*ticks, 1.5 * end], [*map(str, ticks), "never"])
            axis.set_ticks([], minor=True)
        axes.set(xlabel="steps, measured", xlim=(0.6 * CLOSE, 2 * end), ylim=(0.6 * CLOSE, 2 * end))
    panels[0].set_ylabel("steps, by linear theory")
    panels[0].legend(fontsize=8, loc="upper left")
    return figure
