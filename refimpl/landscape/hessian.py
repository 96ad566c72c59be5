"""Curvature of a loss at a point, from Hessian-vector products only: extreme eigenvalues, and along a direction."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes, check_tensor
from refimpl.autodiff import hessian_vector_product

__all__ = ["hessian_eigenvalues", "rayleigh_quotient"]


def hessian_eigenvalues(
    loss: Callable[[Tensor], Tensor],
    x: Float[Tensor, " dim"],
    *,
    num: int = 1,
    which: str = "largest",
    tolerance: float | int = 1e-3,
    max_iterations: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, " num"], Float[Tensor, "num dim"]]:
    r"""Largest or smallest eigenvalues (by sign, not by size) of the Hessian of a loss, with eigenvectors.

    Lanczos iterations, restarted implicitly (ARPACK); the matrix, dim x dim, is never formed. A first run finds the
    largest :math:`|\lambda|=s`; a second one works on :math:`2s\pm H`, all of whose eigenvalues are far from zero, so that
    those of H near zero are found to the same accuracy as others. A spectrum that is small enough for the
    iterations' subspace to span the whole space is computed directly.

    Args:
        loss: map from (dim,) to a scalar tensor; deterministic, or it has no Hessian.
        x: where, shape (dim,), in the type and on the device to compute on.
        num: how many eigenvalues, <= dim. ARPACK keeps max(2 num + 1, 20) vectors of size dim.
        which: ``"largest"`` (descending) or ``"smallest"`` (ascending).
        tolerance: error, relative to the largest :math:`|\lambda|`; float32 products allow for 1e-5 at best.
        max_iterations: restarts of each run, ARPACK's default of 10 dim if None.
        generator: source of the start vectors; torch's global one if None.

    Returns:
        Eigenvalues, shape (num,), in units of loss per squared unit of x, and unit eigenvectors, shape (num, dim).

    Raises:
        TypeError, ValueError: if x is not a finite (dim,), ``which`` is unknown, a number is out of its range, or the loss is
            not scalar or has products that are not finite.
        RuntimeError: if ``max_iterations`` were not enough.

    Source: Lanczos 1950; Lehoucq, Sorensen and Yang 1998 (ARPACK).

    >>> scales = torch.arange(100.0)
    >>> hessian_eigenvalues(lambda x: (scales * x**2).sum() / 2, torch.zeros(100), num=2, tolerance=1e-5)[0]
    tensor([99., 98.])
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    check_tensor("x", x, "(dim,)")
    check_sizes(num=num, **{"max_iterations": max_iterations} if max_iterations is not None else {})
    check_positive("tolerance", tolerance)
    if which not in ("largest", "smallest"):
        raise ValueError(f"which: got {which!r}, expected 'largest' or 'smallest'")
    dim, sign = len(x), 1 if which == "largest" else -1
    if num > dim:
        raise ValueError(f"num: got {num}, expected at most the dimension of x, {dim}")

    def product(v: Tensor) -> Tensor:
        hv = hessian_vector_product(loss, x, v.to(x)).detach().double().cpu()
        if not hv.isfinite().all():
            raise ValueError("loss: has second derivatives at x that are not finite")
        return hv

    if dim <= max(2 * num + 1, 20):
        values, vectors = torch.linalg.eigh(torch.stack([product(e) for e in torch.eye(dim)]))
        order = values.argsort(descending=sign > 0)[:num]
        return values[order].to(x), vectors.T[order].to(x)

    def lanczos(shift: float, num: int, kind: str, tolerance: float) -> tuple[Tensor, Tensor]:
        operator = LinearOperator((dim, dim), lambda v: shifted(torch.from_numpy(v.ravel()), shift), dtype="float64")
        try:
            found = eigsh(operator, num, which=kind, v0=start.numpy(), tol=tolerance, maxiter=max_iterations)
        except ArpackNoConvergence as error:
            raise RuntimeError(f"max_iterations: too few for {num=}, {tolerance=:g}; allow more of either") from error
        return tuple(torch.from_numpy(part.copy()) for part in found)

    def shifted(v: Tensor, shift: float):
        return (sign * product(v) + shift * v).numpy()

    start = torch.randn(dim, generator=generator, device=generator.device if generator else None).double().cpu()
    # A Hessian that is zero, which ARPACK rejects, sends any start vector to zero.
    scale = lanczos(0.0, 1, "LM", tolerance)[0].abs().item() if product(start).any() else 1.0
    values, vectors = lanczos(2 * scale, num, "LA", tolerance / 3)
    order = values.argsort(descending=True)
    return (sign * (values[order] - 2 * scale)).to(x), vectors.T[order].to(x)


def rayleigh_quotient(
    loss: Callable[[Tensor], Tensor], x: Float[Tensor, " dim"], direction: Float[Tensor, " dim"]
) -> Float[Tensor, ""]:
    r"""Curvature :math:`v^\top Hv/v^\top v` of a loss at x along a direction v. Exact.

    Args:
        loss: map from (dim,) to a scalar tensor.
        x: where, shape (dim,).
        direction: v, shape (dim,), of any length but zero.

    Returns:
        Curvature, between the Hessian's extreme eigenvalues.

    Raises:
        TypeError, ValueError: if x or ``direction`` is not a finite (dim,), ``direction`` is zero, or the loss is not scalar.

    >>> rayleigh_quotient(lambda x: x[0] ** 2 - x[1] ** 2, torch.zeros(2), torch.tensor([0.0, 3.0]))
    tensor(-2.)
    """
    check_tensor("x", x, "(dim,)")
    check_tensor("direction", direction, f"({len(x)},)", like=x)
    unit = direction / direction.abs().max()  # squares of small numbers would vanish
    if not math.isfinite(unit.sum()):
        raise ValueError("direction: is zero")
    return unit @ hessian_vector_product(loss, x, unit) / (unit @ unit)
