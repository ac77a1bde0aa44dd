"""What the API reference must hold: every name in an `__all__`, and every name of `import lopjax as lop`.

Read from the source, so that a name is missed which cannot be imported, or which the reference's machinery overlooks.
"""

import ast
from collections.abc import Iterable, Mapping
from pathlib import Path

LIBRARY = Path(__file__).parents[1] / "lopjax"
OLD_NAMES = {"lopjax.checkpoints", "lopjax.finding", "lopjax.lanes", "lopjax.quotient", "lopjax.writers"}
"""Modules kept for one more release under the names they had before."""


def packages(library: Path = LIBRARY) -> dict[str, list[str]]:
    """Public packages `lopjax.*`, by their `__init__.py`, and the names in the `__all__` of each."""
    files = sorted(library.glob("*/__init__.py"))
    found = {f"lopjax.{file.parent.name}": names_in_all(file) for file in files}
    return {package: names for package, names in found.items() if names}


def names_in_all(file: Path) -> list[str]:
    """The names that a module lists in its `__all__`; none where it has no such list of literals."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        is_list = isinstance(node, ast.Assign) and isinstance(node.value, ast.List | ast.Tuple)
        if is_list and any(isinstance(target, ast.Name) and target.id == "__all__" for target in node.targets):
            return [ast.literal_eval(name) for name in node.value.elts]
    return []


def top_level(library: Path = LIBRARY) -> dict[str, str]:
    """Names of `import lopjax as lop` to where they live: `"classify"` to `"lopjax.stability.classify"`."""
    homes = {}
    for node in ast.parse((library / "__init__.pyi").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            home = f"lopjax.{node.module}" if node.module else "lopjax"
            homes |= {alias.asname or alias.name: f"{home}.{alias.name}" for alias in node.names}
    return homes


def modules(library: Path = LIBRARY) -> list[str]:
    """What has a page of its own: the public packages, and the single modules that hold public names."""
    homes = top_level(library)
    single = {home.rpartition(".")[0] for home in homes.values()} | {f"lopjax.{name}" for name in homes}
    files = {f"lopjax.{file.stem}" for file in library.glob("[a-z]*.py")}
    return sorted({*packages(library), *(single & files), "lopjax.activations", "lopjax.plotting", "lopjax.tolerance"})


def public_names(library: Path = LIBRARY) -> set[str]:
    """Full names of everything that the reference must have an entry for."""
    listed = {f"{package}.{name}" for package, names in packages(library).items() for name in names}
    return listed | set(top_level(library).values())


def missing(entries: Iterable[str] | Mapping[str, object], library: Path = LIBRARY) -> list[str]:
    """Public names without an entry among these."""
    return sorted(public_names(library) - set(entries))
