"""Stochastic interpolants: x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) w between two samples, neither need be noise.

Two regressions learn everything: the velocity b = E[dx_t/dt | x_t] and the denoiser eta = E[w | x_t], whose score is
s = -eta / gamma. Then dX = (b + epsilon s) dt + sqrt(2 epsilon) dW has the marginals of x_t for *every* epsilon >= 0:
the ODE is one of a family.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes, check_tensor
from refimpl.data._random import draw

__all__ = ["Interpolant", "interpolant_losses", "interpolant_sde"]


class Interpolant:
    """x_t = (1 - t) x_0 + t x_1 + gamma(t) w, w ~ N(0, I), gamma = sqrt(scale t (1 - t)): a bridge, exact at both ends.

    Subclasses may replace `coefficients` and `rates`.

    Args:
        scale: gamma^2 is a quarter of it half-way, in squared units of the data.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (arXiv 2303.08797), Section 2.1.

    >>> path = Interpolant()
    >>> path.state(torch.zeros(1), torch.ones(1), torch.ones(1), torch.tensor(0.5)).item()
    1.2071068286895752
    """

    def __init__(self, scale: float | int = 2.0):
        check_positive("scale", scale, "squared units of the data")
        self.scale = scale

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, beta and gamma, in the shape of t."""
        return 1 - t, t, (self.scale * t * (1 - t)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Their derivatives; that of gamma is infinite at both ends."""
        return -torch.ones_like(t), torch.ones_like(t), 0.5 * self.scale * (1 - 2 * t) / self.coefficients(t)[2]

    def state(self, x0: Tensor, x1: Tensor, w: Tensor, t: Tensor) -> Tensor:
        """x_t for points and w of shape (*batch, dim) and t of shape () or (*batch, 1)."""
        return sum(c * part for c, part in zip(self.coefficients(t), (x0, x1, w), strict=True))

    def velocity(self, x0: Tensor, x1: Tensor, w: Tensor, t: Tensor) -> Tensor:
        """dx_t/dt at fixed x_0, x_1, w."""
        return sum(c * part for c, part in zip(self.rates(t), (x0, x1, w), strict=True))

    def score(self, denoiser: Callable, margin: float | int = 1e-3) -> Callable:
        """The score -eta(x, t) / gamma(t) as a function of (x, t), t kept `margin` away from 0 and 1."""

        def score(x: Tensor, t: Tensor) -> Tensor:
            t = t.clamp(margin, 1 - margin)
            return -denoiser(x, t) / self.coefficients(t)[2]

        return score


def interpolant_losses(
    velocity: Callable,
    denoiser: Callable,
    x0: Float[Tensor, "n dim"],
    x1: Float[Tensor, "n dim"],
    path: Interpolant,
    *,
    margin: float | int = 1e-3,
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Losses of b and eta: mean over samples and features of |b|^2 - 2 b dx_t/dt, and of |eta|^2 - 2 eta w.

    They are the mean squared errors up to a constant, which is dropped because that of b is infinite: dgamma/dt is, at
    the ends. Each w comes with -w, at which the large parts of the two targets nearly cancel.

    Args:
        velocity, denoiser: b and eta, functions of (x, t) with t of shape (n, 1), returning the shape of x.
        x0, x1: pairs from the two samples, in any coupling; both ends of the path.
        path: the interpolant.
        margin: times are uniform in [margin, 1 - margin].
        generator: of times and w.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (arXiv 2303.08797), Section 2.2, and Section 6.1 on pairs +-w.
    """
    check_tensor("x0", x0, "(n, dim)", some=True)
    check_tensor("x1", x1, f"({len(x0)}, {x0.shape[-1]})", x0)
    check_numbers("margin", [margin], low=1e-9, high=0.5)
    t = margin + (1 - 2 * margin) * draw(torch.rand, (len(x0), 1), x0, generator)
    w = draw(torch.randn, tuple(x0.shape), x0, generator)
    t, x0, x1, w = torch.cat([t, t]), torch.cat([x0, x0]), torch.cat([x1, x1]), torch.cat([w, -w])
    x = path.state(x0, x1, w, t)
    b, eta = velocity(x, t), denoiser(x, t)
    _check_outputs(x, velocity=b, denoiser=eta)
    return (b * (b - 2 * path.velocity(x0, x1, w, t))).mean(), (eta * (eta - 2 * w)).mean()


def _check_outputs(x: Tensor, **outputs: Tensor) -> None:
    for name, out in outputs.items():
        if out.shape != x.shape:
            raise ValueError(f"{name}: returned {tuple(out.shape)}, expected the shape of x, {tuple(x.shape)}")


def interpolant_sde(
    velocity: Callable,
    score: Callable,
    x: Float[Tensor, "*batch dim"],
    num_steps: int,
    epsilon: float | int = 0.0,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "*batch dim"]:
    """From x_0 at t = 0 to t = 1 by Euler-Maruyama steps of dX = (b + epsilon s) dt + sqrt(2 epsilon) dW.

    Args:
        velocity, score: b and s, functions of (x, t) with t of shape (*batch, 1). They are asked in the middle of each
            step, never at the ends, where dgamma/dt and 1 / gamma are infinite.
        x: sample of the first law.
        num_steps: number of even steps.
        epsilon: half the rate of the noise's variance, in squared units of x per unit of time; 0 for the ODE.
        generator: of the noise.

    Source: Albergo, Boffi, Vanden-Eijnden 2023 (arXiv 2303.08797), Section 2.3.

    >>> still = lambda x, t: torch.zeros_like(x)
    >>> interpolant_sde(still, still, torch.ones(3, 1), num_steps=2).flatten()
    tensor([1., 1., 1.])
    """
    check_tensor("x", x, "(*batch, dim)")
    check_sizes(num_steps=num_steps)
    check_numbers("epsilon", [epsilon], low=0)
    dt = 1 / num_steps
    for i in range(num_steps):
        t = x.new_full((*x.shape[:-1], 1), (i + 0.5) * dt)
        drift = velocity(x, t)
        _check_outputs(x, velocity=drift)
        if epsilon:
            s = score(x, t)
            _check_outputs(x, score=s)
            drift = drift + epsilon * s
        x = x + dt * drift
        if epsilon:
            x = x + math.sqrt(2 * epsilon * dt) * draw(torch.randn, tuple(x.shape), x, generator)
    return x
