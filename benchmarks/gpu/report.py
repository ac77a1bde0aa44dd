"""The tables: one per title, with one line per row, rewritten whenever a row is added."""

import json
from pathlib import Path
from typing import Any

from benchmarks import harness

Row = dict[str, Any]


class Report:
    """Rows by section, and the files that show them."""

    def __init__(self, folder: Path, titles: dict[str, str]) -> None:
        """Start empty; `titles` names the table of every section."""
        self.folder, self.titles = folder, titles
        self.rows: dict[str, list[Row]] = {}
        self.seconds: dict[str, float] = {}

    def add(self, section: str, row: Row) -> None:
        """One more row, on disk when this returns."""
        self.rows.setdefault(section, []).append(row)
        self._write()

    def spent(self, names: list[str], seconds: float) -> None:
        """Record how long a process took."""
        self.seconds[", ".join(names)] = round(seconds, 1)
        self._write()

    def num_rows(self) -> int:
        """Number of rows of all tables."""
        return sum(map(len, self.rows.values()))

    def rates(self) -> dict[str, float]:
        """The rates of the machine measured so far, by name."""
        return {row["case"]: row["rate"] for row in self.rows.get("rates", []) if "rate" in row}

    def line(self, row: Row) -> str:
        """A row in words, for the terminal."""
        return ", ".join(shown(value) if key == "case" else f"{key} {shown(value)}" for key, value in row.items())

    def _write(self) -> None:
        found = {"seconds": self.seconds, "rows": self.rows}
        harness.write(self.folder / "gpu.json", json.loads(json.dumps(found)))
        parts = []
        for title in dict.fromkeys(self.titles[section] for section in self.rows):
            rows = [row for section, some in self.rows.items() if self.titles[section] == title for row in some]
            parts.append(f"**{title}**\n\n{table(rows)}\n")
        parts.append("Seconds of each section: " + ", ".join(f"{k} {v:.0f}" for k, v in self.seconds.items()) + ".\n")
        (self.folder / "gpu.md").write_text("\n".join(parts))


def table(rows: list[Row]) -> str:
    """Markdown; the columns are those of any row, with notes last."""
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "note"))
    columns += ["note"] if any("note" in row for row in rows) else []
    return harness.markdown(columns, [[shown(row.get(column)) for column in columns] for row in rows])


def shown(value: Any) -> str:
    """A number to three digits; text without characters that would break a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "/").replace("\n", " ")
