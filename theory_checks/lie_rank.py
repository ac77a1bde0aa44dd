"""Everything that traps gradient flow.

The directions in which training can move by switching data sets are the brackets of the gradient fields of single
samples. Their rank bounds, from one computation, how much structure of any shape could trap training on *every* data
set: conserved quantities, clones, dead units, laws of the loss. The number is an upper bound on the codimension, as
only finitely many brackets are computed. Where it agrees with what is known to be there by other means, it is exact.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from lopjax.cloning import clone_variables, widen
from lopjax.losses import mean_cross_entropy, mean_squared_error
from lopjax.manifolds import (
    FunctionalCodimension,
    cloned_manifold,
    codimension,
    functional_codimension,
    homogeneous_conserved,
)
from lopjax.model import Model, Variables
from lopjax.models import cnn, mlp, resnet18, vit
from theory_checks.check import Check, Row, Size

INPUTS, UNITS, OUTPUTS, SAMPLES = 3, 4, 2, 48


def _network(activation: str, units: int = UNITS) -> tuple[Model, Variables]:
    """A network of one hidden layer with every parameter drawn from a standard normal distribution."""
    model = mlp((INPUTS,), (units,), OUTPUTS, activation=activation)
    theta, unravel = ravel_pytree(model.init(jax.random.key(0))["params"])
    return model, {"params": unravel(jax.random.normal(jax.random.key(1), theta.shape))}


def _found(model: Model, variables: Variables, loss=mean_squared_error, depth: int = 3) -> float:
    inputs = jax.random.normal(jax.random.key(2), (SAMPLES, INPUTS))
    is_mse = loss is mean_squared_error
    labels = jnp.zeros((SAMPLES, OUTPUTS)) if is_mse else jnp.zeros(SAMPLES, int)
    return functional_codimension(model, variables, (inputs, labels), loss=loss, depth=depth).codimension


def _num_independent(laws, params) -> int:
    theta, unravel = ravel_pytree(params)
    return int(np.linalg.matrix_rank(np.asarray(jax.jacobian(lambda theta: laws(unravel(theta)))(theta))))


def _gram_laws(params):
    """W'W + bb' - AA', which a linear network conserves."""
    first, head = params["hidden_0"], params["classes"]["kernel"]
    incoming = jnp.concatenate([first["kernel"], first["bias"][None]])
    return (incoming.T @ incoming - head @ head.T)[jnp.triu_indices(len(head))]


def check_conserved(size: Size) -> list[Row]:
    """Count what the brackets do not reach, and the independent laws that are known."""
    rows, unreached = [], 0.0
    for activation in ("leaky_relu", "identity") if size == "small" else ("relu", "leaky_relu", "identity"):
        model, variables = _network(activation)
        laws = _gram_laws if activation == "identity" else homogeneous_conserved(model.wiring)
        num_laws, unreached = _num_independent(laws, variables["params"]), _found(model, variables)
        rows.append(
            Row(
                f"{activation}: codimension {unreached} minus the {num_laws} laws known",
                abs(unreached - num_laws),
                0,
            )
        )
    # The last network is the linear one, whose laws are more than those of its units.
    rows.append(Row("identity: codimension minus its 4 units' own laws", abs(unreached - UNITS), 0, control=True))
    return rows if size == "small" else [*rows, *_beside_laws()]


def _beside_laws() -> list[Row]:
    """ReLU units that are trapped for a second reason: a dead one, and clones, which share one law on their leaf."""
    model, variables = _network("relu")
    dead, expected = _found(model, _with_dead_unit(variables)), UNITS - 1 + INPUTS + 1 + OUTPUTS
    base, narrow = _network("relu", UNITS // 2)
    wide, copies = widen(base, 2), clone_variables(narrow, base.wiring, 2)
    leaf = codimension(cloned_manifold(copies["params"], wide.wiring, {"hidden_0": (0, 0, 1, 1)}))
    cloned = _found(wide, copies)
    return [
        Row(f"relu, one unit dead: codimension {dead} minus 3 laws and its 6 parameters", abs(dead - expected), 0),
        Row(f"relu, clones: codimension {cloned} minus the leaf's {leaf} and 2 laws", abs(cloned - leaf - 2), 0),
    ]


def _with_dead_unit(variables: Variables) -> Variables:
    """Parameters whose first unit is below its kink on every input that is drawn."""
    first = variables["params"]["hidden_0"]
    dead = {"kernel": first["kernel"].at[:, 0].set(0.1), "bias": first["bias"].at[0].set(-50.0)}
    return {"params": {**variables["params"], "hidden_0": dead}}


def check_generic(size: Size) -> list[Row]:
    """Codimension of smooth networks at a random point, and of their clones."""
    model, variables = _network("tanh")
    rows = [Row("tanh: codimension", _found(model, variables, depth=2), 0)]
    if size == "full":
        rows.append(Row("gelu: codimension", _found(*_network("gelu")), 0))
        deep = mlp((3,), (3, 3), OUTPUTS, activation="tanh")
        theta, unravel = ravel_pytree(deep.init(jax.random.key(0))["params"])
        rows.append(
            Row(
                "3-3-3-2 tanh: codimension", _found(deep, {"params": unravel(jnp.sin(jnp.arange(theta.size) + 1.0))}), 0
            )
        )
    base, narrow = _network("tanh", UNITS // 2)
    wide, cloned = widen(base, 2), clone_variables(narrow, base.wiring, 2)
    leaf = codimension(cloned_manifold(cloned["params"], wide.wiring, {"hidden_0": (0, 0, 1, 1)}))
    unreached = _found(wide, cloned)
    return [
        *rows,
        Row(f"clones of tanh units: codimension {unreached} minus the leaf's {leaf}", abs(unreached - leaf), 0),
        Row("clones of tanh units: codimension", unreached, 0, control=True),
    ]


def check_loss(size: Size) -> list[Row]:
    """Codimension under cross-entropy, against the sums that it cannot change."""
    del size
    model, variables = _network("tanh")
    # One sum of the head's kernel per hidden unit, and one of its bias.
    num_sums, unreached = UNITS + 1, _found(model, variables, mean_cross_entropy, depth=2)
    return [
        Row(f"tanh, cross-entropy: codimension {unreached} minus the {num_sums} sums", abs(unreached - num_sums), 0),
        Row("tanh, cross-entropy: codimension", unreached, 0, control=True),
    ]


class Family(NamedTuple):
    """A network at a random point.

    Attributes:
        build: the network.
        laws: what is known to be conserved, and how many numbers that is; None if nobody has counted.
        depth: length of the longest brackets.
        image: whether inputs are images of 4 x 4 pixels, and not vectors.
        is_small: whether it takes part in the small size.
    """

    build: Callable[[], Model]
    laws: tuple[str, int] | None
    depth: int = 2
    image: bool = True
    is_small: bool = False


NOTHING = ("nothing known", 0)
_MLP = partial(mlp, (INPUTS,), (UNITS,), OUTPUTS)
_CNN = partial(cnn, (4, 4, 1), OUTPUTS, channels=(2,), dense=2)
_RESNET = partial(resnet18, (4, 4, 1), OUTPUTS, width=2, blocks=(1,))
_VIT = partial(vit, (4, 4, 1), OUTPUTS, patch=2, width=2, depth=1, heads=1, mlp_ratio=1.0, activation="tanh")
FAMILIES: dict[str, Family] = {
    "mlp, silu": Family(partial(_MLP, activation="silu"), NOTHING, image=False),
    "mlp, sigmoid": Family(partial(_MLP, activation="sigmoid"), NOTHING, image=False),
    "mlp, tanh, layer norm": Family(
        partial(_MLP, activation="tanh", norm="layer"), ("sums before the norm", INPUTS + 1), image=False, is_small=True
    ),
    "cnn, tanh": Family(partial(_CNN, activation="tanh"), NOTHING),
    "cnn, gelu": Family(partial(_CNN, activation="gelu"), NOTHING),
    "cnn, relu": Family(partial(_CNN, activation="relu"), ("a law a unit", 4), is_small=True),
    "resnet, tanh": Family(partial(_RESNET, activation="tanh", norm="none"), NOTHING),
    "resnet, tanh, layer norm": Family(partial(_RESNET, activation="tanh", norm="layer"), NOTHING),
    "vit, tanh": Family(partial(_VIT, norm="none"), None, depth=3),
}


def check_architectures(size: Size) -> list[Row]:
    """Codimension at a random point of small networks of every kind, against the number of laws that are known."""
    rows = []
    for name, family in FAMILIES.items():
        if size == "full" or family.is_small:
            found = _at_random(family)
            text = f"{name}, {found.num_parameters} parameters: codimension"
            if family.laws is None:
                rows.append(Row(f"{text}, an upper bound", found.codimension))
            else:
                law, number = family.laws
                rows.append(
                    Row(f"{text} {found.codimension} minus {law}: {number}", abs(found.codimension - number), 0)
                )
    # Without the norm the sums move.
    bare = _at_random(FAMILIES["mlp, tanh, layer norm"]._replace(build=partial(_MLP, activation="tanh")))
    gap = abs(bare.codimension - INPUTS - 1)
    return [*rows, Row(f"mlp, tanh, no norm: codimension minus {INPUTS + 1} sums", gap, 0, control=True)]


def _at_random(family: Family) -> FunctionalCodimension:
    model = family.build()
    theta, unravel = ravel_pytree(model.init(jax.random.key(0))["params"])
    variables = {"params": unravel(jax.random.normal(jax.random.key(1), theta.shape))}
    shape = (4, 4, 1) if family.image else (INPUTS,)
    batch = jax.random.normal(jax.random.key(2), (SAMPLES, *shape)), jnp.zeros((SAMPLES, OUTPUTS))
    return functional_codimension(model, variables, batch, loss=mean_squared_error, depth=family.depth)


CHECKS: tuple[Check, ...] = (
    Check(
        "lie_rank.conserved",
        "Around a random point a 3-4-2 network of positive-homogeneous units has its conserved quantities and nothing"
        " else that traps gradient flow on every data set; a linear one has the symmetric matrix W'W + bb' - AA'.",
        "Sussmann 1973; laws: arXiv 1806.00900, 2307.00144; the count of all structure: this library",
        check_conserved,
        "For a small network a single rank says whether there may be a hidden trap. ReLU is not analytic: there the"
        " rank concerns only the linear pieces at this point.",
    ),
    Check(
        "lie_rank.generic",
        "At a random point a network of tanh units has no functional manifold of any shape that traps it; its clones"
        " are trapped in their leaf, and in nothing smaller.",
        "this library; the question whether non-linear manifolds exist: arXiv 2510.00304",
        check_generic,
        "Around such a point some sequence of data moves a network of tanh units in every direction: there, lost"
        " plasticity is slow training and not a trap.",
        "This page used to say that smooth units without copies can be driven anywhere. Linear units, which are"
        " smooth, have laws of their own (conserved), and the rank at a point says nothing about distant points.",
    ),
    Check(
        "lie_rank.architectures",
        "At a random point a small convolutional or residual network of smooth units has no functional manifold that"
        " traps it either; of ReLU, and before layer norm, the known laws are all there is.",
        "this library",
        check_architectures,
        "What may trap a network on every data set can be counted for its kind, on a small one. Attention has more"
        " laws than any other kind; the number is an upper bound.",
    ),
    Check(
        "lie_rank.loss",
        "Under cross-entropy more directions are blocked, one for each hidden unit and one for the bias: the sums over"
        " classes of the head's weights and of its bias.",
        "softmax shift; this library",
        check_loss,
        "The loss takes part in what is trapped: the sum of the logits never learns from cross-entropy.",
    ),
)
"""From laws to smooth networks to the loss."""
