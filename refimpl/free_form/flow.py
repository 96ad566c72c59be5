"""Free-form flows: maximum likelihood for any pair of networks, an encoder f and a decoder g that learns to invert it.

The change of variables log p(x) = log p_Z(f(x)) + log|det f'(x)| needs a determinant, but training needs only its
gradient, and that is a trace, d log|det f'| = tr(f'^-1 df'). Three steps make it cheap: the inverse function theorem
(f'^-1 is the Jacobian of the inverse map at z = f(x)), the decoder in place of the inverse, and Hutchinson's estimator,
tr(g' df') ~ v^T df' g' v. One product with each Jacobian is left, whatever the dimension.

Nothing here asks for a structure of the networks, nor that latents have as many features as data: with fewer the same
surrogate serves `refimpl.free_form.injective`, and with tangent probes `refimpl.free_form.manifold_flow`.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.autodiff import log_det_jacobian, probe_vectors
from refimpl.flows.bases import Base, StandardNormal
from refimpl.flows.bijection import check_shape
from refimpl.flows.flow import FlowDistribution, _check_context

__all__ = ["FreeFormFlow", "VolumeChange", "fff_loss", "volume_change_surrogate"]


class VolumeChange(NamedTuple):
    """What one pass through encoder and decoder gives; see `volume_change_surrogate`."""

    z: Tensor
    x1: Tensor
    surrogate: Tensor


def volume_change_surrogate(
    encode: Callable,
    decode: Callable,
    x: Float[Tensor, "*batch dim"],
    *,
    num_probes: int = 1,
    probes: Tensor | Callable | None = None,
    generator: torch.Generator | None = None,
) -> VolumeChange:
    """Scalar per sample whose **gradient** estimates that of log|det f'(x)|: s = mean_k (v_k^T f'(x)) SG[g'(z) v_k].

    SG stops the gradient, so that only the encoder's parameters get one. If g inverts f the estimate is unbiased, and
    the *value* of s is the squared length of the probes, dim, for every network: it says nothing about the likelihood.

    Args:
        encode: f, from (*batch, dim) to (*batch, dim_latent), twice differentiable: smooth activations, no ReLU.
            Samples must not influence each other.
        decode: g, back from (*batch, dim_latent) to (*batch, dim), likewise.
        x: data, one point or more.
        num_probes: probes a sample, at right angles to each other; exact with dim_latent of them.
        probes: use these instead of drawing, shape (num_probes, *batch, dim_latent); or a function that makes them
            from z (detached), such as tangent vectors of a manifold. They must satisfy E[v v^T] = I on the latents.
        generator: source of the random numbers; torch's global one if None.

    Returns:
        z = f(x) and x1 = g(z), both with gradients, and the surrogate s, shape (*batch,).

    Raises:
        TypeError: if `x` is not a floating-point tensor.
        ValueError: if `x` is empty or not finite, a network changes the batch, the decoder does not lead back to the
            shape of `x`, or `num_probes` or `probes` do not fit.

    Source: Draxler et al. 2024 (arXiv 2310.16624), first theorem of Section 3.

    >>> a = torch.tensor([2.0, 4.0], requires_grad=True)
    >>> s = volume_change_surrogate(lambda x: a * x, lambda z: z / a.detach(), torch.zeros(1, 2), num_probes=2).surrogate
    >>> torch.autograd.grad(s.sum(), a)[0].round(decimals=4)  # that of log|det| = log a_1 + log a_2
    tensor([0.5000, 0.2500])
    """
    check_tensor("x", x, "(*batch, dim)")
    if not x.numel():
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected one point or more")
    with torch.enable_grad():
        x = x.detach().requires_grad_() if not x.requires_grad else x
        z = _check_image("encode", encode(x), x)
        if not z.requires_grad:  # an encoder without parameters that ignores x: nothing to estimate
            raise ValueError("encode: its output does not depend on x")
        x1 = _check_image("decode", decode(z), x, x.shape[-1])
        vectors = _probes(z.detach(), num_probes, probes, generator)
        pushed = _pushforward(x1, z, vectors)
        pulled = _pullback(z, x, vectors, create_graph=True)
    return VolumeChange(z, x1, (pulled * pushed).sum(-1).mean(0))


def _check_image(name: str, y: Tensor, like: Tensor, features: int | None = None) -> Tensor:
    want = f"(*{tuple(like.shape[:-1])}, {features or 'dim_latent'})"
    if not isinstance(y, Tensor) or y.shape[:-1] != like.shape[:-1] or y.ndim != like.ndim:
        got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"{name}: its output has shape {got}, expected {want}")
    if features is not None and y.shape[-1] != features:
        raise ValueError(f"{name}: its output has shape {tuple(y.shape)}, expected {want}")
    return y


def _probes(z: Tensor, num_probes: int, probes: Tensor | Callable | None, generator: torch.Generator | None) -> Tensor:
    """(num_probes, *batch, dim_latent)."""
    if probes is None:
        check_sizes(num_probes=num_probes)
        return probe_vectors(z, num_probes, "sphere" if num_probes == 1 else "orthogonal", generator)
    vectors = probes(z) if callable(probes) else probes
    if not isinstance(vectors, Tensor) or vectors.shape[1:] != z.shape or vectors.dtype != z.dtype or not len(vectors):
        got = f"{vectors.dtype} {tuple(vectors.shape)}" if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(f"probes: got {got}, expected {z.dtype} of shape {('num_probes', *z.shape)}")
    if not callable(probes) and not vectors.isfinite().all():
        raise ValueError("probes: have values that are not finite")
    return vectors.detach()


def _pullback(y: Tensor, x: Tensor, vectors: Tensor, create_graph: bool) -> Tensor:
    """v^T dy/dx for each of the vectors (k, *batch, dim_y), in one vectorised backward pass."""
    if len(vectors) == 1:  # plain backward is faster than a batch of one
        (product,) = torch.autograd.grad(y, x, vectors[0], create_graph=create_graph, retain_graph=True)
        return product.unsqueeze(0)
    return torch.autograd.grad(y, x, vectors, create_graph=create_graph, retain_graph=True, is_grads_batched=True)[0]


def _pushforward(y: Tensor, x: Tensor, vectors: Tensor) -> Tensor:
    """dy/dx v for each of the vectors (k, *batch, dim_x), without gradient.

    The pullback u -> u^T dy/dx is linear in u, and its own pullback is the pushforward. It reuses the pass that made
    y; forward mode would repeat it, and is slower on a CPU for small networks (`benchmarks/free_form.py`).
    """
    u = torch.zeros_like(y, requires_grad=True)
    (pulled,) = torch.autograd.grad(y, x, u, create_graph=True)
    return _pullback(pulled, u, vectors, create_graph=False).detach()


def fff_loss(
    encode: Callable,
    decode: Callable,
    x: Float[Tensor, "*batch dim"],
    *,
    beta: float | int,
    base: Base | None = None,
    num_probes: int = 1,
    probes: Tensor | Callable | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
    """Mean over samples of -log p_Z(f(x)) - s(x) + beta ||x - g(f(x))||^2, the loss of free-form flows.

    With the exact log|det f'(x)| in place of s, and f invertible, its excess over the entropy of the data bounds the KL
    divergence of data and model after both are blurred by noise of variance 1 / (2 beta), so `beta` is chosen by the
    scale on which the data have structure. If it is too small, f folds space, and the change of
    variables counts mass twice: look at `diagnose`, never at the value of this loss.

    Args:
        encode, decode, x, num_probes, probes, generator: as in `volume_change_surrogate`.
        beta: weight of the squared reconstruction error (summed over features), in inverse squared units of the data.
        base: density of the latents; standard normal if None.

    Returns:
        The loss, whose value means nothing, and its parts that do: "latent", -log p_Z(f(x)) in nats, and
        "reconstruction", the squared error.

    Raises:
        TypeError, ValueError: if `beta` is not positive, `base` is no `Base`, or as `volume_change_surrogate`.

    Source: Draxler et al. 2024 (arXiv 2310.16624), Section 3; the bound: its fourth theorem.
    """
    check_positive("beta", beta)
    if base is not None and not isinstance(base, Base):
        raise TypeError(f"base: got {type(base).__name__}, expected a Base such as StandardNormal")
    z, x1, surrogate = volume_change_surrogate(
        encode, decode, x, num_probes=num_probes, probes=probes, generator=generator
    )
    log_prob = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1) if base is None else base.log_prob(z)
    reconstruction = (x - x1).square().sum(-1)
    loss = (beta * reconstruction - log_prob - surrogate).mean()
    return loss, {"latent": -log_prob.mean(), "reconstruction": reconstruction.mean()}


def spread_context(context: Tensor | None, x: Tensor) -> Tensor | None:
    """The context of every point of x, (*batch, dim_context). Raises TypeError or ValueError if it does not fit."""
    _check_context(context)
    if context is None:
        return None
    try:
        return context.expand(*x.shape[:-1], context.shape[-1])
    except RuntimeError:
        wanted = f"({', '.join(map(str, (*x.shape[:-1], 'dim_context')))}) or (dim_context,)"
        raise ValueError(f"context: got shape {tuple(context.shape)}, expected {wanted}") from None


class FreeFormFlow(nn.Module):
    """Encoder, decoder and base as one density that is evaluated exactly, by full Jacobians: dim passes, O(dim^3).

    There are two densities, which agree if the decoder inverts the encoder and are both wrong otherwise. "decoder":
    that of samples g(z), at the point g(f(x)) near x; the one that papers report. "encoder": the pull-back of p_Z,
    which is normalised only if f is one-to-one.

    Args:
        encoder: module from (*batch, dim) to latents of the same shape; called with the context as second argument if
            there is one.
        decoder: back again.
        base: density of the latents, over one dimension of features; `StandardNormal` if you give their number.

    >>> flow = FreeFormFlow(nn.Linear(2, 2), nn.Linear(2, 2), 2)
    >>> flow.sample([5]).shape, flow.log_prob(torch.zeros(3, 2)).shape
    (torch.Size([5, 2]), torch.Size([3]))
    """

    square = True  # latents have as many features as data

    def __init__(self, encoder: nn.Module, decoder: nn.Module, base: Base | int):
        super().__init__()
        for name, module in (("encoder", encoder), ("decoder", decoder)):
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name}: got {type(module).__name__}, expected a module")
        self.encoder, self.decoder = encoder, decoder
        self.base = StandardNormal([base]) if isinstance(base, int) and not isinstance(base, bool) else base
        if not isinstance(self.base, Base) or len(self.base.event_shape) != 1:
            raise TypeError(f"base: got {base!r}, expected a Base over one dimension of features, or their number")

    def encode(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """f(x), or f(x, context)."""
        return self.encoder(x) if context is None else self.encoder(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        """g(z), or g(z, context)."""
        return self.decoder(z) if context is None else self.decoder(z, context)

    def loss(self, x: Tensor, context: Tensor | None = None, **settings) -> tuple[Tensor, dict[str, Tensor]]:
        """`fff_loss` of these networks; `settings` are its keyword arguments, `beta` among them."""
        self.check_point(x)
        encode, decode = self.given(spread_context(context, x))
        return fff_loss(encode, decode, x, base=self.base, **settings)

    def check_point(self, x: Tensor) -> None:
        """Raise TypeError or ValueError unless x has the features and the precision of this flow."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x: got {getattr(x, 'dtype', type(x).__name__)}, expected a floating-point tensor")
        like = next(self.parameters(), x)
        if x.dtype != like.dtype:
            raise TypeError(f"x: got {x.dtype}, expected {like.dtype} like the flow's parameters: convert one of them")
        if self.square and x.shape[-1:] != self.base.event_shape:
            raise ValueError(f"x: got shape {tuple(x.shape)}, expected (*batch, {self.base.event_shape[0]})")

    def given(self, context: Tensor | None) -> tuple[Callable, Callable]:
        """Encoder and decoder as functions of one argument, as the functions of this package take them."""
        return (lambda x: self.encode(x, context)), (lambda z: self.decode(z, context))

    def log_prob(
        self, x: Float[Tensor, "*batch dim"], context: Tensor | None = None, side: str = "decoder"
    ) -> Float[Tensor, "*batch"]:
        """log p(x | context) in nats, exact for these networks, by the Jacobian of the decoder or the encoder.

        Raises:
            ValueError: if `side` is neither, `x` does not end in the base's number of features, or `context` is for
                another batch.
            TypeError: if `x` is not floating-point, or of another precision than the parameters.
        """
        if side not in ("encoder", "decoder"):
            raise ValueError(f"side: got {side!r}, expected 'encoder' or 'decoder'")
        self.check_point(x)
        encode, decode = self.given(spread_context(context, x))
        z = encode(x)
        log_det = log_det_jacobian(encode, x) if side == "encoder" else -log_det_jacobian(decode, z)
        return self.base.log_prob(z) + log_det

    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws g(z), z from the base: one pass. Shape (*shape, dim), or (*shape, *batch, dim) with a context."""
        z, context = self._draw(shape, context, generator)
        return self.decode(z, context)

    def sample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `sample`, with the exact log-density of each draw (if the decoder is one-to-one): dim passes."""
        z, context = self._draw(shape, context, generator)
        decode = self.given(context)[1]
        return decode(z), self.base.log_prob(z) - log_det_jacobian(decode, z)

    def _draw(
        self, shape: Sequence[int], context: Tensor | None, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        check_shape("shape", shape)
        _check_context(context)
        batch = tuple(shape)
        if context is not None:
            batch += tuple(context.shape[:-1])
            context = context.expand(*batch, context.shape[-1])
        return self.base.sample(batch, generator), context

    def as_distribution(self, context: Tensor | None = None) -> FlowDistribution:
        """p(. | context), decoder side, for every library that speaks `torch.distributions`."""
        return FlowDistribution(self, context)
