"""A product with the Hessian, and with the Gauss-Newton matrix, in gradients, inside one compiled loop."""

from typing import Any

from benchmarks.gpu.section import Task, seconds_a_step
from benchmarks.gpu.steps import model_of

BATCH = 128


def run(task: Task) -> None:
    """MLP, ViT, CNN and ResNet-18 in float32, in default and in full precision."""
    for name in ("mlp 5x256",) if task.is_small else ("mlp 5x256", "vit", "cnn 64-128-256", "resnet18"):
        times: dict[str, float] = {}
        for kind in ("gradient", "hvp", "ggn_vp"):
            task.attempt(f"{name}, {kind}", lambda name=name, kind=kind, times=times: measured(task, name, kind, times))


def measured(task: Task, name: str, kind: str, times: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of one product, and the ratio to a gradient."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from lopjax.curvature import ggn_vp, hvp
    from lopjax.losses import mean_cross_entropy

    random, batch = np.random.default_rng(0), 8 if task.is_small else BATCH
    model = model_of(name, "float32", task.is_small)
    x = jnp.asarray(random.standard_normal((batch, 32, 32, 3), np.float32))
    y = jnp.asarray(random.integers(10, size=batch), jnp.int32)
    like = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    drawn = jax.tree.map(lambda leaf: jnp.asarray(0.03 * random.standard_normal(leaf.shape, np.float32)), like)
    variables = {part: tree if part == "params" else jax.tree.map(jnp.abs, tree) for part, tree in drawn.items()}

    def logits(variables: Any, params: Any, x: Any) -> Any:
        return model.apply({**variables, "params": params}, x).logits

    @jax.jit
    def many(variables: Any, x: Any, y: Any, steps: Any) -> Any:
        params = variables["params"]

        def loss(params: Any) -> Any:
            return mean_cross_entropy(logits(variables, params, x), y)

        def one(_: Any, vector: Any) -> Any:
            # Each gradient is taken at a point moved by the last one, so that nothing is computed once for all steps.
            point = jax.tree.map(lambda a, b: a + 1e-9 * b, params, vector)
            if kind == "gradient":
                return jax.grad(loss)(point)
            if kind == "hvp":
                return hvp(loss, point, vector)
            return ggn_vp(
                lambda params: logits(variables, params, x), lambda z: mean_cross_entropy(z, y), point, vector
            )

        return jax.lax.fori_loop(0, steps, one, params)

    program = many.lower(variables, x, y, jnp.int32(2)).compile()
    budget = 0.1 if task.is_small else 0.6
    seconds = seconds_a_step(lambda steps: program(variables, x, y, jnp.int32(steps)), budget=budget)
    times[kind] = seconds
    gradients = seconds / times["gradient"] if "gradient" in times else None
    return {"ms": 1e3 * seconds, "gradients": gradients, "parameters": _size(variables["params"])}


def _size(params: Any) -> int:
    import jax

    return sum(leaf.size for leaf in jax.tree.leaves(params))
