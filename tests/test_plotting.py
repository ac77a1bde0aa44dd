"""Figures of runs: files on disk, no display, and everything a reader needs to read them."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from experiments.cloning.figures import cloning_figure
from lopjax.plotting import PALETTE, band, new_figure, save
from lopjax.runs import RunData

METHODS, SEEDS = ["sgd", "noisy_sgd"], [0, 1]


@pytest.fixture
def run(tmp_path) -> RunData:
    records = []
    for method, seed, epoch in itertools.product(METHODS, SEEDS, range(4)):
        record = {"method": method, "seed": seed, "phase": "clone", "epochs": epoch}
        record["clone/r2_forward/mean"] = 1.0 if method == "sgd" else 1 - 0.1 * epoch - 0.01 * seed
        for name in ("base", "clone"):
            record[f"{name}/effective_rank/mean"] = 10.0 + epoch
            if epoch:  # nothing has been trained at the first record
                record[f"{name}/train_loss"] = 2.0 - 0.1 * epoch
        records.append(record)
    return RunData(tmp_path, {"methods": METHODS, "seeds": SEEDS, "unit": "epochs"}, records, None, "cloning")


def test_the_cloning_figure_says_what_it_shows(run):
    figure = cloning_figure(run)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_xlabel() == "epochs since cloning"
        assert axes.get_ylabel()
    assert "nats" in figure.axes[1].get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["SGD", "noisy SGD", "clone", "base"]


def test_the_cloning_figure_draws_means_of_seeds(run):
    r2_axes, loss_axes, _ = cloning_figure(run).axes
    noisy = [line for line in r2_axes.lines if line.get_color() == PALETTE[1] and len(line.get_xdata())]
    np.testing.assert_allclose(noisy[0].get_ydata(), 1 - 0.1 * np.arange(4) - 0.005)
    # The loss has no value at cloning: its curve starts one record later, not at zero.
    np.testing.assert_array_equal(loss_axes.lines[0].get_xdata(), [1, 2, 3])


def test_bands_are_one_standard_deviation_wide(run):
    axes = new_figure(1)[1][0]
    band(axes, np.arange(2), [np.array([0.0, 1.0]), np.array([2.0, 1.0])], "k")
    edges = axes.collections[0].get_paths()[0].vertices
    np.testing.assert_allclose([edges[:, 1].min(), edges[:, 1].max()], [0, 2])
    one = new_figure(1)[1][0]
    band(one, np.arange(2), [np.array([0.0, 1.0])], "k")
    assert not one.collections


def test_saving_writes_png_and_pdf_beside_each_other(run, tmp_path):
    written = save(cloning_figure(run), tmp_path / "noise_0.01")
    assert [path.name for path in written] == ["noise_0.01.png", "noise_0.01.pdf"]
    assert written[0].read_bytes().startswith(b"\x89PNG")
    assert written[1].read_bytes().startswith(b"%PDF")


def test_a_seed_that_diverged_does_not_stop_the_figure(run):
    for record in run.records:
        if record["method"] == "noisy_sgd" and record["epochs"] > 1:
            record["clone/r2_forward/mean"] = None
    assert len(cloning_figure(run).axes) == 3


def test_colours_are_distinct():
    channels = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in PALETTE])
    apart = np.abs(channels[:, None] - channels[None]).max(axis=2)
    assert apart[~np.eye(len(PALETTE), dtype=bool)].min() > 40


def test_no_display_is_opened_and_no_global_style_changed():
    program = (
        "import matplotlib as mpl, numpy as np\n"
        "from lopjax import plotting\n"
        "before = [mpl.rcParams[name] for name in plotting.STYLE]\n"
        "figure, axes = plotting.new_figure(2)\n"
        "plotting.band(axes[0], np.arange(2), [np.zeros(2)], 'k')\n"
        "assert mpl.get_backend(auto_select=False) is None\n"
        "assert before == [mpl.rcParams[name] for name in plotting.STYLE] != list(plotting.STYLE.values())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
