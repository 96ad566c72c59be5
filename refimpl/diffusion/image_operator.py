"""Operators on flattened images, with what a measurement needs of them: a matrix if they are linear, a rough inverse."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_tensor, image_shape
from refimpl.data._random import draw
from refimpl.diffusion.measurement import Measurement

__all__ = ["ImageOperator"]


class ImageOperator(nn.Module):
    """h, from flattened images to flattened measurements.

    Args:
        shape: (height, width) or (channels, height, width) of the images.
        apply: from images (..., channels, height, width) to measurements (..., channels, h, w).
        back: a rough inverse, from measurements (..., m) to flattened images; None if there is none.
        linear: whether h is linear, and the same for all images, so that it has a matrix.
    """

    def __init__(self, shape: Sequence[int], apply: Callable, back: Callable | None = None, linear: bool = False):
        super().__init__()
        self.shape, self.image_to_measurement, self.back, self.linear = image_shape(shape), apply, back, linear

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    def forward(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... m"]:
        """h(x); raises ValueError unless the last dimension of x has one number a pixel."""
        if x.shape[-1] != self.dim:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {self.dim}) for images {self.shape}")
        return self.image_to_measurement(x.unflatten(-1, self.shape)).flatten(-3)

    def matrix(self, like: Tensor) -> Float[Tensor, "m dim"]:
        """The matrix of a linear operator, in dtype and on the device of `like`; has m * dim entries."""
        if not self.linear:
            raise TypeError("matrix: the operator has none: it is not linear, or differs from image to image")
        return self(torch.eye(self.dim, dtype=like.dtype, device=like.device)).T

    def measure(
        self,
        x: Float[Tensor, "*batch dim"],
        std: float | int,
        *,
        as_matrix: bool = False,
        generator: torch.Generator | None = None,
    ) -> Measurement:
        """y = h(x) + std n as a `Measurement` of this operator, or of its matrix, with its rough inverse of y as start.

        Args:
            x: the images to measure.
            std: standard deviation of the noise, in units of y, > 0.
            as_matrix: whether the measurement holds the matrix of h, which methods for linear operators need.
            generator: source of the noise.
        """
        check_positive("std", std, "units of y")
        check_tensor("x", x, f"(*batch, {self.dim})", some=True)
        with torch.no_grad():
            clean = self(x)
            y = clean + std * draw(torch.randn, tuple(clean.shape), x, generator)
            start = None if self.back is None else self.back(y)
        return Measurement(self.matrix(x) if as_matrix else self, y, std, start)
