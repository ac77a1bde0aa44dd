"""Architectures: labelled Linen modules behind `Model(init, apply, wiring)`."""

from lopjax.model import Model, Tap, Variables
from lopjax.models.check import check_labels, check_wiring
from lopjax.models.cnn import cnn
from lopjax.models.constructors import recorded
from lopjax.models.convolution import convolve
from lopjax.models.gpt import gpt
from lopjax.models.labels import coordinates, couple, labelled, permutable, tap
from lopjax.models.linen import from_linen
from lopjax.models.mlp import mlp
from lopjax.models.options import ACTIVATIONS
from lopjax.models.resnet import resnet18
from lopjax.models.vit import vit

__all__ = [
    "ACTIVATIONS",
    "Model",
    "Tap",
    "Variables",
    "check_labels",
    "check_wiring",
    "cnn",
    "convolve",
    "coordinates",
    "couple",
    "from_linen",
    "gpt",
    "labelled",
    "mlp",
    "permutable",
    "recorded",
    "resnet18",
    "tap",
    "vit",
]
