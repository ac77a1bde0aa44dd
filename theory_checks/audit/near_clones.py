"""Units that are almost clones, beside louder ones that are: no tool may take them for clones, and all must agree."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from lopjax.certificates import CloneVerdict, certify_cloned
from lopjax.cloning import find_clones
from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.stability import Stability, unit_blocks_of_clones
from lopjax.tolerance import CERTAIN_FROM, relative_tolerance
from theory_checks.audit.tally import Tally

PARTITION = {"hidden_0": (0, 0, 1, 1)}
TRAPPED = (CloneVerdict.BLOCK_CONSTANT, CloneVerdict.ON_V)
"""Verdicts that call the units of every cluster clones; UNDECIDED does not decide."""


def audit_near_clones(num_networks: int, seed: int) -> Tally:
    """What is accepted although units differ, or refused although they do not, and who contradicts whom.

    Args:
        num_networks: how many.
        seed: seed of everything random.
    """
    rng, tally = np.random.default_rng([seed, 3]), Tally()
    model = mlp((3,), (4,), 2, activation="tanh")
    for number in range(num_networks):
        dtype = str(rng.choice(["float32", "float64"]))
        difference = 0.0 if number % 4 == 0 else 10.0 ** rng.uniform(-12, 0)
        loudness, where = 10.0 ** rng.uniform(0, 6), str(rng.choice(["incoming", "outgoing", "bias"]))
        params, actual = near_clones(rng, difference, loudness, where, dtype)
        batch = jnp.asarray(rng.normal(size=(8, 3)), dtype), jnp.asarray(rng.normal(size=(8, 2)), dtype)
        answers = dict(_answers(model, {"params": params}, batch))
        undecided = [name for name, answer in answers.items() if answer is None]
        verdict = Stability.UNDECIDED if undecided else Stability.NEUTRAL
        tally.count(("certificates", "near-clones", dtype), verdict)
        for wrong in wrong_answers(answers, actual, relative_tolerance(dtype)):
            tally.wrong.append(
                f"near-clones {number} (seed {seed}): {wrong}; units of a cluster differ by {actual:.2g} of their "
                f"{where} part in {dtype}, beside others {loudness:.2g} times louder; {answers}"
            )
    return tally


def wrong_answers(answers: dict[str, bool | None], actual: float, tau: float) -> Iterator[str]:
    """False answers, and answers that cannot both be right."""
    for name, is_clone in answers.items():
        if is_clone and actual > CERTAIN_FROM * tau:
            yield f"{name} takes them for clones"
        if is_clone is False and actual == 0:
            yield f"{name} refuses clones"
    certified, detected = answers["certify_cloned"], answers["find_clones"]
    if certified is not None and certified != detected:
        yield "certify_cloned and find_clones contradict each other"


def near_clones(
    rng: np.random.Generator, difference: float, loudness: float, where: str, dtype: str
) -> tuple[dict, float]:
    """Two pairs: exact clones that are loud, a quiet pair that differs by a share of itself; that share as stored."""
    kernel, bias = np.repeat(rng.normal(size=(3, 2)), 2, axis=1), np.repeat(rng.normal(size=2), 2)
    reader = np.repeat(rng.normal(size=(2, 2)), 2, axis=0)
    kernel[:, :2] *= loudness
    bias[:2] *= loudness
    reader[:2] *= loudness
    changed = {"incoming": kernel[:, 3], "outgoing": reader[3], "bias": bias[3:]}[where]
    changed *= 1 + difference * rng.choice([-1.0, 1.0], size=changed.shape)
    kernel, bias, reader = (array.astype(dtype) for array in (kernel, bias, reader))
    pairs = {"incoming": kernel[:, 2:].T, "outgoing": reader[2:], "bias": bias[2:, None]}
    quiet = pairs[where].astype(np.float64)
    mean = quiet.mean(axis=0)
    actual = float(np.linalg.norm(quiet - mean) / np.linalg.norm(quiet))
    params = {
        "hidden_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
        "classes": {"kernel": jnp.asarray(reader), "bias": jnp.zeros(2, dtype)},
    }
    return params, actual


def _answers(model, variables, batch) -> Iterator[tuple[str, bool | None]]:
    """Name of a tool, and whether it takes the pairs for clones; `None` where it does not say."""
    try:
        unit_blocks_of_clones(model, variables, batch, PARTITION, loss=mean_squared_error)
        yield "unit_blocks_of_clones", True
    except ValueError as error:
        yield "unit_blocks_of_clones", "not block constant" not in str(error)
    for name, data in (("certify_cloned", None), ("certify_cloned with a batch", batch)):
        verdict = certify_cloned(model, variables, data, PARTITION, loss=mean_squared_error).verdict
        yield name, None if verdict is CloneVerdict.UNDECIDED else verdict in TRAPPED
    yield "find_clones", find_clones(model, variables, batch[0])["hidden_0"].parameters == PARTITION["hidden_0"]
