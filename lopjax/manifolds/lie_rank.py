"""How much of parameter space gradient flow can reach: the rank of the Lie algebra of its vector fields."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from lopjax.activations import activation
from lopjax.arguments.batches import as_batch
from lopjax.cloning.programs import check_programs
from lopjax.losses import Batch, check_batch, mean_cross_entropy
from lopjax.model import Model, Params, Variables
from lopjax.tolerance import CERTAIN_FROM, rounding_tolerance

MAX_PARAMETERS = 1024
"""Largest number of parameters: the cost, singular values of more brackets than parameters, is cubic."""

_CHUNK = 64
"""Number of draws whose brackets are computed at a time."""

Loss = Callable[[Array, Array], Array]
Field = Callable[[Array], Array]
Tower = Callable[[Array], tuple[tuple[Array, Array], ...]]


class FunctionalCodimension(NamedTuple):
    """An **upper bound** on the number of directions in which gradient flow from this point never moves, on any data.

    Brackets up to a finite depth on finitely many inputs can only miss directions. If `ranks` has stopped growing, also
    when the number of inputs is doubled, the bound is likely to be attained; that is evidence, not proof.

    Attributes:
        codimension: parameters minus rank: the dimension of the largest structure that could trap training on every
            data set; 0 proves that there is none.
        rank: dimension of the span of the brackets found.
        num_parameters: dimension of parameter space.
        gap: ratio of the smallest singular value counted to the largest one not counted (infinite if all are counted,
            or the rest are 0): the rank is clear if this is far above 1.
        tolerance: singular values up to this are rounding; those up to ten times it are undecided and not counted.
        depth: length of the longest brackets: 1 is the fields themselves, 2 adds [X, Y], 3 adds [X, [Y, Z]].
        ranks: rank at each depth up to `depth`.
        is_saturated_in_depth: whether the last depth added nothing.
        is_saturated_in_samples: whether half the inputs give the same rank.
        notes: limits of the bound, and assumptions that this network does not meet.
    """

    codimension: int
    rank: int
    num_parameters: int
    gap: float
    tolerance: float
    depth: int
    ranks: tuple[int, ...]
    is_saturated_in_depth: bool
    is_saturated_in_samples: bool
    notes: tuple[str, ...]


def functional_codimension(
    model: Model,
    variables: Variables,
    batch: Batch,
    *,
    loss: Loss = mean_cross_entropy,
    depth: int = 3,
    key: jax.Array | None = None,
) -> FunctionalCodimension:
    """Bound the codimension of the smallest manifold through the parameters that gradient flow never leaves.

    Gradient flow of any data set is a combination of the fields `X(theta) = grad_theta (c . f(theta, x))`, one for
    every input x and every output vector c in the span of the gradients of the loss with respect to the outputs. The
    points that it can reach by switching data sets form the orbit of these fields, whose dimension is the rank of the
    Lie algebra that they generate (Sussmann); it is contained in every manifold that traps training for all data,
    affine or curved. Cross-entropy produces only vectors c with sum zero, the squared error all vectors; this is
    determined from the loss itself.

    Brackets `[X, Y] = DY X - DX Y` of random combinations of the fields are nested Jacobian-vector products; no Hessian
    is formed. Eval mode: batch norm with its running statistics, no dropout.

    Args:
        model: the network, of at most 1024 parameters.
        variables: its variables; float32 is computed in float64.
        batch: `(inputs, labels)`. Only its size and ranges matter: the same number of inputs is drawn uniformly between
            the smallest and the largest value of every input entry. Labels only show the type that the loss takes.
        loss: `(outputs, labels) -> scalar`, a mean over samples.
        depth: length of the longest brackets, at least 1.
        key: random key of the draws; default `jax.random.key(0)`.

    Returns:
        The bound, with its evidence.

    Raises:
        ValueError: a depth below 1, too many parameters, an empty batch, inputs, parameters or brackets that are not
            finite, or a loss whose gradient with respect to the outputs is 0.
        RuntimeError: double precision is off.

    Example:
        >>> from lopjax.losses import mean_squared_error
        >>> from lopjax.models import mlp
        >>> with jax.enable_x64(True):
        ...     model = mlp((1,), (1,), 1)
        ...     variables = {"params": jax.tree.map(jnp.ones_like, model.init(jax.random.key(0))["params"])}
        ...     batch = jnp.linspace(0, 1, 8)[:, None], jnp.zeros((8, 1))
        ...     functional_codimension(model, variables, batch, loss=mean_squared_error).codimension  # w² + b² - a²
        1

    References:
        Sussmann, Orbits of families of vector fields and integrability of distributions (1973); for conservation laws
        of gradient flow: Marcotte, Gribonval, Peyré, arXiv 2307.00144.
    """
    batch = as_batch(batch)
    check_batch(model, variables, batch, loss=loss)
    check_programs(model, {**variables, "params": _to_float64(variables["params"])}, batch, loss, is_curved=True)
    theta, unravel = _flat_parameters(variables, depth)
    drawn, of_outputs, of_fields = jax.random.split(jax.random.key(0) if key is None else key, 3)
    inputs, is_constant = _redrawn(jnp.asarray(batch[0]), drawn)
    statistics = {name: _to_float64(tree) for name, tree in variables.items() if name != "params"}

    def outputs(theta: Array) -> Array:
        return model.apply({**statistics, "params": unravel(theta)}, inputs, dropout_rate=0.0).logits

    _require_float64_throughout(model, {**statistics, "params": unravel(theta)}, inputs)
    present = jax.jit(outputs)(theta)
    terms, output_notes = _output_terms(loss, present, jnp.asarray(batch[1]), of_outputs)
    shape = jax.eval_shape(jax.vmap(terms), present).shape
    by_depth, with_half = _ranks(lambda theta: jax.vmap(terms)(outputs(theta)), theta, shape, depth, of_fields)
    rank, gap, tolerance, undecided = by_depth[-1]
    ranks, is_full = tuple(one[0] for one in by_depth), rank == theta.size
    return FunctionalCodimension(
        codimension=theta.size - rank,
        rank=rank,
        num_parameters=theta.size,
        gap=gap,
        tolerance=tolerance,
        depth=depth,
        ranks=ranks,
        # At full rank nothing more can be found.
        is_saturated_in_depth=is_full or (depth > 1 and ranks[-1] == ranks[-2]),
        is_saturated_in_samples=is_full or with_half == rank,
        notes=(*output_notes, *_notes(model, variables, is_constant, undecided)),
    )


def _redrawn(inputs: Array, key: jax.Array) -> tuple[Array, Array]:
    """The same number of inputs, uniform over the range of every entry, and which entries do not vary."""
    if inputs.shape[0] == 0 or not bool(jnp.isfinite(inputs).all()):
        raise ValueError(f"inputs of shape {inputs.shape}: must be finite, and at least one")
    low, high = (jnp.asarray(bound, float) for bound in (inputs.min(axis=0), inputs.max(axis=0)))
    return jax.random.uniform(key, inputs.shape, float, low, high), low == high


def _ranks(
    values: Callable[[Array], Array], theta: Array, shape: tuple[int, ...], depth: int, key: jax.Array
) -> tuple[list[tuple[int, float, float, int]], int]:
    """`_rank` at every depth, and the rank of the first half of the samples.

    Args:
        values: from theta to the functions whose gradients are the fields, `(samples, functions)`.
        theta: the parameters.
        shape: shape of `values`.
        depth: length of the longest brackets.
        key: random key of the combinations.
    """

    def potential(theta: Array, weights: Array) -> Array:
        return jnp.sum(weights * values(theta))

    draws = theta.size + 8
    weights = jax.random.normal(key, (2 * draws, depth, *shape))
    is_first_half = jnp.arange(shape[0]) < shape[0] // 2
    vectors = _brackets(potential, theta, weights.at[draws:].multiply(is_first_half[:, None]))
    if not np.isfinite(vectors).all():
        raise ValueError(
            "brackets of these parameters are not finite: no rank can be found; take smaller parameters or inputs"
        )
    by_depth = [_rank(vectors[:draws, : d + 1], theta.size) for d in range(depth)]
    return by_depth, _rank(vectors[draws:], theta.size)[0]


def _flat_parameters(variables: Variables, depth: int) -> tuple[Array, Callable[[Array], Params]]:
    """The parameters as one float64 vector and its inverse map, after checking that the rank can be computed."""
    if jnp.zeros(()).dtype != jnp.float64:
        raise RuntimeError(
            "the rank of brackets needs float64, and JAX is set to float32: call "
            'jax.config.update("jax_enable_x64", True) first, or work inside `with jax.enable_x64(True):`'
        )
    if depth < 1:
        raise ValueError(f"depth={depth}: must be at least 1, the fields themselves")
    theta, unravel = ravel_pytree(_to_float64(variables["params"]))
    if not 0 < theta.size <= MAX_PARAMETERS:
        raise ValueError(f"{theta.size} parameters: must be between 1 and {MAX_PARAMETERS}; use a smaller network")
    if not bool(jnp.isfinite(theta).all()):
        raise ValueError("parameters are not finite: they must be, for a rank to be found")
    return theta, unravel


def _to_float64(tree: Params) -> Params:
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), tree)


def _require_float64_throughout(model: Model, variables: Variables, inputs: Array) -> None:
    """Refuse a network that computes in lower precision: its rounding errors would be counted as directions."""
    logits, _, taps = jax.eval_shape(lambda v, x: model.apply(v, x, dropout_rate=0.0), variables, inputs)
    types = {str(leaf.dtype) for leaf in (logits, *jax.tree.leaves(taps))}
    if types != {"float64"}:
        raise ValueError(f"the network computes in {sorted(types)}: must be float64 throughout (compute_dtype)")


def _output_terms(
    loss: Loss, outputs: Array, labels: Array, key: jax.Array
) -> tuple[Callable[[Array], Array], tuple[str, ...]]:
    """Functions of one sample's output whose gradients span those of the loss.

    The usual losses have a constant span C (sum zero, or everything): the functions are then `c . f` for a basis c of
    C. Otherwise they are the losses under random labels, of which gradient flow is a combination by definition.
    """
    shape = outputs.shape[1:]
    for_labels, for_places = jax.random.split(key)
    size = int(np.prod(shape))
    if jnp.issubdtype(labels.dtype, jnp.integer) and labels.ndim == 1:
        drawn = jnp.arange(size, dtype=labels.dtype)
    elif jnp.issubdtype(labels.dtype, jnp.integer):
        drawn = jax.random.randint(for_labels, (2 * size + 2, *labels.shape[1:]), 0, shape[-1], labels.dtype)
    else:
        drawn = jax.random.normal(for_labels, (2 * size + 2, *labels.shape[1:]))

    def losses(output: Array) -> Array:
        return jax.vmap(lambda label: loss(output[None], label[None]))(drawn)

    # At the network's own outputs, and at outputs of typical size.
    places = jnp.concatenate([outputs[:1], jax.random.normal(for_places, (5, *shape))])
    gradients = np.asarray(jax.jit(jax.vmap(jax.jacrev(losses)))(places)).reshape(len(places), -1, size)
    if not np.isfinite(gradients).all():
        raise ValueError("the gradient of the loss by the outputs is not finite")
    _, values, rows = np.linalg.svd(gradients.reshape(-1, size))
    limit = 1e-9 * values[0]
    rank = int(np.sum(values > limit))
    if values[0] == 0:
        raise ValueError("the gradient of the loss by the outputs is 0 for every label: nothing is trained")
    if all(np.sum(np.linalg.svd(one, compute_uv=False) > limit) == rank for one in gradients):
        basis = jnp.asarray(rows[:rank])
        missing = f"output vectors: {rank} of {size} dimensions, as the loss produces them"
        return lambda output: basis @ output.ravel(), (missing,) if rank < size else ()
    note = f"the loss's output gradients span different spaces at different outputs: {len(drawn)} labels stand for all"
    return losses, (note,)


def _brackets(
    potential: Callable[[Array, Array], Array], theta: Array, weights: Float[Array, "draws depth *sample"]
) -> Float[np.ndarray, "draws depth parameters"]:
    """Left-normed brackets [X_d, [..., [X_2, X_1]]] of random fields, at every depth; these span the Lie algebra.

    Each is divided by the size of the terms that cancelled in it, so that rounding is about eps in all of them and a
    bracket that consists of rounding errors is not mistaken for a direction.
    """

    def one(weights: Array) -> Array:
        tower: Tower = lambda theta: ((jax.grad(potential)(theta, weights[0]), jnp.zeros_like(theta)),)  # noqa: E731
        for level in range(1, len(weights)):
            tower = _one_deeper(tower, lambda theta, level=level: jax.grad(potential)(theta, weights[level]))
        return jnp.stack(_by_kept_digits(tower(theta)))

    draws = len(weights)
    chunks = jnp.resize(weights, (-(-draws // _CHUNK), _CHUNK, *weights.shape[1:]))
    vectors = jax.jit(lambda chunks: jax.lax.map(jax.vmap(one), chunks))(chunks)
    return np.asarray(vectors).reshape(-1, *vectors.shape[2:])[:draws]


def _one_deeper(tower: Tower, field: Field) -> Tower:
    """Add the bracket of a further field X with the last one Y, as the two terms DY X and DX Y of the difference.

    One Jacobian-vector product of the whole tower gives its values and DY X together.
    """

    def deeper(theta: Array) -> tuple[tuple[Array, Array], ...]:
        values, changes = jax.jvp(tower, (theta,), (field(theta),))
        last = jnp.subtract(*values[-1])
        return (*values, (jnp.subtract(*changes[-1]), jax.jvp(field, (theta,), (last,))[1]))

    return deeper


def _by_kept_digits(terms: tuple[tuple[Array, Array], ...]) -> list[Array]:
    """The brackets as vectors of length 1/a, with a the factor by which cancellation amplified their rounding."""
    vectors, amplified = [], jnp.ones(())
    for first, second in terms:
        bracket = first - second
        length, size = jnp.linalg.norm(bracket), jnp.linalg.norm(first) + jnp.linalg.norm(second)
        is_zero = length == 0
        amplified = amplified * size / jnp.where(is_zero, 1.0, length)
        vectors.append(jnp.where(is_zero, 0.0, bracket / jnp.where(is_zero, 1.0, length * amplified)))
    return vectors


def _rank(vectors: Float[np.ndarray, "draws depth parameters"], size: int) -> tuple[int, float, float, int]:
    """Rank, gap, tolerance `64 eps sqrt(vectors) sigma_1`, and the number of values between 1 and 10 times that."""
    rows = vectors.reshape(-1, size)
    values = np.linalg.svd(rows, compute_uv=False)
    tolerance = float(rounding_tolerance(np.float64, len(rows), values[0]))
    rank = int(np.sum(values > CERTAIN_FROM * tolerance))
    following = float(values[rank]) if rank < size else 0.0
    gap = float(values[rank - 1]) / following if rank and following > 0 else float("inf")
    return rank, gap, tolerance, int(np.sum(values > tolerance)) - rank


def _notes(model: Model, variables: Variables, is_constant: Array, undecided: int) -> tuple[str, ...]:
    notes = ["an upper bound: brackets of finite depth on finitely many inputs may miss directions"]
    entries = {name: activation(site.activation) for name, site in model.wiring.sites}
    if kinked := sorted({entry.name for entry in entries.values() if entry.kinks is None or entry.kinks}):
        notes.append(
            f"{', '.join(kinked)}: not analytic as far as is known, so the theorem does not apply as it stands; "
            "brackets see the smooth pieces at these parameters, not what lies beyond a kink"
        )
    if undecided:
        notes.append(f"{undecided} singular values are undecided: above rounding, below ten times it; not counted")
    if constant := int(np.sum(np.asarray(is_constant))):
        notes.append(f"{constant} input entries do not vary on the batch, and count as constant in every data set")
    if "batch_stats" in variables:
        notes.append("batch norm: running statistics held fixed; train mode, which couples samples, is not covered")
    if any(jnp.asarray(leaf).dtype != jnp.float64 for leaf in jax.tree.leaves(variables["params"])):
        notes.append("parameters were converted to float64")
    return tuple(notes)
