"""`python -m lopjax.data prepare NAME`: makes a data set ready for `lopjax.data.load`."""

import argparse
from collections.abc import Sequence

from lopjax.data.prepare import prepare


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m lopjax.data", description="Data sets for lopjax.")
    commands = parser.add_subparsers(required=True, metavar="command")
    command = commands.add_parser(
        "prepare",
        help="download a set of TensorFlow Datasets and write it as array_record files",
        description="Downloads a set of TensorFlow Datasets and writes it as array_record files, which are read "
        "without TensorFlow. CIFAR-10 is written without TensorFlow too.",
    )
    command.add_argument("name", help='for example "cifar10", "mnist", "imagenet_resized/32x32"')
    command.add_argument("--data-dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    command.add_argument("--archive", help="cifar10 only: the authors' cifar-10-binary.tar.gz, for use offline")
    options = parser.parse_args(arguments)
    try:
        folder = prepare(options.name, options.data_dir, options.archive)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Ready: {folder}")


if __name__ == "__main__":
    main()
