"""What is known about the data: y = h(x_0) + std n, a Gaussian likelihood around an operator."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import broadcasts, check_positive, check_tensor

__all__ = ["Measurement"]


class Measurement:
    """y = h(x_0) + std n, n ~ N(0, I), for one y or a batch of them.

    Args:
        operator: h, from (..., dim) to (..., m), differentiable (a straight-through gradient will do); or a matrix of
            shape (m, dim), which makes the measurement linear.
        y: what was measured, shape (*batch, m); chains (..., *batch, dim) broadcast against it.
        std: standard deviation of the noise, in units of y, > 0.
        start: a rough inverse, shape (*batch, dim), where methods that want one begin; for a matrix its pseudo-inverse
            times y if None.

    Attributes:
        matrix: of a linear measurement, None otherwise.

    >>> seen = Measurement(torch.tensor([[1.0, 0.0]]), torch.tensor([2.0]), 0.5)
    >>> seen.energy(torch.tensor([1.0, 7.0])), seen.start
    (tensor(1.), tensor([2., 0.]))
    """

    def __init__(
        self, operator: Callable | Tensor, y: Float[Tensor, "..."], std: float | int, start: Tensor | None = None
    ):
        check_positive("std", std, "units of y")
        check_tensor("y", y, "(*batch, m)")
        self.matrix = operator if isinstance(operator, Tensor) else None
        if self.matrix is not None:
            check_tensor("operator", self.matrix, f"({y.shape[-1]}, dim)", y)
            start = y @ torch.linalg.pinv(self.matrix).T if start is None else start
        elif not callable(operator):
            raise TypeError(f"operator: got {type(operator).__name__}, expected a function of x or a matrix (m, dim)")
        dim = "dim" if self.matrix is None else self.matrix.shape[1]
        if start is not None:
            check_tensor("start", start, f"(*batch, {dim})", y)
            if not broadcasts(start.shape[:-1], y.shape[:-1]):
                raise ValueError(f"start: got shape {tuple(start.shape)}, expected {(*y.shape[:-1], dim)} to fit y")
        self.operator, self.y, self.std, self.start = operator, y, float(std), start

    def apply(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... m"]:
        """h(x)."""
        if self.matrix is not None and x.shape[-1] != self.matrix.shape[1]:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (..., {self.matrix.shape[1]}) for the operator")
        seen = self.operator(x) if self.matrix is None else x @ self.matrix.T
        if seen.shape[-1:] != self.y.shape[-1:]:
            raise ValueError(f"operator: returned shape {tuple(seen.shape)}, expected (..., {self.y.shape[-1]}) like y")
        return seen

    def residual(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "... m"]:
        """y - h(x)."""
        return self.y - self.apply(x)

    def energy(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
        """|y - h(x)|^2, summed over the features of y."""
        return self.residual(x).square().sum(-1)

    def log_likelihood(self, x: Float[Tensor, "... dim"]) -> Float[Tensor, "..."]:
        """log p(y | x_0 = x), in nats."""
        return torch.distributions.Normal(self.apply(x), self.std).log_prob(self.y).sum(-1)
