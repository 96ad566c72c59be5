"""Mixtures of Gaussians with full covariances: the one family where diffusion, guidance and posteriors are all exact.

Adding noise, conditioning on a noisy linear measurement, and doing both leaves a mixture of Gaussians. So the score at
every noise level, the denoiser E[x_0 | x_t] with its covariance, the posterior given a measurement and *its* score are
closed forms, in any dimension.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.data._random import draw

__all__ = ["NormalMixture"]


class NormalMixture:
    """sum_k w_k N(m_k, C_k), or a batch of such mixtures with common covariances.

    Points x of shape (..., dim) broadcast against a batch of mixtures: with means of shape (*batch, components, dim),
    x is (..., *batch, dim), and `sample(shape)` has shape (*shape, *batch, dim).

    Args:
        means: shape (*batch, components, dim); gives dtype and device. Use float64 for oracles.
        covariances: shape (components, dim, dim), symmetric, positive definite.
        weights: shape (*batch, components), positive, scaled to sum to 1; equal if None.

    Raises:
        TypeError, ValueError: if shapes do not fit, or a covariance is not symmetric and positive definite.

    Source: Bishop 2006 (Pattern Recognition and Machine Learning), Section 2.3.3, component by component.

    >>> p = NormalMixture(torch.tensor([[-1.0], [1.0]]), torch.full((2, 1, 1), 0.25))
    >>> p.denoise(torch.zeros(1), 1.0, 0.5), round(p.log_prob(torch.ones(1)).item(), 4)
    (tensor([0.]), -0.9186)
    """

    def __init__(self, means: Tensor, covariances: Tensor, weights: Tensor | None = None):
        check_tensor("means", means, "(*batch, components, dim)")
        components, dim = means.shape[-2:]
        check_tensor("covariances", covariances, f"({components}, {dim}, {dim})", means)
        if not torch.allclose(covariances, covariances.mT, atol=1e-6 * covariances.abs().max().item()):
            raise ValueError("covariances: got matrices that are not symmetric")
        weights = means.new_ones(components) if weights is None else weights
        check_tensor("weights", weights, f"(*batch, {components})", means)
        if not (weights > 0).all():
            raise ValueError("weights: expected positive numbers only")
        self.means, self.covariances = means, covariances
        self.weights = (weights / weights.sum(-1, keepdim=True)).expand(means.shape[:-1])
        self.log_weights = self.weights.log()
        self.eigenvalues, self.eigenvectors = torch.linalg.eigh(covariances)
        if not (self.eigenvalues > 0).all():
            raise ValueError(f"covariances: smallest eigenvalue is {self.eigenvalues.min():.3g}, expected positive")
        self._rotated_means = self._rotate(means)

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "n dim"],
        components: int,
        *,
        regularisation: float | int = 0.01,
        seed: int = 0,
    ) -> "NormalMixture":
        """Fitted to data by scikit-learn's EM; `regularisation` is added to the variances, in squared units of x."""
        from sklearn.mixture import GaussianMixture

        check_tensor("x", x, "(n, dim)")
        check_sizes(components=components)
        check_positive("regularisation", regularisation)
        em = GaussianMixture(components, reg_covar=regularisation, random_state=seed).fit(x.cpu().double().numpy())
        parts = (torch.as_tensor(v).to(x) for v in (em.means_, em.covariances_, em.weights_))
        means, covariances, weights = parts
        return cls(means, (covariances + covariances.mT) / 2, weights)

    @classmethod
    def joined(cls, mixtures: Sequence["NormalMixture"], weights: Sequence[float | int] | None = None):
        """A mixture of mixtures, without batch dimensions, such as one for each class; equal weights if None."""
        shares = [1.0] * len(mixtures) if weights is None else list(weights)
        means, covariances = (torch.cat([getattr(m, name) for m in mixtures]) for name in ("means", "covariances"))
        return cls(means, covariances, torch.cat([s * m.weights for s, m in zip(shares, mixtures, strict=True)]))

    @property
    def dim(self) -> int:
        return self.means.shape[-1]

    def double(self) -> "NormalMixture":
        """The same mixture in float64."""
        return NormalMixture(self.means.double(), self.covariances.double(), self.weights.double())

    def to(self, like: Tensor) -> "NormalMixture":
        """The same mixture in dtype and on the device of `like`."""
        return NormalMixture(self.means.to(like), self.covariances.to(like), self.weights.to(like))

    def _rotate(self, x: Tensor) -> Tensor:
        """Q_k^T x_k of (..., components, dim)."""
        return (x.unsqueeze(-2) @ self.eigenvectors).squeeze(-2)

    def _parts(self, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whitened deviations Q_k^T (x - a m_k), variances a^2 lambda_k + b^2, log responsibilities not normalised."""
        a, b = a.unsqueeze(-1), b.unsqueeze(-1)  # one more dimension, for the components
        turned = torch.einsum("...i,kij->...kj", x, self.eigenvectors) - a * self._rotated_means
        variances = a.square() * self.eigenvalues + b.square()
        log = -0.5 * (turned.square() / variances + variances.log()).sum(-1) - 0.5 * self.dim * math.log(2 * math.pi)
        return turned, variances, log + self.log_weights

    def _coefficients(self, x: Tensor, a: Tensor | float | int, b: Tensor | float | int) -> tuple[Tensor, Tensor]:
        if not isinstance(x, Tensor) or x.dtype != self.means.dtype or x.shape[-1:] != (self.dim,):
            got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"x: got {got}, expected {self.means.dtype} (..., {self.dim})")
        a, b = (torch.as_tensor(v, dtype=x.dtype, device=x.device) for v in (a, b))
        return (a if a.ndim else a.reshape(1)), (b if b.ndim else b.reshape(1))

    def log_prob(
        self, x: Float[Tensor, "... dim"], a: Tensor | float | int = 1.0, b: Tensor | float | int = 0.0
    ) -> Float[Tensor, "..."]:
        """log-density of a x_0 + b n at x, in nats; that of the mixture itself by default.

        Args:
            x: points.
            a, b: numbers, or tensors of shape (*batch, 1).
        """
        return torch.logsumexp(self._parts(x, *self._coefficients(x, a, b))[2], -1)

    def responsibilities(
        self, x: Float[Tensor, "... dim"], a: Tensor | float | int = 1.0, b: Tensor | float | int = 0.0
    ) -> Float[Tensor, "... components"]:
        """Probability that a x_0 + b n = x came from each component."""
        return self._parts(x, *self._coefficients(x, a, b))[2].softmax(-1)

    def score(
        self, x: Float[Tensor, "... dim"], a: Tensor | float | int = 1.0, b: Tensor | float | int = 0.0
    ) -> Float[Tensor, "... dim"]:
        """Gradient of `log_prob(x, a, b)` in x."""
        turned, variances, log = self._parts(x, *self._coefficients(x, a, b))
        return -torch.einsum("...kj,kij->...i", log.softmax(-1).unsqueeze(-1) * turned / variances, self.eigenvectors)

    def denoise(
        self, x: Float[Tensor, "... dim"], a: Tensor | float | int, b: Tensor | float | int
    ) -> Float[Tensor, "... dim"]:
        """E[x_0 | a x_0 + b n = x], finite also where a or b is 0 (with b = 0 it is x / a)."""
        a, b = self._coefficients(x, a, b)
        turned, variances, log = self._parts(x, a, b)
        gain = a.unsqueeze(-1) * self.eigenvalues / variances
        share = log.softmax(-1)
        inner = torch.einsum("...kj,kij->...i", share.unsqueeze(-1) * gain * turned, self.eigenvectors)
        return (share.unsqueeze(-1) * self.means).sum(-2) + inner

    def denoising_covariance(
        self, x: Float[Tensor, "... dim"], a: Tensor | float | int, b: Tensor | float | int
    ) -> Float[Tensor, "... dim dim"]:
        """Cov[x_0 | a x_0 + b n = x]: the components' own plus that of their means."""
        a, b = self._coefficients(x, a, b)
        turned, variances, log = self._parts(x, a, b)
        share, a, b = log.softmax(-1), a.unsqueeze(-1), b.unsqueeze(-1)
        gain = a * self.eigenvalues / variances
        means = self.means + torch.einsum("...kj,kij->...ki", gain * turned, self.eigenvectors)
        left = self.eigenvalues * b.square() / variances
        own = torch.einsum("...kj,kij,klj->...il", share.unsqueeze(-1) * left, self.eigenvectors, self.eigenvectors)
        off = means - (share.unsqueeze(-1) * means).sum(-2, keepdim=True)
        return own + torch.einsum("...k,...ki,...kj->...ij", share, off, off)

    def condition(
        self, matrix: Float[Tensor, "m dim"], y: Float[Tensor, "*batch m"], std: float | int
    ) -> "NormalMixture":
        """The posterior of x given y = matrix x + std n: again a mixture, one for each measurement.

        Args:
            matrix: A, the linear measurement.
            y: measurements; their batch becomes that of the mixture.
            std: standard deviation of the noise, in units of y, > 0.
        """
        check_tensor("matrix", matrix, f"(m, {self.dim})", self.means)
        check_tensor("y", y, f"(*batch, {len(matrix)})", self.means)
        check_positive("std", std, "units of y")
        across = self.covariances @ matrix.T  # (components, dim, m)
        seen = matrix @ across + std**2 * torch.eye(len(matrix)).to(y)
        gain = torch.linalg.solve(seen, across.mT).mT
        off = y.unsqueeze(-2) - self.means @ matrix.T
        means = self.means + torch.einsum("kim,...km->...ki", gain, off)
        covariances = self.covariances - gain @ across.mT
        log = torch.distributions.MultivariateNormal(torch.zeros_like(off), seen).log_prob(off) + self.log_weights
        weights = log.softmax(-1).clamp_min(torch.finfo(y.dtype).tiny)
        return NormalMixture(means, (covariances + covariances.mT) / 2, weights)

    def sample(self, shape: int | Sequence[int], generator: torch.Generator | None = None) -> Float[Tensor, "... dim"]:
        """Points of shape (*shape, *batch, dim); the random numbers come from the generator's device."""
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        batch = self.means.shape[:-2]
        number = math.prod(shape)
        where = generator.device if generator else self.means.device
        flat = self.weights.reshape(-1, self.weights.shape[-1]).to(where)
        which = torch.multinomial(flat, number, replacement=True, generator=generator).to(self.means.device)
        which = which.T.reshape(*shape, *batch)
        noise = draw(torch.randn, (*shape, *batch, self.dim), self.means, generator)
        roots = self.eigenvectors * self.eigenvalues.sqrt().unsqueeze(-2)
        index = which.unsqueeze(-1).unsqueeze(-1).expand(*which.shape, 1, self.dim)
        means = self.means.expand(*shape, *self.means.shape).gather(-2, index).squeeze(-2)
        return means + (roots[which] @ noise.unsqueeze(-1)).squeeze(-1)

    def moments(self) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch dim dim"]]:
        """Mean and covariance of the whole mixture."""
        share = self.weights.unsqueeze(-1)
        mean = (share * self.means).sum(-2)
        off = self.means - mean.unsqueeze(-2)
        return mean, torch.einsum("...k,kij->...ij", self.weights, self.covariances) + off.mT @ (share * off)
