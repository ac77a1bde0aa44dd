"""One order of arguments in every public function; the order of the release before works, and says the new one."""

import importlib
import inspect
import pkgutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lopjax
from lopjax.arguments.order import takes_old_order, third_is
from lopjax.certificates import certify_cloned, certify_frozen
from lopjax.losses import mean_squared_error, of_parameters
from lopjax.models import mlp
from lopjax.probes import symptoms
from lopjax.stability import unit_blocks, unit_blocks_of_clones
from lopjax.training import Preprocess, evaluate

ORDER = ("model", "variables", "batch")


def public_functions():
    """`(name, parameters)` of every function exported by the package or one of its subpackages."""
    names = [each.name for each in pkgutil.walk_packages(lopjax.__path__, "lopjax.") if each.ispkg]
    names = ["lopjax", "lopjax.losses", "lopjax.probes", "lopjax.detection", *names]
    for module in map(importlib.import_module, names):
        for name in getattr(module, "__all__", vars(module)):
            function = getattr(module, name)
            if inspect.isfunction(function) and function.__module__.startswith("lopjax"):
                yield f"{module.__name__}.{name}", inspect.signature(function).parameters


def out_of_order(parameters):
    """Whether model, variables and batch come first, in this order, and the loss by name only."""
    given = [name for name in parameters if name in ORDER]
    if len(given) < 2 or "variables" not in given or "state" in parameters:
        return False
    is_first = list(parameters)[: len(given)] == [name for name in ORDER if name in given]
    return not is_first or ("loss" in parameters and parameters["loss"].kind is not inspect.Parameter.KEYWORD_ONLY)


def test_every_public_function_takes_model_variables_and_batch_first():
    functions = dict(public_functions())
    assert {"lopjax.unit_blocks", "lopjax.certify_frozen", "lopjax.losses.of_parameters"} <= set(functions)
    # The batch of `check_wiring` is all that it needs; variables supply shapes where they are given.
    wrong = {name for name, parameters in functions.items() if out_of_order(parameters)}
    assert {name.rpartition(".")[2] for name in wrong} <= {"check_wiring"}

    def old(model, variables, loss, batch): ...

    assert out_of_order(inspect.signature(old).parameters)  # the control


BASE = mlp((2,), (2,), 2)
WIDE = mlp((2,), (4,), 2)
BATCH = (jnp.array([[1.0, 2.0], [0.5, -1.0]]), jnp.array([0, 1]))
PARTITION = {"hidden_0": (0, 0, 1, 1)}
IMAGES = np.zeros((2, 2, 1, 1), np.uint8)
# Old arguments behind model and variables, and what the function gets today.
OLD = {
    unit_blocks: ((mean_squared_error, BATCH, 2), {"batch": BATCH, "factor": 2, "loss": mean_squared_error}),
    unit_blocks_of_clones: (
        (mean_squared_error, BATCH, PARTITION),
        {"batch": BATCH, "partition": PARTITION, "loss": mean_squared_error},
    ),
    certify_cloned: (
        (PARTITION, BATCH, mean_squared_error),
        {"batch": BATCH, "partition": PARTITION, "loss": mean_squared_error},
    ),
    certify_frozen: (
        ({"hidden_0": [0]}, None, BATCH),
        {"batch": None, "frozen_units": {"hidden_0": [0]}, "input_box": BATCH},
    ),
    symptoms: ((*BATCH, mean_squared_error), {"batch": BATCH, "loss": mean_squared_error}),
    evaluate: (
        (Preprocess((0.0,), (1.0,)), IMAGES, BATCH[1], 1),
        {"batch": (IMAGES, BATCH[1]), "preprocess": Preprocess((0.0,), (1.0,)), "batch_size": 1},
    ),
}


def cell_of(function, inner):
    """Where a decorated function, itself wrapped while annotations are enforced, keeps the one that it decorates."""
    for cell in function.__closure__ or ():
        if cell.cell_contents is inner:
            return cell
        if inspect.isfunction(cell.cell_contents) and (found := cell_of(cell.cell_contents, inner)):
            return found
    return None


@pytest.mark.parametrize("function", OLD, ids=lambda function: function.__name__)
def test_the_old_order_is_passed_on_in_the_new_one_with_a_warning(function, monkeypatch):
    """What the function itself gets, seen by a stand-in with its signature."""
    old, expected = OLD[function]
    seen = []
    decorated = function.__wrapped__

    def stand_in(*args, **kwargs):
        seen.append(inspect.signature(decorated).bind(*args, **kwargs).arguments)

    monkeypatch.setattr(cell_of(function, decorated), "cell_contents", stand_in)
    stand_in.__name__, stand_in.__signature__ = function.__name__, inspect.signature(decorated)
    with pytest.warns(DeprecationWarning, match=rf"new order, {function.__name__}\(model, variables, batch"):
        function("the model", "variables", *old)
    function("the model", "variables", **expected)  # no warning, which would be an error
    for arguments in seen:
        assert arguments == {"model": "the model", "variables": "variables", **expected}


def test_names_of_the_old_order_and_a_batch_left_out():
    variables = WIDE.init(jax.random.key(0))
    with pytest.warns(DeprecationWarning, match="certify_cloned"):
        old = certify_cloned(WIDE, variables, partition=PARTITION)
    assert old.verdict is certify_cloned(WIDE, variables, None, PARTITION).verdict
    with pytest.warns(DeprecationWarning, match="of_parameters"):
        loss = of_parameters(mean_squared_error, BASE, BASE.init(jax.random.key(0)), BATCH)
    assert callable(loss)


def test_what_fits_neither_order_is_refused():
    @takes_old_order("model variables loss batch", third_is(callable))
    def function(model, variables, batch, *, loss=None):
        return loss

    with pytest.raises(TypeError, match=r"fit function\(model, variables, batch, \*, loss=\.\.\.\), nor the old order"):
        function(1, 2, print, 4, 5)  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="fit"):
        function(1, 2, print, 4, loss=print)  # pyright: ignore[reportCallIssue]
    assert function(1, 2, 3, loss=print) is print
