"""Ways to train online, one row each, and the programs of a run. Nothing here imports JAX before it is used."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from experiments.kit.methods import Group, Lane, Point, numbers_read

if TYPE_CHECKING:
    import jax
    import optax

Settings = Mapping[str, Any]
Optimizer = Callable[[Settings, "jax.Array | None"], "optax.GradientTransformation"]


class Method(NamedTuple):
    """One way of training.

    Attributes:
        label: its name in tables and figures.
        optimizer: `(settings, key) -> optax transformation`; the key is for what it draws.
        reads: numbers of the config that it depends on, besides the step size.
        rule: what looks at the units at every step, a name of `rules.RULES`; None for nothing.
        act: what acts between blocks of 1,000 steps, a name of `rules.ACTS`; None for nothing.
        is_linear: whether there is no hidden layer.
        needs_boundaries: whether it looks at where a task starts; tables mark such methods with a star.
    """

    label: str
    optimizer: Optimizer
    reads: tuple[str, ...] = ()
    rule: Literal["continual_backprop", "continual_backprop_official", "self_normalized_resets"] | None = None
    act: Literal["redo", "split_clones", "fresh"] | None = None
    is_linear: bool = False
    needs_boundaries: bool = False


def _sgd(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    return optax.sgd(settings["step_size"])


def _adam(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    return optax.adam(settings["step_size"])


def _l2(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    return optax.chain(optax.add_decayed_weights(settings["l2"]), optax.sgd(settings["step_size"]))


def _l2_init(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import l2_init

    return optax.chain(l2_init(settings["l2_init"], "official"), optax.sgd(settings["step_size"]))


def _shrink_and_perturb(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import shrink_and_perturb

    seed = 0 if key is None else key
    shrink = shrink_and_perturb(1 - settings["shrink"], settings["perturb"], seed, every=1, law="dohare")
    return optax.chain(optax.sgd(settings["step_size"]), shrink)


def _upgd(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    from lopjax.optim import upgd

    return upgd(settings["step_size"], settings["upgd_noise"], 0 if key is None else key, settings["upgd_decay"])


_REPLACING = ("replacement_rate", "maturity", "utility_decay")

METHODS: dict[str, Method] = {
    "sgd": Method("backprop", _sgd),
    "adam": Method("backprop, Adam", _adam),
    "continual_backprop": Method("continual backprop", _sgd, _REPLACING, rule="continual_backprop"),
    "continual_backprop_official": Method(
        "continual backprop, official", _sgd, _REPLACING, rule="continual_backprop_official"
    ),
    "l2": Method("L2", _l2, ("l2",)),
    "l2_init": Method("L2-init", _l2_init, ("l2_init",)),
    "shrink_and_perturb": Method("shrink and perturb", _shrink_and_perturb, ("shrink", "perturb")),
    "upgd": Method("UPGD", _upgd, ("upgd_noise", "upgd_decay")),
    "self_normalized_resets": Method(
        "self-normalised resets", _sgd, ("percentile",), rule="self_normalized_resets"
    ),
    "redo": Method("ReDo", _sgd, ("redo_threshold",), act="redo"),
    "split_clones": Method("clone splitting", _sgd, ("clone_tolerance",), act="split_clones"),
    "linear": Method("linear", _sgd, is_linear=True),
    "fresh": Method("fresh network per task", _sgd, act="fresh", needs_boundaries=True),
}  # fmt: skip
NUMBERS = numbers_read(METHODS)
"""Numbers of the config that a grid may vary."""


class Curve(NamedTuple):
    """What has a row in the table: a method at one point, all seeds.

    Attributes:
        method: key of `METHODS`.
        activation: activation of the hidden layer; "identity" where there is none.
        width: hidden units; 0 where there is none.
        point: further numbers: the step size, then those of the grid that the method reads.
    """

    method: str
    activation: str
    width: int
    point: Point

    def fields(self) -> dict[str, Any]:
        """The lane as fields of a record."""
        return {"method": self.method, "activation": self.activation, "width": self.width, **dict(self.point)}


def label_of(name: str) -> str:
    """Name of a method in tables and figures; methods that look at boundaries have a star."""
    return METHODS[name].label + ("*" if METHODS[name].needs_boundaries else "")


def curves_of(
    methods: Sequence[str],
    activations: Sequence[str],
    widths: Sequence[int],
    step_sizes: Sequence[float],
    axes: Sequence[tuple[str, Sequence[float]]] = (),
) -> list[Curve]:
    """Every method with every activation, width and point; linear networks have no activation and no width."""
    all_curves = []
    for method in methods:
        varied = [[(name, value) for value in values] for name, values in axes if name in METHODS[method].reads]
        points = list(itertools.product([("step_size", value) for value in step_sizes], *varied))
        hidden = [("identity", 0)] if METHODS[method].is_linear else list(itertools.product(activations, widths))
        all_curves += [Curve(method, activation, width, point) for activation, width in hidden for point in points]
    return all_curves


def groups_of(curves: Sequence[Curve], seeds: Sequence[int], numbers: Mapping[str, float]) -> list[Group]:
    """The programs of a run: all points and seeds of one method on one network share one."""
    programs: dict[tuple[str, str, int], list[Curve]] = {}
    for curve in curves:
        programs.setdefault(curve[:3], []).append(curve)
    return [_group(of_program, seeds, numbers) for of_program in programs.values()]


def _group(curves: Sequence[Curve], seeds: Sequence[int], numbers: Mapping[str, float]) -> Group:
    # The fields of its curve are in the records of every lane, so these name its network, too.
    lanes = tuple(
        Lane(curve.method, tuple(list(curve.fields().items())[1:]), seed) for curve in curves for seed in seeds
    )
    constants, traced = {}, {}
    for name in ("step_size", *(name for name in numbers if name in METHODS[curves[0].method].reads)):
        values = tuple(dict(lane.point).get(name, numbers.get(name)) for lane in lanes)
        if len(set(values)) == 1:
            constants[name] = values[0]
        else:
            traced[name] = values
    return Group(lanes, constants, traced)
