"""Every option of the MLP on the CNN, the ResNet and the ViT: structure, cloning, initialisation.

Networks run operation by operation: they have few shapes, and share what is compiled for them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles.architectures import ARCHITECTURES, batch_of, build, draw, every

from lopjax.cloning import clone_variables, widen
from lopjax.models import ACTIVATIONS
from lopjax.models.initialisation import INITIALISATIONS
from lopjax.wiring import In

# Fewer units than elsewhere: every pair of options is another program.
NARROW = {"cnn": {"channels": (2,), "dense": 2}, "vit": {"width": 2}, "gpt": {"width": 2}}
NORMS = [("none", True), ("batch", True), ("batch", False), ("layer", True), ("layer", False)]
# Every activation, every norm with and without affine, in nine of forty-five pairs.
DIAGONAL = [(activation, NORMS[index % len(NORMS)]) for index, activation in enumerate(ACTIVATIONS)]
# The same for another nine, once more under every norm.
SHIFTED = [(activation, NORMS[(index + 2) % len(NORMS)]) for index, activation in enumerate(ACTIVATIONS)]


def narrow(architecture, **options):
    return build(architecture, **NARROW.get(architecture, {}), **options)


def shapes_of(model):
    return jax.eval_shape(model.init, jax.random.key(0))


@pytest.mark.parametrize("architecture", every(slow=("resnet",), leave_out=("mlp",)))
def test_options_decide_which_arrays_there_are(architecture):
    for activation, (norm, affine) in DIAGONAL:
        model = narrow(architecture, activation=activation, norm=norm, affine=affine)
        shapes = shapes_of(model)
        names = {path[-1].key for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
        assert ({"scale", "offset"} <= names) == (norm != "none" and affine)
        assert ("batch_stats" in shapes) == (norm == "batch")
        assert activation in {site.activation for _, site in model.wiring.sites}
        # A wide network differs from the base in the axes of its unit spaces, and in no other.
        wide = shapes_of(widen(model, 3))
        for path, label in model.wiring.labels:
            before, after = (tree_at(tree, path).shape for tree in (shapes, wide))
            cloned = [axis.index for axis in label.unit_axes(model.wiring.cloned_by_default)]
            assert after == tuple(3 * size if index in cloned else size for index, size in enumerate(before))


def tree_at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def check_clones(architecture, activation, norm, affine, factor):
    """Same logits in eval and train mode; with one array not divided by the number of clones, others."""
    model = narrow(architecture, activation=activation, norm=norm, affine=affine)
    variables, (inputs, _) = draw(model), batch_of(architecture, 4)
    wide, cloned = widen(model, factor), clone_variables(variables, model.wiring, factor)
    for train in (False, True):
        expected = model.apply(variables, inputs, train=train).logits
        np.testing.assert_allclose(wide.apply(cloned, inputs, train=train).logits, expected, rtol=0, atol=1e-12)
    head = cloned["params"]["classes"]
    undivided = {**cloned, "params": {**cloned["params"], "classes": {**head, "kernel": head["kernel"] * factor}}}
    assert float(jnp.abs(wide.apply(undivided, inputs, train=True).logits - expected).max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(("pairs", "factor"), [(DIAGONAL, 2), (SHIFTED, 3)], ids=["2", "3"])
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mlp"])
def test_clones_compute_the_same_under_every_activation_and_norm(x64, architecture, pairs, factor):
    for activation, (norm, affine) in pairs:
        check_clones(architecture, activation, norm, affine, factor)


SPREAD = {
    "pytorch": lambda fan_in, fan_out: (3 * fan_in) ** -0.5,
    "lecun": lambda fan_in, fan_out: fan_in**-0.5,
    "he": lambda fan_in, fan_out: (2 / fan_in) ** 0.5,
    "he_fan_out": lambda fan_in, fan_out: (2 / fan_out) ** 0.5,
    "truncated_normal": lambda fan_in, fan_out: 0.02,
}


def test_every_initialisation_is_tested_here():
    assert set(SPREAD) == set(INITIALISATIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "name"), [*(("vit", name) for name in SPREAD), ("cnn", "he_fan_out"), ("resnet", "he_fan_out")]
)
def test_kernels_have_the_spread_of_their_initialisation(architecture, name):
    """Root mean square of every kernel over what its fans say; the fans count kernel positions and head widths."""
    model = build(architecture, **ARCHITECTURES[architecture].wide, init=name)
    variables = jax.jit(model.init)(jax.random.key(1))
    num_kernels = 0
    for path, label in model.wiring.labels:
        if path[-1] != "kernel":
            continue
        values = np.asarray(tree_at(variables, path))
        fan_in, fan_out = fans(path, label, values.shape)
        spread = np.sqrt(np.mean(np.square(values))) / SPREAD[name](fan_in, fan_out)
        assert abs(spread - 1) < 5 / np.sqrt(2 * values.size), path
        num_kernels += 1
    assert num_kernels >= 4


def fans(path, label, shape):
    """Entries summed over, and entries written to, of one kernel."""
    reads = max(index for index, axis in enumerate(label.axes) if isinstance(axis, In))
    fan_in, fan_out = int(np.prod(shape[: reads + 1])), int(np.prod(shape[reads + 1 :]))
    is_convolution = any("conv" in key for key in path)
    return fan_in, fan_out * int(np.prod(shape[:reads])) if is_convolution else fan_out
