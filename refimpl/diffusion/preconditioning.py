"""Networks with a closed form built in, so that they learn only what is not known beforehand.

`DiffusionModel` takes what they predict from their attribute `predicts`.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_tensor
from refimpl.diffusion.model import check_process
from refimpl.diffusion.process import NoiseProcess

__all__ = ["GaussianSkip", "Preconditioned"]


class Preconditioned(nn.Module):
    """EDM's denoiser: c_skip x / a + c_out F(c_in x / a, c_noise), sigma = b / a.

    The factors give F inputs and targets of variance 1, and multiply its errors by as little as possible. For data
    ~ N(0, sigma_data^2) the best F is 0, and so is a wrapped network that starts at 0.

    Args:
        network: F, called as F(x, c_noise) or F(x, c_noise, context) with c_noise = log(sigma) / 4, shape (*batch, 1).
        process: gives a and b.
        sigma_data: standard deviation of the data, > 0, in their units.

    Source: Karras et al. 2022 (arXiv 2206.00364), Eq. (7), Table 1 and Appendix B.6, here for any a and b.

    >>> from refimpl.diffusion.process import EDM
    >>> denoiser = Preconditioned(lambda x, t: torch.zeros_like(x), EDM(), sigma_data=1.0)
    >>> denoiser(torch.tensor([4.0]), torch.tensor([1.0]))
    tensor([2.])
    """

    predicts = "data"

    def __init__(self, network: Callable, process: NoiseProcess, sigma_data: float | int):
        super().__init__()
        check_process(process, network)
        check_positive("sigma_data", sigma_data, "units of the data")
        self.network, self.process, self.sigma_data = network, process, float(sigma_data)

    def forward(
        self, x: Float[Tensor, "*batch dim"], t: Float[Tensor, "*batch 1"], context: Tensor | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """The estimate of the data."""
        a, b = self.process.coefficients(t)
        variance = b.square() + (a * self.sigma_data).square()  # of x_t
        std = variance.sqrt()
        c_noise = (b.clamp_min(1e-6) / a.clamp_min(1e-6)).log() / 4
        inner = (x / std, c_noise) if context is None else (x / std, c_noise, context)
        return self.sigma_data**2 * a / variance * x + b * self.sigma_data / std * self.network(*inner)

    def weight(self, t: Float[Tensor, "*batch 1"]) -> Float[Tensor, "*batch 1"]:
        """1 / c_out^2: with it the loss of the data is the plain loss of F at every level."""
        a, b = self.process.coefficients(t)
        return (b.square() + (a * self.sigma_data).square()) / (b * self.sigma_data).square()


class GaussianSkip(nn.Module):
    """The noise predicted for data ~ N(mean, covariance), a closed form, plus what a network adds.

    The noise is b (a^2 C + b^2 I)^-1 (x - a m), so that the network has to learn only how the data are not Gaussian.

    Args:
        network: called as network(x, t) or network(x, t, context).
        process: gives a and b.
        mean: m, shape (dim,).
        covariance: C, shape (dim, dim), symmetric, without negative eigenvalues.

    >>> from refimpl.diffusion.process import EDM
    >>> skip = GaussianSkip(lambda x, t: torch.zeros_like(x), EDM(), torch.zeros(2), torch.eye(2))
    >>> skip(torch.ones(2), torch.tensor([1.0]))
    tensor([0.5000, 0.5000])
    """

    predicts = "noise"

    def __init__(
        self,
        network: Callable,
        process: NoiseProcess,
        mean: Float[Tensor, " dim"],
        covariance: Float[Tensor, "dim dim"],
    ):
        super().__init__()
        check_process(process, network)
        check_tensor("mean", mean, "(dim,)")
        check_tensor("covariance", covariance, f"({len(mean)}, {len(mean)})", mean)
        eigenvalues, eigenvectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
        scale = eigenvalues.abs().max().item()
        if not torch.allclose(covariance, covariance.mT, atol=1e-5 * scale) or eigenvalues.min() < -1e-5 * scale:
            raise ValueError(
                "covariance: expected a symmetric matrix without negative eigenvalues,"
                f" got one with smallest eigenvalue {eigenvalues.min():.3g} of its symmetric part"
            )
        self.network, self.process = network, process
        self.register_buffer("mean", mean.clone())
        self.register_buffer("eigenvalues", eigenvalues.clamp_min(0))
        self.register_buffer("eigenvectors", eigenvectors)

    def forward(
        self, x: Float[Tensor, "*batch dim"], t: Float[Tensor, "*batch 1"], context: Tensor | None = None
    ) -> Float[Tensor, "*batch dim"]:
        """The estimate of the noise."""
        a, b = self.process.coefficients(t)
        turned = (x - a * self.mean) @ self.eigenvectors
        exact = (b * turned / (a.square() * self.eigenvalues + b.square())) @ self.eigenvectors.mT
        return exact + (self.network(x, t) if context is None else self.network(x, t, context))
