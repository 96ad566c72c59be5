"""A residual multilayer perceptron that also sees a time: the small network of diffusion and flow matching."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.nets.residual import residual_mlp

__all__ = ["TimedMLP", "timed_mlp"]


class TimedMLP(nn.Module):
    """(x, t, context) -> features of the shape of x; made by `timed_mlp`.

    Time enters every block as t, cos(pi k t), sin(pi k t), k = 1 ... frequencies: waves for detail, and t itself so that
    no two times look the same, outside [0, 1] too.
    """

    def __init__(self, first: nn.Module, blocks: nn.Module, last: nn.Module, frequencies: int, time_scale: float | int):
        super().__init__()
        self.first, self.blocks, self.last, self.time_scale = first, blocks, last, time_scale
        self.register_buffer("waves", math.pi * torch.arange(1, frequencies + 1), persistent=False)

    def forward(
        self,
        x: Float[Tensor, "*batch dim"],
        t: Float[Tensor, "..."],
        context: Float[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch dim"]:
        """t and context are spread over the batch of x.

        Raises:
            ValueError: if t has other than one feature, or the context other than `dim_context`.
        """
        if t.shape[-1:] != (1,):
            raise ValueError(f"t: got shape {tuple(t.shape)}, expected (*batch, 1)")
        t = (t / self.time_scale).expand(*x.shape[:-1], 1)
        angle = t * self.waves
        seen = [t, angle.cos(), angle.sin()]
        if context is not None:
            seen.append(context.expand(*x.shape[:-1], context.shape[-1]))
        have = 0 if context is None else context.shape[-1]
        wanted = self.blocks.dim_context - 1 - 2 * len(self.waves)
        if have != wanted:
            raise ValueError(f"context: got {have} features, expected {wanted}")
        return self.last(self.blocks(self.first(x), torch.cat(seen, -1)))


def timed_mlp(
    dim: int,
    *,
    width: int,
    blocks: int,
    dim_context: int = 0,
    frequencies: int = 8,
    time_scale: float | int = 1.0,
) -> TimedMLP:
    """Residual network of a point, a time and a context, exactly zero before training.

    In long or fast training the inputs of the last SiLU drift to where it is nearly 0 (digits, Adam at 2e-3: a quarter to
    three quarters of them below -4), and at worst the network stays near zero; smaller steps help.

    Args:
        dim: number of features, in and out.
        width: features between the blocks, and units of each block's hidden layer.
        blocks: number of residual blocks with one hidden layer each.
        dim_context: number of features of the context; 0 for none.
        frequencies: number of waves of each kind that stand for the time.
        time_scale: times are divided by it, for processes whose clock does not run through a range of about 1.

    Raises:
        ValueError: if a size is not a whole number >= 1 (>= 0 for `dim_context`), or `time_scale` is not positive.

    >>> timed_mlp(2, width=8, blocks=2, dim_context=1)(torch.ones(3, 2), torch.rand(3, 1), torch.zeros(1))
    tensor([[0., 0.],
            [0., 0.],
            [0., 0.]], grad_fn=<AddmmBackward0>)
    """
    check_sizes(dim=dim, width=width, blocks=blocks, frequencies=frequencies)
    check_positive("time_scale", time_scale)
    if dim_context != 0:
        check_sizes(dim_context=dim_context)
    inner = residual_mlp(width, width=width, depth=2, blocks=blocks, dim_context=1 + 2 * frequencies + dim_context)
    last = nn.Linear(width, dim)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return TimedMLP(nn.Linear(dim, width), inner, nn.Sequential(nn.SiLU(), last), frequencies, time_scale)
