"""Experiment trackers that are modules with `init`, `log` and `finish`, like Weights & Biases."""

import importlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from lopjax.runs.curves import LANE, STEP, Record, lane_of, numbers_of, step_of
from lopjax.runs.plain import plain, untagged, write_json
from lopjax.runs.reading import description_of, run_id

_FUNCTIONS = ("init", "log", "finish")


class ModuleWriter:
    """Records in wandb, trackio or any similar module, with one tracker run per run folder.

    A number is named `<lane>/<name>`, such as `noisy_sgd/0/clone/loss`, so that the curves of one lane share a section.
    Their horizontal axis is the lane's own step, which starts at 0 for each lane. In wandb this is declared by
    `define_metric`; a module without it receives the step with each record.

    A resumed run continues the tracker's run. The number of records passed to the tracker is stored in
    `<folder>/writers/<module>.json`, and none is passed twice; as a resumed run has the same records, bit for bit, its
    curves are those of an uninterrupted run. If the process is killed, records still in the module's queue are lost;
    `metrics.jsonl` remains complete. Delete the file to pass all records again.
    """

    def __init__(self, module: str, lane: Sequence[str] = LANE, step: Sequence[str] = STEP, **settings: Any) -> None:
        """Import the module; no tracker run is created before the first record.

        Args:
            module: its name, `"wandb"` or `"trackio"`.
            lane: fields whose values name the curve.
            step: fields that count steps.
            settings: arguments of its `init`. Defaults, for the arguments that `init` has: `project` is the experiment,
                `name` the name of the folder with the first characters of the run's id, `id` that id, `config` the
                config, and `resume` is `"allow"`.

        Raises:
            ImportError: the module is not installed; the message says how to install it.
            ValueError: the module is not
                a tracker, or its `init` lacks one of the settings.
        """
        self._module = _tracker_module(module)
        self._parameters = _parameters(self._module, settings)
        self._lane, self._step, self._settings = tuple(lane), tuple(step), settings
        self._folder: Path | None = None
        self._run: Any = None
        self._lanes: set[str] = set()
        self._seen = 0  # records of the run so far
        self._sent = 0  # how many of them have been passed on so far

    def attach(self, folder: Path) -> None:
        """Attach to a run folder: its name, its config, and the number of records passed on."""
        if self._folder is None:
            self._folder = folder
            self._sent = max(self._sent, _sent(self._state_path, self._destination()))

    def restart(self, records: Iterable[Record]) -> None:
        """As in `Writer`, except that records already passed on remain there."""
        self._seen = 0
        self.write(records)

    def write(self, records: Iterable[Record]) -> None:
        """As in `Writer`; records that were passed on before are skipped."""
        records = list(records)
        new = records[max(0, self._sent - self._seen) :]
        self._seen += len(records)
        if not new:
            return
        if self._run is None:
            self._run = self._module.init(**self._arguments()) or self._module
        # Counted first: a crash in between loses these records in the tracker rather than showing them twice.
        self._sent = self._seen
        if self._folder is not None:
            self._state_path.parent.mkdir(exist_ok=True)
            write_json(self._state_path, {"sent": self._sent, "destination": self._destination()})
        for record in new:
            self._log(record)

    def close(self) -> None:
        """As in `Writer`; waits until the module has sent all records."""
        if self._run is not None:
            getattr(self._run, "finish", self._module.finish)()
            self._run = None
            self._lanes.clear()

    def _log(self, record: Record) -> None:
        lane, step = lane_of(record, self._lane), step_of(record, self._step)
        prefix = f"{lane}/" if lane else ""
        values = {prefix + name: number for name, number in numbers_of(record, (*self._lane, *self._step))}
        log = getattr(self._run, "log", self._module.log)
        if step is None:
            log(values)
        elif hasattr(self._run, "define_metric"):
            axis = prefix + next(field for field in self._step if field in record)
            if lane not in self._lanes:
                self._lanes.add(lane)
                self._run.define_metric(axis)
                self._run.define_metric(f"{prefix}*", step_metric=axis)
            log({axis: step, **values})
        else:
            log(values, step=step)

    def _arguments(self) -> dict[str, Any]:
        """The arguments of `init`."""
        if self._folder is None:
            return dict(self._settings)
        description, identity = description_of(self._folder), run_id(self._folder)
        defaults = {
            "project": description.get("experiment", self._folder.resolve().parent.name),
            "name": f"{self._folder.resolve().name}-{identity[:6]}",
            "id": identity,
            "config": untagged(description.get("config", {})),
            "resume": "allow",
        }
        return {**{name: value for name, value in defaults.items() if name in self._parameters}, **self._settings}

    @property
    def _state_path(self) -> Path:
        assert self._folder is not None
        return self._folder / "writers" / f"{self._module.__name__}.json"

    def _destination(self) -> dict[str, str]:
        """The destination of records: other settings mean another destination, which has no records yet."""
        return {name: repr(value) for name, value in sorted(self._settings.items())}


def _tracker_module(name: str) -> ModuleType:
    if not name or any(not part.isidentifier() for part in name.split(".")):
        raise ValueError(
            f"writer {name!r}: must be 'tensorboard' or the name of a module, such as 'wandb' or 'trackio'"
        )
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        missing = error.name or name
        what = f"no module {missing!r} is installed" if isinstance(error, ModuleNotFoundError) else str(error)
        raise ImportError(f"writer {name!r}: {what}; pip install {missing.split('.')[0]}") from error
    if lacking := [function for function in _FUNCTIONS if not callable(getattr(module, function, None))]:
        raise ValueError(
            f"writer {name!r}: this module has no {', '.join(lacking)}; a tracker has {', '.join(_FUNCTIONS)}, as "
            "wandb and trackio have"
        )
    return module


def _parameters(module: ModuleType, settings: Mapping[str, Any]) -> frozenset[str]:
    """Names of the arguments of `init`; all names used here if it takes arbitrary ones."""
    parameters = inspect.signature(module.init).parameters
    takes_any = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    if not takes_any and (unknown := sorted(set(settings) - set(parameters))):
        raise ValueError(f"{module.__name__}.init has no argument {', '.join(unknown)}; it has {sorted(parameters)}")
    return frozenset({*parameters, "project", "name", "id", "config", "resume"} if takes_any else parameters)


def _sent(path: Path, destination: Mapping[str, str]) -> int:
    """Number of records passed on to this destination, according to the file."""
    try:
        state = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return 0
    return state["sent"] if isinstance(state, dict) and state.get("destination") == plain(destination) else 0
