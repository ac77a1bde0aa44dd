"""Ways to train on task after task: one row each. Nothing here imports JAX before it is used."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.kit.methods import Group, Lane, numbers_read

if TYPE_CHECKING:
    import jax
    import optax

Settings = Mapping[str, Any]
FRESH = "fresh"
GENTLE_LADDER = ("noise", "wake_dead_units", "redo", "shrink_and_perturb")


class Method(NamedTuple):
    """One way of training.

    Attributes:
        label: its name in figures.
        optimizer: `(settings, key) -> optax transformation`; methods with the same function share a program.
        control: method whose fresh network is the control: the plain optimizer underneath.
        reads: numbers that it takes from the config; all others have the value that switches them off.
        intervention: `settings -> lopjax.training.Intervention`, applied after every update; None for none.
        needs_boundaries: whether it looks at where a task starts; tables mark such methods with a star.
    """

    label: str
    optimizer: "Callable[[Settings, jax.Array | None], optax.GradientTransformation]"
    control: str
    reads: tuple[str, ...]
    intervention: Callable[[Settings], Any] | None = None
    needs_boundaries: bool = False


def _is_off(number: Any) -> bool:
    """Whether a number is the constant 0 of a program, so that nothing is computed for it."""
    return isinstance(number, float) and number == 0.0


def _adam(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    """Adam, with a pull to the start before it and decoupled weight decay after it, unless switched off."""
    import optax

    from lopjax.optim import l2_init

    chain = [optax.scale_by_adam(b2=settings["beta2"]), optax.scale_by_learning_rate(settings["adam_learning_rate"])]
    if not _is_off(settings["weight_decay"]):
        chain.insert(1, optax.add_decayed_weights(settings["weight_decay"]))
    if not _is_off(settings["l2_init"]):
        chain.insert(0, l2_init(settings["l2_init"], "official"))
    return optax.chain(*chain)


def _noisy_adam(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import add_relative_noise

    noise = add_relative_noise(settings["noise_scale"], settings["noise_decay"], 0 if key is None else key)
    return optax.chain(noise, optax.adam(settings["adam_learning_rate"]))


def _shrink_and_perturb(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import shrink_and_perturb

    last = shrink_and_perturb(1 - settings["shrink"], settings["perturb"], 0 if key is None else key, every=1)
    return optax.chain(optax.adam(settings["adam_learning_rate"]), last)


def _sgd(settings: Settings, key: "jax.Array | None") -> "optax.GradientTransformation":
    import optax

    return optax.sgd(settings["learning_rate"])


def _continual_backprop(settings: Settings) -> Any:
    from lopjax.interventions import continual_backprop

    return continual_backprop(settings["replacement_rate"], maturity=settings["maturity"])


def _redo(settings: Settings) -> Any:
    from lopjax.interventions import redo

    return redo(settings["redo_threshold"], settings["reset_every"])


def _regrama(settings: Settings) -> Any:
    from lopjax.interventions import regrama

    return regrama(settings["redo_threshold"], settings["reset_every"])


def _cpr(settings: Settings) -> Any:
    from lopjax.interventions import cpr

    return cpr(settings["cpr_strength"], settings["reset_every"])


def _self_normalized_resets(settings: Settings) -> Any:
    from lopjax.interventions import self_normalized_resets

    return self_normalized_resets(settings["percentile"])


def _recovery(settings: Settings) -> Any:
    """The controller, which looks at the batch of the step: a stream has no fixed probe.

    Without the rungs that take second derivatives: with them a transformer's step compiles for minutes.
    """
    from lopjax.recovery import OFF, ON, recovery_controller

    every = settings["look_every"] or settings["reset_every"]
    on, off = ({name: settings["threshold"] * score for name, score in scores.items()} for scores in (ON, OFF))
    return recovery_controller(GENTLE_LADDER, every=every, cool_down=2 * every, on=on, off=off)


METHODS: dict[str, Method] = {
    "adam": Method("Adam", _adam, "adam", ("adam_learning_rate",)),
    "l2_init": Method("L2-init", _adam, "adam", ("adam_learning_rate", "l2_init")),
    "equal_betas": Method("equal betas", _adam, "adam", ("adam_learning_rate", "beta2")),
    "weight_decay": Method("weight decay", _adam, "adam", ("adam_learning_rate", "weight_decay")),
    "shrink_and_perturb": Method(
        "shrink and perturb", _shrink_and_perturb, "adam", ("adam_learning_rate", "shrink", "perturb")
    ),
    "noise": Method("noise", _noisy_adam, "adam", ("adam_learning_rate", "noise_scale", "noise_decay")),
    "dropout": Method("dropout", _adam, "adam", ("adam_learning_rate", "dropout")),
    "continual_backprop": Method(
        "continual backprop", _adam, "adam", ("adam_learning_rate", "replacement_rate", "maturity"), _continual_backprop
    ),
    "redo": Method("ReDo", _adam, "adam", ("adam_learning_rate", "redo_threshold", "reset_every"), _redo),
    "regrama": Method("ReGraMa", _adam, "adam", ("adam_learning_rate", "redo_threshold", "reset_every"), _regrama),
    "cpr": Method("CPR", _adam, "adam", ("adam_learning_rate", "cpr_strength", "reset_every"), _cpr),
    "self_normalized_resets": Method(
        "self-normalized resets", _adam, "adam", ("adam_learning_rate", "percentile"), _self_normalized_resets
    ),
    "recovery": Method(
        "recovery controller",
        _adam,
        "adam",
        ("adam_learning_rate", "reset_every", "look_every", "threshold"),
        _recovery,
    ),
    "sgd": Method("SGD", _sgd, "sgd", ("learning_rate",)),
}

NUMBERS = numbers_read(METHODS)
# The value of a number for methods that do not read it; any other number is the config's.
OFF: Mapping[str, float] = {
    **dict.fromkeys(("l2_init", "weight_decay", "shrink", "perturb", "noise_scale", "dropout"), 0.0),
    "beta2": 0.999,
}


def fresh(control: str) -> str:
    """Name, in records, of the network that is drawn anew for every task and trained by a plain optimizer."""
    return f"{FRESH}_{control}"


def is_fresh(name: str) -> bool:
    """Whether a lane is such a network."""
    return name.startswith(f"{FRESH}_")


def label_of(name: str) -> str:
    """Name of a method or fresh network in tables and figures; methods that look at boundaries have a star."""
    if is_fresh(name):
        return f"fresh, {METHODS[name.removeprefix(f'{FRESH}_')].label}"
    return METHODS[name].label + ("*" if METHODS[name].needs_boundaries else "")


def lanes_of(methods: tuple[str, ...], has_fresh: bool) -> list[str]:
    """The methods and, if asked for, one fresh network for each of the plain optimizers underneath them.

    Example:
        >>> lanes_of(("adam", "l2_init", "sgd"), has_fresh=True)
        ['fresh_adam', 'fresh_sgd', 'adam', 'l2_init', 'sgd']
    """
    controls = dict.fromkeys(METHODS[name].control for name in methods)
    return [*([fresh(control) for control in controls] if has_fresh else []), *methods]


def method_of(name: str) -> Method:
    """The method that trains a lane; for a fresh network, its plain optimizer."""
    return METHODS[name.removeprefix(f"{FRESH}_")]


def groups_of(
    methods: tuple[str, ...], seeds: tuple[int, ...], numbers: Mapping[str, float], has_fresh: bool
) -> tuple[Group, ...]:
    """The programs of a run: methods with the same optimizer, and no intervention, share one."""
    # Dropout draws numbers for every lane of its program, so it gets a program of its own.
    families: dict[Any, list[str]] = {}
    for name in lanes_of(methods, has_fresh):
        method = method_of(name)
        is_alone = method.intervention is not None or "dropout" in method.reads
        families.setdefault(name if is_alone else method.optimizer, []).append(name)
    return tuple(_group(names, seeds, numbers) for names in families.values())


def _group(names: list[str], seeds: tuple[int, ...], numbers: Mapping[str, float]) -> Group:
    lanes = tuple(Lane(name, (), seed) for name in names for seed in seeds)
    constants, traced = {}, {}
    for number in numbers:
        values = tuple(_number_of(lane.method, number, numbers) for lane in lanes)
        if len(set(values)) == 1:
            constants[number] = values[0]
        else:
            traced[number] = values
    return Group(lanes, constants, traced)


def _number_of(name: str, number: str, numbers: Mapping[str, float]) -> float:
    return numbers[number] if number in method_of(name).reads else OFF.get(number, numbers[number])
