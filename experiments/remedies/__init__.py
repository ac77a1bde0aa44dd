"""Remedies against loss of plasticity, side by side: one table of methods x streams, each tuned with the same budget.

Every method has the same number of settings, tried on the same tuning seeds; the best by online score is then run on
other seeds, beside the plain optimizer and a network drawn anew for every task, all on the same batches.

    python -m experiments.remedies                  # one stream, two methods, cut short
    python -m experiments.remedies --preset full    # four streams, twenty-five methods: two hours; --resume goes on
"""

from experiments.kit.experiment import Experiment, late
from experiments.remedies.config import PRESETS

EXPERIMENT = Experiment(
    name="remedies",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.remedies.streams:build"),
    parts=late("experiments.remedies.parts:parts"),
    summary=late("experiments.remedies.report:summarise"),
    table=late("experiments.remedies.report:table"),
    figures=late("experiments.remedies.figures:figures"),
    texts=late("experiments.remedies.report:texts"),
    networks=lambda config, setup: {name: bench.model for name, bench in setup.benches.items()},
)
