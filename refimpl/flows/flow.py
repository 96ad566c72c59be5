"""A density from a bijection and a base: `log_prob`, `sample`, and the same as a `torch.distributions` object."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution, constraints

from refimpl.flows.bases import Base
from refimpl.flows.bijection import Bijection, check_bijection, check_shape

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
        check_bijection("bijection", bijection)
        if not isinstance(base, Base):
            raise TypeError(f"base: got {type(base).__name__}, expected a Base such as StandardNormal")
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
            TypeError: if `x` is not floating-point, or of another precision than the bijection's parameters.
        """
        shape = self.base.event_shape
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a floating-point tensor")
        if x.shape[x.ndim - len(shape) :] != shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*batch, {', '.join(map(str, shape))})")
        like = next(self.bijection.parameters(), self.base.like)
        if x.dtype != like.dtype:
            raise TypeError(f"x: got {x.dtype}, expected {like.dtype} like the flow's parameters: convert one of them")
        z, log_det = self.bijection(x, context)
        return self.base.log_prob(z) + log_det

    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws from p(x | context), differentiable in the bijection's parameters.

        They are so in the base's as well if `base.has_rsample`; a `RadialMixture` has no gradient of its logits here, so
        that reverse KL would not train them.

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
        check_shape("shape", shape)
        _check_context(context)
        batch = tuple(shape)
        if context is not None:
            batch += tuple(context.shape[:-1])
            context = context.expand(*batch, context.shape[-1])
        z = self.base.sample(batch, generator)
        x, log_det = self.bijection.inverse(z, context)
        return x, self.base.log_prob(z) - log_det

    def as_distribution(self, context: Tensor | None = None) -> "FlowDistribution":
        """p(. | context) for every library that speaks `torch.distributions`; contexts become the batch shape."""
        _check_context(context)
        return FlowDistribution(self, context)


def _check_context(context: Tensor | None) -> None:
    if context is not None and not (isinstance(context, Tensor) and context.ndim):
        got = "a number" if isinstance(context, Tensor) else type(context).__name__
        raise TypeError(f"context: got {got}, expected a tensor of shape (*batch, dim_context)")


class FlowDistribution(Distribution):
    """`torch.distributions` face of a flow; see `Flow.as_distribution`."""

    arg_constraints: dict[str, Any] = {}

    def __init__(self, flow: nn.Module, context: Tensor | None = None, batch_shape: torch.Size | None = None):
        self.flow, self.context = flow, context
        if batch_shape is None:
            batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size(flow.base.event_shape), validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """That of the base: whether samples carry the gradient of every parameter."""
        return self.flow.base.has_rsample

    @property
    def support(self) -> Any:
        """All of space."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        batch = torch.broadcast_shapes(value.shape[: value.ndim - len(self.event_shape)], self.batch_shape)
        if self.context is not None:  # every value meets every context, as other distributions broadcast
            value = value.expand(*batch, *self.event_shape)
        return self.flow.log_prob(value, self.context).expand(batch)

    @torch.no_grad()
    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._draw(sample_shape)[0]

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Samples with gradients in every parameter; NotImplementedError if the base has none."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        """Samples with their log-density in one pass; NotImplementedError as for `rsample`."""
        if not self.has_rsample:
            raise NotImplementedError(f"{type(self.flow.base).__name__}: samples have no gradient in all parameters")
        return self._draw(sample_shape)

    def _draw(self, sample_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
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
