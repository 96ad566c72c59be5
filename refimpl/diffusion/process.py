"""Noise processes: how much of the data and how much noise a state holds at each time, x_t = a(t) x_0 + b(t) n.

Everything in diffusion and flow matching that depends on the choice of a process depends on a, b and their rates only:
samplers, losses and guidance are written once, for all of them. Two processes with the same b / a are the same up to
the scale of x and the speed of the clock.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from refimpl._checks import check_numbers, check_positive, check_sizes
from refimpl.data._random import draw

__all__ = ["DDPM", "EDM", "VE", "VP", "FlowPath", "NoiseProcess", "TrigonometricPath"]


class NoiseProcess:
    """x_t = a(t) x_0 + b(t) n with n ~ N(0, I), b = 0 at the data's end.

    Times are tensors without dimensions or of shape (*batch, 1), so that coefficients multiply points (*batch, dim).
    Subclasses define `coefficients` and `rates`.

    Attributes:
        noise_time, data_time: where sampling starts and ends; a diffusion's clock runs from data to noise, a flow's the
            other way.
    """

    noise_time: float = 1.0
    data_time: float = 0.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """a(t) and b(t), in the shape of t."""
        raise NotImplementedError

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """da/dt and db/dt, in the shape of t."""
        raise NotImplementedError

    def sigma(self, t: Tensor) -> Tensor:
        """Noise per data, b / a; its square is one over the signal-to-noise ratio."""
        a, b = self.coefficients(t)
        return b / a

    def diffusion_squared(self, t: Tensor) -> Tensor:
        """g^2 of the SDE dx = (da/dt) / a x dt + g dw whose marginals these are: |2 b (db/dt - b (da/dt) / a)|."""
        (a, b), (da, db) = self.coefficients(t), self.rates(t)
        return (2 * b * (db - b * da / a)).abs()

    def time_of(self, sigma: Tensor | float | int) -> Float[Tensor, "*any"]:
        """When noise per data is this much, by bisection in float64; at most what it is at `noise_time`."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        low, high = torch.full_like(sigma, self.data_time), torch.full_like(sigma, self.noise_time)
        for _ in range(64):
            middle = (low + high) / 2
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high

    def add_noise(
        self, x0: Float[Tensor, "*batch dim"], noise: Float[Tensor, "*batch dim"], t: Tensor | float | int
    ) -> Float[Tensor, "*batch dim"]:
        """a(t) x_0 + b(t) noise."""
        a, b = self.coefficients(as_time(t, x0))
        if noise.shape != x0.shape:
            raise ValueError(f"noise: got shape {tuple(noise.shape)}, expected that of x0, {tuple(x0.shape)}")
        return a * x0 + b * noise

    def initial(
        self, shape: Sequence[int], like: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Where sampling starts: noise of the scale b at `noise_time`, in dtype and on the device of `like`."""
        like = torch.empty(()) if like is None else like
        _, b = self.coefficients(as_time(self.noise_time, like))
        return b * draw(torch.randn, tuple(shape), like, generator)

    def times(self, num_steps: int) -> Float[Tensor, " n"]:
        """num_steps + 1 times from noise to data, in float64, evenly spaced in time unless a process says otherwise."""
        check_sizes(num_steps=num_steps)
        return torch.linspace(self.noise_time, self.data_time, num_steps + 1, dtype=torch.float64)

    def __repr__(self) -> str:
        settings = ", ".join(f"{k}={v:g}" for k, v in vars(self).items() if isinstance(v, int | float))
        return f"{type(self).__name__}({settings})"


def as_time(t: Tensor | float | int, x: Tensor) -> Tensor:
    """t in dtype and on the device of x, and with a shape that multiplies x; raises if it has another."""
    if not isinstance(t, Tensor) and not math.isfinite(t):
        raise ValueError(f"t: got {t!r}, expected a finite number")
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    if t.ndim and t.shape[-1] != 1 or t.ndim > max(x.ndim, 1):
        raise ValueError(f"t: got shape {tuple(t.shape)}, expected () or (*batch, 1) for x of shape {tuple(x.shape)}")
    return t


class VP(NoiseProcess):
    """Variance preserving: a^2 = exp(-integral of beta), b^2 = 1 - a^2, beta rising linearly; DDPM in continuous time.

    Source: Song et al. 2021 (arXiv 2011.13456), Eq. (11) and Appendix C.

    >>> a, b = VP().coefficients(torch.tensor(0.5))
    >>> round((a**2 + b**2).item(), 6)
    1.0
    """

    def __init__(self, beta_min: float | int = 0.1, beta_max: float | int = 20.0):
        check_positive("beta_min", beta_min)
        check_positive("beta_max", beta_max)
        self.beta_min, self.beta_max = beta_min, beta_max

    def _log_a(self, t: Tensor) -> Tensor:
        return -0.5 * self.beta_min * t - 0.25 * (self.beta_max - self.beta_min) * t.square()

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        log_a = self._log_a(t)
        return log_a.exp(), (-torch.expm1(2 * log_a)).sqrt()

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.coefficients(t)
        half_beta = 0.5 * (self.beta_min + (self.beta_max - self.beta_min) * t)
        return -half_beta * a, half_beta * a.square() / b


class DDPM(NoiseProcess):
    """The discrete chain of DDPM: at whole t, a^2 = prod_{i <= t} (1 - beta_i), beta linear, and t = 0 is the data.

    Networks trained with the usual code count from 0 where this counts from 1: they get t - 1. There are no rates.

    Args:
        num_levels: T, the number of noise levels.
        beta_first, beta_last: of the linear schedule.

    Source: Ho, Jain, Abbeel 2020 (arXiv 2006.11239), Section 4.
    """

    def __init__(self, num_levels: int = 1000, beta_first: float | int = 1e-4, beta_last: float | int = 0.02):
        check_sizes(num_levels=num_levels)
        check_numbers("beta_first, beta_last", [beta_first, beta_last], low=1e-12, high=1)
        self.num_levels, self.noise_time = num_levels, float(num_levels)
        beta = torch.linspace(beta_first, beta_last, num_levels, dtype=torch.float64)
        self.log_alpha_bar = torch.cat([beta.new_zeros(1), torch.log1p(-beta).cumsum(0)])

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        index = t.round().long()
        if (index < 0).any() or (index > self.num_levels).any() or (index - t).abs().max() > 1e-3:
            raise ValueError(f"t: got {t.flatten()[:3].tolist()}, expected whole numbers in [0, {self.num_levels}]")
        log = self.log_alpha_bar.to(t.device)[index]
        return (0.5 * log).exp().to(t.dtype), (-torch.expm1(log)).sqrt().to(t.dtype)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError("process: DDPM is a chain without rates; use VP, its limit in continuous time")

    def time_of(self, sigma: Tensor | float | int) -> Float[Tensor, "*any"]:
        raise TypeError("process: DDPM is a chain without levels in between; use VP, its limit in continuous time")

    def times(self, num_steps: int) -> Float[Tensor, " n"]:
        """num_steps + 1 whole times, as even as they can be."""
        check_sizes(num_steps=num_steps)
        if num_steps > self.num_levels:
            raise ValueError(f"num_steps: got {num_steps}, expected at most the {self.num_levels} levels")
        return super().times(num_steps).round()


def _check_levels(sigma_min: float | int, sigma_max: float | int) -> None:
    check_positive("sigma_min", sigma_min)
    check_positive("sigma_max", sigma_max)
    if not sigma_min < sigma_max:
        raise ValueError(f"sigma_min: got {sigma_min:g}, expected below sigma_max, {sigma_max:g}")


class VE(NoiseProcess):
    """Variance exploding: a = 1, b = sigma_min (sigma_max / sigma_min)^t.

    At t = 0 there is noise of sigma_min left: samples are of the data blurred by it.

    Source: Song et al. 2021 (arXiv 2011.13456), Eq. (9) and Appendix C.
    """

    def __init__(self, sigma_min: float | int = 0.01, sigma_max: float | int = 50.0):
        _check_levels(sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.sigma_min * (self.sigma_max / self.sigma_min) ** t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), math.log(self.sigma_max / self.sigma_min) * self.coefficients(t)[1]


class EDM(NoiseProcess):
    """The noise level is the clock: a = 1, b = t, from `sigma_max` to 0.

    Args:
        sigma_min, sigma_max: last level above 0 and first level of the grid of times.
        rho: how much denser the grid is at low noise.

    Source: Karras et al. 2022 (arXiv 2206.00364), Eq. (5) and Table 1.

    >>> EDM().times(2)
    tensor([8.0000e+01, 2.0000e-03, 0.0000e+00], dtype=torch.float64)
    """

    def __init__(self, sigma_min: float | int = 0.002, sigma_max: float | int = 80.0, rho: float | int = 7.0):
        _check_levels(sigma_min, sigma_max)
        check_positive("rho", rho)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self.noise_time = float(sigma_max)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(t), torch.ones_like(t)

    def time_of(self, sigma: Tensor | float | int) -> Float[Tensor, "*any"]:
        return torch.as_tensor(sigma, dtype=torch.float64)

    def times(self, num_steps: int) -> Float[Tensor, " n"]:
        """num_steps levels, evenly spaced in sigma^(1/rho), and 0."""
        check_sizes(num_steps=num_steps)
        ends = [s ** (1 / self.rho) for s in (self.sigma_max, self.sigma_min)]
        levels = torch.linspace(*ends, num_steps, dtype=torch.float64) ** self.rho
        return torch.cat([levels, levels.new_zeros(1)])


class FlowPath(NoiseProcess):
    """Straight lines: a = t, b = 1 - t; the clock runs from noise to data. Flow matching's and rectified flow's path.

    Source: Lipman et al. 2022 (arXiv 2210.02747), Eq. (20)-(22) with sigma_min = 0; Liu et al. 2022 (arXiv 2209.03003).
    """

    noise_time, data_time = 0.0, 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return t, 1 - t

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), -torch.ones_like(t)


class TrigonometricPath(NoiseProcess):
    """a = sin(pi t / 2), b = cos(pi t / 2), from noise to data: straight in angle, of constant variance.

    Source: Albergo and Vanden-Eijnden 2022 (arXiv 2209.15571).
    """

    noise_time, data_time = 0.0, 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        angle = 0.5 * math.pi * t
        return angle.sin(), (0.5 * math.pi * (1 - t)).sin()  # cos, but exactly 0 at t = 1

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.coefficients(t)
        return 0.5 * math.pi * b, -0.5 * math.pi * a
