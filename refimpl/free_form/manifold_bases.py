"""Densities on manifolds, against Riemannian volume: latents of a flow, and targets that are known exactly."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_tensor
from refimpl.flows.bases import Base
from refimpl.flows.bijection import check_shape
from refimpl.free_form.manifolds import Euclidean, Sphere

__all__ = ["Uniform", "VonMisesFisherMixture", "WrappedNormalMixture"]


class Uniform(Base):
    """The uniform density of a manifold of finite volume.

    >>> from refimpl.free_form.manifolds import Sphere
    >>> Uniform(Sphere(2)).log_prob(torch.tensor([0.0, 0.0, 1.0]))  # -log(4 pi)
    tensor(-2.5310)
    """

    def __init__(self, manifold: Euclidean):
        super().__init__([manifold.ambient_dim])
        if not math.isfinite(manifold.volume):
            raise ValueError(f"manifold: got {manifold!r} of infinite volume, expected a compact one")
        self.manifold = manifold

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        self.manifold.check("z", z, nan=True)
        return z.new_full(z.shape[:-1], -math.log(self.manifold.volume)).masked_fill(~z.isfinite().all(-1), math.nan)

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        return self.manifold.uniform(shape, generator, self.like)


def _pick(weights: Tensor, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """Indices of components, of the given shape, on the device of the weights."""
    check_shape("shape", shape)
    where = generator.device if generator else weights.device
    number = math.prod(shape)
    which = torch.multinomial(weights.detach().to(where), max(1, number), replacement=True, generator=generator)
    return which[:number].view(tuple(shape)).to(weights.device)


class VonMisesFisherMixture(Base):
    """sum_k w_k C(kappa_k) exp(kappa_k mu_k . x) on the sphere S^2, with learned or fixed parameters.

    Args:
        means: directions mu_k, shape (components, 3), of any length; they are normalised at each use.
        kappa: concentrations, one for all or shape (components,).
        weights: shape (components,), scaled to sum to 1; equal if None.
        learned: whether means, concentrations and weights are trained.

    Raises:
        ValueError, TypeError: if shapes do not fit, there is no mean or one without direction, or a concentration or
            weight is not positive.

    Source: Mardia and Jupp 2000, *Directional Statistics*; latents of Sorrenson et al. 2024 (arXiv 2312.09852).

    >>> pole = torch.tensor([[0.0, 0.0, 1.0]])
    >>> VonMisesFisherMixture(pole, 10.0).log_prob(pole)  # log(10 / (2 pi)), as e^-20 is nothing
    tensor([0.4647])
    """

    def __init__(
        self,
        means: Float[Tensor, "components 3"],
        kappa: float | int | Tensor,
        weights: Tensor | None = None,
        *,
        learned: bool = False,
    ):
        super().__init__([3])
        check_tensor("means", means, "(components, 3)")
        if not len(means):
            raise ValueError("means: has no rows, expected one or more")
        if not (means.square().sum(-1) > 0).all():
            raise ValueError("means: has a row of zeros, expected directions")
        kappa = torch.as_tensor(kappa).to(means)
        kappa = kappa if kappa.ndim else kappa.expand(len(means))
        weights = means.new_ones(len(means)) if weights is None else weights.to(means)
        for name, values in (("kappa", kappa), ("weights", weights)):
            if values.shape != means.shape[:1] or not (values > 0).all() or not values.isfinite().all():
                raise ValueError(f"{name}: got {values.tolist()}, expected {len(means)} positive numbers")
        self.manifold = Sphere(2)
        # The logarithms are parameters, so that concentrations and weights stay positive.
        self.means = nn.Parameter(means.clone(), requires_grad=learned)
        self.log_kappa = nn.Parameter(kappa.log(), requires_grad=learned)
        self.logits = nn.Parameter(weights.log(), requires_grad=learned)
        self.to(means)

    @property
    def has_rsample(self) -> bool:
        """False while parameters are learned: samples carry no gradient of them."""
        return not self.logits.requires_grad

    def _parts(self) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(self.means, dim=-1), self.log_kappa.exp()

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        self.manifold.check("z", z, nan=True)
        means, kappa = self._parts()
        # kappa / (2 pi (e^kappa - e^-kappa)), with the exponential taken to the other one so that nothing overflows
        log_scale = self.log_kappa - math.log(2 * math.pi) - torch.log1p(-(-2 * kappa).exp())
        return torch.logsumexp(self.logits.log_softmax(0) + log_scale + kappa * (z @ means.mT - 1), -1)

    @torch.no_grad()
    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        """Points (*shape, 3): the height above the equator of mu by its inverse distribution function, exactly."""
        which = _pick(self.logits.softmax(0), shape, generator)
        means, kappa = (t[which] for t in self._parts())
        noise = self._normal(shape, generator)
        where = generator.device if generator else noise.device
        uniform = torch.rand(tuple(shape), dtype=noise.dtype, device=where, generator=generator).to(noise.device)
        height = (1 + (uniform + (1 - uniform) * (-2 * kappa).exp()).log() / kappa).clamp(-1, 1).unsqueeze(-1)
        around = nn.functional.normalize(noise - (noise * means).sum(-1, keepdim=True) * means, dim=-1)
        return height * means + (1 - height.square()).clamp_min(0).sqrt() * around


class WrappedNormalMixture(Base):
    """Equal mixture of normals of the tangent spaces at some points, wrapped onto the manifold by its exponential map.

    Args:
        manifold: where.
        means: points of it, shape (components, ambient_dim); dtype and device follow them.
        std: standard deviation in units of geodesic length, one for all components, or shape (components,).

    Raises:
        ValueError, TypeError: if there are no means, they are off the manifold or a standard deviation is not positive.

    Source: Nagano et al. 2019 (arXiv 1902.02992) for hyperbolic space; the images of closed geodesics are added here.

    >>> from refimpl.free_form import PoincareBall
    >>> WrappedNormalMixture(PoincareBall(2), torch.zeros(1, 2), 1.0).log_prob(torch.zeros(2))  # -log(2 pi)
    tensor(-1.8379)
    """

    def __init__(self, manifold: Euclidean, means: Float[Tensor, "components ambient"], std: float | int | Tensor):
        super().__init__([manifold.ambient_dim])
        check_tensor("means", means, f"(components, {manifold.ambient_dim})")
        if not len(means):
            raise ValueError("means: has no rows, expected one or more")
        manifold.check("means", means)
        if not isinstance(std, Tensor):
            check_positive("std", std, "geodesic length")
            std = means.new_full((len(means),), std)
        if std.shape != means.shape[:1] or not (std > 0).all() or not std.isfinite().all():
            raise ValueError(f"std: got {std.tolist()}, expected {len(means)} positive numbers")
        self.manifold = manifold
        self.register_buffer("means", manifold.project(means))
        self.register_buffer("std", std.to(means))
        self.to(means)

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        self.manifold.check("z", z, nan=True)
        each = self.manifold.log_wrapped_normal(z.unsqueeze(-2), self.means, self.std)
        return torch.logsumexp(each, -1) - math.log(len(self.means))

    def sample(self, shape: Sequence[int] = (), generator: torch.Generator | None = None) -> Tensor:
        which = _pick(torch.ones_like(self.std), shape, generator)
        noise = self._normal(shape, generator)[..., : self.manifold.dim]
        means = self.means[which]
        v = self.manifold.unit_frame(means) @ (self.std[which].unsqueeze(-1) * noise).unsqueeze(-1)
        return self.manifold.project(self.manifold.exp(means, v.squeeze(-1)))
