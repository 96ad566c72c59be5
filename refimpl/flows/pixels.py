"""Grey levels and densities: dequantise, spread over the real line, count bits."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from refimpl._checks import check_sizes
from refimpl.flows.bijection import Bijection, Pair

__all__ = ["Logit", "bits_per_dim", "dequantise"]


class Logit(Bijection):
    """z = logit(alpha + (1 - 2 alpha) x): from [0, 1] to the real numbers.

    Args:
        alpha: in (0, 0.5); keeps the ends of [0, 1] finite.
        event_ndim: 3 for images, 1 for vectors.

    Raises:
        ValueError: if `alpha` is not in (0, 0.5).

    Source: Dinh, Sohl-Dickstein, Bengio 2017 (arXiv 1605.08803), Sec. 4.1 (there alpha = 0.05 and another squeeze).
    """

    def __init__(self, alpha: float = 0.05, event_ndim: int = 3):
        super().__init__()
        if not 0 < alpha < 0.5:
            raise ValueError(f"alpha: got {alpha!r}, expected a number in (0, 0.5)")
        self.alpha, self.event_ndim = alpha, event_ndim

    def _log_det(self, z: Tensor) -> Tensor:
        slopes = math.log(1 - 2 * self.alpha) + F.softplus(z) + F.softplus(-z)
        return slopes.flatten(-self.event_ndim).sum(-1)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Pair:
        z = (self.alpha + (1 - 2 * self.alpha) * x).logit()
        return z, self._log_det(z)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> Pair:
        return (z.sigmoid() - self.alpha) / (1 - 2 * self.alpha), -self._log_det(z)


def dequantise(x: Tensor, levels: int, generator: torch.Generator | None = None) -> Tensor:
    """Whole numbers 0 ... levels - 1 spread evenly over [0, 1): (x + uniform noise) / levels.

    Args:
        x: grey levels, any shape; of integer type, or whole numbers in floating point.
        levels: how many there are.
        generator: source of the noise; torch's global one if None.

    Returns:
        Numbers of the type of `x`, or of the default type for integers.

    Raises:
        TypeError, ValueError: if `x` is no tensor, or holds anything else.
    """
    check_sizes(levels=levels)
    if not isinstance(x, Tensor):
        raise TypeError(f"x: got {type(x).__name__}, expected a tensor of grey levels")
    x = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    if ((x < 0) | (x >= levels) | (x != x.floor())).any():
        raise ValueError(f"x: got {x.min():g} to {x.max():g}, expected whole numbers 0 ... {levels - 1}")
    noise = torch.rand(x.shape, dtype=x.dtype, device=generator.device if generator else x.device, generator=generator)
    return ((x + noise.to(x.device)) / levels).clamp_max(1 - torch.finfo(x.dtype).eps)  # rounding may reach 1


def bits_per_dim(log_prob: Tensor, dims: int, levels: int) -> Tensor:
    """Bits a pixel that a density of images scaled to [0, 1) needs for the `levels` grey levels behind them.

    Args:
        log_prob: log-density of images as `dequantise` makes them, in nats.
        dims: numbers in an image.
        levels: grey levels.

    >>> bits_per_dim(torch.tensor(0.0), 64, 256)  # the uniform density
    tensor(8.)
    """
    check_sizes(dims=dims, levels=levels)
    return math.log2(levels) - log_prob / (dims * math.log(2))
