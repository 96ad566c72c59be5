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

    def _raw(self, params: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        raw = params.unflatten(dim, (self.num_params, -1))
        return raw.split([self.bins, self.bins, self.bins - 1], dim - 1)

    def knots(self, params: Tensor, dim: int = -1) -> tuple[Tensor, Tensor, Tensor]:
        """Positions x_k, heights y_k and slopes d_k of the K + 1 knots, each (..., K + 1, n, ...) at dimension `dim - 1`."""
        w, h, d = self._raw(params, dim)

        def positions(raw: Tensor) -> Tensor:
            shares = self.smallest + (1 - self.smallest * self.bins) * raw.softmax(dim - 1)
            inner = (2 * shares.narrow(dim - 1, 0, self.bins - 1).cumsum(dim - 1) - 1) * self.bound
            end = torch.full_like(raw.narrow(dim - 1, 0, 1), self.bound)
            return torch.cat([-end, inner, end], dim - 1)

        one = torch.ones_like(w.narrow(dim - 1, 0, 1))
        slopes = torch.cat([one, self.smallest + F.softplus(d + self.slope_at_zero), one], dim - 1)
        return positions(w), positions(h), slopes

    def _slopes(self, d: Tensor, k: Tensor, dim: int) -> Pair:
        """Slopes at the left and right end of bin k; at the ends of the box they are 1."""
        inner = self.bins - 1
        ends = torch.cat([k - 1, k], dim - 1)
        if inner == 0:
            return torch.ones_like(ends, dtype=d.dtype).unbind(dim - 1)
        slopes = self.smallest + F.softplus(d.gather(dim - 1, ends.clamp(0, inner - 1)) + self.slope_at_zero)
        return torch.where((ends < 0) | (ends == inner), 1, slopes).unbind(dim - 1)

    def _run(self, points: Tensor, params: Tensor, dim: int, backwards: bool) -> Pair:
        """Only the bin that a point is in is worked out, because tensors of the size of all bins are what costs time."""
        w, h, d = self._raw(params, dim)
        w, h = w.softmax(dim - 1), h.softmax(dim - 1)
        side, free, inner = 2 * self.bound, 1 - self.smallest * self.bins, self.bins - 1
        inside = points.abs() <= self.bound
        # Points outside take part with a safe value, so that the branch not used has finite gradients.
        at = torch.where(inside, points, 0)

        with torch.no_grad():  # which bin it is has no gradient
            knots = (h if backwards else w).narrow(dim - 1, 0, inner).cumsum(dim - 1).mul_(side * free)
            floors = torch.arange(1, self.bins, dtype=at.dtype, device=at.device) * (side * self.smallest) - self.bound
            passed = at.unsqueeze(dim - 1) >= knots.add_(floors.view(-1, *[1] * -dim))
            k = passed.sum(dim - 1, keepdim=True)
            passed = passed.to(at.dtype)
            floor = k.squeeze(dim - 1).to(at.dtype) * (side * self.smallest) - self.bound

        def left_and_size(shares: Tensor) -> Pair:
            # A masked sum: the gradient of picking from the knots would be a second tensor of the size of all bins.
            below = (shares.narrow(dim - 1, 0, inner) * passed).sum(dim - 1)
            own = shares.gather(dim - 1, k).squeeze(dim - 1)
            return floor + below * (side * free), own * (side * free) + side * self.smallest

        (x0, width), (y0, height), (d0, d1) = left_and_size(w), left_and_size(h), self._slopes(d, k, dim)
        s = height / width
        xi = self._root(at - y0, height, s, d0, d1) if backwards else (at - x0) / width
        xi = xi.clamp(0, 1)  # rounding in a narrow bin must not make a slope negative
        # With these a and b numerator and denominator of Eqs. (4) and (5) are sums of positive terms.
        a, b = d0.lerp(s, xi), s.lerp(d1, xi)
        denominator = b.lerp(a, xi)
        log_slope = ((s / denominator).square() * a.lerp(b, xi)).log()
        out = x0 + width * xi if backwards else y0 + height * xi * a / denominator
        out, log_slope = torch.where(inside, out, points), torch.where(inside, log_slope, 0)
        return out, -log_slope if backwards else log_slope

    @staticmethod
    def _root(rise: Tensor, height: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> Tensor:
        """The xi at which the spline is `rise` above the bin's left knot.

        The root of a xi^2 + b xi + c in Eqs. (6)-(8) can be written in two ways; each time the one is taken that adds
        numbers of one sign. Where b < 0, a > 0, so that no division is by 0.
        """
        bend = rise * (d0 + d1 - 2 * s)
        a, b, c = height * (s - d0) + bend, height * d0 - bend, -s * rise
        root = (b.square() - 4 * a * c).clamp_min(0).sqrt()
        falling = b < 0
        q = -0.5 * (b + torch.where(falling, -root, root))
        return torch.where(falling, q, c) / torch.where(falling, a, q)

    def forward(self, x: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return self._run(x, params, dim, backwards=False)

    def inverse(self, z: Tensor, params: Tensor, dim: int = -1) -> Pair:
        return self._run(z, params, dim, backwards=True)
