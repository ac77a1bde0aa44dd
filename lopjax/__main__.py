"""`python -m lopjax doctor RUN_OR_CHECKPOINT`: what is wrong with a network, and what would mend it."""

import sys
from collections.abc import Sequence

USAGE = "usage: python -m lopjax doctor RUN_OR_CHECKPOINT [--data batch.npz] [--network package.module:make]"


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, examine and print. The one place of the library that prints."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] != ["doctor"]:
        print(USAGE, file=sys.stderr)
        raise SystemExit(0 if words[:1] in (["-h"], ["--help"]) else 2)
    try:
        import tyro

        from lopjax.doctor.command import Arguments, examine_path
    except ImportError as error:
        raise SystemExit(f"doctor: {error}; install lopjax[experiments]") from error
    arguments = tyro.cli(Arguments, prog="python -m lopjax doctor", description=__doc__, args=words[1:])
    try:
        text, files = examine_path(arguments)
    except (OSError, ValueError) as error:
        print(f"doctor: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    _show(text)
    for file in files:
        print(file)


def _show(text: str) -> None:
    """Print with numbers and names in colour on a terminal, as plain text elsewhere."""
    if not sys.stdout.isatty():
        print(text)
        return
    from rich.console import Console

    Console().print(text, markup=False)


if __name__ == "__main__":
    main()
