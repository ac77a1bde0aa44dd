"""Pages of `docs/theory`, written from the JSON of a run: `python -m theory_checks --write-docs`.

Statement, source and consequence live beside each check in the code, assumptions and proof in
`theory_checks/proofs/<theorem>.md`, the numbers in `docs/theory/results.json`; a page is a function of the last two and
of the docstring of the theorem's module. Text outside the two markers of a page is written by hand and stays.
`python -m theory_checks.pages` writes the pages anew from changed words, without running a check.
"""

import importlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from theory_checks.check import Check, Row, Size, Verdict, describe
from theory_checks.proof import KINDS, NOTATION, Proof, proofs_of

BEGIN, END = "<!-- measured: written by `python -m theory_checks --write-docs` -->", "<!-- end measured -->"
FOLDER = Path(__file__).parent.parent / "docs" / "theory"

Record = dict[str, Any]
"""What is stored about one check: a JSON object."""


def record(verdict: Verdict, size: Size) -> Record:
    """Words and every row of a check that was run at a size."""
    return {
        **_words(verdict.check),
        "size": size,
        "holds": verdict.holds,
        "reason": verdict.reason,
        "rows": [{**row._asdict(), "as_claimed": row.is_as_claimed} for row in verdict.rows],
    }


def _words(check: Check) -> Record:
    words = {name: getattr(check, name) for name in ("name", "statement", "source", "consequence")}
    return {**words, **({"correction": check.correction} if check.correction else {})}


def with_words_of(checks: Sequence[Check], records: Sequence[Record]) -> list[Record]:
    """The records with the words that the checks have now; numbers and verdicts stay.

    Raises:
        ValueError: a check that has never been run.
    """
    by_name = {each["name"]: each for each in records}
    if missing := [check.name for check in checks if check.name not in by_name]:
        raise ValueError(f"no numbers of {missing}: run `python -m theory_checks --only NAME --write-docs`")
    measured = ("size", "holds", "reason", "rows")
    return [{**_words(check), **{key: by_name[check.name][key] for key in measured}} for check in checks]


def merged(old: Sequence[Record], new: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Records in the order of `names`, new ones in place of old ones; records whose name is gone are dropped."""
    by_name = {each["name"]: each for each in (*old, *new)}
    return [by_name[name] for name in names if name in by_name]


def read_records(path: Path) -> list[Record]:
    """The records of a results file; none if it does not exist."""
    return json.loads(path.read_text())["checks"] if path.exists() else []


def write_records(path: Path, records: Sequence[Record]) -> None:
    """Write records; to a temporary name first, so that a reader never sees half a file."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"checks": records}, indent=1, ensure_ascii=False) + "\n")
    os.replace(temporary, path)


def write_pages(folder: Path, records: Sequence[Record]) -> list[Path]:
    """Write results.json, one page per theorem, and the index; return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    write_records(folder / "results.json", records)
    written = [folder / "results.json"]
    for theorem, of_theorem in by_theorem(records).items():
        path = folder / f"{theorem}.md"
        path.write_text(page(path.read_text() if path.exists() else "", theorem, of_theorem))
        written.append(path)
    (folder / "README.md").write_text(index(records))
    return [*written, folder / "README.md"]


def by_theorem(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by the first part of their name, in the order of first appearance."""
    theorems: dict[str, list[Record]] = {}
    for each in records:
        theorems.setdefault(each["name"].split(".")[0], []).append(each)
    return theorems


def introduction(theorem: str) -> tuple[str, str]:
    """Title and text of a theorem: first line and rest of its module's docstring."""
    title, _, text = (importlib.import_module(f"theory_checks.{theorem}").__doc__ or theorem).partition("\n")
    return title.strip().rstrip("."), text.strip()


def page(existing: str, theorem: str, records: Sequence[Record]) -> str:
    """The page of a theorem: the existing one with what is between its markers replaced, or a new one."""
    title, text = introduction(theorem)
    block = "\n\n".join([BEGIN, *(section(each) for each in records), END])
    if BEGIN in existing and END in existing:
        before, after = existing.split(BEGIN)[0], existing.split(END)[1]
        return f"{before}{block}{after}"
    head = existing.rstrip() or f"# {title}\n\n{text}".rstrip()
    return f"{head}\n\n{block}\n"


def section(one: Record) -> str:
    """One check: statement, source, assumptions, proof, consequence, and a table of its numbers."""
    lines = [f"## `{one['name']}`", "", one["statement"], "", f"*Source:* {one['source']}."]
    if proof := _proof(one):
        lines += ["", proof.assumptions, "", proof.text]
    if one["consequence"]:
        lines += ["", f"*In practice:* {one['consequence']}"]
    if one.get("correction"):
        lines += ["", f"*Corrected:* {one['correction']}"]
    lines += ["", "| what was measured | value | bound | verdict |", "|---|---:|---:|---|"]
    for stored in one["rows"]:
        row = Row(*(stored[field] for field in Row._fields))
        what, bound, verdict = describe(row)
        lines.append(f"| {_escaped(what)} | {row.value:.3g} | {bound} | {verdict} |")
    if not one["holds"]:
        lines += ["", f"**Does not hold:** {one['reason']}"]
    return "\n".join([*lines, "", f"`python -m theory_checks --only {one['name']}{_flag(one)}`"])


def _proof(one: Record) -> Proof | None:
    return proofs_of(one["name"].split(".")[0]).get(one["name"])


def index(records: Sequence[Record]) -> str:
    """The table of all checks, and the notation of the proofs."""
    holding = sum(each["holds"] for each in records)
    lines = [
        "# The theory, checked",
        "",
        "Every statement that this library rests on, measured in float64 against a bound, beside controls for which it",
        "must fail. `python -m theory_checks` runs all of them and exits with an error if one does not hold;",
        "`--write-docs` writes these pages. Names: [architecture](../architecture.md).",
        "",
        f"{holding} of {len(records)} checks hold. {_count_proofs(records)}",
        "",
        NOTATION.read_text(encoding="utf-8").strip(),
        "",
        "## All checks",
        "",
        "| check | statement | source | proof | worst claim (share of its bound) | verdict |",
        "|---|---|---|---|---:|---|",
    ]
    for theorem, of_theorem in by_theorem(records).items():
        for each in of_theorem:
            name = each["name"]
            anchor = f"{theorem}.md#{name.replace('.', '')}"
            verdict = "holds" if each["holds"] else "**does not hold**"
            texts = (_escaped(each["statement"]), _escaped(each["source"]))
            proof = _proof(each)
            cells = (f"[`{name}`]({anchor})", *texts, proof.kind if proof else "-", _worst(each), verdict)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _count_proofs(records: Sequence[Record]) -> str:
    """How many checks have their proof where."""
    kinds = [proof.kind for each in records if (proof := _proof(each))]
    here, source, measured = (kinds.count(kind) for kind in KINDS.values())
    return (
        "Each page states the assumptions of its checks. Number of checks that are proved there: "
        f"{here}; that are proved in the source they cite: {source}; that are measured without a proof: {measured}."
    )


def _worst(one: Record) -> str:
    """The claim that comes closest to its bound, as a share of it where that says something."""
    shares = [
        row["value"] / row["bound"] if row["sense"] == "<=" else row["bound"] / row["value"]
        for row in one["rows"]
        if row["bound"] is not None and not row["control"] and row["bound"] > 0 and row["value"] > 0
    ]
    return f"{max(shares):.1g}" if shares else "-"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _flag(one: Record) -> str:
    return " --full" if one["size"] == "full" else ""


def main() -> None:
    """Write the pages with the words that checks and proofs have now."""
    from theory_checks.check import all_checks

    for path in write_pages(FOLDER, with_words_of(all_checks(), read_records(FOLDER / "results.json"))):
        print(f"  {path}")


if __name__ == "__main__":
    main()
