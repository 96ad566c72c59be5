"""Densities in the plane that are known exactly, so that a model's KL divergence can be measured, not only its loss."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes

__all__ = ["GaussianMixture", "moons", "ring"]


class GaussianMixture:
    """Mixture of isotropic Gaussians sum_k w_k N(mean_k, std_k^2 I).

    Args:
        means: shape (components, dim); gives dtype and device.
        std: standard deviation, one for all or shape (components,).
        weights: shape (components,), scaled to sum to 1; equal if None.

    Raises:
        ValueError: if shapes do not fit, or a standard deviation or weight is not positive.

    >>> p = GaussianMixture([[-1.0], [1.0]], std=0.1)
    >>> round(p.log_prob(torch.tensor([1.0])).item(), 4)  # half a narrow Gaussian
    0.6905
    """

    def __init__(
        self,
        means: Tensor | Sequence[Sequence[float | int]],
        std: float | int | Tensor | Sequence[float | int],
        weights: Tensor | Sequence[float | int] | None = None,
    ):
        self.means = torch.as_tensor(means)
        if self.means.ndim != 2 or not self.means.is_floating_point() or not self.means.numel():
            got = f"{self.means.dtype} of shape {tuple(self.means.shape)}"
            raise ValueError(f"means: got {got}, expected floats of shape (components, dim)")
        if not self.means.isfinite().all():
            raise ValueError("means: has values that are not finite")
        number = len(self.means)
        std = torch.as_tensor(std).to(self.means)
        std = std.expand(number) if std.ndim == 0 else std
        weights = self.means.new_ones(number) if weights is None else torch.as_tensor(weights).to(self.means)
        for name, values in (("std", std), ("weights", weights)):
            if values.shape != (number,) or not (values > 0).all() or not values.isfinite().all():
                raise ValueError(f"{name}: got {values.tolist()}, expected {number} positive numbers")
        self.std, self.weights = std, weights / weights.sum()

    def log_prob(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
        """log p(x) in nats."""
        dim = self.means.shape[1]
        if not isinstance(x, Tensor) or x.shape[-1:] != (dim,):
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, expected a tensor of shape (*batch, {dim})")
        squares = (x.unsqueeze(-2) - self.means).square().sum(-1) / self.std.square()
        return torch.logsumexp(self.weights.log() - dim * (self.std * math.sqrt(2 * math.pi)).log() - squares / 2, -1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """n points; the random numbers come from the generator's device."""
        check_sizes(n=n)
        where = generator.device if generator else self.means.device
        which = torch.multinomial(self.weights.to(where), n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], dtype=self.means.dtype, device=where, generator=generator)
        which, noise = which.to(self.means.device), noise.to(self.means.device)
        return self.means[which] + self.std[which, None] * noise


def moons(noise: float | int = 0.15, points: int = 40) -> GaussianMixture:
    """Two half circles that reach into each other, as scikit-learn's `make_moons`, of about unit variance.

    Args:
        noise: standard deviation around the arcs, in the units of the data.
        points: Gaussians along each arc; far enough to overlap if noise > 5 / points.
    """
    check_positive("noise", noise)
    check_sizes(points=points)
    angle = (torch.arange(points) + 0.5) * math.pi / points
    upper = torch.stack([angle.cos() - 0.5, angle.sin() - 0.25], 1)
    return GaussianMixture(torch.cat([upper, -upper]) * 1.5, noise)


def ring(modes: int = 8, radius: float | int = 2.0, std: float | int = 0.2) -> GaussianMixture:
    """Gaussians on a circle."""
    check_sizes(modes=modes)
    check_positive("radius", radius)
    angle = torch.arange(modes) * 2 * math.pi / modes
    return GaussianMixture(radius * torch.stack([angle.cos(), angle.sin()], 1), std)
