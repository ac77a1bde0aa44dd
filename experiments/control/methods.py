"""The methods of the comparison, a row each. Nothing here imports JAX before it is used."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.continual.methods import METHODS as CONTINUAL
from experiments.kit.methods import Group, Lane

if TYPE_CHECKING:
    import jax
    import optax

Settings = Mapping[str, Any]
"""Numbers by name, Python's or traced ones."""
PLAIN, FRESH = "plain", "fresh"


class Method(NamedTuple):
    """One method.

    Attributes:
        label: in tables and figures.
        optimizer: `(settings, key) -> optax transformation`; methods with the same one, and no intervention, share a
            program.
        reads: numbers of the config that it depends on; those of other methods are off.
        intervention: `(settings, probe) -> lopjax.training.Intervention`, applied after every update; None for none.
    """

    label: str
    optimizer: "Callable[[Settings, jax.Array], optax.GradientTransformation]"
    reads: tuple[str, ...] = ()
    intervention: Callable[[Settings, Any], Any] | None = None


def _adam(settings: Settings, key: "jax.Array") -> "optax.GradientTransformation":
    """Adam as in PPO, on gradients that are not too long, with a pull to the start where it is not switched off."""
    import optax

    from lopjax.optim import l2_init

    adam = optax.adam(settings["learning_rate"], eps=1e-5)
    strength = settings["l2_init"]
    pull = [] if isinstance(strength, float) and strength == 0 else [l2_init(strength, "official")]
    return optax.chain(optax.clip_by_global_norm(settings["max_gradient_norm"]), *pull, adam)


def _noisy_adam(settings: Settings, key: "jax.Array") -> "optax.GradientTransformation":
    import optax

    from lopjax.optim import add_relative_noise

    return optax.chain(add_relative_noise(settings["noise_scale"], 1.0, key), _adam(settings, key))


def _self_normalized_resets(settings: Settings, probe: Any) -> Any:
    from lopjax.interventions import self_normalized_resets

    return self_normalized_resets(settings["percentile"])


def _recovery(settings: Settings, probe: Any) -> Any:
    """The controller with its default ladder and thresholds, which looks at the fixed probe."""
    from lopjax.recovery import recovery_controller

    every = settings["look_every"]
    return recovery_controller(probe=probe, every=every, cool_down=2 * every, budget_every=10 * every)


def _of_continual(name: str) -> Callable[[Settings, Any], Any]:
    """An intervention of `experiments.continual`, which needs no probe."""

    def make(settings: Settings, probe: Any) -> Any:
        intervention = CONTINUAL[name].intervention
        assert intervention is not None
        return intervention(settings)

    return make


METHODS: dict[str, Method] = {
    "l2_init": Method("L2-init", _adam, ("l2_init",)),
    "noise": Method("noise on the gradient", _noisy_adam, ("noise_scale",)),
    "continual_backprop": Method(
        "continual backprop", _adam, ("replacement_rate", "maturity"), _of_continual("continual_backprop")
    ),
    "redo": Method("ReDo", _adam, ("redo_threshold", "reset_every"), _of_continual("redo")),
    "self_normalized_resets": Method("self-normalized resets", _adam, ("percentile",), _self_normalized_resets),
    "recovery": Method("recovery controller", _adam, ("look_every",), _recovery),
}
CONTROLS: dict[str, Method] = {FRESH: Method("fresh network", _adam), PLAIN: Method("plain", _adam)}
"""What the methods are compared with; a fresh network is drawn anew for every task."""
OFF: Settings = {"l2_init": 0.0}


def method_of(name: str) -> Method:
    """Of a method or a control."""
    return CONTROLS[name] if name in CONTROLS else METHODS[name]


def lanes_of(methods: tuple[str, ...], has_fresh: bool) -> list[str]:
    """The controls and the methods.

    >>> lanes_of(("redo",), has_fresh=True)
    ['fresh', 'plain', 'redo']
    """
    return [*([FRESH] if has_fresh else []), PLAIN, *methods]


def groups_of(
    methods: tuple[str, ...], seeds: tuple[int, ...], numbers: Mapping[str, Any], has_fresh: bool
) -> tuple[Group, ...]:
    """The programs of a run: one for all methods that are only an optimizer of one kind, one for each intervention.

    Args:
        methods: keys of `METHODS`.
        seeds: one lane each, for every method.
        numbers: the config's value of every number.
        has_fresh: whether there is a fresh network.
    """
    families: dict[Any, list[str]] = {}
    for name in lanes_of(methods, has_fresh):
        method = method_of(name)
        families.setdefault(method.optimizer if method.intervention is None else name, []).append(name)
    return tuple(_group(names, seeds, numbers) for names in families.values())


def _group(names: list[str], seeds: tuple[int, ...], numbers: Mapping[str, Any]) -> Group:
    """Numbers that all lanes have in common are constants of the program, the others an array over the lanes."""

    def number(name: str, key: str) -> Any:
        return OFF[key] if key in OFF and key not in method_of(name).reads else numbers[key]

    lanes = tuple(Lane(name, (), seed) for name in names for seed in seeds)
    columns = {key: tuple(number(lane.method, key) for lane in lanes) for key in numbers}
    columns["is_fresh"] = tuple(lane.method == FRESH for lane in lanes)
    constants = {key: column[0] for key, column in columns.items() if len(set(column)) == 1}
    return Group(lanes, constants, {key: column for key, column in columns.items() if key not in constants})
