"""Does the rank of representations cause plasticity? Networks of one function and different ranks learn the same tasks.

Nobody sets rank by itself: a regulariser of rank changes the function and the gradients, too. Clones can. From one
checkpoint every *arm* makes a network with the same outputs: its width doubled by clones (rank as it was, traps added),
clones split by a kick that no output sees (rank as it was, free to grow), units woken (rank raised at once), the same
confined to where clones trap (rank raised, nothing free). All meet the same next tasks, beside networks drawn anew.

    python -m experiments.rank_causality                  # one task and network, 10 seeds: a minute
    python -m experiments.rank_causality --preset paper   # 2 tasks x 2 activations x 2 sizes, 20 seeds: a quarter hour
    python -m experiments.rank_causality --preset mixtures   # mixtures of Gaussians in the plane: minutes
"""

from experiments.kit.experiment import Experiment, late
from experiments.rank_causality.config import PRESETS

EXPERIMENT = Experiment(
    name="rank_causality",
    description=str(__doc__),
    presets=PRESETS,
    build=late("experiments.rank_causality.setup:build"),
    parts=late("experiments.rank_causality.parts:parts"),
    summary=late("experiments.rank_causality.report:summarise"),
    table=late("experiments.rank_causality.report:table"),
    texts=late("experiments.rank_causality.report:texts"),
    figures=late("experiments.rank_causality.figures:figures"),
    networks=late("experiments.rank_causality.setup:networks"),
)
