"""Spherical coordinates in any dimension: n - 1 angles for a direction in R^n.

u_1 = cos t_1, u_k = sin t_1 ... sin t_{k-1} cos t_k, u_n = sin t_1 ... sin t_{n-1}, with t_1, ..., t_{n-2} in (0, pi)
and t_{n-1} in (0, 2 pi). At the poles, where a sine is 0, angles are not unique and gradients not finite.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Pair

__all__ = ["AngleBox", "log_sphere_volume", "to_angles", "to_unit"]


def to_unit(theta: Float[Tensor, "*batch angles"]) -> Float[Tensor, "*batch dim"]:
    """Unit vector u(theta), with one feature more than there are angles.

    >>> to_unit(torch.tensor([math.pi / 2, math.pi / 2])).round(decimals=4).abs()
    tensor([0., 0., 1.])
    """
    one = torch.ones_like(theta[..., :1])
    return torch.cat([one, theta.sin().cumprod(-1)], -1) * torch.cat([theta.cos(), one], -1)


def to_angles(x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch angles"]:
    """Angles of the direction of x, which may have any length but 0.

    Raises:
        ValueError: if x has fewer than two features.
    """
    if x.shape[-1] < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least two features")
    beyond = x.square().flip(-1).cumsum(-1).flip(-1)[..., 1:-1].sqrt()  # length of what follows feature k
    last = torch.atan2(x[..., -1:], x[..., -2:-1]).remainder(2 * math.pi)
    return torch.cat([torch.atan2(beyond, x[..., :-2]), last], -1)


def log_sphere_volume(theta: Float[Tensor, "*batch angles"]) -> Float[Tensor, "*batch"]:
    """log of the area of the unit sphere per volume of angles, sum_k (n - 1 - k) log sin t_k; -inf at the poles."""
    powers = torch.arange(theta.shape[-1] - 1, -1, -1, dtype=theta.dtype, device=theta.device)
    return (powers[:-1] * theta[..., :-1].sin().log()).sum(-1)


class AngleBox(Bijection):
    """Angles to all of R^{n-1}, one by one, by the logit of their share of the interval that they may lie in.

    A flow of angles is a `Chain` that begins with this. It cuts a sphere open at the poles and at t_{n-1} = 0: densities
    that do not vanish there have a seam. Angles stay off the ends of their intervals by a rounding error, so that no
    sine or cosine is 0 or changes its sign.

    Args:
        dim: n, the number of features of points, at least 2.
        positive: whether only directions with all features positive are wanted, so that each angle lies in (0, pi/2).
    """

    def __init__(self, dim: int, *, positive: bool = False):
        super().__init__()
        check_sizes(dim=dim)
        if dim < 2:
            raise ValueError(f"dim: got {dim}, expected at least 2")
        quarters = torch.full([dim - 1], 1.0 if positive else 2.0)
        quarters[-1] = 1.0 if positive else 4.0
        self.register_buffer("quarters", quarters)  # of a turn, which no conversion rounds

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        """Unbounded numbers from angles x; not finite outside of the box."""
        self.check_width("x", x, len(self.quarters))
        z = (x / (self.quarters * (math.pi / 2))).logit()
        return z, -self._log_slope(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.quarters))
        eps = torch.finfo(z.dtype).eps
        return self.quarters * (math.pi / 2) * z.sigmoid().clamp(eps, 1 - eps), self._log_slope(z)

    def _log_slope(self, z: Tensor) -> Tensor:
        return (
            (self.quarters * (math.pi / 2)).log()
            + torch.nn.functional.logsigmoid(z)
            + torch.nn.functional.logsigmoid(-z)
        ).sum(-1)
