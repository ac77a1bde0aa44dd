"""Plain layers: a kernel, at most a bias, and nothing else between the activations read and the pre-activation.

The labels say which layers are plain (`Label.source`), and which axis of the kernel is which: `(units in, units out)`
of Flax, `(units out, units in)` of Equinox and PyTorch, or a convolution with its offsets before, after or between
them. Formulas are written for one layout, `(*offsets or positions, units in, units out)`.
"""

from typing import Any, NamedTuple

from lopjax.wiring.diagram import Wiring
from lopjax.wiring.labels import Label, Path


class PlainKernel(NamedTuple):
    """The arrays of a plain layer.

    Attributes:
        kernel: path of its kernel, collection included.
        bias: path of its bias, or `None`.
        label: label of the kernel.
    """

    kernel: Path
    bias: Path | None
    label: Label


def standard_order(label: Label) -> tuple[int, ...] | None:
    """The axes of a kernel in the order `(*others, units in, units out)`; `None` unless it has exactly one of each."""
    reads, writes = label.input_axes, label.output_axes
    if len(reads) != 1 or len(writes) != 1:
        return None
    others = [index for index, axis in enumerate(label.axes) if axis is None]
    return (*others, *reads, *writes)


def standard_layout(label: Label, kernel: Any) -> Any:
    """A kernel (NumPy's or JAX's) transposed to `(*others, units in, units out)`.

    Raises:
        ValueError: a label without exactly one input and one output axis.
    """
    order = standard_order(label)
    if order is None:
        raise ValueError(f"label {label.axes}: must have one In and one Out axis")
    return kernel if order == tuple(range(len(order))) else kernel.transpose(order)


def plain_kernel(wiring: Wiring, site: str) -> PlainKernel | None:
    """The kernel and bias that alone make a site's pre-activation, or `None` if something stands in between.

    Args:
        wiring: wiring of the network.
        site: a site, or an output space for the layer that makes the logits.
    """
    own = [(path, label) for path, label in wiring.labels if label.site == site and path[0] == "params"]
    kernels = [(path, label) for path, label in own if label.reads()]
    biases = [(path, label) for path, label in own if not label.reads()]
    if len(kernels) != 1 or len(biases) > 1 or any(len(label.axes) != 1 or label.scales for _, label in biases):
        return None
    path, label = kernels[0]
    if label.source is None or standard_order(label) is None:
        return None
    return PlainKernel(path, biases[0][0] if biases else None, label)


def at_path(tree: Any, path: Path) -> Any:
    """The array of a nested dict at a path."""
    for key in path:
        tree = tree[key]
    return tree
