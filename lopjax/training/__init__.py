"""Training: steps, streams of batches, lanes, and the compiled chunks that put them together.

step = train_step on a batch            streams.py: where batches come from
chunk = make_chunk(step, stream)        lanes.py: many seeds of one program, over devices
lanes, logs = chunk(lanes, keys, start, num_steps, stream.data)
"""

from lopjax.training.chunks import Lanes, make_chunk, start_lanes
from lopjax.training.interventions import Intervention, Report, Setting, intervene, start_intervention
from lopjax.training.lanes import check_lanes, cut_batch, gathered, lane_mesh, over_lanes, place
from lopjax.training.preprocess import Preprocess, evaluate
from lopjax.training.steps import Logs, TrainState, init_state, logs_of, sgd_step, train_step
from lopjax.training.streams import Block, Drawn, Stream, Task, epochs, no_stream, online, tasks, windows

__all__ = [
    "Block",
    "Drawn",
    "Intervention",
    "Lanes",
    "Logs",
    "Preprocess",
    "Report",
    "Setting",
    "Stream",
    "Task",
    "TrainState",
    "check_lanes",
    "cut_batch",
    "epochs",
    "evaluate",
    "gathered",
    "init_state",
    "intervene",
    "lane_mesh",
    "logs_of",
    "make_chunk",
    "no_stream",
    "online",
    "over_lanes",
    "place",
    "sgd_step",
    "start_intervention",
    "start_lanes",
    "tasks",
    "train_step",
    "windows",
]
