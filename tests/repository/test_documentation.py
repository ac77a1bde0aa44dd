"""The documentation's site without building it: what the reference must hold, pages, links, the paper's claims."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from theory_checks import paper
from theory_checks.pages import read_records
from theory_checks.paper_claims import CLAIMS, STATUSES, Cell

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.relative_to(DOCS).parts[0] not in ("api", "tutorials")]
RECORDS = {record["name"]: record for record in read_records(DOCS / "theory" / "results.json")}


@pytest.fixture
def names(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    yield importlib.import_module("public_names")
    sys.modules.pop("public_names")


@pytest.fixture
def reference(names):
    yield importlib.import_module("reference_pages")
    sys.modules.pop("reference_pages")


def test_the_reference_must_hold_what_the_packages_list(names):
    for package, listed in names.packages().items():
        assert listed == importlib.import_module(package).__all__
    import lopjax

    assert set(names.top_level()) == set(lopjax.__all__)
    everything = names.public_names()
    assert {"lopjax.stability.classify", "lopjax.cloning.Partition", "lopjax.model.Model"} <= everything
    assert names.missing(everything) == []
    assert names.missing(everything - {"lopjax.stability.classify"}) == ["lopjax.stability.classify"]  # the control


def test_every_public_name_gets_an_entry(names, reference, tmp_path):
    reference.write(tmp_path)
    text = "\n".join(page.read_text() for page in tmp_path.glob("*.md"))
    entries = set(re.findall(r"^\.\. auto\w+:: (\S+)$", text, re.M))
    values = re.findall(r"^\.\. py:\w+:: (\S+)\n   :module: (\S+)\n(?:   :.*\n)*\n   (.*)$", text, re.M)
    assert names.missing(entries | {f"{module}.{name}" for name, module, _ in values}) == []
    partition = next(text for name, module, text in values if (name, module) == ("Partition", "lopjax.cloning"))
    assert partition.startswith("Cluster id of every unit")


def test_docstrings_are_plain_text_to_the_site(reference):
    lines = ["A * b and |x|, :math:`a * b`,", "`c |", "d`.", "", "    x = y * z", "", ">>> 2 ** 3"]
    marked = reference.escaped(lines)
    plain = ["A \\* b and \\|x\\|, :math:`a * b`,", "``c |", "d``.", ""]
    assert marked == [*plain, "::", "", "    x = y * z", "", ">>> 2 ** 3"]


def test_every_page_is_reached_from_the_index():
    listed = set()
    for page in ("index.md", "tutorials.md", "reference.md"):
        for tree in re.findall(r"```\{toctree\}\n(.*?)```", (DOCS / page).read_text(), re.S):
            for line in tree.splitlines():
                listed |= (
                    {found.relative_to(DOCS) for found in DOCS.glob(f"{line}.md")}
                    if line[:1] not in ("", ":")
                    else set()
                )
    assert {page.relative_to(DOCS) for page in PAGES} - listed == {Path("index.md")}


def links(page):
    """Where a page leads to, but for its code."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S))


def test_pages_have_links():
    assert len([link for page in PAGES for link in links(page)]) > 100  # or the next test has stopped looking


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_somewhere(page):
    for link in links(page):
        target, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        path = page.parent / target if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in anchors(path.read_text(encoding="utf-8")), link


NUMBER = re.compile(r"\d\.\d|\d %|±")
NO_MEASUREMENT = re.compile(
    r"```python.*?```|\]\([^)]*\)|arXiv \d+\.\d+|\d+\.\d+\.\d+|(Python|jax|Flax) \d+\.\d+", re.S
)
PROGRAM = re.compile(r"python -m ((?:lopjax|experiments|theory_checks|benchmarks)(?:\.\w+)*)")
COMMAND = re.compile(PROGRAM.pattern + r"|bash benchmarks/\w+\.sh|`tests/[\w/]+\.py`")


def lacks_command(text: str) -> bool:
    """Whether a page states a number that looks measured, and no command. Versions and papers are no measurements."""
    return bool(NUMBER.search(NO_MEASUREMENT.sub("", text))) and not COMMAND.search(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_that_states_a_number_names_a_command_that_makes_it(page):
    text = page.read_text(encoding="utf-8")
    assert not lacks_command(text)
    for name in set(PROGRAM.findall(text)):
        path = DOCS.parent.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").exists(), name


def test_a_number_without_a_command_is_seen():
    assert lacks_command("Accuracy rises to 0.93.")
    assert not lacks_command("    python -m experiments.cloning\n\nAccuracy rises to 0.93.")
    assert not lacks_command("Python 3.11, jax 0.10.2 and arXiv 2510.00304.")


def anchors(text: str) -> set[str]:
    """As the forge makes them of headings."""
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.place + ": " + claim.says[:30])
def test_a_claim_rests_on_checks_that_hold_and_on_tables_that_are_there(claim):
    assert claim.status in STATUSES
    assert claim.checks or claim.cells or claim.status == "open"
    assert all(RECORDS[name]["holds"] for name in claim.checks)
    assert all(paper.numbers(claim, RECORDS))
    assert not claim.page or (DOCS / claim.page).exists()


def test_the_page_of_the_paper_has_a_row_for_each_claim():
    rows = [line for line in paper.page(RECORDS).splitlines() if line.startswith("| ")][2:]
    assert len(rows) == len(CLAIMS)
    with pytest.raises(ValueError, match="no table with a row 'nothing'"):
        paper.cell_of(Cell("cloning.md", "nothing", 1))


def test_the_worst_number_of_a_check_is_the_one_nearest_to_its_bound():
    def row(what, value, bound=1.0, sense="<=", control=False):
        return {"what": what, "value": value, "bound": bound, "sense": sense, "control": control}

    rows = [row("far", 0.1), row("near", 0.9), row("a control", 5.0, control=True), row("above", 1.1, sense=">=")]
    assert paper.worst_of({"rows": rows}).what == "near"
    assert paper.worst_of({"rows": [row("above", 4.0, sense=">="), row("just", 1.1, sense=">=")]}).what == "just"
