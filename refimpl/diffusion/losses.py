"""Denoising losses: regress what the network predicts on what the state was made of, at random times.

Noise, score, v, velocity and data losses have the same minimum, the conditional expectation given x_t, and differ in how
they weigh the times. With kind="velocity" and given pairs this is conditional flow matching.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_tensor
from refimpl.data._random import draw
from refimpl.diffusion.model import DiffusionModel, check_process, target_of
from refimpl.diffusion.process import DDPM, EDM, NoiseProcess

__all__ = ["denoising_loss", "lognormal_times", "uniform_times"]


def denoising_loss(
    model: DiffusionModel,
    x0: Float[Tensor, "*batch dim"],
    *,
    kind: str | None = None,
    draw_times: Callable | None = None,
    weight: Callable | None = None,
    noise: Float[Tensor, "*batch dim"] | None = None,
    context: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, ""]:
    """Mean over samples of the mean over features of weight(t) (prediction - target)^2, one time a sample.

    Its minimum is not zero but the conditional variance of the target given x_t.

    Args:
        model: network and process.
        x0: data.
        kind: what is compared, one of `refimpl.diffusion.model.KINDS`; what the network predicts if None.
        draw_times: called as draw_times(n, like=x0, generator=generator), returns times (n, 1), such as `uniform_times`
            and `lognormal_times` make; `uniform_times(model.process)` if None.
        weight: function of times (*batch, 1) that returns (*batch, 1); 1 if None.
        noise: the noise that goes with each x0, if it is not to be drawn independently.
        context: third argument of the network.
        generator: of times and noise.

    Source: Ho, Jain, Abbeel 2020 (arXiv 2006.11239), Eq. (14), for noise; Karras et al. 2022 (arXiv 2206.00364), Eq. (8);
        Lipman et al. 2022 (arXiv 2210.02747), Eq. (9), for velocities.

    >>> from refimpl.diffusion.process import EDM
    >>> perfect = DiffusionModel(lambda x, t: torch.ones_like(x), EDM(), predicts="data")
    >>> denoising_loss(perfect, torch.ones(5, 2)).item()
    0.0
    """
    check_tensor("x0", x0, "(*batch, dim)", some=True)
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"model: got {type(model).__name__}, expected a DiffusionModel")
    batch, process, kind = x0.shape[:-1], model.process, kind or model.predicts
    draw_times = uniform_times(process) if draw_times is None else draw_times
    t = draw_times(math.prod(batch), like=x0, generator=generator)
    if t.shape != (math.prod(batch), 1):
        raise ValueError(f"draw_times: returned shape {tuple(t.shape)}, expected ({math.prod(batch)}, 1)")
    low, high = sorted((process.data_time, process.noise_time))
    high = math.inf if isinstance(process, EDM) else high * (1 + 1e-6)  # any level will do
    if not ((low <= t) & (t <= high)).all():
        raise ValueError(f"draw_times: returned times in [{t.min():g}, {t.max():g}], expected [{low:g}, {high:g}]")
    t = t.reshape(*batch, 1)
    if noise is None:
        noise = draw(torch.randn, tuple(x0.shape), x0, generator)
    elif noise.shape != x0.shape:
        raise ValueError(f"noise: got shape {tuple(noise.shape)}, expected that of x0, {tuple(x0.shape)}")
    target = target_of(kind, x0, noise, t, process)
    loss = (model(process.add_noise(x0, noise, t), t, kind, context) - target).square()
    if weight is not None:
        w = weight(t)
        if w.shape != t.shape:
            raise ValueError(f"weight: returned shape {tuple(w.shape)}, expected that of the times, {tuple(t.shape)}")
        loss = w * loss
    return loss.mean()


def uniform_times(process: NoiseProcess, low: float | int = 1e-3) -> Callable:
    """Draws times evenly: whole ones from 1 for DDPM, else on the clock between data and noise.

    Args:
        process: whose clock.
        low: share of the clock next to the data that is left out, in [0, 1); many losses are infinite at its end.

    Returns: function draw_times(n, like, generator) -> (n, 1), in dtype and on the device of `like`.

    >>> from refimpl.diffusion.process import FlowPath
    >>> t = uniform_times(FlowPath(), low=0.5)(1000, torch.zeros(()))
    >>> t.shape, t.min() >= 0, t.max() <= 0.5
    (torch.Size([1000, 1]), tensor(True), tensor(True))
    """
    check_numbers("low", [low], low=0, high=1)
    check_process(process)

    def draw_times(n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        share = draw(torch.rand, (n, 1), like, generator)
        if isinstance(process, DDPM):
            return (share * process.num_levels).floor().clamp_max(process.num_levels - 1) + 1
        return process.data_time + (process.noise_time - process.data_time) * (low + (1 - low) * share)

    return draw_times


def lognormal_times(mean: float | int = -1.2, std: float | int = 1.2) -> Callable:
    """Draws levels for `EDM`, whose clock is the noise level: log sigma ~ N(mean, std^2), by default EDM's for images.

    Returns: function draw_times(n, like, generator) -> (n, 1).

    Source: Karras et al. 2022 (arXiv 2206.00364), Table 1 (sigma_data = 0.5).
    """
    check_numbers("mean", [mean])
    check_positive("std", std)

    def draw_times(n: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return (mean + std * draw(torch.randn, (n, 1), like, generator)).exp()

    return draw_times
