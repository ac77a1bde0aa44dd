"""Training step of one architecture, for one lane and for several, in both types, with its lower bounds.

Lanes are vmapped, as in the training engine on accelerators. One bound follows from the operations of the matrix
products, the other from the bytes that the compiled step moves according to XLA; the larger of the two times is the
lower bound. Data that stay in the second-level cache can beat the second bound.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import models as shapes
from benchmarks.gpu.section import Task, seconds_a_step

# lanes x batch at most, so that the activations of all lanes fit into 80 GB.
MOST_IMAGES = {"mlp": 2**14, "vit": 8192, "cnn": 4096, "resnet18": 1024}


class Case(NamedTuple):
    """One row.

    Attributes:
        dtype: dtype in which the network computes.
        lanes: number of networks trained together.
        precision: precision of products, None for JAX's default.
        convolutions: implementation of convolutions: "library", or "patches" for one batched product of all patches.
    """

    dtype: str
    lanes: int = 1
    precision: str | None = None
    convolutions: str = "library"

    def name(self) -> str:
        """The part of a case that has no column of its own."""
        words = self.dtype if self.precision is None else f"{self.dtype}, {self.precision}"
        return words if self.convolutions == "library" else f"{words}, by {self.convolutions}"


def cases(kind: str, is_small: bool) -> list[list[Case]]:
    """Waves of cases; those of one wave are compiled together, then measured."""
    if is_small:
        return [[Case("float32"), Case("bfloat16", 2)]]
    types, many = ("float32", "bfloat16"), (8, 32, 128)
    waves = [[Case(dtype) for dtype in types] + [Case("float32", precision="highest")]]
    waves.append([Case(dtype, many[0]) for dtype in types])
    if kind in ("cnn", "resnet18"):
        waves.append([Case("bfloat16", many[0], convolutions="patches")])
    waves.append([Case(dtype, lanes) for lanes in many[1:] for dtype in types])
    return waves


def run(task: Task) -> None:
    """Every wave: compile in threads, then measure one after the other."""
    name, alone = task.subject, {}
    for wave in cases(shapes.SHAPES[name][0], task.is_small):
        with ThreadPoolExecutor(len(wave)) as pool:
            begin = time.monotonic()
            futures = [pool.submit(compiled, name, case, task.is_small) for case in wave]
        task.emit(name, note=f"{len(wave)} programs traced and compiled in {time.monotonic() - begin:.0f} s")
        for case, future in zip(wave, futures):
            batch = batch_of(shapes.SHAPES[name][0], case.lanes, task.is_small)
            measure = partial(measured, task, case, future, alone)
            task.attempt(name, measure, type=case.name(), lanes=case.lanes, batch=batch)


def batch_of(kind: str, lanes: int, is_small: bool) -> int:
    """Images of a lane's batch."""
    return 8 if is_small else min(shapes.BATCH, MOST_IMAGES[kind] // lanes)


def compiled(name: str, case: Case, is_small: bool) -> Any:
    """The program of `steps` steps of all lanes."""
    return lowered(name, case, is_small).compile()


def lowered(name: str, case: Case, is_small: bool) -> Any:
    """The same, not yet compiled."""
    import jax
    import jax.numpy as jnp
    import optax

    from lopjax.models import convolution
    from lopjax.training import init_state, train_step

    kind, optimizer = shapes.SHAPES[name][0], optax.sgd(0.01)
    model = model_of(name, case.dtype, is_small)
    batch = batch_of(kind, case.lanes, is_small)
    data = (
        jax.ShapeDtypeStruct((case.lanes, batch, 32, 32, 3), jnp.float32),
        jax.ShapeDtypeStruct((case.lanes, batch), jnp.int32),
    )
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), case.lanes))
    states = jax.eval_shape(jax.vmap(lambda key: init_state(model.init(key), optimizer)), keys)

    @partial(jax.jit, donate_argnums=0)
    def many(states: Any, batch: Any, steps: Any) -> Any:
        def one(state: Any, batch: Any) -> Any:
            return train_step(model, optimizer, state, batch)[0]

        if case.lanes == 1:  # a single lane has no axis, so that products are not batched
            state, batch = jax.tree.map(lambda leaf: leaf[0], (states, batch))
            state = jax.lax.fori_loop(0, steps, lambda _, state: one(state, batch), state)
            return jax.tree.map(lambda leaf: leaf[None], state)
        return jax.lax.fori_loop(0, steps, lambda _, states: jax.vmap(one)(states, batch), states)

    by = by_patches if case.convolutions == "patches" else convolution._by_xla
    with mock.patch.object(convolution, "_by_xla", by), jax.default_matmul_precision(case.precision):
        return many.lower(states, data, jax.ShapeDtypeStruct((), jnp.int32))


def model_of(name: str, dtype: str, is_small: bool) -> Any:
    """The network of a shape."""
    from lopjax import models

    constructor, options = shapes.SHAPES[name][0], shapes.options_of(name, is_small)
    return getattr(models, constructor)((32, 32, 3), num_classes=10, compute_dtype=dtype, **options)


def by_patches(x: Any, kernel: Any, window: Any) -> Any:
    """A convolution as one product of all patches: lanes make it a batched product, not a grouped convolution."""
    import jax.numpy as jnp

    from lopjax.models import convolution

    patches = convolution._patches(x, kernel.shape[:2], window)
    return jnp.einsum("nijp,pu->niju", patches, kernel.reshape(-1, kernel.shape[-1]))


def measured(task: Task, case: Case, future: Any, alone: dict[str, float]) -> dict[str, Any]:
    """The columns of a case whose program another thread has compiled; `alone` stores the rates of single lanes."""
    name, lanes, program = task.subject, case.lanes, future.result()
    batch = batch_of(shapes.SHAPES[name][0], lanes, task.is_small)
    seconds = timed(program, name, case, task.is_small)
    images = lanes * batch / seconds
    if lanes == 1:
        alone[case.dtype] = max(images, alone.get(case.dtype, 0.0))
    gain = images / alone[case.dtype] if lanes > 1 and case.dtype in alone else None
    row: dict[str, Any] = {"ms": 1e3 * seconds, "images/s": images, "times the images/s of one lane": gain}
    flops = shapes.step_flops(name, shapes.options_of(name, task.is_small), batch) * lanes
    row |= fractions(task.rates, case, flops, program, seconds)
    return row | {"GB": gigabytes(program), "kernels": kernels(program.as_text())}


def timed(program: Any, name: str, case: Case, is_small: bool) -> float:
    """Seconds of one step of all lanes together."""
    import jax.numpy as jnp
    import numpy as np

    random = np.random.default_rng(0)
    kind = shapes.SHAPES[name][0]
    size = batch_of(kind, case.lanes, is_small)
    batch = (
        jnp.asarray(random.standard_normal((case.lanes, size, 32, 32, 3), np.float32)),
        jnp.asarray(random.integers(10, size=(case.lanes, size)), jnp.int32),
    )
    states = start(name, case, is_small)

    def advance(steps: int) -> Any:
        nonlocal states
        states = program(states, batch, jnp.int32(steps))
        return states

    return seconds_a_step(advance, budget=0.1 if is_small else 1.5)


def start(name: str, case: Case, is_small: bool) -> Any:
    """Equal states of all lanes, at the scale of an initialisation; drawn by NumPy, which compiles nothing."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from lopjax.training import init_state

    random = np.random.default_rng(0)
    model = model_of(name, case.dtype, is_small)
    shapes_of_one = jax.eval_shape(lambda: model.init(jax.random.key(0)))
    drawn = jax.tree.map(lambda leaf: 0.03 * random.standard_normal(leaf.shape, np.float32), shapes_of_one)
    # Running variances are positive.
    drawn = {kind: tree if kind == "params" else jax.tree.map(np.abs, tree) for kind, tree in drawn.items()}
    spread = jax.jit(lambda tree: jax.tree.map(lambda leaf: jnp.repeat(leaf[None], case.lanes, axis=0), tree))
    return init_state(spread(drawn), optax.sgd(0.01))


def fractions(rates: dict[str, float], case: Case, flops: float, program: Any, seconds: float) -> dict[str, Any]:
    """Both lower bounds in milliseconds, and the larger one as a fraction of the measured time."""
    rate = rates.get(case.dtype if case.precision is None else f"{case.dtype}, {case.precision}")
    counted = program.cost_analysis() or {}
    moved = (counted[0] if isinstance(counted, list) else counted).get("bytes accessed")
    bandwidth = rates.get("copy")
    by_flops = None if rate is None else 1e3 * flops / rate
    by_bytes = None if bandwidth is None or moved is None else 1e3 * moved / bandwidth
    known = [floor for floor in (by_flops, by_bytes) if floor is not None]
    return {
        "bound by operations, ms": by_flops,
        "bound by bytes, ms": by_bytes,
        "of peak": None if by_flops is None else by_flops / 1e3 / seconds,
        "of the larger bound": max(known) / 1e3 / seconds if known else None,
    }


def gigabytes(program: Any) -> float | None:
    """Peak device memory of the program, according to XLA."""
    memory = program.memory_analysis()
    if memory is None:
        return None
    return (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 1e9


def kernels(text: str) -> int:
    """Fusions, library calls and other kernels that a step launches: those of the loop's body, nearly all there are."""
    names = "fusion|custom-call|dot|convolution|reduce|sort|scatter|copy"
    return len(re.findall(rf" = [^=]*? (?:{names})\(", _bodies(text)))


def _bodies(text: str) -> str:
    """The computations of the optimised program that are not inside a fusion."""
    parts = re.split(r"\n(?=\S.*\{\n)", text)
    return "\n".join(part for part in parts if not re.match(r"%?(fused|wrapped|region|add|max|or)", part))
