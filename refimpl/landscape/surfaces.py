"""Two loss surfaces in the plane whose minima and saddles are known exactly: test cases for every path finder."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["CURVY_VALLEY_MINIMA", "EGG_CARTON_MINIMA", "curvy_valley", "egg_carton"]

_X0 = 5 * math.pi / 2

#: Both minima of `curvy_valley`, value 0; the saddle between them is (0, 0), value 1.
CURVY_VALLEY_MINIMA = ((-_X0, -1.0), (_X0, 1.0))

#: Two diagonal neighbours among the minima of `egg_carton`, value -2; every saddle has value 0.
EGG_CARTON_MINIMA = ((-0.5, -0.5), (0.5, 0.5))


def _check(points: Tensor) -> None:
    if not isinstance(points, Tensor) or not points.is_floating_point():
        raise TypeError(
            f"points: got {getattr(points, 'dtype', type(points).__name__)}, expected floating-point numbers"
        )
    if points.ndim == 0 or points.shape[-1] != 2:
        raise ValueError(f"points: got shape {tuple(points.shape)}, expected (*batch, 2)")


def curvy_valley(points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    r"""Valley along y = sin x with a pass in the middle: :math:`(y-\sin x)^2+(1-x^2/x_0^2)^2`, :math:`x_0=5\pi/2`.

    Its minima are `CURVY_VALLEY_MINIMA`; the minimum energy path winds along the sine (to within 0.05), 1.205 times as
    long as the chord, and its highest point is the saddle at the origin, value 1.

    Raises:
        TypeError, ValueError: if ``points`` are not floating-point or have another last dimension.

    >>> curvy_valley(torch.tensor([[0.0, 0.0], CURVY_VALLEY_MINIMA[0]])).round(decimals=4).abs()
    tensor([1., 0.])
    """
    _check(points)
    x, y = points.unbind(-1)
    return (y - x.sin()).square() + (1 - (x / _X0).square()).square()


def egg_carton(points: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch"]:
    r"""Periodic surface :math:`\cos2\pi x+\cos2\pi y`: minima (-2) at half-integers, maxima (2) at integers, saddles 0.

    The straight line between the diagonal neighbours `EGG_CARTON_MINIMA` crosses a maximum, and its perpendicular force
    is exactly zero there; the minimum energy path goes round, through a third minimum.

    Raises:
        TypeError, ValueError: if ``points`` are not floating-point or have another last dimension.

    >>> egg_carton(torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.5, 0.0]])).round(decimals=4).tolist()
    [2.0, -2.0, 0.0]
    """
    _check(points)
    return torch.cos(2 * math.pi * points).sum(-1)
