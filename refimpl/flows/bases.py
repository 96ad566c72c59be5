"""Base densities: where a flow's latents come from. The base decides tails and, for some flows, much more."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes
from refimpl.flows.bijection import check_shape

__all__ = ["Base", "RadialMixture", "StandardNormal", "StudentT"]


class Base(nn.Module):
    """Density of latents: `log_prob(z)` and `sample(shape, generator)`, over events of shape `event_shape`.

    Attributes:
        has_rsample: whether samples carry the gradient of all parameters, as reverse KL needs.
    """

    event_shape: tuple[int, ...]
    has_rsample: bool = True

    def __init__(self, event_shape: Sequence[int]):
        super().__init__()
        check_shape("event_shape", event_shape, low=1)
        if not len(event_shape):
            raise ValueError("event_shape: got (), expected one size or more")
        self.event_shape = tuple(event_shape)
        self.register_buffer("like", torch.zeros(()), persistent=False)  # carries dtype and device

    def log_prob(self, z: Tensor) -> Float[Tensor, "*batch"]:
        """log p_Z(z) in nats, shape (*batch,). Raises ValueError if `z` does not end in the shape of an event."""
        raise NotImplementedError

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Latents of shape (*shape, *event_shape)."""
        raise NotImplementedError

    def _normal(self, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
        check_shape("shape", shape)
        where = generator.device if generator else self.like.device
        noise = torch.randn(*shape, *self.event_shape, dtype=self.like.dtype, device=where, generator=generator)
        return noise.to(self.like.device)

    def _check(self, z: Tensor) -> None:
        shape = self.event_shape
        if z.shape[max(z.ndim - len(shape), 0) :] != shape:
            raise ValueError(f"z: got shape {tuple(z.shape)}, expected (*batch, {', '.join(map(str, shape))})")

    def _sum(self, x: Tensor) -> Tensor:
        return x.flatten(-len(self.event_shape)).sum(-1)


class StandardNormal(Base):
    """N(0, I).

    >>> StandardNormal([2]).log_prob(torch.zeros(2))
    tensor(-1.8379)
    """

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        return -0.5 * self._sum(z.square() + math.log(2 * math.pi))

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        return self._normal(shape, generator)


class RadialMixture(Base):
    """sum_k pi_k N(0, sigma_k^2 I) with learned weights and widths: spheres as level sets, learned heights.

    The density is completely monotone in ||z||^2; in the plane its logarithm is convex in the volume V of the level set:
    a spike on a flat foot is possible, a plateau is not.

    Args:
        dim: number of features.
        num_components: how many widths, spread evenly on a logarithmic scale at the start.
        spread: ratio of the largest initial width to the smallest.

    Source: the repair of volume-preserving flows in Draxler et al. 2024 (arXiv 2402.06578), Sec. 4.
    """

    def __init__(self, dim: int, num_components: int = 4, spread: float = 10.0):
        check_sizes(dim=dim)
        super().__init__([dim])
        check_sizes(num_components=num_components)
        check_positive("spread", spread)
        half = 0.5 * math.log(spread)
        self.log_width = nn.Parameter(torch.linspace(-half, half, num_components))
        self.logits = nn.Parameter(torch.zeros(num_components))

    @property
    def has_rsample(self) -> bool:
        """False while the logits are learned: which component a sample comes from has no derivative in them."""
        return not self.logits.requires_grad

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        dim = self.event_shape[0]
        radius = z.square().sum(-1, keepdim=True) * (-2 * self.log_width).exp()
        heights = self.logits.log_softmax(0) - dim * (self.log_width + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(heights - 0.5 * radius, -1)

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        noise = self._normal(shape, generator)
        where = generator.device if generator else noise.device
        weights = self.logits.detach().softmax(0).to(where)
        which = torch.multinomial(weights, max(1, math.prod(shape)), replacement=True, generator=generator)
        which = which[: math.prod(shape)].view(*shape, 1).to(noise.device)
        return noise * self.log_width.exp()[which]


class StudentT(Base):
    """Independent Student-t features with degrees of freedom nu_j, learned or fixed; nu = inf gives the normal.

    Args:
        df: degrees of freedom of every feature, shape (dim,), each > 0; `math.inf` marks a normal feature.
        learned: whether the finite ones are trained (on a logarithmic scale).

    Raises:
        ValueError: if a value is not > 0.

    Source: Laszkiewicz, Lederer, Fischer 2022 (marginal tail-adaptive flows), base distribution.
    """

    def __init__(self, df: Sequence[float] | Tensor, *, learned: bool = True):
        df = torch.as_tensor(df, dtype=torch.get_default_dtype())
        if df.ndim != 1 or not len(df) or not (df > 0).all():
            raise ValueError(f"df: got {df.tolist()}, expected a list of degrees of freedom > 0, one a feature")
        super().__init__(df.shape)
        self.register_buffer("heavy", df.isfinite())
        self.log_df = nn.Parameter(df[self.heavy].log(), requires_grad=learned)

    @property
    def df(self) -> Float[Tensor, " dim"]:
        """Degrees of freedom of every feature, inf where it is normal."""
        df = torch.full(self.event_shape, math.inf, dtype=self.log_df.dtype, device=self.log_df.device)
        return df.masked_scatter(self.heavy, self.log_df.exp())

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        nu, t = self.log_df.exp(), z[..., self.heavy]
        constant = torch.lgamma((nu + 1) / 2) - torch.lgamma(nu / 2) - 0.5 * (math.pi * nu).log()
        tails = constant - (nu + 1) / 2 * torch.log1p(t.square() / nu)
        normal = -0.5 * (z[..., ~self.heavy].square() + math.log(2 * math.pi))
        return tails.sum(-1) + normal.sum(-1)

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Latents (*shape, dim), differentiable in nu: the gamma variables carry its implicit gradient."""
        normal, nu = self._normal(shape, generator), self.log_df.exp()
        where = generator.device if generator else normal.device
        # A chi-squared variable with nu degrees of freedom is twice a Gamma(nu / 2) one.
        gamma = torch._standard_gamma((nu / 2).to(where).expand(*shape, len(nu)).contiguous(), generator=generator)
        scale = (nu / (2 * gamma.to(normal.device).clamp_min(torch.finfo(nu.dtype).tiny))).sqrt()
        return normal.masked_scatter(self.heavy.expand_as(normal), normal[..., self.heavy] * scale)
