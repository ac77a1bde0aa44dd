"""Plain-text tables of certificates."""

from collections.abc import Sequence
from math import isnan


def number(value: float | None) -> str:
    """Two digits, or a dash if unknown."""
    return "-" if value is None or isnan(value) else f"{value:.1e}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Indented lines: first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  " + "  ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths)))
        for row in (header, *rows)
    ]
