"""Run folders: what a run was asked to do, what it measured, and what came out. Plain JSON that outlives the code.

`folder` writes them and says which may be used, `locks` sees to it that one process at a time does, `reading` reads
them back, `checkpoints` keeps state, `writers` shows records elsewhere, `provenance` says what the numbers follow from,
`records` are the lines of
`metrics.jsonl`, `plain` is the JSON.
"""

from lopjax.runs.checkpoints import CheckpointError
from lopjax.runs.errors import RunFolderError
from lopjax.runs.folder import Run, follow_run, open_run
from lopjax.runs.plain import write_json
from lopjax.runs.provenance import config_hash
from lopjax.runs.reading import RunData, load, load_all

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
