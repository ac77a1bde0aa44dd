"""Units that are almost clones, beside louder ones that are: nobody may take them for clones."""

from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np

from lopjax.losses import mean_squared_error
from lopjax.models import mlp
from lopjax.stability import unit_blocks_of_clones
from lopjax.tolerance import GAP, relative_tolerance

PARTITION = {"hidden_0": (0, 0, 1, 1)}


def audit_near_clones(seed: int, num_networks: int = 60) -> list[str]:
    """What is accepted although the units of a cluster differ, or refused although they do not; empty if nothing.

    Certificates of clones (`lopjax.certificates.certify_cloned`, `find_clones`) belong in this list, too: add them to
    `_answers`.

    Args:
        seed: of the networks.
        num_networks: how many.
    """
    rng, wrong = np.random.default_rng(seed), []
    model, batch = mlp((3,), (4,), 2, activation="tanh"), None
    for number in range(num_networks):
        dtype = str(rng.choice(["float32", "float64"]))
        difference = 0.0 if number % 4 == 0 else 10.0 ** rng.uniform(-12, 0)
        loudness = 10.0 ** rng.uniform(0, 6)
        params, actual = near_clones(
            rng, difference, loudness, str(rng.choice(["incoming", "outgoing", "bias"])), dtype
        )
        batch = jnp.asarray(rng.normal(size=(8, 3))), jnp.asarray(rng.normal(size=(8, 2)))
        tau = relative_tolerance(dtype)
        for name, is_accepted in _answers(model, {"params": params}, batch):
            if (is_accepted and actual > GAP * tau) or (not is_accepted and actual == 0):
                wrong.append(
                    f"near-clones {number} (seed {seed}): {name} {'accepts' if is_accepted else 'refuses'} units of a "
                    f"cluster that differ by {actual:.2g} of themselves in {dtype}, beside others {loudness:.2g} times "
                    "louder"
                )
    return wrong


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


def _answers(model, variables, batch) -> Iterator[tuple[str, bool]]:
    """Name of a tool, and whether it takes the pairs for clones."""
    try:
        unit_blocks_of_clones(model, variables, mean_squared_error, batch, PARTITION)
        yield "unit_blocks_of_clones", True
    except ValueError as error:
        yield "unit_blocks_of_clones", "not block constant" not in str(error)
