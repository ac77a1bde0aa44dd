"""The remedies, one row each, with the settings that are tried. Nothing here imports JAX before it is used."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.continual.methods import METHODS as CONTINUAL

if TYPE_CHECKING:
    import jax
    import optax

Settings = Mapping[str, Any]
"""Numbers of one setting by name; traced in a program, in which every lane has its own."""
PLAIN, FRESH = "plain", "fresh"
NUM_SETTINGS = 4


class Remedy(NamedTuple):
    """One remedy.

    Attributes:
        label: its name in tables and figures.
        settings: by plain optimizer, "sgd" or "adam", the settings that are tried; none where it makes no sense. One
            that `is_fresh` has its network drawn anew for every task.
        optimizer: `(base, settings, rate, model, key) -> optax transformation`, with `base(rate)` the plain one.
        intervention: `settings -> lopjax.training.Intervention`, applied after every update; None for none. Beside its
            numbers it is given the `probe` of the stream, which may be None.
        needs_boundaries: whether it looks at where a task starts; tables mark such methods with a star.
        network: options of the network that differ from those of the stream, such as `norm`.
    """

    label: str
    settings: Mapping[str, tuple[Settings, ...]]
    optimizer: "Callable[..., optax.GradientTransformation]" = lambda base, settings, rate, model, key: base(rate)
    intervention: Callable[[Settings], Any] | None = None
    needs_boundaries: bool = False
    network: Mapping[str, Any] = {}


def _both(*settings: Settings) -> dict[str, tuple[Settings, ...]]:
    return {"sgd": settings, "adam": settings}


def _each(name: str, *values: float, **fixed: float) -> tuple[Settings, ...]:
    """Settings that differ in one number."""
    return tuple({name: value, **fixed} for value in values)


def _other_rate(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    return base(rate * settings["times_rate"])


def _l2_init(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import l2_init

    return optax.chain(l2_init(settings["strength"], "official"), base(rate))


def _weight_decay(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    return optax.chain(base(rate), optax.add_decayed_weights(-settings["shrink"]))


def _shrink_and_perturb(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import shrink_and_perturb

    return optax.chain(base(rate), shrink_and_perturb(1 - settings["shrink"], settings["perturb"], key, every=1))


def _noise(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import add_relative_noise

    return optax.chain(add_relative_noise(settings["scale"], settings.get("decay", 1.0), key), base(rate))


def _upgd(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    from lopjax.optim import upgd

    return upgd(rate * settings["times_rate"], settings["noise"], key, settings["utility_decay"])


def _parseval(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import parseval

    return optax.chain(parseval(settings["strength"], model.wiring), base(rate))


def _spectral(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import spectral

    return optax.chain(spectral(settings["strength"], model.wiring), base(rate))


def _nap(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    import optax

    from lopjax.optim import nap

    return optax.chain(base(rate * settings["times_rate"]), nap(model.wiring))


def _muon(base: Any, settings: Settings, rate: float, model: Any, key: "jax.Array") -> Any:
    from lopjax.optim import muon

    return muon(settings["rate"], model.wiring)


def _self_normalized_resets(settings: Settings) -> Any:
    from lopjax.interventions import self_normalized_resets

    return self_normalized_resets(settings["percentile"])


def _fire(settings: Settings) -> Any:
    from lopjax.interventions import fire

    return fire(settings["strength"])


def _reset_head(settings: Settings) -> Any:
    from lopjax.interventions import reset_layer

    return reset_layer(["classes"], settings["reset_every"])


def _reset_optimizer(settings: Settings) -> Any:
    from lopjax.interventions import reset_optimizer

    return reset_optimizer(settings["reset_every"])


def _split_clones(settings: Settings) -> Any:
    from lopjax.interventions import split_clones

    return split_clones(settings["tolerance"], every=settings["reset_every"], num_steps=4)


def _wake_dead_units(settings: Settings) -> Any:
    from lopjax.interventions import wake_dead_units

    return wake_dead_units(settings["reset_every"], settings["tolerance"])


def _recovery(settings: Settings) -> Any:
    """The controller with its default ladder; it looks at the stream's probe, or else at the batch of the step."""
    from lopjax.recovery import ON, recovery_controller

    on = {name: settings["threshold"] * value for name, value in ON.items()}
    off = {name: value / 2 for name, value in on.items()}
    return recovery_controller(every=100, cool_down=settings["cool_down"], on=on, off=off, probe=settings.get("probe"))


_RATES = _both(*_each("times_rate", 0.1, 0.3, 1.0, 3.0))
_PERIODS = _both(*_each("reset_every", 50, 200, 400, 2000))

METHODS: dict[str, Remedy] = {
    "learning_rate": Remedy("another learning rate", _RATES, _other_rate),
    "l2_init": Remedy("L2-init", _both(*_each("strength", 1e-4, 1e-3, 1e-2, 1e-1)), _l2_init),
    "weight_decay": Remedy("weight decay", _both(*_each("shrink", 1e-6, 1e-5, 1e-4, 1e-3)), _weight_decay),
    "shrink_and_perturb": Remedy(
        "shrink and perturb",
        _both(*({"shrink": shrink, "perturb": noise} for shrink in (1e-5, 1e-4) for noise in (1e-4, 1e-3))),
        _shrink_and_perturb,
    ),
    "noise": Remedy("noise on the gradient", _both(*_each("scale", 0.001, 0.01, 0.1, 1.0)), _noise),
    "noise_decay": Remedy(
        "noise that decays",
        _both(*({"scale": scale, "decay": decay} for scale in (0.1, 1.0) for decay in (0.999, 0.9999))),
        _noise,
    ),
    # On streams with one example a step there is no batch to normalise over, so there are no settings for SGD.
    "dropout": Remedy("dropout", {"adam": _each("dropout", 0.05, 0.1, 0.2, 0.4)}),
    "batch_norm": Remedy("batch norm", {"adam": _RATES["adam"]}, _other_rate, network={"norm": "batch"}),
    "layer_norm": Remedy("layer norm", {"adam": _RATES["adam"]}, _other_rate, network={"norm": "layer"}),
    "upgd": Remedy(
        "UPGD",
        {
            "sgd": tuple(
                {"times_rate": 1.0, "noise": n, "utility_decay": d} for n in (1e-4, 1e-3) for d in (0.9, 0.999)
            ),
            "adam": tuple(
                {"times_rate": r, "noise": n, "utility_decay": 0.999} for r in (10.0, 100.0) for n in (1e-4, 1e-3)
            ),
        },
        _upgd,
    ),
    "parseval": Remedy("Parseval", _both(*_each("strength", 1e-4, 1e-3, 1e-2, 1e-1)), _parseval),
    "spectral": Remedy("spectral", _both(*_each("strength", 1e-4, 1e-3, 1e-2, 1e-1)), _spectral),
    "nap": Remedy("normalise and project", _RATES, _nap),
    "muon": Remedy("Muon", _both(*_each("rate", 0.001, 0.003, 0.01, 0.03)), _muon),
    "redo": Remedy(
        "ReDo",
        _both(*({"redo_threshold": t, "reset_every": f} for t in (0.025, 0.1) for f in (200, 1000))),
        intervention=CONTINUAL["redo"].intervention,
    ),
    "regrama": Remedy(
        "ReGraMa",
        _both(*({"redo_threshold": t, "reset_every": f} for t in (0.025, 0.1) for f in (200, 1000))),
        intervention=CONTINUAL["regrama"].intervention,
    ),
    "cpr": Remedy(
        "CPR",
        _both(*({"cpr_strength": s, "reset_every": f} for s in (0.015, 0.15) for f in (50, 200))),
        intervention=CONTINUAL["cpr"].intervention,
    ),
    "continual_backprop": Remedy(
        "continual backprop",
        _both(*_each("replacement_rate", 1e-5, 1e-4, 1e-3, 1e-2, maturity=100)),
        intervention=CONTINUAL["continual_backprop"].intervention,
    ),
    "self_normalized_resets": Remedy(
        "self-normalized resets",
        _both(*_each("percentile", 0.9, 0.97, 0.99, 0.999)),
        intervention=_self_normalized_resets,
    ),
    "split_clones": Remedy(
        "splitting clones",
        _both(*({"tolerance": t, "reset_every": f} for t in (0.01, 0.1) for f in (100, 400))),
        intervention=_split_clones,
    ),
    "wake_dead_units": Remedy(
        "waking dead units",
        _both(*({"tolerance": t, "reset_every": f} for t in (0.0, 1e-3) for f in (100, 400))),
        intervention=_wake_dead_units,
    ),
    "recovery": Remedy(
        "recovery controller",
        {
            # A linear network has no unit that dies or saturates; its rank falls slowly.
            "sgd": tuple({"threshold": t, "cool_down": c} for t in (0.15, 0.5) for c in (100, 400)),
            "adam": tuple({"threshold": t, "cool_down": c} for t in (0.5, 1.0) for c in (100, 400)),
        },
        intervention=_recovery,
    ),
    "reset_head": Remedy("reset of the head", _PERIODS, intervention=_reset_head),
    "reset_optimizer": Remedy("reset of the optimizer", _PERIODS, intervention=_reset_optimizer),
    "fire": Remedy("FIRE", _both(*_each("strength", 0.1, 0.3, 0.7, 1.0)), intervention=_fire, needs_boundaries=True),
}

CONTROLS: dict[str, Remedy] = {
    FRESH: Remedy("fresh network", _both({"is_fresh": True})),
    PLAIN: Remedy("plain", _both({})),
}
"""What the remedies are compared with: not tuned, with the stream's own learning rate."""


def remedy_of(name: str) -> Remedy:
    """The row of a remedy or a control."""
    return CONTROLS[name] if name in CONTROLS else METHODS[name]


def label_of(name: str) -> str:
    """Name in tables and figures; methods that look at boundaries have a star."""
    return remedy_of(name).label + ("*" if remedy_of(name).needs_boundaries else "")


def lanes_of(methods: tuple[str, ...], base: str) -> list[str]:
    """The controls, and the methods that have settings for a plain optimizer."""
    return [FRESH, PLAIN, *(name for name in methods if base in METHODS[name].settings)]
