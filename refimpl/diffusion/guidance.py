"""Samples of the posterior p(x_0 | y) from a model of the prior: guidance by a gradient at every step.

Bayes' rule for states: grad log p(x_t | y) = score(x_t) + grad log p(y | x_t). The second term is exact for mixtures of
Gaussians only; the methods here differ in what they put in its place. All of them move along
x_hat(x_t) = E[x_0 | x_t], which the network gives, and ask how well *it* explains the measurement.

A sampler is called as sampler(model, measurement, x, times, *, generator=None, return_path=False, **settings): x are
initial states (*chains, *problems, dim), times run from noise to data, and the result are the final states (the whole
path (n + 1, *x.shape) on demand). Every chain is guided by itself: nothing is averaged over the batch. Each is written
as its step, from t to s with given noise; the decorator makes the sampler of it, and keeps it as `sampler.step`.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from refimpl._checks import broadcasts, check_sizes
from refimpl.data._random import draw
from refimpl.data.normal_mixture import NormalMixture
from refimpl.diffusion._guided import (
    Number,
    State,
    Time,
    bounded,
    check_not_negative,
    check_problem,
    guided_sampler,
    pulled,
)
from refimpl.diffusion.control import ndtm
from refimpl.diffusion.label_guidance import classifier_guided
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.moment_guidance import dps_bayes, pigdm, tmpd
from refimpl.diffusion.optimised import d_flow, red_diff
from refimpl.diffusion.process import NoiseProcess
from refimpl.diffusion.steps import coefficients, ddim_step

__all__ = [
    "METHODS",
    "classifier",
    "dps",
    "exact_log_likelihood",
    "freedom",
    "guided_start",
    "mpgd",
    "sample_posterior",
    "unguided",
]


@guided_sampler
def unguided(
    model: DiffusionModel, measurement: Measurement, x: State, t: Time, s: Time, noise: State, *, eta: Number = 1.0
) -> State:
    """One DDIM step that does not look at the measurement: samples of the prior. Calls the network once."""
    return ddim_step(*model.data_and_noise(x, t), model.process, t, s, eta, noise)


@guided_sampler
def classifier(
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    t: Time,
    s: Time,
    noise: State,
    *,
    log_likelihood: Callable,
    scale: Number = 1.0,
    eta: Number = 1.0,
) -> State:
    """Guidance by a known or learned log p(y | x_t): exact for the exact one and scale 1. One call, no pullback.

    Args:
        log_likelihood: function of (x, t), t of shape (*batch, 1), returning (*batch,), up to a constant; such as that
            of `exact_log_likelihood`, or of a classifier that was trained on noisy states.
        scale: 1 for Bayes' rule; above, samples are sharper, but of no law that could be named.
        eta: stochasticity, 0 (DDIM) to 1 (ancestral).

    Source: Dhariwal and Nichol 2021 (arXiv 2105.05233), Algorithm 2; Song et al. 2021 (arXiv 2011.13456), Eq. (14).
    """
    guided = classifier_guided(model, log_likelihood, scale)
    return unguided.step(guided, measurement, x, t, s, noise, eta=eta)


@guided_sampler
def dps(
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    t: Time,
    s: Time,
    noise: State,
    *,
    scale: Number = 1.0,
    eta: Number = 1.0,
    clamp: Number | None = None,
) -> State:
    """Diffusion posterior sampling: a step of the sampler, then x_s -= scale grad_{x_t} |y - h(x_hat)|.

    The norm is not squared, and is taken for every chain alone. One call and one pullback.

    Args:
        scale: zeta, in units of x per unit of y.
        eta: stochasticity, 0 (DDIM) to 1 (ancestral, as published).
        clamp: bound of |x_hat| in the step (the gradient is that of x_hat before).

    Source: Chung et al. 2023 (arXiv 2209.14687), Algorithm 1.
    """
    check_not_negative(scale=scale)
    x0, n, energy, gradient = pulled(model, x, t, measurement.energy)
    norm = energy.sqrt().clamp_min(torch.finfo(x.dtype).tiny).unsqueeze(-1)
    return ddim_step(bounded(x0, clamp), n, model.process, t, s, eta, noise) - scale * gradient / (2 * norm)


@guided_sampler
def mpgd(
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    t: Time,
    s: Time,
    noise: State,
    *,
    scale: Number = 0.3,
    eta: Number = 1.0,
    clamp: Number | None = None,
) -> State:
    """Manifold preserving guidance without a projection: x_hat -= scale grad |y - h(x_hat)|^2, the noise stays.

    The gradient is taken in x_hat, so that the network is never differentiated: one call, no pullback.

    Args:
        scale: step, in squared units of x per squared unit of y; below 1 / |H|^2 for a linear operator, or it diverges.
        clamp: bound of |x_hat| after the step.

    Source: He et al. 2023 (arXiv 2311.16424), Algorithm 1; the step's size is constant here.
    """
    check_not_negative(scale=scale)
    with torch.no_grad():
        x0, n = model.data_and_noise(x, t)
    with torch.enable_grad():
        at = x0.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(measurement.energy(at).sum(), at)
    return ddim_step(bounded(x0 - scale * gradient, clamp), n, model.process, t, s, eta, noise)


@guided_sampler
def freedom(
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    t: Time,
    s: Time,
    noise: State,
    *,
    scale: Number = 0.1,
    repeats: int = 2,
    eta: Number = 1.0,
    generator: torch.Generator | None = None,
) -> State:
    """FreeDoM: x_s -= scale a grad_{x_t} |y - h(x_hat)|^2, and time travel: noise x_s back to t and repeat.

    `repeats` calls and pullbacks; the noise of the repeats is drawn from `generator`, which is the sampler's.

    Source: Yu et al. 2023 (arXiv 2303.09833), Algorithm 2; the energy is the measurement's.
    """
    check_not_negative(scale=scale)
    check_sizes(repeats=repeats)
    (a, b), (a_s, b_s) = (coefficients(model.process, time, x) for time in (t, s))
    for left in reversed(range(repeats)):
        x0, n, _, gradient = pulled(model, x, t, measurement.energy)
        x = ddim_step(x0, n, model.process, t, s, eta, noise) - scale * a * gradient
        if left:
            back, noise = (draw(torch.randn, tuple(x.shape), x, generator) for _ in range(2))
            x = a / a_s * x + (b.square() - (a / a_s * b_s).square()).clamp_min(0).sqrt() * back
    return x


METHODS = {"unguided": unguided, "exact": classifier, "classifier": classifier, "dps": dps, "dps_bayes": dps_bayes}
METHODS |= {"pigdm": pigdm, "tmpd": tmpd, "mpgd": mpgd, "freedom": freedom}
METHODS |= {"red_diff": red_diff, "d_flow": d_flow, "ndtm": ndtm}


def sample_posterior(
    name: str,
    model: DiffusionModel,
    measurement: Measurement,
    x: State,
    times: Tensor | Sequence[Number],
    **settings,
) -> Tensor:
    """Samples by one of `METHODS`, with its settings; "exact" is "classifier" with the exact log-likelihood.

    Raises:
        ValueError, TypeError: if there is no such method, it has no such setting, or the arguments do not fit.
    """
    if name not in METHODS:
        raise ValueError(f"name: got {name!r}, expected one of {', '.join(METHODS)}")
    check_problem(model, measurement, x)
    if METHODS[name] is classifier and "log_likelihood" not in settings:
        raise TypeError(f"log_likelihood: needed by {name!r}; the exact one is exact_log_likelihood(prior, ...)")
    return METHODS[name](model, measurement, x, times, **settings)


def exact_log_likelihood(prior: NormalMixture, posterior: NormalMixture, process: NoiseProcess) -> Callable:
    """log p(y | x_t) - log p(y) as a function of (x, t): log p_t(x | y) - log p_t(x), by Bayes' rule.

    Args:
        prior: distribution of x_0.
        posterior: that of x_0 given y, such as `prior.condition(matrix, y, std)`.
        process: gives a and b.

    >>> from refimpl.diffusion.process import EDM
    >>> p = NormalMixture(torch.zeros(1, 1), torch.ones(1, 1, 1))
    >>> exact_log_likelihood(p, p, EDM())(torch.ones(5, 1), 0.3)
    tensor([0., 0., 0., 0., 0.])
    """

    def log_likelihood(x: Tensor, t: Time) -> Tensor:
        a, b = coefficients(process, t, x)
        return posterior.log_prob(x, a, b) - prior.log_prob(x, a, b)

    return log_likelihood


def guided_start(
    measurement: Measurement,
    process: NoiseProcess,
    t: Time,
    shape: Sequence[int],
    generator: torch.Generator | None = None,
) -> State:
    """a start + b noise at time t: the measurement's rough inverse, noised, to begin late from.

    Args:
        measurement: its `start`, (*problems, dim), is broadcast.
        process: gives a and b.
        t: first of the times of the sampler.
        shape: (*chains, *problems, dim).

    Raises:
        ValueError: if the measurement has no start.

    Source: Meng et al. 2022 (SDEdit, arXiv 2108.01073), Section 3.
    """
    if measurement.start is None:
        raise ValueError("measurement: has no start; give Measurement(..., start=...) a rough inverse of y")
    shape, start = tuple(shape), tuple(measurement.start.shape)
    if len(shape) < 1 or shape[-1] != start[-1] or not broadcasts(start, shape):
        raise ValueError(f"shape: got {shape}, expected (*chains, *problems, dim) to fit the start's {start}")
    a, b = coefficients(process, t, measurement.start)
    return a * measurement.start + b * draw(torch.randn, shape, measurement.start, generator)
