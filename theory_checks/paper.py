"""The paper, claim by claim: `python -m theory_checks.paper` writes `docs/paper.md` from `paper_claims.py`.

Numbers of checks are read from `docs/theory/results.json`, those of experiments from the tables in their pages: no
number is written twice. Building the site writes the page, too.
"""

from pathlib import Path

from theory_checks.check import Row, describe
from theory_checks.pages import FOLDER, Record, read_records
from theory_checks.paper_claims import CLAIMS, STATUSES, Cell, Claim

DOCS = FOLDER.parent


def numbers(claim: Claim, records: dict[str, Record], docs: Path = DOCS) -> list[str]:
    """The evidence of a claim, one line each: what each check measured worst, and the cells of its tables."""
    lines = []
    for name in claim.checks:
        worst, link = worst_of(records[name]), f"theory/{name.split('.')[0]}.md#{name.replace('.', '')}"
        what, bound, _ = describe(worst)
        number = f"{what}: {worst.value:.2g} ({bound})".replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*")
        lines.append(f"[`{name}`]({link}), {number}")
    return [*lines, *(cell_of(cell, docs) for cell in claim.cells)]


def worst_of(record: Record) -> Row:
    """The number of a check that comes closest to its upper bound; to its lower bound if there are no upper ones."""
    rows = [Row(*(stored[field] for field in Row._fields)) for stored in record["rows"]]
    claims = [row for row in rows if not row.control and row.bound is not None]
    claims = [row for row in claims if row.sense == "<="] or claims

    def share(row: Row) -> float:
        bound = row.bound or 0.0
        small, large = (row.value, bound) if row.sense == "<=" else (bound, row.value)
        return small / large if large else 0.0

    return max(claims, key=share)


def cell_of(cell: Cell, docs: Path = DOCS) -> str:
    """A cell of the first table of a page that has this row.

    Raises:
        ValueError: the page has no such row or column.
    """
    for line in (docs / cell.page).read_text(encoding="utf-8").splitlines():
        cells = [text.strip() for text in line.strip().strip("|").split("|")]
        if line.startswith("|") and cells[0] == cell.row and cell.column < len(cells):
            return cells[cell.column]
    raise ValueError(f"docs/{cell.page} has no table with a row {cell.row!r} and a column {cell.column}")


def command_of(claim: Claim) -> str:
    """The command that produces the numbers of a claim."""
    commands = [claim.command, *(f"python -m theory_checks --only {name}" for name in claim.checks)]
    return "<br>".join(f"`{command}`" for command in commands if command)


def page(records: dict[str, Record], docs: Path = DOCS) -> str:
    """The whole page."""
    counts = ", ".join(f"{sum(claim.status == status for claim in CLAIMS)} {status}" for status in STATUSES)
    lines = [
        "# The paper, claim by claim",
        "",
        "What became of the theorems, figures and claims of arXiv 2510.00304 that this project treats. Written by",
        "`python -m theory_checks.paper` from `theory_checks/paper_claims.py`; the numbers are read from the checks",
        f"and from the pages of the experiments. {counts[0].upper()}{counts[1:]}.",
        "",
        *(f"- **{status}**: {meaning}." for status, meaning in STATUSES.items()),
        "",
        "The number given for a check is the one that comes closest to its bound, which stands in brackets.",
        "",
        "| where | it says | here | what was found | number | command |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for claim in CLAIMS:
        outcome = f"{claim.found} [Page]({claim.page})" if claim.page else claim.found
        evidence = "<br>".join(numbers(claim, records, docs)) or "–"
        cells = (claim.place, claim.says, f"**{claim.status}**", outcome, evidence, command_of(claim) or "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(docs: Path = DOCS) -> Path:
    """Write `docs/paper.md`."""
    records = {record["name"]: record for record in read_records(docs / "theory" / "results.json")}
    path = docs / "paper.md"
    path.write_text(page(records, docs), encoding="utf-8")
    return path


if __name__ == "__main__":
    print(write())
