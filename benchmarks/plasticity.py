"""Does it help? Regularisers and transforms on the stream of UPGD's appendix H, with a linear network.

`python -m benchmarks.plasticity`: about two minutes on two idle cores. The errors at the beginning and end of a task
    grow under gradient descent although the network is linear and the tasks are equivalent; the output shows by how
    much, for each method from the same initial parameters on the same data.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax import optim
from lopjax.models import mlp
from lopjax.training import init_state, train_step
from lopjax.training.task_streams import upgd_toy

MODEL = mlp((16,), (60, 30), 1, activation="identity")
RATE, TASKS, STEPS, SEEDS, ENDS = 0.02, 600, 200, 4, 100
STUDENT_QUANTILE = 3.182
"""97.5 % quantile of Student's t with three degrees of freedom: of four seeds."""

METHODS: dict[str, Callable[[jax.Array], Any]] = {
    "sgd": lambda key: optax.sgd(RATE),
    "normalise and project": lambda key: optax.chain(optax.sgd(RATE), optim.nap(MODEL.wiring)),
    "parseval 1e-3": lambda key: optax.chain(optim.parseval(1e-3, MODEL.wiring), optax.sgd(RATE)),
    "upgd, noise 1e-3": lambda key: optim.upgd(RATE, 1e-3, key, utility_decay=0.9),
    "spectral 1e-3": lambda key: optax.chain(optim.spectral(1e-3, MODEL.wiring), optax.sgd(RATE)),
    "l2 towards the start 1e-3": lambda key: optax.chain(optim.l2_init(1e-3), optax.sgd(RATE)),
    "l2 towards the start 5e-2": lambda key: optax.chain(optim.l2_init(5e-2), optax.sgd(RATE)),
}


@partial(jax.jit, static_argnums=0)
def errors(method: str, key: jax.Array) -> jax.Array:
    """Mean squared error of every task, online, `(tasks,)`."""
    stream, optimizer = upgd_toy(steps=STEPS), METHODS[method](jax.random.fold_in(key, 1))

    def step(state: Any, index: jax.Array) -> tuple[Any, jax.Array]:
        drawn = stream.draw((), key, index)
        state, seen = train_step(MODEL, optimizer, state, drawn.batch, loss=lambda y, t: jnp.mean((y - t) ** 2))
        return state, seen.loss

    found = jax.lax.scan(step, init_state(MODEL.init(key), optimizer), jnp.arange(TASKS * STEPS))[1]
    return jnp.mean(found.reshape(TASKS, STEPS), axis=1)


def interval(numbers: np.ndarray) -> str:
    """Mean and 95 % of Student's t over the seeds."""
    half = STUDENT_QUANTILE * np.std(numbers, ddof=1) / np.sqrt(len(numbers))
    return f"{np.mean(numbers):+.4f} [{np.mean(numbers) - half:+.4f}, {np.mean(numbers) + half:+.4f}]"


def main() -> None:
    """Run every method on every seed and print the table."""
    keys = [jax.random.key(seed, impl="philox4x32") for seed in range(SEEDS)]
    grown = f"growth over {TASKS} tasks"
    print(f"{'method':28} {'first tasks':>11} {grown:>30} {'growth less than sgd by':>30}")
    of_sgd = None
    for method in METHODS:
        found = np.stack([np.asarray(errors(method, key)) for key in keys])
        early, late = found[:, :ENDS].mean(axis=1), found[:, -ENDS:].mean(axis=1)
        growth = late - early
        of_sgd = growth if of_sgd is None else of_sgd
        print(f"{method:28} {early.mean():11.4f} {interval(growth):>30} {interval(of_sgd - growth):>30}", flush=True)


if __name__ == "__main__":
    main()
