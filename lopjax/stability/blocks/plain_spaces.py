"""Where the closed form of the unit blocks applies: unit spaces written by one plain kernel and read by plain kernels.

Plain means that a kernel's product, plus at most a bias, *is* the pre-activation, which the labels state
(`Label.source`).
"""

from typing import NamedTuple

from lopjax.activations import Activation, activation
from lopjax.wiring import Label, Path, Wiring, plain_kernel, standard_order


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
    """The structure of a plain unit space, or the reason it is not plain, as part of an error message.

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
    plain = plain_kernel(wiring, site)
    kernels = [path for path in writers if labels[path].reads() and labels[path].site == site]
    if len(kernels) == 1 and labels[kernels[0]].source is None and len(writers) <= 2:
        return f"something stands between {space!r} and the units that {_names(kernels)} reads"
    if plain is None or {plain.kernel, plain.bias or plain.kernel} != set(writers):
        return f"{space!r} is not written by one kernel and at most a bias: {_names(writers)}"
    mixed = [path for path in readers if not _is_kernel(labels[path]) or labels[path].source != site]
    if mixed:
        return f"something stands between {space!r} and its readers {_names(mixed)}"
    return PlainSpace(
        space,
        site,
        activation(wiring.site(site).activation),
        plain.kernel[1:],
        plain.bias[1:] if plain.bias else None,
        tuple(path[1:] for path in readers),
    )


def _is_kernel(label: Label) -> bool:
    return label.site is not None and standard_order(label) is not None


def _names(paths: list[Path]) -> list[str]:
    return ["/".join(path) for path in paths]
