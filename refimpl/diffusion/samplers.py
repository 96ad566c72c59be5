"""Samplers: from noise to data along the probability-flow ODE, or along SDEs with the same marginals.

All take a model, a state, and times from noise to data (such as `process.times(n)`), and know of the process only a, b and
their rates. The network is never asked at the data's end: the step to `process.data_time` is DDIM's for all of them, which
goes to the estimate of the data where no noise is left. Gradients are recorded if x (or the context) requires them, so that
sampling from a trained network needs no `torch.no_grad()`.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_tensor
from refimpl.data._random import draw
from refimpl.diffusion.model import DiffusionModel, convert, exact_model
from refimpl.diffusion.steps import (
    check_times,
    coefficients,
    ddim_mean,
    ddim_step,
    last_step,
    recording,
    walk,
)

__all__ = ["ancestral", "ddim", "ddim_step", "euler", "exact_model", "heun", "integrate"]

Number = float | int
SOLVERS = (
    "dopri5",
    "dopri8",
    "bosh3",
    "euler",
    "midpoint",
    "heun2",
    "rk4",
)  # those of torchdiffeq that `integrate` takes


def ddim(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    eta: Number = 0.0,
    clamp: Number | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "..."]:
    """Steps of `ddim_step`, one network evaluation each. With eta = 0 this is Euler's method for x / a against b / a.

    Args:
        model: network and process.
        x: state at times[0], such as `process.initial(shape)`.
        times: n + 1 times from noise to data.
        eta: fresh noise, from 0 (none, the ODE) to 1 (ancestral sampling).
        clamp: if given, estimates of the data are clamped to [-clamp, clamp], and those of the noise are made to fit.
        context: third argument of the network.
        generator: of the fresh noise.
        return_path: return all states, shape (n + 1, *batch, dim), instead of the last.

    Source: Song, Meng, Ermon 2021 (arXiv 2010.02502), Eq. (12).

    >>> from refimpl.data import NormalMixture
    >>> from refimpl.diffusion.process import EDM
    >>> model = exact_model(NormalMixture(torch.tensor([[1.0]]), torch.full((1, 1, 1), 0.01)), EDM())
    >>> ddim(model, torch.tensor([[1.0], [81.0]]), EDM().times(10))
    tensor([[1.0000],
            [1.0674]])
    """

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        mean, std = ddim_mean(*_estimates(model, x, t, clamp, context), model.process, t, s, eta)
        return mean + std * draw(torch.randn, tuple(x.shape), x, generator) if eta else mean

    return walk(step, model, x, times, context, return_path)


def ancestral(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    variance: str = "small",
    clamp: Number | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "..."]:
    """DDPM's sampler: the mean of q(x_s | x_t, x_0) at the estimate of x_0, plus noise.

    Args:
        variance: of the noise; "small", that of the posterior, right for data of no variance (the same as DDIM with
            eta = 1), or "large", that of the chain's own step from s to t, right for data ~ N(0, I). No noise is added
            where none is left.

    The other arguments are those of `ddim`.

    Source: Ho, Jain, Abbeel 2020 (arXiv 2006.11239), Algorithm 2 and Section 3.2.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"variance: got {variance!r}, expected 'small' or 'large'")

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        mean, std = ddim_mean(*_estimates(model, x, t, clamp, context), model.process, t, s, 1.0)
        if variance == "large":
            (a_t, b_t), (a_s, b_s) = (coefficients(model.process, time, x) for time in (t, s))
            std = (b_t.square() - (a_t / a_s * b_s).square()).sqrt() * (b_s > 0)
        return mean + std * draw(torch.randn, tuple(x.shape), x, generator)

    return walk(step, model, x, times, context, return_path)


def euler(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    stochasticity: Number = 0.0,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "..."]:
    """Euler's method in time for a family of SDEs that all have the marginals of the process.

    With lambda = `stochasticity` and h = |s - t|, x_s = x_t + (s - t) u + h lambda^2 g^2 / 2 score + lambda g sqrt(h) noise,
    where u is the velocity of the probability-flow ODE (lambda = 0); lambda = 1 is the reverse of the process's own SDE.
    Where the process holds no data yet (a = 0), g is infinite and the step is made without noise.

    Args:
        stochasticity: lambda >= 0.

    The other arguments are those of `ddim`.

    Source: Song et al. 2021 (arXiv 2011.13456), Eq. (6) and (13); for lambda, Karras et al. 2022 (arXiv 2206.00364), Eq. (6).
    """
    check_numbers("stochasticity", [stochasticity], low=0)

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        if s == model.process.data_time:
            return last_step(model, x, t, s, context)
        own = model(x, t, None, context)
        velocity, score = (
            convert(own, x, t, model.process, source=model.predicts, target=kind) for kind in ("velocity", "score")
        )
        moved = x + (s - t) * velocity
        if not stochasticity or model.process.coefficients(t)[0] == 0:
            return moved
        spread = stochasticity**2 * model.process.diffusion_squared(t) * (s - t).abs()
        return moved + spread / 2 * score + spread.sqrt() * draw(torch.randn, tuple(x.shape), x, generator)

    return walk(step, model, x, times, context, return_path)


def heun(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    churn: Number = 0.0,
    churn_range: tuple[Number, Number] = (0.0, math.inf),
    churn_noise: Number = 1.0,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
    return_path: bool = False,
) -> Float[Tensor, "..."]:
    """EDM's sampler: Heun's second-order method for x / a against sigma = b / a; n steps ask the network 2n - 1 times.

    Each step may first raise the noise from sigma to (1 + gamma) sigma with gamma = min(churn / n, sqrt(2) - 1).

    Args:
        churn: S_churn, at least 0; with 0 nothing is random.
        churn_range: S_min and S_max, the levels sigma between which noise is added.
        churn_noise: S_noise, the standard deviation of added noise relative to what it should be.

    The other arguments are those of `ddim`.

    Raises:
        ValueError: also if a = 0 at times[0], as for a flow that starts from pure noise: see `integrate`.

    Source: Karras et al. 2022 (arXiv 2206.00364), Algorithm 2, here for any a and b.
    """
    check_numbers("churn", [churn], low=0)
    check_positive("churn_noise", churn_noise)
    if not isinstance(churn_range, Sequence) or len(churn_range) != 2 or not churn_range[0] <= churn_range[1]:
        raise ValueError(f"churn_range: got {churn_range!r}, expected two numbers, the lower one first")
    low, high = churn_range
    times = check_times(model, times)
    process, gamma = model.process, min(churn / (len(times) - 1), math.sqrt(2) - 1)
    if process.coefficients(times[0])[0] == 0:
        raise ValueError(
            f"times: start at {times[0]:g}, where a = 0 and b / a is infinite; expected a later start,"
            " or integrate(..., method='heun2')"
        )

    def step(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (a_t, b_t), (a_s, b_s) = process.coefficients(t), process.coefficients(s)
        scaled, sigma, sigma_s = x / a_t, b_t / a_t, b_s / a_s
        if gamma and low <= sigma <= high:
            t = process.time_of((1 + gamma) * sigma)
            raised = process.sigma(t)
            added = churn_noise * (raised.square() - sigma.square()).clamp_min(0).sqrt()
            scaled = scaled + added * draw(torch.randn, tuple(x.shape), x, generator)
            sigma = raised
        slope = model.noise(process.coefficients(t)[0] * scaled, t, context)
        reached = scaled + (sigma_s - sigma) * slope
        if s != process.data_time:
            slope = (slope + model.noise(a_s * reached, s, context)) / 2
            reached = scaled + (sigma_s - sigma) * slope
        return a_s * reached

    return walk(step, model, x, times, context, return_path)


def integrate(
    model: DiffusionModel,
    x: Float[Tensor, "*batch dim"],
    times: Tensor | Sequence[Number],
    *,
    method: str = "dopri5",
    tolerance: Number = 1e-5,
    context: Tensor | None = None,
    return_path: bool = False,
) -> Float[Tensor, "..."]:
    """The probability-flow ODE in time by a solver of torchdiffeq, up to the last time before the data's end.

    The step from there to the end is a first-order one, so that the result is only as accurate as that step is short.

    Args:
        method: "dopri5", "dopri8" and "bosh3" choose their own steps; "euler", "midpoint", "heun2" and "rk4" step from
            one of `times` to the next.
        tolerance: relative and absolute, of the adaptive solvers.

    The other arguments are those of `ddim`.

    Raises:
        ValueError: if the method is unknown, or if there is nothing between times[0] and the data's end.
    """
    from torchdiffeq import odeint

    if method not in SOLVERS:
        raise ValueError(f"method: got {method!r}, expected one of {', '.join(SOLVERS)}")
    check_positive("tolerance", tolerance)
    times = check_times(model, times)
    inner = times[:-1] if times[-1] == model.process.data_time else times
    if len(inner) < 2:
        raise ValueError(f"times: got {times.tolist()}, expected at least one between the first and the data's end")
    check_tensor("x", x, "(*batch, dim)")
    with recording(x, context):
        path = odeint(
            lambda t, x: model.velocity(x, t, context),
            x,
            inner.to(x.device),
            rtol=tolerance,
            atol=tolerance,
            method=method,
        )
        if len(inner) < len(times):
            path = torch.cat([path, last_step(model, path[-1], *times[-2:], context)[None]])
    return path if return_path else path[-1]


def _estimates(model: DiffusionModel, x: Tensor, t: Tensor, clamp: Number | None, context: Tensor | None) -> tuple:
    """Data and noise at t."""
    if clamp is None:
        return model.data_and_noise(x, t, context)
    check_positive("clamp", clamp)
    x0 = model.data(x, t, context).clamp(-clamp, clamp)
    return x0, convert(x0, x, t, model.process, source="data", target="noise")
