"""Random numbers for samplers, from the generator's device, so that a seed gives the same ones everywhere."""

from collections.abc import Callable

import torch
from torch import Tensor


def draw(kind: Callable, shape: tuple, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """`torch.rand` or `torch.randn` of this shape, in dtype and on the device of `like`."""
    where = generator.device if generator else like.device
    return kind(shape, dtype=like.dtype, device=where, generator=generator).to(like.device)
