"""Every public function that takes arrays has a property test: right for any type, scale and axis, or one sentence."""

import ast
import inspect
import re
from pathlib import Path

import lopjax

TESTS = Path(__file__).parents[1]
PROPERTY_TESTS = (
    "curvature/test_lanczos_break_downs.py",
    "data/test_data_transforms.py",
    "data/test_dataset.py",
    "models/test_convolution.py",
    "repository/test_input_arrays.py",
    "repository/test_input_detection.py",
    "repository/test_input_networks.py",
    "repository/test_input_operators.py",
    "manifolds/test_lie_rank.py",
    "test_losses.py",
    "metrics/test_metrics.py",
    "metrics/test_metrics_extremes.py",
    "optim/test_optim.py",
    "theory/test_input_types.py",
)
"""Files of property tests: types, scales, empty and one-element axes, NaN and infinity."""

ARRAYS = re.compile(r"Array|ndarray|PyTree|ArrayLike|Mapping\[str, typing\.Any\]")
NO_NUMBERS = {
    "lopjax.wiring": "arrays are moved, masked and reshaped: tests/wiring",
    "lopjax.testing": "its arrays are those of the network under test",
    "lopjax.runs": "writes what it is given: tests/runs",
}
"""Packages without arithmetic of their own."""

ELSEWHERE = {
    "clone_factors": "integers: tests/cloning",
    "uniform_partition": "integers",
    "widen": "integers",
    "adam_per_weight": "tests/optim",
    "dead_units": "what dead_fraction counts",
    "masked_accuracy": "accuracy among the classes of a mask",
    "masked_cross_entropy": "mean_cross_entropy among the classes of a mask",
    "epoch_permutation": "a key and integers",
    "multiplicities": "shapes alone",
    "matrix_axes": "shapes alone",
    "muon_dimension_numbers": "shapes alone",
    "check_labels": "shapes alone",
    "labelled": "names of axes",
    "tap": "an activation by name, in every model",
    "level_set_manifold": "tests/manifolds",
    "random_normal_vector": "a key and shapes",
    "transverse_lyapunov": "tests/stability/test_noise.py",
    "escape_time_along": "tests/stability/test_escape.py",
    "interval_bounds": "tests/certificates",
    "fixed_points": "a function alone",
    "insert_norm": "parameters of a norm alone",
    "forget": "masks: tests/interventions",
    "draw_units": "masks and shapes",
    "reset_units": "masks and shapes",
    "move_means_into_biases": "tests/interventions",
    **dict.fromkeys(
        ("class_incremental", "epochs", "online", "permuted_labels", "permuted_pixels", "random_labels", "windows"),
        "data are drawn and moved, not computed with: tests/training",
    ),
    **dict.fromkeys(
        ("cut_batch", "evaluate", "gathered", "make_chunk", "place", "sgd_step", "start_lanes", "task_examples"),
        "runs a step given to it: tests/training",
    ),
    **dict.fromkeys(
        (
            *("dead_on_batch", "death_radius", "describe_units", "describe_warnings", "measured_rate", "pair_r2"),
            *("save_lives", "score_indicator", "start_lives", "start_warnings", "symptoms_of", "thresholds"),
            *("trap_forecast", "trend", "unit_nearness", "unit_status", "update_lives", "update_warnings"),
        ),
        "networks and curves made by hand: tests/detection",
    ),
    **dict.fromkeys(
        ("critical_noise", "explain", "kick_clones", "life_table", "monitor", "pull_to_start", "recovery_controller"),
        "acts on or watches a network given to it: tests/recovery",
    ),
    **dict.fromkeys(("diagnose", "write_page"), "a network with one of each trap: tests/doctor"),
}
"""Functions of another kind, and where they are tested."""


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
                found[f"{'.'.join(member.__module__.split('.')[:2])}.{key}"] = member
    return found


def takes_arrays(function):
    parameters = inspect.signature(function).parameters.values()
    return any(ARRAYS.search(str(each.annotation)) for each in parameters)


def names_in(path):
    """Names that a file's code uses, those in comments and strings left out."""
    tree = ast.walk(ast.parse(path.read_text()))
    return {getattr(node, "id", None) or getattr(node, "attr", None) for node in tree} - {None}


def test_every_function_of_arrays_has_a_property_test():
    tested = set().union(*(names_in(TESTS / path) for path in PROPERTY_TESTS))
    functions = {name: each for name, each in public_functions().items() if takes_arrays(each)}
    assert len(functions) > 150  # or this test has stopped looking
    missing = [
        name
        for name in functions
        if name.rpartition(".")[0] not in NO_NUMBERS and name.rpartition(".")[2] not in {*tested, *ELSEWHERE}
    ]
    assert not missing, f"give each a row in one of {PROPERTY_TESTS}, or say in ELSEWHERE why it needs none: {missing}"


def test_a_function_without_a_row_is_seen():
    """The control: what no test names is not taken for tested, and comments and strings do not count."""
    assert takes_arrays(lopjax.escape_time)
    assert not takes_arrays(lopjax.mlp)
    assert "escape_time" in names_in(TESTS / "repository" / "test_input_arrays.py")
    assert "Types" not in names_in(TESTS / "repository" / "test_input_arrays.py")


def test_nothing_is_excused_that_does_not_exist():
    names = {name.rpartition(".")[2] for name in public_functions()}
    assert {*ELSEWHERE} <= names
