"""Escape (arXiv 2510.00304, its next check 1): how long clones take to leave their manifold, and how surely they do.

Base networks are trained and cloned; every clone goes on at one point of a grid over noise, its decay, dropout,
learning rate, momentum and weight decay. The whole grid, twenty seeds per point, is one compiled program. What to
expect, on two CPU cores:

    python -m experiments.escape                # digits, a minute: nothing leaves without noise or dropout
    python -m experiments.escape --model cnn    # or vit: six points on a small one, minutes
"""

from experiments.escape.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="escape",
    description=str(__doc__),
    presets=PRESETS["mlp"],
    variants=PRESETS,
    build=late("experiments.escape.setup:build"),
    parts=late("experiments.escape.parts:parts"),
    summary=late("experiments.escape.report:summarise"),
    table=late("experiments.escape.report:table"),
    figures=late("experiments.escape.figures:figures"),
    networks=lambda config, setup: {"base": setup.base, "clone": setup.wide},
    probe=late("experiments.escape.setup:probe"),
    is_spread=True,
)
