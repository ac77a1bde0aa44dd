"""Run a program, recording and shifting the values at its sites, possibly at other numbers of units."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lopjax.model import Tap
from lopjax.tracing.jaxprs import CUSTOM_RULES, REMAT, Block, Node, rebind, scan_counts, walk
from lopjax.tracing.primitives import ELEMENTWISE
from lopjax.tracing.sites import FoundSite
from lopjax.tracing.wide import Sizes

Recorded = dict[str, tuple[Any, Any]]
"""Pre- and post-activations per site, in the program's own axes."""


class Setting(NamedTuple):
    """The settings of a run, apart from the inputs.

    Attributes:
        sizes: sizes of the network.
        sites: the sites by name.
        shifts: arrays added at each site, in the program's own axes.
        opened: the calls whose nodes are run one by one.
        wrapped: the calls that lie between a site's pre- and its post-activation.
    """

    sizes: Sizes
    sites: Mapping[str, FoundSite]
    shifts: Mapping[str, Tap]
    opened: frozenset[Node] = frozenset()
    wrapped: frozenset[Node] = frozenset()


def make_setting(sizes: Sizes, sites: Mapping[str, FoundSite], shifts: Mapping[str, Tap]) -> Setting:
    """A setting, with the calls that have to be opened: those that contain sites, or all if sizes change."""
    opened: set[Node] = set()
    wrapped: set[Node] = set()
    for node in walk(sizes.typing.program.block):
        if not node.is_call:
            continue
        nodes = set(_plain(node.blocks[0]))
        inner = {value for each in nodes for value in each.outputs} - set(node.outputs)
        touched = [site for site in sites.values() if site.nodes & nodes or site.pre in inner or site.post in inner]
        if touched and all(nodes <= site.nodes and not {site.pre, site.post} & inner for site in touched):
            wrapped.add(node)
        elif touched:
            opened.add(node)
        if grows(sizes, node) and not (node.name in CUSTOM_RULES and is_elementwise(sizes, node)):
            opened.add(node)
    return Setting(sizes, sites, shifts, frozenset(opened), frozenset(wrapped))


def run_program(setting: Setting, inputs: Sequence[Any]) -> tuple[list[Any], Recorded]:
    """The outputs of a program and the values at its sites.

    Args:
        setting: sizes, sites and shifts.
        inputs: inputs of the program, flat.
    """
    program = setting.sizes.typing.program
    values = dict(zip(program.block.inputs, inputs, strict=True))
    recorded = _run(setting, program.block, values)
    return [_value(setting, values, each) for each in program.block.outputs], recorded


def _value(setting: Setting, values: Mapping[int, Any], value: int) -> Any:
    if value in values:
        return values[value]
    return setting.sizes.constant(value, setting.sizes.typing.program.constants[value])


def _run(setting: Setting, block: Block, values: dict[int, Any]) -> Recorded:
    """Run the nodes of a block, adding their results to `values`."""
    recorded: Recorded = {}
    passed: set[str] = set()
    shifted: dict[int, list[tuple[FoundSite, Any]]] = {}
    by_pre, by_post = _grouped(setting.sites, "pre"), _grouped(setting.sites, "post")

    def arrived(value: int) -> None:
        """Record and shift what passes a site; one value may be that of several spaces."""
        names = [name for name in by_pre.get(value, ()) if name not in recorded]
        if names:
            pre = _shifted(setting, values[value], names, "pre")
            recorded.update(dict.fromkeys(names, (pre, pre)))
            if setting.sites[names[0]].nodes:
                shifted.setdefault(value, []).append((setting.sites[names[0]], pre))
            else:
                values[value] = pre
        if names := [name for name in by_post.get(value, ()) if name not in passed]:
            passed.update(names)
            values[value] = _shifted(setting, values[value], names, "post")
            recorded.update((name, (recorded[name][0], values[value])) for name in names)

    def operand(node: Node, index: int) -> Any:
        value = node.inputs[index]
        for site, pre in shifted.get(value, ()):
            if node in site.nodes or node in setting.wrapped:
                return pre
        return setting.sizes.operand(node, index, _value(setting, values, value))

    def go(block: Block) -> None:
        for node in block.nodes:
            if node in setting.opened:
                if node.name in REMAT:
                    recorded.update(_remat(setting, node, values))
                    inside = {value for each in walk(node.blocks[0]) for value in each.outputs}
                    passed.update(name for name, site in setting.sites.items() if site.post in inside)
                else:
                    go(node.blocks[0])
                    continue
            else:
                given = [operand(node, index) for index in range(len(node.inputs))]
                made, inner = _results(setting, node, given)
                recorded.update(inner)
                values.update(zip(node.outputs, made, strict=True))
            for value in dict.fromkeys(node.outputs):
                arrived(value)

    for value in block.inputs:
        arrived(value)
    go(block)
    return recorded


def _grouped(sites: Mapping[str, FoundSite], kind: str) -> dict[int, list[str]]:
    """The names of the sites whose pre- or post-activation a value is."""
    grouped: dict[int, list[str]] = {}
    for name, site in sites.items():
        grouped.setdefault(getattr(site, kind), []).append(name)
    return grouped


def _shifted(setting: Setting, value: Any, names: Sequence[str], kind: str) -> Any:
    for name in names:
        if name in setting.shifts:
            value = value + getattr(setting.shifts[name], kind).astype(value.dtype)
    return value


def _plain(block: Block) -> list[Node]:
    return [node for node in walk(block) if not node.is_call]


def grows(sizes: Sizes, node: Node) -> bool:
    """Whether a call meets, or makes, an array of another shape than the one it was traced at."""
    if not sizes.units:
        return False
    values = {value for each in _plain(node.blocks[0]) for value in (*each.inputs, *each.outputs)}
    counted = any((each, i) in sizes.growing for each in _plain(node.blocks[0]) for i in range(len(each.inputs)))
    program = sizes.typing.program
    return counted or any(sizes.shape(value) != program.shape(value) for value in values | set(node.inputs))


def call_by_parts(sizes: Sizes, node: Node, given: Sequence[Any]) -> list[Any]:
    """What a call computes, without its derivative rule."""
    (block,) = node.blocks
    calls = frozenset(each for each in walk(block) if each.is_call)
    setting, values = Setting(sizes, {}, {}, calls), dict(zip(block.inputs, given, strict=True))
    _run(setting, block, values)
    return [_value(setting, values, each) for each in block.outputs]


def is_elementwise(sizes: Sizes, node: Node) -> bool:
    """Whether a call computes entry by entry, from scalars and values of one shape."""
    program = sizes.typing.program
    shapes = {program.shape(value) for value in (*node.inputs, *node.outputs)} - {()}
    return len(shapes) == 1 and all(each.name in ELEMENTWISE for each in _plain(node.blocks[0]))


def _results(setting: Setting, node: Node, given: list[Any]) -> tuple[list[Any], Recorded]:
    sizes = setting.sizes
    if not node.blocks:
        return rebind(node, given, sizes.params(node) if sizes.units else None), {}
    if node.is_call:
        return (entrywise_call(node, given) if grows(sizes, node) else rebind(node, given)), {}
    names = {name for name, site in setting.sites.items() if any(_has(block, site) for block in node.blocks)}
    if not sizes.units and not names:
        return rebind(node, given), {}
    inner = setting._replace(sites={name: setting.sites[name] for name in names}, shifts={})
    if node.name == "scan":
        shifts = {name: shift for name, shift in setting.shifts.items() if name in names}
        return _scan(inner, node, given, shifts)
    if node.name == "while":
        return _while(inner._replace(sites={}), node, given), {}
    return _cond(inner._replace(sites={}), node, given), {}


def _has(block: Block, site: FoundSite) -> bool:
    return site.pre in block.inputs or any(site.pre in node.outputs for node in walk(block))


def entrywise_call(node: Node, given: list[Any]) -> list[Any]:
    """An elementwise call with a custom derivative rule on arrays of another shape, in chunks of the traced shape."""
    shape = next(var.aval.shape for var in (*node.eqn.invars, *node.eqn.outvars) if var.aval.shape)
    chunk = prod(shape)
    wide = next(jnp.shape(each) for each in given if jnp.shape(each))
    number = -(-prod(wide) // chunk)

    def chunks(array: Any) -> Any:
        if not jnp.shape(array):
            return array
        flat = jnp.pad(jnp.reshape(array, -1), (0, number * chunk - prod(wide)), mode="edge")
        return flat.reshape(number, *shape)

    axes = [0 if jnp.shape(each) else None for each in given]
    made = jax.vmap(lambda *each: rebind(node, each), axes)(*map(chunks, given))
    return [each.reshape(-1)[: prod(wide)].reshape(wide) for each in made]


# --- Calls, loops and branches --------------------------------------


def _remat(setting: Setting, node: Node, values: dict[int, Any]) -> Recorded:
    block = node.blocks[0]
    # A site that ends at an input of the block has been passed outside: its shift is in the value that comes in.
    within = {name: site for name, site in setting.sites.items() if site.post not in block.inputs}

    def inside(*given: Any) -> tuple[list[Any], Recorded]:
        own = dict(zip(block.inputs, given, strict=True))
        recorded = _run(setting._replace(sites=within), block, own)
        return [_value(setting, own, each) for each in block.outputs], recorded

    policy, prevent = node.params.get("policy"), node.params.get("prevent_cse", True)
    given = [_value(setting, values, each) for each in block.inputs]
    made, recorded = jax.checkpoint(inside, policy=policy, prevent_cse=prevent)(*given)
    values.update(zip(block.outputs, made, strict=True))
    return recorded


def _scan(setting: Setting, node: Node, given: list[Any], shifts: Mapping[str, Tap]) -> tuple[list[Any], Recorded]:
    (block,) = node.blocks
    num_consts, num_carry = scan_counts(node)
    consts, carry = given[:num_consts], given[num_consts : num_consts + num_carry]

    def step(carry: Any, each: Any) -> Any:
        xs, shift = each
        values = dict(zip(block.inputs, (*consts, *carry, *xs), strict=True))
        recorded = _run(setting._replace(shifts=shift), block, values)
        made = [_value(setting, values, value) for value in block.outputs]
        made[:num_carry] = [jnp.asarray(new, jnp.asarray(old).dtype) for new, old in zip(made, carry)]
        return made[:num_carry], (made[num_carry:], recorded)

    xs = (given[num_consts + num_carry :], dict(shifts))
    length, reverse, unroll = (node.params[key] for key in ("length", "reverse", "unroll"))
    carry, (made, recorded) = jax.lax.scan(step, carry, xs, length=length, reverse=reverse, unroll=unroll)
    return [*carry, *made], recorded


def _while(setting: Setting, node: Node, given: list[Any]) -> list[Any]:
    condition, body = node.blocks
    num_cond, num_body = node.params["cond_nconsts"], node.params["body_nconsts"]
    before, consts, carry = given[:num_cond], given[num_cond:][:num_body], given[num_cond + num_body :]

    def run(block: Block, values: Sequence[Any]) -> list[Any]:
        own = dict(zip(block.inputs, values, strict=True))
        _run(setting, block, own)
        return [_value(setting, own, value) for value in block.outputs]

    return jax.lax.while_loop(
        lambda carry: run(condition, (*before, *carry))[0], lambda carry: run(body, (*consts, *carry)), carry
    )


def _cond(setting: Setting, node: Node, given: list[Any]) -> list[Any]:
    index, *operands = given

    def branch(block: Block) -> Any:
        def run(*values: Any) -> list[Any]:
            own = dict(zip(block.inputs, values, strict=True))
            _run(setting, block, own)
            return [_value(setting, own, value) for value in block.outputs]

        return run

    platforms = node.params.get("branches_platforms")
    if platforms is not None:
        here = jax.default_backend()
        chosen = next(i for i, each in enumerate(platforms) if each is None or here in each)
        return branch(node.blocks[chosen])(*operands)
    if jnp.asarray(index).dtype == bool:
        index = jnp.asarray(index, jnp.int32)
    return jax.lax.switch(index, [branch(block) for block in node.blocks], *operands)
