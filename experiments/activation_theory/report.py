"""What activation theory has shown: the summary, the table on the terminal, and the tables of the documentation."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.activation_theory.parts import FORMULAS
from experiments.kit.terminal import Table
from lopjax.runs import RunData


def summarise(data: RunData) -> dict[str, Any]:
    """The numbers: tables, ranks, and the first and last measurement of every layer of the trained network."""
    (measured,), (spectra,), (trained,) = (data.select(what=what) for what in ("tables", "spectra", "training"))
    ends = {name: [trained[name][index] for index in (0, -1)] for name in ("polarisation", "near_zero", "near_one")}
    return {
        **{name: measured[name] for name in ("alpha", "fixed_points", "rank_gain")},
        "hard_ranks": spectra["ranks"],
        "trained_mlp": {
            "test_accuracy": trained["test_accuracy"],
            "layers": trained["layers"],
            **ends,
            "near_one_at_its_peak": np.max(trained["near_one"], axis=0).tolist(),
            "constant_fraction": [trained["constant_fraction"][index] for index in (0, -1)],
        },
    }


def table(data: RunData) -> Table:
    """Alpha of every activation, beside what the paper prints."""
    (measured,) = data.select(what="tables")
    rows = [
        (
            row["activation"],
            _alpha(row["alpha"]),
            f"{row['centred_alpha']:.8f}",
            "" if row["printed"] is None else f"{row['printed']:g}",
            f"{row['error']:.0e}",
        )
        for row in measured["alpha"]
    ]
    accuracy = "".join(
        f"; test accuracy of the probed MLP {row['test_accuracy']:.3f}" for row in data.select(what="training")
    )
    columns = ("activation", "uncentred", "centred", "printed in the paper", "relative error")
    return Table(f"alpha = E f'² / E f² - 1{accuracy}", columns, rows)


def texts(data: RunData) -> dict[str, str]:
    """The tables of docs/theory/activation.md."""
    (measured,) = data.select(what="tables")
    return {"tables.md": "\n".join(tables(measured).values())}


def _alpha(value: float) -> str:
    """Alpha as text; ReLU's is 0 to rounding, of either sign."""
    return f"{value if abs(value) > 1e-12 else 0.0:.8f}"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def tables(measured: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Write what `measure` returns as Markdown tables, under the same names."""
    alphas = [
        [
            row["activation"],
            _alpha(row["alpha"]),
            f"{row['centred_alpha']:.8f}",
            "" if row["printed"] is None else f"{row['printed']:g}",
        ]
        for row in measured["alpha"]
    ]
    points = [
        [row["activation"], f"{row['rho']:.6f}", f"{row['multiplier']:.6f}", row["kind"]]
        for row in measured["fixed_points"]
    ]
    gains = [
        [row["activation"], f"{row['eps']:.0e}", f"{row['exact']:.4e}", *(f"{row[name]:.4f}" for name in FORMULAS)]
        for row in measured["rank_gain"]
    ]
    ratios = [f"{name} / exact" for name in FORMULAS.values()]
    return {
        "alpha": _markdown(["activation", "α, uncentred", "α, centred", "printed in the paper"], alphas),
        "fixed_points": _markdown(["activation", "fixed point ρ", "multiplier", "kind"], points),
        "rank_gain": _markdown(["activation", "ε", "exact ln gain", *ratios], gains),
    }
