"""Rows of functions that make an optimizer of numbers: what it does with a kernel and its gradients in two steps."""

from functools import partial

import jax
import numpy as np

from input_table import Row, Subject
from input_table.of_networks import is_number, model_of, variables_of
from lopjax import manifolds, optim

KERNEL = {"w": np.array([[1.0, -1, 0, 2], [0, 2, 1, 1], [2, 0, -1, 1]])}
GRADIENT = {"g": np.array([[0.0, 1, -1, 2], [0, 0, 1, 0], [0, 2, -1, 1]])}
SETTINGS = {"rate": 0.25, "decay": 0.5, "scale": 2.0**-14}
"""Numbers that configure. A noise of that scale is what `rtol` allows: it is drawn in the type of the parameters."""
NO_BATCH = dict.fromkeys(("no samples", "one sample", "labels"), "there is no batch")
OWN_SCALE = {"tiny": "the noise has a scale of its own"}


def subject(settings, reads_params):
    """A kernel, its gradient, and numbers by name."""
    numbers = {name: np.array(SETTINGS[name]) for name in settings}
    of_params = tuple(KERNEL) if reads_params else ()
    return Subject(
        KERNEL | GRADIENT | numbers,
        scaled=(*of_params, "g"),
        units={"w": 1, "g": 1},
        width={"g": 1},
        carriers=(*of_params, "g", *numbers),
        numbers=("w", "g", *numbers),
        ranked=("w", "g", *numbers),
        excused=NO_BATCH,
    )


def params_of(kernel):
    """Parameters of a network whose other arrays are constants of the same type."""
    dtype = kernel.dtype if getattr(kernel, "dtype", np.dtype("U1")).kind != "U" else np.float32
    units = kernel.shape[-1] if np.ndim(kernel) else 4
    return variables_of(kernel, np.ones(units, dtype), np.ones((units, 2), dtype))["params"]


def model_like(kernel):
    return model_of(kernel.shape[1] if np.ndim(kernel) == 2 else 4, "tanh")


def optimizer(make, *settings, reads_params=True, is_compiled=True, **options):
    """A row of `make(wiring, *settings)`: the updates of two steps."""

    def call(w, g, *numbers):
        transformation = make(model_like(w).wiring, *numbers)
        params, gradient = params_of(w), params_of(g)
        state = transformation.init(params)
        first, state = transformation.update(gradient, state, params)
        return first, transformation.update(gradient, state, params)[0]

    compiled = jax.jit(call)

    def one_program(w, g, *numbers):
        is_right = (
            is_compiled
            and getattr(w, "shape", 0) == getattr(g, "shape", 1)
            and np.ndim(w) == 2
            and all(map(is_number, (w, g)))
        )
        are_right = all(is_number(each) and not np.ndim(each) and np.isfinite(np.float64(each)) for each in numbers)
        return (compiled if is_right and are_right else call)(w, g, *numbers)

    return Row(one_program, subject(settings, reads_params), **{"half": 1e-2, "rtol": 1e-5, **options})


def axes_of(function):
    """A row of a function of a wiring and parameters, of which shapes alone count."""

    def call(w):
        found = function(model_like(w).wiring, params_of(w))["hidden_0"]["kernel"]
        return [axes for axes in found if axes is not None]

    alone = Subject(KERNEL, units={"w": 1}, numbers=("w",), ranked=("w",), carriers=("w",), excused=NO_BATCH)
    reasons = dict.fromkeys(("tiny", "huge", "wrong width"), "of shapes alone, and inputs of any number fit")
    return Row(call, alone, excused=reasons, allowed=dict.fromkeys(("nan", "inf"), "of shapes alone"))


def average(wiring):
    """The projector on the manifold where all units are one."""
    zeros = params_of(np.zeros((3, wiring.size("hidden_0")), np.float32))
    return manifolds.cloned_manifold(zeros, wiring, {"hidden_0": (0,) * wiring.size("hidden_0")}).project


noisy = partial(optimizer, rtol=1e-3)
ROWS = {
    "optim.adam_per_weight": optimizer(
        lambda wiring, rate, decay: optim.adam_per_weight(rate, decay, decay), "rate", "decay", reads_params=False
    ),
    "optim.add_relative_noise": noisy(
        lambda wiring, scale, decay: optim.add_relative_noise(scale, decay, 0), "scale", "decay", reads_params=False,
        is_compiled=False,
    ),
    "optim.keep_on_manifold": optimizer(
        lambda wiring: optim.keep_on_manifold(average(wiring)), reads_params=False
    ),
    "optim.l2_init": optimizer(lambda wiring, rate: optim.l2_init(rate), "rate"),
    "optim.matrix_axes": axes_of(optim.matrix_axes),
    "optim.muon": optimizer(
        lambda wiring, rate, decay: optim.muon(rate, wiring, momentum=decay, weight_decay=decay), "rate", "decay"
    ),
    "optim.muon_dimension_numbers": axes_of(optim.muon_dimension_numbers),
    "optim.nap": optimizer(lambda wiring: optim.nap(wiring)),
    "optim.noisy_sgd": noisy(
        lambda wiring, rate, scale, decay: optim.noisy_sgd(rate, scale, decay, 0, momentum=decay),
        "rate", "scale", "decay", reads_params=False, is_compiled=False,
    ),
    "optim.parseval": optimizer(
        lambda wiring, rate, decay: optim.parseval(rate, wiring, decay), "rate", "decay"
    ),
    "optim.shrink_and_perturb": noisy(
        lambda wiring, decay, scale: optim.shrink_and_perturb(decay, scale, 0, 1), "decay", "scale", excused=OWN_SCALE
    ),
    "optim.spectral": optimizer(lambda wiring, rate: optim.spectral(rate, wiring, num_iterations=64), "rate"),
    "optim.upgd": noisy(
        lambda wiring, rate, scale, decay: optim.upgd(rate, scale, 0, decay, decay),
        "rate", "scale", "decay", excused=OWN_SCALE, is_compiled=False,
    ),
}  # fmt: skip
