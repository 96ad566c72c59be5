"""Monotone rational-quadratic splines."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from refimpl._checks import check_positive, check_sizes
from refimpl.flows.elementwise import ElementwiseMap, Pair

__all__ = ["SplineMap"]


class SplineMap(ElementwiseMap):
    """Rational-quadratic spline with `bins` bins on [-bound, bound], the identity outside; C^1, inverse in closed form.

    The 3 * bins - 1 raw parameters of a feature are widths, heights and inner slopes, in this order.

    Args:
        bins: number of bins K.
        bound: half the side of the box, in the units of the data; outside nothing is modelled, so standardise first.
        smallest: least width and height of a bin, as a share of the box, and least slope.

    Raises:
        ValueError: if `bins` is not a whole number >= 1, `bound` not > 0, or `smallest * bins` not below 1.

    Source: Durkan, Bekasov, Murray, Papamakarios 2019 (arXiv 1906.04032), Sec. 3.1, Eqs. (4)-(8).
    """

    def __init__(self, bins: int = 8, bound: float | int = 3.0, smallest: float = 1e-3):
        check_sizes(bins=bins)
        check_positive("bound", bound)
        if not 0 < smallest * bins < 1:
            raise ValueError(f"smallest: got {smallest!r}, expected a number in (0, 1 / bins)")
        self.bins, self.bound, self.smallest = bins, bound, smallest
        self.num_params = 3 * bins - 1
        self.slope_at_zero = math.log(math.expm1(1 - smallest))

    def knots(self, params: Tensor, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Positions x_k, heights y_k and slopes d_k of the K + 1 knots, each (..., K + 1, n, ...) at dimension `dim - 1`."""
        w, h, d = params.unflatten(dim, (self.num_params, -1)).split([self.bins, self.bins, self.bins - 1], dim - 1)

        def positions(raw: Tensor) -> Tensor:
            shares = self.smallest + (1 - self.smallest * self.bins) * raw.softmax(dim - 1)
            inner = (2 * shares.narrow(dim - 1, 0, self.bins - 1).cumsum(dim - 1) - 1) * self.bound
            end = torch.full_like(raw.narrow(dim - 1, 0, 1), self.bound)
            return torch.cat([-end, inner, end], dim - 1)

        one = torch.ones_like(d.narrow(dim - 1, 0, 1)) if self.bins > 1 else torch.ones_like(w)
        slopes = torch.cat([one, self.smallest + F.softplus(d + self.slope_at_zero), one], dim - 1)
        return positions(w), positions(h), slopes

    def _run(self, points: Tensor, params: Tensor, dim: int, backwards: bool) -> Pair:
        xs, ys, slopes = self.knots(params, dim)
        inside = points.abs() <= self.bound
        # Points outside take part with a safe value, so that the branch not used has finite gradients.
        at = torch.where(inside, points, 0).unsqueeze(dim - 1)
        known = ys if backwards else xs
        k = (at >= known.narrow(dim - 1, 1, self.bins - 1)).sum(dim - 1, keepdim=True)

        def pick(values: Tensor, which: Tensor) -> Tensor:
            return values.gather(dim - 1, which).squeeze(dim - 1)

        x0, x1, y0, y1 = pick(xs, k), pick(xs, k + 1), pick(ys, k), pick(ys, k + 1)
        d0, d1, at = pick(slopes, k), pick(slopes, k + 1), at.squeeze(dim - 1)
        width, height = x1 - x0, y1 - y0
        s = height / width
        bend = d0 + d1 - 2 * s
        if backwards:
            # Of the two roots of the quadratic this form stays exact as its leading coefficient goes to 0.
            a, b, c = height * (s - d0) + (at - y0) * bend, height * d0 - (at - y0) * bend, -s * (at - y0)
            xi = 2 * c / (-b - (b.square() - 4 * a * c).clamp_min(0).sqrt())
            out = x0 + xi * width
        else:
            xi = (at - x0) / width
        mix = xi * (1 - xi)
        denominator = s + bend * mix
        if not backwards:
            out = y0 + height * (s * xi.square() + d0 * mix) / denominator
        log_slope = 2 * (s / denominator).log() + (d1 * xi.square() + 2 * s * mix + d0 * (1 - xi).square()).log()
        out, log_slope = torch.where(inside, out, points), torch.where(inside, log_slope, 0)
        return out, -log_slope if backwards else log_slope

    def forward(self, x: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return self._run(x, params, dim, backwards=False)

    def inverse(self, z: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return self._run(z, params, dim, backwards=True)
