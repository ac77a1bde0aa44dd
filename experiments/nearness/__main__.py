"""`python -m experiments.nearness`."""

from collections.abc import Sequence

from experiments.kit import experiment
from experiments.nearness import EXPERIMENT


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    experiment.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()
