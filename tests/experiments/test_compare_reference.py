"""The comparison with reference curves: t by hand, Student's law in closed form, and the correction for many rows."""

import math

import numpy as np
import pytest

from experiments.compare_reference import QUANTITIES, Row, conclusion, rows_of, table_of
from lopjax.runs import RunData

OURS, THEIRS = {0: 1.0, 1: 1.2, 2: 1.4}, {40: 0.9, 41: 1.1}


def student_3(t):
    """P(|T| > t) with three degrees of freedom."""
    x = t / math.sqrt(3)
    return 1 - 2 / math.pi * (math.atan(x) + x / (1 + x * x))


@pytest.fixture
def rows(tmp_path) -> list[Row]:
    records = [
        {"method": "sgd", "seed": seed, "phase": quantity.phase, quantity.column: value}
        for quantity in QUANTITIES
        for seed, value in OURS.items()
    ]
    run = RunData(
        folder=tmp_path,
        config={"methods": ["sgd"], "seeds": list(OURS)},
        records=records,
        summary=None,
        experiment="cloning",
    )
    names = ("train_loss", "test_loss", "test_acc", "r2", "rank")
    reference = [
        {"kind": "sgd", "seed": seed, **{phase: [dict.fromkeys(names, value)] for phase in
                                          ("base", "base_continued", "clone")}}
        for seed, value in THEIRS.items()
    ]  # fmt: skip
    return rows_of(run, reference)


def test_t_is_the_difference_over_its_pooled_standard_error(rows):
    pooled = (2 * 0.2**2 + 2 * 0.1**2) / 3
    assert len(rows) == len(QUANTITIES)
    for row in rows:
        np.testing.assert_allclose(row.t, 0.2 / math.sqrt(pooled * (1 / 3 + 1 / 2)))
        np.testing.assert_allclose(row.p, student_3(row.t))


def test_one_extreme_row_of_many_is_judged_as_the_largest_of_many():
    quiet = [Row("sgd", f"quantity {number}", 1.0, 0.9, 0.1, 3) for number in range(29)]
    exact = Row("sgd", "R²", 1.0, 1.0, 0.0, 3)
    extreme = Row("noisy_sgd", "training loss", 6.0, 0.0, 1.0, 3)
    assert round(student_3(6.0), 4) == 0.0093
    said = conclusion([*quiet, extreme, exact])
    assert "The largest |t|: noisy_sgd, training loss: +6.0." in said
    assert "probability 0.0093 in one row" in said
    assert "at most 0.28 in the largest of 30" in said
    # Of many seeds the same t would not pass as chance: Student's law becomes the normal one.
    surprise = 30 * math.erfc(6 / math.sqrt(2))
    assert f"at most {surprise:.2g} in" in conclusion([*quiet, extreme._replace(freedom=10**8)])


def test_rows_without_noise_are_equal_or_not():
    assert Row("adam", "R²", 1.0, 1.0, 0.0, 3).t == 0
    assert Row("adam", "R²", 1.0, 0.9, 0.0, 3).t == math.inf
    assert "| 0 |" in table_of([Row("adam", "R²", 1.0, 1.0, 0.0, 3)])
