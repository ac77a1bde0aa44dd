"""No test that cannot fail: each asserts something, by itself or through a function of its file."""

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
CHECKS = ("assert_", "check_", "raises", "warns", "exits", "fails_")


def checks(node: ast.AST, functions: dict[str, ast.AST], seen: frozenset[str] = frozenset()) -> bool:
    """Whether anything in a piece of code can fail on purpose; `functions` are those of its file."""
    for part in ast.walk(node):
        if isinstance(part, ast.Assert):
            return True
        name = part.attr if isinstance(part, ast.Attribute) else part.id if isinstance(part, ast.Name) else ""
        if name.startswith(CHECKS):
            return True
        if name in functions and name not in seen and checks(functions[name], functions, seen | {name}):
            return True
    return False


def without(source: str) -> list[str]:
    """Tests of a file that assert nothing."""
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)}
    tests = [name for name in functions if name.startswith("test_")]
    return [name for name in tests if not checks(functions[name], {k: v for k, v in functions.items() if k != name})]


def test_every_test_asserts_something():
    found = {path.name: without(path.read_text(encoding="utf-8")) for path in TESTS.rglob("test_*.py")}
    assert len(found) > 60
    assert {name: tests for name, tests in found.items() if tests} == {}


def test_one_that_asserts_nothing_is_found():
    assert without("def test_a():\n    f()\n\n\ndef f():\n    return 1\n") == ["test_a"]
    assert without("def test_a():\n    f()\n\n\ndef f():\n    assert g()\n") == []
