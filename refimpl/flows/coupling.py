"""Coupling layers: one half of the features stays, and tells a network how to move the other half."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Chain, Diagonal, Pair, check_maker
from refimpl.flows.conditioners import Conditioner
from refimpl.flows.elementwise import AdditiveMap, ElementwiseMap, check_map

__all__ = ["Coupling", "coupling_flow", "nice"]


class Coupling(Bijection):
    """(b, a) -> (b, tau(a; net(b, context))): triangular Jacobian, log-determinant the sum of log-derivatives.

    The active half a are the last `dim - dim // 2` features, or with `swap=True` the first `dim // 2`. For images the
    features are the channels.

    Args:
        dim: number of features, at least 2.
        tau: elementwise map of the active half.
        net: makes the conditioner, called with the numbers of passive features and of raw parameters; the conditioner
            is called with (passive, context).
        swap: which half is active.
        event_ndim: 1 for vectors, 3 for images.

    Raises:
        ValueError: if `dim` is below 2.

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Sec. 3.2-3.3.
    """

    def __init__(
        self,
        dim: int,
        tau: ElementwiseMap,
        net: Callable[[int, int], nn.Module] = Conditioner,
        *,
        swap: bool = False,
        event_ndim: int = 1,
    ):
        super().__init__()
        check_sizes(dim=dim)
        if dim < 2:
            raise ValueError(f"dim: got {dim}, expected at least 2, because a coupling has two halves")
        check_map(tau)
        check_maker("net", net)
        self.sizes, self.tau, self.swap, self.event_ndim = [dim // 2, dim - dim // 2], tau, swap, event_ndim
        active, passive = self.sizes if swap else self.sizes[::-1]
        self.net = net(passive, active * tau.num_params)

    def _run(self, name: str, x: Tensor, context: Tensor | None, move: Callable) -> Pair:
        self.check_width(name, x, sum(self.sizes))
        first, last = x.split(self.sizes, -self.event_ndim)
        if self.swap:
            first, log_slopes = move(first, self.net(last, context), -self.event_ndim)
        else:
            last, log_slopes = move(last, self.net(first, context), -self.event_ndim)
        return torch.cat([first, last], -self.event_ndim), log_slopes.flatten(-self.event_ndim).sum(-1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._run("x", x, context, self.tau.forward)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._run("z", z, context, self.tau.inverse)


def coupling_flow(
    dim: int,
    tau: ElementwiseMap,
    num_layers: int,
    *,
    mix: Callable[[int], Bijection] | None = None,
    width: int = 128,
    depth: int = 3,
    dim_context: int = 0,
) -> Chain:
    """Couplings whose active half alternates; RealNVP with an `AffineMap`, a neural spline flow with a `SplineMap`.

    Args:
        dim: number of features, at least 2.
        tau: elementwise map.
        num_layers: number of couplings.
        mix: called with `dim` before each but the first; makes a bijection, such as a rotation, that mixes the halves.
        width: units of each hidden layer of the networks.
        depth: number of linear layers of the networks.
        dim_context: features of the context, 0 for none.
    """
    check_sizes(num_layers=num_layers)
    check_maker("mix", mix)

    def net(dim_in: int, dim_out: int) -> Conditioner:
        return Conditioner(dim_in, dim_out, width=width, depth=depth, dim_context=dim_context)

    layers: list[Bijection] = []
    for i in range(num_layers):
        if mix and i:
            layers.append(mix(dim))
        layers.append(Coupling(dim, tau, net, swap=i % 2 == 1))
    return Chain(*layers)


def nice(dim: int, num_layers: int = 4, *, shared: bool = False, **settings) -> Chain:
    """Additive couplings and one learned diagonal scaling: NICE.

    Args:
        dim: number of features.
        num_layers: at least 3, or some features cannot influence each other.
        shared: one scale for all features: a flow of constant Jacobian determinant that cannot even stretch axes.
        **settings: of `coupling_flow`.

    Source: Dinh, Krueger, Bengio 2015 (arXiv 1410.8516).
    """
    return Chain(coupling_flow(dim, AdditiveMap(), num_layers, **settings), Diagonal(dim, shared=shared))
