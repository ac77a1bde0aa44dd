"""Run folders: the config, the measurements and the results of a run, in plain JSON that outlives the code.

`folder` decides which folder may be used, `run` writes into it, `schedule` executes the parts of a run, `reading` reads
it back. `locks` ensures that only one process writes at a time, `checkpoints` saves state, `networks` records how
networks are made, `provenance` records versions and the config's hash, `records` handles the lines of `metrics.jsonl`;
`writers` show them elsewhere, in TensorBoard or the modules of `trackers`. `plain` converts values to JSON.
"""

from lopjax.runs.checkpoints import CheckpointError
from lopjax.runs.errors import RunFolderError
from lopjax.runs.folder import follow_run, open_run
from lopjax.runs.plain import write_json
from lopjax.runs.provenance import config_hash
from lopjax.runs.reading import RunData, load, load_all
from lopjax.runs.run import Run

__all__ = [
    "CheckpointError",
    "Run",
    "RunData",
    "RunFolderError",
    "config_hash",
    "follow_run",
    "load",
    "load_all",
    "open_run",
    "write_json",
]
