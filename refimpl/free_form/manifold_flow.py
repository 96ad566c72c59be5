"""Free-form flows on manifolds: two unconstrained networks, each followed by a projection, and the surrogate on tangents.

Let pi be the projection of the ambient space onto the manifold M, f = pi o f~ and g = pi o g~ for networks f~ and g~. At x
and z = f(x) take orthonormal bases Q of T_x M and R of T_z M, in columns. Then

    log p(x) = log p_Z(z) + log|det(R^T f'(x) Q)| + log sqrt det G(z) - log sqrt det G(x),

where the last two terms are the metric's, and vanish together on isometric embeddings. The gradient of the determinant is
that of `refimpl.free_form.flow`, with probes from the tangent space at z: E[v v^T] = R R^T, so their length is sqrt(n), n
the dimension of M, and not sqrt(D).
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive
from refimpl.autodiff import jacobian, probe_vectors
from refimpl.flows.bases import Base
from refimpl.free_form.flow import FreeFormFlow, volume_change_surrogate
from refimpl.free_form.manifolds import Euclidean

__all__ = ["ManifoldFlow", "manifold_loss", "manifold_log_det", "model_integral", "tangent_probes"]


def tangent_probes(
    manifold: Euclidean, num_probes: int = 1, generator: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    """Function of z that draws vectors v of length sqrt(n) from T_z M, uniform in direction, so that E[v v^T] = R R^T.

    Several probes of one sample are at right angles to each other; with n of them the trace is exact.

    Returns:
        Function from points (*batch, ambient_dim) to probes (num_probes, *batch, ambient_dim).

    Raises:
        ValueError: when called, if `num_probes` is not between 1 and n.

    Source: Sorrenson et al. 2024 (arXiv 2312.09852), the section on the gradient of the volume change.
    """

    def draw(z: Tensor) -> Tensor:
        like = z.new_empty(*z.shape[:-1], manifold.dim)
        vectors = probe_vectors(like, num_probes, "sphere" if num_probes == 1 else "orthogonal", generator)
        return (manifold.frame(z) @ vectors.unsqueeze(-1)).squeeze(-1)

    return draw


def manifold_log_det(
    f: Callable, x: Float[Tensor, "*batch ambient"], manifold: Euclidean
) -> tuple[Float[Tensor, "*batch ambient"], Float[Tensor, "*batch"]]:
    """f(x), and the exact log of the factor by which f: M -> M changes Riemannian volume at x. Costs D passes.

    Raises:
        ValueError: if x is off the manifold, or f leaves it.

    Source: Sorrenson et al. 2024 (arXiv 2312.09852), the theorem on the manifold change of variables.

    >>> from refimpl.free_form import PoincareBall, moebius_add
    >>> a, x = torch.tensor([0.3, -0.5]), torch.tensor([[0.1, 0.2]])
    >>> manifold_log_det(lambda x: moebius_add(a.expand_as(x), x), x, PoincareBall(2))[1].abs() < 1e-6  # an isometry
    tensor([True])
    """
    manifold.check("x", x, nan=True)
    z = f(x)
    manifold.check("f(x)", z, nan=True)
    inner = manifold.frame(z).mT @ jacobian(f, x) @ manifold.frame(x)
    change = manifold.metric_log_scale(z) - manifold.metric_log_scale(x)
    return z, torch.linalg.slogdet(inner).logabsdet + change


def manifold_loss(
    encoder: Callable,
    decoder: Callable,
    x: Float[Tensor, "*batch ambient"],
    *,
    manifold: Euclidean,
    base: Base,
    beta: float | int,
    beta_cycle: float | int = 0.0,
    beta_projection: float | int = 0.0,
    num_probes: int = 1,
    probes: Callable | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean of -log p_Z(z) - s(x) - metric term + beta ||x - g(f(x))||^2, and penalties where there are no data.

    Args:
        encoder, decoder: f~ and g~, from and to (*batch, ambient_dim); what they return is projected.
        x: points of the manifold.
        manifold: M.
        base: p_Z, against Riemannian volume.
        beta: weight of the reconstruction error in the embedding, L_R.
        beta_cycle: weight of L_U, ||u - g(f(u))||^2 + ||u - f(g(u))||^2 at half as many points u as there are data:
            uniform on M, or if its volume is infinite from p_Z.
        beta_projection: weight of L_P, the squared distance of both networks' raw outputs from their projections.
        num_probes, generator: as in `tangent_probes`.
        probes: use this function of z instead.

    Returns:
        The loss, whose value means nothing, and its parts "latent" (with the metric term, in nats), "reconstruction",
        "cycle" and "projection".

    Raises:
        ValueError: if `beta` is not positive, another weight is negative, `x` is empty or off the manifold, or a network's
            output does not have the manifold's ambient dimension.

    Source: Sorrenson et al. 2024 (arXiv 2312.09852), the section on the loss.
    """
    check_positive("beta", beta)
    for name, weight in (("beta_cycle", beta_cycle), ("beta_projection", beta_projection)):
        if weight != 0:
            check_positive(name, weight)
    manifold.check("x", x)
    if not x.numel():
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected one point or more")
    raw = []

    def projected(network: Callable) -> Callable:
        def call(y: Tensor) -> Tensor:
            raw.append(network(y))
            return manifold.project(raw[-1])

        return call

    encode, decode = projected(encoder), projected(decoder)
    z, x1, surrogate = volume_change_surrogate(
        encode, decode, x, probes=probes or tangent_probes(manifold, num_probes, generator)
    )
    log_prob = base.log_prob(z) + manifold.metric_log_scale(z) - manifold.metric_log_scale(x)
    terms = {"latent": -log_prob.mean(), "reconstruction": (x - x1).square().sum(-1).mean()}
    loss = terms["latent"] - surrogate.mean() + beta * terms["reconstruction"]
    if beta_cycle:
        shape = x[: (len(x) + 1) // 2].shape[:-1] if x.ndim > 1 else ()
        u = manifold.uniform(shape, generator, x) if math.isfinite(manifold.volume) else base.sample(shape, generator)
        both = (u - decode(encode(u))).square() + (u - encode(decode(u))).square()
        terms["cycle"] = both.sum(-1).mean()
        loss = loss + beta_cycle * terms["cycle"]
    if beta_projection:
        terms["projection"] = sum((y - manifold.project(y)).square().sum(-1).mean() for y in raw[:2])
        loss = loss + beta_projection * terms["projection"]
    return loss, terms


class ManifoldFlow(FreeFormFlow):
    """Encoder, decoder, manifold and base as one density against Riemannian volume, evaluated exactly by full Jacobians.

    As in `FreeFormFlow` there are two densities, by the Jacobian of the decoder or of the encoder. Whether they are
    densities at all, `model_integral` tells.

    Args:
        encoder, decoder: modules from and to (*batch, ambient_dim), called with the context if there is one.
        base: density on the manifold, such as `Uniform`; one with an attribute `manifold` gives the manifold as well.
        manifold: where data and latents live.

    >>> from refimpl.free_form import Sphere, Uniform
    >>> flow = ManifoldFlow(nn.Identity(), nn.Identity(), Uniform(Sphere(2)))
    >>> flow.log_prob(flow.sample([2]))  # -log(4 pi)
    tensor([-2.5310, -2.5310])
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, base: Base, manifold: Euclidean | None = None):
        super().__init__(encoder, decoder, base)
        self.manifold = manifold or getattr(base, "manifold", None)
        if not isinstance(self.manifold, Euclidean):
            raise TypeError(f"manifold: got {self.manifold!r}, expected a manifold such as Sphere(2)")
        if self.base.event_shape != (self.manifold.ambient_dim,):
            raise ValueError(f"base: got events of shape {base.event_shape}, expected ({self.manifold.ambient_dim},)")

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(x) = pi(f~(x)), or pi(f~(x, context))."""
        return self.manifold.project(super().encode(x, context))

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """g(z) = pi(g~(z)), or pi(g~(z, context))."""
        return self.manifold.project(super().decode(z, context))

    def loss(self, x: Tensor, context: Tensor | None = None, **settings) -> tuple[Tensor, dict[str, Tensor]]:
        """`manifold_loss` of these networks; `settings` are its keyword arguments, `beta` among them."""
        networks = (self.encoder, self.decoder)
        if context is not None:
            context = context.expand(*x.shape[:-1], context.shape[-1])
            # The points of L_U are fewer than the data and take the first contexts.
            networks = [lambda y, network=network: network(y, context[: len(y)]) for network in networks]
        return manifold_loss(*networks, x, manifold=self.manifold, base=self.base, **settings)

    def log_prob(
        self, x: Float[Tensor, "*batch ambient"], context: Tensor | None = None, side: str = "decoder"
    ) -> Float[Tensor, "*batch"]:
        """log p(x | context) in nats against Riemannian volume, by the Jacobian of the decoder or the encoder.

        Raises:
            ValueError: if `side` is neither, or `x` is off the manifold.
        """
        if side not in ("encoder", "decoder"):
            raise ValueError(f"side: got {side!r}, expected 'encoder' or 'decoder'")
        self.manifold.check("x", x)
        if context is not None:
            context = context.expand(*x.shape[:-1], context.shape[-1])
        encode, decode = self.given(context)
        if side == "encoder":
            z, log_det = manifold_log_det(encode, x, self.manifold)
            return self.base.log_prob(z) + log_det
        z = encode(x)
        return self.base.log_prob(z) - manifold_log_det(decode, z, self.manifold)[1]

    def sample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `sample`, with the exact log-density of each draw (if the decoder is one-to-one): D passes."""
        z, context = self._draw(shape, context, generator)
        x, log_det = manifold_log_det(self.given(context)[1], z, self.manifold)
        return x, self.base.log_prob(z) - log_det


@torch.no_grad()
def model_integral(
    log_prob: Callable, points: Float[Tensor, "*num ambient"], manifold: Euclidean
) -> tuple[float, float]:
    """Integral over a compact manifold of exp(log_prob), and its standard error if the points are random.

    It is 1 for a density. For the pull-back by an encoder it is the mean number of points x that the encoder sends to a
    latent z ~ p_Z, by the area formula: above 1, the encoder folds the manifold, and its likelihood counts mass twice.

    Args:
        log_prob: function of points, such as a flow's method.
        points: two or more, uniform on the manifold, or evenly spaced, which is more accurate.
        manifold: of finite volume.

    Raises:
        ValueError: if the volume is infinite, or the points are too few or off the manifold.

    >>> from refimpl.free_form import Sphere, Uniform
    >>> sphere = Sphere(2)
    >>> integral, error = model_integral(Uniform(sphere).log_prob, sphere.uniform([100]), sphere)
    >>> round(integral, 5), round(error, 5)
    (1.0, 0.0)
    """
    if not math.isfinite(manifold.volume):
        raise ValueError(f"manifold: got {manifold!r} of infinite volume, expected a compact one")
    manifold.check("points", points)
    density = log_prob(points).double().exp() * manifold.volume
    if density.numel() < 2:
        raise ValueError(f"points: got shape {tuple(points.shape)}, expected two points or more")
    return density.mean().item(), density.std().item() / math.sqrt(density.numel())
