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
from input_table import AXES, REFUSED, Row, Subject, failures, of_arrays, of_networks, of_trees, sentence

import lopjax

ROWS = {**of_arrays.ROWS, **of_networks.ROWS, **of_trees.ROWS}
ARRAYS = re.compile(r"Array|ndarray|PyTree|ArrayLike|Mapping\[str, typing\.Any\]")
CHEAP = (*REFUSED, "no samples", "no units")
"""Axes that end in a refusal before anything is compiled, but for a few; the others are computed in the slow suite."""

WITHOUT = {
    **dict.fromkeys(
        ("cloning.clone_factors", "cloning.uniform_partition", "cloning.widen"), "of integers: tests/cloning"
    ),
    **dict.fromkeys(("models.labelled", "models.tap"), "called inside a module, whose model is in the table"),
    **dict.fromkeys(
        (
            *("training.cut_batch", "training.gathered", "training.make_chunk", "training.place"),
            *("training.start_lanes", "training.online"),
        ),
        "arrays are moved between devices and lanes, whatever they hold: tests/training",
    ),
    **dict.fromkeys(
        ("training.permuted_words", "training.texts", "training.windows", "data.epoch_permutation"),
        "of tokens and positions, which are integers: tests/training, tests/data",
    ),
    **dict.fromkeys(("wiring.sharding_rules", "wiring.unf_spec"), "of shapes alone: tests/wiring"),
    "wiring.where": "`jnp.where` over trees: tests/wiring",
    "runs.config_hash": "of a configuration: tests/runs",
    "data.from_arrays": "tests/data/test_dataset.py, which has its own table of types and shapes",
    **dict.fromkeys(
        (
            *("detection.near_clones", "detection.start_lives", "detection.symptoms_of", "detection.unit_status"),
            *("detection.update_lives", "detection.update_warnings"),
        ),
        "of what `unit_nearness` returns: tests/repository/test_input_detection.py",
    ),
    **dict.fromkeys(
        (
            *("detection.clone_forecast", "detection.gradient_readiness", "detection.lives_as_text"),
            "detection.lives_of_records",
        ),
        "of records of `unit_status`: tests/detection",
    ),
    **dict.fromkeys(
        (
            *("optim.adam_per_weight", "optim.add_relative_noise", "optim.keep_on_manifold", "optim.l2_init"),
            *("optim.matrix_axes", "optim.muon", "optim.muon_dimension_numbers", "optim.noisy_sgd", "optim.parseval"),
            *("optim.shrink_and_perturb", "optim.spectral", "optim.upgd"),
        ),
        "tests/optim/test_optim.py: types, vmap, NaN among the settings; not yet strings and 16-bit zeros",
    ),
    **dict.fromkeys(
        (
            *("interventions.continual_backprop", "interventions.cpr", "interventions.fire", "interventions.redo"),
            *("interventions.regrama", "interventions.self_normalized_resets", "interventions.split_clones"),
            *("interventions.wake_dead_units", "interventions.reset_layer", "interventions.reset_optimizer"),
            *("interventions.move_means_into_biases", "recovery.kick_clones", "recovery.pull_to_start"),
            *("recovery.recovery_controller", "detection.thresholds"),
        ),
        "of numbers that configure: tests/repository/test_input_networks.py and test_input_detection.py",
    ),
    **dict.fromkeys(
        (
            *("training.class_incremental", "training.permuted_labels", "training.permuted_pixels"),
            *("training.random_labels", "training.task_examples", "training.epochs"),
        ),
        "examples are drawn and moved, not computed with: tests/training",
    ),
    "training.intervene": "of what `observe` returns: tests/repository/test_input_networks.py, every intervention",
    "interventions.forget": "of an optimizer's state and masks: tests/interventions",
    "losses.loss_of": "the loss inside `observe`, which is in the table",
    "certificates.interval_bounds": "tests/certificates/test_certificates.py, boxes of every size",
    **dict.fromkeys(
        ("stability.free_kick", "stability.rank_ceiling"), "tests/repository/test_input_networks.py, of parameters"
    ),
    "stability.simulated_departures": "of what `escape_law` returns: tests/stability",
    "theory.fixed_points": "of a function alone: tests/theory",
    "tracing.trace_model": "tests/repository/test_input_detection.py, of shapes and types",
}
"""Functions that take no arrays of their own, and where they are tested."""


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
    parameters = inspect.signature(function).parameters.values()
    return any(ARRAYS.search(str(each.annotation)) for each in parameters)


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
    assert len(functions) > 150  # or this test has stopped looking
    assert {*ROWS, *WITHOUT} == functions
    assert not {*ROWS} & {*WITHOUT}
    assert len(ROWS) > 130  # the table is the rule, a reason the exception


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
