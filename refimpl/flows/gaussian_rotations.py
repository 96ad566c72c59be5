"""Rotations that look at the data: what could speed up Gaussianization, and what overfits when data are few."""

import warnings

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_tensor
from refimpl.flows.gaussian_recursion import haar

__all__ = ["ica_rotation", "pca_rotation", "sliced_rotation"]


def pca_rotation(x: Float[Tensor, "n dim"], generator: torch.Generator | None = None) -> Float[Tensor, "dim dim"]:
    """Rows are the principal axes of the data."""
    check_tensor("x", x, "(n, dim)")
    return torch.linalg.eigh(torch.cov(x.T.double()).view(x.shape[1], -1)).eigenvectors.T


def ica_rotation(x: Float[Tensor, "n dim"], generator: torch.Generator | None = None) -> Float[Tensor, "dim dim"]:
    """Orthogonal unmixing matrix of FastICA (scikit-learn), without whitening.

    It assumes uncorrelated coordinates of equal variance; where a layer has left correlations, the rotation is poor.
    On data without non-Gaussian directions it does not converge, and the warning that says so is left out: its last
    iterate is a rotation all the same.

    Source: Hyvärinen 1999 (IEEE Transactions on Neural Networks 10), the fixed-point iteration.
    """
    from sklearn.decomposition import FastICA
    from sklearn.exceptions import ConvergenceWarning

    check_tensor("x", x, "(n, dim)")
    seed = torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device if generator else None).item()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = FastICA(whiten=False, random_state=seed).fit((x - x.mean(0)).double().cpu().numpy())
    return torch.from_numpy(found.components_)


def sliced_rotation(
    x: Float[Tensor, "n dim"],
    generator: torch.Generator | None = None,
    *,
    num_steps: int = 60,
    lr: float = 0.1,
    max_points: int = 2000,
) -> Float[Tensor, "dim dim"]:
    """Rotation whose coordinates are farthest from a normal: gradient ascent on the sum of their squared W_2 distances.

    It starts at a Haar-random one and stays orthogonal by its parametrisation, as the exponential of a skew matrix.

    Args:
        x: data, shape (n, dim), each coordinate of mean 0 and standard deviation about 1.
        generator: source of the start and of the points to look at.
        num_steps: steps of Adam.
        lr: its step size.
        max_points: how many of the points are looked at; sorting them is the cost of a step.

    Source: Dai and Seljak 2021 (arXiv 2007.00674), maximum K-sliced Wasserstein distance, here with K = dim.
    """
    check_tensor("x", x, "(n, dim)")
    where = generator.device if generator else None
    x = x[torch.randperm(len(x), generator=generator, device=where)[:max_points].to(x.device)]
    n, dim = x.shape
    turn = nn.Linear(dim, dim, bias=False, device=x.device, dtype=x.dtype)
    turn = nn.utils.parametrizations.orthogonal(turn, orthogonal_map="matrix_exp")
    turn.weight = haar(dim, generator=generator).to(x)
    normal = torch.special.ndtri((torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n)
    optimizer = torch.optim.Adam(turn.parameters(), lr=lr)
    with torch.enable_grad():
        for _ in range(num_steps):
            optimizer.zero_grad()
            y = turn(x.detach()).T
            distance = (y.gather(1, _order(y.detach())) - normal).square().mean(1).sum()
            (-distance).backward()
            optimizer.step()
    return turn.weight.detach()


def _order(rows: Tensor) -> Tensor:
    """Indices that sort each row; on the CPU by NumPy, many times as fast as torch."""
    return torch.from_numpy(np.argsort(rows.numpy(), axis=1)) if rows.is_cpu else rows.argsort(dim=1)
