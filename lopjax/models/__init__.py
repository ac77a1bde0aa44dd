"""Architectures: labelled Linen modules behind `Model(init, apply, wiring)`."""

from lopjax.model import Model, Tap, Variables
from lopjax.models.labels import labelled, tap
from lopjax.models.linen import from_linen
from lopjax.models.mlp import mlp
from lopjax.models.options import ACTIVATIONS

__all__ = ["ACTIVATIONS", "Model", "Tap", "Variables", "from_linen", "labelled", "mlp", "tap"]
