"""Base density of equivariant free-form flows: configurations of particles whose centre of mass is the origin."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from refimpl._checks import check_sizes
from refimpl.flows.bases import Base

__all__ = ["MeanFreeNormal"]


class MeanFreeNormal(Base):
    """N(0, I) on the (n - 1) d-dimensional space of n particles in d dimensions with their mean at the origin.

    log p_Z(z) = -||z - mean||^2 / 2 - (n - 1) d / 2 log(2 pi), per volume of that space; so is the density of a flow
    whose encoder keeps the centre of mass. Published likelihoods of the particle systems leave out the constant: 5.514
    nats for 4 particles in the plane, 33.081 and 148.868 for 13 and 55 in space.

    Args:
        num_particles: n, >= 2.
        dim: d, of space.

    Raises:
        ValueError: if a size is not a whole number, or there is one particle only; in `log_prob`, if the mean of the
            particles is not at the origin, where there is no density.

    Source: Koehler, Klein, Noe 2020 (arXiv 2006.02425).

    >>> base = MeanFreeNormal(4, 2)
    >>> base.log_prob(torch.zeros(8))
    tensor(-5.5136)
    >>> base.sample([3]).unflatten(-1, (4, 2)).mean(-2).abs().max() < 1e-6
    tensor(True)
    """

    def __init__(self, num_particles: int, dim: int):
        check_sizes(num_particles=num_particles, dim=dim)
        if num_particles == 1:
            raise ValueError("num_particles: got 1, expected 2 or more: a single one with mean 0 has nowhere to go")
        super().__init__([num_particles * dim])
        self.shape = (num_particles, dim)

    def _centred(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.unflatten(-1, self.shape)
        mean = x.mean(-2, keepdim=True)
        return x - mean, mean

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        n, dim = self.shape
        centred, mean = self._centred(z)
        if mean.numel() and mean.detach().abs().max() > 1e-3 * z.detach().abs().max().clamp_min(1):
            off = mean.detach().abs().max().item()
            raise ValueError(
                f"z: got a mean of the particles that is {off:.2g} off the origin, expected centred configurations"
            )
        return -0.5 * (centred.square().sum((-2, -1)) + (n - 1) * dim * math.log(2 * math.pi))

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        return self._centred(self._normal(shape, generator))[0].flatten(-2)
