"""Run folders: what a run was asked to do, what it measured, and what came out. Plain JSON that outlives the code.

`folder` says which folder may be used, `run` writes into it, `schedule` plays the parts of a run, `reading` reads it
back. `locks` sees to it that one process at a time writes, `checkpoints` keeps state, `networks` how networks are made,
`provenance` what the numbers follow from, `records` the lines of `metrics.jsonl`; `writers` show them elsewhere, in
TensorBoard or the modules of `trackers`. `plain` is the JSON.
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
