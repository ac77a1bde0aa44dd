"""Run an experiment at every point of a grid over any of its flags, one job per point.

    python -m experiments.sweep cloning --grid "net.widths=16 16,32 32" --grid factor=2,3
    python -m experiments.sweep cloning --grid seeds=0,1,2 --executor slurm --partition gpu -- --preset paper

A grid over numbers that can be lanes of one program runs faster with the experiment's own --grid. Here each point is a
separate process: `python -m experiments.<name> --resume` with the flags of the point and those after `--`. Jobs share
only the folder runs/<experiment>/<name>, in which each point has a folder; a sweep that is started again continues
with the points that are not complete. `python -m experiments.show runs/<experiment>/<name>` prints the grid.

Needs submitit: pip install 'lopjax[sweep]'.
"""

import itertools
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from experiments.kit.experiment import find
from experiments.kit.flags import parse
from experiments.kit.session import refuse
from experiments.kit.terminal import Table

if TYPE_CHECKING:
    from lopjax.runs import RunData


@dataclass(frozen=True)
class Arguments:
    """The experiment, the grid and the resources."""

    experiment: Annotated[str, tyro.conf.Positional]
    """Name of the experiment, such as cloning."""
    grid: tyro.conf.UseAppendAction[tuple[str, ...]] = field(default=())
    """An axis, FLAG=VALUE,VALUE: a flag without its dashes, values with several words as "net.widths=16 16,32 32"."""
    name: str = "sweep"
    """Name of the folder of the sweep."""
    root: Path = Path("runs")
    """Folder of all runs."""
    executor: Literal["local", "slurm"] = "local"
    """Where jobs run: processes of this machine, or Slurm."""
    jobs: int = 1
    """Number of jobs that run at once."""
    minutes: int = 60
    """Time limit of a job."""
    cpus: int = 2
    """Processors per job, on Slurm."""
    gpus: int = 0
    """Accelerators per job, on Slurm."""
    memory_gb: int = 8
    """Memory per job, on Slurm."""
    partition: str = ""
    """Slurm partition."""


class Job:
    """One point of a grid, run by submitit: an experiment's own command in a separate process."""

    def __init__(self, command: Sequence[str]) -> None:
        """The command of a point."""
        self.command = list(command)

    def __call__(self) -> int:
        """Run it and return its exit status."""
        return subprocess.run(self.command, check=False).returncode

    def checkpoint(self) -> Any:
        """What Slurm starts instead after preemption: the same command, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, submit every point, wait for local ones; exit status 1 if one of them failed."""
    words = list(sys.argv[1:] if argv is None else argv)
    of_sweep, flags = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    arguments = tyro.cli(Arguments, prog="python -m experiments.sweep", description=__doc__, args=of_sweep)
    try:
        find(arguments.experiment)
        if arguments.jobs < 1:
            raise ValueError(f"--jobs={arguments.jobs}: must be at least 1")
        points = points_of(arguments.grid)
        folder = arguments.root / arguments.experiment / arguments.name
        executor = executor_of(arguments, folder)
        check_flags(arguments, points[0], flags)
        write_plan(folder, arguments, points, flags)
    except (ValueError, OSError, ImportError) as error:
        refuse("sweep", error)
    print(f"{len(points)} jobs in {folder}; python -m experiments.show {folder}", file=sys.stderr)
    try:
        jobs = submit(executor, [command_of(arguments, point, flags) for point in points])
    except KeyboardInterrupt:
        print("interrupted: the same command continues with the points that are not complete", file=sys.stderr)
        raise SystemExit(130) from None
    if arguments.executor == "local" and any([job.result() for job in jobs]):
        refuse("sweep", f"not every point was completed; logs are in {folder / 'jobs'}")


def points_of(grid: Sequence[str]) -> list[dict[str, str]]:
    """Every point of a grid: `{flag: words}`.

    Raises:
        ValueError: no axis, a repeated axis, or one that is not FLAG=VALUE,VALUE.

    Example:
        >>> points_of(["factor=2,3", "net.widths=16 16"])
        [{'factor': '2', 'net.widths': '16 16'}, {'factor': '3', 'net.widths': '16 16'}]
    """
    axes = []
    for text in grid:
        flag, equals, values = text.partition("=")
        if not (flag and equals and all(value.strip() for value in values.split(","))):
            raise ValueError(f"--grid {text!r}: must be a flag and values, factor=2,3")
        axes.append([(flag.strip().lstrip("-").replace("_", "-"), value.strip()) for value in values.split(",")])
    flags = [axis[0][0] for axis in axes]
    if not axes or len(set(flags)) < len(flags):
        raise ValueError(f"--grid: must be given once for each flag, at least once, got {list(grid)}")
    points = [dict(point) for point in itertools.product(*axes)]
    if len({name_of(point) for point in points}) < len(points):
        raise ValueError(f"--grid: its values must be distinct, also as names of folders, got {list(grid)}")
    return points


def name_of(point: Mapping[str, str]) -> str:
    """Name of the run folder of a point: `factor=2,net.widths=16_16`."""
    return ",".join(f"{flag}={value}" for flag, value in point.items()).replace(" ", "_").replace("/", "-")


def command_of(arguments: Arguments, point: Mapping[str, str], flags: Sequence[str]) -> list[str]:
    """The command line of a point."""
    where = ["--root", str(arguments.root), "--name", f"{arguments.name}/{name_of(point)}", "--resume"]
    of_point = [word for flag, value in point.items() for word in (f"--{flag}", *value.split())]
    return [sys.executable, "-m", f"experiments.{arguments.experiment}", *flags, *of_point, *where]


def check_flags(arguments: Arguments, point: Mapping[str, str], flags: Sequence[str]) -> None:
    """Read the flags of a point, so that a mistake in them is reported now, and not once per job.

    Raises:
        SystemExit: with status 2, after a message.
    """
    parse(find(arguments.experiment), command_of(arguments, point, flags)[3:])


def write_plan(folder: Path, arguments: Arguments, points: Sequence[Mapping[str, str]], flags: Sequence[str]) -> None:
    """Write `sweep.json`, by which `experiments.show` recognises the folder.

    Raises:
        ValueError: the folder holds another sweep, or a run.
    """
    from lopjax.runs import write_json

    plan = {"experiment": arguments.experiment, "grid": list(arguments.grid), "flags": list(flags)}
    plan["points"] = [{"name": name_of(point), **point} for point in points]
    if (folder / "config.json").exists():
        raise ValueError(f"{folder}: is a run; choose another --name")
    if (folder / "sweep.json").exists() and json.loads((folder / "sweep.json").read_text(encoding="utf-8")) != plan:
        raise ValueError(f"{folder}: holds another sweep; choose another --name")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "sweep.json", plan)


def executor_of(arguments: Arguments, folder: Path) -> Any:
    """The submitit executor that the flags ask for.

    Raises:
        ImportError: submitit is not installed.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("sweeps need submitit: pip install 'lopjax[sweep]'") from error
    if arguments.executor == "local":
        executor = submitit.LocalExecutor(folder / "jobs")
        executor.update_parameters(timeout_min=arguments.minutes)
        return _Limited(executor, arguments.jobs)
    executor = submitit.SlurmExecutor(folder / "jobs")
    executor.update_parameters(
        job_name=f"{arguments.experiment}-{arguments.name}",
        time=arguments.minutes,
        cpus_per_task=arguments.cpus,
        mem=f"{arguments.memory_gb}GB",
        array_parallelism=arguments.jobs,
        **({"gpus_per_node": arguments.gpus} if arguments.gpus else {}),
        **({"partition": arguments.partition} if arguments.partition else {}),
    )
    return executor


class _Limited:
    """A local executor that runs a few jobs at once: submitit's own starts all of them."""

    def __init__(self, executor: Any, jobs: int) -> None:
        self.executor, self.jobs = executor, jobs

    def map_array(self, function: Any, given: Sequence[Any]) -> list[Any]:
        """Submit each command as soon as there is room."""
        submitted: list[Any] = []
        for command in given:
            while sum(not job.done() for job in submitted) >= self.jobs:
                submitted[-1].wait() if self.jobs == 1 else next(j for j in submitted if not j.done()).wait()
            submitted.append(self.executor.submit(command))
        return submitted


def submit(executor: Any, commands: Sequence[Sequence[str]]) -> list[Any]:
    """Submit all commands."""
    jobs = [Job(command) for command in commands]
    if isinstance(executor, _Limited):
        return executor.map_array(None, jobs)
    with executor.batch():
        return [executor.submit(job) for job in jobs]


def grid_table(folder: Path, found: "Sequence[RunData]") -> Table:
    """The rows of every point's table, preceded by the point's values."""
    plan = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    experiment, by_name = find(plan["experiment"]), {run.folder.name: run for run in found}
    flags = [name for name in plan["points"][0] if name != "name"]
    rows, columns = [], ()
    for point in plan["points"]:
        values, run = [point[flag] for flag in flags], by_name.get(point["name"])
        if run is None or not run.records:
            rows.append((*values, "not started"))
            continue
        table = experiment.table(run)
        columns = columns or tuple(table.columns)
        state = "" if run.is_complete else " (not complete)"
        rows += [(*values, f"{row[0]}{state}", *row[1:]) for row in table.rows]
    width = len(flags) + max(len(columns), 1)
    padded = [(*row, *["-"] * (width - len(row))) for row in rows]
    done = sum(run.is_complete for run in found)
    return Table(
        f"{folder}: {done} of {len(plan['points'])} points complete", (*flags, *(columns or ("state",))), padded
    )


if __name__ == "__main__":
    main()
