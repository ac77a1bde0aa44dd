"""Checks that must hold on any machine, run here with tiny networks: one row each, with yes or no and the number.

Rows that say "default" leave the precision of products to JAX: on recent GPUs that is TF32 for float32. Verdicts
request full precision themselves (`lopjax.arguments.precision`), so their rows must hold like those with "highest".
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from benchmarks.gpu.section import Task


class Outcome(NamedTuple):
    """Whether a check holds, and what was measured."""

    holds: bool | None
    measured: str


def run(task: Task) -> None:
    """Every check, the most important first."""
    checks: dict[str, Callable[[], Outcome]] = {
        "a clone is certified, mlp, float64": partial(certificate, "mlp", "float64", None),
        "a clone is certified, mlp, float32, default": partial(certificate, "mlp", "float32", None),
        "a clone is certified, mlp, float32, highest": partial(certificate, "mlp", "float32", "highest"),
        "a broken clone is not, mlp, float32, default": partial(certificate, "mlp", "float32", None, True),
        "a clone computes what its base does, float32, default": partial(same_function, "float32", None),
        "a clone computes what its base does, float64": partial(same_function, "float64", None),
        "verdict on the clone's stability: float32, default, against float64": partial(stability, None),
        "verdict on the clone's stability: float32, highest, against float64": partial(stability, "highest"),
        "same bits twice, mlp": partial(same_bits, "mlp"),
        "same bits twice, cnn": partial(same_bits, "cnn"),
        "a lane's bits with others beside it, mlp": bits_beside_others,
        "convolution equals patches, with gradients, float64": convolution,
        "normals are those of a CPU": normals,
        "singular values of a batch equal NumPy's": singular_values,
        "symptoms equal those of a CPU": symptoms,
        "a clone is certified, cnn, float32, default": partial(certificate, "cnn", "float32", None),
        "a clone is certified, vit, float32, default": partial(certificate, "vit", "float32", None),
    }
    few = ("mlp, float64", "default, mlp", "same bits twice, mlp", "beside it", "patches", "normals", "NumPy")
    for name, check in checks.items():
        if not task.is_small or any(word in name for word in few):
            task.attempt(name, lambda check=check: check()._asdict())


def network(kind: str) -> Any:
    """A tiny network on 8x8 images (mlp: 48 inputs), without its own randomness."""
    from lopjax import models

    if kind == "mlp":
        return models.mlp((48,), (16, 16), 4, activation="tanh")
    if kind == "cnn":
        return models.cnn((8, 8, 3), 4, channels=(3, 4), dense=5, activation="tanh", norm="batch")
    return models.vit((8, 8, 3), 4, patch=4, width=6, depth=1, heads=2, mlp_ratio=1.0)


def data(kind: str, samples: int = 24) -> tuple[Any, Any]:
    """Random inputs and labels in the default type, the same numbers in every type."""
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(1)
    shape = (48,) if kind == "mlp" else (8, 8, 3)
    x = random.standard_normal((samples, *shape), np.float32)
    return jnp.asarray(x, float), jnp.asarray(random.integers(4, size=samples))


def cloned(kind: str) -> tuple[Any, Any, Any, Any]:
    """A base with its variables, and its clone with its own; the same numbers in every type."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lopjax.cloning import clone_variables, widen

    base, random = network(kind), np.random.default_rng(0)
    like = jax.eval_shape(base.init, jax.random.key(0))
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.1, 0.5, leaf.shape).astype("f4"), float), like)
    signs = jax.tree.map(lambda leaf: jnp.asarray(random.choice([-1, 1], leaf.shape), float), like["params"])
    variables = {**variables, "params": jax.tree.map(jnp.multiply, variables["params"], signs)}
    return base, variables, widen(base, 2), clone_variables(variables, base.wiring, 2)


def precision_context(dtype: str, precision: str | None) -> Any:
    """The context of a check."""
    import contextlib

    import jax

    stack = contextlib.ExitStack()
    stack.enter_context(jax.enable_x64(dtype == "float64"))
    if precision is not None:
        stack.enter_context(jax.default_matmul_precision(precision))
    return stack


def certificate(kind: str, dtype: str, precision: str | None, is_broken: bool = False) -> Outcome:
    """The verdict on a clone, whose gradient must stay on its manifold."""
    import jax

    from lopjax.certificates import CloneVerdict, certify_cloned
    from lopjax.cloning import uniform_partition

    with precision_context(dtype, precision):
        _, _, model, variables = cloned(kind)
        if is_broken:
            leaves, structure = jax.tree.flatten(variables)
            moved = [leaf * (1 + 0.1 * jax.random.normal(jax.random.key(7), leaf.shape)) for leaf in leaves]
            variables = structure.unflatten(moved)
        found = certify_cloned(model, variables, data(kind), uniform_partition(model.wiring, 2))
    trapped = {CloneVerdict.BLOCK_CONSTANT, CloneVerdict.ON_V}
    tangency = "none" if found.tangency is None else f"{float(found.tangency):.1e}"
    holds = found.verdict is CloneVerdict.NOT_CLONED if is_broken else found.verdict in trapped
    return Outcome(holds, f"{found.verdict.name}, tangency {tangency}, tolerance {float(found.signal_tolerance):.1e}")


def same_function(dtype: str, precision: str | None) -> Outcome:
    """Logits of base and clone."""
    import jax
    import jax.numpy as jnp

    with precision_context(dtype, precision):
        base, variables, model, wide = cloned("mlp")
        x, _ = data("mlp")
        ours, theirs = (jax.jit(m.apply)(v, x).logits for m, v in ((base, variables), (model, wide)))
        error = float(jnp.max(jnp.abs(ours - theirs)) / jnp.max(jnp.abs(ours)))
    return Outcome(error < (1e-12 if dtype == "float64" else 1e-5), f"{error:.1e}, relative")


def stability(precision: str | None) -> Outcome:
    """Signs that float32 claims must be those of float64; it may claim fewer."""
    from lopjax.stability import Stability, unit_blocks

    totals = []
    for dtype, one in (("float64", None), ("float32", precision)):
        with precision_context(dtype, one):
            base, variables, _, _ = cloned("mlp")
            totals.append(unit_blocks(base, variables, data("mlp"), 2).total)
    exact, single = totals
    claims = single.n_plus <= exact.n_plus and single.n_minus <= exact.n_minus
    agrees = single.verdict in (exact.verdict, Stability.UNDECIDED)
    counts = [f"{total.verdict.name} +{total.n_plus} -{total.n_minus} 0:{total.n_zero}" for total in totals]
    return Outcome(claims and agrees, f"float64 {counts[0]}; float32 {counts[1]}")


def trained(kind: str, seeds: tuple[int, ...], steps: int = 200) -> Any:
    """Parameters after training of some lanes by the training engine."""
    import jax
    import optax

    from lopjax.training import epochs, init_state, logs_of, make_chunk, start_lanes, train_step

    model, optimizer, (x, y) = network(kind), optax.sgd(0.05, 0.9), data(kind, 64)

    def step(state: Any, drawn: Any, key: Any, index: Any) -> Any:
        state, seen = train_step(model, optimizer, state, drawn.batch)
        return state, logs_of(seen, "loss")

    stream = epochs(x, y, 16)
    keys = jax.vmap(lambda seed: jax.random.key(seed, impl="philox4x32"))(jax.numpy.array(seeds))
    states = jax.jit(jax.vmap(lambda key: init_state(model.init(key), optimizer)))(keys)
    lanes, _ = make_chunk(step, stream)(start_lanes(states), keys, 0, steps, stream.data)
    return jax.device_get(lanes.state.variables["params"])


def difference(a: Any, b: Any) -> float:
    """Largest relative difference of two trees of arrays."""
    import jax
    import numpy as np

    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b))
    return max(float(np.max(np.abs(x - y)) / max(np.max(np.abs(y)), 1e-30)) for x, y in pairs)


def same_bits(kind: str) -> Outcome:
    """Training twice from the same keys, three lanes."""
    error = difference(trained(kind, (0, 1, 2)), trained(kind, (0, 1, 2)))
    return Outcome(error == 0, f"{error:.1e} after 200 steps")


def bits_beside_others() -> Outcome:
    """A lane alone and together with two others; a CPU guarantees the same bits, an accelerator does not."""
    import jax

    alone, beside = trained("mlp", (0,)), trained("mlp", (0, 1, 2))
    error = difference(alone, jax.tree.map(lambda leaf: leaf[:1], beside))
    return Outcome(error == 0, f"{error:.1e} after 200 steps; not promised on accelerators")


def convolution() -> Outcome:
    """The convolution used on accelerators against that used on CPUs: value and both gradients."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lopjax.models import convolution as implementations
    from lopjax.wiring import Window

    random, window = np.random.default_rng(0), Window((2, 1), ((1, 1), (0, 1)))
    with jax.enable_x64(True):
        x, kernel = jnp.asarray(random.normal(size=(3, 9, 8, 4))), jnp.asarray(random.normal(size=(3, 2, 4, 5)))

        def derivatives(convolve: Callable[..., Any]) -> Any:
            return jax.jit(jax.value_and_grad(lambda x, k: jnp.sum(jnp.sin(convolve(x, k, window))), (0, 1)))(x, kernel)

        ours, theirs = (
            jax.device_get(derivatives(convolve)) for convolve in (implementations._by_xla, implementations._by_patches)
        )
    error = difference(ours, theirs)
    return Outcome(error < 1e-12, f"{error:.1e}, relative")


def normals() -> Outcome:
    """The same random words from the same key; logarithm and root may round differently."""
    import jax

    from lopjax.random.normals import standard_normal

    def draw() -> Any:
        return jax.device_get(standard_normal(jax.random.key(3, impl="philox4x32"), (1001,)))

    here = draw()
    with jax.default_device(jax.devices("cpu")[0]):
        error = float(abs(here - draw()).max())
    return Outcome(error < 1e-5, f"{error:.1e}, absolute")


def singular_values() -> Outcome:
    """`lopjax.linalg` under `vmap`, in float64."""
    import jax
    import numpy as np

    from lopjax import linalg

    matrices = np.random.default_rng(0).normal(size=(5, 12, 7))
    with jax.enable_x64(True):
        found = jax.device_get(jax.jit(jax.vmap(linalg.singular_values))(matrices))
    error = float(np.max(np.abs(found - np.linalg.svd(matrices, compute_uv=False))))
    return Outcome(error < 1e-12, f"{error:.1e}, absolute")


def symptoms() -> Outcome:
    """Every symptom at every site of a clone, in float32, on this device and on its host CPU."""
    import jax
    import numpy as np

    from lopjax.cloning import uniform_partition
    from lopjax.probes import symptoms as measured

    def measure() -> Any:
        _, _, model, variables = cloned("mlp")
        partition = uniform_partition(model.wiring, 2)
        return jax.device_get(
            jax.jit(lambda variables, x, y: measured(model, variables, (x, y), partition=partition))(
                variables, *data("mlp", 64)
            )
        )

    here = measure()
    with jax.default_device(jax.devices("cpu")[0]):
        there = measure()
    flat, paths = jax.tree.leaves(here), jax.tree_util.tree_leaves_with_path(there)
    errors = {jax.tree_util.keystr(path): abs(float(a) - float(b)) for a, (path, b) in zip(flat, paths)}
    errors = {name: error for name, error in errors.items() if not np.isnan(error)}
    worst = max(errors, key=lambda name: errors[name])
    return Outcome(errors[worst] < 1e-2, f"largest difference {errors[worst]:.1e}, {worst}")
