"""A density from a bijection and a base: `log_prob`, `sample`, and the same as a `torch.distributions` object."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from refimpl.flows.bases import Base
from refimpl.flows.bijection import Bijection

__all__ = ["Flow", "FlowDistribution"]


class Flow(nn.Module):
    """Normalizing flow: log p(x) = log p_Z(f(x)) + log|det f'(x)|.

    Args:
        bijection: f, from data to latent.
        base: p_Z.

    Raises:
        ValueError: if base and bijection have events of different dimensions.

    >>> from refimpl.flows import Diagonal, StandardNormal
    >>> Flow(Diagonal(1, scale=2.0), StandardNormal([1])).log_prob(torch.zeros(1)).item()  # log 2 - log(2 pi) / 2
    -0.225791...
    """

    def __init__(self, bijection: Bijection, base: Base):
        super().__init__()
        if bijection.event_ndim != len(base.event_shape):
            raise ValueError(
                f"base: got events of shape {base.event_shape}, expected {bijection.event_ndim} dimensions"
            )
        self.bijection, self.base = bijection, base

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Float[Tensor, "*batch"]:
        """log p(x | context) in nats.

        Args:
            x: data, shape (*batch, *event).
            context: what the density is conditioned on, shape (*batch, dim_context) or (dim_context,).

        Raises:
            ValueError: if `x` does not end in the shape of an event.
            TypeError: if `x` is not floating-point.
        """
        shape = self.base.event_shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a floating-point tensor")
        if x.shape[x.ndim - len(shape) :] != shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*batch, {', '.join(map(str, shape))})")
        z, log_det = self.bijection(x, context)
        return self.base.log_prob(z) + log_det

    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws from p(x | context), differentiable in the bijection's parameters.

        Args:
            shape: how many, for each context.
            context: shape (*batch, dim_context).
            generator: source of the base's random numbers; torch's global one if None.

        Returns:
            Samples of shape (*shape, *event), or (*shape, *batch, *event) with a context.
        """
        return self.sample_and_log_prob(shape, context, generator)[0]

    def sample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `sample`, with log p of each sample, at the price of one pass."""
        batch = tuple(shape)
        if context is not None:
            batch += tuple(context.shape[:-1])
            context = context.expand(*batch, context.shape[-1])
        z = self.base.sample(batch, generator)
        x, log_det = self.bijection.inverse(z, context)
        return x, self.base.log_prob(z) - log_det

    def as_distribution(self, context: Tensor | None = None) -> "FlowDistribution":
        """p(. | context) for every library that speaks `torch.distributions`; contexts become the batch shape."""
        return FlowDistribution(self, context)


class FlowDistribution(Distribution):
    """`torch.distributions` face of a flow; see `Flow.as_distribution`."""

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(self, flow: Flow, context: Tensor | None = None, batch_shape: torch.Size | None = None):
        self.flow, self.context = flow, context
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size(flow.base.event_shape), validate_args=False)

    @property
    def support(self) -> Any:
        """All of space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        if self.context is not None:  # every value meets every context, as other distributions broadcast
            value = value.expand(*batch, *self.event_shape)
        return self.flow.log_prob(value, self.context).expand(batch)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples with their log-density in one pass."""
        shape = (*sample_shape, *self.batch_shape)
        if self.context is None:
            return self.flow.sample_and_log_prob(shape)
        context = self.context.expand(*self.batch_shape, self.context.shape[-1])
        return self.flow.sample_and_log_prob(tuple(sample_shape), context)

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "FlowDistribution":
        context = self.context
        if context is not None:
            context = context.expand(*batch_shape, context.shape[-1])
        return FlowDistribution(self.flow, context, torch.Size(batch_shape))
