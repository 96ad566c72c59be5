"""Residual multilayer perceptron: as many features out as in, and a context beside them."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.nets.mlp import mlp

__all__ = ["ResidualMLP", "residual_mlp"]


class ResidualMLP(nn.Module):
    """x <- x + MLP([x, context]), block after block; made by `residual_mlp`.

    Args:
        blocks: networks from (*batch, dim + dim_context) to (*batch, dim).
        dim_context: number of features of the context.
    """

    def __init__(self, blocks: list[nn.Module], dim_context: int):
        super().__init__()
        self.blocks, self.dim_context = nn.ModuleList(blocks), dim_context

    def forward(
        self, x: Float[Tensor, "*batch dim"], context: Float[Tensor, "..."] | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """Features of the shape of `x`; a context is spread over the batch of `x`.

        Raises:
            ValueError: if the context is missing, not wanted, or has another number of features.
        """
        have = 0 if context is None else context.shape[-1]
        if have != self.dim_context:
            raise ValueError(f"context: got {have} features, expected {self.dim_context}")
        for block in self.blocks:
            given = x if context is None else torch.cat([x, context.expand(*x.shape[:-1], have)], -1)
            x = x + block(given)
        return x


def residual_mlp(
    dim: int,
    *,
    width: int,
    depth: int,
    blocks: int = 1,
    dim_context: int = 0,
    activation: Callable[[], nn.Module] = nn.SiLU,
) -> ResidualMLP:
    """Residual network of fully connected blocks, near the identity at the start.

    Args:
        dim: number of features, in and out.
        width: units of each hidden layer.
        depth: number of linear layers of a block, >= 1.
        blocks: number of residual blocks.
        dim_context: number of features of the context that every block sees; 0 for none.
        activation: makes the module between two layers; smooth by default, as free-form flows need.

    Raises:
        ValueError: if a size is not a whole number >= 1 (>= 0 for `dim_context`).
        TypeError: if `activation` is a module instead of something that makes one.

    >>> residual_mlp(2, width=8, depth=3, dim_context=1)(torch.zeros(5, 2), torch.zeros(1)).shape
    torch.Size([5, 2])
    """
    check_sizes(blocks=blocks)
    if dim_context != 0:
        check_sizes(dim_context=dim_context)
    made = [mlp(dim + dim_context, dim, width=width, depth=depth, activation=activation) for _ in range(blocks)]
    return ResidualMLP(made, dim_context)
