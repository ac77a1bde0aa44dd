"""One table, and one figure of methods x streams, of runs that were made in parts.

    python -m experiments.remedies.together RUN RUN ... --into FOLDER

Runs may differ in streams and methods, in nothing else: seeds, the sizes of a stream and the scores of the controls on
it have to be the same. A method is taken from the first run that has it whole.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.remedies.methods import CONTROLS, METHODS, lanes_of

if TYPE_CHECKING:
    from lopjax.runs import RunData

SAME = ("seeds", "tuning_seeds")
# Online scores of a control in two runs may differ by this much.
ROUNDING = 1e-6


def together(runs: "Sequence[RunData]") -> "RunData":
    """The runs as one, with its summary.

    The cost of a method stays relative to the plain optimizer of its own run, which met the same load of the machine.

    Raises:
        ValueError: runs of one stream that differ in seeds, in its sizes, or in a control; names it.
    """
    from experiments.remedies.report import cost, summarise

    sources: dict[tuple[str, str], RunData] = {}
    first: dict[str, RunData] = {}
    for run in runs:
        places = _whole(run)
        # Only a stream with both controls can be compared, with fresh networks and with the other runs.
        streams = [name for name in run.config["streams"] if all((name, control) in places for control in CONTROLS)]
        for stream in streams:
            _check_same(run, first.setdefault(stream, run), stream)
        sources = {place: run for place in places if place[0] in streams} | sources
    config = {**runs[0].config, **{stream: run.config[stream] for stream, run in first.items()}}
    config |= {
        "streams": tuple(first),
        "methods": tuple(name for name in METHODS if any(m == name for _, m in sources)),
    }
    parts = [run.select(stream=stream, method=method) for (stream, method), run in sources.items()]
    records = [record for part in parts for record in part]
    merged = runs[0]._replace(config=config, records=records, summary=None)
    rows: list[dict[str, Any]] = [
        {**row, "cost": cost(sources[row["stream"], row["method"]], row["stream"], row["method"])}
        for row in summarise(merged)
    ]
    return merged._replace(summary=rows)


def _whole(run: "RunData") -> list[tuple[str, str]]:
    """Streams and methods of which a run has every record of the evaluation."""
    from experiments.remedies.report import BASES, curves

    return [
        (stream, method)
        for stream in run.config["streams"]
        for method in lanes_of(tuple(run.config["methods"]), BASES[stream])
        if curves(run, stream, method, "task").shape[1] == _num_records(run, stream)
    ]


def _num_records(run: "RunData", stream: str) -> int:
    return run.config[stream]["num_tasks"] // run.config[stream]["tasks_per_record"]


def _check_same(run: "RunData", first: "RunData", stream: str) -> None:
    """Refuse a run that is not a part of the same table."""
    import numpy as np

    from experiments.remedies.report import curves

    for name in (*SAME, stream):
        if run.config[name] != first.config[name]:
            raise ValueError(f"{run.folder}: {name}={run.config[name]}, and {first.folder} has {first.config[name]}")
    for control in CONTROLS:
        scores = [curves(one, stream, control, "online") for one in (first, run)]
        if not np.allclose(*scores, rtol=0, atol=ROUNDING, equal_nan=True):
            raise ValueError(
                f"{run.folder}: {control} on {stream} has other scores than in {first.folder}; the code is not the same"
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table and the figure into a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--into", required=True, type=Path, help="folder for table.md and the figure")
    args = parser.parse_args(argv)
    from experiments.remedies.figures import methods_and_streams
    from experiments.remedies.report import texts
    from lopjax import runs
    from lopjax.plotting import save

    try:
        merged = together([runs.load(folder) for folder in args.runs])
    except (ValueError, OSError) as error:
        parser.error(str(error))
    args.into.mkdir(parents=True, exist_ok=True)
    for name, text in texts(merged).items():
        (args.into / name).write_text(text, encoding="utf-8")
    save(methods_and_streams(merged), args.into / "remedies_methods_and_streams")


if __name__ == "__main__":
    main()
