"""Bit flipping (arXiv 2108.06325; Nature 632, 2024): online regression by small networks, a task every 10,000 steps.

Most input bits stay as they are for thousands of steps; a learner with few units tracks a target that is fixed, but too
rich for it. Does its error fall and then rise, and what keeps it down? On two CPU cores:

    python -m experiments.bit_flipping                            # 300,000 steps, 8 seeds, 4 methods: a minute
    python -m experiments.bit_flipping --preset paper             # 5 million steps, 30 seeds, every method
    python -m experiments.bit_flipping --preset widths            # 5 to 100 units: ranks and duplicates
    python -m experiments.bit_flipping --preset official_figure   # 2 optimizers, 6 activations, 3 step sizes, 100 seeds

The same commands run on an accelerator. An interrupted run goes on with --resume and ends with the same bits.
"""

from experiments.bit_flipping.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="bit_flipping",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.bit_flipping.setup:build"),
    parts=late("experiments.bit_flipping.parts:parts"),
    summary=late("experiments.bit_flipping.report:summarise"),
    table=late("experiments.bit_flipping.report:table"),
    figures=late("experiments.bit_flipping.figures:figures"),
)
