"""What users give as a network, at the functions that a new user calls first: refused with what to pass instead."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import lopjax as lop

BATCH = jnp.eye(4), jnp.arange(4) % 2
CALLS = {
    "diagnose": lambda model, variables: lop.diagnose(model, variables, BATCH),
    "symptoms": lambda model, variables: lop.symptoms(model, variables, BATCH),
    "unit_nearness": lambda model, variables: lop.unit_nearness(model, variables, BATCH),
    "clone_distances": lambda model, variables: lop.clone_distances(model, variables, BATCH),
    "find_clones": lambda model, variables: lop.find_clones(model, variables, BATCH),
    "unit_blocks": lambda model, variables: lop.unit_blocks(model, variables, BATCH, factor=2),
    "certify_cloned": lambda model, variables: lop.certify_cloned(model, variables, BATCH, {"hidden_0": (0, 0, 1)}),
    "certify_weighted": lambda model, variables: lop.certify_weighted(model, variables, BATCH, {"hidden_0": (0, 0, 1)}),
    "certify_frozen": lambda model, variables: lop.certify_frozen(model, variables, BATCH, {"hidden_0": [0]}),
    "cross_entropy": lambda model, variables: lop.losses.cross_entropy(model, variables, BATCH),
}
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def network():
    model = lop.mlp((4,), (3,), 2)
    return model, model.init(jax.random.key(0))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_network_of_another_kind_is_named(call, network):
    module = nn.Dense(2)
    variables = module.init(jax.random.key(0), BATCH[0])
    traced = lop.trace_model(module.apply, variables, BATCH[0], check=False)
    for given, kind in ((module, "Dense"), (module.apply, "method"), (lambda x: x, "function"), (None, "NoneType")):
        with pytest.raises(ValueError, match=rf"model is a {kind}: .*lopjax\.trace_model"):
            call(given, variables)
    with pytest.raises(ValueError, match=r"model is a Traced: .*t\.model"):
        call(traced, variables)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_parameters_alone_are_no_variables(call, network):
    model, variables = network
    with pytest.raises(ValueError, match=r"the variables have the keys \['classes', 'hidden_0'\].*\"params\""):
        call(model, variables["params"])
    with pytest.raises(ValueError, match="the variables are a list"):
        call(model, [variables])


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loss_takes_what_there_is_besides_the_parameters(norm):
    model = lop.mlp((4,), (3,), 2, norm=norm)
    variables = model.init(jax.random.key(0))
    rest = {name: arrays for name, arrays in variables.items() if name != "params"}
    assert set(rest) == ({"batch_stats"} if norm == "batch" else set())
    whole, part = (lop.losses.cross_entropy(model, given, BATCH)(variables["params"]) for given in (variables, rest))
    assert part == whole


def test_the_model_in_a_trace_is_taken(network):
    model, variables = network
    traced = lop.trace_model(lambda params, x: model.apply({"params": params}, x).logits, variables["params"], BATCH[0])
    distances = lop.clone_distances(traced.model, traced.split(variables["params"]), BATCH)
    assert [len(each.activations.distance) for each in distances.values()] == [3]


def test_a_model_of_another_kind_cannot_be_widened():
    module: Any = nn.Dense(2)
    with pytest.raises(ValueError, match="model is a Dense: must be a lopjax Model"):
        lop.widen(module, 2)


def test_a_model_is_no_wiring(network):
    model, variables = network
    for call in (
        lambda given: lop.clone_variables(variables, given, 2),
        lambda given: lop.widen(model._replace(wiring=given), 2),
    ):
        with pytest.raises(ValueError, match=r"wiring is a Model: must be .*model\.wiring"):
            call(model)
        call(model.wiring)


def test_what_is_no_function_is_not_traced(network):
    model, variables = network
    given: Any
    for given, kind in ((nn.Dense(2), "Dense"), (model, "Model"), (3, "int")):
        with pytest.raises(ValueError, match=f"apply is a {kind}: must be a function of parameters and inputs"):
            lop.trace_model(given, variables, BATCH[0])


def test_a_learning_rate_is_a_number(network):
    model, variables = network
    wrong: Any
    for wrong in ("0.1", -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"learning_rate=.*: must be positive and finite"):
            lop.diagnose(model, variables, BATCH, learning_rate=wrong)
