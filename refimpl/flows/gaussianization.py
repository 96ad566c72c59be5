r"""Gaussianization: rotate, bring every coordinate to a standard normal, repeat. Nothing is trained by gradients.

A layer is z = g(Q x) with Q orthogonal and g acting on each coordinate alone. With F_i the distribution function of
(Q x)_i, the best g_i is Phi^{-1}(F_i), so that a layer is fitted by looking at its data once; `gaussianize` stacks layers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.flows.bijection import Bijection, Chain
from refimpl.flows.gaussian_rotations import ica_rotation, pca_rotation, sliced_rotation
from refimpl.flows.linear import ActNorm, Rotation

__all__ = ["Gaussianization", "MarginalGaussianization", "gaussianize"]

Pair = tuple[Tensor, Tensor]
RotationRule = Callable[[Tensor, torch.Generator | None], Tensor]
CELLS, MARGIN = 8, 256  # histogram cells in a bin of the spline, and beyond its outer knots
BLOCK = 2**16  # numbers mapped at once on a CPU
FLATTEST = 1e-4  # least slope, in units of the standard deviation: a gap between clusters of data can still be crossed


class MarginalGaussianization(Bijection):
    r"""Each coordinate's own map to a standard normal: a rational-quadratic spline through a smoothed Phi^{-1}(F).

    It starts as the identity; `fit` looks at data. In units of the coordinate's standard deviation, with knots t_k at
    equal distances and F_h, p_h the distribution function and density of a Gaussian kernel estimate of bandwidth h,

        g(t_k) = sqrt(1 + h^2) Phi^{-1}(F_h(t_k)),    g'(t_k) = sqrt(1 + h^2) p_h(t_k) / phi(Phi^{-1}(F_h(t_k))).

    The kernel widens a normal to variance 1 + h^2, the root takes that back: what is normal already stays as it is.
    Beyond the outer knots, where there are too few points to learn from, g goes on as a line of slope 1 / standard
    deviation: it is continuous there, its slope need not be.

    Args:
        dim: number of coordinates.
        bins: pieces of the spline between the outer knots.

    Source: Draxler et al. 2023 (arXiv 2306.13520) and its code, after Dai and Seljak 2021 (arXiv 2007.00674); knots at
    equal distances are ours, theirs are at equal quantiles.

    >>> x = torch.rand(50_000, 2, generator=torch.Generator().manual_seed(0))
    >>> z, log_det = MarginalGaussianization(2).fit(x)(x)
    >>> [round(s, 1) for s in z.std(0).tolist()]
    [1.0, 1.0]
    """

    def __init__(self, dim: int, bins: int = 64):
        super().__init__()
        check_sizes(dim=dim, bins=bins)
        self.dim, self.bins = dim, bins
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))
        self.register_buffer("left", -3 * torch.ones(dim))
        self.register_buffer("width", torch.full((dim,), 6 / bins))  # of a bin
        self.register_buffer("heights", torch.linspace(-3, 3, bins + 1)[:, None].repeat(1, dim))
        self.register_buffer("slopes", torch.ones(bins + 1, dim))

    @torch.no_grad()
    def fit(
        self,
        x: Float[Tensor, "..."],
        *,
        bandwidth: float | int = 1.0,
        tail: float = 1e-3,
        widened: bool = True,
        prior: float | int = 1.0,
    ) -> "MarginalGaussianization":
        """Set the map from data; one sort of each coordinate, all coordinates at once. Returns itself.

        Args:
            x: data, shape (n, dim), n >= 3, on the device and in the type of the result.
            bandwidth: factor of the kernel's width, n^(-1/5) min(standard deviation, interquartile range / 1.349).
            tail: share of the points beyond either outer knot; at least one point is.
            widened: whether to apply the factor sqrt(1 + h^2).
            prior: number of points that a standard normal is worth which is mixed in, for points between the data's clusters.

        Raises:
            ValueError: if `x` has another shape, values that are not finite, fewer than 3 points, or a constant coordinate.
        """
        check_tensor("x", x, f"(n, {self.dim})")
        check_positive("bandwidth", bandwidth)
        check_numbers("tail", [tail], low=0, high=0.5)
        check_numbers("prior", [prior], low=0)
        n, beyond = len(x), max(int(tail * len(x)), 1)
        if 2 * beyond >= n:
            raise ValueError(f"x: got {n} points, expected at least 3, and a tail of less than half of them")
        self.to(x)
        self.mean, self.std = x.mean(0), x.std(0)
        if not (self.std > 0).all():
            raise ValueError(f"x: feature {self.std.argmin().item()} is constant; leave it out")
        u = ((x - self.mean) / self.std).T.contiguous()  # (dim, n)
        ordered = _sorted(u)
        left, right = ordered[:, beyond], ordered[:, -1 - beyond]
        cell = ((right - left) / (CELLS * self.bins)).clamp_min(1e-6)
        spread = ((ordered[:, 3 * n // 4] - ordered[:, n // 4]) / 1.349).clamp(max=1)
        h = torch.maximum(bandwidth * spread * n**-0.2, 1.5 * cell)  # (dim,)

        # A histogram with fine cells, smoothed in frequency: exact up to the square of (cell / h).
        cells = CELLS * self.bins + 2 * MARGIN
        which = ((u - left[:, None]) / cell[:, None] + MARGIN).clamp(0, cells - 1).long()
        mass = u.new_zeros(self.dim, cells).scatter_add_(1, which, u.new_ones(1, 1).expand_as(u)).double() / n
        frequency = 2 * math.pi * torch.fft.rfftfreq(2 * cells, device=x.device, dtype=torch.float64)
        kernel = (-0.5 * (frequency * (h / cell).double()[:, None]).square()).exp()
        mass = torch.fft.irfft(torch.fft.rfft(mass, 2 * cells) * kernel, 2 * cells)
        # The row is twice as long as the cells; what the kernel carries below the first cell comes out at its end.
        mass = mass.roll(cells // 2, 1)
        total = mass.cumsum(1)
        at = cells // 2 + MARGIN - 1 + CELLS * torch.arange(self.bins + 1, device=x.device)  # the cell left of a knot
        total, density = total[:, at], (mass[:, at] + mass[:, at + 1]) / (2 * cell[:, None])

        knots = (left[:, None] + cell[:, None] * CELLS * torch.arange(self.bins + 1, device=x.device)).double()
        share = prior / (n + prior)
        total = (1 - share) * total + share * torch.special.ndtr(knots)
        y = torch.special.ndtri(total.clamp(1e-12, 1 - 1e-12))
        density = (1 - share) * density + share * _normal_density(knots)
        factor = (1 + h.double().square()).sqrt()[:, None] if widened else 1.0
        y, slopes = factor * y, (factor * density / _normal_density(y)).clamp_min(FLATTEST)
        rise = y.diff(dim=1).maximum(FLATTEST * CELLS * cell[:, None])
        y = torch.cat([y[:, :1], y[:, :1] + rise.cumsum(1)], 1)
        self.left, self.width = left, CELLS * cell
        self.heights, self.slopes = y.T.to(x).contiguous(), slopes.T.to(x).contiguous()
        return self

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        return self._run("x", x, self._one_way)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return self._run("z", z, self._other_way)

    def _run(self, name: str, x: Tensor, one_way: Callable[[Tensor], Pair]) -> Pair:
        check_tensor(name, x, f"(*batch, {self.dim})")
        # Blocks that stay in the cache: on a CPU several times as fast for many points.
        rows = x.reshape(-1, self.dim)
        blocks = [one_way(block) for block in rows.split(max(1, BLOCK // self.dim) if x.is_cpu else max(1, len(rows)))]
        images, log_dets = (torch.cat(parts) for parts in zip(*blocks, strict=True))
        return images.view(x.shape), log_dets.view(x.shape[:-1])

    def _bins(self, k: Tensor) -> tuple[Tensor, ...]:
        """Lower height, rise, and the slopes at both ends relative to the secant, of the bins k, each (points, dim)."""
        rise = self.heights.diff(dim=0)
        first, last = (slopes * self.width / rise for slopes in (self.slopes[:-1], self.slopes[1:]))
        return tuple(table.gather(0, k) for table in (self.heights, rise, first, last))

    def _one_way(self, x: Tensor) -> Pair:
        at = ((x - self.mean) / self.std - self.left) / self.width
        inside = at.clamp(0, self.bins)
        k = inside.detach().long().clamp(max=self.bins - 1)
        low, rise, first, last = self._bins(k)
        xi = inside - k
        mix = xi * (1 - xi)
        below = 1 + (first + last - 2) * mix
        z = low + rise * (xi.square() + first * mix) / below + (at - inside) * self.width
        log_slope = torch.where(at == inside, self._log_slope(xi, mix, rise, first, last, below), 0)
        return z, (log_slope - self.std.log()).sum(-1)

    def _other_way(self, z: Tensor) -> Pair:
        inside = z.minimum(self.heights[-1]).maximum(self.heights[0])
        k = torch.searchsorted(self.heights.T.contiguous(), inside.detach().T.contiguous(), right=True).T - 1
        k = k.clamp(max=self.bins - 1)
        low, rise, first, last = self._bins(k)
        share = (inside - low) / rise
        bend = share * (first + last - 2)
        b = first - bend
        # Of the two forms of the root of (1 - b) xi^2 + b xi = share, the one that adds numbers of one sign.
        q = b.abs() + (b.square() + 4 * (1 - b) * share).clamp_min(0).sqrt()
        xi = torch.where(b < 0, q, 2 * share) / torch.where(b < 0, 2 * (1 - b), q)
        mix = xi * (1 - xi)
        log_slope = self._log_slope(xi, mix, rise, first, last, 1 + (first + last - 2) * mix)
        log_slope = torch.where(z == inside, log_slope, 0)
        u = self.left + (k + xi) * self.width + (z - inside)
        return self.mean + self.std * u, (self.std.log() - log_slope).sum(-1)

    def _log_slope(self, xi: Tensor, mix: Tensor, rise: Tensor, first: Tensor, last: Tensor, below: Tensor) -> Tensor:
        slope = rise / self.width * (last * xi.square() + 2 * mix + first * (1 - xi).square()) / below.square()
        return slope.log()


def _sorted(u: Tensor) -> Tensor:
    """Each row in rising order; on the CPU by NumPy, many times as fast as torch."""
    return torch.from_numpy(np.sort(u.numpy(), axis=1)) if u.is_cpu else u.sort(dim=1).values


def _normal_density(x: Tensor) -> Tensor:
    return (-0.5 * x.square()).exp() / math.sqrt(2 * math.pi)


RULES: dict[str, RotationRule] = {
    "pca": pca_rotation,
    "ica": ica_rotation,
    "sliced": sliced_rotation,
}


class Gaussianization(NamedTuple):
    """What `gaussianize` returns.

    Attributes:
        bijection: chain of the standardisation, then (rotation, marginal map) for each layer.
        train: mean negative log-likelihood in nats of the data each layer was fitted to, before and after every layer.
        held_out: the same of the data held out; empty without any. Minus the entropy it is the KL divergence.
    """

    bijection: Chain
    train: list[float]
    held_out: list[float]


@torch.no_grad()
def gaussianize(
    x: Float[Tensor, "..."],
    num_layers: int,
    *,
    rotation: str | RotationRule = "random",
    held_out: Float[Tensor, "..."] | None = None,
    resample: Callable[[], Tensor] | None = None,
    marginal: Callable[[Tensor], Bijection] | None = None,
    stop: Callable[[list[float]], bool] | None = None,
    generator: torch.Generator | None = None,
) -> Gaussianization:
    """Fit layer after layer in closed form, each to the data that the frozen layers before it make of `x`.

    Args:
        x: data, shape (n, dim); standardised first.
        num_layers: how many layers at most.
        rotation: ``"random"`` (Haar), ``"pca"``, ``"ica"``, ``"sliced"``, or a function of the current data and the generator
            that returns an orthogonal matrix.
        held_out: data to judge by, shape (m, dim).
        resample: returns fresh data, shape (n, dim), for every layer; it goes through all layers before, so that the cost
            grows with the square of their number, and the noise of one layer is not fitted by the next.
        marginal: fits the coordinate maps; default ``MarginalGaussianization(dim).fit``.
        stop: told all losses so far (held out if there is such data), says whether to stop.
        generator: source of the rotations.

    Raises:
        ValueError: if `rotation` is unknown or shapes do not fit.

    >>> x = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0)).exp()
    >>> found = gaussianize(x, 2, generator=torch.Generator().manual_seed(0))
    >>> found.train[0] > found.train[1]
    True
    """
    check_tensor("x", x, "(n, dim)")
    check_sizes(num_layers=num_layers)
    dim = x.shape[1]
    if held_out is not None:
        check_tensor("held_out", held_out, f"(m, {dim})", like=x)
    if not (x.std(0) > 0).all():
        raise ValueError(f"x: feature {x.std(0).argmin().item()} is constant; leave it out")
    if not callable(rotation) and rotation not in ("random", *RULES):
        raise ValueError(f"rotation: got {rotation!r}, expected random, {', '.join(RULES)}, or a function")
    rule = RULES.get(rotation, rotation)
    marginal = marginal or (lambda y: MarginalGaussianization(dim).fit(y))

    layers: list[Bijection] = []
    sets = [x] if held_out is None else [x, held_out]
    log_dets: list[Tensor] = [y.new_zeros(len(y)) for y in sets]
    losses: list[list[float]] = [[] for _ in sets]

    def append(f: Bijection) -> None:
        layers.append(f)
        for i, y in enumerate(sets):
            sets[i], log_det = f(y)
            log_dets[i] = log_dets[i] + log_det

    def judge() -> None:
        for y, log_det, loss in zip(sets, log_dets, losses, strict=True):
            nll = 0.5 * (y.square() + math.log(2 * math.pi)).sum(1) - log_det
            loss.append(nll.double().mean().item())

    append(ActNorm(dim).to(x))
    judge()
    while len(losses[0]) <= num_layers and not (stop and stop(losses[-1])):
        if resample and len(layers) > 1:
            sets[0], log_dets[0] = Chain(*layers)(resample())
        turn = Rotation(dim, generator) if rotation == "random" else Rotation(dim, matrix=rule(sets[0], generator))
        append(turn.to(x))
        append(marginal(sets[0]))
        judge()
    return Gaussianization(Chain(*layers), losses[0], losses[1] if held_out is not None else [])
