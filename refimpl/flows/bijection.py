"""An algebra of bijections: chain them, turn them round, condition them; the log-determinants add up.

A bijection maps data x to a latent z in `forward` and back in `inverse`. Each direction returns beside its result the
log|det| of *its own* Jacobian, so that the two are each other's negative at a pair of points. With a base density p_Z

    log p(x) = log p_Z(f(x)) + log|det f'(x)|,

which is all that `refimpl.flows.Flow` adds.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Bijection", "Chain", "Diagonal", "Inverse", "Permutation", "Reshape"]

Pair = tuple[Tensor, Tensor]


class Bijection(nn.Module):
    """Invertible map of events; `forward` goes from data to latent, `inverse` back.

    Both take `(points, context=None)` and return the image, of the shape of `points`, and log|det J|, of the shape of
    their batch dimensions. `context`, shape (*batch, dim_context) or (dim_context,), conditions the map; a bijection
    without use for it ignores it. Any number of batch dimensions, none included, and empty batches are fine.

    Attributes:
        event_ndim: how many of the last dimensions make one event: 1 for vectors, 3 for images (channels, rows,
            columns).
    """

    event_ndim: int = 1

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """z = f(x) and log|det dz/dx|."""
        raise NotImplementedError

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        """x = f^{-1}(z) and log|det dx/dz|."""
        raise NotImplementedError

    def zeros(self, x: Tensor) -> Float[Tensor, "*batch"]:
        """The log-determinant of a map that keeps volumes, for the batch of `x`."""
        return x.new_zeros(x.shape[: x.ndim - self.event_ndim])


class Chain(Bijection):
    """f_n o ... o f_2 o f_1: the first bijection acts on the data, the last one yields the latent.

    Args:
        *bijections: maps of the same kind of event.

    Raises:
        ValueError: if their `event_ndim` differ, or there is none.

    >>> double = Diagonal(2, scale=2.0)
    >>> z, log_det = Chain(double, double)(torch.ones(2))
    >>> z.tolist(), round(log_det.item(), 4)
    ([4.0, 4.0], 2.7726)
    """

    def __init__(self, *bijections: Bijection):
        super().__init__()
        if len({f.event_ndim for f in bijections}) != 1:
            kinds = [f.event_ndim for f in bijections]
            raise ValueError(f"bijections: got event dimensions {kinds}, expected one or more that are all the same")
        self.bijections = nn.ModuleList(bijections)
        self.event_ndim = bijections[0].event_ndim

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        total = self.zeros(x)
        for f in self.bijections:
            x, log_det = f(x, context)
            total = total + log_det
        return x, total

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        total = self.zeros(z)
        for f in reversed(self.bijections):
            z, log_det = f.inverse(z, context)
            total = total + log_det
        return z, total


class Inverse(Bijection):
    """A bijection the other way round: IAF is the inverse of MAF.

    >>> Inverse(Diagonal(1, scale=2.0))(torch.ones(1))[0]
    tensor([0.5000], grad_fn=<MulBackward0>)
    """

    def __init__(self, bijection: Bijection):
        super().__init__()
        self.bijection, self.event_ndim = bijection, bijection.event_ndim

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self.bijection(z, context)


class Diagonal(Bijection):
    """z = e^s * x + t with learned s, t: NICE's last layer, or with `shared=True` one learned scale for all features.

    Args:
        dim: number of features.
        scale: initial value of every e^s.
        shared: one s for all features, so that the map has a constant, learned Jacobian determinant and shape.
        shift: whether there is a t.

    Source: Dinh, Krueger, Bengio 2015 (arXiv 1410.8516), Sec. 3.3.
    """

    def __init__(self, dim: int, *, scale: float = 1.0, shared: bool = False, shift: bool = True):
        super().__init__()
        self.dim = dim
        self.log_scale = nn.Parameter(torch.tensor(scale).log().repeat(1 if shared else dim))
        self.shift = nn.Parameter(torch.zeros(dim)) if shift else None

    def _log_det(self, x: Tensor) -> Tensor:
        return self.zeros(x) + self.log_scale.expand(self.dim).sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z = x * self.log_scale.exp()
        return z if self.shift is None else z + self.shift, self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x = z if self.shift is None else z - self.shift
        return x * (-self.log_scale).exp(), -self._log_det(z)


class Permutation(Bijection):
    """Reorders the features (the channels of images): z_i = x_{order[i]}; keeps volumes.

    Args:
        order: a rearrangement of 0 ... dim - 1.
        event_ndim: 1, or 3 for channels of images.

    Raises:
        ValueError: if `order` is not a rearrangement.

    >>> Permutation([2, 0, 1])(torch.tensor([1.0, 2.0, 3.0]))[0]
    tensor([3., 1., 2.])
    """

    def __init__(self, order: Sequence[int] | Tensor, event_ndim: int = 1):
        super().__init__()
        order = torch.as_tensor(order)
        if order.ndim != 1 or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"order: got {order.tolist()}, expected a rearrangement of 0 ... dim - 1")
        self.event_ndim = event_ndim
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return x.index_select(-self.event_ndim, self.order), self.zeros(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return z.index_select(-self.event_ndim, self.back), self.zeros(z)


class Reshape(Bijection):
    """Lets a bijection of vectors act on images, by flattening each: `Reshape(f, (channels, rows, columns))`."""

    def __init__(self, bijection: Bijection, event_shape: Sequence[int]):
        super().__init__()
        self.bijection, self.event_shape = bijection, tuple(event_shape)
        self.event_ndim = len(self.event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, log_det = self.bijection(x.flatten(-self.event_ndim), context)
        return z.unflatten(-1, self.event_shape), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, log_det = self.bijection.inverse(z.flatten(-self.event_ndim), context)
        return x.unflatten(-1, self.event_shape), log_det
