"""Autoregressive flows: feature i moves as the features before it say, so that the Jacobian is triangular."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Chain, Inverse, Pair, check_maker
from refimpl.flows.conditioners import join, zero_last
from refimpl.flows.elementwise import AffineMap, ElementwiseMap, check_separate_map

__all__ = ["MADE", "MaskedAutoregressive", "iaf", "maf"]


class _MaskedLinear(nn.Linear):
    def __init__(self, mask: Tensor):
        super().__init__(mask.shape[1], mask.shape[0])
        self.register_buffer("mask", mask.to(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MADE(nn.Module):
    """Network whose outputs for feature i see only the context and the features before i; it starts at zero.

    Every unit has a degree: the place of a feature in the order (1 ... dim), 0 for the context, and for a hidden unit
    the last place it may see. A hidden unit listens to units of at most its own degree, the output for the feature at
    place i to hidden units of degree below i.

    Args:
        dim: number of features.
        num_params: raw parameters a feature, stacked parameter by parameter as `ElementwiseMap` wants them.
        order: the features in the order in which they are generated, a rearrangement of 0 ... dim - 1; as they come if
            None.
        width: units of each hidden layer; with fewer than dim - 1 some features are never listened to.
        depth: number of linear layers.
        activation: makes the module between two layers.
        dim_context: features of the context, 0 for none.

    Raises:
        ValueError: if `order` is not a rearrangement.

    Source: Germain, Gregor, Murray, Larochelle 2015 (arXiv 1502.03509), Sec. 3; the degrees here are spread evenly.
    """

    def __init__(
        self,
        dim: int,
        num_params: int,
        *,
        order: Sequence[int] | None = None,
        width: int = 128,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dim_context: int = 0,
    ):
        super().__init__()
        check_sizes(dim=dim, num_params=num_params, width=width, depth=depth)
        order = list(range(dim) if order is None else order)
        if sorted(order) != list(range(dim)):
            raise ValueError(f"order: got {order}, expected a rearrangement of 0 ... {dim - 1}")
        self.order, self.dim_context = order, dim_context
        place = torch.tensor(order).argsort() + 1
        # Units of degree 0 see the context alone: without them it could not reach the first feature.
        least = 0 if dim_context or dim == 1 else 1
        hidden = least + torch.arange(width) * (dim - least) // width
        degrees = [torch.cat([place, place.new_zeros(dim_context)]), *[hidden] * (depth - 1)]
        layers: list[nn.Module] = []
        for before, after in zip(degrees[:-1], degrees[1:], strict=True):
            layers += [_MaskedLinear(after[:, None] >= before), activation()]
        last = _MaskedLinear(place.repeat(num_params)[:, None] > degrees[-1])
        self.net = zero_last(nn.Sequential(*layers, last))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters, shape (*batch, num_params * dim)."""
        return self.net(join(x, context, self.dim_context))

    def of_feature(self, i: int, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Those of feature i alone, shape (*batch, num_params), without computing the others."""
        last, rows = self.net[-1], slice(i, None, len(self.order))
        hidden = self.net[:-1](join(x, context, self.dim_context))
        return F.linear(hidden, last.weight[rows] * last.mask[rows], last.bias[rows])


class MaskedAutoregressive(Bijection):
    """z_i = tau(x_i; h_i(x_before i, context)) with the h_i from one `MADE`: forward in one pass, inverse in `dim`.

    Args:
        dim: number of features.
        tau: elementwise map.
        **settings: of `MADE`: order, width, depth, activation, dim_context.

    Raises:
        TypeError: if `tau` mixes features, as a `GINMap` does: the Jacobian would not be triangular.

    Source: Papamakarios, Pavlakou, Murray 2017 (arXiv 1705.07057), Sec. 3.1.
    """

    def __init__(self, dim: int, tau: ElementwiseMap, **settings):
        super().__init__()
        check_separate_map(tau)
        self.dim, self.tau, self.made = dim, tau, MADE(dim, tau.num_params, **settings)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, self.dim)
        z, log_slopes = self.tau.forward(x, self.made(x, context))
        return z, log_slopes.sum(-1)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """One sweep a feature, each of which settles that feature for good, so that the result is exact."""
        self.check_width("z", z, self.dim)
        x, log_det, features = torch.zeros_like(z), self.zeros(z), torch.arange(self.dim, device=z.device)
        for i in self.made.order:
            settled, log_slope = self.tau.inverse(z[..., i, None], self.made.of_feature(i, x, context))
            # Features not yet settled stay 0: what is wrong could be infinite, and 0 weight * inf is not 0.
            x = torch.where(features == i, settled, x)
            log_det = log_det + log_slope[..., 0]
        return x, log_det


def check_no_order(settings: dict) -> None:
    """Raise TypeError if an order of features is among the settings of a flow that has its own."""
    if "order" in settings:
        raise TypeError("order: the layers' orders are fixed here; chain `MaskedAutoregressive` layers for another one")


def maf(
    dim: int,
    num_layers: int,
    tau: ElementwiseMap | None = None,
    *,
    mix: Callable[[int], Bijection] | None = None,
    **settings,
) -> Chain:
    """Masked autoregressive flow: layers whose order of features is reversed each time. Fast density, slow sampling.

    Args:
        dim: number of features.
        num_layers: number of autoregressive layers.
        tau: elementwise map, `AffineMap()` if None.
        mix: called with `dim` before each layer but the first; makes a bijection to put there, such as an `ActNorm`.
        **settings: of `MADE`: width, depth, activation, dim_context.

    Raises:
        TypeError: if an `order` is among the settings.

    Source: Papamakarios, Pavlakou, Murray 2017 (arXiv 1705.07057).
    """
    check_sizes(dim=dim, num_layers=num_layers)
    check_maker("mix", mix)
    check_no_order(settings)
    layers: list[Bijection] = []
    for i in range(num_layers):
        if mix and i:
            layers.append(mix(dim))
        order = list(range(dim))[:: (-1) ** i]
        layers.append(MaskedAutoregressive(dim, tau or AffineMap(), order=order, **settings))
    return Chain(*layers)


def iaf(dim: int, num_layers: int, tau: ElementwiseMap | None = None, **settings) -> Inverse:
    """Inverse autoregressive flow: `maf` the other way round. Fast samples with their density, slow density of others.

    The arguments are those of `maf`. `AffineMap(gate="sigmoid")` has the paper's gated scale.

    Source: Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling 2016 (arXiv 1606.04934), Sec. 3.
    """
    return Inverse(maf(dim, num_layers, tau, **settings))
