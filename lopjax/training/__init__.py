"""Training: steps, streams of batches, lanes, and the compiled chunks that combine them.

step = train_step on a batch            streams.py: where batches come from
chunk = make_chunk(step, stream)        lanes.py: many seeds of one program, over devices
lanes, logs = chunk(lanes, keys, start, num_steps, stream.data)
"""

from lopjax.training.bit_flipping import bit_flipping
from lopjax.training.chunks import Chunk, Lanes, make_chunk, start_lanes
from lopjax.training.interventions import Intervention, Report, Setting, intervene, start_intervention
from lopjax.training.lanes import check_lanes, cut_batch, gathered, lane_mesh, over_lanes, place
from lopjax.training.preprocess import AsStored, Preprocess, evaluate
from lopjax.training.steps import Logs, TrainState, init_state, logs_of, sgd_step, train_step
from lopjax.training.streams import Block, Drawn, Stream, Task, epochs, no_stream, online, tasks, windows
from lopjax.training.task_sequences import (
    class_incremental,
    gaussian_mixtures,
    permuted_labels,
    permuted_pixels,
    permuted_words,
    random_labels,
    texts,
)
from lopjax.training.task_streams import TaskSequence, task_examples, task_stream, upgd_toy

__all__ = [
    "AsStored",
    "Block",
    "Chunk",
    "Drawn",
    "Intervention",
    "Lanes",
    "Logs",
    "Preprocess",
    "Report",
    "Setting",
    "Stream",
    "Task",
    "TaskSequence",
    "TrainState",
    "bit_flipping",
    "check_lanes",
    "class_incremental",
    "cut_batch",
    "epochs",
    "evaluate",
    "gathered",
    "gaussian_mixtures",
    "init_state",
    "intervene",
    "lane_mesh",
    "logs_of",
    "make_chunk",
    "no_stream",
    "online",
    "over_lanes",
    "permuted_labels",
    "permuted_pixels",
    "permuted_words",
    "place",
    "random_labels",
    "sgd_step",
    "start_intervention",
    "start_lanes",
    "task_examples",
    "task_stream",
    "tasks",
    "texts",
    "train_step",
    "upgd_toy",
    "windows",
]
