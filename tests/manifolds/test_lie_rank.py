"""Ranks of brackets of gradient fields against free Lie algebras, conserved quantities, leaves and dense Hessians."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from oracles.architectures import normal_variables

from lopjax.cloning import clone_variables, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.manifolds import cloned_manifold, codimension, functional_codimension
from lopjax.models import mlp

CLASSES = jnp.zeros(48, int)
TARGETS = jnp.zeros((48, 2))


def draw(model):
    return normal_variables(model, 1.0)


def inputs(model, samples=48):
    return jax.random.normal(jax.random.key(9), (samples, model.wiring.size("input")))


def squared(model, variables, samples=48, **options):
    batch = inputs(model, samples), jnp.zeros((samples, model.wiring.size("classes")))
    return functional_codimension(model, variables, batch, loss=mean_squared_error, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("samples", "dimensions"), [(2, (2, 3, 5)), (3, (3, 6, 9))])
def test_few_inputs_generate_a_free_lie_algebra(x64, samples, dimensions):
    """Two generic fields span 2, 3, 5 dimensions with brackets of length 1, 2, 3, and three 3, 6, 14 (Witt), of 9."""
    model = mlp((2,), (2,), 1, activation="tanh")
    found = squared(model, draw(model), samples)
    assert found.ranks == dimensions
    assert found.codimension == 9 - dimensions[-1]
    assert not found.is_saturated_in_samples or found.codimension == 0


def dense_rank(model, variables, points):
    """Rank of all fields and first brackets at points, `[X, Y] = H_Y X - H_X Y` by dense Hessians."""
    theta, unravel = ravel_pytree(variables["params"])

    def outputs(theta):
        return model.apply({"params": unravel(theta)}, points).logits.ravel()

    fields, hessians = np.asarray(jax.jacobian(outputs)(theta)), np.asarray(jax.hessian(outputs)(theta))
    brackets = [hessians[j] @ fields[i] - hessians[i] @ fields[j] for i in range(len(fields)) for j in range(i)]
    return np.linalg.matrix_rank(np.stack([*fields, *brackets]), tol=1e-9)


def gram_laws(params):
    """What a linear network conserves: W'W + bb' of the incoming parameters minus AA' of the outgoing ones."""
    hidden, head = params["hidden_0"], params["classes"]["kernel"]
    products = jnp.einsum("ij,ik->jk", hidden["kernel"], hidden["kernel"]) + jnp.outer(hidden["bias"], hidden["bias"])
    return (products - head @ head.T)[jnp.triu_indices(len(head))]


def unit_laws(params):
    """What a ReLU network conserves: the diagonal of those."""
    hidden, head = params["hidden_0"], params["classes"]["kernel"]
    return jnp.sum(hidden["kernel"] ** 2, axis=0) + hidden["bias"] ** 2 - jnp.sum(head**2, axis=1)


def num_independent(laws, params):
    theta, unravel = ravel_pytree(params)
    return np.linalg.matrix_rank(np.asarray(jax.jacobian(lambda theta: laws(unravel(theta)))(theta)))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "laws"), [("identity", gram_laws), ("leaky_relu", unit_laws)])
def test_conserved_quantities_are_all_there_is(x64, activation, laws):
    model = mlp((3,), (4,), 2, activation=activation)
    variables = draw(model)
    found = squared(model, variables)
    assert (
        found.codimension == num_independent(laws, variables["params"]) == {"identity": 10, "leaky_relu": 4}[activation]
    )
    assert found.gap > 1e6
    # Depth 3 is the first at which the identity's bound is attained: nothing shows that it is the last.
    assert found.is_saturated_in_depth == (activation == "leaky_relu")


@pytest.mark.slow
def test_relu_has_the_laws_of_its_units_and_a_dead_unit_its_parameters(x64):
    model = mlp((3,), (4,), 2)
    variables = draw(model)
    found = squared(model, variables)
    assert found.codimension == num_independent(unit_laws, variables["params"]) == 4
    assert any("relu: not analytic" in note for note in found.notes)
    bias = variables["params"]["hidden_0"]["bias"].at[0].set(-30.0)
    variables["params"]["hidden_0"]["bias"] = bias
    assert squared(model, variables).codimension == 3 + 6  # 3 inputs, bias, 2 outputs


@pytest.mark.slow
def test_a_tanh_network_has_no_structure_until_the_loss_or_clones_bring_it(x64):
    model = mlp((3,), (4,), 2, activation="tanh")
    free = squared(model, draw(model))
    assert (free.codimension, free.is_saturated_in_depth, free.is_saturated_in_samples) == (0, True, True)
    assert not any("analytic" in note for note in free.notes)
    base = mlp((3,), (2,), 2, activation="tanh")
    variables = draw(base)
    wide, cloned = widen(base, 2), clone_variables(variables, base.wiring, 2)
    leaf = cloned_manifold(cloned["params"], wide.wiring, {"hidden_0": (0, 0, 1, 1)})
    assert squared(wide, cloned).codimension == codimension(leaf) == 12
    # The fields at one point of a generic network, and first brackets, by another road.
    assert squared(base, variables, 3, depth=2).rank == dense_rank(base, variables, inputs(base, 3))


def one_hot_cross_entropy(logits, targets):
    """Cross-entropy against any distribution; nothing in its name or labels says that it is one."""
    return -jnp.mean(jnp.sum(jax.nn.softmax(targets) * jax.nn.log_softmax(logits), axis=-1))


@pytest.mark.parametrize(("loss", "labels"), [(mean_cross_entropy, CLASSES), (one_hot_cross_entropy, TARGETS)])
def test_cross_entropy_cannot_move_the_sum_of_the_outputs(x64, loss, labels):
    """Four column sums of the head's kernel and one of its bias: 5 affine laws, whatever the loss is called."""
    model = mlp((3,), (4,), 2, activation="tanh")
    found = functional_codimension(model, draw(model), (inputs(model), labels), loss=loss)
    assert (found.codimension, found.rank) == (5, 21)
    assert found.notes[0] == "output vectors: 1 of 2 dimensions, as the loss produces them"


@pytest.mark.slow
def test_a_loss_whose_gradients_turn_with_the_outputs_is_taken_as_it_is(x64):
    """|f|² only, with f = p x + q in the plane: gradients of |p|², p.q, |q|² span 3 dimensions, those of p and q 4."""

    def of_length(outputs, targets):
        return jnp.mean((jnp.sum(outputs**2, axis=-1) - targets[:, 0]) ** 2)

    model = mlp((1,), (1,), 2, activation="identity")
    variables, batch = draw(model), (inputs(mlp((1,), (1,), 2)), TARGETS)
    found = functional_codimension(model, variables, batch, loss=of_length, depth=1)
    assert any("span different spaces" in note for note in found.notes)
    assert found.ranks == (3,)
    assert squared(model, variables, depth=1).ranks == (4,)


@pytest.mark.slow
def test_what_bounds_the_bound_is_reported(x64):
    model = mlp((3,), (4,), 2, activation="tanh")
    short = squared(model, draw(model), samples=4, depth=1)
    assert (short.ranks, short.is_saturated_in_depth, short.is_saturated_in_samples) == ((8,), False, False)
    x = inputs(model).at[:, 2].set(0.5)
    found = functional_codimension(model, draw(model), (x, TARGETS), loss=mean_squared_error, depth=1)
    assert any("1 input entries do not vary" in note for note in found.notes)


def test_bad_arguments(unchecked):
    model = mlp((3,), (4,), 2)
    variables, batch = draw(model), (inputs(model), CLASSES)
    call = partial(functional_codimension, model)
    with pytest.raises(RuntimeError, match="float64"):
        call(variables, batch)
    with jax.enable_x64(True):
        nan = jax.tree.map(lambda leaf: leaf * jnp.nan, variables)
        for given, message in (
            ((variables, batch, {"depth": 0}), "depth=0: must be at least 1"),
            ((nan, batch, {}), "look at the parameters and the labels"),
            ((variables, (batch[0][:0], batch[1][:0]), {}), "at least one"),
            ((variables, (batch[0] * jnp.inf, batch[1]), {}), "values that are not finite"),
            ((variables, batch, {"loss": lambda outputs, labels: 0.0 * jnp.sum(outputs)}), "nothing is trained"),
        ):
            with pytest.raises(ValueError, match=message):
                call(*given[:2], **given[2])
        big = mlp((30,), (60,), 2)
        with pytest.raises(ValueError, match="use a smaller network"):
            functional_codimension(big, big.init(jax.random.key(0)), (jnp.ones((4, 30)), CLASSES[:4]))
        with pytest.raises(ValueError, match="rounds to 16 bits inside, and parameters are float64"):
            functional_codimension(mlp((3,), (4,), 2, compute_dtype="bfloat16"), variables, batch)
        assert "parameters were converted to float64" in call(variables, batch, depth=1).notes
