"""`python -m lopjax.data prepare NAME`: makes a data set ready for `lopjax.data.load`."""

import argparse
import sys
import warnings
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
        "without TensorFlow. CIFAR-10, CIFAR-100 and Tiny ImageNet are written without TensorFlow too.",
    )
    command.add_argument("name", help='for example "cifar10", "tiny_imagenet", "mnist", "imagenet_resized/32x32"')
    command.add_argument("--data-dir", help="default: $TFDS_DATA_DIR, then ~/tensorflow_datasets")
    command.add_argument(
        "--archive",
        help="for use offline: the authors' cifar-10-binary.tar.gz, cifar-100-binary.tar.gz or tiny-imagenet-200.zip",
    )
    options = parser.parse_args(arguments)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always", UserWarning)
            folder = prepare(options.name, options.data_dir, options.archive)
    except (ImportError, OSError, ValueError) as error:
        parser.exit(1, f"error: {error}\n")
    for warning in warned:
        print(f"note: {warning.message}", file=sys.stderr)
    print(f"Ready: {folder}")


if __name__ == "__main__":
    main()
