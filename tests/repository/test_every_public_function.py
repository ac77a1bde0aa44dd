"""Every public function of arrays times every kind of input: each cell of the table is called, or has a reason.

The rows are in `tests/input_table`: what a function is called with, and along which axes there is nothing to call. A
cell holds if the result is that of another precision, if what is not finite is seen, or if the refusal is one sentence
of the library's own about what was given. A function without a row, and an axis without a case, fail here.
"""

import inspect
import re
from dataclasses import replace

import jax
import numpy as np
import pytest
from input_table import (
    AXES,
    REFUSED,
    Row,
    Subject,
    failures,
    of_arrays,
    of_more_networks,
    of_networks,
    of_optimizers,
    of_settings,
    of_tasks,
    of_trees,
    of_units,
    sentence,
)

import lopjax

TABLES = (of_arrays, of_networks, of_trees, of_more_networks, of_optimizers, of_settings, of_tasks, of_units)
ROWS = {name: row for table in TABLES for name, row in table.ROWS.items()}
ARRAYS = re.compile(r"Array|ndarray|PyTree|ArrayLike|Mapping\[str, typing\.Any\]")
MAKES = re.compile(r"GradientTransformation|Intervention")
CHEAP = (*REFUSED, "no samples", "no units")
"""Axes that end in a refusal before anything is compiled, but for a few; the others are computed in the slow suite."""

WITHOUT = {
    **dict.fromkeys(("models.labelled", "models.tap"), "called inside a module, whose model is in the table"),
    **dict.fromkeys(
        ("training.online", "training.make_chunk", "theory.fixed_points"), "of functions: the arrays are theirs"
    ),
    **dict.fromkeys(
        ("training.cut_batch", "training.gathered", "training.place"),
        "moves arrays between devices, bit by bit, whatever they hold: nothing is computed",
    ),
    "data.epoch_permutation": "of a key and Python integers",
    "runs.config_hash": "of a configuration: text, numbers and None",
    "optim.on_own_arrays": "of an optimizer, whose arrays are cut and put together as the view says",
    **dict.fromkeys(
        ("interventions.from_optax", "interventions.with_lifetimes"),
        "of an optimizer or intervention, to which the arrays are passed on",
    ),
}
"""Functions that compute with no arrays of a user, and why."""


def public_functions():
    """`{qualified name: function}` of what the package and its subpackages list as theirs."""
    found = {}
    for name in lopjax.__all__:
        value = getattr(lopjax, name)
        if inspect.ismodule(value):
            own = getattr(value, "__all__", [each for each in dir(value) if not each.startswith("_")])
            members = {each: getattr(value, each) for each in own}
            if not hasattr(value, "__all__"):
                members = {k: v for k, v in members.items() if getattr(v, "__module__", "") == value.__name__}
        else:
            members = {name: value}
        for key, member in members.items():
            if inspect.isfunction(member) and member.__module__.startswith("lopjax."):
                found[f"{member.__module__.split('.')[1]}.{key}"] = member
    return found


def takes_arrays(function):
    """Whether its arguments are arrays, or what it makes of them takes arrays: an optimizer, an intervention."""
    signature = inspect.signature(function)
    is_maker = MAKES.search(str(signature.return_annotation))
    return bool(is_maker) or any(ARRAYS.search(str(each.annotation)) for each in signature.parameters.values())


@pytest.fixture
def full_tracebacks():
    """Where an error was raised, frames of JAX included."""
    before = jax.config.jax_traceback_filtering
    jax.config.update("jax_traceback_filtering", "off")
    yield
    jax.config.update("jax_traceback_filtering", before)


@pytest.mark.parametrize("name", ROWS)
def test_input_that_means_nothing_is_refused_in_a_sentence(x64, unchecked, full_tracebacks, name):
    row = ROWS[name]
    assert not [each for axis in CHEAP if not row.reason(axis) for each in failures(row, axis)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_type_and_scale_is_right_and_what_is_not_finite_is_seen(x64, unchecked, full_tracebacks, name):
    row = ROWS[name]
    axes = [axis for axis in AXES if axis not in CHEAP and not row.reason(axis)]
    assert not [each for axis in axes for each in failures(row, axis)]


def test_every_function_of_arrays_is_in_the_table():
    functions = {name for name, each in public_functions().items() if takes_arrays(each)}
    assert len(functions) > 200  # or this test has stopped looking
    assert len(ROWS) == sum(len(table.ROWS) for table in TABLES)  # no row stands in two tables
    assert functions - {*ROWS, *WITHOUT} == set(), "give each a row in the file of tests/input_table that has its kin"
    assert {*ROWS, *WITHOUT} - functions == set(), "rows of functions that are not public"
    assert not {*ROWS} & {*WITHOUT}
    assert len(ROWS) > 15 * len(WITHOUT)  # the table is the rule, a reason the exception


def test_every_axis_of_every_row_has_a_case_or_a_reason():
    for name, row in ROWS.items():
        for axis in AXES:
            assert row.reason(axis) or list(row.subject.cases(axis, row.usual)), (name, axis)
        assert {*row.excused, *row.allowed, *row.subject.excused} <= {*AXES}, name


def test_a_cell_that_is_wrong_is_seen(x64, full_tracebacks):
    """The control: each kind of falsehood, in a function that has it."""
    subject = Subject(
        {"h": np.array([[1.0, 2], [0, -1]]), "t": np.array([0, 1])}, scaled=("h",), samples={"h": 0}, units={"h": 1},
        width={"h": 1}, carriers=("h",), numbers=("h",), ranked=("h",), labels="t",
    )  # fmt: skip
    overflows = Row(lambda h, t: np.sqrt(np.mean(np.asarray(h) ** 6)), subject)
    for axis in ("huge", "no samples", "wrong width", "wrong rank", "strings", "labels"):
        assert failures(overflows, axis), axis
    assert failures(Row(lambda h, t: np.nanmean(np.asarray(h, float)), subject), "nan")
    coarse = Row(
        lambda h, t: (np.asarray(h) / 3).astype(np.float16 if h.dtype == np.float32 else h.dtype) * 1.0, subject
    )
    assert failures(replace(coarse, call=lambda h, t: coarse.call(h, t).astype(float)), "one sample")
    assert failures(replace(overflows, subject=replace(subject, labels=None)), "labels")  # nothing to call
    # And what is right passes.
    mean = Row(lambda h, t: np.mean(np.asarray(h, np.float64)), subject)
    assert not [
        each for axis in ("bfloat16", "int32", "tiny", "huge", "one sample", "nan") for each in failures(mean, axis)
    ]


def test_what_counts_as_a_sentence(unchecked):
    def raised(error):
        try:
            raise error
        except Exception as caught:
            return sentence(caught)

    assert "raised in" in raised(ValueError("h has shape (3,): must be (samples, units)"))  # not in the library
    with pytest.raises(ValueError, match="must be") as own:
        lopjax.metrics.effective_rank(np.zeros(3))
    assert sentence(own.value) is None
    for error in (KeyError("h"), IndexError("tuple index out of range")):
        assert "not an error of ours" in raised(error)
