"""Whatever a GPU does to products by default, a verdict is computed with all digits."""

from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from lopjax import certificates, cloning, curvature, stability
from lopjax.arguments.precision import all_digits
from lopjax.manifolds import Manifold
from lopjax.models import mlp


class ReachedError(Exception):
    """Raised by what is to be computed, with the precision that products have there."""


def stop(*args, **kwargs):
    raise ReachedError(jax.config.jax_default_matmul_precision)


BASE = mlp((3,), (4,), 2)
# Nothing is compiled: the network itself ends the call.
MODEL = BASE._replace(apply=stop)
BATCH = jnp.ones((2, 3)), jnp.zeros(2, int)
POINT = jnp.ones(3)
PARTITION = {"hidden_0": (0, 0, 1, 1)}
LINE = Manifold(jnp.ones(3), lambda vector: vector * jnp.array([1.0, 0.0, 0.0]), is_affine=True)


def variables():
    return BASE.init(jax.random.key(0))


CALLS = {
    "certify_cloned": lambda: certificates.certify_cloned(MODEL, variables(), BATCH, PARTITION),
    "certify_frozen": lambda: certificates.certify_frozen(MODEL, variables(), BATCH, {"hidden_0": (0,)}),
    "find_clones": lambda: cloning.find_clones(MODEL, variables(), BATCH[0]),
    "unit_blocks": lambda: stability.unit_blocks(MODEL, variables(), BATCH, 2),
    "classify": lambda: stability.classify(stop, POINT, LINE),
    "dense_hessian": lambda: curvature.dense_hessian(stop, POINT),
}


@pytest.mark.parametrize("name", CALLS)
def test_verdicts_are_computed_with_all_digits(name):
    # Elsewhere than on a CPU.
    with mock.patch("jax.default_backend", return_value="gpu"), pytest.raises(ReachedError, match="highest"):
        CALLS[name]()


def test_training_and_a_cpu_are_left_alone():
    @all_digits()
    def inside():
        return jax.config.jax_default_matmul_precision

    assert inside() is None
    with mock.patch("jax.default_backend", return_value="gpu"):
        assert inside() == "highest"
        with pytest.raises(ReachedError, match="None"):
            MODEL.apply(variables(), BATCH[0])
    assert jax.config.jax_default_matmul_precision is None


def test_it_reaches_the_compiled_program():
    """Both factors of a product, as the compiler of a GPU is given it; the control is the same function without it."""

    def product(x):
        return x @ x

    def lowered(function):
        traced = jax.jit(function).trace(jnp.ones((2, 2), jnp.float32))
        return traced.lower(lowering_platforms=("cuda",)).as_text()

    with mock.patch("jax.default_backend", return_value="gpu"):
        assert "precision = [HIGHEST, HIGHEST]" in lowered(all_digits()(product))
    assert "HIGHEST" not in lowered(lambda x: x @ x)
