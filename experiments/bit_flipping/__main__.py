"""`python -m experiments.bit_flipping`."""

from collections.abc import Sequence

from experiments.bit_flipping import EXPERIMENT
from experiments.kit import experiment


def main(argv: Sequence[str] | None = None) -> None:
    """Run the experiment."""
    experiment.main(EXPERIMENT, argv)


if __name__ == "__main__":
    main()
