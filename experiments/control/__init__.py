"""Control: does an agent that meets one physics after the other lose plasticity, and do the same remedies help?

PPO in pure JAX on CartPole, Acrobot and MountainCar of gymnax, whose gravity, link length or observations change from
task to task; beside every agent a new one for each task, on the same tasks and keys. Needs `pip install -e ".[rl]"`.

    python -m experiments.control                        # CartPole with drifting gravity, cut short
    python -m experiments.control --preset stationary    # the three published levels, ten seeds
"""

from experiments.control.config import PRESETS
from experiments.kit.experiment import Experiment, late

EXPERIMENT = Experiment(
    name="control",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.control.setup:build"),
    parts=late("experiments.control.parts:parts"),
    summary=late("experiments.control.report:summarise"),
    table=late("experiments.control.report:table"),
    figures=late("experiments.control.figures:figures"),
    texts=late("experiments.control.report:texts"),
    networks=lambda config, setup: {name: bench.model for name, bench in setup.benches.items()},
)
