"""Hidden units have no order: permutations that keep a network's function, and those that fit it to another network.

A *permutation spec* gives each tensor of a network's state, by name, one entry for each of its axes: None where the order
is fixed, else the group of units that orders this axis, or a pair (group, block) where each unit owns ``block`` entries in
a row, as the pixels of a channel do after flattening. All axes of one group are permuted together.
Source: Ainsworth et al. 2023 (arXiv 2209.04836); Entezari et al. 2022 (arXiv 2110.06296).
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.nets import Sine
from refimpl.nets.convolutional import BasicBlock

__all__ = ["chain_permutations", "matching_objective", "permute", "weight_matching"]

Axis = str | tuple[str, int] | None
Spec = dict[str, tuple[Axis, ...]]

UNIT_BY_UNIT = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, Sine, nn.Identity)
UNIT_BY_UNIT += (nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def chain_permutations(network: nn.Sequential) -> Spec:
    """Permutation spec of a chain of layers and residual blocks; the network's inputs and outputs keep their order.

    Units that are added must agree: all blocks with identity shortcuts that write into a stream share its group, while a
    projection starts a new one. The inner channels of each block are a group of their own.

    Args:
        network: Linear, Conv2d, BatchNorm1d/2d, Flatten, pooling, dropout, activations that act unit by unit,
            ``refimpl.nets.BasicBlock``, and ``nn.Sequential`` of these, in any order that runs.

    Returns:
        Spec for all parameters and buffers; a group is called by the layer or shortcut that makes its units.

    Raises:
        TypeError, ValueError: if ``network`` is not an ``nn.Sequential``, or has another module, which the message names.

    >>> chain_permutations(nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)))
    {'0.weight': ('0', None), '0.bias': ('0',), '2.weight': (None, '0'), '2.bias': (None,)}
    """
    if type(network) is not nn.Sequential:
        raise TypeError(f"network: got {type(network).__name__}, expected an nn.Sequential")
    spec: Spec = {}

    def order(name: str, layer: nn.Module, *axes: Axis) -> None:
        """A layer's weight has these axes and perhaps pixels, its vectors have the first of them, a counter has none."""
        axes = (*axes, None, None)
        spec.update({f"{name}.{key}": axes[: value.ndim] for key, value in layer.state_dict().items()})

    group, units, image = None, 0, False  # who orders the features that arrive at a part, how many units they are of
    seen: set[nn.Module] = set()
    for name, part in _parts(network):
        kind, problem = type(part), None
        size = getattr(part, "in_features", getattr(part, "num_features", units))
        arriving = group if group is None or size == units else (group, size // units)
        if part in seen and part.state_dict():
            problem = "stands in two places"
        elif kind is nn.Linear and image:
            problem = "acts on pixels, expected nn.Flatten in front of it"
        elif getattr(part, "groups", 1) != 1:
            problem = "has groups of channels, expected groups=1"
        elif kind in (nn.Linear, nn.Conv2d):
            order(name, part, name, arriving)
            group, units, image = name, len(part.weight), kind is nn.Conv2d
        elif kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            order(name, part, arriving)
        elif kind is BasicBlock:
            inner, stream = f"{name}.conv1", group if isinstance(part.shortcut, nn.Identity) else f"{name}.shortcut"
            order(inner, part.conv1, inner, group)
            order(f"{name}.bn1", part.bn1, inner)
            order(f"{name}.conv2", part.conv2, stream, inner)
            order(f"{name}.bn2", part.bn2, stream)
            for i, layer in enumerate(part.shortcut.children()):  # a projection and its norm
                order(f"{name}.shortcut.{i}", layer, stream, group)
            group, units, image = stream, len(part.conv2.weight), True
        elif kind is nn.Flatten and (part.start_dim, part.end_dim) == (1, -1):
            image = False
        elif kind not in UNIT_BY_UNIT:
            problem = "is none of those whose units can be permuted"
        if problem is not None:
            raise ValueError(f"network: module {name}, {part}, {problem}")
        seen.add(part)
    # The last group are the outputs, which keep their order.
    return {name: tuple(None if _split(axis)[0] == group else axis for axis in axes) for name, axes in spec.items()}


def _parts(network: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    for name, part in network._modules.items():  # named_children() would pass over a module that occurs twice
        yield from _parts(part, f"{path}{name}.") if type(part) is nn.Sequential else [(path + name, part)]


def _split(axis: Axis) -> tuple[str | None, int]:
    return axis if isinstance(axis, tuple) else (axis, 1)


def _group_sizes(spec: Spec, **states: dict[str, Tensor]) -> dict[str, int]:
    """Number of units of each group, once it is sure that the states fit the spec."""
    sizes: dict[str, int] = {}
    for which, state in states.items():
        for name, value in state.items():
            if name not in spec or len(spec[name]) != value.ndim:
                raise ValueError(f"{which}: has {name!r} of shape {tuple(value.shape)}, expected {spec.get(name)}")
            for (group, block), size in zip(map(_split, spec[name]), value.shape, strict=True):
                if group is not None and size != (want := block * sizes.setdefault(group, size // block)):
                    raise ValueError(f"{which}: {name!r} has shape {tuple(value.shape)}, expected {want} for {group!r}")
    return sizes


def _permuted(value: Tensor, axes: tuple[Axis, ...], permutations: dict[str, Tensor]) -> Tensor:
    for i, (group, block) in enumerate(map(_split, axes)):
        if group in permutations:
            entries = torch.arange(value.shape[i], device=value.device).view(-1, block)
            value = value.index_select(i, entries[permutations[group].to(value.device)].flatten())
    return value


def permute(
    state: dict[str, Tensor], spec: Spec, permutations: dict[str, Int[Tensor, " _"]]
) -> dict[str, Shaped[Tensor, "..."]]:
    """The same network in another order: the new unit i of a group is the old unit ``permutations[group][i]``.

    Args:
        state: parameters, or parameters and buffers, by name, such as ``network.state_dict()``.
        spec: permutation spec of the network.
        permutations: for each group, or some of them, the numbers 0 to units - 1 in any order.

    Raises:
        ValueError: if ``state`` does not fit the spec, or an entry of ``permutations`` is no permutation of a group.

    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> swapped = permute(net.state_dict(), chain_permutations(net), {"0": torch.tensor([1, 0])})
    >>> bool((swapped["0.bias"] == net[0].bias.flip(0)).all())
    True
    """
    sizes = _group_sizes(spec, state=state)
    for group, order in permutations.items():
        if group not in sizes:
            raise ValueError(f"permutations: has a group {group!r}, expected some of {list(sizes)}")
        like = torch.arange(sizes[group])
        if not isinstance(order, Tensor) or order.dtype != like.dtype or not torch.equal(order.cpu().sort()[0], like):
            raise ValueError(
                f"permutations: got {order!r} for {group!r}, expected 0 to {sizes[group] - 1} in any order"
            )
    return {name: _permuted(value, spec[name], permutations) for name, value in state.items()}


def _matched(spec: Spec, **states: dict[str, Tensor]) -> tuple[dict[str, int], list[dict[str, Tensor]]]:
    """Units of each group, and the parameters of each state without its buffers, in double precision."""
    sizes, names = _group_sizes(spec, **states), [name for name in spec if name.rpartition(".")[2] not in BUFFERS]
    for which, state in states.items():
        if not set(names) <= set(state):
            raise ValueError(f"{which}: lacks {sorted(set(names) - set(state))}, expected all parameters")
    return sizes, [{name: state[name].detach().double() for name in names} for state in states.values()]


def matching_objective(spec: Spec, fixed: dict[str, Tensor], moving: dict[str, Tensor]) -> Float[Tensor, ""]:
    r"""Inner product of two networks' parameters, :math:`\langle\theta_A,\theta_B\rangle`, float64. Exact.

    Permutations keep norms, so the largest value over all of B's permutations belongs to the smallest distance. Running
    statistics of batch norm do not count. Arguments and errors are those of ``weight_matching``.
    """
    _, (a, b) = _matched(spec, fixed=fixed, moving=moving)
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def weight_matching(
    spec: Spec,
    fixed: dict[str, Tensor],
    moving: dict[str, Tensor],
    *,
    max_sweeps: int = 100,
    generator: torch.Generator | None = None,
) -> dict[str, Int[Tensor, " _"]]:
    """Permutations that bring the parameters of ``moving`` close to those of ``fixed``: ``permute(moving, spec, found)``.

    Coordinate ascent on ``matching_objective``: all groups but one are held, which leaves a linear assignment problem
    with an exact solution; groups take turns in random order until a sweep changes none. The objective never decreases.
    The end may be a local maximum, so other seeds can do better.

    Args:
        spec: permutation spec of both networks.
        fixed, moving: their parameters by name (buffers are passed over), on one device.
        max_sweeps: stop after this many turns of all groups.
        generator: source of the order of the groups; torch's global one if None.

    Raises:
        ValueError: if a state does not fit the spec or lacks a parameter, the spec has a group twice in one tensor, or
            ``max_sweeps`` is not a whole number >= 1.

    Source: Ainsworth et al. 2023, Section 3.2 and Algorithm 1.
    """
    from scipy.optimize import linear_sum_assignment

    check_sizes(max_sweeps=max_sweeps)
    sizes, (a, b) = _matched(spec, fixed=fixed, moving=moving)
    places = [(group, name, i) for name in a for i, (group, _) in enumerate(map(_split, spec[name])) if group in sizes]
    if len({(group, name) for group, name, _ in places}) < len(places):
        raise ValueError("spec: has a group twice in one tensor, expected once, or the assignment is not linear")
    found = {group: torch.arange(n, device=next(iter(b.values())).device) for group, n in sizes.items()}
    device = generator.device if generator else None
    for _ in range(max_sweeps):
        before = dict(found)
        for k in torch.randperm(len(sizes), generator=generator, device=device).tolist():
            group, units = list(sizes.items())[k]
            others = {g: order for g, order in found.items() if g != group}
            score = torch.zeros(units, units, dtype=torch.float64, device=found[group].device)
            for name, i in [place[1:] for place in places if place[0] == group]:
                rows, columns = a[name], _permuted(b[name], spec[name], others)
                score += rows.movedim(i, 0).reshape(units, -1) @ columns.movedim(i, 0).reshape(units, -1).T
            best = torch.from_numpy(linear_sum_assignment(score.cpu().numpy(), maximize=True)[1]).to(score.device)
            gain = score.gather(1, best[:, None]) - score.gather(1, found[group][:, None])
            if gain.sum() > 1e-9 * score.abs().max():  # rounding must not make equally good orders take turns forever
                found[group] = best
        if all(found[group] is before[group] for group in found):
            break
    return found
