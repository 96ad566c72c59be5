"""Inverse problems as optimisation: RED-diff moves an estimate of the data, D-Flow the noise that it is made from."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_positive, check_sizes
from refimpl.data._random import draw
from refimpl.diffusion._guided import check_not_negative, check_problem
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.samplers import ddim
from refimpl.diffusion.steps import check_times, coefficients

__all__ = ["d_flow", "red_diff", "red_diff_loss"]

Number = float | int


def red_diff_loss(
    model: DiffusionModel,
    measurement: Measurement,
    mu: Float[Tensor, "*batch dim"],
    t: Tensor | Number,
    noise: Float[Tensor, "*batch dim"],
    *,
    weight: Number = 0.25,
) -> Float[Tensor, "*batch"]:
    """|y - h(mu)|^2 / 2 + weight sigma <stop(noise_hat(a mu + b noise) - noise), mu>, sigma = b / a.

    Its gradient is that of the likelihood term plus a pull towards what the denoiser takes for clean. For data ~ N(m,
    C) the expected pull is weight b^2 S^-1 (mu - m), S = a^2 C + b^2 I, which vanishes at the mean. Sums over features,
    not means.

    Source: Mardani et al. 2023 (arXiv 2305.04391), Proposition 2 and Algorithm 1.
    """
    a, b = coefficients(model.process, t, mu)
    with torch.no_grad():
        off = model.noise(a * mu + b * noise, t) - noise
    sigma = torch.where(a > 0, b / a, 0.0)  # a flow's first time says nothing of the data
    return measurement.energy(mu) / 2 + weight * sigma * (off * mu).sum(-1)


def red_diff(
    model: DiffusionModel,
    measurement: Measurement,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    weight: Number = 0.25,
    lr: Number = 0.1,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "*path dim"]:
    """RED-diff: one estimate of the data, improved by one step of Adam at every noise level. n calls, no pullback.

    It approximates p(x_0 | y) by a point, and so has no spread but that of its noise.

    Args:
        model, measurement: the prior and what was seen.
        x: gives the shape; the estimate starts at `measurement.start`, and only if that is None at x_hat(x).
        times: n + 1 times from noise to data; the last is not used.
        weight: lambda, of the prior against |y - h|^2 / 2.
        lr: of Adam, with betas (0.9, 0.99), in units of the data.
        generator: of the noise.
        return_path: return all estimates.

    Source: Mardani et al. 2023 (arXiv 2305.04391), Algorithm 1.
    """
    check_problem(model, measurement, x)
    check_not_negative(weight=weight)
    check_positive("lr", lr)
    times = check_times(model, times)
    with torch.no_grad():
        start = model.data(x, times[0]) if measurement.start is None else measurement.start.expand(x.shape)
    mu = start.detach().clone().requires_grad_()
    descent, path = torch.optim.Adam([mu], lr=lr, betas=(0.9, 0.99)), [start]
    for t in times[:-1]:
        noise = draw(torch.randn, tuple(x.shape), x, generator)
        with torch.enable_grad():
            loss = red_diff_loss(model, measurement, mu, t, noise, weight=weight).sum()
        (mu.grad,) = torch.autograd.grad(loss, mu)
        descent.step()
        path.append(mu.detach().clone())
    return torch.stack(path) if return_path else path[-1]


def d_flow(
    model: DiffusionModel,
    measurement: Measurement,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    iterations: int = 20,
    lr: Number = 0.1,
    norm_weight: Number = 0.0,
    sampler: Callable = ddim,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "*path dim"]:
    """D-Flow: gradient descent on the initial noise z, through the whole deterministic sampler, from z = x.

    The cost is |y - h(x_0(z))|^2 / (2 std^2) + norm_weight (-log density of |z| for z ~ N(0, I)). Each iteration of
    Adam calls the network as often as the sampler and pulls back as often; one last run makes the samples.

    Args:
        model, measurement: the prior and what was seen.
        x: where z starts, at noise of the scale b of the first of the times.
        times: n + 1 times from noise to data.
        iterations: steps of Adam.
        lr: of Adam, in units of standard deviations of z.
        norm_weight: of the radius of z, which is nearly sqrt(dim) for a draw of the prior; 0 in the plainest form.
        sampler: deterministic function of (model, z, times), differentiable in z, such as `ddim` or `heun`.
        generator: not used; nothing is random but x.
        return_path: return (iterations + 1, *x.shape), the samples of every z.

    Source: Ben-Hamu et al. 2024 (arXiv 2402.14017), Algorithm 1 and Section 3.3.
    """
    check_problem(model, measurement, x)
    check_sizes(iterations=iterations)
    check_positive("lr", lr)
    check_not_negative(norm_weight=norm_weight)
    times = check_times(model, times)
    _, scale = coefficients(model.process, times[0], x)
    z = (x.detach() / scale).requires_grad_()
    descent, path = torch.optim.Adam([z], lr=lr), []
    for _ in range(iterations):
        with torch.enable_grad():
            x0 = sampler(model, scale * z, times)
            radius = z.norm(dim=-1)
            rare = radius.square() / 2 - (x.shape[-1] - 1) * radius.log()
            loss = (measurement.energy(x0) / (2 * measurement.std**2) + norm_weight * rare).sum()
        path.append(x0.detach())
        (z.grad,) = torch.autograd.grad(loss, z)
        descent.step()
    with torch.no_grad():
        path.append(sampler(model, scale * z, times))
    return torch.stack(path) if return_path else path[-1]
