"""Hyperbolic space as the Poincaré ball: a manifold that is flat to look at, with a metric that grows towards the rim."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl.free_form.manifolds import Euclidean

__all__ = ["PoincareBall", "moebius_add"]


def moebius_add(a: Float[Tensor, "*#batch dim"], x: Float[Tensor, "*#batch dim"]) -> Float[Tensor, "*batch dim"]:
    """a (+) x in the unit ball: the isometry of hyperbolic space that moves the origin to a.

    >>> moebius_add(torch.tensor([0.5, 0.0]), torch.tensor([0.5, 0.0]))  # as tanh adds arguments
    tensor([0.8000, 0.0000])
    """
    product, aa, xx = ((p * q).sum(-1, keepdim=True) for p, q in ((a, x), (a, a), (x, x)))
    return ((1 + 2 * product + xx) * a + (1 - aa) * x) / (1 + 2 * product + aa * xx)


class PoincareBall(Euclidean):
    """Hyperbolic space of curvature -1 as the open unit ball; lengths are lambda(x) = 2 / (1 - |x|^2) times Euclidean.

    The only embedding here that is not isometric. The projection pulls points beyond radius 1 - 1e-5 back to there.
    """

    def project(self, y: Tensor) -> Tensor:
        return y * (1 - 1e-5) / torch.linalg.vector_norm(y, dim=-1, keepdim=True).clamp_min(1 - 1e-5)

    def check(self, name: str, x: Tensor, tolerance: float = 1e-3, *, nan: bool = False) -> None:
        super().check(name, x, tolerance, nan=nan)
        if (x.detach().square().sum(-1) >= 1).any():
            raise ValueError(f"{name}: has points on or beyond the rim, expected norms below 1")

    def metric_log_scale(self, x: Tensor) -> Tensor:
        return self.dim * (math.log(2) - torch.log1p(-x.square().sum(-1)))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
        half = length / (1 - x.square().sum(-1, keepdim=True))  # lambda(x) |v| / 2
        return self.project(moebius_add(x, half.tanh() * v / length))

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        moved = moebius_add(-x, y)
        length = torch.linalg.vector_norm(moved, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return moved / length * self.radii(x, y) * (1 - x.square().sum(-1, keepdim=True)) / 2

    def radii(self, x: Tensor, y: Tensor) -> Tensor:
        moved = torch.linalg.vector_norm(moebius_add(-x, y), dim=-1, keepdim=True)
        return 2 * moved.clamp_max(1 - torch.finfo(x.dtype).eps).atanh()

    def _log_exp_volume(self, radius: Tensor, n: int) -> Tensor:
        radius = radius.clamp_min(1e-4)  # below, sinh r / r is 1 to the last digit of single precision
        return (n - 1) * (radius + (-torch.expm1(-2 * radius)).log() - (2 * radius).log())
