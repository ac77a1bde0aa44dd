"""`python -m experiments.formation`."""

from collections.abc import Sequence

from experiments.formation import EXPERIMENT
from experiments.kit import experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    experiment.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()
