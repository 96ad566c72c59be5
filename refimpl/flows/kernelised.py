"""Kernelised couplings: a conditioner that is linear in Gaussian kernels around a few learned points."""

import math

import torch
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.flows.bijection import initial_normal
from refimpl.flows.conditioners import join

__all__ = ["KernelConditioner"]


class KernelConditioner(nn.Module):
    """params(x) = V k(x), k_j(x) = exp(-|x - w_j|^2 / (2 l^2)), V zero at first: num_points (dim_in + dim_out) + 1 numbers.

    Give it to a `Coupling` as `net=functools.partial(KernelConditioner, num_points=64)`.

    Args:
        dim_in: passive features.
        dim_out: raw parameters to predict.
        num_points: learned points w_j, which start as a standard normal sample.
        length: initial length scale l, sqrt(number of inputs) if None.
        dim_context: features of the context, which join the passive ones inside the kernel.
        generator: source of the points; torch's global one if None.

    Source: English, Kirchler, Lippert 2024 (arXiv 2307.14839): kernels in couplings, with auxiliary points.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        num_points: int = 64,
        length: float | int | None = None,
        dim_context: int = 0,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        check_sizes(dim_in=dim_in, dim_out=dim_out, num_points=num_points)
        if length is not None:
            check_positive("length", length)
        self.dim_context = dim_context
        dim = dim_in + dim_context
        self.points = nn.Parameter(initial_normal(num_points, dim, generator=generator))
        self.log_length = nn.Parameter(torch.tensor(math.log(length or math.sqrt(dim))))
        self.weight = nn.Parameter(torch.zeros(dim_out, num_points))

    def forward(self, passive: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters, shape (*batch, dim_out)."""
        offsets = join(passive, context, self.dim_context).unsqueeze(-2) - self.points
        return torch.exp(-0.5 * offsets.square().sum(-1) * (-2 * self.log_length).exp()) @ self.weight.T
