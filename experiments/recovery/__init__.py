"""Is a network that the controller has recovered as good as one drawn anew?

Small networks lose their plasticity on tasks of random labels. Then they meet one real task: untreated, under the
recovery controller, under noise that stays, under ReDo. Beside them go networks drawn anew that train on that task
alone, with the total budget and with that of the recovery. All are compared at its end and by how fast they learn the
next, as in `experiments.aftermath`. On two CPU cores:

    python -m experiments.recovery      # digits, ten seeds: about two minutes, compilation included
"""

from experiments.kit.experiment import Experiment, late
from experiments.recovery.config import PRESETS

EXPERIMENT = Experiment(
    name="recovery",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.recovery.setup:build"),
    parts=late("experiments.recovery.parts:parts"),
    summary=late("experiments.recovery.report:summarise"),
    table=late("experiments.recovery.report:table"),
    figures=late("experiments.recovery.report:figures"),
    texts=late("experiments.recovery.report:texts"),
    networks=lambda config, setup: {"network": setup.stream.model},
    probe=lambda config, setup: setup.probe,
)
"""`python -m experiments.recovery`."""
