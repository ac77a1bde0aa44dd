"""Methods of training, one row per method, and the lanes of a run: methods x points of a grid x seeds.

A new method is one row of `METHODS`. Flags, programs, records, tables and figures look it up there by name.
"""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import jax
    import optax

Settings = Mapping[str, Any]
"""Numbers of the config, Python's or traced ones: `{"learning_rate": 0.1, ...}`."""


class Method(NamedTuple):
    """One way of training.

    Attributes:
        label: its name in figures.
        optimizer: `(settings, key) -> optax transformation`; the key is for random draws. Methods with the same
            function can share a compiled program.
        reads: numbers of the config that it depends on.
        intervention: `settings -> lopjax.training.Intervention`, applied after every update; None for none.
        needs_boundaries: whether it uses the starts of tasks; tables mark such methods with a star.
    """

    label: str
    optimizer: "Callable[[Settings, jax.Array | None], optax.GradientTransformation]"
    reads: tuple[str, ...]
    intervention: Callable[[Settings], Any] | None = None
    needs_boundaries: bool = False


def _sgd(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import noisy_sgd

    scale = settings["noise_scale"]
    if isinstance(scale, float) and scale == 0.0:  # a constant of the program, so that nothing is drawn
        return optax.sgd(settings["learning_rate"])
    return noisy_sgd(settings["learning_rate"], scale, settings["noise_decay"], seed=0 if key is None else key)


def _adam(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    return optax.adam(settings["adam_learning_rate"])


METHODS: dict[str, Method] = {
    "sgd": Method("SGD", _sgd, ("learning_rate",)),
    "noisy_sgd": Method("noisy SGD", _sgd, ("learning_rate", "noise_scale", "noise_decay")),
    "dropout": Method("dropout", _sgd, ("learning_rate", "dropout")),
    "adam": Method("Adam", _adam, ("adam_learning_rate",)),
}

# The values of numbers for methods that do not read them; all others are those of the config.
OFF = {"noise_scale": 0.0, "dropout": 0.0}


def numbers_read(methods: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the numbers that the methods of a table read."""
    return tuple(dict.fromkeys(name for method in methods.values() for name in method.reads))


NUMBERS = numbers_read(METHODS)

Point = tuple[tuple[str, float], ...]
"""A point of a grid: `(("noise_scale", 0.01), ("noise_decay", 0.9))`."""


class Lane(NamedTuple):
    """The method, point and seed that identify a lane.

    Attributes:
        method: key of `METHODS`.
        point: point of the grid, on those axes that the method reads.
        seed: seed of everything random.
    """

    method: str
    point: Point
    seed: int

    def fields(self) -> dict[str, Any]:
        """The lane as fields of a record."""
        return {"method": self.method, **dict(self.point), "seed": self.seed}


class Group(NamedTuple):
    """Lanes that share one compiled program.

    Attributes:
        lanes: all of them; the seeds of one method and point are adjacent.
        constants: numbers that are equal in all lanes, constants of the program.
        traced: the other numbers, each an array over the lanes.
    """

    lanes: tuple[Lane, ...]
    constants: dict[str, float]
    traced: dict[str, tuple[float, ...]]

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods of its lanes."""
        return tuple(dict.fromkeys(lane.method for lane in self.lanes))


def numbers_of(config: Any, names: Iterable[str]) -> dict[str, Any]:
    """The config's value of every number.

    Raises:
        ValueError: a number that is not a field of the config.
    """
    missing = [name for name in names if not hasattr(config, name)]
    if missing:
        raise ValueError(f"{type(config).__name__} has no field {missing[0]!r}, which a method reads: give it one")
    return {name: getattr(config, name) for name in names}


def curves(methods: Iterable[str], grid: Iterable[tuple[str, Sequence[float]]]) -> list[tuple[str, Point]]:
    """Every method at every point of the grid's axes that it reads: each has a row in tables, a colour in figures."""
    axes = list(grid)
    lines = []
    for method in methods:
        varied = [[(name, value) for value in values] for name, values in axes if name in METHODS[method].reads]
        lines += [(method, point) for point in itertools.product(*varied)]
    return lines


def label_of(method: str, point: Point) -> str:
    """The label of a curve in the legend of a figure."""
    return ", ".join([METHODS[method].label, *(f"{name.replace('_', ' ')} {value!r}" for name, value in point)])


def groups_of(
    methods: Sequence[str],
    seeds: Sequence[int],
    numbers: Mapping[str, float],
    grid: Iterable[tuple[str, Sequence[float]]] = (),
    is_fused: bool = False,
) -> tuple[Group, ...]:
    """The programs of a run: one per method, or, fused, one for all methods with the same kind of optimizer.

    Args:
        methods: keys of `METHODS`.
        seeds: one lane per seed, for every method and point.
        numbers: the config's value of every number.
        grid: axes `(name, values)`.
        is_fused: whether to share programs: this saves compilation, but every lane pays for random draws needed by one.

    Raises:
        ValueError: an axis that no method reads, or that is not a number of the config.
    """
    axes = [(name, tuple(values)) for name, values in grid]
    for name, values in axes:
        readers = [method for method in methods if name in METHODS[method].reads]
        if not readers:
            raise ValueError(f"grid {name}={values}: must be a number that one of the methods {list(methods)} reads")
    families: dict[Any, list[Lane]] = {}
    for method, point in curves(methods, axes):
        family = METHODS[method].optimizer if is_fused else method
        families.setdefault(family, []).extend(Lane(method, point, seed) for seed in seeds)
    return tuple(_group(tuple(lanes), numbers) for lanes in families.values())


def _group(lanes: tuple[Lane, ...], numbers: Mapping[str, float]) -> Group:
    constants, traced = {}, {}
    for name in numbers:
        values = tuple(_number_of(lane, name, numbers) for lane in lanes)
        if len(set(values)) == 1:
            constants[name] = values[0]
        else:
            traced[name] = values
    return Group(lanes, constants, traced)


def _number_of(lane: Lane, name: str, numbers: Mapping[str, float]) -> float:
    if name not in METHODS[lane.method].reads and name in OFF:
        return OFF[name]
    return dict(lane.point).get(name, numbers[name])
