"""Reading the wiring of large networks from shapes: GPT-2 small and its medium size, ResNet-50.

    python -m benchmarks.tracing --output tracing.json   # half a minute on 2 idle cores

Seconds of processor time, the median of several readings in one process, the first of which is reported separately: it
also evaluates the library's activation functions once. Aim: one second for GPT-2 small and for ResNet-50. Memory: the
most that Python holds while it reads (tracemalloc, in a reading of its own), and what the compiled program of a small
network needs besides arguments and results, as it is and through the model that was read.
"""

import argparse
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import harness

Network = tuple[Callable[[Any, Any], Any], Any, Any]
AIM = 1.0


def gpt(depth: int, width: int, heads: int, length: int = 1024, words: int = 50257) -> Network:
    """A decoder with a fused projection, GELU and tied embeddings, as a plain function."""
    import jax
    import jax.numpy as jnp

    def of(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def norm(x: Any, scale: Any, shift: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift

    def attend(x: Any, p: Any) -> Any:
        split = lambda z: z.reshape(*z.shape[:2], heads, -1).transpose(0, 2, 1, 3)  # noqa: E731
        q, k, v = map(split, jnp.split(x @ p["qkv"] + p["qkv_bias"], 3, -1))
        scores = q @ k.transpose(0, 1, 3, 2) / (width // heads) ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -jnp.inf)
        mixed = (jax.nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        return mixed @ p["out"] + p["out_bias"]

    def apply(p: Any, tokens: Any) -> Any:
        x = p["wte"][tokens] + p["wpe"][: tokens.shape[1]]
        for index in range(depth):
            own = p[f"h{index}"]
            x = x + attend(norm(x, own["scale_1"], own["shift_1"]), own)
            hidden = jax.nn.gelu(norm(x, own["scale_2"], own["shift_2"]) @ own["up"] + own["up_bias"])
            x = x + hidden @ own["down"] + own["down_bias"]
        return norm(x, p["scale"], p["shift"]) @ p["wte"].T

    vectors = dict.fromkeys(("scale_1", "shift_1", "scale_2", "shift_2", "out_bias", "down_bias"), of(width))
    matrices = {"qkv": of(width, 3 * width), "out": of(width, width), "up": of(width, 4 * width)}
    block = {**vectors, **matrices, "down": of(4 * width, width), "qkv_bias": of(3 * width), "up_bias": of(4 * width)}
    ends = {"wte": of(words, width), "wpe": of(length, width), "scale": of(width), "shift": of(width)}
    return apply, {**ends, **{f"h{index}": block for index in range(depth)}}, jax.ShapeDtypeStruct((2, length), "int32")


def resnet(blocks: Sequence[int] = (3, 4, 6, 3)) -> Network:
    """A ResNet of bottlenecks in Flax, in eval mode."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            def layer(x: Any, channels: int, size: int, stride: int = 1) -> Any:
                x = nn.Conv(channels, (size, size), (stride, stride), use_bias=False)(x)
                return nn.BatchNorm(use_running_average=True)(x)

            x = nn.max_pool(nn.relu(layer(x, 64, 7, 2)), (3, 3), (2, 2), "SAME")
            for stage, number in enumerate(blocks):
                for index in range(number):
                    channels, stride = 64 * 2**stage, 2 if stage and not index else 1
                    y = nn.relu(layer(nn.relu(layer(x, channels, 1)), channels, 3, stride))
                    y = layer(y, 4 * channels, 1)
                    x = nn.relu(y + (x if index else layer(x, 4 * channels, 1, stride)))
            return nn.Dense(1000)(x.mean((1, 2)))

    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    return Net().apply, jax.eval_shape(Net().init, jax.random.key(0), images), images


NETWORKS: dict[str, Callable[[], Network]] = {
    "GPT-2 small": lambda: gpt(12, 768, 12),
    "GPT-2 medium": lambda: gpt(24, 1024, 16),
    "ResNet-50": resnet,
}


def measured(repeats: int) -> list[dict[str, Any]]:
    """For every network: seconds, the number of equations and the findings."""
    import jax

    from lopjax.tracing import trace_model
    from lopjax.tracing.jaxprs import read_program, walk

    rows = []
    for name, make in NETWORKS.items():
        apply, params, inputs = make()
        jaxpr, whole = [], []
        for _ in range(repeats + 1):
            for seconds, read in ((jaxpr, jax.make_jaxpr(apply)), (whole, None)):
                jax.clear_caches()
                start = time.process_time()
                traced = trace_model(apply, params, inputs, check=False) if read is None else read(params, inputs)
                seconds.append(time.process_time() - start)
        states = [space.state for space in traced.spaces]  # pyright: ignore[reportAttributeAccessIssue]
        equations = sum(not node.is_call for node in walk(read_program(apply, params, inputs).block))
        counts = {state: states.count(state) for state in ("cloneable", "permutable", "fixed")}
        found = {"first": whole[0], "seconds": harness.median(whole[1:]), "make_jaxpr": harness.median(jaxpr[1:])}
        rows.append({"network": name, "equations": equations, "peak_mb": _peak(*make()), **found, **counts})
    return rows


def _peak(apply: Callable[[Any, Any], Any], params: Any, inputs: Any) -> float:
    """Largest memory that Python's objects take while a network is read, in 2**20 bytes."""
    import jax

    from lopjax.tracing import trace_model

    jax.clear_caches()
    tracemalloc.start()
    trace_model(apply, params, inputs, check=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak / 2**20


def running(depth: int = 4) -> dict[str, float]:
    """Temporary memory of compiled gradients, in 2**20 bytes: of a small network, and of the model read from it."""
    import jax

    from lopjax.tracing import trace_model

    apply, params, inputs = gpt(depth, 64, 4, length=64, words=100)
    traced = trace_model(apply, params, inputs, check=False)

    def size(loss: Callable[[Any], Any], given: Any) -> float:
        analysis = jax.jit(jax.grad(loss)).lower(given).compile().memory_analysis()
        return 0.0 if analysis is None else analysis.temp_size_in_bytes / 2**20

    zeros = jax.numpy.zeros(inputs.shape, inputs.dtype)
    own = size(lambda p: (apply(p, zeros) ** 2).mean(), params)
    pieces = jax.eval_shape(traced.split, params)
    read = size(lambda v: (traced.model.apply(v, zeros).logits ** 2).mean(), pieces)
    return {"own_mb": own, "read_mb": read}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the file if requested."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracing", description=str(__doc__))
    parser.add_argument("--repeats", type=int, default=3, help="number of readings, of which the median is taken")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args(argv)
    machine, rows = harness.describe_machine(), measured(arguments.repeats)
    print(harness.described(machine))
    cells = [
        (row["network"], str(row["equations"]), *(f"{row[key]:.2f}" for key in ("first", "seconds", "make_jaxpr")),
         f"{row['peak_mb']:.0f}", f"{row['cloneable']}/{row['permutable']}/{row['fixed']}")
        for row in rows
    ]  # fmt: skip
    heads = (
        "network",
        "equations",
        "first reading, s",
        f"seconds (aim {AIM:g})",
        "of them make_jaxpr",
        "peak, MB",
        "spaces",
    )
    print(harness.markdown(heads, cells))
    memory = running()
    print(f"temporary memory of a gradient: {memory['own_mb']:.1f} MB, of the model read {memory['read_mb']:.1f} MB")
    harness.write(arguments.output, {"machine": machine, "networks": rows, "running": memory})


if __name__ == "__main__":
    main()
