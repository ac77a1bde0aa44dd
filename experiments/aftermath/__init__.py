"""What is left after an escape (arXiv 2510.00304, its open question 2): is a network that has left its clones as good?

A small network is trained, doubled by cloning, and goes on: trapped, or freed by noise, by a kick at the critical scale
of linear theory, or by splitting clones. Beside it go on the small network itself, and networks of the doubled size
drawn anew, with the total budget and with that of the clones alone. Then all meet another task. On two CPU cores:

    python -m experiments.aftermath                                  # digits, ten seeds: 72 s, compilation included
    python -m experiments.aftermath --preset cifar10 --data-dir DATA # 8x8 averages, ten seeds: 5 CPU minutes
"""

from experiments.aftermath.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="aftermath",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.aftermath.setup:build"),
    parts=late("experiments.aftermath.parts:parts"),
    summary=late("experiments.aftermath.report:summarise"),
    table=late("experiments.aftermath.report:table"),
    figures=late("experiments.aftermath.figures:figures"),
    networks=lambda config, setup: {"base": setup.narrow, "clone": setup.wide},
    probe=late("experiments.aftermath.setup:probe"),
)
