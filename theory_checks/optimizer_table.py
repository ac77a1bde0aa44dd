"""Every optimizer that is checked, and what one update of it keeps: a new one joins by adding a row."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import optax
from optax import contrib

from lopjax import optim
from lopjax.wiring import Wiring

RATE, DECAY = 0.01, 0.1
WIRED: dict[str, Any] = {"sees_wiring": True}

Kind = Literal["leaf", "V", "BC"]
"""What one update keeps: every leaf W + BC; all of V but only the leaf BC itself; BC but not V."""


class Optimizer(NamedTuple):
    """One row.

    Attributes:
        name: what the table shows.
        make: how to make it.
        keeps: what one update keeps.
        slack: multiple of `64 eps` that rounding is allowed: more than 1 where the update is a difference of
            parameters, or amplifies the normal part of the gradient.
        on_vit: what it keeps on the ViT, where that differs.
        has_loops: whether the update runs loops of its own.
        sees_matrices: `make` takes `muon_weight_dimension_numbers`, which axes of each kernel are rows and columns.
        sees_wiring: `make` takes the network's wiring.
    """

    name: str
    make: Callable[..., optax.GradientTransformation]
    keeps: Kind
    slack: float = 1.0
    on_vit: Kind | None = None
    has_loops: bool = False
    sees_matrices: bool = False
    sees_wiring: bool = False


def _muon(name: str, make: Callable[..., optax.GradientTransformation], keeps: Kind, **fields: Any) -> Optimizer:
    """A row of Muon, which amplifies the normal part of the gradient, in a loop."""
    return Optimizer(name, make, keeps, slack=20, has_loops=True, **fields)


def _coupled(scale: optax.GradientTransformation) -> optax.GradientTransformation:
    """L2 in the gradient, then the optimizer."""
    return optax.chain(optax.add_decayed_weights(DECAY), scale)


def _regularised(penalty: Callable[[Wiring], optax.GradientTransformation]) -> Callable[..., Any]:
    """Gradient descent on the loss and a penalty that the wiring is needed for."""
    return lambda wiring: optax.chain(penalty(wiring), optax.sgd(RATE))


def _followed(last: Callable[[Wiring], optax.GradientTransformation]) -> Callable[..., Any]:
    """Gradient descent, followed by what acts on the updated parameters."""
    return lambda wiring: optax.chain(optax.sgd(RATE), last(wiring))


def _clipped(clip: optax.GradientTransformation) -> optax.GradientTransformation:
    return optax.chain(clip, optax.sgd(RATE))


OPTIMIZERS: tuple[Optimizer, ...] = (
    # Functions of each coordinate's own gradient history.
    Optimizer("sgd", partial(optax.sgd, RATE), "leaf"),
    Optimizer("momentum", partial(optax.sgd, RATE, 0.9), "leaf"),
    Optimizer("nesterov", partial(optax.sgd, RATE, 0.9, nesterov=True), "leaf"),
    Optimizer("signed sgd", partial(optax.sign_sgd, RATE), "leaf"),
    Optimizer("rprop", partial(optax.rprop, RATE), "leaf"),
    Optimizer("adagrad", partial(optax.adagrad, RATE), "leaf"),
    Optimizer("rmsprop", partial(optax.rmsprop, RATE), "leaf"),
    Optimizer("adadelta", partial(optax.adadelta, RATE), "leaf"),
    Optimizer("adam", partial(optax.adam, RATE), "leaf"),
    Optimizer("amsgrad", partial(optax.amsgrad, RATE), "leaf"),
    Optimizer("adamax", partial(optax.adamax, RATE), "leaf"),
    Optimizer("nadam", partial(optax.nadam, RATE), "leaf"),
    Optimizer("radam", partial(optax.radam, RATE), "leaf"),
    Optimizer("adabelief", partial(optax.adabelief, RATE), "leaf"),
    Optimizer("yogi", partial(optax.yogi, RATE), "leaf"),
    Optimizer("adan", partial(optax.adan, RATE), "leaf"),
    Optimizer("lion", partial(optax.lion, RATE, weight_decay=0.0), "leaf"),
    Optimizer("optimistic gradient", partial(optax.optimistic_gradient_descent, RATE), "leaf"),
    Optimizer("ademamix", partial(contrib.ademamix, RATE), "leaf"),
    Optimizer("adopt", partial(contrib.adopt, RATE), "leaf"),
    Optimizer("acprop", partial(contrib.acprop, RATE), "leaf", 20),
    Optimizer("madgrad", partial(contrib.madgrad, RATE), "leaf", 20),
    Optimizer("cocob", partial(contrib.cocob, RATE), "leaf", 20),
    Optimizer("schedule-free sgd", partial(contrib.schedule_free_sgd, RATE), "leaf", 20),
    # Their own start lies on the leaf.
    Optimizer("L2 towards the start", lambda: optax.chain(optim.l2_init(DECAY), optax.sgd(RATE)), "leaf"),
    Optimizer("clip by value", lambda: _clipped(optax.clip(1e-3)), "leaf"),
    # Multiply a whole array, or all of them, by a scalar.
    Optimizer("clip by global norm", lambda: _clipped(optax.clip_by_global_norm(1e-3)), "leaf"),
    Optimizer("clip by block rms", lambda: _clipped(optax.clip_by_block_rms(1e-3)), "leaf"),
    Optimizer("lars", partial(optax.lars, RATE), "leaf"),
    Optimizer("lamb", partial(optax.lamb, RATE), "leaf"),
    Optimizer("novograd", partial(optax.novograd, RATE), "leaf"),
    Optimizer("prodigy", partial(contrib.prodigy, RATE), "leaf"),
    Optimizer("dog", partial(contrib.dog, RATE), "leaf"),
    Optimizer("dowg", partial(contrib.dowg, RATE), "leaf"),
    Optimizer("d-adapted adam", partial(contrib.dadapt_adamw, RATE), "leaf"),
    # Built from statistics of rows and columns of the gradient.
    Optimizer("adafactor", partial(optax.adafactor, RATE, min_dim_size_to_factor=2), "leaf"),
    Optimizer("sm3", partial(optax.sm3, RATE), "leaf", 20),
    Optimizer("centralized gradient", lambda: _clipped(optax.centralize()), "leaf"),
    # A function of the gradient as a matrix.
    _muon("muon", partial(contrib.muon, RATE), "leaf"),
    # Weights shrink in proportion to themselves: clones forget the differences that they had.
    Optimizer("sgd, coupled L2", lambda: _coupled(optax.sgd(RATE)), "V"),
    Optimizer("momentum, coupled L2", lambda: _coupled(optax.sgd(RATE, 0.9)), "V"),
    Optimizer("adamw", partial(optax.adamw, RATE, weight_decay=DECAY), "V"),
    Optimizer("nadamw", partial(optax.nadamw, RATE, weight_decay=DECAY), "V"),
    Optimizer("adamaxw", partial(optax.adamaxw, RATE, weight_decay=DECAY), "V"),
    Optimizer("lion, decoupled decay", partial(optax.lion, RATE, weight_decay=DECAY), "V"),
    Optimizer("lars, decay", partial(optax.lars, RATE, weight_decay=DECAY), "V"),
    Optimizer("lamb, decay", partial(optax.lamb, RATE, weight_decay=DECAY), "V"),
    Optimizer("novograd, decay", partial(optax.novograd, RATE, weight_decay=DECAY), "V"),
    Optimizer(
        "adafactor, decay", partial(optax.adafactor, RATE, min_dim_size_to_factor=2, weight_decay_rate=DECAY), "V"
    ),
    _muon("muon, decay", partial(contrib.muon, RATE, weight_decay=DECAY, adam_weight_decay=DECAY), "V"),
    # Block-constant and gauge parts have orthogonal rows and columns: a function of the matrix keeps them apart.
    # Optax's Muon leaves arrays of more than two axes, such as the kernels of attention heads, to Adam.
    _muon("muon, coupled L2", lambda: _coupled(contrib.muon(RATE)), "V", on_vit="BC"),
    Optimizer("fromage", partial(optax.fromage, RATE), "V"),
    Optimizer("shrink, nothing added", _followed(lambda _: optim.shrink_and_perturb(0.9, 0.0, 0, 1)), "V", 20, **WIRED),
    Optimizer("normalise and project", _followed(optim.nap), "V", 20, **WIRED),
    # Functions of the kernel as a matrix; of heads one by one, whose coordinates mix what clones share and what not.
    Optimizer("parseval", _regularised(partial(optim.parseval, DECAY)), "V", 20, on_vit="BC", **WIRED),
    Optimizer(
        "spectral, settled",
        _regularised(lambda wiring: optim.spectral(DECAY, wiring, num_iterations=2000)),
        "V",
        20,
        on_vit="BC",
        has_loops=True,
        **WIRED,
    ),
    # These look at each weight, or each unit, by itself, so they tell clones with unequal weights apart.
    Optimizer("adam, coupled L2", lambda: _coupled(optax.adam(RATE)), "BC"),
    Optimizer("rmsprop, coupled L2", lambda: _coupled(optax.rmsprop(RATE)), "BC"),
    Optimizer("lion, coupled L2", lambda: _coupled(optax.lion(RATE, weight_decay=0.0)), "BC"),
    Optimizer("adafactor, coupled L2", lambda: _coupled(optax.adafactor(RATE, min_dim_size_to_factor=2)), "BC"),
    # With the paper's maximum it leaves V only at third order in the utilities (6e-7 of an update on the MLP).
    Optimizer("upgd's code, without noise", lambda: optim.upgd(RATE, 0.0, 0, variant="official"), "BC"),
    Optimizer("adaptive gradient clipping", lambda: _clipped(optax.adaptive_grad_clip(1e-3)), "BC"),
)
"""Every optimizer, by what it keeps."""

MUON_ON_EVERY_KERNEL: tuple[Optimizer, ...] = (
    _muon("muon on every kernel", partial(contrib.muon, RATE), "leaf", sees_matrices=True),
    _muon(
        "muon on every kernel, coupled L2",
        lambda **axes: _coupled(contrib.muon(RATE, **axes)),
        "V",
        sees_matrices=True,
    ),
    # One matrix for each head: differences between clones mix with what they share, if the decay brings them in.
    _muon("muon by the wiring", partial(optim.muon, RATE), "leaf", **WIRED),
    _muon("muon by the wiring, coupled L2", lambda wiring: _coupled(optim.muon(RATE, wiring)), "BC", **WIRED),
)
"""For networks with kernels of more than two axes: Muon that is told which are rows and which are columns."""
