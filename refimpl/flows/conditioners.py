"""Networks that turn the passive half of a coupling, and a context, into the parameters of its elementwise map."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.nets import mlp

__all__ = ["Conditioner", "zero_last"]


def zero_last(net: nn.Sequential) -> nn.Sequential:
    """Set the last layer to zero, in place, so that what the network conditions starts as the identity."""
    for parameter in net[-1].parameters():
        nn.init.zeros_(parameter)
    return net


class Conditioner(nn.Module):
    """Multilayer perceptron of (passive features, context); its last layer starts at zero.

    Args:
        dim_in: passive features.
        dim_out: raw parameters to predict.
        width: units of each hidden layer.
        depth: number of linear layers.
        activation: makes the module between two layers.
        dim_context: features of the context, 0 for none.
    """

    def __init__(
        self,
        dim_in: int,
        dim_out: int,
        *,
        width: int = 128,
        depth: int = 3,
        activation: Callable[[], nn.Module] = nn.SiLU,
        dim_context: int = 0,
    ):
        super().__init__()
        check_sizes(dim_in=dim_in, dim_out=dim_out)
        self.dim_context = dim_context
        self.net = zero_last(mlp(dim_in + dim_context, dim_out, width=width, depth=depth, activation=activation))

    def forward(self, passive: Tensor, context: Tensor | None = None) -> Tensor:
        """Raw parameters, shape (*batch, dim_out)."""
        return self.net(join(passive, context, self.dim_context))


def check_context(context: Tensor | None, batch: Sequence[int], dim_context: int) -> None:
    """Raise ValueError unless the context has `dim_context` features, for a batch or for all of it."""
    wanted = f"shape (*batch, {dim_context}), with batch = {tuple(batch)} or none"
    if not isinstance(context, Tensor):
        raise ValueError(f"context: got {context!r}, expected {wanted}")
    given = context.shape[:-1]
    fits = len(given) <= len(batch) and all(n in (1, m) for n, m in zip(given[::-1], batch[::-1], strict=False))
    if context.shape[-1:] != (dim_context,) or not fits:
        raise ValueError(f"context: got shape {tuple(context.shape)}, expected {wanted}")


def join(x: Tensor, context: Tensor | None, dim_context: int) -> Tensor:
    """(x, context) side by side along the features.

    Raises:
        ValueError: if the context is missing, not of `dim_context` features, or of another batch.
    """
    if dim_context == 0:
        return x
    check_context(context, x.shape[:-1], dim_context)
    return torch.cat([x, context.expand(*x.shape[:-1], dim_context)], -1)
