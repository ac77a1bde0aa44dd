"""What the language experiment can be asked for: the config and its presets. Nothing here imports JAX."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from experiments.continual.config import TasksConfig
from experiments.kit.networks import GPT


@dataclass(frozen=True)
class Config(TasksConfig):
    """Everything that decides the result."""

    model: Literal["gpt"] = "gpt"
    """Architecture."""
    net: GPT = field(default_factory=GPT)
    """The network."""
    tasks: Literal["sources", "permuted_words"] = "sources"
    """What a task is: a stretch of the next source, or the first source with its words renamed."""
    sources: tuple[str, ...] = ("topics", "encodings", "email", "docstrings", "html", "unittest")
    """Texts that ship with Python: topics, docstrings, or a package of the standard library."""
    num_words: int = 0
    """Tokens: the most frequent words and marks of the sources, all others being one; 0 for bytes."""
    length: int = 32
    """Inputs of a window of text; the labels are the tokens one place on."""
    num_windows: int = 128
    """Windows of each task."""
    test_windows: int = 64
    """Windows of each task on which it is tested; they follow the others in the text."""
    digest: str = ""
    """SHA-256 of the text that must be found, as a run records it; "" for whatever this Python ships."""


_SMALL = GPT(width=32, depth=1, heads=2, mlp_ratio=8.0, activation="relu", tied=False)
_SHARED: dict[str, Any] = {
    "net": _SMALL, "batch_size": 8, "adam_learning_rate": 0.003, "probe_samples": 32, "level": 0.5, "earlier": (1, 2),
    "l2_init": 1e-3, "noise_scale": 0.01, "redo_threshold": 0.025, "reset_every": 200, "replacement_rate": 1e-4,
}  # fmt: skip
_METHODS = ("adam", "l2_init", "noise", "continual_backprop", "redo", "self_normalized_resets", "recovery")


def _each(**columns: Sequence[float]) -> tuple[dict[str, float], ...]:
    """Settings from columns of numbers."""
    return tuple(dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


GRID: dict[str, tuple[dict[str, float], ...]] = {
    "l2_init": _each(l2_init=(1e-4, 1e-3, 1e-2, 1e-1)),
    "shrink_and_perturb": _each(shrink=(1e-4, 1e-4, 1e-3, 1e-3), perturb=(1e-4, 1e-3, 1e-4, 1e-3)),
    "noise": _each(noise_scale=(0.001, 0.01, 0.01, 0.1), noise_decay=(1.0, 1.0, 0.999, 0.999)),
    "continual_backprop": _each(replacement_rate=(1e-5, 1e-4, 1e-3, 1e-2)),
    "redo": _each(redo_threshold=(0.025, 0.025, 0.1, 0.1), reset_every=(50, 200, 50, 200)),
    "self_normalized_resets": _each(percentile=(0.9, 0.97, 0.99, 0.999)),
    "recovery": _each(threshold=(0.5, 0.5, 1.0, 1.0), look_every=(100, 200, 100, 200)),
}
"""By method, the settings that are tried on permuted words, `tuning_1` to `tuning_4`; no two methods read the same
number. The learning rate, which all of them read, is varied on the command line."""
TUNING_SEEDS = (100, 101)
"""Seeds on which they are tried."""
BEST = {
    **{"l2_init": 3, "shrink_and_perturb": 3, "noise": 3, "continual_backprop": 2},
    **{"redo": 1, "self_normalized_resets": 2, "recovery": 1},
}
"""By method, the setting, from 1, with the smallest online loss on the tuning seeds over the last half of the tasks."""


def _numbers(chosen: Mapping[str, int]) -> dict[str, Any]:
    """The numbers of the config for a setting of every method, counted from 1."""
    return {name: value for method, setting in chosen.items() for name, value in GRID[method][setting - 1].items()}


# 33,024 tokens a task, 100 epochs and 500 tasks in arXiv 2410.20098; here 4,224 tokens, 15 epochs and 16 tasks.
_WORDS = Config(
    tasks="permuted_words",
    sources=("topics",),
    num_words=256,
    num_tasks=16,
    steps=240,
    seeds=(0, 1, 2, 3, 4),
    methods=_METHODS,
    **_SHARED,
)


def _tuning(setting: int) -> Config:
    """The same setting of every method on the tuning seeds."""
    numbers = _numbers(dict.fromkeys(GRID, setting))
    return replace(_WORDS, methods=tuple(GRID), seeds=TUNING_SEEDS, fresh=False, **numbers)


PRESETS = {
    "quick": Config(num_tasks=6, steps=100, methods=("adam", "l2_init"), **_SHARED),
    "sources": Config(num_tasks=16, steps=240, methods=_METHODS, seeds=(0, 1, 2, 3, 4), **_SHARED),
    "permuted_words": _WORDS,
    "tied": replace(_WORDS, methods=("adam", "l2_init"), net=replace(_SMALL, tied=True)),
    "tuned": replace(_WORDS, methods=("adam", *GRID), **_numbers(BEST)),
    **{f"tuning_{setting}": _tuning(setting) for setting in (1, 2, 3, 4)},
}
"""By name; the first is the default."""
