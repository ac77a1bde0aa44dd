"""Figures of the theory's pages: `python -m theory_checks.figures` draws them into `docs/figures/theory`.

One figure for each theorem at most, named after it; a page without one needs none. All are computed, none is a sketch.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lopjax.losses import cross_entropy
from lopjax.plotting import PALETTE, new_figure
from lopjax.stability import noise_exponent
from theory_checks.architectures import random_batches, random_variables
from theory_checks.clusters import cloned_points, norm, split, take, unequal_partition
from theory_checks.confinement import INPUT, small_network, train_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FOLDER = Path(__file__).parent.parent / "docs" / "figures" / "theory"


def draw_cloning() -> "Figure":
    """V seen along a leaf and across leaves: runs of SGD from three points of V, and with weight decay."""
    model, steps = small_network(), 400
    wiring, partition = model.wiring, unequal_partition(model.wiring)
    stream = random_batches(INPUT, steps)
    parts = split(wiring, partition, random_variables(model)["params"])
    figure, (axes,) = new_figure(1, 4.6, 3.2)
    for decay, color, label in ((0.0, PALETTE[0], "SGD"), (0.02, PALETTE[1], "SGD with weight decay 0.02")):
        for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
            start = jax.tree.map(lambda c, y, share=share: jnp.asarray(c + share * y), parts.constant, parts.gauge)
            path = train_path(model, _sgd, jnp.asarray(decay), start, stream)[0]["hidden_1"]["kernel"]
            kernels = np.concatenate([np.asarray(start["hidden_1"]["kernel"])[None], np.asarray(path)])
            gauge = parts.gauge["hidden_1"]["kernel"]
            across = np.tensordot(kernels, gauge, 2) / np.sum(gauge**2)
            along = kernels[:, 1:4, 1:4].mean(axis=(1, 2))
            axes.plot(along, across, color=color, label=label if share == 1 else None)
            axes.plot(along[0], across[0], "o", color="black", markersize=3)
    axes.axhline(0, color="0.6", linewidth=0.8, zorder=0)
    axes.text(0.99, 0.515, "BC", transform=axes.transAxes, ha="right", va="bottom", fontsize=8)
    axes.set_xlabel("along the leaf: mean weight of a block")
    axes.set_ylabel("across leaves: size of the gauge part")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return figure


def _sgd(decay: jax.Array) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(0.1))


def draw_flatness() -> "Figure":
    """Change of the loss along directions of the four kinds, from one point of V."""
    model = small_network()
    partition = unequal_partition(model.wiring)
    params = cloned_points(model.wiring, partition, random_variables(model)).v["params"]
    batch = take(random_batches(INPUT, 1, samples=32), 0)
    parts = split(model.wiring, partition, random_variables(model, seed=4)["params"])
    sizes = jnp.linspace(-2.0, 2.0, 81)
    loss = cross_entropy(model, {}, batch)

    @jax.jit
    def along(direction) -> jax.Array:
        return jax.vmap(lambda s: loss(jax.tree.map(lambda p, d: p + s * d, params, direction)))(sizes)

    figure, (axes,) = new_figure(1, 4.6, 3.0)
    labels = {
        "constant": "block-constant",
        "incoming": "incoming patterns",
        "outgoing": "outgoing patterns",
        "gauge": "gauge",
    }
    for (name, label), color, style in zip(labels.items(), PALETTE, ("-", "-", "-", (0, (3, 3))), strict=False):
        part = getattr(parts, name)
        length = norm(part)
        change = along(jax.tree.map(lambda leaf, length=length: jnp.asarray(leaf) / length, part))
        axes.plot(sizes, change - change[len(sizes) // 2], color=color, linestyle=style, label=label)
    axes.set_xlabel("distance from a point of V")
    axes.set_ylabel("change of the loss")
    axes.legend()
    return figure


def draw_frozen() -> "Figure":
    """The parameters for which a ReLU unit with one input is dead, one unit there, and the ball of its radius."""
    from matplotlib.patches import Circle

    inputs, unit = np.array([-1.2, -0.5, 0.1, 0.7, 1.6]), np.array([-0.35, -1.3])
    rows = np.stack([inputs, np.ones_like(inputs)], axis=1)
    distances = -rows @ unit / np.linalg.norm(rows, axis=1)
    w, b = np.meshgrid(np.linspace(-2, 2, 401), np.linspace(-2.5, 0.6, 401))
    highest = np.max(inputs[:, None, None] * w + b, axis=0)
    figure, (axes,) = new_figure(1, 4.2, 3.4)
    axes.contourf(w, b, highest, levels=[-10, 0], colors=[PALETTE[5]], alpha=0.35)
    for h in inputs:
        axes.plot([-2, 2], [2 * h, -2 * h], color="0.6", linewidth=0.8)
    axes.add_patch(Circle((unit[0], unit[1]), float(distances.min()), fill=False, color=PALETTE[1], linewidth=1.4))
    nearest = rows[np.argmin(distances)] / np.linalg.norm(rows[np.argmin(distances)])
    axes.annotate(
        "", tuple(unit + distances.min() * nearest), tuple(unit), arrowprops={"arrowstyle": "->", "color": PALETTE[1]}
    )
    axes.plot(*unit, "o", color="black", markersize=4)
    axes.text(-1.9, -2.35, "dead on all five samples", fontsize=8)
    halfway = unit + 0.5 * distances.min() * nearest
    axes.text(halfway[0] + 0.05, halfway[1] - 0.12, "r", color=PALETTE[1])
    axes.set(xlim=(-2, 2), ylim=(-2.5, 0.6), xlabel="weight w", ylabel="bias b", aspect="equal")
    return figure


def draw_frozen_optimizers() -> "Figure":
    """How far each optimizer carries a unit after its last gradient."""
    from theory_checks.frozen_optimizers import RATE, path

    steps = 300
    figure, (axes,) = new_figure(1, 4.6, 3.0)
    for name, color in zip(("lion", "muon", "momentum", "adam", "sgd"), PALETTE, strict=False):
        column = path(name, steps)
        axes.plot(np.abs(column - column[0]).max(axis=1) / RATE, color=color, label=name)
    axes.set_yscale("symlog", linthresh=1)
    axes.set_xlabel("steps after the last gradient")
    axes.set_ylabel("distance, in learning rates")
    axes.legend(ncols=2)
    return figure


def draw_conserved() -> "Figure":
    """Two weights of one ReLU unit on one sample: level sets of w² - a², small steps along them, large ones across."""
    w, a = np.meshgrid(np.linspace(0.0, 3.2, 200), np.linspace(0.0, 2.4, 200))
    figure, (axes,) = new_figure(1, 4.4, 3.4)
    axes.contour(w, a, w**2 - a**2, levels=np.arange(-5.0, 10.0), colors="0.8", linewidths=0.7, linestyles="-")
    axes.plot(w[0, 1:], 1 / w[0, 1:], color="black", linewidth=1, label="minima, w a = 1")
    for rate, color in ((0.002, PALETTE[0]), (0.12, PALETTE[1])):
        for index, start in enumerate(((3.0, 0.9), (2.4, 1.6), (1.2, 2.2), (0.3, 0.1), (0.9, 0.2))):
            run = _two_weights(np.array(start), rate)
            axes.plot(*run.T, "-" if rate < 0.1 else ".-", color=color, label=f"rate {rate:g}" if index == 0 else None)
    axes.set(xlim=(0, 3.2), ylim=(0, 2.4), xlabel="incoming weight w", ylabel="outgoing weight a")
    axes.legend(loc="upper right")
    return figure


def _two_weights(start: np.ndarray, rate: float) -> np.ndarray:
    """Gradient descent on (w a - 1)² / 2."""
    places = [start]
    for _ in range(int(8 / rate)):
        w, a = places[-1]
        places.append(places[-1] - rate * (w * a - 1) * np.array([a, w]))
    return np.array(places)


def draw_stability() -> "Figure":
    """The exponent of clones that only isotropic noise moves, over the number of incoming parameters."""
    incoming = np.arange(1, 13)
    figure, (axes,) = new_figure(1, 4.6, 3.0)
    for outgoing, color in zip((1, 2, 4, 8), PALETTE, strict=False):
        values = [noise_exponent(int(p), outgoing) for p in incoming]
        axes.plot(incoming, values, ".-", color=color, label=f"q = {outgoing}")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("incoming parameters p")
    axes.set_ylabel("exponent / η²: above 0 noise repels")
    axes.legend(title="outgoing parameters", ncols=2)
    return figure


def draw_escape() -> "Figure":
    """The staircase of weight decay: distinct units of six after training with decay, seed by seed."""
    from theory_checks.decay import UNITS, staircase

    decays = (0.0, *np.linspace(0.005, 0.1, 20).tolist())
    counts = staircase(6, 15_000, decays)
    figure, (axes,) = new_figure(1, 4.6, 2.8)
    for index, of_seed in enumerate(counts):
        axes.plot(decays, of_seed + 0.04 * (index - 2.5), ".", color=PALETTE[0], markersize=4, alpha=0.7)
    axes.step(decays, np.median(counts, axis=0), where="mid", color=PALETTE[1], label="median of six seeds")
    axes.set(xlabel="weight decay", ylabel=f"distinct units of {UNITS}", yticks=range(1, UNITS + 1))
    axes.legend()
    return figure


FIGURES: "Mapping[str, Callable[[], Figure]]" = MappingProxyType(
    {
        "cloning": draw_cloning,
        "flatness": draw_flatness,
        "frozen": draw_frozen,
        "frozen_optimizers": draw_frozen_optimizers,
        "conserved": draw_conserved,
        "stability": draw_stability,
        "escape": draw_escape,
    }
)
"""By theorem."""


def main(names: "tuple[str, ...]", folder: Path = FOLDER) -> None:
    """Draw the figures of these theorems, or all of them.

    Raises:
        ValueError: a theorem without a figure.
    """
    if unknown := set(names) - set(FIGURES):
        raise ValueError(f"{sorted(unknown)}: figures are {', '.join(FIGURES)}")
    jax.config.update("jax_enable_x64", True)
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or tuple(FIGURES):
        FIGURES[name]().savefig(folder / f"{name}.png", dpi=120)
        print(f"  {folder / name}.png")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]))
