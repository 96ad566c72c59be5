"""How fast affine couplings whiten Gaussian data: their action on the covariance, and bounds on it.

For Gaussian data the conditional mean is linear and the conditional variance constant, so a coupling is a rule for
covariances: rotate, replace the active block by the Schur complement, drop the cross-covariance, rescale. All loss is
non-standardness, S(Sigma) = KL(N(0, Sigma) || N(0, I)). Near the identity a block leaves an expected share of
(D (D - 1) - 2 D_A D_P) / ((D - 1) (D + 2)) of it: 0.22 for D = 4 and equal halves, tending to 1/2.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.flows.linear import random_rotation

__all__ = [
    "loss_only_bound",
    "nonstandardness",
    "unitary_bound",
    "var_max_bound",
    "whiten",
    "whitening_block",
    "whitening_ratio",
]


def nonstandardness(covariance: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch"]:
    """S = KL(N(0, Sigma) || N(0, I)) = (tr Sigma - D - ln det Sigma) / 2. Nats, exact.

    Summed over x - 1 - ln x of the eigenvalues, which keeps digits where S is small.

    Raises:
        TypeError, ValueError: if `covariance` is not finite, symmetric and positive definite.

    >>> round(nonstandardness(torch.diag(torch.tensor([2.0, 1.0]))).item(), 4)  # (1 - ln 2) / 2
    0.1534
    """
    _check_symmetric(covariance)
    eigenvalues = torch.linalg.eigvalsh(covariance)
    if not (eigenvalues > 0).all():
        raise ValueError(f"covariance: has an eigenvalue {eigenvalues.min().item():.3g}, expected all > 0")
    excess = eigenvalues - 1
    return 0.5 * (excess - torch.log1p(excess)).sum(-1)


def whitening_block(
    covariance: Float[Tensor, "*batch dim dim"], active: int, *, scale_passive: bool = True
) -> Float[Tensor, "*batch dim dim"]:
    """Covariance of Gaussian data behind the best affine coupling, the last `active` features given the others. Exact.

    Args:
        covariance: Sigma, already rotated.
        active: D_A, 1 to dim - 1.
        scale_passive: whether the passive features are divided by their standard deviations as well.

    Raises:
        TypeError, ValueError: if `covariance` is not finite, symmetric and positive definite, or `active` is out of its
            range.

    Source: Draxler, Schnörr, Köthe 2022 (arXiv 2210.14032).
    """
    _check_symmetric(covariance)
    if torch.linalg.cholesky_ex(covariance).info.any():
        raise ValueError("covariance: is not positive definite")
    dim = covariance.shape[-1]
    passive = _passive(dim, active)
    pp, pa = covariance[..., :passive, :passive], covariance[..., :passive, passive:]
    schur = covariance[..., passive:, passive:] - pa.mT @ torch.linalg.solve(pp, pa)
    out = torch.zeros_like(covariance)
    out[..., :passive, :passive], out[..., passive:, passive:] = pp, 0.5 * (schur + schur.mT)
    scale = out.diagonal(dim1=-2, dim2=-1).rsqrt()
    if not scale_passive:
        scale = torch.cat([torch.ones_like(scale[..., :passive]), scale[..., passive:]], -1)
    return scale[..., None] * out * scale[..., None, :]


def whiten(
    covariance: Float[Tensor, "*batch dim dim"],
    num_blocks: int,
    *,
    active: int | None = None,
    scale_passive: bool = True,
    rotate: bool = True,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " blocks *batch"], Float[Tensor, "*batch dim dim"]]:
    """Losses before and behind each of many blocks, with a fresh Haar rotation before each; and the last covariance.

    Args:
        covariance: Sigma; float64 to follow the loss below 1e-6.
        num_blocks: number of blocks.
        active: D_A, half of the features if None.
        scale_passive: see `whitening_block`.
        rotate: False: only exchange the halves, as couplings without mixing layers do.
        generator: source of the rotations.

    Returns:
        S, shape (num_blocks + 1, *batch), and Sigma behind the last block.
    """
    check_sizes(num_blocks=num_blocks)
    _check_symmetric(covariance)
    dim = covariance.shape[-1]
    active = dim // 2 if active is None else active
    losses = [nonstandardness(covariance)]
    for _ in range(num_blocks):
        if rotate:
            many = math.prod(covariance.shape[:-2])
            q = torch.stack([random_rotation(dim, generator) for _ in range(many)]).view_as(covariance).to(covariance)
            covariance = q @ covariance @ q.mT
        else:
            covariance = covariance.roll((active, active), (-2, -1))
        covariance = whitening_block(covariance, active, scale_passive=scale_passive)
        losses.append(nonstandardness(covariance))
    return torch.stack(losses), covariance


def whitening_ratio(dim: int, active: int | None = None, *, scale_passive: bool = True) -> float:
    """Expected share of S that a block leaves, for Haar rotations and Sigma near I of trace D.

    A block deletes the 2 D_A D_P cross-covariances and the diagonal's deviations; their expected shares of
    ||Sigma - I||^2 under a Haar rotation follow from symmetry. 1/2 in the limit of high dimensions.

    >>> round(whitening_ratio(48), 4), whitening_ratio(2)
    (0.4698, 0.0)
    """
    active = dim // 2 if active is None else active
    passive = _passive(dim, active)
    left = (dim * (dim - 1) - 2 * active * passive) / ((dim - 1) * (dim + 2))
    return left if scale_passive else left + 2 / (dim + 2) * passive / dim


def var_max_bound(eigenvalues: Float[Tensor, "*batch dim"], active: int | None = None) -> Float[Tensor, "*batch"]:
    """Upper bound on the expected loss behind a block, from variance and maximum of the eigenvalues (mean 1). Nats.

    Source: Draxler, Schnörr, Köthe 2022 (arXiv 2210.14032), Theorem 1.

    >>> var_max_bound(torch.tensor([1.0, 1.0]))
    tensor(0.)
    """
    _check_eigenvalues(eigenvalues, "(*batch, dim)")
    dim = eigenvalues.shape[-1]
    active = dim // 2 if active is None else active
    passive = _passive(dim, active)
    excess = eigenvalues - 1
    loss = 0.5 * (excess - torch.log1p(excess)).sum(-1)
    share = dim * passive / ((dim + 2) * (dim - 1)) * excess.square().mean(-1) / eigenvalues.amax(-1)
    return loss + 0.5 * active * torch.log1p(-share)


def loss_only_bound(loss: float | int, dim: int, active: int | None = None) -> float:
    """Factor gamma(S) < 1 with E S_new <= gamma(S) S, whatever the spectrum; it grows with S.

    Applied again and again: E S_L <= gamma(S_0)^L S_0, a linear rate of convergence.

    Source: Draxler, Schnörr, Köthe 2022 (arXiv 2210.14032); constants from the Cartwright-Field inequality.
    """
    check_positive("loss", loss)
    active = dim // 2 if active is None else active
    passive = _passive(dim, active)
    below = -math.expm1(-2 * loss / dim)  # 1 - g, g the geometric mean of the eigenvalues
    root = math.sqrt(-math.expm1(-2 * loss))
    share = dim * passive / ((dim + 2) * (dim - 1)) * 2 * below * (1 - root) / (1 + root)
    return 1 + 0.5 * active / loss * math.log1p(-share)


def unitary_bound(eigenvalues: Float[Tensor, " dim"], active: int | None = None, digits: int = 300) -> float:
    """S + D_A/2 ln(E tr M / D_A), M the Schur complement behind a Haar-*unitary* rotation; exact trace. Nats.

    For real (orthogonal) rotations an approximation, not a proven bound. Computed with many digits, because its terms
    cancel; the eigenvalues must be distinct and of mean 1.

    Source: Draxler, Schnörr, Köthe 2022 (arXiv 2210.14032), the bound for unitary rotations.
    """
    import mpmath

    _check_eigenvalues(eigenvalues, "(dim)")
    dim = len(eigenvalues)
    active = dim // 2 if active is None else active
    passive = _passive(dim, active)
    if len(set(eigenvalues.tolist())) < dim:
        raise ValueError("eigenvalues: got equal ones, expected distinct ones")
    excess = eigenvalues.double() - 1
    loss = 0.5 * (excess - torch.log1p(excess)).sum().item()
    with mpmath.workdps(digits):
        x = [1 / mpmath.mpf(value) for value in eigenvalues.tolist()]
        trace = mpmath.mpf(0)
        for i, xi in enumerate(x):
            others, symmetric = x[:i] + x[i + 1 :], [mpmath.mpf(1)] + [mpmath.mpf(0)] * (active - 1)
            product = mpmath.mpf(1)
            for xj in others:
                product *= xj - xi
                for k in range(active - 1, 0, -1):
                    symmetric[k] += xj * symmetric[k - 1]
            trace += mpmath.log(xi) * xi ** (passive - 1) * symmetric[-1] / product
        trace *= passive * (-1) ** passive
        return loss + 0.5 * active * float(mpmath.log(trace / active))


def _passive(dim: int, active: int) -> int:
    check_sizes(active=active)
    if active >= dim:
        raise ValueError(f"active: got {active} of {dim} features, expected at most {dim - 1}")
    return dim - active


def _check_symmetric(covariance: Tensor) -> None:
    check_tensor("covariance", covariance, "(*batch, dim, dim)")
    off = (covariance - covariance.mT).abs().max().item()
    if not off <= 1e-4 * covariance.abs().max().item():
        raise ValueError(f"covariance: is off its transpose by {off:.2g}, expected a symmetric matrix")


def _check_eigenvalues(eigenvalues: Tensor, shape: str) -> None:
    check_tensor("eigenvalues", eigenvalues, shape)
    if not (eigenvalues > 0).all():
        raise ValueError(f"eigenvalues: got a smallest one of {eigenvalues.min().item():.3g}, expected all > 0")
    mean = eigenvalues.mean(-1)
    if not ((mean - 1).abs() < 1e-4).all():
        raise ValueError(f"eigenvalues: got a mean of {mean.flatten()[0].item():g}, expected 1")
