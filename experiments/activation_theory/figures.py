"""Figures of activation theory: arXiv 2510.00304 A.1 to A.4, kernel maps over depth, correlations in training."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np

from lopjax.activations import Activation, activation
from lopjax.plotting import PALETTE, drawing
from lopjax.runs import RunData
from lopjax.theory import alpha, exact_rank_gain, frozen_fraction, iterate_map, kernel_gap, kernel_map, rank_gain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = PALETTE[:6]
DPI = 110
DISPLAY_NAMES = {
    "identity": "before",
    "relu": "ReLU",
    "leaky_relu": "LeakyReLU",
    "gelu": "GELU",
    "elu": "ELU",
    "selu": "SELU",
    "silu": "SiLU",
}


def display(name: str) -> str:
    """Name of an activation as it is usually written."""
    return DISPLAY_NAMES.get(name, name)


def figures(data: RunData) -> "dict[str, Figure]":
    """All figures of a run, by file name; those of the samples and of training only once these are recorded."""
    spectra, trained = data.select(what="spectra"), data.select(what="training")
    with jax.enable_x64(True):
        drawings = {
            "a2_effective_rank": effective_rank(data.config["num_equicorrelated"]),
            "a3_frozen_fraction": frozen_against_alpha(),
            "a4_heat_maps": heat_maps(data.config["grid"]),
            "kernel_maps": kernel_maps(data.config["depth"]),
        }
    for found in spectra:
        eigenvalues = {name: np.array(values) for name, values in found["eigenvalues"].items()}
        drawings["a1_hard_rank"] = hard_rank(eigenvalues, found["ranks"], data.config["rank"])
    for found in trained:
        drawings["correlations_in_training"] = correlations_in_training(found)
    return drawings


def hard_rank(eigenvalues: dict[str, Any], ranks: dict[str, int], rank: int) -> "Figure":
    """A.1: spectra of rank-deficient Gaussian samples, before and after each activation."""
    with drawing(5.2, 3.4, DPI) as figure:
        axes = figure.subplots()
        for (name, values), color in zip(eigenvalues.items(), ("0.25", *COLORS), strict=False):
            style = "--" if name == "identity" else "-"
            label = f"{display(name)}: rank {ranks[name]}"
            axes.semilogy(range(1, len(values) + 1), values.clip(1e-18), style, color=color, label=label)
        axes.axvline(rank + 0.5, color="0.6", linewidth=0.8)
        axes.set_xlabel("index")
        axes.set_ylabel("eigenvalue of H'H, relative to the largest")
        axes.set_title(f"Activations restore full rank of rank-{rank} Gaussian inputs", fontsize=9)
        axes.legend(loc="lower left", bbox_to_anchor=(0.35, 0.1), fontsize=8)
    return figure


def effective_rank(num_units: int) -> "Figure":
    """A.2: exact gain of effective rank of equicorrelated units, and how far each formula is from it."""
    eps = jnp.geomspace(1e-8, 0.5, 40)
    labels = {"corrected": "corrected", "leading_log": "appendix: leading log", "linear": "main text: 1 + αε"}
    steep = Activation("tanh(10z)", lambda z: jnp.tanh(10 * z), (0.0,))
    with drawing(7.6, 3.3, DPI) as figure:
        left, right = figure.subplots(1, 2)
        for f, marker, style in ((activation("tanh"), "o", "-"), (steep, "s", "--")):
            strength = alpha(f)
            exact = jnp.log(exact_rank_gain(num_units, eps, kernel_gap(f, eps)))
            name = f"{f.name}, α = {strength:.2f}"
            left.plot(eps, exact / (strength * eps), marker, color="0.25", markersize=3, label=f"exact, {name}")
            for (formula, label), color in zip(labels.items(), COLORS, strict=False):
                gain = jnp.log(rank_gain(num_units, eps, strength, formula))
                is_first = style == "-"
                left.plot(eps, gain / (strength * eps), style, color=color, label=label if is_first else None)
                error = jnp.abs(gain / exact - 1)
                right.loglog(eps, error, style, color=color, label=f"{label}, {f.name}")
        left.set_xscale("log")
        left.set_ylim(0, 26)
        left.set_ylabel(f"ln [er(C_f)/er(C)] / (αε), {num_units} units")
        right.set_ylabel("relative error of ln [er(C_f)/er(C)]")
        right.set_ylim(1e-8, 10)
        for axes in (left, right):
            axes.set_xlabel("ε = 1 - correlation before the activation")
        left.legend(fontsize=7, loc="upper right")
        right.legend(fontsize=7, loc="lower right")
    return figure


def frozen_against_alpha() -> "Figure":
    """A.3: frozen fraction against alpha along one-parameter families, two of which do not freeze."""
    scales, shifts = jnp.geomspace(0.3, 1e4, 40), jnp.linspace(2.0, -8.0, 40)
    ones = jnp.ones_like(shifts)
    families = (
        ("tanh(az), a → ∞", activation("tanh"), scales, 0 * scales),
        ("ReLU(z + b), b → -∞", activation("relu"), ones, shifts),
        ("sin(kz), k → ∞ (control)", activation("sin"), jnp.geomspace(1.0, 30.0, 40), 0 * shifts),
        ("LeakyReLU(z + b) (exception)", activation("leaky_relu"), ones, shifts),
    )
    with drawing(5.2, 3.4, DPI) as figure:
        axes = figure.subplots()
        for (label, f, scale, shift), color, style in zip(families, COLORS, ("-", "-", "--", "--"), strict=False):
            gain = 1 + alpha(f, scale, shift, centred=True)
            axes.semilogx(gain, frozen_fraction(f, scale, shift), style, color=color, label=label, marker=".")
        axes.set_xlabel("1 + α, centred")
        axes.set_ylabel("frozen fraction P(|f'| < 1e-4)")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(fontsize=8)
    return figure


def heat_maps(count: int) -> "Figure":
    """A.4: frozen fraction and alpha over scale and shift of the pre-activation."""
    scale, shift = jnp.geomspace(0.1, 100.0, count), jnp.linspace(-5.0, 5.0, count)
    grid = jnp.meshgrid(scale, shift, indexing="ij")
    names = ("relu", "selu", "tanh", "sigmoid")
    with drawing(8.4, 4.4, DPI) as figure:
        panels = figure.subplots(2, len(names), sharex=True, sharey=True)
        for column, name in enumerate(names):
            f = activation(name)
            # In units of the pre-activation's deviation: f(a (z + c)), so that a mean of 5 is as rare at every a.
            arguments = f, grid[0], grid[0] * grid[1]
            fraction = frozen_fraction(*arguments)
            strength = jnp.log10(1 + alpha(*arguments, centred=True))
            top = panels[0, column].pcolormesh(scale, shift, fraction.T, cmap="cividis", vmin=0, vmax=1)
            low = panels[1, column].pcolormesh(scale, shift, strength.T, cmap="viridis", vmin=0, vmax=2)
            panels[0, column].set_title(display(name), fontsize=9)
            panels[1, column].set_xlabel("scale a")
        for axes in panels.flat:
            axes.set_xscale("log")
            axes.set_xticks([0.1, 1, 10, 100])
            axes.grid(False)
        for axes in panels[:, 0]:
            axes.set_ylabel("shift c = b/a")
        figure.colorbar(top, ax=panels[0], label="frozen fraction", aspect=12)
        figure.colorbar(low, ax=panels[1], label="log10(1 + α), centred", extend="max", aspect=12)
    return figure


def kernel_maps(depth: int) -> "Figure":
    """Kernel maps, and correlations iterated over depth, uncentred and centred."""
    names = ("sigmoid", "exp", "relu", "gelu", "tanh")
    rho = jnp.linspace(-1.0, 1.0, 81)
    with drawing(8.4, 3.3, DPI) as figure:
        maps, uncentred, centred = figure.subplots(1, 3)
        for name, color in zip(names, COLORS, strict=False):
            f = activation(name)
            maps.plot(rho, kernel_map(f, rho), color=color, label=display(name))
            for axes, is_centred in ((uncentred, False), (centred, True)):

                def kernel(r, f=f, is_centred=is_centred):
                    return kernel_map(f, r, is_centred)

                path_over_depth = iterate_map(kernel, jnp.array([0.9]), depth)[:, 0]
                axes.plot(range(depth + 1), path_over_depth, color=color)
        maps.plot(rho, rho, ":", color="0.4", label="ρ")
        maps.set_xlabel("correlation before, ρ")
        maps.set_ylabel("κ(ρ), uncentred")
        maps.legend(fontsize=7)
        for axes, title in ((uncentred, "uncentred"), (centred, "centred")):
            axes.set_xlabel("layer")
            axes.set_ylabel(f"correlation, {title}")
            axes.set_ylim(-0.03, 1.03)
    return figure


def correlations_in_training(trained: dict[str, Any]) -> "Figure":
    """Correlations in every hidden layer of an MLP over the course of training."""
    fields = (
        ("polarisation", "polarisation, mean |2r - 1|"),
        ("near_zero", "pairs with r < 0.1"),
        ("near_one", "pairs with r > 0.9"),
    )
    with drawing(8.4, 3.0, DPI) as figure:
        panels = figure.subplots(1, len(fields))
        colors = mpl.colormaps["viridis"].resampled(len(trained["layers"]) + 1)
        for axes, (field, label) in zip(panels, fields, strict=True):
            for index, layer in enumerate(trained["layers"]):
                axes.plot(trained["steps"], np.array(trained[field])[:, index], color=colors(index), label=layer)
            axes.set_xlabel("SGD step")
            axes.set_ylabel(label)
        panels[2].legend(fontsize=8)
    return figure
