r"""Gaussianization of Gaussian data, exactly: a recursion on covariance matrices, without a sample.

A Gaussian stays Gaussian under rotations and under the best coordinate maps, which are linear for it. Everything is
therefore said by its covariance, here always brought to unit variances, and the loss is the KL divergence to N(0, I),

    L = -1/2 ln det C    for a correlation matrix C.

A layer rotates and rescales. For small L, averaged over Haar-random rotations, it leaves the share dim / (dim + 2) of
the loss, so that the number of layers grows linearly with the dimension; a coupling block (`refimpl.flows.whitening`)
leaves about one half. Use float64, for float32 stalls near L = 1e-6.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.flows.bijection import check_shape
from refimpl.flows.linear import random_rotation

__all__ = [
    "best_scales",
    "correlation",
    "expected_layers",
    "expected_ratio",
    "gain_bounds",
    "haar",
    "layers_to",
    "loss_curve",
]


def haar(
    dim: int, *batch: int, generator: torch.Generator | None = None, dtype: torch.dtype = torch.float64
) -> Float[Tensor, "*batch dim dim"]:
    """`random_rotation`, many at once: orthogonal matrices from the Haar distribution on O(dim), on the generator's device.

    >>> q = haar(3, generator=torch.Generator().manual_seed(0))
    >>> torch.allclose(q @ q.mT, torch.eye(3, dtype=q.dtype))
    True
    """
    check_sizes(dim=dim)
    check_shape("batch", batch)
    return random_rotation(dim, generator, batch).to(dtype)


def correlation(sigma: Float[Tensor, "*batch dim dim"]) -> Float[Tensor, "*batch dim dim"]:
    """A covariance after each coordinate has been divided by its standard deviation: what a layer does to a Gaussian.

    From unit variances and a rotation Q the loss falls by -1/2 sum_i ln (Q sigma Q^T)_ii, which is never negative.

    Raises:
        TypeError, ValueError: if `sigma` is not finite and square, or a variance is not positive.

    >>> correlation(torch.tensor([[4.0, 1.0], [1.0, 1.0]]))
    tensor([[1.0000, 0.5000],
            [0.5000, 1.0000]])
    """
    check_tensor("sigma", sigma, "(*batch, n, n)")
    variances = sigma.diagonal(dim1=-2, dim2=-1)
    if not (variances > 0).all():
        raise ValueError(f"sigma: has a variance of {variances.min().item():.3g}, expected all > 0")
    scale = variances.rsqrt()
    return sigma * scale.unsqueeze(-1) * scale.unsqueeze(-2)


def expected_ratio(dim: int) -> float:
    """dim / (dim + 2): mean loss after a layer over that before it, near N(0, I) and for Haar-random rotations.

    >>> expected_ratio(48)
    0.96
    """
    check_sizes(dim=dim)
    return dim / (dim + 2)


def expected_layers(dim: int, factor: float | int) -> float:
    """Layers that divide the loss by `factor`: ln factor / -ln(dim / (dim + 2)), about (dim + 1) / 2 * ln factor.

    >>> round(expected_layers(128, 100), 2)
    297.03
    """
    check_positive("factor", factor)
    if factor < 1:
        raise ValueError(f"factor: got {factor!r}, expected at least 1")
    return math.log(factor) / -math.log(expected_ratio(dim))


def gain_bounds(sigma: Float[Tensor, "*batch dim dim"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
    """Bounds 2 / (k^2 (dim + 2)) and 2 k^2 / (dim + 2) of the mean share of the loss that a random layer removes.

    The mean is over Haar-random rotations; k is the condition number of `sigma`, whose trace must be dim. The upper bound says nothing once it exceeds 1.
    """
    check_tensor("sigma", sigma, "(*batch, n, n)")
    values, dim = torch.linalg.eigvalsh(sigma), sigma.shape[-1]
    if not (values > 0).all() or not ((values.mean(-1) - 1).abs() < 1e-3).all():
        raise ValueError("sigma: expected positive eigenvalues and a trace of dim; divide it by its mean variance")
    squared = (values[..., -1] / values[..., 0]).square()
    return 2 / (squared * (dim + 2)), 2 * squared / (dim + 2)


def loss_curve(
    sigma: Float[Tensor, "*batch dim dim"],
    *,
    to: float = 0.01,
    step: Callable[[Tensor], Tensor] = correlation,
    max_layers: int = 10_000,
    generator: torch.Generator | None = None,
) -> Float[Tensor, " layers *batch"]:
    """Loss after 0, 1, 2, ... layers with Haar-random rotations, until every run is below the share `to` of its first.

    Args:
        sigma: covariances of the runs; the first loss is that after bringing them to unit variances.
        to: where to stop, a share of the first loss.
        step: what a layer makes of the rotated covariance: `correlation` for Gaussianization, or for example a
            `whitening_block`; its result must have unit variances.
        max_layers: where to stop in any case.
        generator: source of the rotations.

    >>> losses = loss_curve(torch.tensor([[1.0, 0.9], [0.9, 1.0]]).double(), to=0.1)
    >>> round(losses[0].item(), 4), bool((losses.diff() < 0).all())  # -1/2 ln (1 - 0.9^2)
    (0.8304, True)
    """
    check_tensor("sigma", sigma, "(*batch, n, n)")
    check_positive("to", to)
    check_sizes(max_layers=max_layers)
    sigma = correlation(sigma)
    if torch.linalg.cholesky_ex(sigma).info.any():
        raise ValueError("sigma: is not positive definite")
    losses, dim, batch = [_loss(sigma)], sigma.shape[-1], sigma.shape[:-2]
    while len(losses) <= max_layers and (losses[-1] > to * losses[0]).any():
        q = haar(dim, *batch, generator=generator, dtype=sigma.dtype).to(sigma.device)
        sigma = step(q @ sigma @ q.mT)
        sigma = (sigma + sigma.mT) / 2
        losses.append(_loss(sigma))
    return torch.stack(losses)


def _loss(correlations: Tensor) -> Tensor:
    return -torch.linalg.cholesky(correlations).diagonal(dim1=-2, dim2=-1).log().sum(-1)


def layers_to(losses: Float[Tensor, " layers *batch"], share: float) -> Float[Tensor, "*batch"]:
    """Layers that bring the loss to `share` of the first one, a fraction of the last interpolated in the loss's logarithm.

    Returns:
        0 where no layer is needed, inf where none of those given is enough.

    >>> layers_to(torch.tensor([8.0, 4.0, 2.0, 1.0]), 0.25)
    tensor(2.)
    >>> round(layers_to(torch.tensor([1.0, 0.1]), 0.5).item(), 4)  # lg 2
    0.301
    """
    check_positive("share", share)
    if not isinstance(losses, Tensor) or not losses.numel() or losses.isnan().any():
        raise ValueError("losses: expected a tensor of shape (layers, *batch) with one layer or more and no nan")
    below = losses <= share * losses[0]
    last = below.int().argmax(0)
    logs = losses.clamp_min(torch.finfo(losses.dtype).tiny).log()
    before, after = (logs.gather(0, k.unsqueeze(0))[0] for k in ((last - 1).clamp_min(0), last))
    part = (before - logs[0] - math.log(share)) / (before - after).clamp_min(torch.finfo(losses.dtype).tiny)
    found = torch.where(last > 0, last - 1 + part, 0.0)
    return torch.where(below.any(0), found, math.inf)


def best_scales(
    sigma: Float[Tensor, "dim dim"],
    rotations: Float[Tensor, "layers dim dim"],
    *,
    restarts: int = 3,
    num_steps: int = 300,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, "layers dim"]]:
    """Least KL that linear layers S_l Q_l reach when all diagonal S_l are trained together, the rotations being fixed.

    By L-BFGS from several random starts: an upper bound of the minimum. There are layers * dim parameters for
    dim (dim + 1) / 2 equations, so that for almost all `sigma` the minimum is above 0 while layers < (dim + 1) / 2.

    Returns:
        The loss in nats, and the logarithms of the scales.
    """
    check_tensor("sigma", sigma, "(n, n)")
    check_tensor("rotations", rotations, f"(layers, {len(sigma)}, {len(sigma)})", like=sigma)
    if not torch.allclose(rotations @ rotations.mT, torch.eye(len(sigma)).to(sigma), atol=1e-4):
        raise ValueError("rotations: expected orthogonal matrices")
    check_sizes(restarts=restarts, num_steps=num_steps)
    if torch.linalg.cholesky_ex(sigma).info.any():
        raise ValueError("sigma: is not positive definite")
    constant = -(sigma.shape[-1] + torch.logdet(sigma)) / 2
    root, found = torch.linalg.cholesky(sigma), []

    def loss(s: Tensor) -> Tensor:
        product = root
        for log_scale, rotation in zip(s, rotations, strict=True):
            product = log_scale.exp().unsqueeze(-1) * (rotation @ product)
        return product.square().sum() / 2 - s.sum() + constant

    where = generator.device if generator else None
    for _ in range(restarts):
        noise = torch.randn(rotations.shape[:-1], dtype=sigma.dtype, device=where, generator=generator)
        s = (0.3 * noise).to(sigma).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [s],
            max_iter=num_steps,
            history_size=20,
            tolerance_grad=1e-9,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def closure(s: Tensor = s, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = loss(s)
            value.backward()
            return value

        optimizer.step(closure)
        found.append((loss(s.detach()), s.detach()))
    return min(found, key=lambda pair: pair[0].nan_to_num(math.inf))
