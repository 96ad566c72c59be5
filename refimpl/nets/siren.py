"""Sinusoidal representation networks, SIREN (Sitzmann et al. 2020, arXiv 2006.09661)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.nets.mlp import mlp

__all__ = ["Sine", "siren"]


class Sine(nn.Module):
    """Activation sin(omega x), ``omega`` in radians per unit of x."""

    def __init__(self, omega: float | int):
        super().__init__()
        check_positive("omega", omega, "radians per unit of x")
        self.omega = omega

    def forward(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return torch.sin(self.omega * x)

    def extra_repr(self) -> str:
        return f"omega={self.omega}"


def siren(
    dim_in: int,
    dim_out: int,
    *,
    width: int,
    depth: int,
    omega: float | int = 30.0,
    generator: torch.Generator | None = None,
) -> nn.Sequential:
    """Network with sine activations and the initialisation that keeps every layer's input near unit variance.

    First layer's weights U(-1/n, 1/n); all later ones U(-sqrt(6/n)/omega, sqrt(6/n)/omega) with n inputs of the layer,
    which gives pre-activations a variance that stays constant with depth. Inputs belong in [-1, 1].

    Args:
        dim_in, dim_out: numbers of input and output features.
        width: units of each hidden layer.
        depth: number of linear layers, >= 2.
        omega: frequency factor of every sine, in radians per unit of input.
        generator: source of the weights (biases keep PyTorch's default, drawn from the same source).

    Returns:
        Module that maps (*batch, dim_in) to (*batch, dim_out).

    Raises:
        ValueError: if a size is not a whole number >= 1, ``depth`` < 2, or ``omega`` is not positive.

    Source: Sitzmann et al. 2020, Section 3.2 and supplement, Theorem 1.8.

    >>> len([m for m in siren(2, 1, width=16, depth=3) if isinstance(m, Sine)])
    2
    """
    check_sizes(dim_in=dim_in, dim_out=dim_out, width=width, depth=depth)
    if depth < 2:
        raise ValueError(f"depth: got {depth}, expected at least 2 (one sine between two linear layers)")
    net = mlp(dim_in, dim_out, width=width, depth=depth, activation=lambda: Sine(omega))
    with torch.no_grad():
        for i, layer in enumerate(m for m in net if isinstance(m, nn.Linear)):
            n = layer.in_features
            limit = 1 / n if i == 0 else math.sqrt(6 / n) / omega
            layer.weight.uniform_(-limit, limit, generator=generator)
            layer.bias.uniform_(-1 / math.sqrt(n), 1 / math.sqrt(n), generator=generator)
    return net
