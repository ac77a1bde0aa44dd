"""The pages that say where things are, against the code: layers, folders, and what is listed beside them."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
OLD_NAMES = {"lanes", "finding", "quotient", "checkpoints", "writers"}


def layers() -> dict[str, int]:
    """Row of every module of the library in the table of layers."""
    table = PAGE.split("## Layers of the code")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", table, flags=re.M)
    return {name.rstrip("/"): int(row) for row, cell in rows for name in re.findall(r"`([^`]+)`", cell)}


def modules_imported(path: Path) -> set[str]:
    """Modules right below `lopjax` that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lopjax":
            parts = (node.module or "").split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("lopjax.")}
    return found - {"lopjax", "__version__"}


def upwards(row_of: dict[str, int]) -> list[str]:
    """Imports of a module in the same row or above."""
    found = []
    for path in sorted((ROOT / "lopjax").rglob("*.py")):
        own = path.relative_to(ROOT / "lopjax").parts[0].removesuffix(".py")
        if own.startswith("__") or own in OLD_NAMES:
            continue
        others = modules_imported(path) - {own}
        found += [f"{path.relative_to(ROOT)} imports {other}" for other in others if row_of[other] <= row_of[own]]
    return found


def test_modules_import_only_from_the_rows_below_their_own():
    row_of = layers()
    present = {
        path.stem for path in (ROOT / "lopjax").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert {name for name in present if not name.startswith("__")} - OLD_NAMES == set(row_of) - {
        "experiments",
        "theory_checks",
    }
    assert upwards(row_of) == []
    assert upwards({**row_of, "wiring": 0})  # the control: with one module too high there are


def test_paths_that_the_pages_name_exist():
    for page in ("README.md", "docs/architecture.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        paths = set(re.findall(r"`((?:lopjax|experiments|theory_checks|tests|docs)/[\w/]*(?:\.py)?)`", text))
        assert len(paths) > 8
        assert not [path for path in paths if not (ROOT / path).exists()]


def test_every_package_of_the_library_is_in_the_readme():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    packages = [path.parent.name for path in (ROOT / "lopjax").glob("*/__init__.py")]
    assert len(packages) > 15  # or this test has stopped looking
    assert not [name for name in packages if f"`lopjax/{name}/`" not in readme]
