"""The parts of a run, one an activation and stream: clones form, then every network meets the next task three ways."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.formation.clusters import Units, merged, outgoing_kick, units_of
from experiments.formation.config import ARMS, STREAMS, Config
from experiments.formation.setup import Setup, network
from experiments.formation.training import HIDDEN, OUTGOING, Formed, form, keys_of, learn_next
from experiments.kit.coarse_digits import loss_of
from lopjax.activations import activation
from lopjax.losses import mean_cross_entropy
from lopjax.model import Params, Variables
from lopjax.runs.schedule import Part
from lopjax.stability import decayed_clones
from lopjax.training import over_lanes

Records = list[dict[str, Any]]


def parts(config: Config, setup: Setup) -> list[Part]:
    """Of every activation: fixed labels, permuted labels, and what the blocks say about the first."""
    planned = []
    for name in config.activations:
        num = len(config.seeds) * len(config.decays)
        for stream in STREAMS:
            do = partial(_live, setup, name, stream)
            steps = num * (config.steps + len(ARMS) * config.next_steps)
            planned.append(Part(f"{name}: {stream}", steps, do, lambda: jnp.zeros(()), num * len(ARMS)))
        if config.predicted_seeds:
            num_predicted = config.predicted_seeds * len(config.decays)
            do = partial(_predict, setup, name)
            planned.append(Part(f"{name}: prediction", num_predicted, do, lambda: jnp.zeros(()), num_predicted))
    return planned


# --- Networks that live through it ------------------------------------------------------------------------------------


def formed_networks(setup: Setup, name: str, stream: str, seeds: tuple[int, ...]) -> tuple[Formed, jax.Array]:
    """Every seed at every decay, seeds outermost, and the keys of every lane."""
    config, model = setup.config, setup.models[name]
    keys = jnp.repeat(jax.vmap(keys_of)(jnp.array(seeds)), len(config.decays), axis=0)
    decays = jnp.tile(jnp.array(config.decays, jnp.float32), len(seeds))
    grow = over_lanes(partial(form, model, config), 2)
    return grow(keys[:, 0], decays, jnp.asarray(stream == "permuted labels"), setup.batch), keys


def _live(setup: Setup, name: str, stream: str, nothing: Any) -> tuple[Any, Records]:
    del nothing
    config, model = setup.config, setup.models[name]
    formed, keys = formed_networks(setup, name, stream, config.seeds)
    units = [_units(setup, name, each) for each in np.asarray(formed.activations)]
    starts = {
        "as_it_is": formed.params,
        "free_kick": _kicked(setup, formed.params, units, keys[:, 3]),
        "drawn_anew": jax.jit(jax.vmap(lambda key: model.init(key)["params"]))(keys[:, 2]),
    }
    learn = over_lanes(partial(learn_next, model, config), 2)
    loss = jax.jit(jax.vmap(partial(loss_of, model), (0, None)))
    before = np.asarray(loss(formed.params, setup.batch))
    records: Records = []
    for arm, start in starts.items():
        learned = jax.device_get(learn(start, keys[:, 1], setup.batch))
        jump = np.asarray(loss(start, setup.batch)) - before
        for lane in range(len(keys)):
            seed, decay = divmod(lane, len(config.decays))
            ended = _units(setup, name, learned.activations[lane])
            records.append(
                {
                    "activation": name, "stream": stream, "decay": config.decays[decay], "seed": config.seeds[seed],
                    "arm": arm, "loss": float(formed.loss[lane]), "rank": float(formed.rank[lane]),
                    "gradient_norm": float(formed.gradient_norm[lane]),
                    "distinct": units[lane].num_distinct, "vanished": units[lane].num_vanished,
                    "jump": float(jump[lane]), "next_mean_loss": float(learned.mean_loss[lane]),
                    "next_end_loss": float(learned.end_loss[lane]), "next_rank": float(learned.rank[lane]),
                    "next_distinct": ended.num_distinct,
                }
            )  # fmt: skip
    return jnp.zeros(()), records


def _units(setup: Setup, name: str, activations: np.ndarray) -> Units:
    return units_of(activations, activation(name), setup.config.tolerance)


def _kicked(setup: Setup, params: Params, units: list[Units], keys: jax.Array) -> Params:
    """Every lane after a Gaussian change of outgoing weights that its outputs do not see, up to `config.tolerance`."""
    outgoing = np.asarray(params[OUTGOING]["kernel"], np.float64)
    noise = np.asarray(jax.vmap(lambda key: jax.random.normal(key, outgoing.shape[1:]))(keys))
    scales = setup.config.kick * np.sqrt(np.mean(outgoing**2, (1, 2)))
    kicks = np.stack([scale * outgoing_kick(each, own) for scale, each, own in zip(scales, units, noise, strict=True)])
    changed = jnp.asarray(outgoing + kicks, params[OUTGOING]["kernel"].dtype)
    return {**params, OUTGOING: {**params[OUTGOING], "kernel": changed}}


# --- What the blocks say ----------------------------------------------------------------------------------------------


def _predict(setup: Setup, name: str, nothing: Any) -> tuple[Any, Records]:
    """Whether the clusters that formed attract: at their own decay, and at the smallest, where few or none form."""
    del nothing
    config = setup.config
    seeds = config.seeds[: config.predicted_seeds]
    formed, _ = formed_networks(setup, name, STREAMS[0], seeds)
    arrays = jax.device_get((formed.params, formed.activations))
    records: Records = []
    for lane in range(len(seeds) * len(config.decays)):
        seed, decay = divmod(lane, len(config.decays))
        params, activations = jax.tree.map(lambda leaf, lane=lane: leaf[lane], arrays)
        units = _units(setup, name, activations)
        judged = {
            "own": config.decays[decay],
            "smallest": min((each for each in config.decays if 0 < each < config.decays[decay]), default=None),
        }
        records.append(
            {
                "activation": name, "decay": config.decays[decay], "seed": seeds[seed], "arm": "prediction",
                "distinct": units.num_distinct, "vanished": units.num_vanished,
                **{f"at_{where}": None if at is None else judge(setup, name, params, units, at)
                   for where, at in judged.items()},
            }
        )  # fmt: skip
    return jnp.zeros(()), records


def judge(setup: Setup, name: str, params: Params, units: Units, decay: float) -> dict[str, Any] | None:
    """Verdict and rate of the clusters at the stationary point of their merged network; None without clusters."""
    copies = np.bincount(units.cluster[units.cluster >= 0], minlength=units.num_distinct)
    if units.num_distinct == 0 or copies.max() < 2:
        return None
    with jax.enable_x64(True):
        batch = jnp.asarray(setup.batch[0], float), jnp.asarray(setup.batch[1])
        small = network(name, units.num_distinct)
        factor = {HIDDEN: tuple(int(each) for each in copies)}
        point = decayed_clones(small, _merged_variables(params, units), batch, factor, decay, loss=mean_cross_entropy)
    return {"verdict": point.verdict.name, "rate": float(point.rate), "uncertainty": float(point.uncertainty)}


def _merged_variables(params: Params, units: Units) -> Variables:
    """The network of distinct units, float64; to be called while that is on."""
    first, last = params[HIDDEN], params[OUTGOING]
    kernel, bias, outgoing = merged(
        np.asarray(first["kernel"], float), np.asarray(first["bias"], float), np.asarray(last["kernel"], float), units
    )
    arrays = {
        HIDDEN: {"kernel": kernel, "bias": bias},
        OUTGOING: {"kernel": outgoing, "bias": np.asarray(last["bias"], float)},
    }
    return {"params": jax.tree.map(jnp.asarray, arrays)}
