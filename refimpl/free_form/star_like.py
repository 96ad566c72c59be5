"""Flows on star-like hypersurfaces: every ray from the origin meets the surface once, at distance r(u) in direction u.

Spheres of all p-norms, ellipsoids, the probability simplex and every level set of a positively homogeneous function are
such surfaces. In spherical coordinates one bijection of angles gives samples and an exact density, because the area

    dA = r^{n-2} sqrt(r^2 + |grad_S r|^2) dsigma

(dsigma: area of the unit sphere, grad_S: gradient along it) needs no determinant: one pass and one gradient, O(n).
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_positive, check_tensor
from refimpl.flows.flow import Flow
from refimpl.free_form.spherical import log_sphere_volume, to_angles, to_unit

__all__ = ["StarLike", "log_area", "lp_radius"]


def lp_radius(p: float | int, size: float | int = 1.0) -> Callable:
    """r(u) = size / ||u||_p: the surface where the p-norm is `size`; with p = 1 and positive u, the simplex.

    Args:
        p: > 0; below 1 it is no norm and the surface has spikes, but it is star-like all the same.
        size: > 0.

    >>> lp_radius(1)(torch.tensor([0.6, 0.8])).item()
    0.714285...
    """
    check_positive("p", p)
    check_positive("size", size)
    return lambda u: size * u.abs().pow(p).sum(-1).pow(-1 / p)


def log_area(
    radius: Callable, theta: Float[Tensor, "*batch angles"]
) -> tuple[Float[Tensor, "*batch dim"], Float[Tensor, "*batch"]]:
    """Points r(u) u of the surface, and log of its area per volume of angles, log sqrt det of the Gram matrix, in O(n).

    Args:
        radius: r, from unit vectors (*batch, n) to (*batch,), > 0. How it goes on off the sphere does not matter.
        theta: one angle or more, finite; all but the last from 0 to pi, where no sine is negative.

    Raises:
        TypeError, ValueError: if `theta` is no such tensor, or `radius` returns another shape or values that are not > 0.

    Source: Negri, Aellen, Roth 2025 (arXiv 2406.09116), Theorem 1, brought from O(n^2) to O(n) by the orthogonality of
        spherical coordinates.
    """
    check_tensor("theta", theta, "(*batch, angles)")
    if theta.shape[-1] == 0 or (theta[..., :-1].sin() < 0).any():
        got = "no angles" if theta.shape[-1] == 0 else "an angle before the last that is outside of [0, pi]"
        raise ValueError(f"theta: got {got}, expected one angle or more, all but the last in [0, pi]")
    u = to_unit(theta)
    r, pull = torch.func.vjp(radius, u)
    if r.shape != u.shape[:-1] or not (r > 0).all():
        got = f"shape {tuple(r.shape)}" if r.shape != u.shape[:-1] else "values that are not positive"
        raise ValueError(f"radius: got {got}, expected numbers > 0 of shape {tuple(u.shape[:-1])}")
    (gradient,) = pull(torch.ones_like(r))
    along = gradient - (gradient * u).sum(-1, keepdim=True) * u
    stretch = (u.shape[-1] - 2) * r.log() + 0.5 * (r.square() + along.square().sum(-1)).log()
    return r.unsqueeze(-1) * u, log_sphere_volume(theta) + stretch


class StarLike(nn.Module):
    """Density on a star-like hypersurface with respect to its area: theta ~ flow, x = r(u(theta)) u(theta).

    Args:
        angles: flow of the n - 1 angles, such as ``Flow(Chain(AngleBox(n), ...), StandardNormal([n - 1]))``.
        radius: r, from unit vectors (*batch, n) to (*batch,); called with the context as second argument if there is one.

    >>> from refimpl.flows import StandardNormal
    >>> from refimpl.free_form.spherical import AngleBox
    >>> simplex = StarLike(Flow(AngleBox(3, positive=True), StandardNormal([2])), lp_radius(1))
    >>> torch.allclose(simplex.sample([4]).sum(-1), torch.ones(4))
    True
    """

    def __init__(self, angles: Flow, radius: Callable):
        super().__init__()
        if not isinstance(angles, Flow):
            raise TypeError(f"angles: got {type(angles).__name__}, expected a Flow of n - 1 angles")
        if not callable(radius):
            raise TypeError(f"radius: got {radius!r}, expected a function of unit vectors")
        self.angles, self.radius = angles, radius

    def given(self, context: Tensor | None) -> Callable:
        """r as a function of the unit vector alone."""
        return self.radius if context is None else lambda u: self.radius(u, context)

    def log_prob(
        self, x: Float[Tensor, "*batch dim"], context: Tensor | None = None, tolerance: float = 1e-3
    ) -> Float[Tensor, "*batch"]:
        """log-density in nats per area of the surface.

        Raises:
            TypeError, ValueError: if x is no finite floating-point tensor of one feature more than the flow has angles,
                the length of a point differs from that of the surface's point by the share `tolerance`, or a point lies
                outside or on the edge of the angles' range, such as that of ``AngleBox(n, positive=True)``.
        """
        check_tensor("x", x, f"(*batch, {self.angles.base.event_shape[0] + 1})")
        theta = to_angles(x)
        on, log_v = log_area(self.given(context), theta)
        off = ((x - on).norm(dim=-1) / on.norm(dim=-1)).max() if x.numel() else 0.0
        if not off <= tolerance:
            raise ValueError(f"x: a point is off the surface by {float(off):.2g} of its length, at most {tolerance:g}")
        log_p = self.angles.log_prob(theta, context)
        if not log_p.isfinite().all():
            raise ValueError("x: a point lies outside or on the edge of the angles' range, expected points inside")
        return log_p - log_v

    def sample_and_log_prob(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Points (*shape, n), or (*shape, *batch, n) with a context, and their log-density, both with gradients."""
        theta, log_p = self.angles.sample_and_log_prob(shape, context, generator)
        x, log_v = log_area(self.given(context), theta)
        return x, log_p - log_v

    def sample(
        self, shape: Sequence[int] = (), context: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """As `sample_and_log_prob`, without the density."""
        return self.sample_and_log_prob(shape, context, generator)[0]
