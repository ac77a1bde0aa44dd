"""Where the closed form of the unit blocks applies: unit spaces between one plain kernel and plain readers.

Plain means that a kernel's product, plus at most a bias, *is* the pre-activation: the labels say so (`Label.source`).
"""

from typing import NamedTuple

from lopjax.activations import Activation, activation
from lopjax.wiring import In, Label, Out, Path, Wiring


class PlainSpace(NamedTuple):
    """One unit space written by one plain kernel at one site, and read by plain kernels only.

    Attributes:
        space: its name.
        site: the site where it is written.
        activation: the elementwise function there.
        kernel: path of the kernel that writes it, without the collection.
        bias: path of its bias, or `None`.
        readers: paths of the kernels that read it.
    """

    space: str
    site: str
    activation: Activation
    kernel: Path
    bias: Path | None
    readers: tuple[Path, ...]


def plain_space(wiring: Wiring, space: str) -> PlainSpace | str:
    """The structure of a plain unit space, or the reason why it is not plain, for a message.

    Args:
        wiring: wiring of the network.
        space: a cloneable unit space.
    """
    labels = dict(wiring.labels)
    sites = wiring.sites_of(space)
    if len(sites) != 1:
        return f"{space!r} is written at {len(sites)} sites"
    (site,) = sites
    writers = [path for path, _ in wiring.incoming(space)]
    readers = [path for path, _ in wiring.outgoing(space)]
    kernels = [path for path in writers if _is_kernel(labels[path]) and labels[path].site == site]
    biases = [path for path in writers if labels[path].axes == (Out(space),) and labels[path].site == site]
    if len(kernels) != 1 or len(biases) > 1 or len(writers) != 1 + len(biases):
        return f"{space!r} is not written by one kernel and at most a bias: {_names(writers)}"
    if labels[kernels[0]].source is None:
        return f"something stands between {space!r} and the units that {_names(kernels)} reads"
    mixed = [path for path in readers if not _is_kernel(labels[path]) or labels[path].source != site]
    if mixed:
        return f"something stands between {space!r} and its readers {_names(mixed)}"
    return PlainSpace(
        space,
        site,
        activation(wiring.site(site).activation),
        kernels[0][1:],
        biases[0][1:] if biases else None,
        tuple(path[1:] for path in readers),
    )


def _is_kernel(label: Label) -> bool:
    axes = label.axes
    return (
        label.site is not None
        and len(axes) >= 2
        and isinstance(axes[-2], In)
        and isinstance(axes[-1], Out)
        and not any(axes[:-2])
    )


def _names(paths: list[Path]) -> list[str]:
    return ["/".join(path) for path in paths]
