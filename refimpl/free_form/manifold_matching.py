"""Riemannian flow matching: learn the velocity that carries base points along geodesics to data; sample by many steps.

The comparison for free-form flows on manifolds: its loss is a plain regression without any Jacobian, but a sample takes one
call of the network for each step of a solver, and a likelihood takes a divergence at each.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from refimpl._checks import check_sizes
from refimpl.autodiff import jacobian, jvp
from refimpl.flows.bases import Base
from refimpl.free_form.hyperbolic import PoincareBall
from refimpl.free_form.manifolds import Euclidean

__all__ = ["MatchingFlow"]


class MatchingFlow(nn.Module):
    """Density of the points that dx/dt = v(x, t), 0 <= t <= 1, carries from the base.

    Args:
        network: module called with points (*batch, ambient_dim) and times (*batch, 1); its output is projected onto the
            tangent spaces.
        base: density at t = 0; one with an attribute `manifold` gives the manifold as well.
        manifold: where; its embedding must be isometric, up to a constant.

    Raises:
        TypeError: if there is no manifold, or it is or has as a factor a PoincareBall, whose metric varies.

    Attributes:
        num_calls: how often the network has been called with a batch.

    Source: Chen and Lipman 2024 (arXiv 2302.03660), with geodesic distance as premetric.
    """

    def __init__(self, network: nn.Module, base: Base, manifold: Euclidean | None = None):
        super().__init__()
        self.network, self.base, self.manifold = network, base, manifold or getattr(base, "manifold", None)
        if not isinstance(self.manifold, Euclidean) or _varies(self.manifold):
            raise TypeError(
                f"manifold: got {self.manifold!r}, expected an isometrically embedded one such as Sphere(2)"
            )
        self.num_calls = 0

    def velocity(self, x: Float[Tensor, "*batch ambient"], t: float | Tensor) -> Float[Tensor, "*batch ambient"]:
        """v(x, t), tangent at x."""
        self.num_calls += 1
        t = torch.as_tensor(t, dtype=x.dtype, device=x.device).expand(*x.shape[:-1], 1)
        return self.manifold.tangent(x, self.network(x, t))

    def loss(self, x: Float[Tensor, "batch ambient"], generator: torch.Generator | None = None) -> Float[Tensor, ""]:
        """Mean of |v(x_t, t) - dx_t/dt|^2 on geodesics x_t from a base point to each x, t uniform."""
        start = self.base.sample(x.shape[:-1], generator)
        where = generator.device if generator else x.device
        t = torch.rand(*x.shape[:-1], 1, dtype=x.dtype, device=where, generator=generator).to(x.device)
        direction = self.manifold.log(start, x)
        x_t, wanted = jvp(lambda t: self.manifold.exp(start, t * direction), t, torch.ones_like(t))
        return (self.velocity(x_t, t) - wanted).square().sum(-1).mean()

    @torch.no_grad()
    def sample(
        self, shape: Sequence[int] = (), num_steps: int = 50, generator: torch.Generator | None = None
    ) -> Tensor:
        """Points (*shape, ambient_dim) by as many steps of Euler's rule with projection, one call of the network each."""
        check_sizes(num_steps=num_steps)
        x = self.base.sample(shape, generator)
        for k in range(num_steps):
            x = self.manifold.project(x + self.velocity(x, k / num_steps) / num_steps)
        return x

    @torch.no_grad()
    def log_prob(self, x: Float[Tensor, "*batch ambient"], num_steps: int = 25) -> Float[Tensor, "*batch"]:
        """log-density against Riemannian volume: back to the base by the midpoint rule, the divergence beside.

        Its error is that of the solver; the trace is exact, ambient_dim passes at each of 2 num_steps times.
        """
        check_sizes(num_steps=num_steps)
        self.manifold.check("x", x)
        total, h, project = x.new_zeros(x.shape[:-1]), 1 / num_steps, self.manifold.project
        for k in range(num_steps, 0, -1):
            middle, t = project(x - h / 2 * self.velocity(x, k * h)), (k - 0.5) * h
            frame = self.manifold.frame(middle)
            inner = frame.mT @ jacobian(lambda y, t=t: self.velocity(y, t), middle) @ frame
            total = total + h * inner.diagonal(dim1=-2, dim2=-1).sum(-1)
            x = project(x - h * self.velocity(middle, t))
        return self.base.log_prob(x) - total


def _varies(manifold: Euclidean) -> bool:
    """Whether the scale of the metric is another one from point to point, in any factor."""
    return isinstance(manifold, PoincareBall) or any(map(_varies, getattr(manifold, "factors", ())))
