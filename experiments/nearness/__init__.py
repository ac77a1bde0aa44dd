"""Nearness: does training come near to traps other than equal units (arXiv 2510.00304, open question 1)?

A stream of tasks, classes permuted from one to the next, under gradient descent and Adam. After every task: how far
each unit is from the nearest equal, sign or weighted clone and from vanishing, ReLU units from the level set of their
conserved quantity, and attention heads from one that is equal up to invertible maps of its coordinates. Each number is
compared with that of shuffled units, which have the same weights and no history:

    python -m experiments.nearness                  # three tasks, two seeds
    python -m experiments.nearness --preset full    # ten tasks, five seeds: 230 CPU seconds, compilation included
"""

from experiments.kit.experiment import Experiment, late
from experiments.nearness.config import PRESETS

EXPERIMENT = Experiment(
    name="nearness",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.nearness.setup:build"),
    parts=late("experiments.nearness.parts:parts"),
    summary=late("experiments.nearness.report:summarise"),
    table=late("experiments.nearness.report:table"),
    figures=late("experiments.nearness.figures:figures"),
    texts=late("experiments.nearness.report:texts"),
    networks=lambda config, setup: {name.replace(" ", "-"): model for name, model in setup.models.items()},
    probe=lambda config, setup: setup.batches["mlp relu"],
)
