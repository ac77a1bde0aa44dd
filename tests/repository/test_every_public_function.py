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
    **dict.fromkeys(("clone_factors", "uniform_partition", "widen"), "tests/cloning, of integers"),
    **dict.fromkeys(("muon_dimension_numbers", "matrix_axes"), "tests/optim, of shapes alone"),
    "multiplicities": "tests/cloning, of shapes alone",
    "adam_per_weight": "tests/interventions, against published traces",
    "masked_accuracy": "tests/training, `accuracy` among the classes of a mask",
    "masked_cross_entropy": "tests/training, `mean_cross_entropy` among the classes of a mask",
    "epoch_permutation": "tests/data, of a key and integers",
    "check_labels": "tests/models, of shapes alone",
    "labelled": "tests/models, of names of axes",
    "tap": "tests/models, the activation of every labelled model",
    "level_set_manifold": "tests/manifolds",
    "random_normal_vector": "tests/manifolds, of a key and shapes",
    **dict.fromkeys(
        (
            *("departure_probability", "deviation_covariance", "escape_law", "simulated_departures"),
            *("linearised", "linearised_gradient", "split"),
        ),
        "tests/stability, the law of R²",
    ),
    "interval_bounds": "tests/certificates",
    "fixed_points": "tests/theory, of a function alone",
    "insert_norm": "tests/interventions, parameters of a norm alone",
    "move_means_into_biases": "tests/interventions",
    **dict.fromkeys(("forget", "draw_units"), "tests/interventions, of masks and shapes"),
    **dict.fromkeys(
        (
            *("class_incremental", "epochs", "online", "permuted_labels", "permuted_pixels", "permuted_words"),
            *("random_labels", "texts", "windows"),
        ),
        "tests/training, where data are drawn and moved, not computed with",
    ),
    **dict.fromkeys(
        ("cut_batch", "evaluate", "gathered", "make_chunk", "place", "sgd_step", "start_lanes", "task_examples"),
        "tests/training, where a step that is given is run",
    ),
    "death_radius": "tests/detection, a part of `unit_nearness`",
    **dict.fromkeys(("describe_units", "describe_warnings", "save_lives"), "tests/detection, words and files"),
    **dict.fromkeys(("explain", "life_table"), "tests/recovery, words and tables"),
    "write_page": "tests/doctor, words",
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


def test_what_is_said_to_be_tested_elsewhere_is():
    """The place that is named, a folder or a file, has a test that uses the function."""
    places = {name: TESTS.parent / reason.split(",")[0] for name, reason in ELSEWHERE.items()}
    files = {place: [place] if place.suffix else sorted(place.glob("test_*.py")) for place in set(places.values())}
    used = {place: set().union(*map(names_in, each)) for place, each in files.items()}
    assert not [(name, ELSEWHERE[name]) for name, place in places.items() if name not in used[place]]
    assert "widen" not in used[TESTS / "doctor"]  # the control


def test_nothing_is_excused_that_does_not_exist():
    names = {name.rpartition(".")[2] for name in public_functions()}
    assert {*ELSEWHERE} <= names
