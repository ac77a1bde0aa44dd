"""Run the checks: `python -m theory_checks [--full] [--only NAME] [--write-docs]`. Exit status 1 if one fails."""

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from theory_checks.quick import QUICK_COMPILATION

if TYPE_CHECKING:
    from theory_checks.check import Size, Verdict


@dataclass(frozen=True)
class Arguments:
    """Check the theory numerically, in float64: measured value, bound, verdict; controls must miss their bound."""

    full: bool = False
    """Larger sizes: minutes instead of seconds."""
    only: str = ""
    """Name of one check, or of a theorem file for all of its checks."""
    out: Path = Path("runs/theory_checks")
    """Folder of results.json and of one figure per theorem."""
    processes: int = field(default_factory=lambda: os.cpu_count() or 1)
    """How many theorems are checked at a time, each in a process of its own; 1 keeps to this process."""
    write_docs: bool = False
    """Also write docs/theory: results.json, a page per theorem, the index. With --only the others stay as they are."""


def main() -> int:
    """Parse, run, print, write; return the exit status."""
    import tyro

    arguments = tyro.cli(Arguments, prog="python -m theory_checks")

    # Nearly all the time goes into compiling tiny programs. The large ones are compiled like a user's own programs.
    if not arguments.full:
        os.environ.setdefault("XLA_FLAGS", QUICK_COMPILATION)
    import jax

    jax.config.update("jax_enable_x64", True)
    from theory_checks import pages
    from theory_checks.check import all_checks, select
    from theory_checks.running import judge_all

    try:
        checks = select(all_checks(), arguments.only)
    except ValueError as error:
        print(f"python -m theory_checks: error: {error}", file=sys.stderr)
        return 2
    size: Size = "full" if arguments.full else "small"
    verdicts = judge_all(checks, size, arguments.processes)
    print_table(verdicts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    records = [pages.record(verdict, size) for verdict in verdicts]
    pages.write_records(arguments.out / "results.json", records)
    written = [arguments.out / "results.json"]
    for theorem in dict.fromkeys(verdict.check.name.split(".")[0] for verdict in verdicts):
        of_theorem = [verdict for verdict in verdicts if verdict.check.name.startswith(f"{theorem}.")]
        if any(verdict.rows for verdict in of_theorem):
            written += draw(arguments.out / theorem, of_theorem)
    if arguments.write_docs:
        known = pages.read_records(pages.FOLDER / "results.json")
        written += pages.write_pages(pages.FOLDER, pages.merged(known, records, [check.name for check in all_checks()]))
    for path in written:
        print(f"  {path}")
    return 0 if all(verdict.holds for verdict in verdicts) else 1


def print_table(verdicts: "Sequence[Verdict]") -> None:
    """Print theorem | what was measured | value | bound | verdict."""
    from rich.console import Console
    from rich.table import Table

    from theory_checks.check import describe

    table = Table(header_style="bold")
    table.add_column("theorem", no_wrap=True)
    table.add_column("what was measured", overflow="fold")
    for column in ("value", "bound", "verdict"):
        table.add_column(column, justify="right", no_wrap=True)
    for verdict in verdicts:
        if not verdict.rows:
            table.add_row(verdict.check.name, "nothing: it raised", "", "", "[red]FAILED[/]")
        for index, row in enumerate(verdict.rows):
            what, bound, text = describe(row)
            color = "green" if row.is_as_claimed else "red"
            name = verdict.check.name if index == 0 else ""
            table.add_row(name, what, f"{row.value:.4g}", bound, f"[{color}]{text}[/]")
        table.add_section()
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    console.print(table)
    failed = [verdict for verdict in verdicts if not verdict.holds]
    for verdict in failed:
        console.print(f"[red]{verdict.check.name} FAILED[/]: {verdict.check.statement} ({verdict.reason})")
    console.print(f"{len(verdicts) - len(failed)} of {len(verdicts)} checks hold")


def draw(path: Path, verdicts: "Sequence[Verdict]") -> list[Path]:
    """Draw how far every row of a theorem is from its bound, in decades, as PNG and PDF; return their paths."""
    import matplotlib as mpl
    import numpy as np
    from matplotlib.figure import Figure

    rows = [(verdict.check.name, row) for verdict in verdicts for row in verdict.rows if row.bound is not None]
    with mpl.rc_context({"font.size": 8, "pdf.fonttype": 42}):
        figure = Figure(figsize=(8, 1.2 + 0.2 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for control, color, marker, label in (
            (False, "#0072B2", "o", "claim: must lie left"),
            (True, "#D55E00", "s", "control: must lie right"),
        ):
            chosen = [(i, row) for i, (_, row) in enumerate(rows) if row.control == control]
            margins = [decades(row.value, row.bound or 0.0, row.sense) for _, row in chosen]
            axes.plot(margins, [i for i, _ in chosen], marker, color=color, label=label, markersize=5)
        axes.axvline(0, color="0.3", linewidth=1)
        axes.set_yticks(np.arange(len(rows)), [f"{name.split('.', 1)[1]}: {row.what}" for name, row in rows])
        axes.set_xlabel("decades beyond the bound (clipped at ±8)")
        axes.grid(axis="x", alpha=0.3)
        axes.set_xlim(-8.5, 8.5)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
        written = [path.with_suffix(suffix) for suffix in (".png", ".pdf")]
        for file in written:
            figure.savefig(file, dpi=100)
    return written


def decades(value: float, bound: float, sense: str) -> float:
    """log10 of value / bound, signed so that negative keeps the bound; clipped to [-8, 8]; 8 for a NaN.

    Where one of the two is not positive there is no ratio: only the side is shown.
    """
    if math.isnan(value):
        return 8.0
    is_within = value <= bound if sense == "<=" else value >= bound
    if value <= 0 or bound <= 0:
        return -8.0 if is_within else 8.0
    signed = math.log10(value / bound) if sense == "<=" else math.log10(bound / value)
    return max(-8.0, min(8.0, signed))


if __name__ == "__main__":
    raise SystemExit(main())
