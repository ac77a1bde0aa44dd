"""The pages of the API reference: one for each public package, an entry for each of its names.

Functions and classes are Sphinx's own entries (autodoc). Constants and type aliases have none when a package passes
them on, because the text below an assignment belongs to the file it stands in: that file is searched for it here.
"""

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import public_names

PLAIN = re.compile(r":[a-z:]+:`[^`]+`|``[^`]+``|`[^`]+`|\\.|[*|]|_(?=\W|$)")
CLASS, FUNCTION, VALUE = "Classes", "Functions", "Types and constants"


def write(folder: Path) -> None:
    """Write all pages into an empty folder."""
    told: dict[int, str] = {}
    for module in sorted(public_names.modules(), key=lambda module: -len(names_of(module))):
        for name in sorted(names_of(module), key=lambda name: not is_home(module, name)):
            told.setdefault(id(getattr(importlib.import_module(module), name)), f"{module}.{name}")
    for module in public_names.modules():
        text = page(module, names_of(module), told)
        (folder / f"{module.removeprefix('lopjax.')}.md").write_text(text, encoding="utf-8")


def is_home(module: str, name: str) -> bool:
    """Whether a name was defined in this package, and not passed on from another."""
    return getattr(getattr(importlib.import_module(module), name), "__module__", "").startswith(module)


@cache
def names_of(module: str) -> tuple[str, ...]:
    """Public names of a module: its `__all__`, or what it defines itself and does not hide."""
    listed = public_names.packages().get(module)
    if listed is not None:
        return tuple(listed)
    found = importlib.import_module(module)
    own = [name for name, value in vars(found).items() if getattr(value, "__module__", None) == module]
    homes = public_names.top_level().values()
    wanted = [home.rpartition(".")[2] for home in homes if home.rpartition(".")[0] == module]
    return tuple(sorted({*(name for name in own if not name.startswith("_")), *wanted}))


def kind_of(value: Any) -> str:
    """Which heading an entry stands under."""
    if inspect.isclass(value):
        return CLASS
    return FUNCTION if inspect.isroutine(value) else VALUE


def page(module: str, names: tuple[str, ...], told: dict[int, str]) -> str:
    """Markdown of one page; names that another page tells about are entries that point there."""
    found = importlib.import_module(module)
    blocks = [f"# {module}", directive("automodule", module, ["no-members:"])]
    for kind in (FUNCTION, CLASS, VALUE):
        entries = [
            entry(module, name, getattr(found, name), told) for name in names if kind_of(getattr(found, name)) == kind
        ]
        blocks += [f"## {kind}", *entries] if entries else []
    return "\n\n".join(blocks) + "\n"


def entry(module: str, name: str, value: Any, told: dict[int, str]) -> str:
    """One entry."""
    kind, full = kind_of(value), f"{module}.{name}"
    home = told[id(value)]
    if kind == VALUE:
        text, source = assignment(module, name)
        return directive("py:data", name, [f"module: {module}", f"value: {source}"], text)
    if home != full:
        text = f"The same as :py:obj:`{home}`."
        return directive("py:class" if kind == CLASS else "py:function", name, [f"module: {module}"], text)
    return directive("autoclass" if kind == CLASS else "autofunction", full, [])


def directive(kind: str, argument: str, options: list[str], text: str = "") -> str:
    """A directive of reStructuredText in a page of Markdown."""
    lines = [f".. {kind}:: {argument}", *(f"   :{option}" for option in options)]
    lines += ["", *(f"   {line}".rstrip() for line in text.splitlines())] if text else []
    return "\n".join(["```{eval-rst}", *lines, "```"])


def assignment(module: str, name: str) -> tuple[str, str]:
    """Text below the assignment of a name, and what is assigned, from the file that does it; shortened."""
    for file in sources(module):
        body = ast.parse(file.read_text(encoding="utf-8")).body
        for node, after in zip(body, [*body[1:], None], strict=True):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            if isinstance(node, ast.Assign | ast.AnnAssign) and any(getattr(t, "id", None) == name for t in targets):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                source = " ".join(ast.unparse(node.value).split())
                return inspect.cleandoc(after.value.value) if is_text else "", _shortened(source)
    return "", "..."


def sources(module: str) -> Iterator[Path]:
    """The files of a package, then those of the whole library."""
    own = public_names.LIBRARY / module.removeprefix("lopjax.")
    yield from [own.with_suffix(".py")] if own.with_suffix(".py").exists() else sorted(own.rglob("*.py"))
    yield from sorted(public_names.LIBRARY.rglob("*.py"))


def _shortened(text: str, length: int = 100) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def escaped(lines: list[str]) -> list[str]:
    """A docstring as reStructuredText: stars, bars and trailing underscores are no markup outside of backticks.

    Examples (`>>>`) and indented blocks are code, and left alone.
    """
    parts: list[tuple[bool, list[str]]] = []
    in_block, indent = False, 0
    for line in marked_blocks(lines):
        own = len(line) - len(line.lstrip())
        in_block = in_block and (own > indent or not line.strip())
        is_code = in_block or line.lstrip().startswith((">>>", "..."))
        if not parts or parts[-1][0] != is_code:
            parts.append((is_code, []))
        parts[-1][1].append(line)
        if not is_code and line.rstrip().endswith("::"):
            in_block, indent = True, own
    texts = [(is_code, "\n".join(part)) for is_code, part in parts]
    marked = [text if is_code else PLAIN.sub(_escape, text) for is_code, text in texts]
    return "\n".join(marked).split("\n")


def marked_blocks(lines: list[str]) -> list[str]:
    """Put `::` in front of what Markdown takes for code: indented by four after a paragraph and a blank line."""
    found, last = [], ""
    for line in lines:
        is_indented = line.startswith("    ") and not line.lstrip().startswith(">>>")
        if is_indented and found and not found[-1].strip() and last[:1] not in (" ", "-", "*", "") and last != "::":
            found += ["::", ""]
        found.append(line)
        last = line if line.strip() else last
    return found


def _escape(found: re.Match[str]) -> str:
    if found[0].startswith("`"):
        return f"``{found[0].strip('`')}``"  # a colon in single backticks would end the type of what is returned
    return found[0] if found[0][0] in "\\:" else "\\" + found[0]
