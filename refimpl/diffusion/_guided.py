"""What all guided samplers share: checks of their arguments, and the walk from noise to data."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import broadcasts, check_numbers, check_positive, check_tensor
from refimpl.data._random import draw
from refimpl.diffusion.measurement import Measurement
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.process import NoiseProcess
from refimpl.diffusion.steps import coefficients, walk

Number = float | int
Time = Tensor | float | int
State = Float[Tensor, "*batch dim"]


def check_problem(model: Any, measurement: Any, x: Any) -> None:
    """Raise TypeError or ValueError, naming the argument, unless these can be sampled together."""
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"model: got {type(model).__name__}, expected a DiffusionModel")
    if not isinstance(measurement, Measurement):
        raise TypeError(f"measurement: got {type(measurement).__name__}, expected a Measurement")
    check_tensor("x", x, "(*batch, dim)", some=True)
    batch, problems = x.shape[:-1], measurement.y.shape[:-1]
    if not broadcasts(problems, batch):
        expected = ", ".join(["*chains", *map(str, problems), "dim"])
        raise ValueError(
            f"x: got shape {tuple(x.shape)}, expected ({expected}) for y of shape {tuple(measurement.y.shape)}"
        )
    if measurement.y.dtype != x.dtype:
        raise TypeError(f"x: got {x.dtype}, expected {measurement.y.dtype} like y")


def check_not_negative(**settings: Any) -> None:
    """Raise ValueError naming the first that is not a finite number >= 0."""
    for name, value in settings.items():
        check_numbers(name, [value], low=0)


def bounded(x0: Tensor, clamp: Number | None) -> Tensor:
    """x0 clamped to [-clamp, clamp], if there is a bound."""
    if clamp is None:
        return x0
    check_positive("clamp", clamp)
    return x0.clamp(-clamp, clamp)


def levels(process: NoiseProcess, t: Time, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """a, b and b^2 / a, what a unit of score is worth in data; 0 where a = 0: no gradient passes the denoiser there."""
    a, b = coefficients(process, t, x)
    return a, b, b.square() * torch.where(a > 0, 1 / a, 0.0)


def towards(x0: Tensor, noise: Tensor, g: Tensor, b: Tensor, worth: Tensor) -> tuple[Tensor, Tensor]:
    """Both estimates after g = grad log p(y | x_t) was added to the score: Tweedie's formula."""
    return x0 + worth * g, noise - b * g


def pulled(
    model: DiffusionModel, x: Tensor, t: Time, energy: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_hat, noise, energy(x_hat), and its gradient in x_t, through the network; sample by sample."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        x0, noise = model.data_and_noise(x, t)
        value = energy(x0)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return x0.detach(), noise.detach(), value.detach(), gradient


def guided_walk(step: Callable, model, measurement, x, times, generator, return_path: bool) -> Tensor:
    """x carried through step(x, t, s, noise) for every pair of times."""
    check_problem(model, measurement, x)

    def fresh(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return step(x, t, s, draw(torch.randn, tuple(x.shape), x, generator)).detach()

    return walk(fresh, model, x.detach(), times, None, return_path)


def guided_sampler(step: Callable) -> Callable:
    """The sampler that repeats step(model, measurement, x, t, s, noise, **settings), which is its attribute `step`."""
    parameters = inspect.signature(step).parameters.values()
    own = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    takes_generator = any(p.name == "generator" for p in own)

    @functools.wraps(step)
    def sampler(model, measurement, x, times, *, generator=None, return_path=False, **settings):
        if takes_generator:
            settings["generator"] = generator
        repeated = functools.partial(step, model, measurement, **settings)
        return guided_walk(repeated, model, measurement, x, times, generator, return_path)

    ahead = list(inspect.signature(sampler, follow_wrapped=False).parameters.values())[:-1]
    sampler.__signature__ = inspect.Signature([*ahead, *(p for p in own if p.name != "generator")])
    del sampler.__wrapped__
    sampler.step = step
    return sampler
