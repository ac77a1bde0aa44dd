"""Run the sections, each in a separate process and within its share of the time; write every row as it is measured.

    python -m benchmarks.gpu FOLDER [--seconds 470] [--sections rates checks ...] [--smoke]

`gpu.md` has the tables, `gpu.json` the same numbers, `log.txt` other output of the processes. A section that exceeds
its share is stopped; its rows so far are kept.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.gpu.report import Report

MARK = "ROW "


class Section(NamedTuple):
    """The measurements of one process.

    Attributes:
        title: title of its table.
        seconds: its share of the time.
    """

    title: str
    seconds: float


# In order of importance and cost of compilation: the last ones are left out when time runs out.
SECTIONS = {
    "rates": Section("Rates of the machine", 35),
    "checks": Section("What must hold on any machine", 75),
    "steps:mlp 5x256": Section("Training step: lopjax", 45),
    "torch:mlp 5x256": Section("Training step: PyTorch", 35),
    "steps:vit": Section("Training step: lopjax", 60),
    "torch:vit": Section("Training step: PyTorch", 45),
    "noise": Section("Noisy step against plain", 50),
    "hvp": Section("Products with the Hessian, in gradients", 40),
    "bits": Section("Bit flipping", 45),
    "clones": Section("Stability of the cloned 5x128 network", 60),
    "steps:cnn 64-128-256": Section("Training step: lopjax", 60),
    "torch:cnn 64-128-256": Section("Training step: PyTorch", 45),
    "steps:resnet18": Section("Training step: lopjax", 110),
    "torch:resnet18": Section("Training step: PyTorch", 70),
}
SMOKE = ("rates", "checks", "steps:mlp 5x256", "torch:mlp 5x256", "noise", "hvp", "bits", "clones")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure everything that fits into the time."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=str(__doc__))
    parser.add_argument("folder", type=Path, help="folder of the tables")
    parser.add_argument("--seconds", type=float, default=470, help="seconds for everything (default 470)")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), help="sections, in this order (default all)")
    parser.add_argument("--smoke", action="store_true", help="tiny networks on a CPU, all in one process")
    args = parser.parse_args(argv)
    if args.seconds <= 0:
        parser.error(f"--seconds={args.seconds}: must be positive")
    args.folder.mkdir(parents=True, exist_ok=True)
    report, stop = Report(args.folder, {name: section.title for name, section in SECTIONS.items()}), time.monotonic()
    stop += args.seconds
    if args.smoke:
        # One process, because most of the time would be spent on starting others.
        measure(list(args.sections or SMOKE), args.seconds, report, args.folder, is_small=True)
    else:
        for name in args.sections or SECTIONS:
            seconds = min(SECTIONS[name].seconds, stop - time.monotonic())
            measure([name], seconds, report, args.folder, is_small=False)
    print(f"{args.folder / 'gpu.md'}: {report.num_rows()} rows")
    return 0 if report.num_rows() else 1


def measure(names: list[str], seconds: float, report: Report, folder: Path, is_small: bool) -> None:
    """Run sections in one process, as time allows."""
    if seconds < 8:
        report.add(names[0], {"case": _subject(names[0]), "note": "left out: out of time"})
        return
    command = [sys.executable, "-m", "benchmarks.gpu.section", *names]
    command += [f"--seconds={seconds}", f"--rates={json.dumps(report.rates())}", *(["--small"] if is_small else [])]
    run_process(command, names, seconds, report, folder, {**os.environ, "JAX_PLATFORMS": "cpu"} if is_small else None)


def run_process(
    command: list[str],
    names: list[str],
    seconds: float,
    report: Report,
    folder: Path,
    environment: dict[str, str] | None = None,
) -> None:
    """Run a process that prints rows of some sections; add them to the report, and kill it when its time is up."""
    began = time.monotonic()
    with (folder / "log.txt").open("a") as log:
        log.write(f"# {', '.join(names)}\n")
        log.flush()
        # A separate session, so that compilers that it starts end with it.
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment, start_new_session=True
        )
        last = names[0]
        for line in _lines(process, began + seconds):
            if line.startswith(MARK):
                row = json.loads(line.removeprefix(MARK))
                last = row.pop("section")
                report.add(last, row)
                print(f"{time.monotonic() - began:6.1f} s  {last}: {report.line(row)}", flush=True)
            else:
                log.write(line)
        is_late = process.poll() is None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        code = process.wait()
    took = time.monotonic() - began
    if is_late:
        report.add(last, {"case": _subject(last), "note": f"the rest left out: out of time after {took:.0f} s"})
    elif code:
        report.add(last, {"case": _subject(last), "note": f"ended with code {code}: log.txt"})
    report.spent(names, took)


def _subject(name: str) -> str:
    return name.partition(":")[2] or name


def _lines(process: "subprocess.Popen[str]", deadline: float) -> Iterator[str]:
    """Lines that a process prints, until it ends or its time is up."""
    assert process.stdout is not None
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    while (left := deadline - time.monotonic()) > 0:
        try:
            line = lines.get(timeout=left)
        except queue.Empty:
            return
        if line is None:
            process.wait(timeout=max(left, 1))
            return
        yield line


def _read(stream: IO[str], lines: "queue.Queue[Any]") -> None:
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


if __name__ == "__main__":
    sys.exit(main())
