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

from refimpl._checks import check_positive, check_sizes

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

    def check_width(self, name: str, points: Tensor, dim: int) -> None:
        """Raise ValueError unless `points` have `dim` features (channels of images): others might be broadcast."""
        if points.ndim < self.event_ndim or points.shape[-self.event_ndim] != dim:
            expected = f"(*batch, {dim}{', rows, columns' if self.event_ndim == 3 else ''})"
            raise ValueError(f"{name}: got shape {tuple(points.shape)}, expected {expected}")


def initial_normal(*shape: int, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal numbers for a module's parameters, drawn on the generator's device, put on the default one."""
    noise = torch.randn(*shape, generator=generator, device=generator.device if generator else None)
    return noise.to(torch.get_default_device())


def check_shape(name: str, shape: object, low: int = 0) -> None:
    """Raise TypeError or ValueError unless ``shape`` is a sequence of whole numbers >= low."""
    if not isinstance(shape, Sequence) or isinstance(shape, str):
        raise TypeError(f"{name}: got {shape!r}, expected a sequence of whole numbers, such as (4,)")
    if not all(isinstance(n, int) and n >= low for n in shape):
        raise ValueError(f"{name}: got {tuple(shape)}, expected whole numbers >= {low}")


def check_maker(name: str, make: object) -> None:
    """Raise TypeError if ``make`` is itself what it should make."""
    if isinstance(make, nn.Module) or not (make is None or callable(make)):
        kind = type(make).__name__
        raise TypeError(f"{name}: got a {kind}, expected a function that makes a module, such as a class or a partial")


def check_bijection(name: str, value: object) -> None:
    """Raise TypeError unless ``value`` is a bijection."""
    if not isinstance(value, Bijection):
        kind = value.__name__ + ", a class" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: got {kind}, expected a Bijection")


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
        for i, f in enumerate(bijections):
            check_bijection(f"bijections[{i}]", f)
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
        check_bijection("bijection", bijection)
        self.bijection, self.event_ndim = bijection, bijection.event_ndim

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self.bijection.inverse(x, context)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self.bijection(z, context)


class Diagonal(Bijection):
    """z = e^s * x + t with learned s, t: NICE's last layer, or with `shared=True` one learned scale for all features.

    Args:
        dim: number of features.
        scale: initial value of every e^s, > 0.
        shared: one s for all features, so that the map has a constant, learned Jacobian determinant and shape.
        shift: whether there is a t.

    Source: Dinh, Krueger, Bengio 2015 (arXiv 1410.8516), Sec. 3.3.
    """

    def __init__(self, dim: int, *, scale: float | int = 1.0, shared: bool = False, shift: bool = True):
        super().__init__()
        check_sizes(dim=dim)
        check_positive("scale", scale)
        self.dim = dim
        self.log_scale = nn.Parameter(torch.tensor(float(scale)).log().repeat(1 if shared else dim))
        self.shift = nn.Parameter(torch.zeros(dim)) if shift else None

    def _log_det(self, x: Tensor) -> Tensor:
        return self.zeros(x) + self.log_scale.expand(self.dim).sum()

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, self.dim)
        z = x * self.log_scale.exp()
        return z if self.shift is None else z + self.shift, self._log_det(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, self.dim)
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
        whole = order.ndim == 1 and not order.is_floating_point()
        if not whole or not torch.equal(order.sort().values, torch.arange(len(order))):
            raise ValueError(f"order: got {order.tolist()}, expected a rearrangement of 0 ... dim - 1")
        self.event_ndim = event_ndim
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.order))
        return x.index_select(-self.event_ndim, self.order), self.zeros(x)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.order))
        return z.index_select(-self.event_ndim, self.back), self.zeros(z)


class Reshape(Bijection):
    """Lets a bijection of vectors act on images, by flattening each: `Reshape(f, (channels, rows, columns))`."""

    def __init__(self, bijection: Bijection, event_shape: Sequence[int]):
        super().__init__()
        check_bijection("bijection", bijection)
        check_shape("event_shape", event_shape, low=1)
        if bijection.event_ndim != 1:
            raise ValueError(f"bijection: got events of {bijection.event_ndim} dimensions, expected vectors")
        self.bijection, self.event_shape = bijection, tuple(event_shape)
        self.event_ndim = len(self.event_shape)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z, log_det = self.bijection(x.flatten(-self.event_ndim), context)
        return z.unflatten(-1, self.event_shape), log_det

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        x, log_det = self.bijection.inverse(z.flatten(-self.event_ndim), context)
        return x.unflatten(-1, self.event_shape), log_det
