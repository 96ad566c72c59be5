"""Injective flows: fewer latents than data, so that the decoder's image is a manifold and the density lives on it.

Encoder f: R^D -> R^d and decoder g: R^d -> R^D are any networks, d < D. What they model is g(z), z ~ p_Z, with density

    log p(g(z)) = log p_Z(z) - 1/2 log det g'(z)^T g'(z)

with respect to d-dimensional volume on the manifold g(R^d); a point x beside it is judged by its projection g(f(x)) and
its distance. The loss to train with is `refimpl.free_form.fff_loss` as it stands: it takes the encoder's Jacobian at x,
**off** the manifold. This module holds what one needs beside it: the loss on the manifold, which does not work, the
exact losses, which do not either, the model with its exact densities, and a latent mixture fitted afterwards.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.autodiff import jacobian
from refimpl.flows.bases import Base, StandardNormal
from refimpl.free_form.flow import FreeFormFlow, _check_image, _probes, _pullback, _pushforward

__all__ = [
    "SIDES",
    "InjectiveFlow",
    "LatentMixture",
    "curvature",
    "exact_loss",
    "log_volume",
    "on_manifold_loss",
    "volume_term",
]

SIDES = ("decoder", "encoder", "encoder on manifold")


def log_volume(f: Callable, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch"]:
    """Exact log of the factor by which f changes volume, log sqrt det J^T J, or of J J^T if f has fewer features out.

    Costs as many passes as the smaller space has features. By a QR decomposition, which is twice as accurate as the
    determinant of the Gram matrix; -inf where J has not full rank.

    Args:
        f: map from (*batch, dim) to (*batch, dim_out).
        x: points.

    >>> log_volume(lambda t: torch.cat([3 * t, 4 * t], -1), torch.zeros(1)).round(decimals=4)  # log 5
    tensor(1.6094)
    """
    wide = f(x).shape[-1] < x.shape[-1]
    j = jacobian(f, x, mode="reverse" if wide else "forward")
    return torch.linalg.qr(j.mT if wide else j, mode="reduced").R.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def volume_term(
    encode: Callable, decode: Callable, x: Float[Tensor, "*batch dim"], side: str
) -> Float[Tensor, "*batch"]:
    """What to add to log p_Z(f(x)), exactly, by the Jacobian that `side` names.

    "decoder": -1/2 log det g'^T g' at f(x), the density of what `sample` draws. "encoder": +1/2 log det f' f'^T at x.
    "encoder on manifold": the same at g(f(x)). All three agree if f is the orthogonal projection onto the manifold and
    x lies on it.

    Raises:
        ValueError: if `side` is none of the three.
    """
    if side not in SIDES:
        raise ValueError(f"side: got {side!r}, expected one of {', '.join(map(repr, SIDES))}")
    if side == "decoder":
        return -log_volume(decode, encode(x))
    return log_volume(encode, x if side == "encoder" else decode(encode(x)))


def exact_loss(
    encode: Callable,
    decode: Callable,
    x: Float[Tensor, "*batch dim"],
    *,
    beta: float | int,
    side: str,
    base: Base | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean of -log p_Z(f(x)) - `volume_term` + beta ||x - g(f(x))||^2, d Jacobian passes a step. **Not** safe to train with.

    With "decoder" the image shrinks to a point; with "encoder on manifold" it curls up; with "encoder" linear models
    find the right subspace only if beta >= 1 / (2 lambda) for every variance lambda that is left out.

    Returns:
        The loss, and its parts "nll" in nats and "reconstruction" in squared units of the data.

    Raises:
        TypeError, ValueError: if `beta` is not > 0, `x` is no finite floating-point tensor or empty, or a network
            changes the batch or does not lead back to the width of x.

    Source: Sorrenson et al. 2024 (arXiv 2306.01843), Section 4; the linear threshold: its appendix.
    """
    check_positive("beta", beta)
    _check_points(x)
    z = _check_image("encode", encode(x), x)
    x1 = _check_image("decode", decode(z), x, x.shape[-1])
    base = StandardNormal([z.shape[-1]]).to(z) if base is None else base
    nll = -base.log_prob(z) - volume_term(encode, decode, x, side)
    reconstruction = (x - x1).square().sum(-1)
    return (nll + beta * reconstruction).mean(), {"nll": nll.mean(), "reconstruction": reconstruction.mean()}


def _check_points(x: Tensor) -> None:
    check_tensor("x", x, "(*batch, dim)")
    if x.numel() == 0:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected at least one point and one feature")


def on_manifold_loss(
    encode: Callable,
    decode: Callable,
    x: Float[Tensor, "*batch dim"],
    *,
    beta: float | int,
    detach: bool = False,
    base: Base | None = None,
    num_probes: int = 1,
    probes: Tensor | Callable | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """`fff_loss` with the encoder's Jacobian at the projection g(f(x)) instead of x: the variant that diverges.

    Args:
        encode, decode, x, beta, base, num_probes, probes, generator: as in `fff_loss`.
        detach: whether the projection is a constant for the volume term, so that only f' gets its gradient.

    Returns:
        The loss, whose value means nothing, and its parts "latent" and "reconstruction".

    Raises:
        TypeError, ValueError: as `exact_loss`, or if the probes do not fit.

    Source: Sorrenson et al. 2024 (arXiv 2306.01843), Section 4.2.
    """
    check_positive("beta", beta)
    _check_points(x)
    with torch.enable_grad():
        z = _check_image("encode", encode(x if x.requires_grad else x.detach().requires_grad_()), x)
        x1 = _check_image("decode", decode(z), x, x.shape[-1])
        at = x1.detach().requires_grad_() if detach else x1
        vectors = _probes(z.detach(), num_probes, probes, generator)
        surrogate = (_pullback(encode(at), at, vectors, create_graph=True) * _pushforward(x1, z, vectors)).sum(-1)
    base = StandardNormal([z.shape[-1]]).to(z) if base is None else base
    latent, reconstruction = -base.log_prob(z), (x - x1).square().sum(-1)
    loss = (beta * reconstruction + latent - surrogate.mean(0)).mean()
    return loss, {"latent": latent.mean(), "reconstruction": reconstruction.mean()}


def curvature(curve: Callable, t: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch"]:
    """Curvature of a curve in R^D, the inverse radius of the circle that fits it best at each point.

    Args:
        curve: map from (*batch, 1) to (*batch, D), such as a decoder with one latent.
        t: parameters along it.

    Returns:
        sqrt(|c'|^2 |c''|^2 - (c' . c'')^2) / |c'|^3, in inverse units of the data.

    >>> curvature(lambda t: 2 * torch.cat([t.cos(), t.sin()], -1), torch.zeros(1)).item()
    0.5
    """
    velocity, acceleration = (f(t) for f in _derivatives(curve))
    speed = velocity.norm(dim=-1)
    along = (velocity * acceleration).sum(-1, keepdim=True) / speed.square().unsqueeze(-1)
    return (acceleration - along * velocity).norm(dim=-1) / speed.square()


def _derivatives(curve: Callable) -> tuple[Callable, Callable]:
    """First and second derivative of a curve; in reverse mode, as PyTorch can't go forward twice through SiLU."""

    def first(t: Tensor) -> Tensor:
        return jacobian(curve, t).squeeze(-1)

    return first, lambda t: jacobian(first, t).squeeze(-1)


class LatentMixture(Base):
    """Mixture of Gaussians with full covariances as density of the latents, for codes that are not quite normal.

    Args:
        weights: shape (components,), positive, summing to 1.
        means: shape (components, dim).
        covariances: shape (components, dim, dim), positive definite.

    Raises:
        TypeError, ValueError: if they are no finite floating-point tensors like that, of one type.

    Source: the sampler of the autoencoder benchmark in Sorrenson et al. 2024 (arXiv 2306.01843), ten components.
    """

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor):
        check_tensor("means", means, "(components, dim)")
        check_tensor("weights", weights, f"({len(means)},)", means)
        check_tensor("covariances", covariances, f"({len(means)}, {means.shape[1]}, {means.shape[1]})", means)
        if not (weights > 0).all() or abs(weights.sum().item() - 1) > 1e-3:
            raise ValueError(f"weights: got {weights.tolist()}, expected numbers > 0 whose sum is 1")
        roots, failed = torch.linalg.cholesky_ex(covariances)
        if failed.any() or not torch.allclose(covariances, covariances.mT, rtol=1e-3, atol=1e-6):
            raise ValueError("covariances: got a matrix that is not symmetric and positive definite")
        super().__init__(means.shape[1:])
        self.register_buffer("like", means.new_zeros(()), persistent=False)
        self.register_buffer("weights", weights)
        self.register_buffer("means", means)
        self.register_buffer("roots", roots)

    @classmethod
    def fit(
        cls, z: Float[Tensor, "n dim"], num_components: int = 10, generator: torch.Generator | None = None
    ) -> "LatentMixture":
        """Fitted to codes by expectation maximisation.

        Raises:
            TypeError, ValueError: if `z` is not a finite floating-point tensor of that shape, or has too few rows.
        """
        from sklearn.mixture import GaussianMixture

        check_tensor("z", z, "(n, dim)")
        check_sizes(num_components=num_components)
        if len(z) < num_components:
            raise ValueError(f"z: got {len(z)} codes, expected at least num_components={num_components}")
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device if generator else None))
        found = GaussianMixture(num_components, random_state=seed, reg_covar=1e-4).fit(
            z.detach().double().cpu().numpy()
        )
        return cls(*(torch.as_tensor(v).to(z) for v in (found.weights_, found.means_, found.covariances_)))

    def log_prob(self, z: Tensor) -> Tensor:
        self._check(z)
        parts = torch.distributions.MultivariateNormal(self.means, scale_tril=self.roots, validate_args=False)
        return torch.logsumexp(self.weights.log() + parts.log_prob(z.unsqueeze(-2)), -1)

    def sample(self, shape=(), generator: torch.Generator | None = None) -> Tensor:
        noise = self._normal(shape, generator)
        where = generator.device if generator else noise.device
        count = noise[..., 0].numel()
        which = torch.multinomial(self.weights.to(where), max(count, 1), replacement=True, generator=generator)
        which = which[:count].view(tuple(shape)).to(noise.device)
        return self.means[which] + (self.roots[which] @ noise.unsqueeze(-1)).squeeze(-1)


class InjectiveFlow(FreeFormFlow):
    """Encoder, decoder and base as a density on the manifold g(R^d), evaluated exactly: d passes.

    Args:
        encoder: module from (*batch, D) to (*batch, d).
        decoder: back again.
        base: density of the d latents, for example a `LatentMixture` fitted to codes; standard normal if you give d.

    >>> flow = InjectiveFlow(torch.nn.Linear(3, 1), torch.nn.Linear(1, 3), 1)
    >>> flow.sample([5]).shape, flow.log_prob(torch.zeros(4, 3)).shape
    (torch.Size([5, 3]), torch.Size([4]))
    """

    square = False

    def project(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """g(f(x)), a point of the manifold near x, of the shape of x."""
        return self.decode(self.encode(x, context), context)

    def log_prob(
        self, x: Float[Tensor, "*batch dim"], context: Tensor | None = None, side: str = "decoder"
    ) -> Float[Tensor, "*batch"]:
        """log-density, in nats per d-dimensional volume, of the manifold's point g(f(x)), by one of `SIDES`.

        It says nothing of the distance ||x - g(f(x))||: report that too.

        Raises:
            TypeError, ValueError: if `side` is none of the three, `x` is no finite floating-point tensor, or a network
                changes the batch or does not lead back to the width of x.
        """
        check_tensor("x", x, "(*batch, dim)")
        context = context if context is None else context.expand(*x.shape[:-1], context.shape[-1])
        encode, decode = self.given(context)
        z = _check_image("encoder", encode(x), x)
        _check_image("decoder", decode(z), x, x.shape[-1])
        return self.base.log_prob(z) + volume_term(encode, decode, x, side)

    def sample_and_log_prob(self, shape=(), context: Tensor | None = None, generator: torch.Generator | None = None):
        """As `sample`, with the exact log-density of each draw on the manifold (if the decoder is one-to-one)."""
        z, context = self._draw(shape, context, generator)
        decode = self.given(context)[1]
        return decode(z), self.base.log_prob(z) - log_volume(decode, z)

    def as_distribution(self, context: Tensor | None = None):
        """Raises NotImplementedError: `torch.distributions` are densities per volume of the whole space."""
        raise NotImplementedError("an injective flow has a density on its manifold only: use sample and log_prob")
