"""One place for tolerances: the numbers, what they decide, and that no other module has a copy of them."""

import ast
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import lopjax
from lopjax import tolerance

SOURCES = sorted(Path(lopjax.__file__).parent.rglob("*.py"))


def copies(source):
    """Lines that multiply a number of roundings by a machine epsilon: `64 * eps`, `1000 * finfo(...).eps`, ..."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            numbers = [each.value for each in (node.left, node.right) if isinstance(each, ast.Constant)]
            if {64, 1000} & set(numbers) and ("eps" in ast.unparse(node).lower()):
                yield ast.unparse(node)


def test_no_other_module_has_a_copy():
    assert len(SOURCES) > 100
    found = {path.name: list(copies(path.read_text())) for path in SOURCES}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert list(copies("limit = 64 * float(jnp.finfo(dtype).eps)")) != []  # the control
    assert list(copies("limit = 1000 * epsilon * size")) != []


@pytest.mark.parametrize(("dtype", "bits"), [(jnp.float32, 23), (np.float64, 52), (jnp.bfloat16, 7)])
def test_the_numbers_are_those_of_the_type(dtype, bits):
    """64 eps sqrt(N) S, from the number of bits of the mantissa."""
    assert tolerance.rounding_unit(dtype) == 2.0 ** (6 - bits)
    assert tolerance.rounding_tolerance(dtype, 9, 2.0) == 6 * 2.0 ** (6 - bits)
    assert tolerance.drift_tolerance(dtype) == pytest.approx(2.0 ** (-bits / 2), rel=1e-15)


def test_signed_zero_and_undecided_exclude_one_another():
    """Signed beyond the bound; zero if all that the bound leaves open is below the level; the rest is undecided."""
    values = np.array([0.0, 0.5, 1.0, 1.0 + 1e-9, -2.0, 11.0])
    threshold = tolerance.Threshold(0.1, zero_below=1.5)  # the bound is 1
    assert threshold.is_signed(values).tolist() == [False, False, False, True, True, True]
    assert threshold.is_zero(values).tolist() == [True, True, False, False, False, False]
    assert not (threshold.is_signed(values) & threshold.is_zero(values)).any()
    assert not tolerance.Threshold(0.1).is_zero(values).any()  # small is not zero: no level, no zero
