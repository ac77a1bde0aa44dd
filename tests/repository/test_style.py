"""One docstring dialect, and files and functions that fit on a screen or two."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path for top in ("lopjax", "experiments", "theory_checks", "benchmarks") for path in (ROOT / top).rglob("*.py")
]
SECTIONS = ("Args", "Attributes", "Returns", "Raises", "Example", "References")
# Entries may begin with a capital only if the word is a name.
NAMES = {"Lanczos", "Ritz", "Rayleigh", "Gaussian", "Newton", "Euclidean", "Lambda", "Python", "WordNet", "Slurm's"}
NAMES |= {"True", "False", "None"}
LONGEST_FILE, LONGEST_FUNCTION = 350, 60


@cache
def sources() -> dict[str, str]:
    """Text of every source file by its path."""
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in SOURCES}


@cache
def definitions(text: str) -> list[ast.FunctionDef | ast.ClassDef]:
    """Functions and classes, at any depth."""
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.ClassDef)]


def arguments(node: ast.FunctionDef) -> set[str]:
    """Names of a function's arguments."""
    args = node.args
    every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
    return {arg.arg for arg in every if arg is not None}


def faults(node: ast.FunctionDef | ast.ClassDef) -> list[str]:
    """Where a docstring departs from the dialect."""
    text = ast.get_docstring(node) or ""
    heads = re.findall(r"^([A-Z]\w+):$", text, flags=re.M)
    found = [f"unknown section {head}" for head in heads if head not in SECTIONS]
    if not found and heads != sorted(set(heads), key=SECTIONS.index):
        found.append(f"sections in the order {heads}")
    for head in ("Args", "Attributes", "Raises"):
        section = text.partition(f"\n{head}:\n")[2].split("\n\n")[0]
        entries = re.findall(r"^    ([\w*]+): +(\S+)(.*(?:\n {8}.*)*)", section, flags=re.M)
        for name, first, rest in entries:
            if re.match(r"[A-Z][a-z]|A$", first) and first.strip(",;:.") not in NAMES:
                found.append(f"{name}: begins with a capital")
            if first in ("of", "if", "If"):
                found.append(f"{name}: begins with {first!r}; name what it is")
            if not (first + rest).rstrip().endswith((".", ":", "`")):
                found.append(f"{name}: does not end with a full stop")
            if head == "Args" and isinstance(node, ast.FunctionDef) and name.lstrip("*") not in arguments(node):
                found.append(f"{name}: not an argument")
    return found


def length_without_docstring(node: ast.FunctionDef) -> int:
    """Lines of a function from `def` to its end, its docstring left out."""
    first = node.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    docstring = (first.end_lineno or 0) - first.lineno + 1 if is_docstring else 0
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


def test_docstrings_speak_one_dialect():
    found = [
        f"{path}: {node.name}: {fault}"
        for path, text in sources().items()
        for node in definitions(text)
        for fault in faults(node)
    ]
    assert found == []


@pytest.mark.parametrize(
    "docstring",
    [
        "Returns:\n        A number.\n\n    Args:\n        x: a number.",
        "Arguments:\n        x: a number.",
        "Args:\n        x: A number.",
        "Args:\n        x: of the network.",
        "Args:\n        y: a number.",
        "Args:\n        x: a number",
        "Raises:\n        ValueError: If x is negative.",
    ],
)
def test_another_dialect_is_heard(docstring):
    good = (
        "Args:\n        x: a number.\n\n    Returns:\n        None.\n\n    Raises:\n        ValueError: x is negative."
    )
    source = 'def f(x):\n    """Do it.\n\n    {}\n    """\n'
    assert not faults(definitions(source.format(good))[0])
    assert faults(definitions(source.format(docstring))[0])


def test_files_and_functions_are_short():
    files = {path: text.count("\n") for path, text in sources().items()}
    functions = {
        f"{path}: {node.name}": length_without_docstring(node)
        for path, text in sources().items()
        for node in definitions(text)
        if isinstance(node, ast.FunctionDef)
    }
    assert {path: length for path, length in files.items() if length > LONGEST_FILE} == {}
    assert {name: length for name, length in functions.items() if length > LONGEST_FUNCTION} == {}
    assert max(files.values()) > 300  # the control: lengths are counted
    assert max(functions.values()) > 50
