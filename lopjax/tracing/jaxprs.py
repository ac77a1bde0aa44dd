"""A traced function as a tree of nodes: the only module that uses private parts of JAX or depends on its version.

Calls (`jit`, `remat`, custom derivatives) are transparent: a value has the same number inside and outside. Loops and
branches have inner blocks with numbers of their own. A number identifies one value of one call, never two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core

from lopjax.arguments.misfits import described, in_a_sentence


def words(text: str) -> frozenset[str]:
    """The words of a text, as names of primitives."""
    return frozenset(text.split())


CALLS = words(
    "jit pjit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat remat2 checkpoint"
)
"""Primitives whose values are the same inside and outside."""

REMAT = frozenset({"remat", "remat2", "checkpoint"})
CUSTOM_RULES = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})


@dataclass(eq=False)
class Block:
    """A sequence of nodes, with its inputs and outputs by number."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()
    nodes: list["Node"] = field(default_factory=list)


@dataclass(eq=False)
class Node:
    """One equation; for a call, a loop or a branch, with its inner blocks.

    Attributes:
        eqn: the equation itself.
        inputs: the values that it takes.
        outputs: the values that it makes.
        caller: the enclosing call of one of JAX's own functions, whose source line is the user's.
        blocks: one for a call, `scan`; two (condition, body) for `while`; one per branch for `cond`.
    """

    eqn: Any
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    blocks: tuple[Block, ...] = ()
    caller: "Node | None" = None

    @property
    def name(self) -> str:
        """Name of the primitive."""
        return self.eqn.primitive.name

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the equation."""
        return self.eqn.params

    @property
    def is_call(self) -> bool:
        """Whether this is a transparent call."""
        return self.name in CALLS and len(self.blocks) == 1

    @property
    def where(self) -> str:
        """`name at file:line`, in the user's code."""
        place = (self.caller or self).eqn.source_info
        return f"{self.name} at {source_info_util.summarize(place)}"


@dataclass(eq=False)
class Program:
    """A traced function.

    Attributes:
        block: its nodes.
        avals: shape and type of every value.
        constants: the known values: literals, and arrays that the function closes over.
        numbers: further values that equal one known number everywhere, computed from literals.
        tree: tree structure of the output.
    """

    block: Block
    avals: list[Any] = field(default_factory=list)
    constants: dict[int, Any] = field(default_factory=dict)
    numbers: dict[int, Any] = field(default_factory=dict)
    tree: Any = None

    @cached_property
    def custom_calls(self) -> tuple[Node, ...]:
        """The calls with a custom derivative rule."""
        return tuple(node for node in walk(self.block) if node.blocks and node.name in CUSTOM_RULES)

    def shape(self, value: int) -> tuple[int, ...]:
        """Shape of a value."""
        return tuple(getattr(self.avals[value], "shape", ()))

    def scalar(self, value: int) -> Any:
        """The number that all entries of a value are known to equal; `None` if there is none or it is not known."""
        if value in self.numbers:
            return self.numbers[value]
        known = self.constants.get(value)
        if known is None or getattr(known, "size", 1) == 0 or _is_key(known):
            return None
        if getattr(known, "size", 1) == 1:
            return np.asarray(known).reshape(())[()]
        first = np.asarray(known).reshape(-1)
        return first[0] if (first == first[0]).all() else None


def _is_key(known: Any) -> bool:
    """Whether an array is one of random keys, which are no numbers."""
    return hasattr(known, "dtype") and jnp.issubdtype(known.dtype, jax.dtypes.prng_key)


def read_program(function: Callable[..., Any], *args: Any) -> Program:
    """Trace a function at given shapes, and number its values."""
    given = ", ".join(map(described, jax.tree.leaves(args[-1:])))
    with in_a_sentence(f"the function does not take inputs {given}", "pass parameters and inputs as it takes them"):
        closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    program = Program(Block(()), tree=jax.tree.structure(shapes))
    block = Block(tuple(_new(program, var.aval) for var in closed.jaxpr.invars))
    _read(program, block, closed.jaxpr, closed.consts, block.inputs, None)
    program.block = block
    return program


def walk(block: Block) -> Iterator[Node]:
    """Every node, in order; those inside calls, loops and branches come after the node that contains them."""
    for node in block.nodes:
        yield node
        for inner in node.blocks:
            yield from walk(inner)


def _new(program: Program, aval: Any, known: Any = None) -> int:
    program.avals.append(aval)
    if known is not None:
        program.constants[len(program.avals) - 1] = known
    return len(program.avals) - 1


def _read(
    program: Program, block: Block, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[int], caller: Node | None
) -> None:
    """Fill a block with the equations of a jaxpr whose inputs already have numbers.

    Args:
        program: the program, which numbers all values.
        block: the block to be filled.
        jaxpr: the jaxpr.
        consts: values of its constants.
        inputs: numbers of its inputs.
        caller: the node whose inner jaxpr it is; None for the program itself.
    """
    numbers: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        numbers[var] = _new(program, var.aval, const)

    def number(atom: Any) -> int:
        return _new(program, atom.aval, atom.val) if isinstance(atom, core.Literal) else numbers[atom]

    for eqn in jaxpr.eqns:
        given = tuple(number(atom) for atom in eqn.invars)
        node = Node(eqn, given, (), caller=caller)
        node.blocks = tuple(_inner(program, node))
        if node.is_call:
            node.outputs = node.blocks[0].outputs
        else:
            node.outputs = tuple(_new(program, var.aval) for var in eqn.outvars)
            _fold(program, node)
        numbers |= zip(eqn.outvars, node.outputs, strict=True)
        block.nodes.append(node)
    block.outputs = tuple(number(atom) for atom in jaxpr.outvars)


def _inner(program: Program, node: Node) -> Iterator[Block]:
    """The blocks inside an equation; none if it is a plain primitive or an unknown type of call."""
    name, params, given = node.name, node.params, node.inputs
    if name in CALLS:
        inner: Any = params.get("jaxpr", params.get("call_jaxpr", params.get("fun_jaxpr")))
        jaxpr, consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
        if jaxpr is not None and len(jaxpr.invars) == len(given) and not (jaxpr.constvars and not consts):
            block = Block(given)
            _read(program, block, jaxpr, consts, given, node.caller or (node if _is_of_jax(jaxpr) else None))
            yield block
        return
    bodies = {"scan": ("jaxpr",), "while": ("cond_jaxpr", "body_jaxpr")}.get(name, ())
    for inner in params["branches"] if name == "cond" else [params[each] for each in bodies]:
        block = Block(tuple(_new(program, var.aval) for var in inner.jaxpr.invars))
        _read(program, block, inner.jaxpr, inner.consts, block.inputs, node.caller)
        yield block


def is_of_jax(node: Node) -> bool:
    """Whether what a node calls is a function of JAX's own."""
    inner: Any = next((node.params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in node.params), None)
    return inner is not None and _is_of_jax(getattr(inner, "jaxpr", inner))


def _is_of_jax(jaxpr: Any) -> bool:
    """Whether a function is JAX's own: the place where it was first traced says nothing about where it is called."""
    return f"{_JAX}/" in str(getattr(jaxpr.debug_info, "func_src_info", ""))


_JAX = str(Path(jax.__file__).parent)

_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "sqrt": np.sqrt,
    "convert_element_type": lambda number: number,
    "broadcast_in_dim": lambda number: number,
}


def _fold(program: Program, node: Node) -> None:
    """Record the value of an equation that is computed from known numbers."""
    if node.name in _FOLDED:
        known = [program.scalar(value) if not program.shape(value) else None for value in node.inputs]
        if all(isinstance(number, np.number | int | float) for number in known):
            with np.errstate(all="ignore"):
                program.numbers[node.outputs[0]] = _FOLDED[node.name](*known)


def scan_counts(node: Node) -> tuple[int, int]:
    """Numbers of constants and of carries of a scan; JAX 0.12 gives them by three flat trees."""
    if "num_consts" in node.params:
        return node.params["num_consts"], node.params["num_carry"]
    consts, carry, _ = node.params["ft_in"].unpack()
    return len(consts), len(carry)


def rebind(node: Node, values: Sequence[Any], params: dict[str, Any] | None = None) -> list[Any]:
    """Apply a node's primitive to other values, and with other parameters if given."""
    primitive = node.eqn.primitive
    bound = primitive.get_bind_params(node.params if params is None else params)
    with node.eqn.ctx.manager:
        out = primitive.bind(*values, **bound)
    return list(out) if primitive.multiple_results else [out]


@contextmanager
def at_source_of(node: Node) -> Iterator[None]:
    """Whatever is traced inside has the place of a node in the user's code."""
    source = (node.caller or node).eqn.source_info
    stack = source_info_util.current_name_stack() + source.name_stack
    with source_info_util.user_context(source.traceback, name_stack=stack):
        yield


def is_symbolic(exception: Exception) -> bool:
    """Whether an error says that Python asked for the value of a traced array."""
    return isinstance(exception, jax.errors.ConcretizationTypeError | jax.errors.TracerArrayConversionError)
