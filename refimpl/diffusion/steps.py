"""What all samplers share: DDIM's step, the walk along the times, and checks."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Real

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_tensor
from refimpl.diffusion.model import DiffusionModel
from refimpl.diffusion.process import EDM, NoiseProcess

__all__ = [
    "check_clock",
    "check_share",
    "check_times",
    "coefficients",
    "ddim_mean",
    "ddim_step",
    "last_step",
    "recording",
    "walk",
]

Number = float | int


def ddim_step(
    x0: Float[Tensor, "*batch dim"],
    eps: Float[Tensor, "*batch dim"],
    process: NoiseProcess,
    t: Tensor | Number,
    s: Tensor | Number,
    eta: Number = 0.0,
    noise: Float[Tensor, "*batch dim"] | None = None,
) -> Float[Tensor, "*batch dim"]:
    """From t to s, given estimates of data and noise at t: a_s x_0 + sqrt(b_s^2 - std^2) eps + std noise.

    std = eta b_s sqrt(1 - (sigma_s / sigma_t)^2), sigma = b / a. Were the estimates the true data and noise, x_s would
    have its marginal for every eta: 0 is deterministic, 1 the posterior q(x_s | x_t, x_0) of the Markov chain.

    Args:
        x0, eps: estimates at time t.
        process: gives a and b, which are computed in float64.
        t, s: from where to where; s is nearer to the data.
        eta: in [0, 1].
        noise: fresh standard normal numbers, needed if eta > 0.

    Source: Song, Meng, Ermon 2021 (arXiv 2010.02502), Eq. (12) and (16), here for any a and b.

    >>> from refimpl.diffusion.process import EDM
    >>> ddim_step(torch.tensor([1.0]), torch.tensor([-2.0]), EDM(), 3.0, 0.5)
    tensor([0.])
    """
    mean, std = ddim_mean(x0, eps, process, t, s, eta)
    for name, value in (("eps", eps), ("noise", noise)):
        if value is not None and value.shape != x0.shape:
            raise ValueError(f"{name}: got shape {tuple(value.shape)}, expected that of x0, {tuple(x0.shape)}")
    if eta == 0:
        return mean
    if noise is None:
        raise ValueError(f"noise: got None, expected standard normal numbers for eta={eta:g}")
    return mean + std * noise


def ddim_mean(x0, eps, process, t, s, eta) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of DDIM's step."""
    check_share("eta", eta)
    (a_t, b_t), (a_s, b_s) = (coefficients(process, time, x0) for time in (t, s))
    std = eta * b_s * (1 - (a_t * b_s / (a_s * b_t)).square()).clamp_min(0).sqrt()
    return a_s * x0 + (b_s.square() - std.square()).clamp_min(0).sqrt() * eps, std


def coefficients(process: NoiseProcess, t: Tensor | Number, like: Tensor) -> tuple[Tensor, Tensor]:
    """a and b, computed in float64 and, where they are more than numbers, then in the dtype of `like`."""
    t = torch.as_tensor(t, dtype=torch.float64)
    return tuple(c.to(like) if t.ndim else c for c in process.coefficients(t))


def last_step(model: DiffusionModel, x: Tensor, t: Tensor, s: Tensor, context: Tensor | None) -> Tensor:
    """The step to the data's end."""
    return ddim_step(*model.data_and_noise(x, t, context), model.process, t, s)


def walk(
    step: Callable,
    model: DiffusionModel,
    x: Tensor,
    times: Tensor | Sequence[Number],
    context: Tensor | None,
    return_path: bool,
) -> Tensor:
    """x after step(x, t, s) for each pair of times, or all states."""
    times = check_times(model, times)
    check_tensor("x", x, "(*batch, dim)")
    path = [x]
    with recording(x, context):
        for t, s in pairwise(times):
            x = step(x, t, s)
            if return_path:
                path.append(x)
        return torch.stack(path) if return_path else x


def recording(x: Tensor, context: Tensor | None) -> torch.set_grad_enabled:
    """Gradients are recorded if something that a caller can differentiate by requires them."""
    wanted = x.requires_grad or (context is not None and context.requires_grad)
    return torch.set_grad_enabled(torch.is_grad_enabled() and wanted)


def check_share(name: str, value: Number) -> None:
    """Raise ValueError unless it is a number in [0, 1]."""
    if not isinstance(value, Real) or not 0 <= value <= 1:
        raise ValueError(f"{name}: got {value!r}, expected a number in [0, 1]")


def check_times(model: DiffusionModel, times: Tensor | Sequence[Number]) -> Tensor:
    """Times as float64 numbers on the CPU; raises unless they go from noise towards data."""
    if not isinstance(model, DiffusionModel):
        raise TypeError(f"model: got {type(model).__name__}, expected a DiffusionModel")
    return check_clock(model.process, times)


def check_clock(process: NoiseProcess, times: Tensor | Sequence[Number]) -> Tensor:
    """The same for the clock of a process."""
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu").detach()
    noise, data = process.noise_time, process.data_time
    ahead = math.copysign(1, data - noise)
    if times.ndim != 1 or len(times) < 2 or not (times.isfinite().all() and (ahead * times.diff() > 0).all()):
        order = "rising" if ahead > 0 else "falling"
        raise ValueError(f"times: got {times.flatten()[:5].tolist()}, expected two or more, {order} from noise to data")
    if ahead * (data - times[-1]) < 0:
        raise ValueError(f"times: end at {times[-1]:g}, beyond the data at {data:g}")
    early = ahead * (times[0] - noise) < -1e-6 * (1 + abs(noise))
    if early and not isinstance(process, EDM):  # whose clock is the noise level, and may start at any
        raise ValueError(f"times: start at {times[0]:g}, before the noise at {noise:g}; of another process?")
    return times
