"""Run a traced program in NumPy, in float64 and at any numbers of units: nothing is compiled."""

import math
from functools import partial
from itertools import product

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from scipy import special

from lopjax.tracing.jaxprs import scan_counts


def evaluate(sizes, inputs):
    """Outputs of a program; `sizes` are the numbers of units (`lopjax.tracing.wide.Sizes`)."""
    program = sizes.typing.program
    values = dict(zip(program.block.inputs, inputs, strict=True))
    run(sizes, program.block, values)
    return [value_of(sizes, values, each) for each in program.block.outputs]


def value_of(sizes, values, value):
    if value not in values:
        values[value] = widened(np.asarray(sizes.constant(value, sizes.typing.program.constants[value])))
    return values[value]


def widened(array):
    return array.astype(np.float64) if np.issubdtype(array.dtype, np.floating) else array


def run(sizes, block, values):
    for node in block.nodes:
        if node.is_call:
            run(sizes, node.blocks[0], values)
            continue
        given = [value_of(sizes, values, value) for value in node.inputs]
        if node.blocks:
            made = LOOPS[node.name](sizes, node, given)
        else:
            given = [widened(np.asarray(sizes.operand(node, index, each))) for index, each in enumerate(given)]
            made = PRIMITIVES[node.name](sizes.params(node), *given)
        made = made if isinstance(made, list | tuple) else [made]
        values.update(zip(node.outputs, map(np.asarray, made), strict=True))


# --- Loops and branches --------------------


def inside(sizes, block, given):
    values = dict(zip(block.inputs, given, strict=True))
    run(sizes, block, values)
    return [value_of(sizes, values, each) for each in block.outputs]


def scan(sizes, node, given):
    num_consts, num_carry = scan_counts(node)
    consts, carry, xs = given[:num_consts], given[num_consts:][:num_carry], given[num_consts + num_carry :]
    steps = range(node.params["length"])
    made = [[] for _ in steps]
    for step in reversed(steps) if node.params["reverse"] else steps:
        out = inside(sizes, node.blocks[0], [*consts, *carry, *(x[step] for x in xs)])
        carry, made[step] = out[:num_carry], out[num_carry:]
    return [*carry, *(np.stack(each) for each in zip(*made, strict=True))]


def while_loop(sizes, node, given):
    num_cond, num_body = node.params["cond_nconsts"], node.params["body_nconsts"]
    before, consts, carry = given[:num_cond], given[num_cond:][:num_body], given[num_cond + num_body :]
    while inside(sizes, node.blocks[0], [*before, *carry])[0]:
        carry = inside(sizes, node.blocks[1], [*consts, *carry])
    return carry


def cond(sizes, node, given):
    return inside(sizes, node.blocks[int(given[0])], given[1:])


LOOPS = {"scan": scan, "while": while_loop, "cond": cond}


# --- Primitives that move entries --------------------


def broadcast(params, array):
    shape = [1] * len(params["shape"])
    for index, size in zip(params["broadcast_dimensions"], array.shape, strict=True):
        shape[index] = size
    return np.broadcast_to(array.reshape(shape), params["shape"])


def iota(params):
    shape = [1] * len(params["shape"])
    shape[params["dimension"]] = -1
    return np.broadcast_to(np.arange(params["shape"][params["dimension"]]).reshape(shape), params["shape"])


def slices(params, array):
    strides = params["strides"] or (1,) * array.ndim
    bounds = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    return array[tuple(slice(*map(int, each)) for each in bounds)]


def pad(params, array, filled):
    assert all(low >= 0 and high >= 0 and not inner for low, high, inner in params["padding_config"])
    return np.pad(array, [each[:2] for each in params["padding_config"]], constant_values=filled)


def window_of(starts, sizes, shape):
    starts = [min(max(int(start), 0), whole - size) for start, size, whole in zip(starts, sizes, shape, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def update(params, array, part, *starts):
    made = array.copy()
    made[window_of(starts, part.shape, array.shape)] = part
    return made


def gather(params, array, indices):
    """One window for each row of indices."""
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    assert not numbers.operand_batching_dims
    places = indices.shape[:-1]
    windows = []
    for place in product(*map(range, places)):
        starts = [0] * array.ndim
        for index, axis in zip(indices[place], numbers.start_index_map, strict=True):
            starts[axis] = index
        windows.append(array[window_of(starts, sizes, array.shape)])
    made = np.stack(windows)
    gone = tuple(axis + 1 for axis in numbers.collapsed_slice_dims)
    made = made.squeeze(gone)
    made = made.reshape(*places, *made.shape[1:])
    return np.moveaxis(made, range(len(places), made.ndim), numbers.offset_dims)


def scatter(put, params, array, indices, updates):
    numbers, made = params["dimension_numbers"], array.copy()
    windows = numbers.update_window_dims
    moved = np.moveaxis(updates, windows, range(updates.ndim - len(windows), updates.ndim))
    for place in product(*map(range, indices.shape[:-1])):
        at = [slice(None)] * array.ndim
        for index, axis in zip(indices[place], numbers.scatter_dims_to_operand_dims, strict=True):
            at[axis] = int(index)
        made[tuple(at)] = put(made[tuple(at)], moved[place])
    return made


def sort(params, *arrays):
    order = np.argsort(arrays[0], params["dimension"], kind="stable")
    return [np.take_along_axis(array, order, params["dimension"]) for array in arrays]


def top_k(params, array):
    axis = params.get("axis", array.ndim - 1)
    order = np.take(np.argsort(-array, axis, kind="stable"), range(params["k"]), axis)
    return [np.take_along_axis(array, order, axis), order]


# --- Sums and products --------------------


def dot_general(params, left, right):
    (contract_l, contract_r), (batch_l, batch_r) = params["dimension_numbers"]
    names_l, free = [None] * left.ndim, iter(range(26, 52))
    names_r = [None] * right.ndim
    for name, (one, other) in enumerate(zip((*contract_l, *batch_l), (*contract_r, *batch_r), strict=True)):
        names_l[one] = names_r[other] = name
    batch = [names_l[axis] for axis in batch_l]
    names_l = [next(free) if name is None else name for name in names_l]
    names_r = [next(free) if name is None else name for name in names_r]
    out = [*batch, *(name for name in (*names_l, *names_r) if name >= 26)]
    return np.einsum(left, names_l, right, names_r, out)


def convolution(params, image, kernel):
    """Of one or two positions, stride 1."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    image, kernel = image.transpose(numbers.lhs_spec), kernel.transpose(numbers.rhs_spec)
    image = np.pad(image, [(0, 0), (0, 0), *params["padding"]])
    axes = tuple(range(2, image.ndim))
    seen = sliding_window_view(image, kernel.shape[2:], axes)  # batch, channels, places, offsets
    seen = seen.reshape(len(seen), groups, -1, *seen.shape[2:])
    kernel = kernel.reshape(groups, -1, *kernel.shape[1:])
    rank = len(axes)
    place, offset = list(range(10, 10 + rank)), list(range(20, 20 + rank))
    made = np.einsum(seen, [0, 1, 2, *place, *offset], kernel, [1, 3, 2, *offset], [0, 1, 3, *place])
    return made.reshape(len(made), -1, *made.shape[3:]).transpose(np.argsort(numbers.out_spec))


def pooled(reduce):
    def pool(params, array, *start):
        assert set(params["window_strides"]) == {1}
        assert not any(map(any, params["padding"]))
        seen = sliding_window_view(array, params["window_dimensions"])
        return reduce(seen, tuple(range(array.ndim, 2 * array.ndim)))

    return pool


def over_axes(function):
    return lambda params, array: function(array, axis=tuple(params["axes"]))


def along(function):
    return lambda params, array: function(array, axis=params["axis"])


def converted(params, array):
    kind = np.dtype(params["new_dtype"])
    return array.astype(np.float64 if np.issubdtype(kind, np.floating) else kind)


def random_bits(params, key):
    return np.random.default_rng(0).integers(0, 2**32, params["shape"], np.uint32)


def plainly(function):
    return lambda params, *given: function(*given)


PRIMITIVES = {
    **{name: plainly(getattr(np, name)) for name in ("abs", "exp", "expm1", "floor", "log1p", "sign", "sin", "sqrt")},
    **{name: plainly(getattr(np, name)) for name in ("cos", "log", "square", "tan", "tanh")},
    **{"add": plainly(np.add), "sub": plainly(np.subtract), "mul": plainly(np.multiply), "div": plainly(np.divide)},
    **{"max": plainly(np.maximum), "min": plainly(np.minimum), "neg": plainly(np.negative), "pow": plainly(np.power)},
    **{"eq": plainly(np.equal), "ne": plainly(np.not_equal), "lt": plainly(np.less), "le": plainly(np.less_equal)},
    **{"gt": plainly(np.greater), "ge": plainly(np.greater_equal), "and": plainly(np.logical_and)},
    **{"not": plainly(np.logical_not), "erf": plainly(special.erf), "logistic": plainly(special.expit)},
    **dict.fromkeys(("copy", "name", "stop_gradient", "optimization_barrier"), plainly(lambda array: array)),
    "rsqrt": plainly(lambda array: 1 / np.sqrt(array)),
    "clamp": plainly(lambda low, array, high: np.clip(array, low, high)),
    "integer_pow": lambda params, array: array ** params["y"],
    "select_n": plainly(lambda which, *cases: np.choose(which.astype(int), cases)),
    "convert_element_type": converted,
    "broadcast_in_dim": broadcast,
    "iota": iota,
    "reshape": lambda params, array: array.reshape(params["new_sizes"]),
    "squeeze": lambda params, array: array.squeeze(tuple(params["dimensions"])),
    "transpose": lambda params, array: array.transpose(params["permutation"]),
    "rev": lambda params, array: np.flip(array, params["dimensions"]),
    "slice": slices,
    "split": lambda params, array: np.split(array, np.cumsum(params["sizes"])[:-1], params["axis"]),
    "concatenate": lambda params, *arrays: np.concatenate(arrays, params["dimension"]),
    "stack": lambda params, *arrays: np.stack(arrays, params["axis"]),
    "unstack": lambda params, array: list(np.moveaxis(array, params["axis"], 0)),
    "tile": lambda params, array: np.tile(array, params["reps"]),
    "pad": pad,
    "gather": gather,
    "scatter-add": partial(scatter, np.add),
    "scatter-mul": partial(scatter, np.multiply),
    "dynamic_slice": lambda params, array, *at: array[window_of(at, params["slice_sizes"], array.shape)],
    "dynamic_update_slice": update,
    "sort": sort,
    "top_k": top_k,
    "argmax": lambda params, array: array.argmax(params["axes"][0]),
    "cumsum": along(np.cumsum),
    "cummax": along(np.maximum.accumulate),
    "reduce_sum": over_axes(np.sum),
    "reduce_max": over_axes(np.max),
    "reduce_min": over_axes(np.min),
    "reduce_prod": over_axes(np.prod),
    "reduce_or": over_axes(np.any),
    "reduce_and": over_axes(np.all),
    "reduce_window_max": pooled(np.max),
    "reduce_window_sum": pooled(np.sum),
    "dot_general": dot_general,
    "conv_general_dilated": convolution,
    "random_bits": random_bits,
    "random_seed": lambda params, seed: np.zeros(()),
    "random_wrap": lambda params, key: np.zeros(()),
    "random_unwrap": lambda params, key: np.zeros(2, np.uint32),
    "fft": lambda params, array: np.fft.fft(array),
    "real": plainly(np.real),
}
"""`(parameters, operands) -> result`, by name; what has no entry here is not drawn by `random_programs`."""

assert math.isclose(PRIMITIVES["erf"]({}, 1.0), 0.8427007929)
