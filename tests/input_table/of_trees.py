"""Rows of functions of parameter trees: curvature, manifolds, clones, wirings, optimizers, interventions, tasks."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_table import TYPES, Row, Subject
from input_table.of_networks import weights
from lopjax import cloning, curvature, detection, manifolds, stability, wiring

KEY = jax.random.key(0)
EXCUSED = dict.fromkeys(("no samples", "one sample", "labels"), "there is no batch")
ANY_SIZE = dict.fromkeys(("wrong width", "wrong rank"), "a tree of any arrays")

# --- One tree of one array --------------------------------------------------------------------------------------------

TREE = Subject(
    {"v": np.array([-1.0, 2])},
    integers=(),
    scaled=("v",),
    units={"v": 0},
    carriers=("v",),
    numbers=("v",),
    excused=EXCUSED | ANY_SIZE | {"int32": "parameters are floating point: integers are refused by the same check"},
)
DIAGONAL = np.array([1.0, 3.0])


def square(params):
    w = params["w"]
    return 0.5 * jnp.sum(jnp.asarray(DIAGONAL[: w.size], w.dtype) * w**2)


def product(vector):
    w = vector["w"]
    return {"w": jnp.asarray(DIAGONAL[: w.size], w.dtype) * w}


def line(v):
    """The manifold w_0 = w_1."""
    return manifolds.Manifold({"w": v}, lambda u: {"w": jnp.full_like(u["w"], jnp.mean(u["w"]))}, is_affine=True)


QUADRATIC = dict.fromkeys(("nan", "inf"), "of a quadratic: the same everywhere")
ROWS = {
    "curvature.hvp": Row(lambda v: curvature.hvp(square, {"w": v}, {"w": v}), TREE),
    "curvature.hvp_over_batches": Row(
        lambda v: curvature.hvp_over_batches(
            lambda p, x: square(p) * x.mean(), {"w": v}, {"w": v}, jnp.ones((2, 1)), 1
        ),
        TREE,
        half=1e-2,
    ),
    "curvature.ggn_vp": Row(
        lambda v: curvature.ggn_vp(lambda p: p["w"], lambda y: jnp.sum(y**2), {"w": v}, {"w": v}), TREE
    ),
    "curvature.dense_hessian": Row(lambda v: curvature.dense_hessian(square, {"w": v}), TREE, allowed=QUADRATIC),
    "curvature.constraint_jacobian": Row(
        lambda v: curvature.constraint_jacobian(lambda p: p["w"] ** 2, {"w": v}), TREE
    ),
    "curvature.per_sample_gradients": Row(
        lambda v: curvature.per_sample_gradients(lambda p, x: square(p) * x, {"w": v}, jnp.ones(2)), TREE, half=1e-2
    ),
    "curvature.mean_over_batches": Row(lambda v: curvature.mean_over_batches(jnp.mean, v, 1), TREE, half=1e-2),
    "curvature.restrict": Row(
        lambda v: curvature.restrict(product, lambda u: u)({"w": v}),
        TREE,
        excused={"strings": "of two functions: the arrays are in the user's own"},
    ),
    "curvature.extreme_eigenvalues": Row(
        lambda v: curvature.extreme_eigenvalues(product, {"w": v}, np.size(v), KEY).eigenvalues,
        TREE,
        allowed=QUADRATIC,
        half=2e-2,
    ),
    "curvature.spectral_density": Row(
        lambda v: jnp.sum(curvature.spectral_density(product, {"w": v}, max(np.size(v), 1), 1, KEY).nodes),
        TREE,
        allowed=QUADRATIC | {"one unit": "one node"},
        half=2e-2,
        rtol=1e-3,
    ),
    "curvature.smooth_density": Row(
        lambda v: curvature.smooth_density(curvature.spectral_density(product, {"w": jnp.ones(2)}, 2, 1, KEY), v, 0.5),
        TREE,
        rtol=1e-4,
        half=2e-2,
    ),
    "curvature.block_eigenvalues": Row(
        lambda v: (
            curvature.block_eigenvalues(
                lambda u: u * jnp.asarray(v), 1, np.size(v), np.size(v), KEY, dtype=v.dtype
            ).eigenvalues
        ),
        TREE,
        rtol=1e-4,
        half=2e-2,
        excused={"strings": "of a function: the array is in the user's own"},
    ),
    "curvature.check_loss": Row(lambda v: curvature.check_loss(square, {"w": v}) or 0, TREE),
    "curvature.check_same_tree": Row(
        lambda v: curvature.check_same_tree({"w": v}, {"w": v}, "other") or 0,
        TREE,
        allowed=dict.fromkeys(("nan", "inf", "strings"), "of shapes and types"),
    ),
    "manifolds.tangent_part": Row(lambda v: manifolds.tangent_part(line(v), {"w": v}), TREE),
    "manifolds.normal_part": Row(lambda v: manifolds.normal_part(line(v), {"w": v}), TREE),
    "manifolds.distance": Row(lambda v: manifolds.distance(line(np.zeros_like(v)), {"w": v}), TREE, half=2e-2),
    "manifolds.tangency_residual": Row(lambda v: manifolds.tangency_residual(line(v), {"w": v}), TREE, half=2e-2),
    "manifolds.conserved_drift": Row(
        lambda v: manifolds.conserved_drift(lambda p: p["w"][:1] ** 2, {"w": v}, 0.5), TREE
    ),
    "manifolds.random_normal_vector": Row(
        lambda v: manifolds.tree_norm(manifolds.random_normal_vector(KEY, line(v))),
        TREE,
        half=2e-2,
        allowed={"nan": "a direction, wherever the point is", "inf": "likewise", "one unit": "no direction is normal"},
    ),
    "manifolds.level_set_manifold": Row(
        lambda v: manifolds.level_set_manifold({"w": v}, lambda p: jnp.sum(p["w"] ** 2)[None]).project({"w": v}),
        TREE,
        half=2e-2,
        allowed=dict.fromkeys(
            ("float32", "float64", "tiny", "huge", "one unit"), "the tangent part of a radius is rounding"
        ),
    ),
    "manifolds.fixed_point_manifold": Row(
        lambda v: manifolds.fixed_point_manifold({"w": v}, lambda p: p).project({"w": v}), TREE, half=2e-2
    ),
    "manifolds.isometric_manifold": Row(
        lambda v: manifolds.isometric_manifold({"w": v}, lambda p: p, lambda p: line(p["w"])).project({"w": v}),
        TREE,
        half=2e-2,
    ),
    "stability.kick_components": Row(
        lambda v: stability.kick_components(
            {"w": np.eye(2)[:, : np.size(v)].astype(getattr(v, "dtype", float))}, {"w": v}
        ),
        TREE,
        excused={"strings": "refused by the check of trees"},
    ),
    "stability.linearised_gradient": Row(lambda v: stability.linearised_gradient(square, line(v), {"w": v}), TREE),
    "stability.classify": Row(lambda v: stability.classify(square, {"w": v}, line(v), "dense").n_plus, TREE),
    "stability.escape_time_along": Row(
        lambda v: stability.escape_time_along(
            lambda p: -square(p), {"w": v * 0}, line(v * 0), {"w": jnp.asarray(v) - jnp.mean(v)}, 100.0, 0.5, 20
        ),
        TREE,
    ),
    "stability.transverse_lyapunov": Row(
        lambda v: (
            stability.transverse_lyapunov(
                lambda batch, u: batch * u, v, np.broadcast_to(v, (4, *np.shape(v))), 0.5, KEY
            ).exponent
        ),
        TREE,
        half=2e-2,
    ),
}
DRAWN = dict.fromkeys((*TYPES, "tiny", "huge"), "from a random direction, drawn in the type of the parameters")
for name, reasons in {
    "stability.transverse_lyapunov": DRAWN,
    "manifolds.random_normal_vector": DRAWN,
}.items():
    ROWS[name] = replace(ROWS[name], allowed={**ROWS[name].allowed, **reasons})
for name in ("manifolds.random_normal_vector", "stability.escape_time_along"):
    ROWS[name] = replace(ROWS[name], excused={"strings": "refused where the manifold is made"}, half=2e-2)

# --- The parameters of a network with clones --------------------------------------------------------------------------


def pairs(model):
    return {"hidden_0": tuple(unit // 2 for unit in range(model.wiring.size("hidden_0")))}


def params_row(function, **options):
    return weights(lambda m, v: function(m, v["params"]), **options)


MOVED = dict.fromkeys(("nan", "inf"), "arrays that are read, not computed with")
MASK = dict.fromkeys(("nan", "inf", "strings"), "of shapes alone")
BASE = lambda m: m.wiring  # noqa: E731
ROWS |= {
    "manifolds.cloned_manifold": params_row(lambda m, p: manifolds.cloned_manifold(p, m.wiring, pairs(m)).project(p)),
    "manifolds.weighted_manifold": params_row(
        lambda m, p: manifolds.weighted_manifold(
            p, m.wiring, pairs(m), {"hidden_0": (1.0,) * m.wiring.size("hidden_0")}
        ).project(p)
    ),
    "manifolds.frozen_manifold": params_row(
        lambda m, p: manifolds.frozen_manifold(p, m.wiring, {"hidden_0": [0]}).project(p),
        allowed=dict.fromkeys(("nan", "inf"), "the part of a frozen unit is 0"),
    ),
    "cloning.clone_variables": weights(lambda m, v: cloning.clone_variables(v, m.wiring, 2)),
    "cloning.cloned_norm": params_row(lambda m, p: cloning.cloned_norm(p, m.wiring, 2), half=2e-2),
    "cloning.clip_by_cloned_norm": params_row(
        lambda m, p: cloning.clip_by_cloned_norm(1.0, m.wiring, 2).update(p, ())[0], half=2e-2
    ),
    "cloning.quotient_optimizer": params_row(
        lambda m, p: stepped(cloning.quotient_optimizer(optax.sgd(0.5), m.wiring, 2), p)
    ),
    "cloning.collapse": weights(lambda m, v: cloning.collapse(v, m.wiring, pairs(m))),
    "cloning.multiplicities": params_row(lambda m, p: cloning.multiplicities(p, m.wiring, 2), allowed=MASK),
    "detection.parameter_rows": weights(lambda m, v: detection.parameter_rows(m.wiring, v, "hidden_0")),
    "wiring.unit_norms": params_row(lambda m, p: m and wiring.unit_norms(m.wiring, p, "hidden_0"), half=2e-2),
    "wiring.unit_masks": params_row(
        lambda m, p: wiring.unit_masks(m.wiring, p, {"hidden_0": np.arange(m.wiring.size("hidden_0")) == 0}),
        allowed=MASK,
    ),
    "wiring.keep_units": params_row(lambda m, p: wiring.keep_units(m.wiring, p, {"hidden_0": [0]}), allowed=MOVED),
}


def stepped(optimizer, params):
    return optimizer.update(params, optimizer.init(params), params)[0]
