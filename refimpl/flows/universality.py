"""What coupling flows can reach: the best volume-preserving density, and what one affine coupling can gain.

A flow of constant Jacobian determinant c moves level sets but keeps their volumes, so its density has the heights of
its base whatever it learns. An affine coupling standardises the active features given the passive ones; how much that
gains measures the distance from the normal; `refimpl.flows.layerwise` stacks such couplings.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor

__all__ = [
    "ConditionalMoments",
    "Rearrangement",
    "additive_improvement",
    "affine_improvement",
    "best_volume_preserving",
    "conditional_moments",
    "gaussian_profile",
    "height_profile",
    "separated_modes_gap",
]


def height_profile(
    log_p: Float[Tensor, "..."], cell: float | int
) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
    """Volumes V and heights: {log p >= heights[i]} has volume V[i], to half a cell.

    Args:
        log_p: log-density on a regular grid of any shape.
        cell: volume of a cell of the grid.

    Returns:
        V, increasing, and log-heights, decreasing, one a cell.

    Raises:
        TypeError: if `log_p` is not a floating-point tensor.
        ValueError: if `log_p` is empty, NaN or inf somewhere, or `cell` is not a finite number > 0.

    >>> height_profile(torch.tensor([0.0, 2.0, 1.0]), 2.0)
    (tensor([1., 3., 5.]), tensor([2., 1., 0.]))
    """
    if not isinstance(log_p, Tensor) or not log_p.is_floating_point():
        raise TypeError(f"log_p: got {getattr(log_p, 'dtype', type(log_p).__name__)}, expected a floating-point tensor")
    if not log_p.numel() or not (log_p < math.inf).all():
        raise ValueError(f"log_p: got shape {tuple(log_p.shape)} with nan or inf, or empty; expected values < inf")
    check_positive("cell", cell)
    heights = log_p.flatten().sort(descending=True).values
    return (torch.arange(len(heights), device=heights.device) + 0.5).to(heights) * cell, heights


def gaussian_profile(volume: Tensor, jacobian: float | int, dim: int) -> Tensor:
    """Log-height whose superlevel set has this volume, for *every* flow with |det f'| = jacobian and base N(0, I).

    ln p = ln c - D/2 ln 2 pi - (c V / omega_D)^(2/D) / 2, where omega_D is the volume of the unit ball; a straight line
    in V if D = 2.

    Args:
        volume: V >= 0, any shape.
        jacobian: c > 0.
        dim: D.

    >>> gaussian_profile(torch.tensor([0.0, 2 * math.pi]), 1.0, 2)
    tensor([-1.8379, -2.8379])
    """
    check_positive("jacobian", jacobian)
    check_sizes(dim=dim)
    check_tensor("volume", volume, "(*batch)")
    if not (volume >= 0).all():
        raise ValueError(f"volume: got a smallest value of {volume.min().item():g}, expected all >= 0")
    radius2 = (jacobian * volume / _unit_ball(dim)) ** (2 / dim)
    return math.log(jacobian) - 0.5 * dim * math.log(2 * math.pi) - 0.5 * radius2


class Rearrangement(NamedTuple):
    """The best that volume-preserving flows with a normal base do for a density p; see `best_volume_preserving`."""

    log_p: Tensor  # the density they approach: level sets of p, heights of a normal
    jacobian: float  # its |det f'|
    nll: float  # its cross-entropy under p, nats
    entropy: float  # of p, nats

    @property
    def gap(self) -> float:
        """Infimum of KL(p || flow), nats."""
        return self.nll - self.entropy


def best_volume_preserving(log_p: Float[Tensor, "..."], cell: float | int, dim: int | None = None) -> Rearrangement:
    """Density that volume-preserving flows with base N(0, I) approach when they maximise the likelihood of p.

    That they come arbitrarily close (D >= 2) is known from measure theory; the bound itself needs no such theorem.
    By the rearrangement inequality the best order of heights is p's own, and by the best scale E_p ||z||^2 = D.

    Args:
        log_p: log p on a regular grid that holds all of its mass, such as (rows, columns); float64 is advised.
        cell: volume of a cell.
        dim: D, that of the grid if None.

    Raises:
        ValueError: if p does not sum to 1 within 1e-3.

    Source: Draxler et al. 2024 (arXiv 2402.06578), Sec. 4, in our derivation.
    """
    volume, heights = height_profile(log_p, cell)
    dim = log_p.ndim if dim is None else dim
    check_sizes(dim=dim)
    weight = heights.exp() * cell
    if not abs(weight.sum().item() - 1) < 1e-3:
        raise ValueError(f"log_p: sums to {weight.sum().item():.4g} on the grid, expected 1; is the grid too small?")
    weight = weight / weight.sum()
    ball, spread = _unit_ball(dim), (weight @ volume ** (2 / dim)).item()
    jacobian = ball * (dim / spread) ** (dim / 2)
    nll = 0.5 * dim * (1 + math.log(2 * math.pi * spread / dim)) - math.log(ball)
    # Ties, as in a symmetric density, are broken by the order of cells: each cell has a rank of its own.
    rank = log_p.flatten().argsort(descending=True).argsort()
    best = gaussian_profile(volume, jacobian, dim)[rank].view(log_p.shape)
    return Rearrangement(best, jacobian, nll, -torch.xlogy(weight, weight / cell).sum().item())


def separated_modes_gap(variances: Sequence[float | int], weights: Sequence[float | int] | None = None) -> float:
    """The same gap in closed form, for well separated isotropic Gaussian modes in the plane. Nats.

    With heights h_k = w_k / (2 pi s_k) at the modes,
    E[V] = sum_kj w_k 2 pi s_j g(ln h_j / h_k), g(a) = 1 + a for a >= 0 and e^a below, and the gap is
    1 + ln E[V] minus the entropy. For two modes of equal weight and r = s_1 / s_2 it is ln (r + 3 + ln r) / (4 sqrt r).
    It is zero exactly if all heights agree, that is w_k proportional to s_k.

    Args:
        variances: s_k > 0.
        weights: w_k > 0, normalised here; equal if None.

    >>> round(separated_modes_gap([1, 0.04]), 4)
    0.4453
    """
    check_numbers("variances", variances, low=1e-300)
    weights = [1.0] * len(variances) if weights is None else weights
    check_numbers("weights", weights, low=1e-300)
    if len(weights) != len(variances):
        raise ValueError(f"weights: got {len(weights)}, expected one for each of {len(variances)} variances")
    s, w = torch.tensor(variances, dtype=torch.float64), torch.tensor(weights, dtype=torch.float64)
    w = w / w.sum()
    log_height = (w / (2 * math.pi * s)).log()
    above = log_height - log_height[:, None]  # (k, j)
    reach = torch.where(above >= 0, 1 + above, above.exp())
    mean_volume = (w[:, None] * 2 * math.pi * s * reach).sum()
    entropy = (w * (1 + (2 * math.pi * s / w).log())).sum()
    return (1 + mean_volume.log() - entropy).item()


class ConditionalMoments(NamedTuple):
    """Mean and standard deviation of the active features in bins of equal counts of the passive one."""

    position: Tensor  # mean of the passive feature, (bins,)
    mean: Tensor  # (bins, active)
    std: Tensor  # (bins, active)


def conditional_moments(
    passive: Float[Tensor, " n"], active: Float[Tensor, "n active"], num_bins: int
) -> ConditionalMoments:
    """Estimate of mean and (biased) standard deviation of the active features given the passive one.

    Args:
        passive: one feature, shape (n,).
        active: the others, shape (n, active).
        num_bins: number of bins; the n % num_bins samples with the largest passive feature are left out.

    Raises:
        TypeError: if a tensor is not floating-point.
        ValueError: if shapes do not fit, values are not finite, or the bins have fewer than 2 samples.
    """
    check_sizes(num_bins=num_bins)
    check_tensor("passive", passive, "(n)")
    check_tensor("active", active, f"({len(passive)}, active)", like=passive)
    count = len(passive) // num_bins
    if count < 2:
        raise ValueError(f"num_bins: got {num_bins} for {len(passive)} samples, expected at least 2 samples a bin")
    order = passive.argsort()[: count * num_bins]
    binned = active[order].unflatten(0, (num_bins, count))
    std = binned.std(1, correction=0).clamp_min(1e-6)  # samples that coincide would ask for an infinite scale
    return ConditionalMoments(passive[order].view(num_bins, count).mean(1), binned.mean(1), std)


def affine_improvement(moments: ConditionalMoments) -> Float[Tensor, ""]:
    """Loss that the best affine coupling removes: Delta = E_b sum_i (m_i^2 + sigma_i^2 - 1 - ln sigma_i^2) / 2. Nats.

    Zero for every rotation only if the law is N(0, I). From n samples it comes out too large, by about
    (bins * active) / n for a normal law.

    Source: Draxler et al. 2020 (GCPR), Sec. 3; Draxler et al. 2024 (arXiv 2402.06578), Sec. 5.
    """
    variance = moments.std.square()
    return 0.5 * (moments.mean.square() + variance - 1 - variance.log()).sum(1).mean()


def additive_improvement(moments: ConditionalMoments) -> Float[Tensor, ""]:
    """Loss that the best additive coupling removes, E_b ||m||^2 / 2. Nats; zero for every law that spheres describe."""
    return 0.5 * moments.mean.square().sum(1).mean()


def _unit_ball(dim: int) -> float:
    return math.pi ** (dim / 2) / math.gamma(dim / 2 + 1)
