"""Cloning (arXiv 2510.00304, figure 2.1 and C.5-C.11): can training leave the manifold of cloned units?

A base network is trained, cloned, and base and clone go on side by side on the same batches. SGD and Adam cannot tell
clones apart, so these stay; noise and dropout can. What to expect, on two CPU cores:

    python -m experiments.cloning                     # digits, under a minute: R² 1 for SGD and Adam, else 0.75-0.85
    python -m experiments.cloning --release-at 2000   # SGD's clones, verified trapped, then let go with every method
    python -m experiments.cloning --model vit         # or cnn, resnet18: a small one on digits, one to two minutes
    python -m experiments.cloning --model gpt         # a small causal transformer on text that ships with Python
    python -m experiments.cloning --preset paper      # CIFAR-10, 20 + 500 epochs, 5 seeds: a day on two CPU cores
    python -m experiments.cloning --preset reference  # CIFAR-10, 5 + 10 epochs, 3 seeds: ten minutes, docs/cloning.md

A complete run is shown, not repeated. One that was interrupted, even by a crash, goes on with --resume and ends with
the same bits as if nothing had happened; `lopjax.runs.load` reads what it has recorded so far.
"""

from experiments.cloning.config import PRESETS
from experiments.kit.experiment import Experiment, late
from experiments.kit.methods import NUMBERS

EXPERIMENT = Experiment(
    name="cloning",
    description=str(__doc__),
    presets=PRESETS["mlp"],
    variants=PRESETS,
    build=late("experiments.cloning.setup:build"),
    parts=late("experiments.cloning.parts:parts"),
    summary=late("experiments.cloning.report:summarise"),
    table=late("experiments.cloning.report:table"),
    figures=late("experiments.cloning.figures:figures"),
    networks=lambda config, setup: {"base": setup.base, "clone": setup.wide},
    probe=late("experiments.cloning.setup:probe"),
    is_spread=True,
    traced=NUMBERS,
)
