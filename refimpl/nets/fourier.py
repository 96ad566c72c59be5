"""Random Fourier features (Tancik et al. 2020, arXiv 2006.10739)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes

__all__ = ["FourierFeatures"]


class FourierFeatures(nn.Module):
    r"""Maps x to :math:`[\cos 2\pi Bx, \sin 2\pi Bx]` with a frozen Gaussian matrix B.

    The inner product of two mapped points, divided by ``num_features``, tends to the Gaussian kernel
    :math:`\exp(-2\pi^2\sigma^2\|x-x'\|^2)`: sigma (in cycles per unit of x) is a bandwidth.

    Args:
        dim: number of input features.
        num_features: rows of B; the output has ``2 * num_features`` features.
        sigma: standard deviation of B's entries, in cycles per unit of x, > 0.
        generator: source of B.

    Raises:
        ValueError: if a size is not a whole number >= 1, ``sigma`` is not positive, or x has another last dimension.

    Source: Tancik et al. 2020, Section 5 (Gaussian mapping).

    >>> FourierFeatures(1, 16, sigma=3.0)(torch.zeros(5, 1)).shape
    torch.Size([5, 32])
    """

    def __init__(self, dim: int, num_features: int, *, sigma: float | int, generator: torch.Generator | None = None):
        super().__init__()
        check_sizes(dim=dim, num_features=num_features)
        check_positive("sigma", sigma, "cycles per unit of x")
        device = generator.device if generator is not None else None
        # A buffer, not a parameter: B must never be trained.
        self.register_buffer("matrix", sigma * torch.randn(num_features, dim, generator=generator, device=device))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch features"]:
        if x.shape[-1] != self.matrix.shape[1]:
            raise ValueError(f"x: got last dimension {x.shape[-1]}, expected {self.matrix.shape[1]}")
        angle = 2 * math.pi * x @ self.matrix.T
        return torch.cat([angle.cos(), angle.sin()], dim=-1)
