"""Manifolds by their embedding: points are rows of ambient coordinates, and one object knows how to stay on them.

A method that wants to learn on a manifold needs three things of it: a projection of the surrounding space onto it, an
orthonormal basis of each tangent space, and, where the embedding is not isometric, the factor between its own volume and
that of the embedding. `Euclidean` gives the trivial answers; the others override what differs: `Sphere` and `Product` here, rotations
and hyperbolic space in modules of their own. All metrics but those of products are conformal to the embedding's,
|v|_x = exp(metric_log_scale(x) / dim) |v|.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from refimpl._checks import check_sizes
from refimpl.flows.bijection import check_shape

__all__ = ["Euclidean", "Product", "Sphere"]


class Euclidean:
    """R^dim, and the interface of every manifold. Points and vectors have shape (*batch, ambient_dim).

    Attributes:
        dim: dimension n of the manifold.
        ambient_dim: dimension D of the space that it lies in.
        volume: total Riemannian volume, inf if it has none.
    """

    def __init__(self, dim: int):
        check_sizes(dim=dim)
        self.dim = self.ambient_dim = dim
        self.volume = math.inf

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dim})"

    def project(self, y: Float[Tensor, "*batch ambient"]) -> Float[Tensor, "*batch ambient"]:
        """A point of the manifold for (almost) every y, itself where y lies on it; smooth near the manifold."""
        return y

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        """Orthogonal projection of vectors u, in the embedding's metric, onto the tangent spaces at x."""
        return u

    def frame(self, x: Tensor) -> Float[Tensor, "*batch ambient dim"]:
        """Basis of the tangent space at x, in columns, orthonormal in the embedding's metric."""
        return torch.eye(self.dim, dtype=x.dtype, device=x.device).expand(*x.shape, self.dim)

    def metric_log_scale(self, x: Tensor) -> Float[Tensor, "*batch"]:
        """Logarithm of Riemannian volume over the embedding's volume at x: 0 for isometric embeddings."""
        return x.new_zeros(x.shape[:-1])

    def unit_frame(self, x: Tensor) -> Float[Tensor, "*batch ambient dim"]:
        """As `frame`, but orthonormal in the Riemannian metric."""
        return self.frame(x) * (-self.metric_log_scale(x) / self.dim).exp()[..., None, None]

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """Where the geodesic from x with velocity v (an ambient, tangent vector) is after unit time."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity with which the shortest geodesic from x reaches y in unit time.

        Where there are several shortest ones, at antipodes of a sphere and at turns by pi, it is 0 and says nothing.
        """
        return y - x

    def distance(self, x: Tensor, y: Tensor) -> Float[Tensor, "*batch"]:
        """Length of the shortest geodesic."""
        return torch.linalg.vector_norm(self.radii(x, y), dim=-1)

    def radii(self, x: Tensor, y: Tensor) -> Float[Tensor, "*batch factors"]:
        """Distance in each factor of a manifold that is a product of equal ones; one factor if it is not."""
        return torch.linalg.vector_norm(y - x, dim=-1, keepdim=True)

    def uniform(
        self, shape: Sequence[int] = (), generator: torch.Generator | None = None, like: Tensor | None = None
    ) -> Tensor:
        """Points that are uniform by volume, shape (*shape, ambient_dim), dtype and device of `like`.

        Raises:
            ValueError: if the volume is infinite.
        """
        raise ValueError(f"uniform: {self!r} has infinite volume and no uniform distribution")

    def log_wrapped_normal(self, x: Tensor, mean: Tensor, std: float | Tensor) -> Float[Tensor, "*batch"]:
        """log-density at x, against Riemannian volume, of exp(mean, v) where v ~ N(0, std^2) in the tangent space.

        Several v may lead to x, one for each time that the geodesic goes round; each counts over the volume by which
        exp expands there.
        """
        radius = self.radii(mean, x)
        n = self.dim // radius.shape[-1]
        std = torch.as_tensor(std).to(x)[..., None, None]
        radius = radius.unsqueeze(-1) + self._turns(radius, std)  # (*batch, factors, images)
        normal = -0.5 * (radius / std).square() - n * (std * math.sqrt(2 * math.pi)).log()
        return torch.logsumexp(normal - self._log_exp_volume(radius, n), -1).sum(-1)

    def _turns(self, like: Tensor, std: Tensor) -> Tensor:
        """Lengths that the closed geodesics add, as many as normals of these widths reach."""
        return like.new_zeros(1)

    def _log_exp_volume(self, radius: Tensor, n: int) -> Tensor:
        """Log of the volume by which exp expands at this distance, in a factor of dimension n."""
        return torch.zeros_like(radius)

    def check(self, name: str, x: Tensor, tolerance: float = 1e-3, *, nan: bool = False) -> None:
        """Raise unless x is a floating-point tensor of points of this manifold, up to `tolerance` in each coordinate.

        With `nan`, rows that are not finite pass: what a training that diverges returns should stay NaN.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"{name}: got {getattr(x, 'dtype', type(x).__name__)}, expected a floating-point tensor")
        if x.shape[-1:] != (self.ambient_dim,):
            raise ValueError(f"{name}: got shape {tuple(x.shape)}, expected (*batch, {self.ambient_dim})")
        x = x.detach()
        x = x[x.isfinite().all(-1)] if nan else x
        off = (self.project(x) - x).abs().amax() if x.numel() else x.new_zeros(())
        if not off <= tolerance:
            raise ValueError(f"{name}: has points that are off {self!r} by {off:.2g}, expected at most {tolerance:g}")


def normal_like(shape: Sequence[int], size: int, generator: torch.Generator | None, like: Tensor | None) -> Tensor:
    """Standard normal, shape (*shape, size), dtype and device of `like`."""
    check_shape("shape", shape)
    like = torch.empty(0) if like is None else like
    where = generator.device if generator else like.device
    return torch.randn(*shape, size, dtype=like.dtype, device=where, generator=generator).to(like.device)


def full_turns(like: Tensor, std: Tensor) -> Tensor:
    """Multiples of 2 pi, as far as eight standard deviations of the widest normal reach."""
    reach = 8 * std.max().item() if std.numel() else 0.0
    last = max(4, math.ceil(reach / (2 * math.pi) + 0.5))
    return 2 * math.pi * torch.arange(-last, last + 1, dtype=like.dtype, device=like.device)


class Sphere(Euclidean):
    """The unit sphere S^dim in R^(dim + 1), or the product of several: `Sphere(1, copies=n)` is the flat torus T^n.

    >>> torus = Sphere(1, copies=2)
    >>> torus.project(torch.tensor([3.0, 0.0, 0.0, 5.0]))
    tensor([1., 0., 0., 1.])
    >>> round(torus.volume / math.pi**2, 6)
    4.0
    """

    def __init__(self, dim: int, copies: int = 1):
        check_sizes(dim=dim, copies=copies)
        self.dim, self.ambient_dim, self.copies = dim * copies, (dim + 1) * copies, copies
        self.volume = (2 * math.pi ** ((dim + 1) / 2) / math.gamma((dim + 1) / 2)) ** copies

    def __repr__(self) -> str:
        return f"Sphere({self.dim // self.copies}" + (f", copies={self.copies})" if self.copies > 1 else ")")

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.copies, -1))

    def project(self, y: Tensor) -> Tensor:
        return normalize(self._split(y), dim=-1, eps=torch.finfo(y.dtype).tiny).flatten(-2)

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        x, u = self._split(x), self._split(u)
        return (u - (u * x).sum(-1, keepdim=True) * x).flatten(-2)

    def frame(self, x: Tensor) -> Tensor:
        # Householder: the reflection that takes the last axis to -sign(x_D) x takes the other axes to tangent vectors.
        x = self._split(x)
        d = x.shape[-1]
        axis = torch.eye(d, dtype=x.dtype, device=x.device)
        v = x + torch.where(x[..., -1:] < 0, -1.0, 1.0) * axis[-1]
        turned = axis - 2 * v.unsqueeze(-1) * (v / v.square().sum(-1, keepdim=True)).unsqueeze(-2)
        columns = turned[..., :-1]  # (*batch, copies, d, d - 1)
        if self.copies == 1:
            return columns.squeeze(-3)
        blocks = columns.unsqueeze(-2) * torch.eye(self.copies, dtype=x.dtype, device=x.device)[:, None, :, None]
        return blocks.flatten(-2).flatten(-3, -2)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        x, v = self._split(x), self._split(v)
        length = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        return (x * length.cos() + v * torch.sinc(length / math.pi)).flatten(-2)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        along = self._split(self.tangent(x, y))
        length = torch.linalg.vector_norm(along, dim=-1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
        return (along * (self.radii(x, y).unsqueeze(-1) / length)).flatten(-2)

    def radii(self, x: Tensor, y: Tensor) -> Tensor:
        # The arc tangent is exact at all distances; an arc cosine of the product loses half of the digits near 0.
        across = torch.linalg.vector_norm(self._split(self.tangent(x, y)), dim=-1)
        return torch.atan2(across, (self._split(x) * self._split(y)).sum(-1))

    def uniform(self, shape=(), generator=None, like=None) -> Tensor:
        return self.project(normal_like(shape, self.ambient_dim, generator, like))

    def _turns(self, like: Tensor, std: Tensor) -> Tensor:
        return full_turns(like, std)

    def _log_exp_volume(self, radius: Tensor, n: int) -> Tensor:
        return (n - 1) * torch.sinc(radius / math.pi).abs().clamp_min(torch.finfo(radius.dtype).tiny).log()


class Product(Euclidean):
    """Product of manifolds, with their coordinates one after the other.

    >>> from refimpl.free_form.rotations import SO3
    >>> Product(SO3(), Euclidean(3)).dim  # poses of a rigid body
    6
    """

    def __init__(self, *factors: Euclidean):
        if not factors or not all(isinstance(f, Euclidean) for f in factors):
            raise TypeError(f"factors: got {factors!r}, expected one or more manifolds")
        self.factors = factors
        self.dim, self.ambient_dim = sum(f.dim for f in factors), sum(f.ambient_dim for f in factors)
        self.volume = math.prod(f.volume for f in factors)

    def __repr__(self) -> str:
        return f"Product({', '.join(map(repr, self.factors))})"

    def _each(self, method: str, *points: Tensor) -> list[Tensor]:
        parts = [p.split([f.ambient_dim for f in self.factors], -1) for p in points]
        return [getattr(f, method)(*part) for f, *part in zip(self.factors, *parts, strict=True)]

    def project(self, y: Tensor) -> Tensor:
        return torch.cat(self._each("project", y), -1)

    def check(self, name: str, x: Tensor, tolerance: float = 1e-3, *, nan: bool = False) -> None:
        super().check(name, x, tolerance, nan=nan)
        for factor, part in zip(self.factors, x.split([f.ambient_dim for f in self.factors], -1), strict=True):
            factor.check(name, part, tolerance, nan=nan)

    def tangent(self, x: Tensor, u: Tensor) -> Tensor:
        return torch.cat(self._each("tangent", x, u), -1)

    def frame(self, x: Tensor) -> Tensor:
        return self._diagonal(self._each("frame", x))

    def unit_frame(self, x: Tensor) -> Tensor:
        return self._diagonal(self._each("unit_frame", x))

    def _diagonal(self, blocks: list[Tensor]) -> Tensor:
        rows, before = [], 0
        for block in blocks:
            width = block.shape[-1]
            rows.append(torch.nn.functional.pad(block, (before, self.dim - before - width)))
            before += width
        return torch.cat(rows, -2)

    def metric_log_scale(self, x: Tensor) -> Tensor:
        return sum(self._each("metric_log_scale", x))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.cat(self._each("exp", x, v), -1)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat(self._each("log", x, y), -1)

    def radii(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat(self._each("radii", x, y), -1)

    def uniform(self, shape=(), generator=None, like=None) -> Tensor:
        return torch.cat([f.uniform(shape, generator, like) for f in self.factors], -1)

    def log_wrapped_normal(self, x: Tensor, mean: Tensor, std: float | Tensor) -> Tensor:
        points = [p.split([f.ambient_dim for f in self.factors], -1) for p in (x, mean)]
        return sum(f.log_wrapped_normal(*part, std) for f, *part in zip(self.factors, *points, strict=True))
