"""The same training step in PyTorch, as an expert would run it on this machine.

Fused SGD, TF32 for float32, autocast for bfloat16, channels-last feature maps, inputs on the device; in eager mode,
compiled, compiled with a CUDA graph of the whole step, and with `mode="reduce-overhead"`.
"""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import models as shapes
from benchmarks.gpu.section import Task, seconds_a_step

Step = Callable[[], None]


def run(task: Task) -> None:
    """Both types, in every mode that this machine supports."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    types, name = ("bfloat16", "float32"), task.subject
    for dtype in types:
        step = made(task, dtype, None)
        task.attempt(name, partial(timed, task, dtype, step), type=dtype, mode="as it is")
        if not torch.cuda.is_available():
            continue
        step = made(task, dtype, "default")
        task.attempt(name, partial(timed, task, dtype, step), type=dtype, mode="compiled")
        task.attempt(name, partial(timed_graph, task, dtype, step), type=dtype, mode="compiled, step as one CUDA graph")
    for dtype in types if torch.cuda.is_available() else ():
        step = made(task, dtype, "reduce-overhead")
        task.attempt(name, partial(timed, task, dtype, step), type=dtype, mode="compiled, reduce-overhead")


def made(task: Task, dtype: str, mode: str | None) -> Step:
    """A step of a new network: gradients to zero, forward, backward, update."""
    import torch

    from benchmarks import torch_models

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch._dynamo.reset()
    kind, options = shapes.SHAPES[task.subject][0], shapes.options_of(task.subject, task.is_small)
    make: dict[str, Callable[..., Any]] = {
        "mlp": torch_models.mlp,
        "cnn": torch_models.cnn,
        "resnet18": torch_models.resnet18,
        "vit": torch_models.ViT,
    }
    model = make[kind](**{key: value for key, value in options.items() if key != "norm"}).to(device)
    images = torch.randn(8 if task.is_small else shapes.BATCH, 3, 32, 32, device=device)
    labels = torch.randint(10, (len(images),), device=device)
    if kind in ("cnn", "resnet18"):
        model, images = (
            model.to(memory_format=torch.channels_last),
            images.contiguous(memory_format=torch.channels_last),
        )
    optimizer = torch.optim.SGD(model.parameters(), 0.01, fused=device == "cuda")

    def loss_of(images: Any, labels: Any) -> Any:
        # Casts are not cached, or a captured step would read those of the previous step.
        half = torch.autocast(device, torch.bfloat16, cache_enabled=False)
        with half if dtype == "bfloat16" else contextlib.nullcontext():
            return torch.nn.functional.cross_entropy(model(images), labels)

    forward = loss_of if mode is None else torch.compile(loss_of, mode=None if mode == "default" else mode)

    def step() -> None:
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        optimizer.zero_grad(set_to_none=True)
        forward(images, labels).backward()
        optimizer.step()

    return step


def captured(step: Step) -> Step:
    """The whole step as one CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def timed_graph(task: Task, dtype: str, step: Step) -> dict[str, Any]:
    """The same for a step that is captured first."""
    return timed(task, dtype, captured(step))


def timed(task: Task, dtype: str, step: Step) -> dict[str, Any]:
    """Milliseconds per step, images per second, fraction of the measured rate of products, and memory."""
    import torch

    is_cuda = torch.cuda.is_available()

    def advance(steps: int) -> None:
        for _ in range(steps):
            step()

    if is_cuda:
        torch.cuda.reset_peak_memory_stats()
    wait = torch.cuda.synchronize if is_cuda else lambda: None
    seconds = seconds_a_step(advance, wait, budget=0.1 if task.is_small else 1.0)
    batch = 8 if task.is_small else shapes.BATCH
    row: dict[str, Any] = {"batch": batch, "ms": 1e3 * seconds, "images/s": batch / seconds}
    flops, rate = (
        shapes.step_flops(task.subject, shapes.options_of(task.subject, task.is_small), batch),
        task.rates.get(dtype),
    )
    row["of peak"] = None if rate is None else flops / rate / seconds
    return {**row, "GB": torch.cuda.max_memory_allocated() / 1e9 if is_cuda else None}
