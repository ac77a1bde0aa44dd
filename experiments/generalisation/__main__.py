"""`python -m experiments.generalisation`."""

from collections.abc import Sequence

from experiments.generalisation import EXPERIMENT
from experiments.kit import experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    experiment.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()
