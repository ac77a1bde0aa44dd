"""Does recovery pay? A controller against nothing, constant noise, single remedies, and a fresh network.

All lanes are one program: what acts after the optimizer is a number of the lane. On two free CPU cores:

    python -m experiments.recovery                           # mixtures of Gaussians, tanh, Adam
    python -m experiments.recovery --preset random_labels    # digits with random labels
    python -m experiments.recovery --preset permuted_labels  # digits whose labels are permuted

The table has paired differences to the fresh network with intervals over seeds, what each method has cost (changes of
the parameters, jumps of the loss), and below it what each symptom is worth as a warning.
"""

from experiments.kit.experiment import Experiment, late
from experiments.recovery.config import PRESETS

EXPERIMENT = Experiment(
    name="recovery",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.recovery.parts:build"),
    parts=late("experiments.recovery.parts:parts"),
    summary=late("experiments.recovery.report:summarise"),
    table=late("experiments.recovery.report:table"),
    figures=late("experiments.recovery.report:figures"),
    texts=late("experiments.recovery.report:texts"),
    networks=lambda config, setup: {"network": setup.model},
    probe=lambda config, setup: setup.probe,
)
