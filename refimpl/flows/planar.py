"""Planar and radial flows: bend space along one direction, or around one point. Both start as the identity."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Pair, initial_normal

__all__ = ["Planar", "Radial"]

IDENTITY = math.log(math.e - 1)  # where softplus is 1


class Planar(Bijection):
    """f(x) = x + u' tanh(w.x + b), with u' = u + (softplus(w.u) - 1 - w.u) w / |w|^2, so that always w.u' > -1.

    `forward` is the paper's formula. The paper applies it from latent to sample, which is `Inverse(Planar(dim))`.
    The inverse bisects for w.x, the only unknown, and ends with a Newton step through which gradients pass.
    Context is ignored.

    Args:
        dim: number of features.
        generator: source of the initial w; torch's global one if None.

    Source: Rezende, Mohamed 2015 (arXiv 1505.05770), Sec. 4.1 and Appendix A.1.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(dim=dim)
        w = initial_normal(dim, generator=generator)
        self.w = nn.Parameter(w)
        self.u = nn.Parameter(IDENTITY * w / w.square().sum())
        self.b = nn.Parameter(torch.zeros(()))

    def direction(self) -> tuple[Tensor, Tensor]:
        """u' and 1 + w.u' > 0."""
        along = self.w @ self.u
        slope = F.softplus(along)
        return self.u + (slope - 1 - along) * self.w / self.w.square().sum(), slope

    @staticmethod
    def _slope(t: Tensor, slope: Tensor) -> Tensor:
        return t.square() + (1 - t.square()) * slope  # 1 + tanh' * w.u', without cancellation

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.w))
        u, slope = self.direction()
        t = (x @ self.w + self.b).tanh()
        return x + t[..., None] * u, self._slope(t, slope).log()

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.w))
        u, slope = self.direction()
        target, k = z @ self.w, slope - 1

        def excess(a: Tensor) -> Tensor:
            return a + k * (a + self.b).tanh() - target

        with torch.no_grad():
            low, high = target - k.abs(), target + k.abs()
            for _ in range(60):
                middle = (low + high) / 2
                above = excess(middle) > 0
                low, high = torch.where(above, low, middle), torch.where(above, middle, high)
            a = (low + high) / 2
        a = a - excess(a) / self._slope((a + self.b).tanh(), slope)
        t = (a + self.b).tanh()
        return z - t[..., None] * u, -self._slope(t, slope).log()


class Radial(Bijection):
    """f(x) = x + beta (x - c) / (alpha + |x - c|), with alpha = e^log_alpha and beta = softplus(raw) - alpha > -alpha.

    `forward` is the paper's formula. The paper applies it from latent to sample, which is `Inverse(Radial(dim))`.
    The inverse is in closed form. Context is ignored.

    Args:
        dim: number of features.
        generator: source of the initial centre c; torch's global one if None.

    Source: Rezende, Mohamed 2015 (arXiv 1505.05770), Sec. 4.1 and Appendix A.2.
    """

    def __init__(self, dim: int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(dim=dim)
        self.centre = nn.Parameter(initial_normal(dim, generator=generator))
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.raw = nn.Parameter(torch.tensor(IDENTITY))

    def _log_det(self, r: Tensor, alpha: Tensor, total: Tensor) -> Tensor:
        """(D - 1) log(1 + beta h) + log(1 + alpha beta h^2), with h = 1 / (alpha + r), over a common denominator."""
        dim = len(self.centre)
        return (
            (dim - 1) * (r + total).log()
            + (r.square() + 2 * alpha * r + alpha * total).log()
            - (dim + 1) * (alpha + r).log()
        )

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("x", x, len(self.centre))
        alpha, total = self.log_alpha.exp(), F.softplus(self.raw)  # total = alpha + beta
        r = torch.linalg.vector_norm(x - self.centre, dim=-1)
        ratio = (r + total) / (r + alpha)
        return self.centre + (x - self.centre) * ratio[..., None], self._log_det(r, alpha, total)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        self.check_width("z", z, len(self.centre))
        alpha, total = self.log_alpha.exp(), F.softplus(self.raw)
        radius = torch.linalg.vector_norm(z - self.centre, dim=-1)
        gap = radius - total
        half = (gap.abs() + (gap.square() + 4 * alpha * radius).sqrt()) / 2
        r = torch.where(gap > 0, half, alpha * radius / half)  # the roots' product is -alpha * radius: nothing cancels
        ratio = (r + alpha) / (r + total)
        return self.centre + (z - self.centre) * ratio[..., None], -self._log_det(r, alpha, total)
